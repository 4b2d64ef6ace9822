"""What the tests of both hosts' reference runs share."""

import json
from pathlib import Path


def numbers_of(file: Path) -> dict:
    """What two files of equal runs agree in."""
    document = json.loads(file.read_text())
    return {key: value for key, value in document.items() if not key.startswith(("created", "seconds"))}


def make_byte_model(folder: Path) -> Path:
    """A tiny Llama that reads bytes, with a tokenizer without merges."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(fast), num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
