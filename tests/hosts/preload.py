"""Loaded once by the server that forks the runs: everything that a run would import, some of it late."""

import contextlib
import gc
import importlib
import logging

import torch

logging.getLogger("versatune_plugin")  # as in conftest.py: made before Axolotl's class of loggers

for module in (
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "trackio",  # by TRL's model card, at the first checkpoint: half the time of a short run
    "transformers",
    "trl",
    "versatune_plugin.hosts.trl.trainer",
    "versatune_plugin.report.plot",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401
from trl import SFTConfig, SFTTrainer  # noqa: E402, F401

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # the runs collect garbage several times, which need not walk over the libraries
