"""Models that are sampled from or asked: how they are loaded, and the token that every sample starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from versatune_plugin.files.fingerprints import model_fingerprint
from versatune_plugin.measuring.detection.document import ModelDescription

if TYPE_CHECKING:
    import torch

END_OF_TEXT = "<|endoftext|>"
"""What GPT-2 and its successors, Qwen among them, put between two documents."""


@dataclass(frozen=True)
class SampledModel:
    """The model whose knowledge is measured, and how the user loads it."""

    name: str
    """Hub name or folder."""
    options: Mapping = field(default_factory=dict)
    """Keyword arguments of `load_causal_lm`."""
    loaded: tuple | None = None
    """Model and tokenizer, where they are loaded already."""

    def description(self) -> ModelDescription:
        """Name and fingerprint."""
        return ModelDescription(name=self.name, fingerprint=self.fingerprint())

    def load(self) -> tuple:
        """Model and tokenizer."""
        return self.loaded or load_causal_lm(self.name, **self.options)

    def load_tokenizer(self):
        """The tokenizer alone."""
        from transformers import AutoTokenizer

        if self.loaded:
            return self.loaded[1]
        hub = {key: self.options[key] for key in ("revision", "trust_remote_code") if key in self.options}
        return AutoTokenizer.from_pretrained(self.name, **hub)

    def fingerprint(self) -> str | None:
        """Changes with the weights; None where that cannot be told (a hub model that is not in the cache)."""
        named = {self.name: self.options.get("revision"), self.options.get("adapter"): None}
        parts = [model_fingerprint(name, revision) for name, revision in named.items() if name]
        known = [part for part in parts if part is not None]
        return "+".join(known) if known and len(known) == len(parts) else None


def load_causal_lm(
    name: str,
    *,
    dtype: "torch.dtype | str",
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
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _quantization(load_in_4bit: bool, dtype: "torch.dtype | str"):
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
