"""`python -m tests.hosts.axolotl.forks CONFIG.yml ...`: `axolotl train` for each, the libraries loaded once.

Each command runs in a fork of its own, so that nothing of one run reaches the next; what it says goes to `log.txt`
beside its YAML.
"""

import gc
import importlib
import os
import sys
import traceback
from pathlib import Path

_PRELOADED = (
    "axolotl.cli.train",
    "axolotl.core.builders",
    "axolotl.train",
    "axolotl.utils.callbacks",
    "axolotl.utils.schemas.config",
    "matplotlib.backends.backend_agg",
    "versatune_plugin.hosts.trainer",
)


def main(configs: list[str]) -> int:
    for module in _PRELOADED:
        importlib.import_module(module)
    from axolotl.cli.main import main as axolotl_main

    gc.collect()
    gc.freeze()  # the runs collect garbage several times, which need not walk over the libraries
    failed = 0
    for config in configs:
        process = os.fork()
        if process == 0:
            os._exit(_train(axolotl_main, config))
        failed += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0
    return failed


def _train(axolotl_main, config: str) -> int:
    log = os.open(Path(config).with_name("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["axolotl", "train", config, "--launcher", "python"]
    status = 1
    try:
        axolotl_main()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
