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

    python -m venv odm && odm/bin/pip install fms-acceleration-odm fms-acceleration "pyarrow<22"
    python -m venv dataflex && pip install uv && uv pip install --python dataflex/bin/python dataflex
    python benchmarks/peers.py --base FOLDER --data FOLDER --output FOLDER \
        --peer-python odm=odm/bin/python dataflex=dataflex/bin/python

`pyarrow` is named since newer ones need a newer numpy than fms-acceleration takes; uv is used since pip tries all
releases of gradio for dataflex. An arm whose environment is missing is not run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BATCH, INTERVAL, LEARNING_RATE, PROBE_ROWS, SEED = 16, 10, 5e-4, 32, 0
SECONDS = 1800  # that a run may take
PACKAGES = ("torch", "transformers", "trl", "accelerate", "fms-acceleration-odm", "dataflex", "llamafactory")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
FRAMEWORK = "plugins: {{training: {{odm: {{odm: {{update_interval: {interval}, resume_from_checkpoint: false}}}}}}}}"

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


# --- inside an arm's process, which may know nothing of ours ---------------------------------------------------------


def train(run: dict) -> None:
    """One run of a Trainer; leaves model/ and result.json in its folder."""
    import torch
    from transformers import set_seed

    torch.set_num_threads(1)
    set_seed(SEED)
    folder = Path(run["folder"])
    trainer = (odm_trainer if run["kind"] == "odm" else own_trainer)(run)
    outcome = trainer.train()
    trainer.save_model(str(folder / "model"))
    (folder / "result.json").write_text(json.dumps({"seconds": outcome.metrics["train_runtime"]}))


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
        return Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    from trl import SFTConfig, SFTTrainer

    given = {"model": model, "processing_class": tokenizer, "train_dataset": rows}
    given["args"] = SFTConfig(**arguments(run), gradient_checkpointing=False, loss_type="nll")
    if run["kind"] == "trl":
        return SFTTrainer(**given)
    from versatune_plugin import VersaTuneSFTTrainer

    block = {"initial_proportions": "uniform", "update_interval": run["interval"]}
    block |= {"probe": {"rows_per_domain": PROBE_ROWS}, "reference_losses": run["references"]} | run["options"]
    return VersaTuneSFTTrainer(**given, eval_dataset=rows_of(run, "probe"), versatune=block)


def odm_trainer(run: dict):
    """As fms-acceleration-odm would have it: its framework's augmentation and callbacks around a Trainer."""
    from fms_acceleration.framework import AccelerationFramework
    from fms_acceleration_odm import OnlineMixingDataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    folder, (model, tokenizer), args = Path(run["folder"]), load(run), TrainingArguments(**arguments(run))
    configuration = folder / "framework.yaml"
    configuration.write_text(FRAMEWORK.format(interval=run["interval"]))
    framework = AccelerationFramework(str(configuration))
    model, _ = framework.augmentation(model, args, ())
    train, probe, collator = rows_of(run, "train"), rows_of(run, "probe"), DataCollatorForSeq2Seq(tokenizer)
    collators = dict.fromkeys(train, collator)
    dataset = OnlineMixingDataset(train, collators, probe, collators, output_dir=str(folder / "log"))
    given = {"model": model, "args": args, "train_dataset": dataset, "data_collator": collator}
    trainer = Trainer(**given, eval_dataset=probe)  # evaluation is turned on, so Trainer asks for rows
    for callback in framework.get_callbacks_and_ready_for_train(model, trainer.accelerator):
        trainer.add_callback(callback)
    return trainer


def arguments(run: dict) -> dict:
    """Training arguments that all Trainers share, by names of transformers 4 and 5."""
    given = {"output_dir": str(Path(run["folder"]) / "out"), "max_steps": run["steps"], "seed": SEED, "use_cpu": True}
    given |= {"per_device_train_batch_size": BATCH, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine"}
    given |= {"warmup_steps": max(1, run["steps"] // 20), "optim": "adamw_torch", "bf16": False}
    return given | {"save_strategy": "no", "logging_steps": run["interval"], "report_to": "none", "disable_tqdm": True}


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
    }[mixer]
    components = folder / "components.yaml"
    components.write_text(json.dumps({"mixers": {mixer: {"params": parameters}}}))
    settings = arguments(run) | {"stage": "sft", "do_train": True, "finetuning_type": "full", "template": "empty"}
    settings |= {"model_name_or_path": run["base"], "cutoff_len": 128, "disable_gradient_checkpointing": True}
    settings |= {"dataset": ",".join(domains), "dataset_dir": str(folder), "tokenized_path": str(snapshot)}
    settings |= {"train_type": "dynamic_mix", "components_cfg_file": str(components), "component_name": mixer}
    settings |= {"mixture_sample_rule": "mixture", "init_mixture_proportions": shares, "train_step": run["steps"]}
    settings |= {"warmup_step": run["interval"], "update_step": run["interval"]}
    (folder / "settings.yaml").write_text(json.dumps(settings, indent=1))
    return [str(Path(run["python"]).parent / "dataflex-cli"), "train", str(folder / "settings.yaml")]


def doremi_weights(output: Path) -> dict:
    """What doremi leaves for its last stage."""
    return json.loads((output / "dataflex-doremi" / "out" / "doremi_average_weights.json").read_text())


def dataflex_result(folder: Path) -> dict:
    """From the files of its run: seconds."""
    shutil.copytree(folder / "out", folder / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    seconds = json.loads((folder / "out" / "train_results.json").read_text())["train_runtime"]
    return {"seconds": seconds}


# --- arms ------------------------------------------------------------------------------------------------------------


def run_arm(name: str, common: dict) -> dict:
    """One run of an arm in a process of its own; what it leaves, or `failed`: why there is nothing."""
    kind, environment, options = ARMS[name]
    python, output, needed = common["pythons"].get(environment), Path(common["output"]), options.get("needs")
    if python is None:
        return {"failed": f"--peer-python {environment}=PYTHON is missing, or is no program"}
    if needed and not (output / slug(needed) / "model").exists():
        return {"failed": f"it needs what the arm {needed!r} leaves"}
    folder = output / slug(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = common | {"kind": kind, "options": options, "python": python, "folder": str(folder)}
    run["interval"] = options.get("interval", INTERVAL)
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
    return {"folder": folder, **result}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def measured(name: str, run: dict, laboratory) -> dict:
    """An arm as it stands in peers.json."""
    if "failed" in run:
        return {"name": name, "failed": run["failed"], "seconds": None}
    from transformers import AutoModelForCausalLM

    losses = laboratory.losses(AutoModelForCausalLM.from_pretrained(run["folder"] / "model"))
    return {"name": name, "seconds": run["seconds"], "losses": losses}


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(base: Path, data: Path, output: Path) -> tuple:
    """The laboratory of the base, and what all runs share; writes rows and base."""
    import datasets
    from laboratory import TINY, Laboratory

    datasets.disable_progress_bars()
    laboratory = Laboratory("peers", data, output, TINY, model=str(base))
    for split, sets in (("train", laboratory.train), ("probe", laboratory.probe)):
        for domain, rows in sets.items():
            rows = rows.to_list()[: PROBE_ROWS if split == "probe" else None]
            file = output / "rows" / split / f"{domain}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = base.parent / "base.json"  # of the laboratory
    references = json.loads(facts.read_text())["references"] if facts.exists() else "self"
    common = {"base": str(readable(base, output / "base")), "rows": str(output / "rows"), "output": str(output)}
    return laboratory, common | {"references": references, "domains": list(laboratory.train)}


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
    """Seconds, their ratio to the plain run of the same environment, and losses."""
    from tables import markdown, mean_of, number

    rows = []
    for arm in arms:
        losses = arm.get("losses") or dict.fromkeys(domains)
        mean = mean_of(losses) if "losses" in arm else None
        cells = [number(arm["seconds"], 1), number(arm.get("ratio"), 2), number(mean)]
        rows.append([arm["name"], *cells, *map(number, losses.values())])
    return markdown(["arm", "seconds", "ratio", "mean loss", *domains], rows)


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
    options = parser.parse_args()
    pythons, output = dict(pair.split("=", 1) for pair in options.peer_python), options.output.resolve()
    pythons = {name: shutil.which(path) for name, path in pythons.items()} | {None: sys.executable}
    laboratory, common = prepare(options.base.resolve(), options.data, output)
    settings = {"steps": options.steps, "batch": BATCH, "interval": INTERVAL, "learning_rate": LEARNING_RATE}
    settings |= {"probe_rows": PROBE_ROWS, "seed": SEED, "references": common["references"]}
    settings["versions"] = {name or "ours": versions(python) for name, python in pythons.items() if python}
    common |= {"pythons": pythons, "steps": options.steps}
    arms, of_plain = [], {}
    for name in options.arms:
        arm = measured(name, run_arm(name, common), laboratory)
        kind, environment, _ = ARMS[name]
        if kind == "plain":
            of_plain[environment] = arm["seconds"]
        if arm["seconds"] and of_plain.get(environment):
            arm["ratio"] = arm["seconds"] / of_plain[environment]
        arms.append(arm)
        print(arm, file=sys.stderr, flush=True)
        (output / "peers.json").write_text(json.dumps({"arms": arms, "settings": settings}, indent=1) + "\n")
    print(table(arms, common["domains"]))
    for arm in arms:
        if "failed" in arm:
            print(f"not run: {arm['name']}: {arm['failed']}")


if __name__ == "__main__":
    main()
