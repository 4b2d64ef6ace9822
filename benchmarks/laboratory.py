"""The known-truth laboratory: base models, rows, and one run of the product with what it did to every domain.

A base model is either a tiny Llama (2.6M parameters), pre-trained here on a known mixture of documents, or a local
model that is given. Everything is trained by `VersaTuneSFTTrainer`: the tiny bases (`strategy: manual`), the reference
losses (`reference:`), and the runs. The rows of each domain are split: one half of the train rows for the tokenizer
and the pre-training; the other for fine-tuning, but for some that the probes measure; the validation rows only to
measure what came out. `results.py` is the command.
"""

import hashlib
import json
import logging
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from detection import DOMAINS, END, MIXTURES, PAD, START, VOCABULARY, halves, total_variation, train_tokenizer
from filelock import FileLock
from plans import run_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed
from trl import SFTConfig

from versatune_plugin import VersaTuneSFTTrainer
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.measuring.detection.detect import detect
from versatune_plugin.measuring.detection.judges.classifier import ClassifierJudge

CANDIDATES = 4  # answers to choose from
CHECKPOINTS = 4  # measurements along a run, evenly, the last one at its end


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    prompt_tokens: int
    output_tokens: int
    steps: int
    batch: int
    interval: int
    learning_rate: float
    probe_rows: int
    test_rows: int
    questions: int
    reference_epochs: int
    reference_rows: int
    lora: bool = False


TINY = Scale(
    prompt_tokens=32,
    output_tokens=32,
    steps=100,
    batch=16,
    interval=10,
    learning_rate=5e-4,
    probe_rows=32,
    test_rows=80,
    questions=40,
    reference_epochs=3,
    reference_rows=640,
)
REAL = Scale(
    prompt_tokens=64,
    output_tokens=32,
    steps=32,
    batch=8,
    interval=8,
    learning_rate=2e-4,
    probe_rows=8,
    test_rows=32,
    questions=12,
    reference_epochs=2,
    reference_rows=48,
    lora=True,
)
GPU = replace(REAL, steps=200, batch=16, interval=20, probe_rows=32, test_rows=120, questions=60, reference_rows=400)
PRETRAINING = {"steps": 300, "batch": 32, "learning_rate": 3e-3}
DETECTION = {"num_samples": 1000, "iterations": 1, "max_new_tokens": 64}
SHORT_DETECTION = DETECTION | {"num_samples": 128}  # of a real model


def write_json(path: Path, document: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)


# --- rows ---------------------------------------------------------------------------------------------------


def read_rows(data: Path, domain: str, split: str) -> list[dict]:
    with (data / domain / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prompt_of(row: dict) -> str:
    return "\n\n".join(row[key] for key in ("instruction", "input") if row[key]) + "\n\n"


def tokenised(pairs: list[tuple[str, str]], tokenizer, scale: Scale) -> Dataset:
    """The end of each prompt and the beginning of its output; only the output has labels."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
    outputs = tokenizer([output for _, output in pairs], add_special_tokens=False)["input_ids"]
    rows = {"input_ids": [], "labels": []}
    for prompt, output in zip(prompts, outputs, strict=True):
        prompt = [*start, *prompt[-scale.prompt_tokens :]]
        output = [*output, tokenizer.eos_token_id][: scale.output_tokens]
        rows["input_ids"].append(prompt + output)
        rows["labels"].append([-100] * len(prompt) + output)
    return Dataset.from_dict(rows)


def questions(rows: list[dict], num_questions: int, seed: int, cut=lambda text: text) -> list[list[tuple[str, str]]]:
    """Of each question, the pairs of its prompt with an answer: the right one first, then wrong ones.

    Wrong are outputs of other rows, drawn from those whose lengths come nearest, so that length tells little; no two
    are the same after the `cut`, which is what a model will see of them.
    """
    rng, asked = random.Random(seed), []
    outputs = {cut(row["output"]): row["output"] for row in rows}
    for row in rng.sample(rows, len(rows)):
        right, seen = row["output"], cut(row["output"])
        others = [outputs[other] for other in sorted(outputs) if other != seen]
        others.sort(key=lambda output: abs(len(output) - len(right)))
        if len(others) < CANDIDATES - 1:
            continue
        wrong = rng.sample(others[: 4 * (CANDIDATES - 1)], CANDIDATES - 1)
        asked.append([(prompt_of(row), answer) for answer in (right, *wrong)])
    return asked[:num_questions]


@torch.no_grad()
def row_losses(model, rows: Dataset) -> np.ndarray:
    """Summed loss and number of target tokens of every row, shape (2, num_rows)."""
    was_training, rows = model.training, rows.to_list()
    model.eval()
    sums = np.zeros((2, len(rows)))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    for first in range(0, len(rows), 32):
        chosen = order[first : first + 32]
        width = max(len(rows[row]["input_ids"]) for row in chosen)
        ids = torch.tensor([rows[row]["input_ids"] + [0] * (width - len(rows[row]["input_ids"])) for row in chosen])
        labels = torch.tensor([rows[row]["labels"] + [-100] * (width - len(rows[row]["labels"])) for row in chosen])
        ids, labels = ids.to(model.device), labels.to(model.device)
        with torch.autocast(ids.device.type, torch.bfloat16):  # as the trainer's own forward passes
            logits = model(input_ids=ids).logits[:, :-1]  # pads come last: causal, so no mask
        row_ids, places = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        losses = cross_entropy(logits[row_ids, places].float(), labels[row_ids, places + 1], reduction="none")
        for value, target in zip((losses, torch.ones_like(losses)), sums, strict=True):
            target[chosen] = np.bincount(row_ids.cpu(), value.double().cpu(), minlength=len(chosen))
    model.train(was_training)
    return sums


# --- base models --------------------------------------------------------------------------------------------


class Laboratory:
    """One base model and its rows below `output / name`.

    Args:
        name: `tiny-0` or `tiny-1`, or what to call the given model.
        data: One folder per domain with train.jsonl and validation.jsonl.
        output: Where everything finished is kept.
        scale: Sizes of the runs.
        model: Folder or name of a real model; None for the tiny ones.
    """

    def __init__(self, name: str, data: Path, output: Path, scale: Scale, model: str | None = None) -> None:
        self.name, self.scale, self.folder = name, scale, output / name
        self._data, self._given = data, model
        self._detection = SHORT_DETECTION if model else DETECTION
        self.file = self.folder / "base.json"

    @property
    def model(self) -> str:
        """Where the base is."""
        return self._given or str(self.folder / "model")

    @cached_property
    def tokenizer(self):
        """The base's; the tiny ones' is trained on the rows that pre-train them."""
        if self._given:
            return AutoTokenizer.from_pretrained(self._given)
        folder = self.folder / "model"
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder)
        texts = [prompt_of(row) + row["output"] for first, _ in self._halves.values() for row in first]
        return train_tokenizer(texts)

    @cached_property
    def _halves(self) -> dict[str, tuple[list, list]]:
        return {domain: halves(read_rows(self._data, domain, "train"), domain) for domain in DOMAINS}

    @cached_property
    def _fine_tuning(self) -> dict[str, tuple[list, list]]:
        """Rows to train on, and rows for the probes."""
        second = {domain: rows for domain, (_, rows) in self._halves.items()}
        return {domain: (rows[:-64], rows[-64:]) for domain, rows in second.items()}

    def _tokenised(self, rows: list[dict]) -> Dataset:
        return tokenised([(prompt_of(row), row["output"]) for row in rows], self.tokenizer, self.scale)

    @cached_property
    def train(self) -> dict[str, Dataset]:
        """Rows to fine-tune on."""
        return {domain: self._tokenised(rows) for domain, (rows, _) in self._fine_tuning.items()}

    @cached_property
    def probe(self) -> dict[str, Dataset]:
        """Rows that the runs measure on their way."""
        return {domain: self._tokenised(rows) for domain, (_, rows) in self._fine_tuning.items()}

    @cached_property
    def test(self) -> dict[str, Dataset]:
        """Rows that no run sees."""
        rows = {domain: read_rows(self._data, domain, "validation") for domain in DOMAINS}
        return {domain: self._tokenised(rows[domain][: self.scale.test_rows]) for domain in DOMAINS}

    @cached_property
    def _questions(self) -> dict[str, Dataset]:
        asked = {
            domain: questions(read_rows(self._data, domain, "validation"), self.scale.questions, seed=0, cut=self._cut)
            for domain in DOMAINS
        }
        pairs = {domain: [pair for candidates in asked[domain] for pair in candidates] for domain in DOMAINS}
        return {domain: tokenised(pairs[domain], self.tokenizer, self.scale) for domain in DOMAINS}

    def _cut(self, output: str) -> tuple[int, ...]:
        ids = self.tokenizer.encode(output, add_special_tokens=False)
        return tuple(ids[: self.scale.output_tokens])

    def losses(self, model) -> dict[str, float]:
        """Nats per target token of the test rows."""
        sums = {domain: row_losses(model, rows) for domain, rows in self.test.items()}
        return {domain: float(loss.sum() / count.sum()) for domain, (loss, count) in sums.items()}

    def accuracy(self, model) -> dict[str, float]:
        """Share of the questions whose right answer is the likeliest per token among the candidates."""
        right = {}
        for domain, rows in self._questions.items():
            loss, count = row_losses(model, rows)
            chosen = (loss / count).reshape(-1, CANDIDATES).argmin(axis=1)
            right[domain] = float((chosen == 0).mean())
        return right

    def prepare(self) -> dict:
        """What is known about the base, made first where it is missing.

        Raises:
            ValueError: It was made with other settings than the runs would have now.
        """
        settings = asdict(self.scale) | {
            "pretraining": None if self._given else PRETRAINING,
            "detection": self._detection,
            "model": self._given,
            "data": self._digest(),
        }
        if self.file.exists():
            facts = json.loads(self.file.read_text())
            if facts["settings"] != settings:
                raise ValueError(
                    f"{self.file} was made with other settings: choose another output, or delete {self.folder}"
                )
            return facts
        mixture = None if self._given else dict(zip(DOMAINS, MIXTURES[int(self.name.rsplit("-", 1)[1])], strict=True))
        if mixture and not (self.folder / "model" / "model.safetensors").exists():
            self._timed("pretraining", lambda: self._pretrain(mixture))
        detected = self._timed("detection", self._detect)
        references = self._timed("references", lambda: self._references(self.scale.probe_rows))
        model = self._load()
        facts = {
            "name": self.name,
            "parameters": model.num_parameters(),
            "mixture": mixture,
            "detected": detected,
            "total_variation": mixture and total_variation(list(mixture.values()), list(detected.values())),
            "references": references,
            "rows": {domain: len(rows) for domain, rows in self.train.items()},
            "losses": self.losses(model),
            "accuracy": self.accuracy(model),
            "num_questions": {domain: len(rows) // CANDIDATES for domain, rows in self._questions.items()},
            "num_test_rows": {domain: len(rows) for domain, rows in self.test.items()},
            "seconds": self._seconds(),
            "settings": settings,
        }
        write_json(self.file, facts)
        return facts

    def _digest(self) -> str:
        """Of all rows."""
        digest = hashlib.sha256()
        for domain in DOMAINS:
            for split in ("train", "validation"):
                digest.update((self._data / domain / f"{split}.jsonl").read_bytes())
        return digest.hexdigest()[:12]

    def _seconds(self) -> dict[str, float]:
        file = self.folder / "seconds.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _timed(self, stage: str, work):
        """Does it, and keeps how long it took when it was done first."""
        began = time.perf_counter()
        result = work()
        write_json(self.folder / "seconds.json", {stage: time.perf_counter() - began} | self._seconds())
        return result

    def _load(self):
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype)
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    def _pretrain(self, mixture: dict[str, float]) -> None:
        """A tiny Llama from scratch on rows drawn by the mixture, cut as in the runs but all of them to be learned."""
        first = {domain: self._tokenised(rows)["input_ids"] for domain, (rows, _) in self._halves.items()}
        rows = {domain: Dataset.from_dict({"input_ids": ids, "labels": ids}) for domain, ids in first.items()}
        set_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=6,
                max_position_embeddings=1024,
                bos_token_id=START,
                eos_token_id=END,
                pad_token_id=PAD,
                tie_word_embeddings=True,
            )
        )
        trainer = self._trainer(
            {"strategy": "manual", "initial_proportions": mixture, "probe": {"rows_per_domain": 0}},
            self.folder / "pretraining",
            model,
            rows,
            max_steps=PRETRAINING["steps"],
            per_device_train_batch_size=PRETRAINING["batch"],
            learning_rate=PRETRAINING["learning_rate"],
            adam_beta2=0.95,
            weight_decay=0.05,
            warmup_steps=40,
        )
        trainer.train()
        trainer.save_model(str(self.folder / "model"))
        self.tokenizer.save_pretrained(self.folder / "model")

    def _detect(self) -> dict[str, float]:
        """What the product detects in texts of the base, judged by a classifier fitted on the rows to train on."""
        from versatune_plugin.files.fingerprints import model_fingerprint
        from versatune_plugin.measuring.detection.generation import LocalGenerator
        from versatune_plugin.measuring.detection.models import load_causal_lm

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = load_causal_lm(self.model, dtype="float32", device=device)
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        generator = LocalGenerator(
            model,
            tokenizer,
            name=self.name,
            fingerprint=model_fingerprint(self.model),
            start_token_id=start,
            max_new_tokens=self._detection["max_new_tokens"],
            seed=0,
        )
        texts = {d: [prompt_of(row) + row["output"] for row in rows] for d, (rows, _) in self._fine_tuning.items()}
        document = detect(
            generator,
            ClassifierJudge.fit(texts),
            num_samples=self._detection["num_samples"],
            iterations=self._detection["iterations"],
            folder=self.folder / "detection",
        )
        return {domain: float(document.proportions[domain]) for domain in DOMAINS}

    def _references(self, probe_rows: int) -> dict[str, float]:
        """Lowest loss, on the run's own probe rows, of the base fine-tuned on each domain alone."""
        file = self.folder / f"references-{probe_rows}.json"
        reference = {
            "model": self.model,
            "epochs": self.scale.reference_epochs,
            "samples_per_epoch": self.scale.reference_rows,
        }
        block = {
            "strategy": "versatune",
            "initial_proportions": "uniform",
            "reference": reference,
            "reference_losses": str(file),
            "update_interval": self.scale.interval,
            "probe": {"rows_per_domain": probe_rows},
        }
        with FileLock(f"{file}.lock"):  # runs beside this one may want them, too
            if not file.exists():
                self._trainer(block, self.folder / f"references-{probe_rows}", self.model, self.train)
        return json.loads(file.read_text())["reference_losses"]

    # --- one run --------------------------------------------------------------------------------------------

    def _trainer(self, block: dict, folder: Path, model, rows: dict[str, Dataset], **changes):
        set_seed(0)
        gpu, scale = torch.cuda.is_available(), self.scale
        arguments = {
            "output_dir": str(folder),
            "max_steps": scale.steps,
            "per_device_train_batch_size": scale.batch,
            "per_device_eval_batch_size": scale.batch,
            "learning_rate": scale.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": max(1, scale.steps // 20),
            "max_length": scale.prompt_tokens + scale.output_tokens + 1,
            "seed": 0,  # of the probe rows
            "use_cpu": not gpu,
            "bf16": True,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        if block.get("signal") == "train" or block["strategy"] == "odm":
            arguments["loss_type"] = "nll"  # TRL's default computes no logits
        if gpu:
            arguments["model_init_kwargs"] = {"dtype": "bfloat16"}
        adapter = {}
        if scale.lora:
            from peft import LoraConfig

            adapter = {"peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")}
        return VersaTuneSFTTrainer(
            model=model,
            args=SFTConfig(**arguments | changes),
            train_dataset=rows,
            eval_dataset=self.probe,
            processing_class=self.tokenizer,
            versatune=block,
            **adapter,
        )

    def run(self, name: str, block: dict, seed: int) -> None:
        """Fine-tune the base by a block with the rows in the order of the seed, and keep what came out."""
        asked, block = block, self._completed(block, self.prepare())
        file = run_file(self.folder, name, seed)
        trainer = self._trainer(block, file.with_suffix(""), self.model, self.train, data_seed=seed)
        trace = Trace(self, self.scale.steps // CHECKPOINTS)
        trainer.add_callback(trace)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began - trace.seconds
        history = read_history(history_path(trainer.args.output_dir))
        result = {
            "base": self.name,
            "name": name,
            "seed": seed,
            "asked": asked,
            "block": block,
            "losses": trace.measured[-1]["losses"],
            "accuracy": self.accuracy(trainer.model),
            "checkpoints": trace.measured,
            "drawn": _shares(history[-1].drawn_by_domain),
            "proportions": history[-1].proportions,
            "path": [[record.step, record.proportions] for record in history],
            "tests": [[record.test.left, record.test.right, record.expanded] for record in history if record.test],
            "seconds": seconds,
        }
        write_json(file, result)

    def _completed(self, block: dict, facts: dict) -> dict:
        """With the measured numbers in place of names, and the settings that all runs share."""
        probe = {"rows_per_domain": self.scale.probe_rows}
        block = {"update_interval": self.scale.interval, "probe": probe} | block
        if block.get("initial_proportions") == "detected":
            block["initial_proportions"] = _exactly_one(facts["detected"])
        rows = block["probe"]["rows_per_domain"]
        return {"reference_losses": self._references(rows or self.scale.probe_rows)} | block


class Trace(TrainerCallback):
    """Measures the test rows along a run."""

    def __init__(self, laboratory: Laboratory, interval: int) -> None:
        self._laboratory, self._interval = laboratory, interval
        self.measured, self.seconds = [], 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """At a checkpoint."""
        if state.global_step % self._interval == 0:
            began = time.perf_counter()
            self.measured.append({"step": state.global_step, "losses": self._laboratory.losses(model)})
            self.seconds += time.perf_counter() - began


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {domain: count / total for domain, count in counts.items()}


def _exactly_one(proportions: dict[str, float]) -> dict[str, float]:
    total = sum(proportions.values())
    return {domain: value / total for domain, value in proportions.items()}


def quiet() -> None:
    """Only warnings of the product and its hosts."""
    for name in ("versatune_plugin", "transformers", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
