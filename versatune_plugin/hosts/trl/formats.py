"""The format of each domain's rows, judged as TRL would judge it if the domain were trained alone.

TRL looks at the first row of what it is given, and takes all others for the same. Here that would be the first row of
the first domain: the order of a dict would decide what is masked, refused or lost.
"""

from collections.abc import Iterator, Mapping

from trl.data_utils import is_conversational, is_conversational_from_value

_IMAGES = ("image", "images")
_MASKS = ("completion_mask", "assistant_masks")


def check_formats(train: Mapping, heldout: Mapping, args, data_collator=None, formatting_func=None) -> None:
    """Report at once all domains that TRL would refuse, or train otherwise than the arguments say.

    Args:
        train: Training rows per domain, as the user gave them.
        heldout: Held-out rows per domain, likewise.
        args: The training arguments; None for TRL's own.
        data_collator: The user's, if there is one.
        formatting_func: Likewise.

    Raises:
        ValueError: With one line per domain.
    """
    problems = [
        f"{name}[{domain!r}] {problem}"
        for name, by_domain in (("train_dataset", train), ("eval_dataset", heldout))
        for domain, rows in by_domain.items()
        if (row := next(iter(rows), None)) is not None  # a domain without rows is missed elsewhere
        for problem in _problems(row, args, data_collator, formatting_func)
    ]
    if problems:
        raise ValueError(
            "TRL cannot train these domains together under one set of arguments:\n  " + "\n  ".join(problems)
        )


def _problems(row: Mapping, args, data_collator, formatting_func) -> Iterator[str]:
    """What speaks against a domain with this first row."""

    def given(name: str):
        return getattr(args, name, None)

    columns = f"(it has: {', '.join(row)})"
    if any(name in row for name in _IMAGES):
        yield f"has images {columns}: their tokens are not known before they are drawn, so they cannot be mixed"
        return
    if given("assistant_only_loss") and not is_conversational(row):
        yield (
            f"is not conversational {columns}, so assistant_only_loss cannot tell what to train on: give all domains "
            "messages, or set it to False"
        )
    if (given("dataset_kwargs") or {}).get("skip_prepare_dataset"):
        yield from _unprepared(row, columns, data_collator)
        return
    if "input_ids" in row:
        return
    of_completions = given("completion_only_loss")
    if formatting_func is not None:
        if of_completions or (of_completions is None and {"prompt", "completion"} <= set(row)):
            yield (
                "has prompts and completions, whose format formatting_func would replace: leave it out, format these "
                "rows before, or set completion_only_loss=False"
            )
        return
    text = given("dataset_text_field") or "text"
    if "prompt" in row and "completion" not in row:
        yield f"has prompts without a column 'completion' {columns}"
    elif not ("prompt" in row or text in row or is_conversational(row) or is_conversational_from_value(row)):
        yield (
            f"has no column that TRL could tokenise {columns}: it takes 'input_ids', 'messages', 'prompt' and "
            f"'completion', or {text!r} (dataset_text_field)"
        )


def _unprepared(row: Mapping, columns: str, data_collator) -> Iterator[str]:
    """What speaks against rows that TRL takes as they are, under `skip_prepare_dataset`."""
    if "input_ids" not in row:
        yield f"has no column 'input_ids' {columns}, and under skip_prepare_dataset TRL makes none"
    elif data_collator is None and "labels" not in row and any(name in row for name in _MASKS):
        yield f"has masks without 'labels' {columns}, so under skip_prepare_dataset every token would be trained on"
