"""The page of one run: what is on it, and what it is made of."""

import json
import math
import re
from html import unescape

import pytest

from tests.report.histories import evaluation, expansion, names, typed, write
from versatune_plugin.files.history import history_path
from versatune_plugin.files.record import Record
from versatune_plugin.report import make_report
from versatune_plugin.report.decisions import MAX_ROWS, decisions_section
from versatune_plugin.report.drawing import new_figure
from versatune_plugin.report.making import format_table
from versatune_plugin.report.parts import Cell, Chart, Table
from versatune_plugin.report.run_sections import run_sections
from versatune_plugin.report.runs import Run, load_runs
from versatune_plugin.report.summary import summarise

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture
def folder(tmp_path):
    return write(expansion(), tmp_path / "out")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page_of(write(expansion(), tmp_path_factory.mktemp("run") / "out"))


def page_of(folder):
    return make_report([folder]).html()


def run_of(records, **more):
    return Run(name="run", folder="run", records=typed(records), **more)


def parts_of(run, kind):
    return {
        part.title if kind is Chart else part.caption: part
        for s in run_sections(run)
        for part in s.parts
        if isinstance(part, kind)
    }


def drawn(chart):
    figure = new_figure(4.8, 3.2)
    chart.draw(figure)
    return figure


def unbroken(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def text_of(html):
    return unescape(unbroken(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))))


# --- what is on it ------------------------------------------------------------------------------------------


def test_the_page_begins_with_what_happened_in_words_and_numbers(folder, html):
    points = run_sections(load_runs([folder])[0])[0].points
    assert unbroken(points[0]) == (
        "The held-out loss rose by more than 2 standard errors in 1 of 6 domains: general 2.833 to 2.940 (+3.8 %)."
    )
    said = text_of(html)
    for words in (
        "fell by more than 2 standard errors in 4 of 6 domains: code 2.293 to 1.681 (−26.7 %)",
        "Within 2 standard errors of no change: 1 of 6 domains: law 2.254 to 2.197",
        "finance gained most, 16.7 % to 60.0 %",
        "600 optimizer steps on 4,799 rows; the mixture was changed 9 times, guards held 22 times what was proposed, "
        "1 of 31 updates skipped.",
        "The most repeated domain is finance: 2.26 passes over its 1,150 rows.",
        # 31 probes of 2.5, 2.6 and 2.7 s: 80.5 s; 4 s, then six times 30 + 31 + 32 + 33 + 34 s: 964 s
        "Probes took 80.5 s of 16 min (8.4 % of the run, predicted 7.0 %), 2.6 s each.",
    ):
        assert words in said, words
    assert said.index("What happened") < said.index("Mixture") < said.index("Losses") < said.index("Configuration")


def test_the_table_has_every_number_and_marks_what_is_beyond_two_standard_errors(folder, html):
    table = next(iter(parts_of(load_runs([folder])[0], Table).values()))
    rows = {row[0]: row for row in table.rows}
    assert rows["general"] == (
        "general", Cell("+3.8\N{NO-BREAK SPACE}% ± 1.5", "worse"), "2.833", "2.940", "1.838",
        "550", "441", "0.80", "0.092", "0.092", "0.053",
    )  # fmt: skip
    assert rows["law"][1] == "−2.6\N{NO-BREAK SPACE}% ± 1.5"
    assert rows["code"][1] == Cell("−26.7\N{NO-BREAK SPACE}% ± 1.5", "better")
    for row in table.rows:
        for cell in row:
            assert f">{cell.text if isinstance(cell, Cell) else cell}<" in html


def test_every_part_that_was_asked_for_is_there(folder, html):
    charts = parts_of(load_runs([folder])[0], Chart)
    assert list(charts) == [
        "The mixture",
        "Passes over the data",
        "Requested and realised",
        "Held-out loss",
        "Learnable potential",
        "Forgetting since the last update",
        "Forgetting since the start",
        "What happened at which update",
        "The test behind each decision",
        "Time of each probe",
    ]
    assert html.count('role="img"') == len(charts)
    for chart in charts.values():
        assert re.search(r"\d", chart.alt), f"{chart.title}: no number in {chart.alt}"
        assert f'aria-label="{chart.alt}"' in unescape(html)
    for words in ("expansion.delta", "0.06", "5495bbe8c7cc53bb9eadda24c8ff2453", "2.13.0", "fe12"):
        assert words in html


def test_every_chart_is_a_png_too_and_the_page_needs_none_of_them(folder):
    page, pictures = make_report([folder]).write()
    assert sorted(path.name for path in page.parent.glob("*.png")) == sorted(path.name for path in pictures)
    assert len(pictures) == 10
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert "mixture.png" not in {path.name for path in pictures}  # it is the trainer's
    assert ".png" not in page.read_text()


def test_evaluations_stand_with_their_tasks_and_what_was_left_out(folder):
    for step, where in ((200, folder / "checkpoint-200"), (None, folder)):
        file = where / "versatune" / "evaluation.json"
        evaluation({"law": 0.41 if step else 0.47, "code": 0.3}, step).write(file)
    (folder / "checkpoint-400" / "versatune").mkdir(parents=True)
    (folder / "checkpoint-400" / "versatune" / "evaluation.json").write_text("{}")
    run = load_runs([folder])[0]
    assert list(run.evaluations) == [200, None]
    assert "checkpoint-400/versatune/evaluation.json is not a versatune/evaluation document" in run.problem
    said = text_of(page_of(folder))
    for words in ("step 200", "finished model", "0.410 ± 0.020", "0.470 ± 0.020", "Law QA", "lawbench of law"):
        assert words in said


def test_evaluations_alone_are_a_report(tmp_path):
    file = tmp_path / "versatune" / "evaluation.json"
    evaluation({"law": 0.41}).write(file)
    report = make_report([tmp_path])
    assert "does not exist" in report.text()
    assert "0.410 ± 0.020" in report.html()


def test_a_broken_evaluation_is_a_warning_and_the_rest_is_shown(folder):
    file = folder / "versatune" / "evaluation.json"
    evaluation({"law": 0.5}).write(file)
    whole = json.loads(file.read_text())
    for broken in (
        {"domains": {"law": {"score": "high", "tasks": {}}}},
        {"domains": {"law": {"score": 0.5, "tasks": {"t": None}}}},
        {"left_out": ["lawbench"]},
        {"limit": [1]},
    ):
        file.write_text(json.dumps(whole | broken))
        run = load_runs([folder])[0]
        assert (len(run.records), len(run.evaluations)) == (31, 0)
        assert f"evaluation.json is not a whole versatune/evaluation document: {next(iter(broken))}" in run.problem


def test_what_was_not_evaluated_has_no_bar():
    first, last = evaluation({"law": 0.4, "code": 0.3}, 5), evaluation({"law": 0.4})
    chart = parts_of(run_of(expansion(num_updates=2), evaluations={5: first, None: last}), Chart)["Scores by domain"]
    assert "code unknown" in chart.alt
    widths = [bar.get_width() for bar in drawn(chart).axes[0].patches]
    assert widths[2] == 0.4
    assert math.isnan(widths[3])


# --- the losses that a change refers to ---------------------------------------------------------------------


def resumed_on_other_rows(num_updates, at):
    """A history whose losses are of other rows, and 1.5 higher, from a record on."""
    records = expansion(num_updates=num_updates)
    again = records[at:]
    again[0]["probe"] = {d: facts | {"fingerprint": "other"} for d, facts in records[0]["probe"].items()}
    for record in again:
        record["losses"] = {domain: loss + 1.5 for domain, loss in record["losses"].items()}
        record["change_since_start"] = {
            domain: loss / again[0]["losses"][domain] - 1 for domain, loss in record["losses"].items()
        }
    return records


def test_changes_and_first_losses_are_of_the_rows_that_the_run_was_resumed_with():
    records = resumed_on_other_rows(6, at=3)
    for row in summarise(typed(records)):
        assert row["first"] == pytest.approx(records[3]["losses"][row["domain"]])
        assert row["change"] == pytest.approx(row["last"] / row["first"] - 1)
    first = run_sections(run_of(records))[0]
    assert "Since step 60 losses are of other held-out rows: changes are since then." in first.points
    chart = parts_of(run_of(records), Chart)["Held-out loss"]
    assert "Lines are broken" in chart.caption
    lines = drawn(chart).axes[0].lines
    assert [len(line.get_xdata()) for line in lines[:2]] == [3, 4]


def test_one_measurement_since_the_rows_changed_is_no_change():
    records = resumed_on_other_rows(3, at=3)
    assert {row["change"] for row in summarise(typed(records))} == {None}
    assert "No loss was measured twice" in " ".join(run_sections(run_of(records))[0].points)


def test_with_the_first_line_lost_first_loss_last_loss_and_change_still_fit():
    records = expansion()
    for whole, cut in zip(summarise(typed(records)), summarise(typed(records[1:])), strict=True):
        assert cut["first"] == pytest.approx(whole["first"])
        assert cut["change"] == pytest.approx(whole["change"])
        assert cut["requested"] is None, "what was asked for in the lost line is not known"


def test_an_error_that_is_missing_is_not_said_of_the_whole_history():
    records = expansion(num_updates=4)
    records[-1]["change_since_start_error"] = None
    points = " ".join(run_sections(run_of(records))[0].points)
    assert "the history has no standard errors of these changes" in points


# --- the mixture and the data ---------------------------------------------------------------------------------


def test_proportions_that_were_decided_too_late_to_act_are_neither_counted_nor_called_the_end():
    records = expansion(num_updates=4)
    points = unbroken(" ".join(run_sections(run_of(records))[0].points))
    assert "the mixture was changed 3 times" in points, "the fourth update ends the run"
    assert f"to {100 * records[3]['proportions']['finance']:.1f} %" in points


def test_rows_that_a_run_did_not_use_up_were_not_repeated():
    points = " ".join(run_sections(run_of(expansion(num_updates=2)))[0].points)
    assert "No domain's rows were used up: at most 0.13 passes (medicine)." in points
    assert "dotted" not in parts_of(run_of(expansion(num_updates=2)), Chart)["Passes over the data"].caption


def test_a_stream_beside_finite_domains_has_unknown_passes():
    records = expansion(num_updates=3)
    for record in records:
        record["num_rows_by_domain"] = record["num_rows_by_domain"] | {"law": None}
    chart = parts_of(run_of(records), Chart)["Passes over the data"]
    assert "law unknown" in chart.alt
    assert " unknown" in [text.get_text() for text in drawn(chart).axes[0].texts]


@pytest.mark.parametrize(
    ("unit", "columns"),
    [
        ("examples", ["realised", "of tokens"]),
        ("tokens", ["realised", "of rows"]),
        ("target_tokens", ["realised", "of rows", "of tokens"]),
    ],
)
def test_requested_shares_stand_beside_realised_ones_in_the_same_unit(unit, columns):
    records = [record | {"unit": unit} for record in expansion(num_updates=3)]
    table = next(iter(parts_of(run_of(records), Table).values()))
    assert list(table.header)[table.header.index("requested") + 1 :] == columns
    realised = summarise(typed(records))[0]["realised"]
    assert table.rows[0][table.header.index("realised")] == f"{realised:.3f}"
    assert list(parts_of(run_of(records), Chart)["Requested and realised"].legend) == ["requested", *columns]


def test_of_more_domains_than_marks_charts_show_those_that_moved_most_and_the_table_all():
    run = run_of(expansion(names(50), num_updates=3))
    charts = parts_of(run, Chart)
    first, last = run.records[0].proportions_before, run.records[-1].proportions
    moved = sorted(first, key=lambda domain: -abs(last[domain] - first[domain]))
    for title in ("Held-out loss", "Passes over the data", "Requested and realised", "The mixture"):
        assert "Of 50 domains those are shown whose proportions changed most" in charts[title].caption, title
        assert moved[0] in charts[title].alt, title
        figure = drawn(charts[title])
        assert figure.get_size_inches()[1] < 12, title
    assert len(charts["Held-out loss"].legend) == len(drawn(charts["Held-out loss"]).axes[0].lines) == 24
    assert [name for name in charts["The mixture"].legend if name.endswith("others")] == ["27 others"]
    (table,) = [part for part in run_sections(run)[0].parts if isinstance(part, Table)]
    assert [row[0] for row in table.rows] == list(names(50))
    few = parts_of(run_of(expansion(names(24), num_updates=1)), Chart)
    assert all("those are shown" not in chart.caption for chart in few.values())


def test_beyond_a_few_domains_no_references_are_drawn():
    for number in (24, 25):
        chart = parts_of(run_of(expansion(names(number), num_updates=1)), Chart)["Held-out loss"]
        assert "Dotted" not in chart.caption
        assert not any(line.get_linestyle() == (0, (1, 2)) for line in drawn(chart).axes[0].lines)


# --- decisions ----------------------------------------------------------------------------------------------


def test_the_decisions_say_what_was_held_skipped_and_raised():
    table = decisions_section(typed(expansion())).parts[-1]
    rows = {row[0]: row for row in table.rows}
    assert rows["20"][1].startswith("finance raised: others forgot")
    assert rows["20"][2] == "finance 0.167 → 0.227"
    assert rows["220"][1] == "skipped: domain 'medicine' has loss nan"
    assert "held by guards: finance 0.660 was proposed" in rows["600"][1]
    assert table.caption == "All 30 updates with a decision."


def test_a_long_history_shows_the_updates_that_stand_out_and_says_how_many_it_leaves_out():
    records = expansion(num_updates=300)
    for record in records[200:]:
        record["proposed"] = None
    table = decisions_section(typed(records)).parts[-1]
    assert len(table.rows) == MAX_ROWS
    assert "250 more are left out" in table.caption
    assert "220" in [row[0] for row in table.rows]  # skipped
    steps = [int(row[0].replace(",", "")) for row in table.rows]
    assert steps == sorted(steps)


def test_a_run_that_decides_nothing_has_no_decisions():
    first = expansion(num_updates=1)[0]
    assert decisions_section(typed([first, first | {"step": 20}])) is None


# --- every history ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nullable", sorted(name for name, field in Record.model_fields.items() if not field.is_required())
)
def test_whatever_was_not_measured_is_left_out(nullable):
    records = [record | {nullable: None} for record in expansion(num_updates=12)]
    assert run_sections(run_of(records))[0].title == "What happened"


@pytest.mark.parametrize("number", [1, 2, 20])
def test_one_two_and_twenty_domains_are_all_shown(tmp_path, number):
    html = page_of(write(expansion(names(number), num_updates=4), tmp_path / "out"))
    for domain in names(number):
        assert f'<th scope="row">{domain}</th>' in html


def test_the_first_measurement_alone_is_a_report(tmp_path):
    assert "No loss was measured twice" in page_of(write(expansion(num_updates=0), tmp_path / "out"))


def test_lines_are_thinned_and_say_so_but_numbers_are_not():
    records = expansion(names(2), num_updates=1200)
    chart = parts_of(run_of(records), Chart)["Held-out loss"]
    assert "Drawn are 500 evenly spaced of 1,201 points" in chart.caption
    last = records[-1]["losses"]["general"]
    assert f"{last:.3f}" in chart.alt
    figure = drawn(chart)
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) == 500
    assert figure.axes[0].lines[0].get_xdata()[-1] == records[-1]["step"]


# --- what it is made of -------------------------------------------------------------------------------------

STRANGE = ("<script>alert(1)</script>", "$x_1$", "_a", "a" * 60, "法律与合同", "&amp; \"q\" 's' {{ 7 * 7 }} #1c2127")


def test_names_are_shown_as_they_are_and_never_run(tmp_path):
    html = page_of(write(expansion(STRANGE), tmp_path / "out"))
    assert "<script" not in html
    shown = re.findall(r'<th scope="row">([^<]*)</th>', html)[: len(STRANGE)]
    assert [unescape(name) for name in shown] == list(STRANGE)
    legend = [unescape(name) for name in re.findall(r"<span>([^<]*)</span></li>", html)]
    assert set(STRANGE) <= set(legend)


def test_characters_that_a_terminal_acts_on_are_written_out(tmp_path):
    strange = ("a\nb", "\x1b[31mred", "half\ud800", "turned\u202e", "family \N{MAN}\u200d\N{WOMAN}")
    report = make_report([write(expansion(strange, num_updates=2), tmp_path / "out\x1b[2J")])
    written_out = ("a\\nb", "\\x1b[31mred", "half\\ud800", "turned\\u202e", strange[-1])
    for text in (report.text(), unescape(report.html())):
        assert all(name in text for name in written_out)
        assert not set(text) & set("\x1b\ud800\u202e")
    page, _ = report.write(tmp_path / "seen")
    assert "out\\x1b[2J" in page.read_text()


def test_notes_and_reasons_are_shown_as_they_are(tmp_path):
    records = expansion(num_updates=3)
    records[1]["note"] = records[2]["skipped"] = "<img src=x onerror=alert(1)>"
    html = page_of(write(records, tmp_path / "out"))
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2


def test_the_same_input_gives_the_same_bytes(folder, tmp_path):
    write(expansion(num_updates=3), folder)
    one, two = (make_report([folder]).write(tmp_path / name) for name in ("one", "two"))
    for first, second in zip([one[0], *one[1]], [two[0], *two[1]], strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


def test_the_page_loads_nothing_and_needs_no_script(html):
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|<img|@import|url\((?!#)", html)
    assert not re.search(r'(?:src|href)="(?!#|data:,)', html)
    assert "default-src 'none'" in html


def test_the_charts_take_their_ink_from_the_page(html):
    charts = "".join(re.findall(r"<svg viewBox[^>]*role=\"img\".*?</svg>", html, flags=re.S))
    assert "var(--ink)" in charts
    assert "var(--grid)" in charts
    assert not re.search(r"#(?:000000|1c2127|ffffff)", charts)


def test_no_two_drawings_share_an_identifier(html):
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_matplotlib_is_afterwards_as_the_user_had_it(folder):
    import matplotlib

    before = dict(matplotlib.rcParams)
    make_report([folder]).write()
    assert dict(matplotlib.rcParams) == before


def test_a_table_as_text_is_aligned_whatever_the_script():
    table = Table(header=("domain", "loss"), rows=[("法律", Cell("1.5", "worse")), ("code", "2.25")], caption="Losses")
    assert format_table(table) == "Losses\ndomain  loss\n法律     1.5\ncode    2.25"


# --- several runs -------------------------------------------------------------------------------------------


def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path):
    folders = [write(expansion(num_updates=1), tmp_path / name / "out") for name in ("a", "b")]
    assert [run.name for run in load_runs(folders)] == ["a/out", "b/out"]
    assert [run.name for run in load_runs(folders[:1])] == ["out"]
    with pytest.raises(ValueError, match="given twice"):
        load_runs([folders[0], tmp_path / "a" / ".." / "a" / "out"])


def test_one_run_has_no_baseline(folder):
    with pytest.raises(ValueError, match="nothing to be compared with"):
        make_report([folder], baseline="out")


def test_a_page_of_several_runs_has_the_comparison_first_and_each_run_folded(tmp_path):
    folders = [write(expansion(seed=seed, num_updates=6), tmp_path / f"run{seed}") for seed in (0, 1)]
    history_path(write([], tmp_path / "empty"))
    report = make_report([*folders, tmp_path / "empty"], baseline="run1")
    page, _ = report.write(tmp_path / "seen")
    html = page.read_text()
    assert page == tmp_path / "seen" / "comparison.html"
    assert html.count('<details class="chapter">') == 3
    assert html.index("3 runs compared") < html.index('<details class="chapter">')
    assert "empty/versatune/history.jsonl is empty" in html[: html.index('<details class="chapter">')]
    assert "is empty" in report.text()
    for section in report.comparison:
        assert section.title in html
