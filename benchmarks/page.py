"""Writes the page of results: python benchmarks/page.py --output FOLDER [--page FILE]

Reads the files that `results.py` left in the folder and writes Markdown, with the plots as PNG in the folder `results`
beside it. Nothing is trained, and what did not run is named and left out. Remarks by hand come from `remarks.md` beside
this file: a section of it goes, as it is, to the end of the section of the page with the same `## ` heading.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import plots
import sections
from outcomes import Base, load
from summary import summary

PAGE = Path(__file__).with_name("RESULTS.md")
REMARKS = Path(__file__).with_name("remarks.md")
TITLES = (
    "Summary",
    "Machine, commands and base models",
    "All domains at once",
    "One domain raised above the others",
    "Sensitivity",
    "Ablations",
    "A real model",
    "Peers",
)
ABOUT = {
    "All domains at once": (
        "How should rows be divided among the domains? Every strategy spends the same steps; a seed changes the "
        "order of the rows only, so runs of one seed are pairs. Losses are nats per target token of rows that no run "
        "trained on, accuracy is the share of questions whose right answer is likelier per token than three wrong "
        "ones (25 % by chance). `mean` weighs the domains equally, `own mixture` as the base's pre-training did. "
        "`versatune` and `constant` start from the detected mixture. The first table has the paper's own comparisons; "
        "its score is the mean of twelve benchmarks of 7-14B models (arXiv 2411.11266)."
    ),
    "One domain raised above the others": (
        "How can one domain gain most while the others lose least? A *constant* share of the target leaves the rest "
        "to the others evenly; `specific` is 100 %.\n\n"
        "- *gain*: the relative fall of the target's loss against before fine-tuning; *kept*: the same relative to "
        "that of `specific` with the same seed.\n"
        "- *degradation*: the mean relative rise of the others' losses (those that fell count as 0); *less*: the "
        "share of that of `specific` that was avoided.\n"
        "- *beyond*: a dynamic rule's degradation minus that of constant shares at the same gain, per seed; negative "
        "is better. It is interpolated in a straight line from share to share, *between* those named (by the mean "
        "gain): where their frontier is convex the line lies above it, which favours the rule; past the largest gain "
        "of a share (*flat*) the frontier is not extended, which favours the shares.\n"
        "- *test passed*: at how many of the updates that tested it did the rule's test hold.\n"
        "- `held 0.6` starts at 98 % and does not come down in the first 60 % of the run; with `test off` (epsilon 0) "
        "the target's share is a pure schedule, only the rest is still divided by measurement.\n\n"
        "Dotted in the plot: the paper's 38.77 % avoided, and 95 % kept."
    ),
    "Sensitivity": "One value changed at a time, against the default with the same seed.",
    "Ablations": "One part of the method changed at a time. Negative results stay.",
    "A real model": "The same questions of a pre-trained model, as far as the machine allows.",
    "Peers": "Other programs on the same rows and steps; their notes say what broke.",
}
INTERVALS = (
    "Brackets are 95 % t intervals over seeds, of paired differences or of ratios to the same seed's run; `*` means "
    "that the interval leaves 0 out (called significant here), `**` (bold in sentences) that it also survives Holm's "
    "correction over the strategies of its table; single comparisons planned in advance are not corrected. A mean "
    "without brackets has one seed, or seeds that are all alike: too little to say. Intervals say "
    "what another order of the training rows would change, not what another model or other data would."
)


def page(folder: Path, images: Path, remarks: Mapping[str, str]) -> str:
    """The Markdown of a folder of results; the plots are written into `images`.

    Args:
        folder: What `results.py` calls its output.
        images: A folder beside the page, made if missing.
        remarks: By title of a section, text that ends it.
    """
    sessions, bases, peers = load(folder)
    known, real = [base for base in bases if base.known], [base for base in bases if not base.known]
    bodies = {
        "Summary": f"{summary(known or real)}\n\n{INTERVALS}" if bases else "Nothing has run yet.",
        "Machine, commands and base models": sections.machine(sessions, bases),
        "All domains at once": fostering(known),
        "One domain raised above the others": expansion(known, images),
        "Sensitivity": sections.sensitivity(known),
        "Ablations": sections.ablations(known),
        "A real model": "\n\n".join(part for part in (fostering(real), expansion(real, images)) if part),
        "Peers": sections.peers(peers) if peers else "",
    }
    return (
        "# Results\n\n" + "\n\n".join(section(title, bodies[title], remarks.get(title, "")) for title in TITLES) + "\n"
    )


def section(title: str, body: str, remark: str) -> str:
    """Heading, what it is about, the results or that there are none, and the remark."""
    parts = [f"## {title}", ABOUT.get(title, "") if body else "", body or "Not run: no results were found.", remark]
    return "\n\n".join(part for part in parts if part)


def fostering(bases: Sequence[Base]) -> str:
    """The bases that ran strategies for all domains."""
    return sections.fostering([base for base in bases if base.of_part("fostering")])


def expansion(bases: Sequence[Base], images: Path) -> str:
    """Every target: its tables, then its plots."""
    parts = []
    for target in dict.fromkeys(target for base in bases for target in base.targets):
        expanded = [base for base in bases if f"{target}: specific" in base.runs]
        missing = [base.name for base in bases if target in base.targets and base not in expanded]
        parts += [f"{name}, {target}: `specific` has not run yet, so nothing is compared." for name in missing]
        if expanded:
            parts += [sections.expansion(expanded, target), *pictures(expanded, target, images)]
    return "\n\n".join(parts)


def pictures(bases: Sequence[Base], target: str, images: Path) -> list[str]:
    """Draws the plots of a target, and refers to them."""
    images.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9.]+", "-", "-".join([target, *(base.name for base in bases)]).lower())
    drawn = [
        ("Gain kept and degradation avoided", plots.plot_frontier(bases, target, images / f"frontier-{name}.png")),
        ("Gain and degradation by step", plots.plot_checkpoints(bases, target, images / f"checkpoints-{name}.png")),
    ]
    return [f"![{title}, target {target}]({images.name}/{path.name})" for title, path in drawn]


def read_remarks(text: str) -> dict[str, str]:
    """By heading.

    Raises:
        ValueError: A heading is none of the page's.
    """
    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    remarks = {title.strip(): body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    if unknown := remarks.keys() - set(TITLES):
        raise ValueError(f"remarks.md has sections that the page has not: {sorted(unknown)}; it has {list(TITLES)}")
    return remarks


def write_page(folder: Path, path: Path = PAGE, remarks: Path = REMARKS) -> Path:
    """The page of a folder of results and its plots; returns its path."""
    said = read_remarks(remarks.read_text(encoding="utf-8")) if remarks.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(folder, path.with_name("results"), said), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the Markdown goes")
    options = parser.parse_args()
    print(write_page(options.output, options.page))


if __name__ == "__main__":
    main()
