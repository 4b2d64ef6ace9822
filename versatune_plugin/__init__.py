"""Mix fine-tuning domains by measurement, in Axolotl and TRL (VersaTune, arXiv 2411.11266).

Importing this package loads neither torch nor a host; the public names below are resolved when first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "MixtureSampler": "sampler",
    "VersaTuneCallback": "hosts.callback",
    "VersaTuneConfig": "config.block",
    "VersaTuneMixin": "hosts.trainer",
    "VersaTunePlugin": "hosts.axolotl.plugin",
    "VersaTuneSFTTrainer": "hosts.trl.trainer",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ImportError as error:
        # Axolotl logs a plugin's ImportError and trains on without the plugin: a run must not go on unmixed.
        raise RuntimeError(f"versatune_plugin.{name} cannot be loaded: {error}") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
