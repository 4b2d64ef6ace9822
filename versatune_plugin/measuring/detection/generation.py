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
from pathlib import Path

import torch

from versatune_plugin.measuring.detection.detect import Sample

END_OF_TEXT = "<|endoftext|>"
"""What GPT-2 and its successors, Qwen among them, put between two documents."""

SMALL_FILES = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
PIECE_BYTES = 64 * 1024
NUM_PIECES = 64


def load_causal_lm(
    name: str,
    *,
    dtype: torch.dtype | str,
    device: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
):
    """A causal language model in eval mode, and its tokenizer.

    Args:
        name: A folder or a hub name, with weights as safetensors.
        dtype: Of the weights, or of the computation where they are quantised; "auto" takes the saved one.
        device: Where to put it; default: the accelerator if there is one, else the CPU.
        load_in_4bit: Quantise with bitsandbytes, NF4 with double quantisation, as QLoRA does.
        load_in_8bit: Quantise with bitsandbytes to 8 bit.
        adapter: The folder of a PEFT adapter to apply, with weights as safetensors.
        revision: Branch, tag or commit of a hub name.
        trust_remote_code: Run model code that comes with the weights.
        attn_implementation: As in transformers; default: its choice.

    Raises:
        ValueError: Both quantisations are asked for, or the adapter folder is not one.
        OSError: There is no such model, or it has no safetensors.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if load_in_4bit and load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit exclude each other, got both")
    if adapter is not None:
        _check_adapter(Path(adapter))
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    device = device or _default_device()
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "use_safetensors": True}
    if load_in_4bit or load_in_8bit:
        options |= {"device_map": {"": device}, "quantization_config": _quantization(load_in_4bit, dtype)}
    model = AutoModelForCausalLM.from_pretrained(name, **options, **hub)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    if not (load_in_4bit or load_in_8bit):
        model.to(device)
    return model.eval(), tokenizer


def _default_device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _quantization(load_in_4bit: bool, dtype: torch.dtype | str):
    from transformers import BitsAndBytesConfig

    if not load_in_4bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute_dtype = None if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _check_adapter(folder: Path) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise ValueError(f"adapter: the folder {folder} has no {file}")


def start_token(tokenizer, given: str | int | None = None) -> tuple[int, str, str]:
    """The token that every sample starts from.

    Args:
        tokenizer: The model's.
        given: The user's choice, as a token of the vocabulary or its id; None to take the BOS token, or without one
            the token that stands between documents in pre-training.

    Returns:
        Its id; how it was chosen: "given", "bos", "end_of_text" or "eos"; and a sentence on it.

    Raises:
        ValueError: `given` is not one token of the vocabulary, or nothing is given and there is neither BOS nor EOS.
    """
    vocabulary = tokenizer.get_vocab()
    if given is not None:
        token_id, how, why = _given_token(tokenizer, vocabulary, given), "given", "as configured"
    elif tokenizer.bos_token_id is not None:
        token_id, how, why = tokenizer.bos_token_id, "bos", "the tokenizer's BOS token"
    elif END_OF_TEXT in vocabulary:
        why = "the tokenizer has no BOS token, and this one stands between documents in pre-training"
        token_id, how = vocabulary[END_OF_TEXT], "end_of_text"
    elif tokenizer.eos_token_id is not None:
        why = "the tokenizer has no BOS token, so its EOS token is taken"
        token_id, how = tokenizer.eos_token_id, "eos"
    else:
        raise ValueError("start_token: the tokenizer has neither a BOS nor an EOS token; name the token to start from")
    shown = tokenizer.convert_ids_to_tokens(token_id)
    return token_id, how, f"samples start from {shown!r} (id {token_id}): {why}"


def _given_token(tokenizer, vocabulary: dict[str, int], given: str | int) -> int:
    if isinstance(given, str):
        if given in vocabulary:
            return vocabulary[given]
        num_tokens = len(tokenizer.encode(given, add_special_tokens=False))
        raise ValueError(
            f"start_token must be one token of the vocabulary; {given!r} is not in it (it is {num_tokens} tokens long)"
        )
    if isinstance(given, bool) or not 0 <= given < len(tokenizer):
        raise ValueError(f"start_token must be an id between 0 and {len(tokenizer) - 1}, got {given!r}")
    return given


def model_fingerprint(name: str, revision: str | None = None) -> str | None:
    """What tells this model, or this adapter, from a re-trained one of the same name; no network.

    Of a folder: a digest of its config and tokenizer, and of each weight file's name, size and 64 pieces of 64 KiB
    spread evenly through it; some seconds for 150 GB. Of a hub name: the commit in the local cache, or None where
    it is not there.
    """
    folder = Path(name)
    if folder.is_dir():
        return f"content {_digest(folder)}"
    from huggingface_hub import try_to_load_from_cache

    for file in SMALL_FILES[:2]:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return f"commit {Path(cached).parent.name}"
    return None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        is_weights = file.suffix in WEIGHT_SUFFIXES
        if not is_weights and file.name not in SMALL_FILES:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        last = max(size - PIECE_BYTES, 0)
        read_all = not is_weights or size <= NUM_PIECES * PIECE_BYTES
        with file.open("rb") as opened:
            for piece in range(1 if read_all else NUM_PIECES):
                opened.seek(last * piece // (NUM_PIECES - 1))
                digest.update(opened.read(size if read_all else PIECE_BYTES))
    return digest.hexdigest()[:32]


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
        ValueError: A value is out of range.
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
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
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].cpu()


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

    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}")
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
