import copy
import sys

import pytest

from tests.report.histories import expansion, write
from versatune_plugin.files.record import Record
from versatune_plugin.report import (
    draw_mixture,
    drawing,
    format_summary,
    format_update,
    make_report,
    numbered,
    plot_history,
    summarise,
)
from versatune_plugin.report.drawing import new_figure
from versatune_plugin.report.series import folded

ROWS = {"law": 100, "code": 50}


def make_record(step, drawn, proportions, before=None, acts_at_draw=None, losses=(2.0, 3.0), proposed=None, **more):
    """A history record with 10 draws per step and two domains; `drawn` and the vectors in domain order.

    Rows of law have 4 tokens, 2 of them targets; rows of code 16 and 3. `more`: `skipped`, `note` and `unit`.
    """

    def by_domain(vector):
        return None if vector is None else dict(zip(ROWS, vector, strict=True))

    return Record(
        **{
            "step": step,
            "num_drawn": 10 * step,
            "num_rows_by_domain": ROWS,
            "drawn_by_domain": by_domain(drawn),
            "tokens_by_domain": by_domain((4 * drawn[0], 16 * drawn[1])),
            "target_tokens_by_domain": by_domain((2 * drawn[0], 3 * drawn[1])),
            "unit": more.get("unit", "examples"),
            "losses": by_domain(losses),
            "reference_losses": by_domain((1.0, 1.5)),
            "proportions_before": by_domain(before or proportions),
            "proportions": by_domain(proportions),
            "acts_at_draw": acts_at_draw,
            "skipped": more.get("skipped"),
            "note": more.get("note"),
            "proposed": by_domain(proposed),
        }
    )


@pytest.fixture
def records():
    """Half and half at first; from draw 120 on nine to one; 40 steps of 10 draws."""
    return [
        make_record(0, (0, 0), (0.5, 0.5)),
        make_record(10, (50, 50), (0.9, 0.1), before=(0.5, 0.5), acts_at_draw=120, losses=(1.5, 2.9)),
        make_record(40, (312, 88), (0.9, 0.1), losses=(1.25, 2.8)),
    ]


def of_many(number, steps=(0, 10)):
    """Records of many domains, evenly mixed but for the last ones: these rise and fall by 0.001 times their place."""
    names = [f"domain-{position:02d}" for position in range(number)]
    before = dict.fromkeys(names, 1 / number)
    after = before | {
        name: 1 / number + sign * 0.001 * (position // 2 + 1)
        for position, (name, sign) in enumerate(zip(names[-10:], [1, -1] * 5, strict=True))
    }
    both = {"drawn_by_domain": dict.fromkeys(names, 7), "losses": dict.fromkeys(names, 2.0), "loss_errors": None}
    return [
        Record(step=step, num_drawn=12 * step, proportions_before=before, proportions=after if step else before, **both)
        for step in steps
    ]


# --- one line per update ------------------------------------------------------------------------------------


def test_an_update_is_one_line_with_what_changed_and_what_was_measured(records):
    line = format_update(records[1], num_steps=400)
    assert line == "step  10/400 | law 0.500 -> 0.900 loss 1.500 | code 0.500 -> 0.100 loss 2.900"


def test_of_many_domains_a_line_shows_those_that_changed_most_and_counts_the_rest():
    line = format_update(of_many(50)[1], num_steps=100)
    assert len(line) < 600
    assert [f"domain-{position}" in line for position in range(38, 50)] == [False, False] + [True] * 10
    assert line.endswith(" | +38 more in history.jsonl")
    assert "more" not in format_update(of_many(12)[1], num_steps=100)


def test_where_no_proportion_changed_a_line_shows_the_largest():
    record = of_many(50)[1]
    record.proportions_before = record.proportions
    line = format_update(record, num_steps=100)
    assert "domain-48 0.025 loss" in line  # the highest: 1/50 + 0.005
    assert "domain-49" not in line  # the lowest


def test_a_proportion_that_stayed_is_shown_once(records):
    assert format_update(records[0], num_steps=40) == "step  0/40 | law 0.500 loss 2.000 | code 0.500 loss 3.000"


def test_a_skipped_update_says_so():
    record = make_record(10, (50, 50), (0.5, 0.5), losses=(1.5, None), skipped="domain 'code' has loss nan")
    assert format_update(record, num_steps=10) == "step 10/10 | law 0.500 loss 1.500 | code 0.500 | update skipped"


def test_what_a_strategy_says_of_its_decision_ends_the_line():
    note = "law raised: others forgot 0.004 < 0.5 x 0.21"
    record = make_record(10, (50, 50), (0.6, 0.4), before=(0.5, 0.5), note=note)
    assert format_update(record, num_steps=10).endswith("| code 0.500 -> 0.400 loss 3.000 | " + note)


def test_a_proposal_that_the_guards_held_says_so():
    record = make_record(10, (50, 50), (0.6, 0.4), before=(0.5, 0.5), proposed=(0.9, 0.1))
    assert format_update(record, num_steps=10).endswith("| code 0.500 -> 0.400 loss 3.000 | held by guards")


def test_a_run_without_probes_shows_proportions_alone():
    record = make_record(10, (50, 50), (0.5, 0.5), losses=None)
    assert format_update(record, num_steps=10) == "step 10/10 | law 0.500 | code 0.500"


# --- summary ------------------------------------------------------------------------------------------------


def test_the_summary_counts_rows_draws_passes_and_shares(records):
    law, code = summarise(records)
    assert law == {
        "domain": "law",
        "rows": 100,
        "drawn": 312,
        "passes": 3.12,
        # 120 draws at 0.5 and 280 at 0.9: (60 + 252) / 400
        "requested": pytest.approx(0.78),
        "realised": pytest.approx(312 / 400),
        "examples": pytest.approx(312 / 400),
        "tokens": pytest.approx(4 * 312 / (4 * 312 + 16 * 88)),
        "reference": 1.0,
        "first": 2.0,
        "last": 1.25,
        "error": None,
        "change": -0.375,
        "change_error": None,
    }
    assert (code["passes"], code["first"], code["last"]) == (88 / 50, 3.0, 2.8)
    assert code["requested"] == pytest.approx(0.22)


@pytest.mark.parametrize(("unit", "law", "code"), [("tokens", 4, 16), ("target_tokens", 2, 3)])
def test_shares_are_of_what_the_proportions_are_shares_of(unit, law, code):
    records = [
        make_record(0, (0, 0), (0.5, 0.5), unit=unit),
        make_record(10, (80, 20), (0.9, 0.1), before=(0.5, 0.5), acts_at_draw=100, unit=unit),
        make_record(20, (160, 40), (0.9, 0.1), unit=unit),
    ]
    row, _ = summarise(records)
    assert row["realised"] == pytest.approx(law * 160 / (law * 160 + code * 40))
    # both halves of the run drew as many tokens: (0.5 + 0.9) / 2
    assert row["requested"] == pytest.approx(0.7)


def test_requested_shares_sum_to_one(records):
    assert sum(row["requested"] for row in summarise(records)) == pytest.approx(1.0)


def test_a_change_that_has_not_acted_yet_is_not_counted_as_requested(records):
    records = records[:2]
    assert [row["requested"] for row in summarise(records)] == pytest.approx([0.5, 0.5])


def test_the_last_loss_is_the_last_good_one(records):
    records.append(make_record(41, (320, 90), (0.9, 0.1), losses=(None, 2.7)))
    assert [row["last"] for row in summarise(records)] == [1.25, 2.7]


def test_before_the_first_draw_there_is_no_share(records):
    law, _ = summarise(records[:1])
    assert law["requested"] is law["realised"] is None
    assert law["passes"] == 0


def test_a_run_without_probes_has_no_losses():
    rows = summarise([make_record(10, (50, 50), (0.5, 0.5), losses=None)])
    assert [(row["first"], row["last"]) for row in rows] == [(None, None), (None, None)]


def test_summarising_changes_no_record(records):
    before = copy.deepcopy(records)
    format_summary(records)
    assert records == before


def test_the_table_is_aligned_and_holds_every_number(records):
    lines = format_summary(records).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "domain rows drawn passes requested realised of tokens first loss last loss change",
        "law 100 312 3.12 0.780 0.780 0.470 2.000 1.250 -37.5 %",
        "code 50 88 1.76 0.220 0.220 0.530 3.000 2.800 -6.7 %",
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_table_of_so_many_rows_shows_the_domains_that_changed_most_and_counts_the_rest():
    header, *rows, more = format_summary(of_many(50), most=11).splitlines()
    assert header.startswith("domain ")
    shown = [row.split()[0] for row in rows]
    assert shown == ["domain-00", *(f"domain-{position}" for position in range(40, 50))]
    assert more == "+39 more: `versatune report` shows all"
    assert len(format_summary(of_many(50)).splitlines()) == 51
    assert len(format_summary(of_many(11), most=11).splitlines()) == 12


def test_the_last_loss_comes_with_its_standard_error_where_it_is_known(records):
    records[-1].loss_errors = {"law": 0.0312, "code": None}
    records[-1].change_since_start_error = {"law": 0.014, "code": None}
    law, code = format_summary(records).splitlines()[1:]
    assert law.split()[-7:] == ["1.250", "+-", "0.031", "-37.5", "%", "+-", "1.4"]
    assert code.split()[-3:] == ["2.800", "-6.7", "%"]


def test_what_was_not_measured_is_a_dash():
    lines = format_summary([make_record(0, (0, 0), (0.5, 0.5), losses=None)]).splitlines()
    assert lines[1].split() == ["law", "100", "0", "0.00", "-", "-", "-", "-", "-", "-"]


# --- plot ---------------------------------------------------------------------------------------------------


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def read_image(path):
    from matplotlib.image import imread

    return imread(path)


def test_the_plot_is_a_picture_and_no_temporary_file_stays(matplotlib, records, tmp_path):
    path = plot_history(records, tmp_path / "mixture.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = read_image(path)
    assert image.shape[:2] == (840, 1080)  # 7 by 9 inches at 120 dots
    assert image[..., :3].std() > 0.05  # something is drawn on it
    assert list(tmp_path.iterdir()) == [path]


def test_other_proportions_give_another_picture(matplotlib, records, tmp_path):
    one = read_image(plot_history(records, tmp_path / "one.png"))
    records[1].proportions = {"law": 0.1, "code": 0.9}
    assert (one != read_image(plot_history(records, tmp_path / "two.png"))).any()


@pytest.mark.parametrize("losses", [None, (None, None)])
def test_a_history_without_losses_can_be_plotted(matplotlib, losses, tmp_path):
    records = [make_record(step, (5 * step, 5 * step), (0.5, 0.5), losses=losses) for step in (0, 10)]
    for record in records:
        record.reference_losses = None
    assert plot_history(records, tmp_path / "mixture.png").stat().st_size > 1000


def test_the_first_measurement_alone_can_be_plotted(matplotlib, records, tmp_path):
    assert plot_history(records[:1], tmp_path / "mixture.png").stat().st_size > 1000


def test_twenty_domains_stay_distinct_in_the_stack(matplotlib):
    names = [f"domain {number}" for number in range(20)]
    shares = dict.fromkeys(names, 1 / 20)
    of_both = {"drawn_by_domain": dict.fromkeys(names, 1), "proportions_before": shares, "proportions": shares}
    records = [Record(step=step, num_drawn=12 * step, **of_both) for step in (0, 10)]
    axes = new_figure(5, 3).subplots()
    draw_mixture(axes, records, "")
    looks = {(tuple(area.get_facecolor()[0]), area.get_hatch()) for area in axes.collections}
    assert len(looks) == len(axes.collections) == 20


@pytest.fixture
def shown(matplotlib, monkeypatch):
    """What the legend of a plot says, from the top."""
    from matplotlib.figure import Figure

    shown, legend = [], Figure.legend

    def read_legend(figure, *arguments, **options):
        made = legend(figure, *arguments, **options)
        shown.extend(text.get_text() for text in made.get_texts())
        return made

    monkeypatch.setattr(Figure, "legend", read_legend)
    return shown


def test_of_many_domains_the_plot_shows_as_many_as_it_has_marks_and_one_for_the_others(shown, tmp_path):
    plot_history(of_many(50), tmp_path / "mixture.png")
    assert shown[0] == "27 others"
    assert len(shown) == len(set(shown)) == 24
    assert {f"domain-{position}" for position in range(40, 50)} < set(shown)


def test_the_others_have_the_rest_of_the_proportions_and_no_loss():
    records = folded(of_many(50), 24)
    assert sum(records[1].proportions.values()) == pytest.approx(1, abs=1e-12)
    assert records[1].proportions["27 others"] == pytest.approx(27 / 50, abs=1e-12)
    assert records[1].losses["27 others"] is None
    assert folded(records, 24) is records


def test_a_name_that_no_font_here_can_write_is_drawn_as_its_number(shown, monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "_CJK", ())  # as on a machine without any
    drawing._characters.cache_clear()
    names = ["law", "法律", "médecine", "코드"]
    shares = dict.fromkeys(names, 0.25)
    both = {"proportions_before": shares, "proportions": shares}
    record = Record(step=0, num_drawn=0, drawn_by_domain=dict.fromkeys(names, 0), **both)
    plot_history([record], tmp_path / "mixture.png")
    assert shown[::-1] == ["law", "#2", "médecine", "#4"]
    assert numbered(names) == {"法律": "#2", "코드": "#4"}
    drawing._characters.cache_clear()


def test_runs_that_no_font_here_can_write_are_drawn_by_number_and_no_box_is(shown, monkeypatch, tmp_path):
    pytest.importorskip("jinja2")
    monkeypatch.setattr(drawing, "_CJK", ())
    drawing._characters.cache_clear()
    folders = [write(expansion(), tmp_path / name) for name in ("uniform", "实验")]
    _, pngs = make_report(folders).write(tmp_path / "page")
    assert pngs
    assert {"uniform", "run 2"} <= set(shown)
    assert not [text for text in shown if "实" in text]
    drawing._characters.cache_clear()


def test_every_domain_name_is_shown_as_it_is(shown, tmp_path):
    names = ["price_$5_to_$10", "_private", "50% {x}", "a\\b"]
    shares = dict.fromkeys(names, 0.25)
    record = {"losses": shares, "reference_losses": shares, "proportions_before": shares, "proportions": shares}
    record |= {"step": 0, "num_drawn": 0, "drawn_by_domain": dict.fromkeys(names, 0)}
    plot_history([Record(**record)], tmp_path / "mixture.png")
    assert [text.strip().replace(r"\$", "$") for text in reversed(shown)] == names


def test_the_plot_leaves_the_users_matplotlib_alone(matplotlib, records, tmp_path):
    plot_history(records, tmp_path / "mixture.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
