from importlib.util import find_spec

import pytest

import versatune_plugin
from tests.imports import HEAVY, modules_loaded_by, run_python

LIGHT_MODULES = (
    "domains",
    "signals",
    "strategies",
    "mixture.mixture",
    "files.history",
    "report",
    "report.drawing",
    "files.documents",
    "files.cache",
    "measuring.detection.detect",
    "measuring.detection.run",
    "files.fingerprints",
    "report.detection",
    "measuring.detection.judges",
    "measuring.detection.judges.prompt",
    "measuring.references",
    "config.blocks",
    "sampler.draws",
    "sampler.fair_counts",
    "sampler.fair_costs",
    "sampler.permutation",
    "sampler.feed",
    "mixture.guards",
    "config.sections",
    "config.block",
    "config.checks",
    "hosts.axolotl.config",
    "simulation",
    "evaluation.run",
    "quickstart",
)


@pytest.mark.parametrize("module", ["versatune_plugin", *(f"versatune_plugin.{name}" for name in LIGHT_MODULES)])
def test_a_light_module_loads_no_heavy_library(module):
    loaded = modules_loaded_by(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_package_loads_nothing_that_python_has_not_loaded_already():
    loaded = modules_loaded_by("import versatune_plugin")
    assert {name for name in loaded if name.startswith("versatune_plugin.")} == set()
    assert loaded.isdisjoint({"numpy", "pydantic", "yaml", "click"})


@pytest.mark.parametrize(
    "module",
    ["domains", "signals", "tables", "strategies", "sampler.draws", "mixture.guards", "mixture.mixture"],
)
def test_the_core_needs_neither_pydantic_nor_the_config(module):
    loaded = modules_loaded_by(f"import versatune_plugin.{module}")
    assert loaded.isdisjoint({"pydantic", "versatune_plugin.config.block"})


def test_the_package_is_imported_within_a_tenth_of_a_second():
    code = "import time; began = time.perf_counter(); import versatune_plugin; print(time.perf_counter() - began)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.1


def test_importing_the_package_sets_up_no_logging_and_no_environment():
    run_python(
        "import logging, os; before = dict(os.environ)\n"
        "import versatune_plugin, versatune_plugin.config.block, versatune_plugin.files.history\n"
        "assert dict(os.environ) == before and not logging.root.handlers\n"
        "assert not logging.getLogger('versatune_plugin').handlers"
    )


# --- public names -------------------------------------------------------------------------------------------


def test_light_public_names_load_no_heavy_library():
    loaded = modules_loaded_by("from versatune_plugin import MixtureSampler, VersaTuneConfig, __version__")
    assert loaded.isdisjoint(HEAVY)


def test_all_public_names_resolve():
    missing = [name for name in ("torch", "transformers", "axolotl", "trl") if not find_spec(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    code = (
        "import versatune_plugin as package\n"
        "for name in package.__all__: assert getattr(package, name) is not None, name\n"
        "print(*package.__all__)"
    )
    assert run_python(code).split() == versatune_plugin.__all__


def test_dir_lists_the_public_names_without_loading_them():
    assert set(dir(versatune_plugin)) == set(versatune_plugin.__all__)
    assert "__version__" in versatune_plugin.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'versatune_plugin' has no attribute 'VersaTune'"):
        versatune_plugin.VersaTune  # noqa: B018


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("VersaTunePlugin", "axolotl"),
        ("VersaTuneCallback", "transformers"),
        ("VersaTuneMixin", "torch"),
        ("VersaTuneSFTTrainer", "trl"),
    ],
)
def test_a_missing_library_is_a_runtime_error_since_axolotl_skips_plugins_that_raise_import_errors(name, library):
    message = run_python(
        "import sys\n"
        f"sys.modules[{library!r}] = None  # Python's own way to say: not installed\n"
        "import versatune_plugin\n"
        f"try: versatune_plugin.{name}\n"
        "except RuntimeError as error: print(type(error).__name__, error)"
    )
    assert message.startswith(f"RuntimeError versatune_plugin.{name} cannot be loaded: ")
    assert library in message


def test_from_import_gives_the_same_error():
    message = run_python(
        "import sys\n"
        "sys.modules['axolotl'] = None\n"
        "try: from versatune_plugin import VersaTunePlugin\n"
        "except ImportError: print('swallowed by Axolotl')\n"
        "except RuntimeError as error: print(error)"
    )
    assert message.startswith("versatune_plugin.VersaTunePlugin cannot be loaded")
