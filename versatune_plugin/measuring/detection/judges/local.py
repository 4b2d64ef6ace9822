"""The local judge: an instruct model of transformers names the domain by the letter of an option.

The question is that of `judges.prompt`. Everything before the text is the same for all texts with the same order of
the options: its keys and values are computed once per order and expanded over each batch. The text is tokenised by
itself, without reading special tokens, so that nothing in it can act as one.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from versatune_plugin.measuring.detection.judges.prompt import (
    MIN_LETTER_MASS,
    PROMPT_VERSION,
    check_question,
    harmless,
    in_domain_order,
    letters,
    messages,
    rotations,
)

PLACE_OF_TEXT = "0b5f9c7e41d2"
"""Stands for the text while the chat template is rendered."""


@dataclass(frozen=True)
class Question:
    """A prompt around the text, as token ids."""

    before: list[int]
    after: list[int]


class LocalJudge:
    """Judges texts by the probability of each option's letter as the first token of the answer.

    Args:
        model: An instruct model of transformers in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        domains: Names, at most 26.
        descriptions: A line on some or all of the domains.
        name: The model's name, for the record.
        fingerprint: What tells it from others of that name (see `files.fingerprints`); None where unknown.
        batch_size: Questions per forward pass, >= 1.
        max_text_tokens: A text is cut to this many of the model's tokens, >= 1.
        orders: Questions per text, each with another first option, in [1, number of domains]; answers are averaged.

    Raises:
        ValueError: A value is out of range, the tokenizer has no usable chat template, a letter is no token of the
            vocabulary, or the model's context is too short.
    """

    def __init__(
        self,
        model,
        tokenizer,
        domains: Sequence[str],
        descriptions: Mapping[str, str],
        *,
        name: str,
        fingerprint: str | None = None,
        batch_size: int = 16,
        max_text_tokens: int = 512,
        orders: int = 1,
    ):
        self.domains = check_question(domains, descriptions, orders=orders, max_text_tokens=max_text_tokens)
        self._model, self._tokenizer, self._name, self._batch_size = model, tokenizer, name, batch_size
        self._max_text_tokens, self._orders = max_text_tokens, orders
        self._identity = {
            "kind": "local",
            "model": name,
            "fingerprint": fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompt_version": PROMPT_VERSION,
            "domains": list(self.domains),
            "descriptions": dict(descriptions),
            "max_text_tokens": max_text_tokens,
            "orders": orders,
        }
        self._letter_ids = letter_ids(tokenizer, len(self.domains))
        self._questions = [self._question(descriptions, rotation) for rotation in range(len(self.domains))]
        self._check_context()
        self._caches: dict = {}  # keys and values of what stands before the text, by rotation
        self._num_judged = self._num_cut = self._num_without_answer = 0

    def identity(self) -> dict:
        """Everything a judgement depends on, as plain JSON."""
        return dict(self._identity)

    def report(self) -> dict:
        """How many texts were judged so far, cut to the limit, and left without an answer."""
        return {
            "num_judged": self._num_judged,
            "num_cut": self._num_cut,
            "num_without_answer": self._num_without_answer,
            "min_letter_mass": MIN_LETTER_MASS,
        }

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Judge the texts (see `judges.Judge`).

        Raises:
            FloatingPointError: The model's logits are not numbers.
            RuntimeError: The memory does not hold a batch.
        """
        text_ids = [self._text_ids(text) for text in texts]
        sums = np.zeros((len(texts), len(self.domains)))
        num_open = np.full(len(texts), self._orders)
        for rotation, positions in self._batches(texts, text_ids):
            probabilities = self._answers(rotation, [text_ids[position] for position in positions])
            for position, row in zip(positions, in_domain_order(probabilities, rotation), strict=True):
                sums[position] += row / self._orders
                num_open[position] -= 1
                if not num_open[position]:
                    self._num_judged += 1
                    self._num_without_answer += int(np.isnan(sums[position]).any())
                    yield position, sums[position]

    def _question(self, descriptions: Mapping[str, str], rotation: int) -> Question:
        if not self._tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {self._name} has no chat template; a local judge must be a chat model")
        chat = messages(PLACE_OF_TEXT, self.domains, descriptions, rotation, max_text_tokens=len(PLACE_OF_TEXT))
        prompt = self._tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # models that think first are asked to answer at once
        )
        parts = prompt.split(PLACE_OF_TEXT)
        if len(parts) != 2:
            raise ValueError(
                f"the chat template of {self._name} must show the user's message once, "
                f"it shows it {len(parts) - 1} times"
            )
        return Question(*(self._tokenizer.encode(part, add_special_tokens=False) for part in parts))

    def _check_context(self) -> None:
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        num_tokens = max(len(question.before) + len(question.after) for question in self._questions)
        if context is not None and num_tokens + self._max_text_tokens > context:
            raise ValueError(
                f"max_text_tokens must be at most {context - num_tokens}: the question takes {num_tokens} of the "
                f"{context} tokens that {self._name} can read, got {self._max_text_tokens}"
            )

    def _text_ids(self, text: str) -> list[int]:
        """The text's tokens, none of them special, cut to the limit."""
        text = harmless(text, len(text.encode("utf-8", "replace")))
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        self._num_cut += len(ids) > self._max_text_tokens
        return ids[: self._max_text_tokens]

    def _batches(self, texts: Sequence[str], text_ids: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
        """(rotation, positions of texts) of each forward pass, the longest texts of a rotation first."""
        by_rotation: dict[int, list[int]] = {}
        for position, text in enumerate(texts):
            for rotation in rotations(text, len(self.domains), self._orders):
                by_rotation.setdefault(rotation, []).append(position)
        batches = []
        for rotation, positions in sorted(by_rotation.items()):
            positions.sort(key=lambda position: -len(text_ids[position]))
            batches += [
                (rotation, positions[start : start + self._batch_size])
                for start in range(0, len(positions), self._batch_size)
            ]
        return batches

    @torch.inference_mode()
    def _answers(self, rotation: int, text_ids: Sequence[list[int]]) -> np.ndarray:
        """Probability of each option as shown, shape (num_texts, num_domains); NaN where there was no answer.

        Rows are padded behind their end, which no token before it can see, so that they need no mask.
        """
        rows = [torch.tensor(ids + self._questions[rotation].after) for ids in text_ids]
        ends, place = torch.unique(torch.tensor([len(row) - 1 for row in rows]), return_inverse=True)
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        try:
            cache = copy.deepcopy(self._prefix(rotation))
            cache.batch_repeat_interleave(len(rows))
            logits = self._forward(inputs, past_key_values=cache, logits_to_keep=ends.to(self._model.device))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"out of memory with {len(rows)} questions of up to {inputs.shape[1]} tokens behind the shared ones: "
                "lower the judge's batch_size or max_text_tokens"
            ) from error
        logits = logits[torch.arange(len(rows)), place].double().cpu()
        if not logits.logsumexp(-1).isfinite().all():
            raise FloatingPointError(f"the logits of {self._name} are not finite in {self._identity['dtype']}")
        return option_probabilities(logits.softmax(-1), self._letter_ids)

    def _prefix(self, rotation: int):
        """Keys and values of what stands before the text."""
        from transformers import DynamicCache

        if rotation not in self._caches:
            cache = DynamicCache(config=self._model.config)
            self._forward(torch.tensor([self._questions[rotation].before]), past_key_values=cache, logits_to_keep=1)
            self._caches = {rotation: cache}  # batches come rotation by rotation
        return self._caches[rotation]

    def _forward(self, inputs: torch.Tensor, **kwargs) -> torch.Tensor:
        return self._model(input_ids=inputs.to(self._model.device), use_cache=True, **kwargs).logits


def letter_ids(tokenizer, num_domains: int) -> list[list[int]]:
    """The tokens that read as each option's letter, with or without blanks around it.

    Raises:
        ValueError: A letter is no token of the vocabulary.
    """
    ids: dict[str, list[int]] = {letter: [] for letter in letters(num_domains)}
    longest = 8  # characters of a token that may be a letter: "A", "ĠA", "▁A", "<0x41>"
    for token, token_id in tokenizer.get_vocab().items():
        if len(token) <= longest and (letter := tokenizer.decode([token_id]).strip()) in ids:
            ids[letter].append(token_id)
    missing = [letter for letter, found in ids.items() if not found]
    if missing:
        raise ValueError(f"the judge's tokenizer has no token for the letters {', '.join(missing)}")
    return list(ids.values())


def option_probabilities(probabilities: torch.Tensor, letter_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Each option's share of the letters' probability, float64, shape (num_rows, num_options).

    Args:
        probabilities: Of every token, shape (num_rows, vocabulary).
        letter_ids: The tokens of each option's letter.

    Returns:
        Rows that sum to 1, or NaN where the letters have less than `MIN_LETTER_MASS`.
    """
    options = np.stack([probabilities[:, list(ids)].sum(-1).numpy() for ids in letter_ids], axis=1)
    mass = options.sum(axis=1, keepdims=True)
    return np.where(mass >= MIN_LETTER_MASS, options / np.maximum(mass, MIN_LETTER_MASS), np.nan)
