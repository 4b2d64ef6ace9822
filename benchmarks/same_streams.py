"""Do two checkouts train on the same rows, decide the same proportions, and end with the same weights?

Every setting is a real run of a tiny model on a CPU: {TRL, Axolotl} with loader workers, accumulation, several epochs
whose rows do not divide, packed rows, tokens as the unit, streams, two processes, several strategies, and resumes.
Compared bit for bit are the batches that reached the model by rank and step, all numbers of the history but seconds
and the settings that were given, and the final weights.

    python benchmarks/same_streams.py --before OLD_CHECKOUT --after NEW_CHECKOUT [--settings PART ...]

One line per setting; exit status 1 where anything differs. Some three minutes per checkout on one core. `--record FILE`
keeps what the first checkout did, and `--expect FILE` uses it in place of running `--before`. Only names that are
public in both checkouts are used: the trainer, the plugin, the keys of the block, and history.jsonl.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

THIS = Path(__file__).resolve()
WORDS = {
    "law": ["court", "statute", "plaintiff", "appeal", "contract", "clause", "tort", "judge", "evidence", "liability"],
    "medicine": ["patient", "dose", "fever", "artery", "surgery", "vaccine", "symptom", "tissue", "nerve", "clinic"],
    "code": ["def", "return", "import", "lambda", "yield", "class", "assert", "raise", "print", "while"],
}
NUM_ROWS = {"law": 61, "medicine": 35, "code": 22}
NUM_HELDOUT = 10
LEARNING = {
    "strategy": "versatune",
    "initial_proportions": "uniform",
    "sigma": 1.0,
    "update_interval": 3,
    "reference_losses": {"law": 2.0, "medicine": 3.5, "code": 4.0},
    "probe": {"rows_per_domain": 6},
}
EXPANSION = LEARNING | {"expansion": {"domain": "medicine", "delta": 0.1, "epsilon": 0.2}}
STARTED = LEARNING | {"expansion": {"domain": ["medicine", "code"], "start": 0.6, "forgetting_since": "start"}}
GUARDED = LEARNING | {"guards": {"floor": 0.1, "ceiling": {"law": 0.5}, "max_passes": 3, "max_change": 0.05}}
ODM = {"strategy": "odm", "signal": "train", "update_interval": 2, "odm": {"warm_up": 0.1}}
UNIFORM = {"strategy": "uniform", "update_interval": 4, "probe": {"rows_per_domain": 6}}
DMT = {"strategy": "dmt", "update_interval": 4, "stages": {"general": "code", "kappa": 0.25}}

# By name: the host, its own options, the block, and what is no option: ranks, streams, the step resumed from.
SETTINGS = {
    "TRL, 0 workers": ("trl", {}, LEARNING, {}),
    "TRL, 2 workers, accumulation 4": (
        "trl",
        {"dataloader_num_workers": 2, "gradient_accumulation_steps": 4},
        LEARNING,
        {},
    ),
    "TRL, 2.5 epochs, accumulation 4": (
        "trl",
        {"max_steps": -1, "num_train_epochs": 2.5, "gradient_accumulation_steps": 4},
        LEARNING | {"update_interval": 0.2},
        {},
    ),
    "TRL, packed, 3 epochs": ("trl", {"max_steps": -1, "num_train_epochs": 3, "packing": True}, LEARNING, {}),
    "TRL, target tokens": ("trl", {"dataloader_num_workers": 2}, LEARNING | {"unit": "target_tokens"}, {}),
    "TRL, streams": ("trl", {}, LEARNING, {"streams": True}),
    "TRL, 2 processes": ("trl", {}, LEARNING, {"ranks": 2}),
    "TRL, 2 processes, packed, resumed": ("trl", {"packing": True}, LEARNING, {"ranks": 2, "resumed": 6}),
    "TRL, expansion": ("trl", {}, EXPANSION, {}),
    "TRL, started high, resumed": ("trl", {"dataloader_num_workers": 2}, STARTED, {"resumed": 9}),
    "TRL, guards": ("trl", {}, GUARDED, {}),
    "TRL, odm": ("trl", {"loss_type": "nll"}, ODM, {}),
    "TRL, uniform": ("trl", {}, UNIFORM, {}),
    "Axolotl, 0 workers": ("axolotl", {"gradient_accumulation_steps": 1}, LEARNING, {}),
    "Axolotl, 2 workers, accumulation 4, resumed": (
        "axolotl",
        {"dataloader_num_workers": 2, "gradient_accumulation_steps": 4},
        LEARNING,
        {"resumed": 6},
    ),
    "Axolotl, 3 epochs, accumulation 4": (
        "axolotl",
        {"max_steps": None, "num_epochs": 3, "gradient_accumulation_steps": 4},
        LEARNING,
        {},
    ),
    "Axolotl, packed, 2 epochs, samples per epoch": (
        "axolotl",
        {"max_steps": None, "num_epochs": 2, "sample_packing": True, "eval_sample_packing": False},
        LEARNING | {"samples_per_epoch": 101},
        {},
    ),
    "Axolotl, tokens": ("axolotl", {}, LEARNING | {"unit": "tokens"}, {}),
    "Axolotl, streams": ("axolotl", {"streaming": True, "num_epochs": None}, LEARNING, {"streams": True}),
    "Axolotl, 2 processes": ("axolotl", {}, LEARNING, {"ranks": 2}),
    "Axolotl, expansion, guards": ("axolotl", {}, EXPANSION | {"guards": {"floor": 0.2}}, {}),
    "Axolotl, odm": ("axolotl", {}, ODM, {}),
    "Axolotl, dmt": ("axolotl", {"max_steps": None, "num_epochs": 2}, DMT, {}),
}
TIMEOUT = 120


class Recorded:
    """Before a trainer class: writes down every batch that reaches the model, and the weights in the end."""

    def train(self, *args, **kwargs):
        """Begin with a line that says null, end with the digest of the weights."""
        self._write(None)
        done = super().train(*args, **kwargs)
        state = sorted(self.model.state_dict().items())
        self._write(digest(*(part for name, tensor in state for part in (name.encode(), bytes_of(tensor)))))
        return done

    def training_step(self, model, inputs, *args, **kwargs):
        """Note the step and all that is in a micro-batch."""
        parts = sorted((name, tensor) for name, tensor in inputs.items() if hasattr(tensor, "dtype"))
        seen = digest(
            *(part for name, tensor in parts for part in (str((name, tensor.shape)).encode(), bytes_of(tensor)))
        )
        self._write([self.state.global_step, seen])
        return super().training_step(model, inputs, *args, **kwargs)

    def _write(self, line) -> None:
        with open(Path(self.args.output_dir) / f"stream-{self.args.process_index}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")


def digest(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def bytes_of(tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def __getattr__(name: str):
    """What an Axolotl YAML names of this file: classes over Axolotl's own, which is loaded only for them."""
    if name == "AxolotlRecorder":
        from axolotl.core.trainers import AxolotlTrainer

        return type(name, (Recorded, AxolotlTrainer), {})
    if name == "CpuRanks":
        from axolotl.integrations.base import BasePlugin

        return type(name, (BasePlugin,), {"load_datasets": _load_on_cpu})
    raise AttributeError(name)


def _load_on_cpu(self, cfg, preprocess=False) -> None:
    """Let several ranks load the model where there is no GPU."""
    if os.environ.get("WORLD_SIZE"):
        cfg.device_map = {"": "cpu"}


def sentences(domain: str, num_rows: int, start: int = 0) -> list[tuple[str, str]]:
    """A question and an answer per row, no two rows alike."""
    words = WORDS[domain]
    rows = []
    for number in range(start, start + num_rows):
        some = " ".join(words[(number * 3 + place * 7) % len(words)] for place in range(3 + number % 9))
        rows.append((f"Repeat {domain} {' '.join(str(number))} : {some}", some))
    return rows


def make_workspace(folder: Path) -> None:
    """A tiny Llama with a vocabulary of whole words, and the rows as JSON lines."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted(
        {
            *["Repeat", ":", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            *WORDS,
            *(word for some in WORDS.values() for word in some),
        }
    )
    ids = {word: number for number, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=128,
    )
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for domain in WORDS:
        for name, rows in {
            "train": sentences(domain, NUM_ROWS[domain]),
            "heldout": sentences(domain, NUM_HELDOUT, start=900),
        }.items():
            lines = [{"instruction": asked, "input": "", "output": answer} for asked, answer in rows]
            (folder / f"{domain}-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_trl(workspace: Path, folder: Path, options: dict, block: dict, resume: bool, streams: bool) -> None:
    """A run in TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from versatune_plugin import VersaTuneSFTTrainer

    def rows(domain: str, num_rows: int, start: int = 0):
        return Dataset.from_list(
            [{"text": f"{asked} {answer}"} for asked, answer in sentences(domain, num_rows, start)]
        )

    train = {domain: rows(domain, number) for domain, number in NUM_ROWS.items()}
    if streams:
        train = {domain: dataset.to_iterable_dataset(2) for domain, dataset in train.items()}
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 15,
        "save_steps": 3,
        "learning_rate": 0.01,
        "max_length": 48,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 5,
    }
    trainer = type("TRLRecorder", (Recorded, VersaTuneSFTTrainer), {})(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32),
        args=SFTConfig(**settings | options),
        processing_class=AutoTokenizer.from_pretrained(workspace / "model"),
        train_dataset=train,
        eval_dataset={domain: rows(domain, NUM_HELDOUT, start=900) for domain in NUM_ROWS},
        versatune=block,
    )
    trainer.train(resume_from_checkpoint=resume or None)


def train_axolotl(workspace: Path, folder: Path, options: dict, block: dict, resume: bool, streams: bool) -> None:
    """A run by `axolotl train`."""
    import yaml
    from axolotl.cli.main import main as axolotl

    def datasets(kind: str) -> list[dict]:
        entry = {"ds_type": "json", "type": "alpaca", "split": "train"}
        return [{"path": str(workspace / f"{domain}-{kind}.jsonl"), **entry, "domain": domain} for domain in WORDS]

    config = {
        "base_model": str(workspace / "model"),
        "plugins": ["same_streams.CpuRanks", "versatune_plugin.VersaTunePlugin"],
        "trainer_cls": "same_streams.AxolotlRecorder",
        "datasets": datasets("train"),
        "test_datasets": datasets("heldout"),
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0,
        "output_dir": str(folder),
        "sequence_len": 96,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 15,
        "num_epochs": 5,
        "learning_rate": 0.01,
        "lr_scheduler": "cosine",
        "optimizer": "adamw_torch",
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "save_steps": 3,
        "eval_strategy": "no",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "auto_resume_from_checkpoints": resume,
        "seed": 7,
        "versatune": block,
    }
    config = {key: value for key, value in (config | options).items() if value is not None}
    if streams:
        del config["dataloader_num_workers"]
    path = folder / f"config-{os.environ.get('RANK', 0)}.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    sys.argv = ["axolotl", "train", str(path), "--launcher", "python"]
    axolotl()


def outcome(name: str, workspace: Path, folder: Path) -> dict:
    """Run a setting, and what must be equal of it."""
    host, options, block, more = SETTINGS[name]
    ranks, resumed, streams = more.get("ranks", 1), more.get("resumed"), more.get("streams", False)
    folder.mkdir(parents=True)
    train = {"trl": train_trl, "axolotl": train_axolotl}[host]
    fork_ranks(ranks, folder, train, workspace, folder, options, block, False, streams)
    if resumed is not None:
        for checkpoint in folder.glob("checkpoint-*"):
            if int(checkpoint.name.rpartition("-")[2]) > resumed:
                shutil.rmtree(checkpoint)
        fork_ranks(ranks, folder, train, workspace, folder, options, block, True, streams)
    history = (folder / "versatune" / "history.jsonl").read_text().splitlines()
    lines = [path.read_text().splitlines() for path in sorted(folder.glob("stream-*.jsonl"))]
    assert len(lines) == ranks
    parsed = [[json.loads(line) for line in of_rank] for of_rank in lines]
    return {
        "stream": [[line for line in of_rank if not isinstance(line, str)] for of_rank in parsed],
        "history": [dict(numbers(json.loads(line))) for line in history],
        "weights": [[line for line in of_rank if isinstance(line, str)] for of_rank in parsed],
    }


def numbers(value, place: str = ""):
    """All numbers below a JSON value by their place, but for what took how long and the settings that were given."""
    if isinstance(value, dict):
        for key, below in value.items():
            if "seconds" not in key and key != "settings":
                yield from numbers(below, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from numbers(below, f"{place}[{index}]")
    elif isinstance(value, int | float):
        yield place, value


def fork_ranks(num_ranks: int, folder: Path, train, *arguments) -> None:
    """Train in processes forked from this one, which has loaded the libraries, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            if num_ranks > 1:
                given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
                given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in given.items()})
            log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(_status(train, *arguments))
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(statuses):
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("log-*.txt")))
        raise RuntimeError(f"exit statuses {statuses}\n{logs}")


def _status(train, *arguments) -> int:
    import signal

    signal.alarm(TIMEOUT)
    status = 0
    try:
        train(*arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def run_settings(names: str, folder: str, out: str) -> None:
    """Run settings in a process of its own, which has one checkout on its path, and write what was found.

    Args:
        names: The settings as a JSON list.
        folder: For the runs.
        out: The file for what was found.
    """
    import torch

    import versatune_plugin

    torch.set_num_threads(1)
    # a checkpoint of a CPU run of several processes is tagged "cpu:0", which torch does not know how to place
    torch.serialization.register_package(
        0, lambda _: None, lambda storage, where: storage if where.startswith("cpu") else None
    )
    for module in ("axolotl.cli.train", "axolotl.train", "axolotl.core.builders", "axolotl.utils.schemas.config"):
        importlib.import_module(module)
    versatune_plugin.VersaTuneSFTTrainer, versatune_plugin.VersaTunePlugin  # noqa: B018 - loads them
    make_workspace(Path(folder, "workspace"))
    gc.collect()
    gc.freeze()
    found = {}
    for number, name in enumerate(json.loads(names)):
        began = time.monotonic()
        try:
            found[name] = outcome(name, Path(folder, "workspace"), Path(folder, str(number)))
        except (RuntimeError, OSError) as error:
            found[name] = {"error": str(error)}
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    Path(out).write_text(json.dumps({"package": versatune_plugin.__file__, "found": found}))
    sys.stdout.flush()
    os._exit(0)  # the libraries have much to say when they are taken down


def results_of(checkout: Path, names: list[str]) -> dict:
    """What a checkout does under each setting."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        quiet = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        quiet |= {"HF_DATASETS_CACHE": f"{folder}/cache", "AXOLOTL_LOG_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
        cpu = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        path = {"PYTHONPATH": f"{checkout.resolve()}{os.pathsep}{THIS.parent}"}
        command = [sys.executable, "-c", "import sys, same_streams; same_streams.run_settings(*sys.argv[1:])"]
        command += [json.dumps(names), folder, str(out)]
        subprocess.run(command, env=os.environ | quiet | cpu | path, cwd=folder, check=True)
        given = json.loads(out.read_text())
    if not Path(given["package"]).is_relative_to(checkout.resolve()):
        raise SystemExit(f"{given['package']} was run, which is not of {checkout}")
    return given["found"]


def differences(before: dict, after: dict) -> list[str]:
    """Where two outcomes differ, a line for each of stream, history and weights."""
    for name, found in {"before": before, "after": after}.items():
        if "error" in found:
            return [f"{name} failed: {found['error']}"]
    told = []
    for rank, (one, other) in enumerate(zip(before["stream"], after["stream"], strict=False)):
        if one != other:
            places = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
            first = next(places, min(len(one), len(other)))
            told.append(f"stream of rank {rank}: line {first + 1} of {len(one)} and {len(other)}")
    if len(before["stream"]) != len(after["stream"]):
        told.append("number of ranks")
    if len(before["history"]) != len(after["history"]):
        told.append(f"history: {len(before['history'])} and {len(after['history'])} lines")
    for one, other in zip(before["history"], after["history"], strict=False):
        keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        if keys:
            few = ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys[:4])
            told.append(f"history at step {one.get('step')}: {len(keys)} number(s): {few}")
            break
    if before["weights"] != after["weights"]:
        told.append("final weights")
    return told


def compare(before: dict, after: dict) -> int:
    """Print a line per setting; how many differ."""
    width = max(map(len, after))
    print(f"{'setting':<{width}}  steps  batches  updates  result")
    num_bad = 0
    for name, found in after.items():
        told = differences(before[name], found)
        num_bad += bool(told)
        stream = found.get("stream", [[]])[0]
        steps = len({line[0] for line in stream if line})
        updates = len({str(sorted(line.items())) for line in found.get("history", [])})
        batches = sum(line is not None for line in stream)
        print(f"{name:<{width}}  {steps:>5}  {batches:>7}  {updates:>7}  {'equal' if not told else 'DIFFERS'}")
        for line in told:
            print(f"    {line}")
    print(f"{len(after) - num_bad} of {len(after)} settings equal: streams, histories and final weights")
    return num_bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--after", type=Path, metavar="CHECKOUT", help="left out: only --record")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep there what --before did")
    parser.add_argument("--expect", type=Path, metavar="FILE", help="what --record kept, instead of --before")
    parser.add_argument(
        "--settings", nargs="+", default=[""], metavar="PART", help="those whose name holds one of these"
    )
    options = parser.parse_args()
    if (options.before is None) == (options.expect is None):
        parser.error("give --before or --expect")
    names = [name for name in SETTINGS if any(part in name for part in options.settings)]
    before = results_of(options.before, names) if options.before else json.loads(options.expect.read_text())
    if options.record:
        options.record.write_text(json.dumps(before))
    failed = [f"{name}: {found['error']}" for name, found in before.items() if "error" in found]
    if failed:
        sys.exit("\n\n".join(failed))
    if options.after:
        sys.exit(compare(before, results_of(options.after, names)) > 0)


if __name__ == "__main__":
    main()
