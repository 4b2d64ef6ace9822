"""A probe against `Trainer.evaluate` per domain on the same rows: python benchmarks/probe.py --data FOLDER --rows 32

FOLDER/<domain>/validation.jsonl holds rows with `instruction`, `input` and `output`, as the quick start's data does.
Both are done in turn in one process by a plain `transformers.Trainer` with the mixture. Prints the seconds of both in
every round, the median ratio, and per domain both losses, with the probe's standard error. What `evaluate` calls the
loss is the mean over rows of the means of their batches, so that a token among short answers counts for more.

Without a model at --model, a tiny one is built: good for nothing but to see that it runs.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from versatune_plugin.hosts.trainer import make_trainer_class
from versatune_plugin.signals import loss_errors

PROMPT = "### Instruction:\n{instruction}\n\n{input}\n\n### Response:\n"


def read_rows(folder: Path, tokenizer, num_rows: int, max_length: int) -> Dataset:
    """Some held-out rows of a domain, tokenised, with the prompt masked."""
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenised = []
    for row in random.Random(0).sample(rows, min(num_rows, len(rows))):
        prompt = tokenizer(PROMPT.format(**row))["input_ids"]
        tokens = (prompt + tokenizer(row["output"])["input_ids"] + [tokenizer.eos_token_id])[:max_length]
        labels = [-100] * min(len(prompt), max_length) + tokens[len(prompt) :]
        if any(label != -100 for label in labels):
            tokenised.append({"input_ids": tokens, "labels": labels})
    return Dataset.from_list(tokenised)


def make_trainer(model_folder: Path, rows: dict, tokenizer, options) -> Trainer:
    """A trainer whose probes are exactly these rows."""
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_eval_batch_size=options.batch,
        max_steps=100,
        report_to=[],
        disable_tqdm=True,
        bf16=options.bf16,
        bf16_full_eval=options.bf16,
    )
    trainer = make_trainer_class(Trainer)(
        model=AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=torch.bfloat16 if options.bf16 else torch.float32
        ),
        args=arguments,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
        versatune={"strategy": "uniform", "probe": {"rows_per_domain": options.rows}},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_wrapped.to(arguments.device)
    return trainer


def seconds(function) -> tuple[float, object]:
    """How long a call took, and what it returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("versatune-quickstart/data"))
    parser.add_argument("--model", type=Path, default=Path("versatune-quickstart/model"))
    parser.add_argument("--rows", type=int, default=32, help="per domain")
    parser.add_argument("--batch", type=int, default=8, help="per_device_eval_batch_size")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model_folder = options.model
    if not model_folder.exists():
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.tiny import make_model

        model_folder = make_model(Path(tempfile.mkdtemp()))
        options.max_length = min(options.max_length, 256)
        print(f"{options.model} does not exist: a tiny model instead")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    folders = sorted(folder for folder in options.data.iterdir() if folder.is_dir())
    rows = {folder.name: read_rows(folder, tokenizer, options.rows, options.max_length) for folder in folders}
    trainer = make_trainer(model_folder, rows, tokenizer, options)
    evaluate = lambda: {name: trainer.evaluate(part)["eval_loss"] for name, part in rows.items()}  # noqa: E731

    trainer.evaluate(next(iter(rows.values())).select([0]))  # the first pass is slow
    rounds = []
    for number in range(options.rounds):
        calls = [("probe", trainer.probe_losses), ("evaluate", evaluate)][:: (-1) ** number]
        results = {name: seconds(call) for name, call in calls}
        taken = {name: duration for name, (duration, _) in results.items()}
        rounds.append(taken | {"ratio": taken["probe"] / taken["evaluate"]})
        print("probe {probe:.2f} s, evaluate {evaluate:.2f} s, ratio {ratio:.3f}".format(**rounds[-1]), flush=True)
    losses, pieces, _ = results["probe"][1]
    print(f"{'domain':12} rows  probe loss            evaluate")
    for place, (name, part) in enumerate(rows.items()):
        error, evaluated = loss_errors(pieces)[place], results["evaluate"][1][name]
        print(f"{name:12} {len(part):4}  {losses[place]:.4f} +- {error:.4f}      {evaluated:.4f}")
    median = statistics.median(entry["ratio"] for entry in rounds)
    print(f"median ratio of {options.rounds} rounds: {median:.3f}")
    if options.json:
        options.json.write_text(json.dumps({"median_ratio": median, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
