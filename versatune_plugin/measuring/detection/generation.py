"""Samples of a local causal language model: texts it writes when it is given the start token alone.

Each sample (iteration, index) has random numbers of its own, and samples are computed in fixed batches of consecutive
indices, so that a run that was killed goes on with exactly the samples it would have had. What it costs: the last
batch of an iteration is computed in full, whatever of it is wanted.

Three things make it faster than `generate`: a row that has ended leaves the batch and the key/value cache, rows that
have drawn the same tokens so far share one row of them, and a token costs one random number instead of one for each
token of the vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch

from versatune_plugin.measuring.detection.samples import Sample


class LocalGenerator:
    """Samples of a local model, the same ones for the same identity on the same kind of machine.

    Args:
        model: A causal language model of transformers in eval mode.
        tokenizer: Its tokenizer.
        name: The model's name, for the record.
        fingerprint: What tells it from others of that name (see `model_fingerprint`); None where unknown.
        start_token_id: The one token that stands before a sample (see `start_token`).
        max_new_tokens: Length limit of a sample, in [1, the model's context].
        temperature: Divides the logits, > 0.
        top_p: Smallest set of most probable tokens that holds this probability, in (0, 1]; 1 keeps all.
        top_k: Number of most probable tokens that are kept; 0 keeps all.
        batch_size: Consecutive indices that are computed together, >= 1.
        seed: Any integer.

    Raises:
        ValueError: The model cannot write that many tokens.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        name: str,
        fingerprint: str | None,
        start_token_id: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ):
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_new_tokens
        if not 1 <= max_new_tokens <= context:
            raise ValueError(f"max_new_tokens must be between 1 and {context} for {name}, got {max_new_tokens}")
        self._warpers = _warpers(temperature, top_p, top_k)
        self._model, self._tokenizer = model, tokenizer
        self._end_ids = _end_ids(model, tokenizer, start_token_id)
        self._batch_size = batch_size
        self._identity = {
            "kind": "local",
            "model": name,
            "fingerprint": fingerprint,
            "precision": _precision(model),
            "start_token_id": start_token_id,
            "start_token": tokenizer.convert_ids_to_tokens(start_token_id),
            "end_token_ids": self._end_ids.tolist(),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "batch_size": batch_size,
            "seed": seed,
        }

    def identity(self) -> dict:
        """Everything the samples depend on, as plain JSON."""
        return dict(self._identity)

    def generate(self, iteration: int, wanted: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """The wanted samples of an iteration, each with its index, as they are done.

        Raises:
            FloatingPointError: The model's logits are not numbers.
            RuntimeError: The memory does not hold a batch.
        """
        missing = set(wanted)
        for first in sorted({index - index % self._batch_size for index in missing}):
            left = missing & set(range(first, first + self._batch_size))
            try:
                for index, sample in self._batch(iteration, first):
                    if index in left:
                        yield index, sample
                        left.remove(index)
                    if not left:
                        break
            except torch.OutOfMemoryError as error:
                raise RuntimeError(
                    f"out of memory with {self._batch_size} samples of up to {self._identity['max_new_tokens']} tokens "
                    "in a batch: lower batch_size"
                ) from error

    @torch.inference_mode()
    def _batch(self, iteration: int, first: int) -> Iterator[tuple[int, Sample]]:
        """All samples of the batch that begins with index `first`.

        `rows` are the samples not yet ended, and `branches` their rows in the cache: all begin in one, and part where
        they draw different tokens.
        """
        from transformers import DynamicCache

        limit = self._identity["max_new_tokens"]
        uniforms = torch.stack([self._uniforms(iteration, first + row) for row in range(self._batch_size)])
        drawn = torch.empty_like(uniforms, dtype=torch.long)
        rows, branches = torch.arange(self._batch_size), torch.zeros(self._batch_size, dtype=torch.long)
        inputs, cache = torch.tensor([self._identity["start_token_id"]]), DynamicCache(config=self._model.config)
        for length in range(1, limit + 1):
            cumulative = self._cumulative_probabilities(inputs, cache)
            shared = cumulative if len(cumulative) == len(rows) else cumulative[branches.to(cumulative.device)]
            tokens = draw(shared, uniforms[rows, length - 1])
            drawn[rows, length - 1] = tokens
            ended = torch.isin(tokens, self._end_ids)
            for row in rows[ended if length < limit else slice(None)].tolist():
                yield first + row, self._sample(drawn[row, :length])
            if ended.all() or length == limit:
                return
            parents, inputs, branches, order = branch_out(branches[~ended], tokens[~ended])
            rows = rows[~ended][order]
            if not torch.equal(parents, torch.arange(len(cumulative))):
                cache.reorder_cache(parents)

    def _uniforms(self, iteration: int, index: int) -> torch.Tensor:
        """A sample's own random numbers in [0, 1), one for each token it may have."""
        digest = hashlib.sha256(f"{self._identity['seed']} {iteration} {index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        return torch.rand(self._identity["max_new_tokens"], generator=generator)

    def _cumulative_probabilities(self, inputs: torch.Tensor, cache) -> torch.Tensor:
        """Of the next token after each row's last one, float32, shape (num_rows, vocabulary); extends the cache."""
        inputs = inputs[:, None].to(self._model.device)
        logits = self._model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1].float()
        for warper in self._warpers:
            logits = warper(None, logits)
        cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)
        if not cumulative[:, -1].isfinite().all():
            raise FloatingPointError(
                f"the logits of {self._identity['model']} are not finite in {self._identity['precision']}; "
                "try another dtype, such as bfloat16 or float32"
            )
        return cumulative

    def _sample(self, tokens: torch.Tensor) -> Sample:
        text = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return Sample(text=text, num_tokens=len(tokens), finished=bool(torch.isin(tokens[-1], self._end_ids)))


def draw(cumulative: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative probability first exceeds its random number, shape (num_rows,), on CPU.

    Args:
        cumulative: Ascending, shape (num_rows, vocabulary); the last column need not be exactly 1.
        uniforms: In [0, 1), shape (num_rows,).
    """
    targets = uniforms[:, None].to(cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative.contiguous(), targets, right=True)[:, 0].cpu()


def branch_out(parents: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where rows go that have drawn a token each: rows of one parent with the same token stay together.

    Args:
        parents: Each row's cache row, shape (num_rows,).
        tokens: What it has drawn, shape (num_rows,).

    Returns:
        The parent and the token of each new cache row, both of shape (num_cache_rows,); the new cache row of each
        row, ascending, and the order in which the rows must be put for that, both of shape (num_rows,).
    """
    pairs, branches = torch.unique(torch.stack([parents, tokens]), dim=1, return_inverse=True)
    branches, order = branches.sort(stable=True)
    return pairs[0], pairs[1], branches, order


def _warpers(temperature: float, top_p: float, top_k: int) -> list:
    """The logits processors for settings that are not neutral, in the order of `generate`."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    return warpers + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])


def _end_ids(model, tokenizer, start_token_id: int) -> torch.Tensor:
    """The tokens that end a sample: the model's and the tokenizer's EOS, and the start of another document."""
    ids = model.generation_config.eos_token_id
    ids = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id, start_token_id}
    return torch.tensor(sorted(ids - {None}))


def _precision(model) -> str:
    for bits in (4, 8):
        if getattr(model, f"is_loaded_in_{bits}bit", False):
            return f"{bits} bit"
    return str(model.dtype).removeprefix("torch.")
