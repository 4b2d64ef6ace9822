import copy
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.resolving import initial_vector, references_in, rows_of_probe, strategy_of
from versatune_plugin.config.block import VersaTuneArgs, VersaTuneConfig
from versatune_plugin.config.blocks import readable
from versatune_plugin.config.checks import domain_problems
from versatune_plugin.config.measured import Measured, ReferenceRun
from versatune_plugin.config.settings import interval_in_steps, resolve
from versatune_plugin.strategies import STRATEGIES, Fostering
from versatune_plugin.strategies.staged import STAGED

VALID = {"initial_proportions": "uniform", "reference_losses": {"law": 1.0, "code": 2.0}}
DOMAINS = ("law", "code")
FILES = ("detection", "references")
ROWS = {"law": 60, "code": 20}
START = {"initial_proportions": {"law": 0.4, "code": 0.6}}
TARGET = {"expansion": {"domain": "law"}}
STAGES = {"stages": {"general": "code"}}
BLOCKS = {
    "versatune": VALID,
    "manual": START,
    "constant": START,
    "inverse": START,
    "specific": TARGET,
    "increase_uniform": START | TARGET,
    "increase_unconditional": VALID | TARGET,
    "sequential": STAGES,
    "mixed_sequential": STAGES,
    "dmt": STAGES,
    "dynamic_batch_loading": VALID,
}
BLOCKS = {name: {"strategy": name} | BLOCKS.get(name, {}) for name in STRATEGIES}


def make_config(**block):
    return VersaTuneConfig.model_validate(VALID | block)


def mistakes_of(block):
    """What the user reads, one line per mistake."""
    with pytest.raises(ValidationError) as error:
        VersaTuneConfig.model_validate(block)
    return readable(error.value)


def mistakes(**changes):
    return mistakes_of(VALID | changes)


# --- what is valid ------------------------------------------------------------------------------------------


def test_a_minimal_block_takes_the_documented_defaults():
    config = make_config()
    assert (config.strategy, config.sigma, config.update_interval, config.initial_power) == ("versatune", 0.5, 50, 1)
    assert config.probe.rows_per_domain is None
    assert config.samples_per_epoch is None


def test_a_block_is_not_changed_by_its_validation():
    block = VALID | {"strategy": "versatune", "probe": {"rows_per_domain": 4}, "domains": {"law": ["a"]}}
    before = copy.deepcopy(block)
    VersaTuneConfig.model_validate(block)
    assert block == before


def test_keyword_arguments_are_checked_like_a_block():
    assert VersaTuneConfig(**VALID) == make_config()
    with pytest.raises(ValidationError, match="did you mean 'sigma'"):
        VersaTuneConfig(**VALID, sigmma=1)


def test_a_config_that_is_already_one_is_taken_as_it_is():
    config = make_config()
    assert VersaTuneConfig.model_validate(config) is config


def test_a_dumped_block_is_valid_again():
    config = make_config(probe={"rows_per_domain": 4})
    assert VersaTuneConfig.model_validate(config.model_dump()) == config


def test_axolotl_gets_a_typed_block_or_none():
    assert VersaTuneArgs(versatune=VALID).versatune == make_config()
    assert VersaTuneArgs().versatune is None


def test_reference_losses_of_zero_are_allowed():
    assert references_in(make_config(reference_losses={"law": 0.0, "code": 0}), DOMAINS).tolist() == [0.0, 0.0]


# --- what the block becomes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"strategy": "uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"strategy": "proportional"}, [0.5, 0.3, 0.2]),  # 50, 30 and 20 rows
        # sqrt(50) : sqrt(30) : sqrt(20)
        ({"strategy": "temperature"}, [0.415446, 0.321803, 0.262751]),
        ({"strategy": "constant", "initial_proportions": "temperature"}, [0.415446, 0.321803, 0.262751]),
        ({"strategy": "temperature", "temperature": 1}, [0.5, 0.3, 0.2]),
        ({"strategy": "unimax", "guards": {"max_passes": 4}}, [1 / 3, 1 / 3, 1 / 3]),
        # 50 : 3 * 30 : 2.5 * 20
        ({"strategy": "constant", "repeats": {"b": 3, "c": 2.5, "a": 1}}, [50 / 190, 90 / 190, 50 / 190]),
        ({"strategy": "manual", "repeats": {"b": 3, "c": 2.5, "a": 1}}, [50 / 190, 90 / 190, 50 / 190]),
        ({"strategy": "manual", "initial_proportions": {"c": 0.1, "a": 0.6, "b": 0.3}}, [0.6, 0.3, 0.1]),
        ({"strategy": "constant", "initial_proportions": {"a": 0.6, "b": 0.3, "c": 0.1}}, [0.6, 0.3, 0.1]),
        # 1/0.5 : 1/0.3 : 1/0.2 = 6 : 10 : 15
        ({"strategy": "inverse", "initial_proportions": {"a": 0.5, "b": 0.3, "c": 0.2}}, [6 / 31, 10 / 31, 15 / 31]),
        ({"strategy": "constant", "initial_proportions": "proportional", "initial_power": 0}, [1 / 3, 1 / 3, 1 / 3]),
        # 0.5**2 : 0.3**2 : 0.2**2 = 25 : 9 : 4
        (
            {"strategy": "constant", "initial_proportions": "proportional", "initial_power": 2},
            [25 / 38, 9 / 38, 4 / 38],
        ),
    ],
)
def test_initial_proportions_follow_strategy_name_and_power(block, expected):
    config = VersaTuneConfig.model_validate(block)
    assert initial_vector(config, {"a": 50, "b": 30, "c": 20}) == pytest.approx(expected, abs=1e-6)


def test_unimax_gives_what_a_small_domain_may_not_repeat_to_the_others_evenly():
    config = VersaTuneConfig.model_validate({"strategy": "unimax", "guards": {"max_passes": 2}})
    # 300 draws, 100 each: c, of 20 rows, has at most 40, and 60 of its 100 go to the others
    assert initial_vector(config, {"a": 500, "b": 300, "c": 20}, 300) * 300 == pytest.approx([130, 130, 40])
    # by default 4 times, 80
    config = VersaTuneConfig.model_validate({"strategy": "unimax"})
    assert initial_vector(config, {"a": 500, "b": 300, "c": 20}, 300) * 300 == pytest.approx([110, 110, 80])


def test_unimax_with_two_small_domains():
    config = VersaTuneConfig.model_validate({"strategy": "unimax", "guards": {"max_passes": 2}})
    # c has at most 40 and b at most 120
    assert initial_vector(config, {"a": 500, "b": 60, "c": 20}, 300) * 300 == pytest.approx([140, 120, 40])


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"temperature": 0}, "versatune.temperature: Input should be greater than 0 (given: 0)"),
        ({"temperature": -2}, "versatune.temperature: Input should be greater than 0 (given: -2)"),
        ({"strategy": "unimax", "unit": "tokens"}, "versatune.unit: strategy 'unimax' limits passes over rows"),
        ({"repeats": {"law": 3, "code": 0}}, "versatune.repeats.code: Input should be greater than 0 (given: 0)"),
        (
            {"repeats": {"law": 3}, "initial_proportions": "uniform"},
            "versatune.repeats: gives the proportions, and so does `initial_proportions`",
        ),
        ({"repeats": {"law": 3}, "unit": "tokens"}, "versatune.unit: `repeats` counts rows"),
    ],
)
def test_baselines_that_cannot_be_are_named_at_their_key(block, line):
    (found,) = mistakes_of({"strategy": "uniform"} | block)
    assert found.startswith(line)


def test_repeats_name_every_domain():
    block = {"strategy": "constant", "repeats": {"law": 3, "cod": 1}}
    lines = domain_problems(block, ("law", "code"))
    assert [line.split(" ")[0] for line in lines] == ["versatune.repeats"] * len(lines)
    assert any("'code'" in line for line in lines)
    assert any("'cod'; did you mean 'code'?" in line for line in lines)


@pytest.mark.parametrize(("num_steps", "fits"), [(23, True), (24, True), (25, False), (15, False), (40, False)])
def test_a_run_is_as_long_as_its_repeats(num_steps, fits):
    config = VersaTuneConfig.model_validate({"strategy": "constant", "repeats": {"law": 3, "code": 1}})
    sizes = {"law": 50, "code": 40}  # 190 rows, 23.75 steps

    def run():
        return resolve(config, Measured(), sizes, num_steps=num_steps, steps_per_epoch=12, rows_per_step=8)

    if fits:
        assert run().start == pytest.approx([150 / 190, 40 / 190])
        return
    with pytest.raises(
        ValueError, match=rf"repeats: so many passes are 190 rows, but the run draws {8 * num_steps}"
    ) as error:
        run()
    assert "24 steps (max_steps), or 2.12 epochs" in str(error.value)


def test_a_baselines_key_that_does_nothing_is_named():
    assert make_config(temperature=3.0).unused == ["temperature"]
    assert VersaTuneConfig.model_validate({"strategy": "uniform", "repeats": {"law": 3}}).unused == ["repeats"]


@pytest.mark.parametrize("block", [{"strategy": "inverse"}, {"strategy": "constant", "initial_power": -0.5}])
def test_an_inverse_of_a_zero_proportion_is_found_at_once_at_its_key(block):
    (line,) = mistakes_of(block | {"initial_proportions": {"law": 1.0, "code": 0.0}})
    assert line.startswith("versatune.initial_proportions: a proportion of 0 has no inverse")


def test_an_inverse_of_a_domain_without_rows_is_an_error_that_names_the_key():
    config = VersaTuneConfig(strategy="inverse", initial_proportions="proportional")
    with pytest.raises(ValueError, match=r"versatune\.initial_proportions: a proportion of 0 has no inverse"):
        initial_vector(config, {"law": 5, "code": 0})


def test_the_strategy_gets_the_users_sigma():
    assert strategy_of(make_config(sigma=0.25), ROWS) == Fostering(sigma=0.25)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_can_be_built_by_name(name):
    config = VersaTuneConfig.model_validate(BLOCKS[name])
    assert isinstance(strategy_of(config, ROWS), STRATEGIES[name])
    assert initial_vector(config, ROWS).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("block", "detection_file", "references_file"),
    [
        ({"reference_losses": "self"}, "versatune/detection.json", None),
        ({"initial_proportions": "detected", "reference": {"model": "m"}}, *(f"versatune/{n}.json" for n in FILES)),
        ({"initial_proportions": "a/d.json", "reference_losses": "b/r.json"}, "a/d.json", "b/r.json"),
        ({"strategy": "inverse", "reference": {"model": "m"}}, "versatune/detection.json", None),
        ({"strategy": "uniform"}, None, None),
    ],
)
def test_a_block_says_which_files_it_needs(block, detection_file, references_file):
    config = VersaTuneConfig.model_validate(block)
    assert config.detection_file == (detection_file and Path(detection_file))
    assert config.references_file == (references_file and Path(references_file))


def test_a_file_that_was_not_read_is_never_taken_for_numbers():
    config = VersaTuneConfig(initial_proportions="detected", reference_losses="r.json")
    with pytest.raises(ValueError, match=r"detection\.json has not been measured"):
        initial_vector(config, {"law": 1, "code": 1})
    with pytest.raises(ValueError, match=r"r\.json has not been measured"):
        references_in(config, DOMAINS)


def test_measured_numbers_take_the_place_of_file_names():
    config = VersaTuneConfig(initial_proportions="detected", reference_losses="r.json", sigma=0.25)
    measured = Measured(
        start={"law": 0.25, "code": 0.75},
        reference_losses=VALID["reference_losses"],
        loss_unit="byte",
        probe_rows=6,
        sources={"detection": {"file": "d.json"}},
    )
    used = resolve(config, measured, ROWS, num_steps=100, steps_per_epoch=50, rows_per_step=4)
    assert used.start.tolist() == [0.25, 0.75]
    assert used.reference_losses.tolist() == [1.0, 2.0]
    assert (used.loss_unit, used.interval, used.sources) == ("byte", 50, {"detection": {"file": "d.json"}})
    assert used.block["initial_proportions"] == {"law": 0.25, "code": 0.75}
    assert (used.block["probe"]["rows_per_domain"], used.block["sigma"]) == (6, 0.25)
    assert rows_of_probe(config, lambda rows: 1.0, measured) == 6


def test_a_reference_run_is_measured_once_per_epoch_in_the_unit_it_was_given():
    run = ReferenceRun(domain="law", loss_unit="byte", stop_when_rising=True)
    config = VersaTuneConfig(strategy="uniform")
    used = resolve(config, Measured(), {"law": 9}, num_steps=6, steps_per_epoch=3, rows_per_step=3, reference_run=run)
    assert (used.interval, used.loss_unit, used.stop_when_rising) == (3, "byte", True)


def test_reference_losses_come_in_domain_order():
    assert references_in(make_config(), ("code", "law")).tolist() == [2.0, 1.0]
    assert references_in(VersaTuneConfig(strategy="uniform"), DOMAINS) is None


@pytest.mark.parametrize(
    ("given", "num_steps", "steps"),
    [
        (50, 1000, 50),
        (50, 50, 50),
        (50, 2, 50),
        (1, 1, 1),
        (0.1, 1000, 100),
        (0.5, 3, 2),
        (0.001, 20, 1),
        (0.999, 10, 10),
    ],
)
def test_the_update_interval_is_steps_or_a_share_of_the_run(given, num_steps, steps):
    assert interval_in_steps(make_config(update_interval=given), num_steps) == steps


@pytest.mark.parametrize(
    ("probe", "share_of_a_row", "rows"),
    [
        ({}, 0.001, 50),  # 5 % of the run
        ({"budget": 0.02}, 0.001, 20),
        ({}, 0.02, 8),  # never fewer than 8
        ({}, 0.0001, 128),  # nor more than 128
        ({"rows_per_domain": 5}, 0.001, 5),
        ({"rows_per_domain": 100, "budget": 0.02}, 0.001, 100),
        ({"rows_per_domain": 0}, 0.001, 0),
    ],
)
def test_probes_take_as_many_rows_as_their_budget_allows(probe, share_of_a_row, rows):
    config = VersaTuneConfig(strategy="uniform", probe=probe)
    assert rows_of_probe(config, lambda number: number * share_of_a_row) == rows


@pytest.mark.parametrize("budget", [0.0, 1.0, "5 %"])
def test_a_budget_is_a_share_of_the_run(budget):
    with pytest.raises(ValueError, match=r"probe\.budget"):
        VersaTuneConfig(strategy="uniform", probe={"budget": budget})


# --- mistakes, one by one -----------------------------------------------------------------------------------


def test_an_unknown_key_comes_with_the_nearest_name():
    assert mistakes(update_intervall=5) == [
        "versatune.update_intervall: unknown key; did you mean 'update_interval'? (given: 5)"
    ]


def test_an_unknown_key_of_an_inner_block_comes_with_the_nearest_name_there():
    assert mistakes(probe={"rows_per_domian": 5}) == [
        "versatune.probe.rows_per_domian: unknown key; did you mean 'rows_per_domain'? (given: 5)"
    ]


def test_a_key_like_no_other_comes_with_all_names():
    (line,) = mistakes(xyz=5)
    assert "unknown key; valid names: strategy, initial_proportions," in line


def test_a_misspelt_strategy_comes_with_the_nearest_name():
    assert mistakes(strategy="versatun") == [
        "versatune.strategy: unknown strategy; did you mean 'versatune'? (given: 'versatun')"
    ]


@pytest.mark.parametrize(
    ("changes", "where", "phrase"),
    [
        ({"reference_losses": "references.yml"}, "reference_losses", "a loss per domain, a .json file or 'self'"),
        ({"detection": {"num_samples": 0}}, "detection.num_samples", "greater than or equal to 1"),
        ({"detection": {"count": "words"}}, "detection.count", "'samples' or 'tokens'"),
        (
            {"detection": {"judge": {"endpoint": "http://a/v1"}}},
            "detection.judge.model",
            "the name of the model to ask",
        ),
        ({"reference": {"epochs": 4}}, "reference.model", "Field required"),
        ({"reference": {"model": "m", "epochs": 0}}, "reference.epochs", "greater than or equal to 1"),
        ({"initial_proportions": "unifrom"}, "initial_proportions", "did you mean 'uniform'?"),
        (
            {"initial_proportions": {"law": 0.5, "code": 0.4}},
            "initial_proportions",
            "must sum to 1 (within 0.0001), got 0.9",
        ),
        (
            {"initial_proportions": {"law": -0.5, "code": 1.5}},
            "initial_proportions",
            "'law' must be a number of at least 0",
        ),
        ({"initial_proportions": {"law": float("nan")}}, "initial_proportions.law", "finite number"),
        ({"initial_proportions": [0.5, 0.5]}, "initial_proportions", "valid string"),
        (
            {"reference_losses": None},
            "reference_losses",
            "'versatune' needs a loss per domain: {law: 1.21, ...}, a `ref",
        ),
        ({"reference_losses": {"law": -1.0}}, "reference_losses.law", "at least 0 nats per target token, got -1.0"),
        ({"reference_losses": {"law": float("nan")}}, "reference_losses.law", "finite number"),
        ({"reference_losses": {"law": float("inf")}}, "reference_losses.law", "finite number"),
        ({"reference_losses": {"law": "low"}}, "reference_losses.law", "valid number"),
        ({"sigma": -0.1}, "sigma", "greater than or equal to 0"),
        ({"sigma": float("nan")}, "sigma", "finite number"),
        ({"update_interval": 0}, "update_interval", "greater than 0"),
        ({"update_interval": 2.5}, "update_interval", "a whole number of steps, or a share below 1"),
        ({"update_interval": float("inf")}, "update_interval", "finite number"),
        ({"initial_power": 5}, "initial_power", "less than or equal to 4"),
        ({"samples_per_epoch": 0}, "samples_per_epoch", "greater than or equal to 1"),
        ({"probe": {"rows_per_domain": -1}}, "probe.rows_per_domain", "greater than or equal to 0"),
        ({"probe": {"rows_per_domain": 0}}, "probe.rows_per_domain", "needs losses: at least 1 row per domain"),
        ({"probe": 5}, "probe", "valid dictionary"),
        ({"domains": {"law": "data/law.jsonl"}}, "domains.law", "valid list"),
        ({"domains": ["law"]}, "domains", "valid dictionary"),
        ({"domains": {"law": []}}, "domains.law", "at least 1 item"),
        ({"sigma": True}, "sigma", "valid number"),
        ({"sigma": "0.5"}, "sigma", "valid number"),
        ({"initial_power": False}, "initial_power", "valid number"),
        ({"update_interval": "50"}, "update_interval", "valid number"),
        ({"update_interval": True}, "update_interval", "valid number"),
        ({"domain_column": ""}, "domain_column", "at least 1 character"),
    ],
)
def test_a_wrong_value_is_reported_at_its_key(changes, where, phrase):
    (line,) = mistakes(**changes)
    assert line.startswith(f"versatune.{where}: ")
    assert phrase in line


@pytest.mark.parametrize("block", [{}, {"initial_proportions": "uniform"}])
def test_manual_needs_a_proportion_per_domain(block):
    (line,) = mistakes_of({"strategy": "manual", **block})
    assert "strategy 'manual' needs a proportion per domain" in line


def test_names_that_are_no_domains_of_the_datasets_are_reported_together():
    block = {"initial_proportions": {"law": 0.5, "cod": 0.5}, "reference_losses": {"law": 1.0}}
    problems = domain_problems(block, DOMAINS)
    assert len(problems) == 3
    assert "versatune.initial_proportions names an unknown domain 'cod'; did you mean 'code'?" in problems
    assert "versatune.reference_losses has no value for domain 'code'; give one for each of: law, code" in problems


def test_every_problem_with_a_domain_name_starts_with_its_key():
    block = VALID | {"initial_proportions": {"law": 0.5, "cod": 0.5}}
    assert all(line.startswith("versatune.") for line in domain_problems(block, DOMAINS))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"initial_proportions": {"law": 0.5, "coed": 0.5}},
            {
                "reference_losses": "has no 'coed', which `initial_proportions` names",
                "reference_losses ": "names 'code', which `initial_proportions` does not name; did you mean 'coed'?",
            },
        ),
        (START | {"reference_losses": {"law": 1.0}}, {"reference_losses": "has no 'code'"}),
        (TARGET | {"expansion": {"domain": "lwa"}}, {"expansion.domain": "'lwa'.*`reference_losses`.*'law'"}),
        (START | {"expansion": {"domain": ["law", "cod"]}}, {"expansion.domain": "'cod'.*'code'"}),
        (START | {"guards": {"floor": {"lwa": 0.1}}}, {"guards.floor": "'lwa'.*'law'"}),
        (START | {"detection": {"descriptions": {"lwa": "laws"}}}, {"detection.descriptions": "'lwa'.*'law'"}),
    ],
)
def test_keys_of_a_block_that_name_other_domains_are_a_mistake_of_the_block(changes, lines):
    found = mistakes(**changes)
    assert len(found) == len(lines)
    for line, (where, phrase) in zip(found, lines.items(), strict=True):
        assert re.match(f"versatune.{where.strip()}: .*{phrase}", line), line


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"initial_proportions": {False: 0.5, "law": 0.5}}, "initial_proportions"),
        ({"guards": {"floor": {1: 0.1}}}, "guards.floor.1"),
        ({"domains": {None: ["a.jsonl"]}}, "domains.None"),
        ({"expansion": {"domain": ["law", 1]}}, "expansion.domain.1"),
        ({"stages": {"general": True}}, "stages.general"),
    ],
)
def test_a_name_that_yaml_reads_as_another_kind_of_value_is_to_be_put_in_quotes(changes, where):
    (line,) = mistakes(**changes)
    assert line.startswith(f"versatune.{where}")
    assert "in quotes" in line


def test_proportions_as_people_write_them_are_divided_by_their_sum_and_it_is_said():
    config = VersaTuneConfig(strategy="manual", initial_proportions={"law": 0.3333, "medicine": 0.3333, "code": 0.3333})
    assert initial_vector(config, dict.fromkeys(("law", "medicine", "code"), 5)).tolist() == [1 / 3] * 3
    assert "initial_proportions sum to 0.9999:" in config.start_remark
    assert VersaTuneConfig(strategy="manual", **START).start_remark is None
    (line,) = mistakes_of({"strategy": "manual", "initial_proportions": {"law": 0.333, "code": 0.666}})
    assert "got 0.999" in line


def test_names_that_fit_the_domains_are_no_problem():
    assert domain_problems(make_config().model_dump(), DOMAINS) == []


# --- targets, stages, guards, signal ---------------------------------------------------------------------------

LARGE = {"law": 600, "medicine": 300, "code": 100}


def built(**block):
    return VersaTuneConfig.model_validate(block)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"strategy": "specific", "expansion": {"domain": "code"}}, [0, 0, 1]),
        ({"strategy": "specific", "expansion": {"domain": "code", "share": 0.7}}, [0.15, 0.15, 0.7]),
        # the rest 6 : 3, as the rows
        (
            {
                "strategy": "specific",
                "expansion": {"domain": "code", "share": 0.7},
                "initial_proportions": "proportional",
            },
            [0.2, 0.1, 0.7],
        ),
        # targets 6 : 1 in 0.7, the rest in 0.3
        (
            VALID
            | {
                "reference_losses": "self",
                "initial_proportions": "proportional",
                "expansion": {"domain": ["code", "law"], "start": 0.7},
            },
            [0.6, 0.3, 0.1],
        ),
        ({"strategy": "sequential", "stages": {"general": "law"}}, [0, 1, 0]),
        ({"strategy": "sequential", "stages": {"order": ["code", "law", "medicine"]}}, [0, 0, 1]),
        ({"strategy": "multitask"}, [0.6, 0.3, 0.1]),
        ({"strategy": "proportional", "guards": {"floor": {"code": 0.19}}}, [0.54, 0.27, 0.19]),
        ({"strategy": "proportional", "guards": {"ceiling": 0.4}}, [0.4, 0.4, 0.2]),
        ({"strategy": "odm"}, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_targets_stages_and_guards_shape_the_start(block, expected):
    assert initial_vector(built(**block), LARGE) == pytest.approx(expected, abs=1e-12)


def test_expansion_gets_its_settings_and_goes_home_to_where_it_would_have_started():
    rise = {"domain": ["code", "law"], "delta": 0.1, "epsilon": 0.2, "ceiling": 0.9, "start": 0.8}
    block = VALID | {"reference_losses": "self", "initial_proportions": "proportional"}
    strategy = strategy_of(built(**block, expansion=rise, sigma=0.3), LARGE)
    assert (strategy.sigma, strategy.targets, strategy.delta, strategy.epsilon) == (0.3, (2, 0), 0.1, 0.2)
    assert (strategy.ceiling, strategy.hold, strategy.since_start) == (0.9, 0.0, False)
    assert strategy.home.tolist() == [0.6, 0.3, 0.1]
    assert strategy_of(built(**block, expansion={"domain": "law"}), LARGE).home is None


def test_a_start_above_the_usual_ceiling_is_its_own_ceiling():
    block = VALID | {"reference_losses": "self", "initial_proportions": "uniform"}
    for start, ceiling in ((0.98, 0.98), (0.7, 0.8), (None, 0.8)):
        expansion = {"domain": "law", "start": start, "hold": 0.0, "forgetting_since": "start"}
        strategy = strategy_of(built(**block, expansion=expansion), LARGE)
        assert (strategy.ceiling, strategy.since_start) == (ceiling, True)


def test_a_limit_on_passes_bounds_the_start():
    config = built(strategy="uniform", guards={"max_passes": 2})
    # 1,000 draws, of which code may have 200: the other two share 0.8 evenly
    assert initial_vector(config, LARGE, 1000) == pytest.approx([0.4, 0.4, 0.2], abs=1e-12)


def test_a_run_longer_than_its_limit_on_passes_is_an_error():
    with pytest.raises(
        ValueError, match=r"max_passes: the run draws 2,500 rows, but 2 passes over 1,000 .* least 2\.5"
    ):
        initial_vector(built(strategy="uniform", guards={"max_passes": 2}), LARGE, 2500)


def test_a_floor_that_the_limit_on_passes_does_not_allow_is_an_error():
    config = built(strategy="uniform", guards={"max_passes": 1, "floor": 0.25})
    with pytest.raises(
        ValueError, match=r"floor: 0\.25 of 1,000 rows would pass over the 100 rows of 'code' more than 1 "
    ):
        initial_vector(config, LARGE, 1000)


@pytest.mark.parametrize(
    ("block", "training", "probes", "rows"),
    [
        ({"strategy": "odm"}, True, False, 0),
        ({"strategy": "odm", "signal": "probe"}, False, True, 8),
        (VALID, False, True, 8),
        (VALID | {"signal": "train"}, True, False, 0),
        ({"strategy": "uniform", "probe": {"rows_per_domain": 0}}, False, False, 0),
    ],
)
def test_losses_come_from_probes_or_from_training(block, training, probes, rows):
    config = built(**block)
    assert (config.measures_training, config.measures_probes) == (training, probes)
    assert rows_of_probe(config, lambda rows: rows / 100) == rows


@pytest.mark.parametrize(
    ("block", "where", "phrase"),
    [
        ({"strategy": "specific"}, "expansion", "'specific' needs a target: {domain: NAME}"),
        (
            VALID | {"expansion": {"domain": "law", "start": 0.9, "ceiling": 0.8}},
            "expansion.start",
            "not be above `ceiling`, 0.8",
        ),
        (VALID | {"expansion": {"domain": "law", "hold": 0.5}}, "expansion.hold", "holds the share that `start` gives"),
        (VALID | {"expansion": {"domain": ["law", "law"]}}, "expansion.domain", "names a domain twice"),
        (VALID | {"expansion": {"domain": []}}, "expansion.domain", "at least 1 item"),
        (VALID | {"expansion": {"domain": 5}}, "expansion.domain", "valid string"),
        (VALID | {"expansion": {"delta": 0.1}}, "expansion.domain", "Field required"),
        (VALID | {"expansion": {"domain": "law", "delta": 1}}, "expansion.delta", "less than 1"),
        (VALID | {"expansion": {"domain": "law", "epsilon": -1}}, "expansion.epsilon", "greater than or equal to 0"),
        ({"strategy": "dmt", "stages": {"kappa": 0}}, "stages.kappa", "greater than 0"),
        ({"strategy": "odm", "odm": {"alpha": 1}}, "odm.alpha", "less than 1"),
        ({"strategy": "uniform", "guards": {"floor": 1.5}}, "guards.floor", "between 0 and 1, got 1.5"),
        ({"strategy": "uniform", "guards": {"ceiling": {"law": -1}}}, "guards.ceiling.law", "between 0 and 1, got -1"),
        ({"strategy": "uniform", "guards": {"floor": "low"}}, "guards.floor", "valid number"),
        ({"strategy": "uniform", "guards": {"max_passes": 0}}, "guards.max_passes", "greater than 0"),
        ({"strategy": "uniform", "guards": {"max_change": 2}}, "guards.max_change", "less than or equal to 1"),
        (
            VALID | {"signal": "train", "reference_losses": "r.json"},
            "reference_losses",
            "r.json is measured on held-out rows: with `signal: train` give the numbers, or 'self'",
        ),
        ({"strategy": "dynamic_batch_loading", "initial_proportions": "uniform"}, "reference_losses", "needs a loss"),
    ],
)
def test_a_contradiction_is_reported_at_its_key(block, where, phrase):
    (line,) = mistakes_of(block)
    assert line.startswith(f"versatune.{where}: ")
    assert phrase in line


@pytest.mark.parametrize(
    ("block", "phrase"),
    [
        (
            TARGET | {"expansion": {"domain": "lwa"}},
            "expansion.domain names an unknown domain 'lwa'; did you mean 'law'",
        ),
        (
            {"expansion": {"domain": ["law", "cod"]}},
            "expansion.domain names an unknown domain 'cod'; did you mean 'code'",
        ),
        ({"guards": {"floor": {"lwa": 0.1}}}, "guards.floor names an unknown domain 'lwa'; did you mean 'law'"),
        ({"guards": {"ceiling": {"lwa": 0.1}}}, "guards.ceiling names an unknown domain 'lwa'"),
        ({"guards": {"floor": 0.6}}, "guards.floor: the floors of 2 domains sum to 1.2, above 1"),
        ({"guards": {"ceiling": 0.4}}, "guards.ceiling: the ceilings of 2 domains sum to 0.8, below 1"),
        (
            {"guards": {"floor": {"law": 0.5}, "ceiling": {"law": 0.4}}},
            "guards.floor: 0.5 for domain 'law' is above its ceiling, 0.4",
        ),
        ({"strategy": "dmt"}, "stages.general is missing"),
        ({"strategy": "dmt", "stages": {"general": "cde"}}, "stages.general is 'cde', no domain; did you mean 'code'"),
        ({"strategy": "sequential", "stages": {"order": ["law"]}}, "stages.order leaves out 'code'"),
    ],
)
def test_names_and_bounds_that_do_not_fit_the_domains_are_reported_at_their_key(block, phrase):
    (line,) = domain_problems(block, DOMAINS)
    assert line.startswith(f"versatune.{phrase}")


EVERYTHING = {
    "initial_proportions": {"law": 0.4, "medicine": 0.3, "code": 0.3},
    "initial_power": 0.5,
    "sigma": 1.0,
    "reference_losses": {"law": 1.0, "medicine": 1.5, "code": 2.0},
    "probe": {"rows_per_domain": 16},
    "expansion": {"domain": "medicine", "delta": 0.1, "epsilon": 0.2, "share": 0.8},
    "stages": {"general": "code", "kappa": 0.5, "order": ["medicine", "law", "code"]},
    "odm": {"alpha": 0.1},
    "guards": {"floor": 0.01, "max_change": 0.5},
}
OF_FIXED = {"sigma", "odm.alpha", "guards.max_change"}
OF_TARGETS = {"expansion.delta", "expansion.epsilon"}
OF_STAGES = {"stages.general", "stages.order", "stages.kappa"}


@pytest.mark.parametrize(
    ("strategy", "unused"),
    [
        ("versatune", {"expansion.share", "odm.alpha"} | OF_STAGES),
        ("specific", OF_FIXED | OF_TARGETS | OF_STAGES),
        (
            "increase_uniform",
            {"sigma", "odm.alpha", "expansion.epsilon", "expansion.share"} | OF_STAGES,
        ),
        ("uniform", {"initial_proportions", "initial_power", "expansion"} | OF_FIXED | OF_STAGES),
        ("inverse", {"initial_power", "expansion"} | OF_FIXED | OF_STAGES),
        ("dmt", {"initial_proportions", "initial_power", "sigma", "expansion", "odm.alpha", "guards", "stages.order"}),
        ("odm", {"sigma", "expansion", "probe.rows_per_domain"} | OF_STAGES),
    ],
)
def test_one_line_of_a_block_changes_the_strategy_and_what_it_does_not_use_is_said(strategy, unused):
    config = built(**EVERYTHING, strategy=strategy)
    assert set(config.unused) == unused
    assert initial_vector(config, LARGE).sum() == pytest.approx(1, abs=1e-12)
    assert strategy_of(config, LARGE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_block_with_everything_serves_every_strategy(strategy):
    config = built(**EVERYTHING, strategy=strategy)
    assert initial_vector(config, LARGE, 900).min() >= (0 if strategy in STAGED else 0.01 - 1e-12)
    assert VersaTuneConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("strategy", ["odm", "uniform"])
def test_a_file_of_reference_losses_that_training_losses_have_no_use_for_is_not_read(strategy):
    config = built(strategy=strategy, signal="train", reference_losses="versatune/references.json")
    assert config.references_file is None
    assert references_in(config, DOMAINS) is None
    assert config.unused == ["reference_losses"]


def test_targets_that_are_no_names_are_found_by_the_blocks_own_checks_alone():
    block = VALID | {"expansion": {"domain": [{"law": 1}]}}
    assert all("unknown domain" in line for line in domain_problems(block, DOMAINS))
    assert any(line.startswith("versatune.expansion.domain") for line in mistakes_of(block))


def test_all_domains_cannot_be_targets():
    (line,) = domain_problems(VALID | {"expansion": {"domain": ["code", "law"]}}, DOMAINS)
    assert line.startswith("versatune.expansion.domain names all domains")


def test_a_minimal_block_has_nothing_unused():
    assert make_config().unused == []


@pytest.mark.parametrize("key", ["probe", "stages", "odm", "guards"])
def test_a_block_left_empty_is_its_default(key):
    assert make_config(**{key: None}) == make_config()


def test_a_target_without_rows_to_learn_from_is_an_error_under_training_losses():
    block = VALID | {"signal": "train", "reference_losses": "self", "expansion": {"domain": "law"}}
    config = built(**block | {"initial_proportions": {"law": 0.0, "code": 1.0}})
    with pytest.raises(ValueError, match=r"expansion: law starts at 0, so `signal: train` has no loss of it"):
        initial_vector(config, ROWS)


@pytest.mark.parametrize(
    ("block", "phrase"),
    [
        (
            {"strategy": "manual", "initial_proportions": {"law": 0.9, "code": 0.1}, "guards": {"ceiling": 0.7}},
            "strategy 'manual' was given proportions outside their bounds: law 0.9 -> 0.7, code 0.1 -> 0.3",
        ),
    ],
)
def test_guards_do_not_repair_proportions_that_the_user_gave(block, phrase):
    with pytest.raises(ValueError, match=phrase):
        initial_vector(built(**block), ROWS)


def test_ceilings_and_a_limit_on_passes_that_leave_no_room_are_an_error():
    config = built(strategy="uniform", guards={"max_passes": 1, "ceiling": {"law": 0.5}})
    with pytest.raises(
        ValueError, match=r"under the ceilings and with at most 1 passes .* too few rows for a run that draws 900"
    ):
        initial_vector(config, {"law": 900, "code": 100}, 900)


def test_a_domain_called_general_comes_last_by_itself():
    assert domain_problems({"strategy": "dmt"}, ("law", "general")) == []
    config = built(strategy="mixed_sequential")
    assert strategy_of(config, {"general": 10, "law": 20}).stages[-1].proportions.tolist() == [1, 0]


def test_bounds_that_sum_to_one_up_to_rounding_leave_room():
    domains = tuple(map(str, range(10)))
    assert domain_problems({"guards": {"floor": 0.1, "ceiling": 0.1}}, domains) == []
    assert (
        initial_vector(built(strategy="uniform", guards={"floor": 0.1}), dict.fromkeys(domains, 5)).tolist()
        == [0.1] * 10
    )


# --- mistakes together --------------------------------------------------------------------------------------


def test_unknown_keys_wrong_values_and_wrong_inner_values_are_reported_together():
    lines = mistakes(sigmma=1, sigma=-1, initial_power=9, probe={"rows_per_domain": -1, "seed": 3})
    assert [line.split(":")[0] for line in lines] == [
        "versatune.sigmma",
        "versatune.initial_power",
        "versatune.sigma",
        "versatune.probe.seed",
        "versatune.probe.rows_per_domain",
    ]


def test_unknown_keys_and_contradictions_are_reported_together():
    lines = mistakes_of(
        {
            "sigmma": 1,
            "initial_proportions": "uniform",
            "reference_losses": {"law": -1.0, "code": -2.0},
            "expansion": {"domain": "law", "hold": 0.5},
        }
    )
    assert [line.split(":")[0] for line in lines] == [
        "versatune.sigmma",
        "versatune.expansion.hold",
        "versatune.reference_losses.law",
        "versatune.reference_losses.code",
    ]


def test_wrong_values_and_contradictions_are_reported_together():
    lines = mistakes(sigma=-1, strategy="versatun", reference_losses="losses.yml")
    assert len(lines) == 3
    assert {line.split(":")[0] for line in lines} == {
        "versatune.sigma",
        "versatune.strategy",
        "versatune.reference_losses",
    }


@pytest.mark.parametrize("strategy", ["uniform", "versatune", "constant"])
@pytest.mark.parametrize("empty", [{}, ""])
def test_empty_initial_proportions_are_a_mistake(strategy, empty):
    lines = mistakes_of(VALID | {"strategy": strategy, "initial_proportions": empty})
    assert [line.split(":")[0] for line in lines] == ["versatune.initial_proportions"]


def test_a_key_put_into_the_yaml_by_mistake_is_not_shown():
    judge = {"endpoint": "http://a/v1", "api_key": "sk-1234", "api_key_env": "sk-5678"}
    lines = mistakes(detection={"judge": judge}, reference={"password": "sk-9"})
    assert len(lines) == 5
    assert "api_key: unknown key; did you mean 'api_key_env'? (given: '(not shown)')" in lines[0]
    assert not [line for line in lines if "sk-" in line]


def test_a_line_shows_what_was_given():
    assert mistakes(sigma=-1)[0].endswith("(given: -1)")


def test_vectors_are_new_at_every_call():
    config = make_config()
    references_in(config, DOMAINS)[:] = 9
    initial_vector(config, {"law": 1, "code": 1})[:] = 9
    assert references_in(config, DOMAINS).tolist() == [1.0, 2.0]
    assert initial_vector(config, {"law": 1, "code": 1}).tolist() == [0.5, 0.5]
    assert references_in(config, DOMAINS).dtype == np.float64
