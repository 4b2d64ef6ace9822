"""Domains of which TRL's truncation would leave nothing, told before a model is loaded or measured.

TRL cuts rows at `max_length` and drops those without a target left: a prompt that is too long, or labels that are all
masked up to there. Rows are looked at up to the first that stays, so that this takes long only where it fails. What
masks chats (`assistant_only_loss`) is known to TRL's own template alone, so those are seen when it has prepared them.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig
from trl.data_utils import is_conversational


def check_lengths(
    train: Mapping, heldout: Mapping, model=None, args=None, *_, processing_class=None, formatting_func=None, **__
) -> None:
    """Report at once all domains that would have no row left.

    Args:
        train: Training rows per domain, as the user gave them; streams are passed over.
        heldout: Held-out rows per domain, likewise.
        model: Like all that follow, as the trainer is given it.
        args: The training arguments; None for TRL's own.
        processing_class: The tokenizer; None for the model's.
        formatting_func: What makes texts of rows.

    Raises:
        ValueError: With one line per domain.
    """

    def given(name: str):
        return getattr(args, name, getattr(SFTConfig, name, None))

    max_length = given("max_length")
    if max_length is None or given("truncation_mode") != "keep_start":
        return
    if (given("dataset_kwargs") or {}).get("skip_prepare_dataset"):
        return

    @cache
    def tokenizer() -> PreTrainedTokenizerBase | None:
        return processing_class or _tokenizer_of(model, bool(given("trust_remote_code")))

    def is_left(row: Mapping) -> bool:
        if "input_ids" in row:
            return any(_targets(row, given("completion_only_loss") is not False)[:max_length])
        is_chat = is_conversational(row)
        if formatting_func or given("completion_only_loss") is False or (is_chat and given("chat_template_path")):
            return True
        if not ("prompt" in row and "completion" in row and isinstance(tokenizer(), PreTrainedTokenizerBase)):
            return True
        return _num_prompt_tokens(tokenizer(), row, is_chat) < max_length

    parts = {"held-out": heldout} if given("packing") else {"training": train, "held-out": heldout}
    problems = [
        f"domain {domain!r}: nothing to train on is left of its {len(rows):,} {kind} rows"
        for kind, by_domain in parts.items()
        for domain, rows in by_domain.items()
        if _none_is_left(rows, is_left)
    ]
    if problems:
        raise ValueError(
            f"max_length {max_length} cuts these rows off before their first target (a prompt alone is as long): raise "
            "it, or shorten the prompts\n  " + "\n  ".join(problems)
        )


def _none_is_left(rows, is_left: Callable[[Mapping], bool]) -> bool:
    return isinstance(rows, Dataset) and len(rows) > 0 and not any(map(is_left, rows))


def _tokenizer_of(model, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """That of a model by name or as an object; None where it has none."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code) if name else None
    except (OSError, ValueError):  # the host says what is wrong with the name
        return None


def _targets(row: Mapping, of_completions: bool) -> list[bool]:
    """Which tokens of a tokenised row TRL trains on."""
    if "labels" in row:
        return [label != -100 for label in row["labels"]]
    names = [name for name in ("assistant_masks", *["completion_mask"] * of_completions) if name in row]
    return [all(masks) for masks in zip(*(row[name] for name in names), strict=True)] if names else [True]


def _num_prompt_tokens(tokenizer: PreTrainedTokenizerBase, row: Mapping, is_chat: bool) -> int:
    """Tokens of a row's prompt, as TRL makes them."""
    if not is_chat:
        return len(tokenizer(text=row["prompt"])["input_ids"])
    tools = row.get("tools")
    return len(
        tokenizer.apply_chat_template(
            row["prompt"],
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(row.get("chat_template_kwargs") or {}),
        )["input_ids"]
    )
