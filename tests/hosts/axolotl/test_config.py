import copy

import pytest

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.handover import KEY, Handover
from versatune_plugin.config.measured import ReferenceRun
from versatune_plugin.hosts.axolotl.config import (
    BY_COLUMN,
    domain_order,
    fill_in,
    forgotten_block_problems,
    rows_per_step,
)

BLOCK = {"strategy": "uniform"}
FOSTERING = {"initial_proportions": "uniform", "reference_losses": {"law": 1.0, "code": 2.0}}


def make_yaml(versatune=BLOCK, **changes):
    """What Axolotl read from a valid YAML with two domains, with some keys changed."""
    yaml = {
        "datasets": [{"path": "law.jsonl", "domain": "law"}, {"path": "code.jsonl", "domain": "code"}],
        "val_set_size": 0.1,
        "versatune": versatune,
    }
    return copy.deepcopy(yaml | changes)


def mistakes(versatune=BLOCK, **changes):
    """The lines of the error text, without its head."""
    with pytest.raises(ValueError, match=r"mistake\(s\) in the YAML") as error:
        fill_in(make_yaml(versatune, **changes))
    head, *lines = str(error.value).split("\n")
    assert head == f"versatune: {len(lines)} mistake(s) in the YAML:"
    return [line.removeprefix("  ") for line in lines]


def filled(versatune=BLOCK, **changes) -> Handover:
    yaml = make_yaml(versatune, **changes)
    fill_in(yaml)
    return Handover.of_config(yaml)


def order(versatune=BLOCK, **changes) -> list[str]:
    return domain_order(VersaTuneConfig.model_validate(versatune), filled(versatune, **changes))


# --- what is filled in --------------------------------------------------------------------------------------


def test_the_domain_of_every_dataset_is_handed_over():
    assert filled() == Handover(dataset_domains=("law", "code"))


def test_several_datasets_may_share_a_domain():
    datasets = [{"path": "a", "domain": "law"}, {"path": "b", "domain": "code"}, {"path": "c", "domain": "law"}]
    assert filled(datasets=datasets).dataset_domains == ("law", "code", "law")


def test_domains_may_be_named_by_path_inside_the_block():
    block = BLOCK | {"domains": {"code": ["code.jsonl"], "law": ["law.jsonl"]}}
    result = filled(block, datasets=[{"path": "law.jsonl"}, {"path": "code.jsonl"}])
    assert result.dataset_domains == ("law", "code")
    assert domain_order(VersaTuneConfig.model_validate(block), result) == ["code", "law"]


def test_a_domain_key_and_the_same_domain_in_the_block_agree():
    assert filled(BLOCK | {"domains": {"law": ["law.jsonl"]}}).dataset_domains == ("law", "code")


def test_domains_stand_in_the_order_of_their_first_dataset():
    datasets = [{"path": "a", "domain": "z"}, {"path": "b", "domain": "a"}, {"path": "c", "domain": "z"}]
    assert order(datasets=datasets) == ["z", "a"]


def test_a_dataset_without_a_domain_is_split_by_the_domain_column():
    block = BLOCK | {"domain_column": "subject"}
    result = filled(block, datasets=[{"path": "all.jsonl"}, {"path": "law.jsonl", "domain": "law"}])
    assert result.dataset_domains == (BY_COLUMN, "law")
    assert domain_order(VersaTuneConfig.model_validate(block), result) == ["law"]


def test_the_domains_of_test_datasets_are_noted_too():
    tests = [{"path": "c", "domain": "code"}, {"path": "l", "domain": "law"}]
    assert filled(test_datasets=tests, val_set_size=0).test_dataset_domains == ("code", "law")


def test_filling_in_twice_gives_the_same():
    yaml = make_yaml(FOSTERING)
    fill_in(yaml)
    once = copy.deepcopy(yaml)
    fill_in(yaml)
    assert yaml == once


def test_what_is_handed_over_reads_back_and_a_forged_one_is_refused():
    run = ReferenceRun(domain="law", loss_unit="byte", stop_when_rising=True)
    handover = Handover(dataset_domains=("law", "code"), test_dataset_domains=("law",), reference_run=run)
    assert Handover.of_config({KEY: str(handover)}) == handover
    for forged in ({"dataset_domains": ["law"]}, str(handover).replace("law", "lay"), "text", 3):
        (line,) = mistakes(**{KEY: forged})
        assert line.startswith(f"{KEY}: filled by the plugin, not by you")


@pytest.mark.parametrize("key", ["dataset_domains", "only_domain", "loss_unit", "sources"])
def test_what_the_plugin_hands_over_is_no_key_of_the_block(key):
    (line,) = mistakes(BLOCK | {key: "law"})
    assert line.startswith(f"versatune.{key}: unknown key")


def test_handing_over_again_keeps_the_reference_run():
    run = ReferenceRun(domain="law")
    assert filled(**{KEY: str(Handover(reference_run=run))}).reference_run == run


def test_without_probes_no_held_out_rows_are_needed():
    assert filled(BLOCK | {"probe": {"rows_per_domain": 0}}, val_set_size=0).dataset_domains == ("law", "code")


# --- mistakes in the block ----------------------------------------------------------------------------------


def test_an_unknown_key_comes_with_the_nearest_name():
    assert mistakes(BLOCK | {"sigmma": 1}) == ["versatune.sigmma: unknown key; did you mean 'sigma'? (given: 1)"]


def test_a_misspelt_strategy_comes_with_the_nearest_name():
    (line,) = mistakes(FOSTERING | {"strategy": "versatun"})
    assert "versatune.strategy: unknown strategy; did you mean 'versatune'?" in line


@pytest.mark.parametrize("block", [True, "uniform", 5, ["uniform"]])
def test_a_block_that_is_no_block_is_a_mistake(block):
    assert mistakes(block) == [f"versatune: must be a block of keys, got {block!r}"]


def test_an_empty_block_is_checked_like_any_other():
    lines = mistakes(None)
    assert any("needs a loss per domain: {law: 1.21, ...}" in line for line in lines)


def test_domains_noted_in_a_copied_yaml_do_not_hide_a_changed_domain_key():
    yaml = make_yaml()
    fill_in(yaml)
    yaml["datasets"][0]["domain"] = "medicine"
    fill_in(yaml)
    assert Handover.of_config(yaml).dataset_domains == ("medicine", "code")


def test_domains_noted_for_another_number_of_datasets_are_not_used():
    handover = Handover(dataset_domains=("law", "code", "law"))
    lines = mistakes(datasets=[{"path": "a"}, {"path": "b"}], **{KEY: str(handover)})
    assert [line.split(";")[0] for line in lines] == ["datasets[0] (a): no domain", "datasets[1] (b): no domain"]


def test_on_a_worker_that_gets_no_domain_keys_the_noted_domains_count():
    once = str(filled(FOSTERING))
    again = filled(FOSTERING, datasets=[{"path": "law.jsonl"}, {"path": "code.jsonl"}], **{KEY: once})
    assert again.dataset_domains == ("law", "code")


def test_proportions_that_do_not_sum_to_one_are_a_mistake():
    (line,) = mistakes({"strategy": "manual", "initial_proportions": {"law": 0.5, "code": 0.6}})
    assert line.startswith("versatune.initial_proportions: proportions must sum to 1 (within 0.0001), got 1.1")


def test_proportions_of_an_unknown_domain_are_a_mistake():
    lines = mistakes({"strategy": "manual", "initial_proportions": {"law": 0.5, "cod": 0.5}})
    assert "versatune.initial_proportions names an unknown domain 'cod'; did you mean 'code'?" in lines
    assert any("initial_proportions has no value for domain 'code'" in line for line in lines)


def test_a_domain_without_a_reference_loss_is_a_mistake():
    assert mistakes(FOSTERING | {"reference_losses": {"law": 1.0}}) == [
        "versatune.reference_losses has no value for domain 'code'; give one for each of: law, code"
    ]


def test_no_reference_losses_at_all_are_a_mistake():
    (line,) = mistakes({"initial_proportions": "uniform"})
    assert "strategy 'versatune' needs a loss per domain: {law: 1.21, ...}" in line


@pytest.mark.parametrize(("loss", "phrase"), [(-1.0, "at least 0 nats"), (float("nan"), "finite number")])
def test_a_reference_loss_that_is_negative_or_no_number_is_a_mistake(loss, phrase):
    (line,) = mistakes(FOSTERING | {"reference_losses": {"law": loss, "code": 1.0}})
    assert line.startswith("versatune.reference_losses.law: ")
    assert phrase in line


# --- mistakes around it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("pretraining_dataset", [{"path": "c4"}], "put the data under `datasets:`"),
        ("rl", "dpo", "mixes supervised fine-tuning only"),
        ("reward_model", True, "mixes supervised fine-tuning only"),
        ("process_reward_model", True, "mixes supervised fine-tuning only"),
        ("curriculum_sampling", True, "keeps the rows in their order"),
        ("group_by_length", True, "orders rows by length"),
        ("auto_find_batch_size", True, "changes the number of rows per step"),
    ],
)
def test_a_setting_that_would_break_the_mixture_is_a_mistake(key, value, reason):
    (line,) = mistakes(**{key: value})
    assert line.startswith(f"{key}: cannot be combined with versatune: ")
    assert reason in line
    assert line.endswith(f"(given: {value!r})")


@pytest.mark.parametrize("key", ["sample_packing", "streaming", "group_by_length", "curriculum_sampling"])
@pytest.mark.parametrize("value", [False, None])
def test_a_setting_that_is_switched_off_is_no_mistake(key, value):
    assert filled(**{key: value}).dataset_domains == ("law", "code")


@pytest.mark.parametrize("key", ["context_parallel_size", "tensor_parallel_size"])
@pytest.mark.parametrize(("size", "fits"), [(None, True), (1, True), (2, False)])
def test_processes_that_share_their_rows_are_refused(key, size, fits):
    if fits:
        assert filled(**{key: size}).dataset_domains == ("law", "code")
    else:
        reason = "above 1 several processes work on the same rows, and versatune needs rows of its own on each"
        assert mistakes(**{key: size}) == [f"{key}: {reason}"]


@pytest.mark.parametrize(("shared", "rows"), [(None, 24), (False, 24), (True, 8)])
def test_an_optimizer_step_has_rows_of_each_process_unless_they_share_a_batch(shared, rows):
    cfg = {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "world_size": 3, "batch_size": 8}
    assert rows_per_step(cfg | {"accelerator_config": {"split_batches": shared}}) == rows
    assert rows_per_step(cfg | {"accelerator_config": None}) == 24


@pytest.mark.parametrize("datasets", [None, []])
def test_no_datasets_are_a_mistake(datasets):
    assert "datasets: at least one dataset with a domain is needed" in mistakes(datasets=datasets)


def test_a_dataset_without_a_domain_is_a_mistake_that_says_which():
    lines = mistakes(datasets=[{"path": "law.jsonl", "domain": "law"}, {"path": "b"}, {"path": "c"}])
    assert [line.split(";")[0] for line in lines] == ["datasets[1] (b): no domain", "datasets[2] (c): no domain"]


@pytest.mark.parametrize(
    ("domain", "phrase"),
    [
        ("", "non-empty"),
        (" law", "without blanks around it"),
        ("la\nw", "one line"),
        ("la\tw", "tabs"),
        (3, "put it in quotes, '3'"),
        (False, "YAML reads `no`, `off` or `false`: put the name in quotes"),
        (None, "YAML reads `null`, `~` or nothing: put the name in quotes"),
    ],
)
def test_a_domain_name_that_is_empty_padded_no_text_or_no_single_line_is_a_mistake(domain, phrase):
    (line,) = mistakes(datasets=[{"path": "law.jsonl", "domain": "law"}, {"path": "b", "domain": domain}])
    assert line.startswith("datasets[1] (b): a domain name must be ")
    assert f"got {domain!r}" in line
    assert phrase in line


def test_a_path_listed_for_two_domains_is_a_mistake():
    block = BLOCK | {"domains": {"law": ["law.jsonl"], "code": ["law.jsonl", "code.jsonl"]}}
    lines = mistakes(block, datasets=[{"path": "law.jsonl"}, {"path": "code.jsonl"}])
    assert lines == ["versatune.domains: the path 'law.jsonl' is listed more than once"]


def test_a_listed_path_that_no_dataset_has_is_a_mistake_with_the_nearest_one():
    assert mistakes(BLOCK | {"domains": {"law": ["lew.jsonl"]}}) == [
        "versatune.domains.law: no dataset has the path 'lew.jsonl'; did you mean 'law.jsonl'?"
    ]


def test_two_domains_for_one_dataset_are_a_mistake_that_shows_both():
    assert mistakes(BLOCK | {"domains": {"code": ["law.jsonl"]}}) == [
        "datasets[0] (law.jsonl): domain is 'law' here and 'code' in versatune.domains"
    ]


def test_no_held_out_rows_are_a_mistake():
    assert mistakes(val_set_size=0) == [
        "no held-out rows to measure the domains on: set val_set_size above 0, or give test_datasets with a domain"
    ]


def test_a_domain_without_held_out_rows_is_a_mistake():
    assert mistakes(test_datasets=[{"path": "t", "domain": "law"}]) == [
        "test_datasets: no entry for domain 'code', so its loss cannot be measured"
    ]


def test_a_test_dataset_of_an_unknown_domain_is_a_mistake():
    tests = [{"path": domain, "domain": domain} for domain in ("law", "code", "cod")]
    assert mistakes(test_datasets=tests) == [
        "test_datasets: domain 'cod' has no training dataset; did you mean 'code'?"
    ]


def test_a_test_dataset_without_a_domain_is_a_mistake():
    (line,) = mistakes(test_datasets=[{"path": "t"}])
    assert line.startswith("test_datasets[0] (t): no domain")


# --- all of them together -----------------------------------------------------------------------------------


def test_mistakes_in_the_block_and_around_it_are_reported_together():
    lines = mistakes(
        {"strategy": "uniform", "sigmma": 1, "update_interval": -5, "domains": {"law": ["lew.jsonl"]}},
        datasets=[{"path": "law.jsonl", "domain": "law"}, {"path": "b"}, {"path": "c", "domain": ""}],
        group_by_length=True,
        rl="dpo",
        streaming=True,
    )
    for phrase in (
        "sigmma: unknown key",
        "update_interval: Input should be greater than 0",
        "group_by_length: cannot",
        "rl: cannot",
        "streaming: a stream has no length",
        "none are split off streams",
        "datasets[1] (b): no domain",
        "datasets[2] (c): a domain name must be",
        "no dataset has the path 'lew.jsonl'",
    ):
        assert any(phrase in line for line in lines), phrase
    assert len(lines) == 9


def test_a_yaml_with_mistakes_is_left_as_it_was():
    yaml = make_yaml(BLOCK | {"sigmma": 1})
    before = copy.deepcopy(yaml)
    with pytest.raises(ValueError, match="sigmma"):
        fill_in(yaml)
    assert yaml == before


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"val_set_size": 0}, "no held-out rows"),
        ({"test_datasets": [{"path": "t", "domain": "law"}]}, "no entry for domain 'code'"),
        (
            {"versatune": {"sigmma": 1, "strategy": "manual", "initial_proportions": {"law": 0.5, "cod": 0.5}}},
            "unknown domain 'cod'",
        ),
    ],
)
def test_a_misspelt_key_hides_no_other_mistake(changes, phrase):
    changes = {"versatune": BLOCK | {"sigmma": 1}} | changes
    lines = mistakes(**changes)
    assert any("sigmma" in line for line in lines)
    assert any(phrase in line for line in lines)


def test_a_missing_domain_does_not_hide_missing_held_out_rows():
    lines = mistakes(datasets=[{"path": "a", "domain": "law"}, {"path": "b"}], val_set_size=0)
    assert any("no held-out rows" in line for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"versatune": BLOCK | {"domains": ["law"]}},
        {"versatune": BLOCK | {"domains": {"law": [{"path": "law.jsonl"}]}}},
        {"datasets": ["law.jsonl"]},
        {"datasets": {"path": "law.jsonl", "domain": "law"}},
    ],
)
def test_a_list_where_a_block_belongs_is_a_mistake_like_any_other(changes):
    assert mistakes(**changes)


def test_a_path_that_is_not_in_a_list_is_one_mistake():
    assert len(mistakes(BLOCK | {"domains": {"law": "law.jsonl"}})) == 1


def test_a_domain_without_paths_is_a_mistake():
    assert mistakes(BLOCK | {"domains": {"medicine": []}})


# --- a forgotten block --------------------------------------------------------------------------------------


def test_domains_without_a_block_are_noticed():
    problems = forgotten_block_problems({"datasets": [{"path": "a", "domain": "law"}]})
    assert len(problems) == 1
    assert "there is no `versatune:` block, so nothing would be mixed" in problems[0]


def test_a_misspelt_block_is_noticed_with_its_name():
    (problem,) = forgotten_block_problems({"datasets": [], "verstune": {}})
    assert "there is no `versatune:` block; did you mean 'verstune'?" in problem


@pytest.mark.parametrize("yaml", [{}, {"datasets": [{"path": "a"}], "base_model": "m"}, {"datasets": None}])
def test_a_yaml_that_never_asked_for_a_mixture_is_left_alone(yaml):
    assert forgotten_block_problems(yaml) == []


# --- values of a wrong kind ---------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", [["law"], {"name": "law"}, [["law"]], {}])
def test_a_domain_that_is_a_list_or_a_block_is_a_mistake_like_any_other(domain):
    datasets = [{"path": "a", "domain": domain}, {"path": "b", "domain": "law"}]
    (line,) = mistakes(datasets=datasets)
    assert line == f"datasets[0] (a): a domain name must be a string, got {domain!r}"


@pytest.mark.parametrize("path", [["a", "b"], {"law": "a"}, None, 3])
def test_a_path_that_is_none_is_a_mistake(path):
    (line,) = mistakes(datasets=[{"path": path, "domain": "law"}, {"path": "b", "domain": "code"}])
    assert line == f"datasets[0]: path must be one file, folder or name on a hub, got {path!r}"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("given", [True, "dispatch", [1]])
def test_an_accelerator_config_that_is_no_block_is_a_mistake(streaming, given):
    tests = [{"path": domain, "domain": domain} for domain in ("law", "code")]
    changes = {"streaming": streaming, "max_steps": 5, "test_datasets": tests}
    lines = mistakes(BLOCK | {"update_interval": 2}, accelerator_config=given, **changes)
    assert lines == [f"accelerator_config: must be a block of keys, got {given!r}"]


@pytest.mark.parametrize("key", ["weight", "balance_labels"])
def test_what_draws_a_datasets_rows_more_often_is_refused(key):
    (line,) = mistakes(datasets=[{"path": "a", "domain": "law"}, {"path": "b", "domain": "code", key: 2}])
    assert line.startswith(f"datasets[1] (b): {key}: cannot be combined with versatune")
    assert line.endswith("(given: 2)")


@pytest.mark.parametrize("max_steps", [-1, 0])
def test_max_steps_of_transformers_that_mean_by_epochs_are_left_out(max_steps):
    yaml = make_yaml(max_steps=max_steps)
    fill_in(yaml)
    assert yaml["max_steps"] is None
    tests = [{"path": domain, "domain": domain} for domain in ("law", "code")]
    (line,) = mistakes(streaming=True, max_steps=max_steps, test_datasets=tests)
    assert "max_steps must be given" in line


def test_keys_of_the_block_beside_it_are_refused():
    lines = mistakes(sigma=1.0, update_interval=4)
    assert [line.split(":")[0] for line in lines] == ["sigma", "update_interval"]
    assert all("belongs into the `versatune:` block" in line for line in lines)


def test_no_key_of_the_block_is_one_of_axolotls():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert not set(VersaTuneConfig.model_fields) & set(AxolotlInputConfig.model_fields)
