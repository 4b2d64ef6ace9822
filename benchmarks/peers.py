"""Peers and ours side by side: the same base model, rows, steps and batches, each in its own way and environment.

Every arm trains the base for the same number of steps with batches of 16, AdamW and a cosine learning rate, on the same
token ids per domain; what came out is measured on the same test rows by the same code. Arms run one after another, each
in a process of its own with one thread; seconds are the `train_runtime` of its Hugging Face Trainer, without imports.

- plain: transformers' Trainer, and TRL's, on all rows shuffled; the former also in every peer's environment, so that
  seconds are compared within the same releases of torch and transformers (`ratio`); TRL, also under ours, computes
  `loss_type: nll`, as transformers does, since `odm` of ours needs the losses of the training rows;
- versatune: `VersaTuneSFTTrainer` with the strategies `uniform`, `odm`, and `versatune` from uniform;
- odm: fms-acceleration-odm, its AccelerationFramework around a Trainer with its OnlineMixingDataset, with updates as
  often as ours, and with its default, an update every step;
- dataflex: its command line (on LLaMA-Factory) with its mixers static, odm and doremi; the reference model of doremi is
  what static leaves, and "last stage" trains with the domain weights that doremi found.

Some arms are also run for a few steps with 2 dataloader workers, and again from a checkpoint of these steps; the notes
say which rows came, and how far the weights are from those of the same run without workers, and without a stop.

    python -m venv odm && odm/bin/pip install fms-acceleration-odm fms-acceleration "pyarrow<22"
    python -m venv dataflex && pip install uv && uv pip install --python dataflex/bin/python dataflex
    python benchmarks/peers.py --base FOLDER --data FOLDER --output FOLDER \
        --peer-python odm=odm/bin/python dataflex=dataflex/bin/python

`pyarrow` is named since newer ones need a newer numpy than fms-acceleration takes; uv is used since pip tries all
releases of gradio for dataflex. An arm whose environment is missing is noted as not run.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

BATCH, INTERVAL, LEARNING_RATE, PROBE_ROWS, SEED = 16, 10, 5e-4, 32, 0
CHECK_STEPS, CHECK_INTERVAL, CHECK_SAVE, REWARD_SCALE = 24, 3, 18, 5.0
SECONDS = 1800  # that a run may take
PACKAGES = ("torch", "transformers", "trl", "accelerate", "fms-acceleration-odm", "dataflex", "llamafactory")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
FRAMEWORK = "plugins: {{training: {{odm: {{odm: {{update_interval: {interval}, resume_from_checkpoint: {resume}}}}}}}}}"

ARMS = {  # name: (kind, environment, options)
    "plain Trainer": ("plain", None, {}),
    "plain SFTTrainer of TRL": ("trl", None, {}),
    "versatune: uniform": ("versatune", None, {"strategy": "uniform", "probe": {"rows_per_domain": 0}}),
    "versatune: odm": ("versatune", None, {"strategy": "odm"}),
    "versatune: odm, update every step": ("versatune", None, {"strategy": "odm", "update_interval": 1}),
    "versatune: versatune from uniform": ("versatune", None, {"strategy": "versatune"}),
    "plain Trainer, environment of odm": ("plain", "odm", {}),
    "odm": ("odm", "odm", {}),
    "odm, update every step": ("odm", "odm", {"interval": 1}),
    "plain Trainer, environment of dataflex": ("plain", "dataflex", {}),
    "dataflex: static": ("dataflex", "dataflex", {"mixer": "static"}),
    "dataflex: odm": ("dataflex", "dataflex", {"mixer": "odm"}),
    "dataflex: doremi": ("dataflex", "dataflex", {"mixer": "doremi", "needs": "dataflex: static"}),
    "dataflex: doremi, last stage": ("dataflex", "dataflex", {"mixer": "static", "needs": "dataflex: doremi"}),
}
CHECKED = ("plain Trainer", "versatune: odm, update every step", "versatune: versatune from uniform")
CHECKED += ("odm", "dataflex: odm", "dataflex: doremi")


# --- inside an arm's process, which may know nothing of ours ---------------------------------------------------------


def train(run: dict) -> None:
    """One run of a Trainer; leaves model/ and result.json in its folder."""
    import torch
    from transformers import set_seed

    torch.set_num_threads(1)
    set_seed(SEED)
    folder = Path(run["folder"])
    trainer = (odm_trainer if run["kind"] == "odm" else own_trainer)(run)
    trainer.seen = []
    outcome = trainer.train(resume_from_checkpoint=run["resume"])
    trainer.save_model(str(folder / "model"))
    result = {"seconds": outcome.metrics["train_runtime"], "seen": trainer.seen, "notes": getattr(trainer, "notes", [])}
    (folder / "result.json").write_text(json.dumps(result))


def own_trainer(run: dict):
    """Without a mixture, of transformers or of TRL; or with ours."""
    from datasets import concatenate_datasets
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = load(run)
    rows = rows_of(run, "train")
    if run["kind"] != "versatune":
        rows = concatenate_datasets(list(rows.values()))
    if run["kind"] == "plain":
        args, collator = TrainingArguments(**arguments(run)), DataCollatorForSeq2Seq(tokenizer)
        return recorded(Trainer)(model=model, args=args, train_dataset=rows, data_collator=collator)
    from trl import SFTConfig, SFTTrainer

    given = {"model": model, "processing_class": tokenizer, "train_dataset": rows}
    given["args"] = SFTConfig(**arguments(run), gradient_checkpointing=False, loss_type="nll")
    if run["kind"] == "trl":
        return recorded(SFTTrainer)(**given)
    from versatune_plugin import VersaTuneSFTTrainer

    block = {"initial_proportions": "uniform", "update_interval": run["interval"]}
    block |= {"probe": {"rows_per_domain": PROBE_ROWS}, "reference_losses": run["references"]} | run["options"]
    return recorded(VersaTuneSFTTrainer)(**given, eval_dataset=rows_of(run, "probe"), versatune=block)


def odm_trainer(run: dict):
    """As fms-acceleration-odm would have it: its framework's augmentation and callbacks around a Trainer."""
    from fms_acceleration.framework import AccelerationFramework
    from fms_acceleration_odm import OnlineMixingDataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    folder, (model, tokenizer), args = Path(run["folder"]), load(run), TrainingArguments(**arguments(run))
    configuration = folder / "framework.yaml"
    resume = json.dumps(run["resume"] or False)
    configuration.write_text(FRAMEWORK.format(interval=run["interval"], resume=resume))
    framework = AccelerationFramework(str(configuration))
    before = f"{args.eval_strategy.value} and {args.eval_steps}"
    model, _ = framework.augmentation(model, args, ())
    train, probe, collator = rows_of(run, "train"), rows_of(run, "probe"), DataCollatorForSeq2Seq(tokenizer)
    collators = dict.fromkeys(train, collator)
    dataset = OnlineMixingDataset(train, collators, probe, collators, output_dir=str(folder / "log"))
    given = {"model": model, "args": args, "train_dataset": dataset, "data_collator": collator}
    trainer = recorded(Trainer)(**given, eval_dataset=probe)  # evaluation is turned on, so Trainer asks for rows
    for callback in framework.get_callbacks_and_ready_for_train(model, trainer.accelerator):
        trainer.add_callback(callback)
    trainer.notes = [
        f"eval_strategy and eval_steps given: {before}; in the run: {args.eval_strategy}, {args.eval_steps}"
    ]
    return trainer


def recorded(kind: type) -> type:
    """A Trainer that keeps the ids of the rows of every step in `seen`."""

    def training_step(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        self.seen.append([row_id(ids[mask].tolist()) for ids, mask in rows])
        return kind.training_step(self, model, inputs, *args, **kwargs)

    return type(kind.__name__, (kind,), {"training_step": training_step})


def row_id(ids: list[int]) -> int:
    """What a row is known by, however it is padded."""
    return zlib.crc32(str(ids).encode())


def arguments(run: dict) -> dict:
    """Training arguments that all Trainers share, by names of transformers 4 and 5."""
    given = {"output_dir": str(Path(run["folder"]) / "out"), "max_steps": run["steps"], "seed": SEED, "use_cpu": True}
    given |= {"per_device_train_batch_size": BATCH, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine"}
    given |= {"warmup_steps": max(1, run["steps"] // 20), "optim": "adamw_torch", "bf16": False}
    given |= {"save_strategy": "steps" if run["save_steps"] else "no", "save_steps": run["save_steps"] or 500}
    given |= {"logging_steps": run["interval"], "report_to": "none", "disable_tqdm": True}
    return given | {"dataloader_num_workers": run["workers"]}


def load(run: dict) -> tuple:
    """Model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(run["base"]), AutoTokenizer.from_pretrained(run["base"])


def rows_of(run: dict, split: str) -> dict:
    """Rows per domain: input_ids and labels."""
    from datasets import Dataset

    texts = {domain: (Path(run["rows"]) / split / f"{domain}.jsonl").read_text() for domain in run["domains"]}
    return {domain: Dataset.from_list([json.loads(row) for row in text.splitlines()]) for domain, text in texts.items()}


# --- dataflex, by its command line -----------------------------------------------------------------------------------


def dataflex_command(run: dict) -> list[str]:
    """Write what it reads: a snapshot of tokenised rows, its components, and its settings; the command."""
    folder, output, domains = Path(run["folder"]), Path(run["output"]), run["domains"]
    snapshot, mixer, shares = folder / "snapshot", run["options"]["mixer"], [1 / len(domains)] * len(domains)
    for number, rows in enumerate(rows_of(run, "train").values()):
        rows = rows.add_column("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
        rows.save_to_disk(str(snapshot / "domains" / str(number)))
    signature = {"stage": "sft", "dataset": domains, "template": "empty", "cutoff_len": 128, "packing": False}
    signature |= {"format": "dataflex-domains-v1", "max_samples": None, "tokenizer": run["base"]}
    (snapshot / "dataflex_tokenized.json").write_text(json.dumps(signature | {"domains": domains, "eval": None}))
    (folder / "dataset_info.json").write_text(json.dumps({domain: {"file_name": "-"} for domain in domains}))
    if run["options"].get("needs") == "dataflex: doremi":
        shares = doremi_weights(output)["average_weights"]
    parameters = {
        "static": {"proportions": shares},
        "odm": {"warmup_steps": max(1, run["steps"] // 100), "initial_proportions": None},
        "doremi": {"reference_model_path": str(output / slug("dataflex: static") / "model")},
    }[mixer] | run["mixer"]
    components = folder / "components.yaml"
    components.write_text(json.dumps({"mixers": {mixer: {"params": parameters}}}))
    settings = arguments(run) | {"stage": "sft", "do_train": True, "finetuning_type": "full", "template": "empty"}
    settings |= {"model_name_or_path": run["base"], "cutoff_len": 128, "disable_gradient_checkpointing": True}
    settings |= {"dataset": ",".join(domains), "dataset_dir": str(folder), "tokenized_path": str(snapshot)}
    settings |= {"train_type": "dynamic_mix", "components_cfg_file": str(components), "component_name": mixer}
    settings |= {"mixture_sample_rule": "mixture", "init_mixture_proportions": shares, "train_step": run["steps"]}
    settings |= {"warmup_step": run["interval"], "update_step": run["interval"]}
    settings |= {"resume_from_checkpoint": run["resume"]} if run["resume"] else {}
    (folder / "settings.yaml").write_text(json.dumps(settings, indent=1))
    return [str(Path(run["python"]).parent / "dataflex-cli"), "train", str(folder / "settings.yaml")]


def doremi_weights(output: Path) -> dict:
    """What doremi leaves for its last stage."""
    return json.loads((output / "dataflex-doremi" / "out" / "doremi_average_weights.json").read_text())


def dataflex_result(folder: Path) -> dict:
    """From the files and the log of its run: seconds, and the plans of rows that it drew."""
    log = (folder / "log.txt").read_text()
    plans = re.findall(r"^INFO\S*\[Mixture\] plan \(name, prob, take, cap\): (\[.*\]); total", log, re.MULTILINE)
    plans = [{name: take for name, _, take, _ in ast.literal_eval(plan)} for plan in plans]
    shutil.copytree(folder / "out", folder / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    seconds = json.loads((folder / "out" / "train_results.json").read_text())["train_runtime"]
    return {"seconds": seconds, "plans": plans, "reward_scales": re.findall(r"reward_scale=([\d.]+)", log)}


# --- arms ------------------------------------------------------------------------------------------------------------


def run_arm(name: str, common: dict, label: str = "", **changes) -> dict:
    """One run of an arm in a process of its own; what it leaves, or `failed`: why there is nothing."""
    kind, environment, options = ARMS[name]
    python, output, needed = common["pythons"].get(environment), Path(common["output"]), options.get("needs")
    if python is None:
        return {"failed": f"--peer-python {environment}=PYTHON is missing, or is no program"}
    if needed and not (output / slug(needed) / "model").exists():
        return {"failed": f"it needs what the arm {needed!r} leaves"}
    folder = output / (slug(name) + label)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = {"workers": 0, "save_steps": 0, "resume": None, "mixer": {}, "interval": options.get("interval", INTERVAL)}
    run |= common | {"kind": kind, "options": options, "python": python, "folder": str(folder)} | changes
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    command = [python, str(Path(__file__).resolve()), "--run", str(folder / "run.json")]
    if kind == "dataflex":
        command = dataflex_command(run)
    with (folder / "log.txt").open("w") as log:
        try:
            subprocess.run(command, stdout=log, stderr=log, env=os.environ | QUIET, timeout=SECONDS, check=True)
        except subprocess.CalledProcessError as error:
            text = (folder / "log.txt").read_text()
            errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b(?:.*:\n)?.*", text, re.MULTILINE)
            return {"failed": " ".join(errors[-1].split()) if errors else str(error)}
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"failed": str(error)}
    result = dataflex_result(folder) if kind == "dataflex" else json.loads((folder / "result.json").read_text())
    return {"folder": folder, "domains": common["domains"], **result}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def weights_differ(first: Path, second: Path) -> float:
    """Largest difference of a weight between the models that two runs left in their folders."""
    from safetensors.torch import load_file

    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def odm_log(run: dict) -> list[str]:
    """What the log of fms-acceleration-odm says of updates and draws."""
    file = run["folder"] / "log" / "odm_rank_0.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    draws = [tuple(line["current_sampling_ratio"]) for line in lines if line["action"] == "sample"]
    numbers = f"{len(lines) - len(draws)} updates, {len(draws)} draws by {len(set(draws))} different proportions"
    if not lines:
        return []
    last = dict(zip(sorted(run["domains"]), lines[-1]["current_sampling_ratio"], strict=True))
    return [f"its log: {numbers}, the last ones {rounded(last)}; {file.stat().st_size} bytes"]


def rounded(shares: dict[str, float]) -> dict[str, float]:
    return {domain: round(share, 3) for domain, share in shares.items()}


def compared(what: str, run: dict, other: dict, first_step: int = 0) -> list[str]:
    """How a run differs from another, which it should repeat from a step on."""
    if "failed" in run:
        return [f"{what}: failed: {run['failed']}"]
    notes = [f"final weights differ by at most {weights_differ(run['folder'], other['folder']):.2g}"]
    if "seen" in run:
        seen, expected = ([sorted(step) for step in steps] for steps in (run["seen"], other["seen"][first_step:]))
        distinct, without = (len({row for step in steps for row in step}) for steps in (seen, expected))
        same = sum(one == another for one, another in zip(seen, expected, strict=False))
        notes.append(f"the same rows in {same} of {len(expected)} steps")
        notes.append(f"{distinct} different rows among {sum(map(len, seen))}, {without} in the other run")
    if "plans" in run:
        notes.append(f"first plan of rows {run['plans'][0]}, last one {run['plans'][-1]}")
        notes.append(f"last one of the other run {other['plans'][-1]}")
    return [f"{what}: {'; '.join(notes + odm_log(run))}"]


def check(name: str, common: dict) -> list[str]:
    """What 2 dataloader workers and a resume change in a run of a few steps."""
    few = {"steps": CHECK_STEPS, "interval": CHECK_INTERVAL, "save_steps": CHECK_SAVE}
    if name == "dataflex: odm":
        few["mixer"] = {"reward_scale": REWARD_SCALE}
    whole = run_arm(name, common, "-whole", **few)
    if "failed" in whole:
        return [f"{CHECK_STEPS} steps: failed: {whole['failed']}"]
    workers = run_arm(name, common, "-workers", **few, workers=2)
    checkpoint = whole["folder"] / "out" / f"checkpoint-{CHECK_SAVE}"
    resumed = run_arm(name, common, "-resumed", **few, resume=str(checkpoint))
    notes = compared("2 dataloader workers against none", workers, whole)
    notes += compared(f"resumed at step {CHECK_SAVE} of {CHECK_STEPS} against no stop", resumed, whole, CHECK_SAVE)
    if few.get("mixer"):
        notes.append(
            f"its option reward_scale: {REWARD_SCALE} given, {'/'.join(set(whole['reward_scales']))} in its log"
        )
    for run in (whole, workers, resumed):
        if "failed" not in run:  # else its log may be wanted
            shutil.rmtree(run["folder"])
    return notes


def notes_of(name: str, run: dict) -> list[str]:
    """What else was seen in an arm's whole run."""
    notes = run.get("notes", []) + odm_log(run)
    if ARMS[name][0] == "versatune":
        from versatune_plugin.files.history import history_path, read_history

        history = read_history(history_path(str(run["folder"] / "out")))
        notes.append(f"{len(history)} records, the last proportions {rounded(history[-1]['proportions'])}")
    if run.get("plans"):
        notes.append(f"first plan of rows {run['plans'][0]}, last one {run['plans'][-1]}")
    if name == "dataflex: doremi":
        weights, static = doremi_weights(run["folder"].parent), run["folder"].parent / slug("dataflex: static")
        found = dict(zip(weights["domain_names"], weights["average_weights"], strict=True))
        notes.append(f"its mean domain weights {rounded(found)}")
        notes.append(
            f"final weights differ from those of static by at most {weights_differ(run['folder'], static):.2g}"
        )
    return notes


def measured(name: str, run: dict, laboratory, domain_of: dict[int, str]) -> dict:
    """An arm as it stands in peers.json."""
    empty = {"name": name, "seconds": None, "ratio": None, "mean_loss": None, "losses": {}, "drawn": {}}
    if "failed" in run:
        return empty | {"notes": [f"not run: {run['failed']}"]}
    from transformers import AutoModelForCausalLM

    losses = laboratory.losses(AutoModelForCausalLM.from_pretrained(run["folder"] / "model"))
    drawn = Counter(domain_of[row] for step in run.get("seen", []) for row in step)
    for plan in run.get("plans", []):
        drawn.update(plan)
    found = {"seconds": run["seconds"], "mean_loss": sum(losses.values()) / len(losses), "losses": losses}
    return empty | found | {"drawn": {domain: drawn[domain] for domain in losses}, "notes": notes_of(name, run)}


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(base: Path, data: Path, output: Path) -> tuple:
    """The laboratory of the base, the domain of every row's id, and what all runs share; writes rows and base."""
    import datasets
    from laboratory import TINY, Laboratory

    datasets.disable_progress_bars()
    laboratory, domain_of = Laboratory("peers", data, output, TINY, model=str(base)), {}
    for split, sets in (("train", laboratory.train), ("probe", laboratory.probe)):
        for domain, rows in sets.items():
            rows = rows.to_list()[: PROBE_ROWS if split == "probe" else None]
            domain_of |= {row_id(row["input_ids"]): domain for row in rows}
            file = output / "rows" / split / f"{domain}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = base.parent / "base.json"  # of the laboratory
    references = json.loads(facts.read_text())["references"] if facts.exists() else "self"
    common = {"base": str(readable(base, output / "base")), "rows": str(output / "rows"), "output": str(output)}
    return laboratory, domain_of, common | {"references": references, "domains": list(laboratory.train)}


def readable(base: Path, copy: Path) -> Path:
    """A copy of the base that transformers 4 can read too, which has other names for some things."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for file in filter(Path.is_file, base.iterdir()):
        shutil.copy(file, copy)
    config = json.loads((copy / "config.json").read_text())
    if config.get("rope_parameters"):
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (copy / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))
    return copy


def versions(python: str) -> dict[str, str]:
    """Releases in an environment."""
    code = "import importlib.metadata as m, json, sys; have = {d.name.lower(): d.version for d in m.distributions()}; "
    code += "print(json.dumps({p: have[p] for p in sys.argv[1:] if p in have}))"
    finished = subprocess.run([python, "-c", code, *PACKAGES], capture_output=True, text=True)
    return json.loads(finished.stdout or "{}")


def table(arms: list[dict], domains: list[str]) -> str:
    """Markdown, with the notes below."""
    lines = [f"| arm | seconds | ratio | mean loss | {' | '.join(domains)} |", "|---" * (len(domains) + 4) + "|"]
    for arm in arms:
        numbers = {"seconds": 1, "ratio": 2, "mean_loss": 3}
        cells = [f"{arm[key]:.{digits}f}" if arm[key] else "-" for key, digits in numbers.items()]
        cells += [f"{arm['losses'][domain]:.3f}" if arm["losses"] else "-" for domain in domains]
        lines.append(f"| {arm['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {arm['name']}: {note}" for arm in arms for note in arm["notes"])])


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        train(json.loads(Path(sys.argv[2]).read_text()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of a causal LM with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="has DOMAIN/train.jsonl and DOMAIN/validation.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--peer-python", nargs="*", default=[], metavar="NAME=PATH", help="of odm, of dataflex")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--checks", action=argparse.BooleanOptionalAction, default=True, help="workers and resumes")
    options = parser.parse_args()
    pythons, output = dict(pair.split("=", 1) for pair in options.peer_python), options.output.resolve()
    pythons = {name: shutil.which(path) for name, path in pythons.items()} | {None: sys.executable}
    laboratory, domain_of, common = prepare(options.base.resolve(), options.data, output)
    settings = {"steps": options.steps, "batch": BATCH, "interval": INTERVAL, "learning_rate": LEARNING_RATE}
    settings |= {"probe_rows": PROBE_ROWS, "seed": SEED, "references": common["references"]}
    settings["versions"] = {name or "ours": versions(python) for name, python in pythons.items() if python}
    common |= {"pythons": pythons, "steps": options.steps}
    arms, of_plain = [], {}
    for name in options.arms:
        run = run_arm(name, common)
        arm = measured(name, run, laboratory, domain_of) | {"steps": options.steps}
        if options.checks and name in CHECKED and "failed" not in run:
            arm["notes"] += check(name, common)
        kind, environment, _ = ARMS[name]
        if kind == "plain":
            of_plain[environment] = arm["seconds"]
        if arm["seconds"] and of_plain.get(environment):
            arm["ratio"] = arm["seconds"] / of_plain[environment]
        arms.append(arm)
        print(table([arm], common["domains"]).splitlines()[2], file=sys.stderr, flush=True)
        (output / "peers.json").write_text(json.dumps({"arms": arms, "settings": settings}, indent=1) + "\n")
    print(table(arms, common["domains"]))


if __name__ == "__main__":
    main()
