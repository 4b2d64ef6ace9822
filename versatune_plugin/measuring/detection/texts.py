"""The texts of each domain's rows as the user wrote them: what a classifier learns the domains from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

# Where the text of a row stands in the usual formats. Other columns (sources, ids, scores) would give a row's domain
# away without being anything that a model writes; they count only in rows that have none of these.
TEXT_COLUMNS = (
    *("instruction", "input", "output", "prompt", "completion", "question", "context", "answer", "response"),
    *("text", "content", "messages", "conversations"),
)
MIN_ROWS = 20
"""Different texts that a domain must have for a classifier; with fewer, neither fit nor calibration mean anything."""
MAX_CHARACTERS = 1000
"""Read of each text by a classifier, from its start: as much as 256 tokens have."""
_MESSAGE_TEXT = ("content", "value", "text")


def row_texts(rows: "Dataset", more_columns: Iterable[str] = ()) -> list[str]:
    """The text of every row: its text columns, one below the other.

    Args:
        rows: In any format.
        more_columns: Columns that hold text beside the usual ones.
    """
    wanted = [name for name in rows.column_names if name in (*TEXT_COLUMNS, *more_columns)] or rows.column_names
    return ["\n".join(_strings([row[name] for name in wanted])) for row in rows.select_columns(wanted)]


def _strings(value) -> Iterator[str]:
    """All texts in a value, in order; of a chat message only what was said."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        said = [value[key] for key in _MESSAGE_TEXT if value.get(key)]
        yield from _strings(said or list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def different_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a classifier reads them, each once, without empty ones."""
    return list(dict.fromkeys(text[:MAX_CHARACTERS] for text in texts if text.strip()))


def check_texts(texts_by_domain: Mapping[str, Sequence[str]]) -> None:
    """Report at once all domains with too few texts for a classifier.

    Raises:
        ValueError: With the number of each.
    """
    numbers = {domain: len(different_texts(texts)) for domain, texts in texts_by_domain.items()}
    problems = [f"domain {domain!r} has {number}" for domain, number in numbers.items() if number < MIN_ROWS]
    if problems:
        raise ValueError(
            f"the classifier needs at least {MIN_ROWS} different, non-empty texts of each domain: "
            f"{', '.join(problems)} (rows that are tokenised already have no text); add rows, or name another judge "
            "(detection.judge)"
        )
