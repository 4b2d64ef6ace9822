import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.detections import make_document
from versatune_plugin.measuring.detection.samples import Sample
from versatune_plugin.report.detection import as_one_line, format_detection, format_samples, plot_detections

DOMAINS = ["law", "general chat"]


def make(**changes):
    """Two domains, two whole iterations."""
    shares = {
        "samples": {"proportions": {"law": 0.625, "general chat": 0.375}, "spread": dict.fromkeys(DOMAINS, 0.01)},
        "tokens": {"proportions": {"law": 0.7, "general chat": 0.3}, "spread": dict.fromkeys(DOMAINS, 0.02)},
    }
    intervals = {"law": (0.6, 0.65), "general chat": (0.35, 0.4)}
    facts = {
        "judge": {"kind": "endpoint", "model": "Qwen2.5-72B-Instruct"},
        "judge_report": {},
        "domains": DOMAINS,
        "settings": {"num_samples": 1000, "iterations": 2, "tolerance": None, "count": "samples", "seed": 0},
        "proportions": shares["samples"]["proportions"],
        "intervals": intervals,
        "by_count": {name: share | {"intervals": intervals, "per_iteration": []} for name, share in shares.items()},
        "num_samples": 2000,
        "num_judged": 1880,
        "num_empty": 100,
        "num_not_judged": 20,
        "share_finished": 0.774,
        "mean_num_tokens": 85.4,
        "unclear_share": 0.281,
    }
    return make_document(**facts | changes)


@pytest.fixture
def document():
    return make()


def line_of(text, beginning):
    (line,) = [line for line in text.splitlines() if line.startswith(beginning)]
    return line


# --- table --------------------------------------------------------------------------------------------------


def test_the_table_shows_each_domain_and_below_it_what_one_must_know_to_read_it(document):
    assert format_detection(document) == (
        "domain        proportion  95 % interval  spread  by tokens\n"
        "law                0.625  0.600 - 0.650   0.010      0.700\n"
        "general chat       0.375  0.350 - 0.400   0.010      0.300\n"
        "counted: samples (every text weighs the same)\n"
        "judge: endpoint Qwen2.5-72B-Instruct\n"
        "no clear domain (none above 0.5): 28.1 % of the judged texts\n"
        "texts: 2,000 drawn, 1,880 judged, 100 empty, 20 without an answer\n"
        "length: 85 tokens on average, 77.4 % ended by themselves\n"
        "samples start from '<s>'"
    )


def test_the_held_out_accuracy_of_a_judge_is_shown_where_it_has_one():
    document = make(judge={"kind": "classifier"}, judge_report={"held_out_accuracy": 0.9312})
    assert line_of(format_detection(document), "judge") == "judge: classifier, right on 93.1 % of held-out rows"


def test_the_used_count_is_named_and_the_other_one_stands_beside_it(document):
    text = format_detection(make(count="tokens", proportions=document.by_count["tokens"].proportions))
    assert text.splitlines()[0].endswith("by samples")
    assert text.splitlines()[1].split() == ["law", "0.700", "0.600", "-", "0.650", "0.020", "0.625"]
    assert line_of(text, "counted") == "counted: tokens (a text weighs its number of tokens)"


def test_an_early_stop_is_said(document):
    settings = document.settings.model_copy(update={"tolerance": 0.06})
    text = format_detection(make(stopped_early=True, settings=settings))
    assert line_of(text, "stopped") == "stopped before 2,000 texts: all intervals are narrower than 0.06"


def test_a_single_iteration_has_no_spread(document):
    document.by_count["samples"].spread = None
    assert format_detection(document).splitlines()[1].split()[-2:] == ["-", "0.700"]


# --- texts --------------------------------------------------------------------------------------------------


def test_the_most_typical_texts_of_each_domain_are_shown_each_once():
    texts = ["the court", "a fever", "the court", "either", "", "no answer"]
    nan = [np.nan, np.nan]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5], nan, nan])
    samples = [Sample(text, 1, finished=True) for text in texts]
    assert format_samples(samples, probabilities, ["law", "medicine"], number=2) == (
        "law: the 2 most typical of 3 texts\n"
        "  0.900  the court\n"
        "  0.500  either\n"
        "medicine: the 2 most typical of 3 texts\n"
        "  0.800  a fever\n"
        "  0.500  either"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\n lines\tand  blanks\r\n", "two lines and blanks"),
        ("\x1b[2Jgone \x1b]0;title\x07", r"\x1b[2Jgone \x1b]0;title\x07"),
        ("back\u202ewards", r"back\u202ewards"),
        ("half of a pair \ud83d", r"half of a pair \ud83d"),
        ("日本語, naïve, 🙂", "日本語, naïve, 🙂"),
        ("x" * 201, "x" * 200 + "..."),
        ("x" * 200, "x" * 200),
        (" " * 5000 + "x", "..."),
    ],
)
def test_a_text_is_one_short_harmless_line(text, shown):
    assert as_one_line(text) == shown


@given(st.text())
def test_no_text_reaches_a_terminal_with_a_control_character(text):
    assert as_one_line(text).isprintable()


# --- plot ---------------------------------------------------------------------------------------------------


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def labels_of(monkeypatch, documents, path):
    """The figure's texts, and that a PNG was written."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    assert plot_detections(documents, path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    (axes,) = figures[0].axes
    return [text.get_text() for text in axes.texts], [text.get_text() for text in axes.get_xticklabels()], axes


def test_each_model_has_a_bar_with_percentages_and_intervals(matplotlib, document, monkeypatch, tmp_path):
    other = make(domains=DOMAINS[::-1])
    numbers, names, axes = labels_of(monkeypatch, {"a": document, "b": other}, tmp_path / "detections.png")
    assert numbers == 2 * ["62.5 %  (60.0 - 65.0)"] + 2 * ["37.5 %  (35.0 - 40.0)"]
    assert names == ["a", "b"]
    assert [bar.get_height() for bar in axes.patches] == [0.625, 0.625, 0.375, 0.375]
    assert axes.get_ylabel() == "proportion of samples"


def test_a_segment_that_is_too_thin_for_its_numbers_has_none(matplotlib, document, monkeypatch, tmp_path):
    document = make(
        proportions={"law": 0.99, "general chat": 0.01}, intervals={"law": [0.98, 1], "general chat": [0, 0.02]}
    )
    numbers, _, _ = labels_of(monkeypatch, {"a": document}, tmp_path / "plot.png")
    assert numbers == ["99.0 %  (98.0 - 100.0)"]


@pytest.mark.filterwarnings("error")
def test_names_that_matplotlib_would_read_as_something_else_and_many_domains_are_plotted(
    matplotlib, document, tmp_path
):
    domains = ["_hidden", "$100 and $200", *(f"domain {i}" for i in range(18))]
    document = make(
        domains=domains,
        proportions=dict.fromkeys(domains, 0.05),
        intervals={domain: [0, 0.1] for domain in domains},
    )
    plot = plot_detections({"org/a-model-with-a-very-long-name-of-$5 $6": document}, tmp_path / "plot.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_detections_of_different_domains_are_not_compared(matplotlib, document, tmp_path):
    other = make(domains=["law", "general"])
    with pytest.raises(ValueError, match=r"a and b were measured on different domains: b names .* 'general'"):
        plot_detections({"a": document, "b": other}, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_detections_that_count_different_things_are_not_compared(matplotlib, document, tmp_path):
    other = make(count="tokens")
    with pytest.raises(ValueError, match="a counts samples and b counts tokens: detect again with the same count"):
        plot_detections({"a": document, "b": other}, tmp_path / "plot.png")
