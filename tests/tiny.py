"""A tiny real workspace: a Llama of some 100,000 parameters, its tokenizer, and three domains of alpaca rows."""

import json
from pathlib import Path

WORDS = {
    "law": ["court", "statute", "plaintiff", "appeal", "contract", "clause", "tort", "judge", "evidence", "liability"],
    "medicine": ["patient", "dose", "fever", "artery", "surgery", "vaccine", "symptom", "tissue", "nerve", "clinic"],
    "code": ["def", "return", "import", "lambda", "yield", "class", "assert", "raise", "print", "while"],
}
NUM_ROWS = {"law": 60, "medicine": 35, "code": 21}
NUM_HELDOUT = 12
DOMAINS = tuple(WORDS)


def make_rows(domain: str, num_rows: int, start: int = 0) -> list[dict]:
    """Alpaca rows whose answer repeats words of the question, of varying length."""
    words = WORDS[domain]
    rows = []
    for number in range(start, start + num_rows):
        some = [words[(number * 3 + place * 7) % len(words)] for place in range(3 + number % 5)]
        rows.append(
            {"instruction": f"Repeat {domain} {number}: {' '.join(some)}", "input": "", "output": " ".join(some)}
        )
    return rows


def make_model(folder: Path) -> Path:
    """A tiny Llama with a byte-level BPE tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [f"{row['instruction']} {row['output']}" for domain in DOMAINS for row in make_rows(domain, 60)]
    texts.append(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_workspace(folder: Path) -> Path:
    """`model/` and `data/<domain>/{train,validation}.jsonl` below the folder."""
    make_model(folder / "model")
    for domain in DOMAINS:
        write_jsonl(folder / "data" / domain / "train.jsonl", make_rows(domain, NUM_ROWS[domain]))
        write_jsonl(folder / "data" / domain / "validation.jsonl", make_rows(domain, NUM_HELDOUT, start=1000))
    return folder


def axolotl_config(workspace: Path, output_dir: Path, **changes) -> dict:
    """An Axolotl config over the workspace that trains on a CPU, with a `versatune:` block."""
    data = workspace / "data"
    entry = {"ds_type": "json", "type": "alpaca"}
    config = {
        "base_model": str(workspace / "model"),
        "plugins": ["versatune_plugin.VersaTunePlugin"],
        "datasets": [{"path": str(data / d / "train.jsonl"), **entry, "domain": d} for d in DOMAINS],
        "test_datasets": [
            {"path": str(data / d / "validation.jsonl"), **entry, "split": "train", "domain": d} for d in DOMAINS
        ],
        "dataset_prepared_path": str(workspace / "prepared"),
        "val_set_size": 0,
        "output_dir": str(output_dir),
        "sequence_len": 128,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 20,
        "num_epochs": 2,
        "learning_rate": 0.01,
        "lr_scheduler": "cosine",
        "optimizer": "adamw_torch",
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "save_steps": 5,
        "eval_strategy": "no",
        "logging_steps": 1,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "seed": 7,
        "versatune": {
            "strategy": "versatune",
            "initial_proportions": "uniform",
            "sigma": 1.0,
            "update_interval": 4,
            "reference_losses": {"law": 3.0, "medicine": 4.0, "code": 5.0},
            "probe": {"rows_per_domain": 8},
        },
    }
    return config | changes
