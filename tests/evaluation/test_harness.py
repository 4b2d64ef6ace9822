import json
import math
import sys

import pytest

from tests.evaluation.tasks import cached_task_manager
from versatune_plugin.evaluation import harness
from versatune_plugin.evaluation.suite import Benchmark, read_suite


def results_of(tasks):
    """What the harness returns for tasks given as (metrics, rows, shots)."""
    return {
        "results": {name: metrics for name, (metrics, _, _) in tasks.items()},
        "n-samples": {name: {"original": 1000, "effective": rows} for name, (_, rows, _) in tasks.items()},
        "n-shot": {name: shots for name, (_, _, shots) in tasks.items()},
    }


def scored(tasks, **benchmark):
    return harness.score(
        results_of(tasks), list(tasks), Benchmark(**{"tasks": list(tasks), "metric": "acc"} | benchmark)
    )


TWO = {
    "a": ({"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.04}, 30, 0),
    "b": ({"alias": "b", "acc,none": 0.9, "acc_stderr,none": 0.03}, 10, 0),
}


def test_every_row_counts_the_same_unless_every_task_shall():
    by_rows = scored(TWO)
    assert by_rows["score"] == pytest.approx((0.5 * 30 + 0.9 * 10) / 40)
    assert by_rows["stderr"] == pytest.approx(math.hypot(0.04 * 0.75, 0.03 * 0.25))
    by_tasks = scored(TWO, weight="tasks")
    assert by_tasks["score"] == pytest.approx(0.7)
    assert by_tasks["stderr"] == pytest.approx(0.05 / 2)  # 3-4-5
    assert {key: by_rows[key] for key in ("metric", "num_fewshot", "num_samples")} == {
        "metric": "acc",
        "num_fewshot": 0,
        "num_samples": 40,
    }


def test_what_the_harness_cannot_say_is_null_and_stays_strict_json():
    without = {"a": TWO["a"], "b": ({"acc,none": 1.0, "acc_stderr,none": "N/A"}, 1, 5)}
    result = scored(without)
    assert (result["stderr"], result["num_fewshot"]) == (None, None)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert scored({"a": ({"acc,none": 0.5, "acc_stderr,none": math.nan}, 2, 0)})["stderr"] is None
    assert scored({"a": ({"acc,none": 1.0, "acc_stderr,none": 0.0}, 9, 0)})["stderr"] is None, "0 of rows all alike"


def test_percentages_enter_a_mean_only_with_their_scale():
    bleu = {"a": ({"bleu,none": 25.0, "bleu_stderr,none": 2.0}, 8, 0)}
    with pytest.raises(ValueError, match=r"its bleu is 25, not between 0 and 1; `scale`"):
        scored(bleu, metric="bleu")
    result = scored(bleu, metric="bleu", scale=100)
    assert (result["score"], result["stderr"]) == (0.25, 0.02)


def test_an_answers_filter_is_chosen_or_asked_for():
    gsm = {"a": ({"exact_match,strict": 0.2, "exact_match_stderr,strict": 0.1, "exact_match,loose": 0.4}, 4, 5)}
    with pytest.raises(ValueError, match=r"several results for 'exact_match'; .*exact_match,strict exact_match,loose"):
        scored(gsm, metric="exact_match")
    chosen = scored(gsm, metric="exact_match", filter="strict")
    assert (chosen["metric"], chosen["score"], chosen["stderr"]) == ("exact_match,strict", 0.2, 0.1)


def test_a_metric_that_is_not_among_the_results_is_named():
    with pytest.raises(ValueError, match=r"task 'a' has no result for 'f1'; .*acc,none"):
        scored(TWO, metric="f1")


def test_a_mean_has_no_standard_error_where_a_part_has_none():
    assert harness.weighted_mean([0.0, 1.0], [0.3, None], [1, 3]) == (0.75, None)
    assert harness.weighted_mean([0.0, 1.0], [0.3, 0.4], [1, 1]) == (0.5, pytest.approx(0.25))


def test_without_the_harness_one_sentence_says_how_to_get_it(monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"evaluation needs lm-evaluation-harness: pip install 'versatune_plugin\[evaluate\]'"
    ):
        harness.task_manager()


def test_the_harness_knows_every_task_that_is_shipped():
    pytest.importorskip("lm_eval")
    shipped = {
        f"{domain}.{name}": benchmark.tasks
        for domain, benchmarks in read_suite().domains.items()
        for name, benchmark in benchmarks.items()
    }
    assert sum(map(len, shipped.values())) == 20
    harness.check_names(cached_task_manager(None), shipped)


def test_an_unknown_task_comes_with_the_nearest_and_with_where_it_stands():
    pytest.importorskip("lm_eval")
    with pytest.raises(ValueError, match="has no task") as caught:
        harness.check_names(cached_task_manager(None), {"general.a": ["hellaswg", "arc_easy"], "law.b": ["qqqqqqq"]})
    first, second = str(caught.value).splitlines()
    assert first.startswith("general.a: lm-evaluation-harness")
    assert first.endswith("has no task 'hellaswg'; did you mean 'hellaswag'?")
    assert second.startswith("law.b: ")
    assert "nor one of a similar name" in second
