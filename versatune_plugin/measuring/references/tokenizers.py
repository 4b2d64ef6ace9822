"""Whether losses per token under two tokenizers can be compared."""

from collections.abc import Sequence


def tokenizer_difference(one, other, texts: Sequence[str]) -> str | None:
    """Why losses per token under two tokenizers cannot be compared; None where they are the same in fact.

    Args:
        one: A tokenizer with `get_vocab` and `encode`.
        other: Another one.
        texts: Real texts; both must encode them alike.
    """
    first, second = one.get_vocab(), other.get_vocab()
    if first != second:
        differing = sum(1 for token in first.keys() | second.keys() if first.get(token) != second.get(token))
        return f"their vocabularies ({len(first):,} and {len(second):,} tokens) differ in {differing:,} tokens"
    for text in texts:
        if one.encode(text, add_special_tokens=False) != other.encode(text, add_special_tokens=False):
            return f"they split {text[:60]!r} into other tokens"
    return None
