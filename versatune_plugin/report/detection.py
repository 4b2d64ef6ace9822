"""A detection as text and as a plot: the table, the texts behind it, and several models side by side."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from versatune_plugin.domains import misfits
from versatune_plugin.measuring.detection.document import Detection, DetectionDocument
from versatune_plugin.measuring.detection.samples import Sample
from versatune_plugin.measuring.detection.statistics import CLEAR
from versatune_plugin.report.drawing import LEGEND, label, marks, new_figure, save_png, short
from versatune_plugin.tables import aligned

MAX_SHOWN = 200  # characters of a text
LINE_INCHES = 0.13  # of the plot's numbers; a thinner segment has no room for them


# --- the table ----------------------------------------------------------------------------------------------


def format_detection(document: Detection) -> str:
    """A detection as an aligned table, one row per domain, and what one must know to read it."""
    other = next(name for name in document.by_count if name != document.count)
    spread = document.by_count[document.count].spread
    table = [("domain", "proportion", "95 % interval", "spread", f"by {other}")]
    for domain, (low, high) in document.intervals.items():
        table.append(
            (
                domain,
                f"{document.proportions[domain]:.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{spread[domain]:.3f}" if spread else "-",
                f"{document.by_count[other].proportions[domain]:.3f}",
            )
        )
    return "\n".join([aligned(table), *_notes(document)])


def _notes(document: Detection) -> list[str]:
    weighs = {"samples": "every text weighs the same", "tokens": "a text weighs its number of tokens"}
    settings = document.settings
    accuracy = document.judge_report.get("held_out_accuracy")
    name = " ".join(document.judge_name.values())
    notes = [
        f"counted: {document.count} ({weighs[document.count]})",
        f"judge: {name}" + ("" if accuracy is None else f", right on {_percent(accuracy)} of held-out rows"),
        f"no clear domain (none above {CLEAR:g}): {_percent(document.unclear_share)} of the judged texts",
        f"texts: {document.num_samples:,} drawn, {document.num_judged:,} judged, "
        f"{document.num_empty:,} empty, {document.num_not_judged:,} without an answer",
        f"length: {document.mean_num_tokens:.0f} tokens on average, "
        f"{_percent(document.share_finished)} ended by themselves",
    ]
    if isinstance(document, DetectionDocument):
        notes.append(document.start)
    if document.stopped_early:
        planned = settings.num_samples * settings.iterations
        notes.append(f"stopped before {planned:,} texts: all intervals are narrower than {settings.tolerance:g}")
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- the texts behind it ------------------------------------------------------------------------------------


def format_samples(
    samples: Sequence[Sample], probabilities: np.ndarray, domains: Sequence[str], number: int = 10
) -> str:
    """The most typical texts of each domain, so that a person can judge the judge.

    Args:
        samples: As `judged_samples` gives them.
        probabilities: Shape (num_samples, num_domains); rows of NaN are passed over.
        domains: Domain names in their order.
        number: Texts per domain; each different text is shown once.
    """
    rows = {sample.text: row for sample, row in zip(samples, probabilities, strict=True) if not np.isnan(row).any()}
    lines = []
    for domain_id, domain in enumerate(domains):
        typical = sorted(rows.items(), key=lambda item: -item[1][domain_id])[:number]
        lines.append(f"{domain}: the {len(typical)} most typical of {len(rows):,} texts")
        lines += [f"  {row[domain_id]:.3f}  {as_one_line(text)}" for text, row in typical]
    return "\n".join(lines)


def as_one_line(text: str, max_shown: int = MAX_SHOWN) -> str:
    """A text that a model wrote, harmless for a terminal: white space collapsed, control characters spelled out."""
    line = " ".join(text[: 4 * max_shown].split())
    cut = line[:max_shown] + ("..." if len(line) > max_shown or len(text) > 4 * max_shown else "")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


# --- the plot -----------------------------------------------------------------------------------------------


def plot_detections(documents: Mapping[str, Detection], path: str | os.PathLike) -> Path:
    """One stacked bar per model, with the percentage and the 95 % interval of each domain in its segment, as a PNG.

    Segments that are too thin for a line of text have no numbers; they stand in the table.

    Args:
        documents: Detections by the name to be shown below the bar, at least one.
        path: The file; replaced as a whole.

    Returns:
        The path of the file.

    Raises:
        ValueError: The detections are of different domains, or count different things.
        ImportError: matplotlib is not installed.
    """
    domains, count = _what_is_compared(documents)
    height = max(5.5, 2.5 + 0.3 * len(domains))
    width = 1.6 + max(3.4, 2.0 * len(documents)) + 0.09 * max(map(len, domains))  # the last part is the legend's
    figure = new_figure(width, height)
    axes = figure.subplots()
    bottoms = np.zeros(len(documents))
    for domain, mark in zip(domains, marks(len(domains)), strict=True):
        shares = np.array([document.proportions[domain] for document in documents.values()])
        axes.bar(range(len(documents)), shares, 0.86, bottoms, label=short(domain, LEGEND), **mark.of_area)
        for position, document in enumerate(documents.values()):
            if shares[position] * (height - 1) >= LINE_INCHES:
                low, high = document.intervals[domain]
                axes.text(
                    position,
                    bottoms[position] + shares[position] / 2,
                    f"{100 * shares[position]:.1f} %  ({100 * low:.1f} - {100 * high:.1f})",
                    color=_readable_on(mark.colour),
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        bottoms += shares
    axes.set(ylim=(0, 1), ylabel=f"proportion of {count}", title="Detected domains (95 % interval)")
    axes.set_xticks(range(len(documents)), ["\n".join(map(label, textwrap.wrap(name, 22))) for name in documents])
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper")  # in the order of the stack
    return save_png(figure, path)


def _what_is_compared(documents: Mapping[str, Detection]) -> tuple[list[str], str]:
    """Domains in the order of the first detection, and the count of all of them."""
    (first_name, first), *others = documents.items()
    for name, document in others:
        problems = misfits(document.domains, first.domains, name)
        if problems:
            raise ValueError(f"{first_name} and {name} were measured on different domains: {'; '.join(problems)}")
        if document.count != first.count:
            raise ValueError(
                f"{first_name} counts {first.count} and {name} counts {document.count}: "
                "detect again with the same count"
            )
    return first.domains, first.count


def _readable_on(colour) -> str:
    """Black or white, whichever stands out (luminance as in WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [((part + 0.055) / 1.055) ** 2.4 if part > 0.04045 else part / 12.92 for part in to_rgb(colour)]
    return "black" if np.dot(linear, [0.2126, 0.7152, 0.0722]) > 0.18 else "white"
