import copy
import itertools
import math
from pathlib import Path

import pytest

from tests.report.histories import evaluation
from versatune_plugin.evaluation.results import LeftOut
from versatune_plugin.files.record import Record
from versatune_plugin.report.comparison import compare
from versatune_plugin.report.drawing import new_figure
from versatune_plugin.report.parts import Cell, Chart, Table
from versatune_plugin.report.runs import Run

# Losses at steps 0, 5 and 10. Law falls by 10 % and 20 % of the start, code rises by 5 % and 10 %.
FALLING = {"law": (4.0, 3.6, 3.2), "code": (2.0, 2.1, 2.2)}


def make_run(name, losses=FALLING, strategy="uniform", errors=0.05, target=None, **changes):
    """A run of 10 steps of 16 rows; `changes`: keys of its first or of all records, `num_steps`, `settings`."""
    domains = list(losses or changes.get("domains", ("law", "code")))
    share = changes.get("share") or dict.fromkeys(domains, 1 / len(domains))
    num_records = changes.get("num_records", 3)
    settings = {"strategy": strategy, "expansion": target and {"domain": target}, "sigma": 0.5}
    records = []
    for place, step in enumerate((0, 5, 10)[:num_records]):
        at = {domain: values[place] for domain, values in losses.items()} if losses else None
        records.append(
            Record(
                **{
                    "step": step,
                    "num_drawn": 16 * step,
                    "drawn_by_domain": {domain: int(16 * step * share[domain]) for domain in domains},
                    "tokens_by_domain": dict.fromkeys(domains, 100 * step),
                    "unit": "examples",
                    "signal": changes.get("signal", "probe"),
                    "losses": None if changes.get("signal") == "train" and step == 0 else at,
                    "loss_errors": dict.fromkeys(domains, errors) if errors is not None else None,
                    "loss_unit": changes.get("loss_unit", "token"),
                    "reference_losses": changes.get("reference_losses"),
                    "proportions_before": share,
                    "proportions": share,
                    "seconds": 2.0,
                    "probe_seconds": 0.5,
                    "probe": None
                    if step
                    else {d: {"fingerprint": f"rows of {d}"} | changes.get("probe", {}).get(d, {}) for d in domains},
                    "run": {
                        "settings": settings | changes.get("settings", {}),
                        "num_steps": changes.get("num_steps", 10),
                        "fingerprints": changes.get("fingerprints", {}),
                    },
                }
            )
        )
    return Run(name=name, folder=Path(name), records=records, problem=changes.get("problem"))


def make_other(name="other", law=3.0, code=2.3, **changes):
    """A run that began as `make_run` does and ends with these losses."""
    return make_run(name, {"law": (4.0, 3.5, law), "code": (2.0, 2.2, code)}, "versatune", **changes)


def make_document(scores, **changes):
    """An evaluation with one benchmark per domain."""
    facts = {"stderr": 0.005, "num_fewshot": 0, "num_samples": 100, "left_out": False}
    return evaluation(scores, **facts | changes)


def evaluated(name, scores, **changes):
    return Run(name=name, folder=Path(name), evaluations={None: make_document(scores, **changes)})


def section(sections, title):
    return next(one for one in sections if one.title == title)


def rows_of(table):
    """By the first cell, the others as text."""
    return {row[0]: [cell.text if isinstance(cell, Cell) else cell for cell in row[1:]] for row in table.rows}


def losses_of(*runs, **options):
    return rows_of(section(compare(runs, **options), "Losses at the end").parts[0])


def warnings_of(*runs):
    return compare(runs)[0].warnings


def charts_of(sections):
    return [part for one in sections for part in one.parts if isinstance(part, Chart)]


def drawn(chart):
    figure = new_figure(4.8, 3.2)
    chart.draw(figure)
    figure.canvas.draw()
    assert figure.get_size_inches()[0] == 4.8
    return figure


# --- the baseline -------------------------------------------------------------------------------------------


def test_the_baseline_is_the_only_uniform_run():
    assert "uni (baseline)" in losses_of(make_other(), make_run("uni"))


def test_of_two_uniform_runs_the_first_run_is_the_baseline():
    assert "other (baseline)" in losses_of(make_other(), make_run("a"), make_run("b"))


def test_a_run_of_which_nothing_can_be_read_is_no_baseline_by_itself():
    broken = Run(name="broken", folder=Path("broken"), problem="line 1 is not JSON")
    assert "a (baseline)" in losses_of(broken, make_run("a"), make_run("b"))
    assert "broken: line 1 is not JSON" in warnings_of(broken, make_run("a"))


def test_another_baseline_can_be_chosen():
    # law 3.2 - 3.0, code 2.2 - 2.3
    assert losses_of(make_run("uni"), make_other(), baseline="other")["uni"] == [
        "3.200 (+0.200)*",
        "2.200 (-0.100)",
        "2.700 (+0.050)",
    ]


def test_an_unknown_baseline_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no run is called 'unifrom'; did you mean 'uniform'"):
        compare([make_run("uniform"), make_other()], baseline="unifrom")
    with pytest.raises(ValueError, match="valid names: uniform, other"):
        compare([make_run("uniform"), make_other()], baseline="xyz")


def test_one_run_is_no_comparison():
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        compare([make_run("uniform")])


# --- the matrix of losses -----------------------------------------------------------------------------------


def test_the_matrix_holds_losses_and_differences_and_the_base_model_first():
    table = losses_of(make_run("uni"), make_other())
    assert list(table) == ["before training", "uni (baseline)", "other"]
    assert table["before training"] == ["4.000", "2.000", "3.000"]
    assert table["uni (baseline)"] == ["3.200", "2.200", "2.700"]
    # two combined errors: 2 * sqrt(2) * 0.05 = 0.141; of the mean sqrt(2) * 0.05 / 2 = 0.0354 each, 0.1 for both, twice
    assert table["other"] == ["3.000 (-0.200)*", "2.300 (+0.100)", "2.650 (-0.050)"]


def test_only_differences_beyond_the_combined_standard_error_are_coloured():
    runs = make_run("uni"), make_other(law=3.05, code=2.4)  # -0.15 and +0.2 against 0.141
    cells = section(compare(runs), "Losses at the end").parts[0].rows[-1]
    assert [cell.tone for cell in cells if isinstance(cell, Cell)] == ["better", "worse"]
    assert cells[3] == "2.725 (+0.025)"


def test_without_standard_errors_nothing_is_coloured_and_the_section_says_why():
    runs = make_run("uni", errors=None), make_other(law=1.0)
    shown = section(compare(runs), "Losses at the end")
    assert not any(isinstance(cell, Cell) for row in shown.parts[0].rows for cell in row)
    assert "not recorded" in shown.text
    assert shown.points[0].endswith("standard errors are not recorded.")


def test_the_finding_is_said_in_numbers():
    points = section(compare([make_run("uni"), make_other()]), "Losses at the end").points
    assert points == [
        "other ended 0.050 nats below uni on the mean of 2 domains: 1 lower, 1 higher; "
        "1 difference exceeds twice the combined standard error."
    ]


def test_a_baseline_on_training_batches_is_marked_as_both():
    assert "a (training batches) (baseline)" in losses_of(make_run("a", signal="train"), make_run("b"))


def test_equal_runs_are_level():
    points = section(compare([make_run("a"), make_run("b")]), "Losses at the end").points
    assert points[0].startswith("b ended level with a on the mean of 2 domains: 0 lower, 0 higher, 2 the same; no diff")


def test_of_many_runs_the_text_names_the_lowest_and_the_highest():
    runs = [make_run("uni"), *(make_other(f"run {n}", law=2.8 + n / 10) for n in range(5))]
    points = section(compare(runs), "Losses at the end").points
    # mean against 2.7: law 2.8 .. 3.2 and code 2.3 give 2.55, 2.60, 2.65, 2.70, 2.75
    assert points[0] == "On the mean of the domains, 3 of 5 runs are below uni and 1 above."
    assert points[1].startswith("Lowest: run 0 ended 0.150 nats below uni")
    assert points[2].startswith("Highest: run 4 ended 0.050 nats above uni")


def test_base_losses_are_left_out_where_the_runs_do_not_share_them():
    other = make_run("other", {"law": (4.4, 3.6, 3.0), "code": (2.0, 2.1, 2.2)})
    assert "before training" not in losses_of(make_run("uni"), other)
    warning = next(w for w in warnings_of(make_run("uni"), other) if "base model" in w)
    assert "law 4.400 and 4.000" in warning
    assert "code" not in warning


def test_a_loss_that_was_not_finite_at_the_end_is_a_dash_with_the_mean():
    run = make_run("uni")
    run.records[-1].losses = {"law": 3.2, "code": None}
    assert losses_of(make_other(), run, baseline="other")["uni"] == ["3.200 (+0.200)*", "-", "-"]


# --- what cannot be compared --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (make_other(probe={"law": {"fingerprint": "x"}}), "was measured on other held-out rows than uni (law)"),
        (make_other(probe={"law": {"fingerprint": None}}), "was measured on other held-out rows than uni (law)"),
        (make_other(loss_unit="byte"), "losses are in nats per byte, those of uni in nats per token (law, code)"),
        (make_other(signal="train"), "losses of other are of training batches, which a mixture chooses"),
    ],
)
def test_losses_that_cannot_be_compared_have_no_difference_and_a_warning(other, reason):
    shown = rows_of(section(compare([make_run("uni"), other]), "Losses at the end").parts[0])
    law, _, mean = next(cells for name, cells in shown.items() if name.startswith("other"))
    assert (law, mean) == ("3.000", "2.650")
    assert any(f"other: {reason}" in warning for warning in warnings_of(make_run("uni"), other))


def test_domains_that_can_be_compared_still_are():
    other = make_other(probe={"law": {"fingerprint": "x"}})
    assert losses_of(make_run("uni"), other)["other"][1] == "2.300 (+0.100)"
    points = section(compare([make_run("uni"), other]), "Losses at the end").points
    assert points[0].startswith("other against uni in the 1 domain where the two can be compared: 0 lower, 1 higher")


def test_rows_that_are_not_recorded_are_not_taken_for_the_same():
    other = make_other()
    for record in other.records:
        record.probe = None
    assert losses_of(make_run("uni"), other)["other"] == ["3.000", "2.300", "2.650"]
    assert any("not recorded which held-out rows other was measured on" in w for w in warnings_of(make_run("u"), other))


def test_losses_per_byte_of_the_same_texts_compare_whatever_the_tokenizer():
    texts = {d: {"row_texts": f"texts of {d}"} for d in ("law", "code")}
    tokens = {d: texts[d] | {"fingerprint": "other tokens"} for d in texts}
    runs = make_run("uni", loss_unit="byte", probe=texts), make_other(loss_unit="byte", probe=tokens)
    assert losses_of(*runs)["other"][0] == "3.000 (-0.200)*"


def test_other_domains_are_dashes_and_named():
    other = make_run("other", {"law": (4.0, 3.5, 3.0), "medicine": (5.0, 4.0, 3.0)})
    shown = losses_of(make_run("uni"), other)
    assert shown["uni (baseline)"] == ["3.200", "2.200", "-", "-"]
    assert shown["other"] == ["3.000 (-0.200)*", "-", "3.000", "-"]
    found = warnings_of(make_run("uni"), other)
    assert any("lacks a domain of uni (code)" in warning for warning in found)
    assert any("has a domain that uni lacks (medicine)" in warning for warning in found)


def test_another_number_of_steps_is_said():
    other = make_other(num_records=2, num_steps=5)
    assert "other was trained for 5 steps with 80 rows, uni for 10 steps with 160 rows" in warnings_of(
        make_run("uni"), other
    )


def test_a_history_that_breaks_off_is_said_with_its_problem():
    other = make_other(num_records=2, problem="line 3 is not JSON")
    found = warnings_of(make_run("uni"), other)
    assert "other: line 3 is not JSON" in found
    assert any("the last losses are of step 5 of 10" in warning for warning in found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference_losses": {"law": 1.0, "code": 1.0}}, "other reference losses than uni"),
        ({"fingerprints": {"training_rows": {"law": "y"}}}, "trained on other rows of law"),
    ],
)
def test_other_references_and_rows_are_said(changes, words):
    base = make_run("uni", reference_losses={"law": 2.0, "code": 1.0}, fingerprints={"training_rows": {"law": "x"}})
    assert any(words in warning for warning in warnings_of(base, make_other(**changes)))
    assert not any(words in warning for warning in warnings_of(base, copy.deepcopy(base)))


def test_runs_that_can_be_compared_have_no_warning():
    assert warnings_of(make_run("uni"), make_other()) == []


def test_the_rows_that_count_are_those_of_the_last_measurement():
    resumed = make_other()
    resumed.records[1].probe = {d: {"fingerprint": f"other rows of {d}"} for d in ("law", "code")}
    assert any("was measured on other held-out rows than uni" in w for w in warnings_of(make_run("uni"), resumed))
    shown = section(compare([make_run("uni"), resumed]), "Gain by domain")
    assert shown.points[-1].endswith("set beside those of uni: other."), "losses at the start are of the first rows"


# --- what differs -------------------------------------------------------------------------------------------


def test_the_runs_are_listed_with_what_they_cost():
    differs = compare([make_run("uni"), make_other(share={"law": 0.75, "code": 0.25})])[-1]
    rows = rows_of(differs.parts[0])
    # 3 records of 2 s, each with a measurement of 0.5 s
    assert rows["uni"] == ["uniform", "uniform", "10", "160", "2,000", "25.0 %"]
    assert rows["other"][:2] == ["versatune", "law 0.75, code 0.25"]


def test_a_record_without_a_measurement_costs_no_probe_time():
    run = make_run("uni")
    run.records[1].losses = None  # its `probe_seconds` are those of the record before
    assert rows_of(compare([run, make_other()])[-1].parts[0])["uni"][-1] == "16.7 %"  # 2 * 0.5 s of 6 s


def test_only_settings_that_differ_are_shown():
    differs = compare([make_run("uni"), make_other(target="law", settings={"guards": {"floor": 0.1}})])[-1]
    assert rows_of(differs.parts[1]) == {"expansion.domain": ["-", "law"], "guards.floor": ["-", "0.1"]}
    assert "2 other settings differ between them." in differs.points


# --- gains --------------------------------------------------------------------------------------------------


def three(name, ends, **changes):
    starts = (4.0, 2.0, 5.0)
    losses = {d: (a, a, b) for d, a, b in zip(("law", "code", "art"), starts, ends, strict=True)}
    return make_run(name, losses, **changes)


def test_gains_are_per_cent_of_the_loss_at_the_start():
    shown = section(compare([three("a", (3.0, 2.2, 5.0)), three("b", (4.0, 1.0, 4.0))]), "Gain by domain")
    # (4 - 3) / 4, (2 - 2.2) / 2, 0; mean 5; and 0, 50, 20; mean 23.3
    assert rows_of(shown.parts[1]) == {
        "a": ["+25.0", "-10.0", "+0.0", "+5.0"],
        "b": ["+0.0", "+50.0", "+20.0", "+23.3"],
    }
    assert shown.points[1] == (
        "a: the loss fell by 5.0 % on the mean of 3 domains, from code -10.0 % to law +25.0 %; "
        "1 worse than at the start."
    )


def test_a_radar_has_an_axis_per_domain_a_polygon_per_run_and_a_circle_at_0():
    pytest.importorskip("matplotlib")
    (chart, *_) = charts_of(compare([three("a", (3.0, 2.2, 5.0)), three("b", (4.0, 1.0, 4.0))]))
    assert chart.name == "comparison-gains-radar"
    assert "code -10.0 %" in chart.alt
    (axes,) = drawn(chart).axes
    assert axes.name == "polar"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["law", "code", "art"]
    one, two, circle = axes.lines
    assert list(one.get_ydata()) == pytest.approx([25, -10, 0, 25])
    assert list(two.get_ydata()) == pytest.approx([0, 50, 20, 0])
    assert set(circle.get_ydata()) == {0}
    assert [mark.colour for mark in chart.legend.values()] == [one.get_color(), two.get_color()]
    assert axes.get_ylim()[0] < -10  # what is worse than at the start is inside the circle, not at its centre


def test_fewer_than_three_domains_are_bars_and_not_called_a_radar():
    pytest.importorskip("matplotlib")
    (chart, *_) = charts_of(compare([make_run("uni"), make_other()]))
    assert chart.name == "comparison-gains-bars"
    assert "radar" not in (chart.title + chart.alt).lower()
    (axes,) = drawn(chart).axes
    # law 20 % and 25 %, code -10 % and -15 %
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, -10, 25, -15])


def test_runs_on_other_rows_are_not_drawn_beside_the_others():
    other = make_other(probe={"law": {"fingerprint": "x"}})
    sections = compare([make_run("uni"), other, make_run("third")])
    for title in ("Gain by domain", "Gain and degradation by checkpoint"):
        shown = section(sections, title)
        assert shown.points[-1].endswith("set beside those of uni: other.")
    assert "other" not in charts_of(sections)[0].legend


def test_more_runs_than_a_chart_can_show_make_several_with_the_baseline_in_each():
    runs = [make_run("uni"), *(make_other(f"run {n}") for n in range(12))]
    charts = [chart for chart in charts_of(compare(runs)) if chart.name.startswith("comparison-gains")]
    assert [chart.name for chart in charts] == [f"comparison-gains-bars-{n}" for n in (1, 2, 3)]
    assert all("uni" in chart.legend and len(chart.legend) <= 6 for chart in charts)
    assert {name for chart in charts for name in chart.legend} == {run.name for run in runs}


def test_of_many_runs_that_are_equal_none_is_called_the_best():
    runs = [make_run(f"run {number}") for number in range(5)]
    for title in ("Gain by domain", "Gain and degradation by checkpoint"):
        (point,) = section(compare(runs), title).points
        assert "are the same in all 5 runs" in point
    assert section(compare(runs), "Losses at the end").points == [
        "On the mean of the domains, all 4 runs are level with run 0."
    ]


# --- checkpoints --------------------------------------------------------------------------------------------


def checkpoint_section(*runs):
    return section(compare(runs), "Gain and degradation by checkpoint")


def test_gains_stack_upwards_and_degradation_downwards_with_the_targets_line():
    pytest.importorskip("matplotlib")
    shown = checkpoint_section(make_run("uni"), make_other(target="law"))
    chart = shown.parts[0]
    left, right = drawn(chart).axes
    assert [bar.get_height() for bar in left.patches] == pytest.approx([10, 20, -5, -10])  # law, then code
    line = right.lines[-1]
    assert list(line.get_ydata()) == pytest.approx([12.5, 25])  # law from 4 to 3.5 and 3
    assert list(left.lines[-1].get_ydata()) == pytest.approx([10, 20])  # also where law is not the target
    assert list(chart.legend) == ["law", "code", "target: law"]
    assert shown.points[0] == (
        "uni: over the domains gains sum to 20.0 percentage points, degradation to 10.0, at step 10; "
        "the target +20.0 %."
    )


def test_the_parts_of_a_stack_do_not_cover_each_other():
    pytest.importorskip("matplotlib")
    shown = checkpoint_section(three("a", (3.0, 1.0, 4.0)), three("b", (5.0, 3.0, 6.0)))
    up, down = drawn(shown.parts[0]).axes
    # the middle checkpoint is as the start; at the end 25 + 50 + 20 and -25 - 50 - 20
    assert [bar.get_y() for bar in up.patches][1::2] == pytest.approx([0, 25, 75])
    assert [bar.get_y() for bar in down.patches][1::2] == pytest.approx([0, -25, -75])


def test_without_a_target_there_is_no_line_and_the_text_says_so():
    pytest.importorskip("matplotlib")
    shown = checkpoint_section(make_run("uni"), make_other())
    assert "there is no line" in shown.text
    assert list(shown.parts[0].legend) == ["law", "code"]
    assert all(len(axes.lines) == 1 for axes in drawn(shown.parts[0]).axes)  # that of 0


def test_several_targets_are_their_mean():
    shown = checkpoint_section(make_run("uni"), make_other(target=["law", "code"]))
    assert "the mean of the targets law, code" in shown.text
    assert rows_of(shown.parts[1])["other"] == ["10", "25.0", "15.0", "+5.0"]  # (25 - 15) / 2; the last row counts


def test_other_targets_are_told_apart():
    shown = checkpoint_section(make_run("uni"), make_other("a", target="law"), make_other("b", target="code"))
    assert "each run's own target (uni: none; a: law; b: code)" in shown.text


def test_checkpoints_are_the_measurements_nearest_to_the_quarters():
    values = [4.0 - step / 100 for step in range(101)]
    run = make_run("a")
    steps = (0, 20, 30, 52, 75, 98)
    records = [run.records[0].model_copy(update={"step": s, "losses": {"law": values[s], "code": 2.0}}) for s in steps]
    records[0].run.num_steps = 100
    runs = [Run(name=name, folder=Path(name), records=records) for name in "ab"]
    steps = [row[1] for row in checkpoint_section(*runs).parts[1].rows if row[0] == "a"]
    assert steps == ["20", "52", "75", "98"]  # of 20 and 30, which are equally far from 25, the first


# --- proportions --------------------------------------------------------------------------------------------


def test_proportions_and_realised_shares_stand_side_by_side():
    pytest.importorskip("matplotlib")
    other = make_other(share={"law": 0.75, "code": 0.25})
    other.records[-1].drawn_by_domain = {"law": 100, "code": 60}
    shown = section(compare([make_run("uni"), other]), "Proportions")
    final, realised, table = shown.parts
    assert rows_of(table) == {"uni": ["0.500 (0.500)", "0.500 (0.500)"], "other": ["0.750 (0.625)", "0.250 (0.375)"]}
    assert shown.points == ["The runs ended furthest apart in law: 0.500 (uni) to 0.750 (other)."]
    assert [bar.get_width() for bar in drawn(realised).axes[0].patches] == pytest.approx([0.5, 0.625, 0.5, 0.375])
    assert [bar.get_x() for bar in drawn(final).axes[0].patches] == pytest.approx([0, 0, 0.5, 0.75])


def test_of_more_domains_than_marks_charts_show_those_in_which_the_runs_differ_most():
    pytest.importorskip("matplotlib")
    names = [f"domain {number:02d}" for number in range(50)]
    losses = {name: (4.0, 3.0, 2.0) for name in names}
    share = dict.fromkeys(names, 1 / 50) | {"domain 40": 0.03, "domain 41": 0.01}
    other = make_run("other", losses | {"domain 45": (4.0, 3.0, 1.0)}, share=share)
    sections = compare([make_run("uni", losses), other])
    final, _, table = section(sections, "Proportions").parts
    assert len(final.legend) == 24
    assert {"domain 40", "domain 41", "27 others"} < set(final.legend)
    widths = [bar.get_width() for bar in drawn(final).axes[0].patches]
    assert [sum(widths[::2]), sum(widths[1::2])] == pytest.approx([1, 1])
    assert len(table.header) == 51
    radar, gains = section(sections, "Gain by domain").parts[:2]
    labels = [text.get_text() for text in drawn(radar).axes[0].get_xticklabels()]
    assert "domain 45" in labels
    assert len(labels) == 24
    assert len(gains.header) == 52
    for chart in (final, radar):
        assert "Of 50 domains those are shown in which the runs differ most." in chart.caption


def test_proportions_that_never_acted_are_not_those_at_the_end():
    other = make_other()
    for record in other.records:
        record.acts_at_draw = None
    last = other.records[-1]  # of draw 160
    last.proportions, last.acts_at_draw = {"law": 0.9, "code": 0.1}, 176
    assert section(compare([make_run("uni"), other]), "Proportions").points == [
        "The runs ended with the same proportions."
    ]


# --- scores -------------------------------------------------------------------------------------------------


def score_section(*runs):
    return section(compare(runs), "Scores of benchmarks")


def test_scores_have_a_matrix_and_one_of_the_single_benchmarks():
    shown = score_section(evaluated("base", {"law": 0.4, "code": 0.3}), evaluated("tuned", {"law": 0.5, "code": 0.29}))
    matrix, benchmarks = shown.parts
    assert matrix.header == ["run", "law", "code", "Avg"]
    # two combined errors: 0.0141; of the mean sqrt(2) * 0.005 / 2 each, 0.01 for both, twice
    assert rows_of(matrix)["tuned"] == ["0.500 (+0.100)*", "0.290 (-0.010)", "0.395 (+0.045)*"]
    assert [cell.tone for cell in matrix.rows[1] if isinstance(cell, Cell)] == ["better", "better"]
    assert rows_of(benchmarks)["law: Law QA (acc, 0-shot)"] == ["0.400", "0.500 (+0.100)*"]
    assert shown.points[0].startswith("tuned is 0.045 above base on the mean of 2 domains: 1 lower, 1 higher")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_fewshot": 5}, "with another number of shots than base (law)"),
        ({"num_samples": 7}, "on another number of questions than base (law)"),
        ({"limit": 7}, "on another number of questions than base (law)"),
        ({"metric": "f1"}, "by another metric than base (law)"),
    ],
)
def test_scores_that_cannot_be_compared_have_no_difference_and_a_warning(changes, reason):
    shown = score_section(evaluated("base", {"law": 0.4}), evaluated("tuned", {"law": 0.5}, **changes))
    for table in shown.parts:
        assert rows_of(table).popitem()[1][-1] == "0.500"
    assert any(reason in warning for warning in shown.warnings)


def test_other_benchmarks_and_domains_have_no_difference():
    other = evaluated("tuned", {"law": 0.5, "art": 0.1})
    tasks = other.evaluations[None].domains["law"].tasks
    tasks["another"] = tasks.pop("law_task")
    shown = score_section(evaluated("base", {"law": 0.4}), other)
    assert rows_of(shown.parts[0])["tuned"] == ["0.500", "0.100", "0.300"]
    assert any("on other benchmarks than base (law)" in warning for warning in shown.warnings)
    assert any("has a score where base has none (art)" in warning for warning in shown.warnings)


def test_a_run_that_was_not_evaluated_is_named_and_its_losses_are_shown():
    base = evaluated("base", {"law": 0.4, "code": 0.2})
    trained = make_run("uni")
    sections = compare([base, trained, make_other()], baseline="uni")
    assert section(sections, "Scores of benchmarks").warnings == [
        "not evaluated: uni, other",
        "the baseline uni was not evaluated: no differences of scores are shown",
    ]
    assert rows_of(section(sections, "Losses at the end").parts[0])["other"][0] == "3.000 (-0.200)*"
    assert "without a readable history: base" in sections[0].warnings


def test_scores_with_and_without_a_chat_template_are_not_compared():
    templated = evaluated("templated", {"law": 0.5})
    templated.evaluations[None].chat_template = True
    shown = score_section(evaluated("base", {"law": 0.4}), templated)
    assert rows_of(shown.parts[0])["templated"] == ["0.500"]
    assert any("with a chat template, unlike base" in warning for warning in shown.warnings)


def test_an_unfinished_model_and_what_was_left_out_are_said():
    run = Run(name="a", folder=Path("a"), evaluations={5: make_document({"law": 0.1}), 8: make_document({"law": 0.3})})
    run.evaluations[8].left_out = [LeftOut(domain="law", task="lawbench", reason="not in the harness")]
    shown = score_section(evaluated("base", {"law": 0.4}), run)
    assert rows_of(shown.parts[0])["a"] == ["0.300 (-0.100)*"]
    assert shown.warnings == [
        "a was evaluated at step 8, not at its end",
        "law: lawbench is left out: not in the harness (a)",
    ]


# --- everything at the edges --------------------------------------------------------------------------------


EDGES = {
    "one domain": [make_run(n, {"law": (4.0, 3.0, 2.0)}) for n in "ab"],
    "one record": [make_run(n, num_records=1) for n in "ab"],
    "without losses": [make_run(n, None) for n in "ab"],
    "some without losses": [make_run("a", None), make_other()],
    "unreadable": [Run(name=n, folder=Path(n), problem="line 1 is not JSON") for n in "ab"],
    "training batches": [make_run(n, signal="train") for n in "ab"],
    "odd names": [
        make_run(n, {d: (4.0, 3.0, 2.0) for d in ("$5_to_$10", "_private", "50% {x}")}, target="_private")
        for n in ("_run", "$x$")
    ],
    "a start of 0": [make_run(n, {"law": (0.0, 0.0, 0.0), "code": (1.0, 1.0, 1.0)}) for n in "ab"],
    "20 domains and runs": [
        make_run(f"run {n}", {f"domain number {d}": (4.0, 3.0 + d / 50, 2.0 + n / 50) for d in range(20)})
        for n in range(20)
    ],
}


@pytest.mark.parametrize("runs", EDGES.values(), ids=EDGES.keys())
def test_every_comparison_says_something_and_its_tables_are_whole(runs):
    before = copy.deepcopy(runs)
    sections = compare(runs)
    assert runs == before
    for shown in sections:
        assert shown.points
        assert all(isinstance(text, str) and text for text in (*shown.points, *shown.warnings))
        for table in (part for part in shown.parts if isinstance(part, Table)):
            assert {len(row) for row in table.rows} <= {len(table.header)}
    names = [chart.name for chart in charts_of(sections)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("runs", EDGES.values(), ids=EDGES.keys())
def test_every_kind_of_chart_can_be_drawn(runs):
    pytest.importorskip("matplotlib")
    kinds = itertools.groupby(charts_of(compare(runs)), key=lambda chart: chart.name.rstrip("-0123456789"))
    for _, charts in kinds:
        texts = drawn(next(charts)).findobj(lambda artist: hasattr(artist, "get_fontsize") and artist.get_text())
        assert min(text.get_fontsize() for text in texts) >= 9


def test_runs_that_show_nothing_say_so():
    sections = compare(EDGES["one record"])
    assert "what it gained is not known" in section(sections, "Gain by domain").points[0]
    sections = compare(EDGES["without losses"])
    assert section(sections, "Losses at the end").points == ["No run measured losses."]


def test_names_are_drawn_as_they_are():
    pytest.importorskip("matplotlib")
    radar = charts_of(compare(EDGES["odd names"]))[0]
    texts = [text.get_text() for text in drawn(radar).axes[0].get_xticklabels()]
    assert [text.strip().replace(r"\$", "$") for text in texts] == ["$5_to_$10", "_private", "50% {x}"]
    assert list(radar.legend) == ["_run", "$x$"]
    assert not math.isnan(sum(line.get_ydata()[0] for line in drawn(radar).axes[0].lines))
