"""A model of 1.1 billion parameters on one GPU: seconds per step with the plugin and without, and the probes' share.

One process of Axolotl, full fine-tuning in bf16 with flash attention where it is installed (else sdpa), rows packed and
padded. The model comes from a config with random weights, the rows are random tokens, so nothing is downloaded. As in
overhead.py both runs are alive at once and train in turns, so the GPU must hold two of them (some 24 GB); batches have
the same shape, the plugin measures nothing while it is timed, and the share of the probes is that of a run of its own.

    python benchmarks/gpu.py [--packing off on] [--turns 20] [--steps 5] [--attention sdpa] [--json FILE]

Without a GPU it says so and ends; --cpu runs it with a tiny model, to see that it works. Needs the tests' tiny
tokenizer, so run it from a checkout.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import torch
from overhead import compare, probe_share, table
from startup import SHARES, make_rows

ROOT = Path(__file__).resolve().parents[1]
MODELS = {  # as Llama 3.2 1B, with a smaller vocabulary and untied embeddings
    "gpu": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "cpu": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
PACKING = {"off": {"sample_packing": False}, "on": {"sample_packing": True, "eval_sample_packing": False}}


def make_workspace(folder: Path, model: dict, num_rows: int, longest: int) -> dict:
    """Model, tokenizer and rows in a folder; the paths of the rows by split and domain."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(ROOT))
    from tests.tiny import make_model

    make_model(folder / "model")  # for its tokenizer; the weights are replaced
    torch.manual_seed(0)
    config = LlamaConfig(**model, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        llama = LlamaForCausalLM(config).to(torch.bfloat16)
    print(f"{llama.num_parameters() / 1e9:.3f} billion parameters", flush=True)
    llama.save_pretrained(folder / "model")
    paths = {}
    for split, rows in (("train", num_rows), ("heldout", 40 * len(SHARES))):
        (folder / split).mkdir()
        paths[split] = make_rows(folder / split, rows, longest=longest, vocabulary=model["vocab_size"])
    return paths


def config_of(folder: Path, paths: dict, options) -> dict:
    """The Axolotl config of the run with the plugin."""
    on_gpu = not options.cpu
    entries = {
        split: [
            {"path": str(path), "ds_type": "parquet", "type": None, "split": "train", "domain": domain}
            for domain, path in of_split.items()
        ]
        for split, of_split in paths.items()
    }
    return {
        "base_model": str(folder / "model"),
        "plugins": ["versatune_plugin.VersaTunePlugin"],
        "datasets": entries["train"],
        "test_datasets": entries["heldout"],
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0,
        "sequence_len": options.sequence_len,
        "micro_batch_size": 4 if on_gpu else 2,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-5,
        "lr_scheduler": "cosine",
        "optimizer": "adamw_torch_fused" if on_gpu else "adamw_torch",
        "attn_implementation": options.attention,
        "bf16": on_gpu,
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "eval_strategy": "no",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 1 if on_gpu else 0,
        "dataloader_prefetch_factor": 2 if on_gpu else None,
        "seed": 7,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flash = "flash_attention_2" if importlib.util.find_spec("flash_attn") and torch.cuda.is_available() else "sdpa"
    parser.add_argument("--packing", nargs="+", choices=list(PACKING), default=list(PACKING))
    parser.add_argument("--turns", type=int, default=20, help="of each run, after a first one that is left out")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of a turn")
    parser.add_argument("--sequence-len", type=int, default=2048)
    parser.add_argument("--attention", default=flash, help=f"here: {flash}")
    parser.add_argument("--probe-steps", type=int, default=100, help="of the run that shows the share of the probes")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.cpu):
        print("no GPU here: nothing was measured (--cpu runs a tiny model)")
        return
    device = "CPU, tiny model" if options.cpu else torch.cuda.get_device_name()
    if options.cpu:
        options.sequence_len = min(options.sequence_len, 128)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = MODELS["cpu" if options.cpu else "gpu"]
        paths = make_workspace(folder, model, 600 if options.cpu else 20_000, longest=options.sequence_len // 2)
        config = config_of(folder, paths, options)
        results, shares = {}, {}
        for packing in options.packing:
            print(f"packing {packing}", flush=True)
            results[packing] = compare(config | PACKING[packing], folder, options.turns, options.steps)
            num_steps = options.probe_steps
            shares[packing] = probe_share(config | PACKING[packing], folder, num_steps, max(1, num_steps // 4))
    print(f"{device}, {options.attention}, sequences of {options.sequence_len} tokens")
    print(table(results))
    for packing, said in shares.items():
        print(f"probes of a run of {options.probe_steps} steps, packing {packing}, took {said}")
    if options.json:
        numbers = {"device": device, "attention": options.attention, "comparisons": results, "probes": shares}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
