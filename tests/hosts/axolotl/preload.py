"""Loaded once by the server that forks the runs, where there are tests of Axolotl among them."""

import contextlib
import gc
import importlib

import numpy as np

with contextlib.suppress(ImportError):
    for module in (
        "axolotl.cli.train",
        "axolotl.cli.preprocess",
        "axolotl.core.builders",
        "axolotl.train",
        "axolotl.utils.callbacks",
        "axolotl.utils.schemas.config",
        "matplotlib.backends.backend_agg",
        "versatune_plugin.hosts.axolotl.plugin",
        "versatune_plugin.hosts.trainer",
    ):
        importlib.import_module(module)
    from axolotl.utils.samplers.multipack import allocate_sequentially, pack_group

    lengths = np.array([1, 1], dtype=np.int32)  # these are compiled when they are first called
    pack_group(lengths, 0, 2, 2, 2, True)
    allocate_sequentially(lengths, 0, 2, 1)

gc.collect()
gc.freeze()  # the runs collect garbage several times, which need not walk over the libraries
