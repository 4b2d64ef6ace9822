"""Expansion against constant shares: python benchmarks/expansion.py --data versatune-quickstart/data --output FOLDER

Pre-trains a tiny Llama (2.6M parameters) on six domains (half of the train rows), uses it to instructions of all of
them by a uniform mixture (so that there is something to forget), and fine-tunes it on the other half with medicine as
the target: 150 steps of 16 cut rows, cosine, 12 updates, probes of 32 rows per domain, every start uniform. Losses are
those of all validation rows. Along one run it also asks how often the test of the rule comes out otherwise on 32 rows
than on all. Everything finished is kept in FOLDER and not done again; 40 to 80 seconds per run on one busy core.

What it found (one base model; 1 order of the rows, 2 where marked *). share: the target's, of all rows drawn; kept:
of the target's gain (5.6 %) under `specific`; rise: mean relative rise of the other losses; less: than `specific`;
beyond: points of rise above constant shares that gain as much (interpolated); updates: raised / lowered / neither:

                                        share   kept   rise   less   beyond   updates
    specific *                           1.00    100   6.65      0
    specific, share 0.85                  .85     88   3.34     52
    specific, share 0.82 *                .82     86   2.80     58
    specific, share 0.7                   .70     76   2.00     71
    specific, share 0.62                  .62     68   1.47     79
    specific, share 0.5                   .50     52    .84     88
    uniform                               .17    -13    .02    100
    versatune (delta .05, epsilon .5)     .45     20    .40     94     -.04   12 /  0 / 0
    versatune, delta .05 remaining        .53     32    .72     90     +.14   12 /  0 / 0
    versatune, delta .1                   .61     40   1.11     84     +.42    9 /  0 / 3
    versatune, delta .1 remaining         .68     53   1.66     76     +.78    8 /  0 / 4
    start .7, epsilon .05                 .62     67   1.32     81     -.11    7 /  5 / 0
    start .85, epsilon .05 *              .83     85   2.64     60     -.06    6 /  4 / 2
    start .85, epsilon .05, margin 2      .86     87   3.34     52     +.22    6 /  2 / 4

Beside a constant share of .82, `start` .85 gained .0465 for a rise of 2.58 (constant: .0478 for 2.93) in one order of
the rows and .0487 for 2.69 (.0488 for 2.67) in the other: no evidence that the rule beats the share it ends up with.
What helps is a high share from the first step; a ramp gives the same number of rows late, and gains far less (share
.62 constant: 68 %; .61 by delta .1: 40 %). At epsilon .5 the test never failed, as under `increase_unconditional` (so
.05 became the default). Below, it fails in the first five updates (warm-up, high learning rate) and holds later.

The test along `specific, share 0.7` by margin 0 / 1 / 2: share of updates at which it fails on 32 rows (500 draws of
them), beside that on all rows; how often it fails where it holds on all rows; and where it fails on all:

    epsilon    all    on 32 rows         wrongly fails      rightly fails
    .5         .00    .00 / .00 / .00    .00 / .00 / .00
    .1         .25    .23 / .15 / .03    .02 / .00 / .00    .86 / .61 / .13
    .05        .42    .41 / .26 / .15    .05 / .00 / .00    .91 / .62 / .37
    .02        .58    .60 / .43 / .29    .16 / .02 / .00    .92 / .72 / .49
    .01        .58    .69 / .51 / .35    .30 / .07 / .01    .97 / .82 / .60

Not run to the end: versatune with epsilon .05, the two increase_ strategies, other models, targets and starts.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from detection import DOMAINS, END, MIXTURES, START, halves, pretrain, read_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig

from versatune_plugin import VersaTuneSFTTrainer
from versatune_plugin.history import history_path, read_history
from versatune_plugin.signals import forgetting_degree, learnable_potential, relative_change_error
from versatune_plugin.strategies.expansion import expansion_test

TARGET = "medicine"
STEPS, BATCH, INTERVAL, PROBE_ROWS = 150, 16, 12, 32
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 48
BASE_STEPS, BASE_RATE = 300, 1e-3
REFERENCE = {"epochs": 2, "samples_per_epoch": 480}
TRACED = "specific, share 0.7"
NUM_RESAMPLES = 500
EPSILONS, MARGINS = (0.5, 0.1, 0.05, 0.02, 0.01), (0, 1, 2)


def blocks() -> dict[str, dict]:
    """The `versatune:` block of each run by name, the most telling ones first."""
    runs = {"specific": _block("specific"), "uniform": {"strategy": "uniform"}}
    runs |= {f"specific, share {share}": _block("specific", share=share) for share in (0.85, 0.7)}
    runs |= {"versatune": _block("versatune", epsilon=0.5)}
    runs |= {_name(start, 0.05): _started(start, 0.05) for start in (0.85, 0.7)}
    runs |= {f"specific, share {share}": _block("specific", share=share) for share in (0.5, 0.82, 0.62)}
    runs |= {
        "versatune, delta 0.1 remaining": _block("versatune", epsilon=0.5, delta=0.1, delta_schedule="remaining"),
        _name(0.85, 0.05, 2): _started(0.85, 0.05, 2),
        "versatune, epsilon 0.05": _block("versatune", epsilon=0.05),
        "versatune, delta 0.1": _block("versatune", epsilon=0.5, delta=0.1),
        "versatune, delta 0.05 remaining": _block("versatune", epsilon=0.5, delta_schedule="remaining"),
        "increase_unconditional": _block("increase_unconditional"),
        "increase_uniform": _block("increase_uniform"),
    }
    return runs


def _block(strategy: str, **expansion) -> dict:
    return {"strategy": strategy, "initial_proportions": "uniform", "expansion": {"domain": TARGET, **expansion}}


def _started(start: float, epsilon: float, margin: int = 0) -> dict:
    more = {"margin": float(margin)} if margin else {}
    return _block("versatune", start=start, epsilon=epsilon, ceiling=0.9, **more)


def _name(start: float, epsilon: float, margin: int = 0) -> str:
    return f"start {start}, epsilon {epsilon}" + (f", margin {margin}" if margin else "")


# --- rows ---------------------------------------------------------------------------------------------------


def read_rows(data: Path, domain: str, split: str) -> list[dict]:
    with (data / domain / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tokenised(rows: list[dict], tokenizer) -> Dataset:
    """The end of each prompt and the beginning of its output; only the output has labels."""
    prompts = ["\n\n".join(row[key] for key in ("instruction", "input") if row[key]) + "\n\n" for row in rows]
    prompts = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    outputs = tokenizer([row["output"] for row in rows], add_special_tokens=False)["input_ids"]
    pairs = [
        ([START, *prompt[-PROMPT_TOKENS:]], [*output[:OUTPUT_TOKENS], *([END] if len(output) <= OUTPUT_TOKENS else [])])
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    return Dataset.from_dict(
        {
            "input_ids": [prompt + output for prompt, output in pairs],
            "labels": [[-100] * len(prompt) + output for prompt, output in pairs],
        }
    )


@torch.no_grad()
def row_losses(model, heldout: dict[str, Dataset]) -> dict[str, np.ndarray]:
    """Per domain, summed loss and number of target tokens of every held-out row, shape (2, num_rows)."""
    was_training = model.training
    model.eval()
    measured = {}
    for domain, dataset in heldout.items():
        rows, sums = dataset.to_list(), np.zeros((2, len(dataset)))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
        for first in range(0, len(rows), 32):
            chosen = order[first : first + 32]
            width = max(len(rows[row]["input_ids"]) for row in chosen)
            ids = torch.tensor([rows[row]["input_ids"] + [0] * (width - len(rows[row]["input_ids"])) for row in chosen])
            labels = torch.tensor([rows[row]["labels"] + [-100] * (width - len(rows[row]["labels"])) for row in chosen])
            logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)  # pads come last: causal, so no mask
            losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:], ignore_index=-100, reduction="none")
            sums[:, chosen] = torch.stack([losses.sum(1), (labels[:, 1:] != -100).sum(1)]).double().numpy()
        measured[domain] = sums
    model.train(was_training)
    return measured


def totals(measured: dict[str, np.ndarray]) -> dict[str, float]:
    return {domain: float(sums[0].sum() / sums[1].sum()) for domain, sums in measured.items()}


# --- runs ---------------------------------------------------------------------------------------------------


class Trace(TrainerCallback):
    """Keeps the loss of every held-out row at every update."""

    def __init__(self, heldout: dict[str, Dataset]) -> None:
        self._heldout, self.measured = heldout, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """The base model."""
        self.measured.append(row_losses(model, self._heldout))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """At an update."""
        if state.global_step % INTERVAL == 0:
            self.measured.append(row_losses(model, self._heldout))

    def save(self, path: Path) -> None:
        """One array per domain, shape (num_measurements, 2, num_rows)."""
        np.savez(path, **{domain: np.stack([rows[domain] for rows in self.measured]) for domain in self._heldout})


class Lab:
    """The base model, the rows, and what is trained and measured with them."""

    def __init__(self, data: Path, output: Path, learning_rate: float, tokens: int) -> None:
        self._output, self._learning_rate = output, learning_rate
        pretrained, self._base = output / "pretrained", output / "base"
        if not (pretrained / "truth.json").exists():
            texts = {domain: halves(read_texts(data, domain, "train"), domain)[0] for domain in DOMAINS}
            pretrain(pretrained, texts, MIXTURES[0], tokens, seed=0)
        self._tokenizer = AutoTokenizer.from_pretrained(pretrained)
        parts = {domain: halves(read_rows(data, domain, "train"), domain) for domain in DOMAINS}
        first, self._train = (
            {domain: tokenised(rows[half], self._tokenizer) for domain, rows in parts.items()} for half in (0, 1)
        )
        validation = {domain: read_rows(data, domain, "validation") for domain in DOMAINS}
        self._heldout = {domain: tokenised(rows, self._tokenizer) for domain, rows in validation.items()}
        if not (self._base / "model.safetensors").exists():
            self._tune(pretrained, first)
        base = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32)
        self.base = totals(row_losses(base, self._heldout))

    def _tune(self, pretrained: Path, rows: dict[str, Dataset]) -> None:
        """The base of all runs: the pre-trained model, used to the form of the rows by a uniform mixture."""
        changes = {"max_steps": BASE_STEPS, "learning_rate": BASE_RATE}
        trainer = self._trainer({"strategy": "uniform"}, "base", pretrained, rows, probe_rows=0, **changes)
        trainer.train()
        trainer.save_model(str(self._base))

    def reference_losses(self) -> dict[str, float]:
        """Lowest loss of the base fine-tuned on each domain alone, by the product, on the run's probe rows."""
        file = self._output / "references.json"
        if not file.exists():
            reference = {"model": str(self._base), **REFERENCE}
            block = _block("versatune") | {"reference": reference, "reference_losses": str(file)}
            self._trainer(block, "references", self._base, self._train, PROBE_ROWS)
        return json.loads(file.read_text())["reference_losses"]

    def _trainer(self, block: dict, name: str, model: Path, rows: dict, probe_rows: int, **changes):
        set_seed(0)
        arguments = {
            "output_dir": str(self._output / "runs" / name),
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": BATCH,
            "learning_rate": self._learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 8,
            "max_length": PROMPT_TOKENS + OUTPUT_TOKENS + 2,
            "seed": 0,  # of the probe rows
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        trainer = VersaTuneSFTTrainer(
            model=str(model),
            args=SFTConfig(**arguments | changes),
            train_dataset=rows,
            eval_dataset=self._heldout,
            processing_class=self._tokenizer,
            versatune=block | {"update_interval": INTERVAL, "probe": {"rows_per_domain": probe_rows}},
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def run(self, name: str, block: dict, references: dict, seed: int, trace: Path | None = None) -> dict:
        """A run's held-out losses and what its history tells."""
        began = time.perf_counter()
        block = block | {"reference_losses": references}
        folder = f"{name.replace(', ', '-').replace(' ', '_')}/{seed}"
        constant = block["strategy"] == "uniform" or "share" in block["expansion"]
        probe_rows = 0 if constant else PROBE_ROWS
        trainer = self._trainer(block, folder, self._base, self._train, probe_rows, data_seed=seed)
        traced = Trace(self._heldout)
        if trace:
            trainer.add_callback(traced)
        trainer.train()
        if trace:
            traced.save(trace)
        losses = totals(row_losses(trainer.model, self._heldout))
        return {
            "name": name,
            "seed": seed,
            **self._changes(losses),
            **told(read_history(history_path(trainer.args.output_dir))),
            "losses": losses,
            "base": self.base,
            "seconds": time.perf_counter() - began,
        }

    def _changes(self, losses: dict[str, float]) -> dict[str, float]:
        """The target's relative loss reduction, and what the others pay, relative to the base."""
        changes = {domain: losses[domain] / self.base[domain] - 1 for domain in DOMAINS}
        others = np.array([change for domain, change in changes.items() if domain != TARGET])
        return {
            "gain": -changes[TARGET],
            "rise": float(np.maximum(others, 0).mean()),
            "change": float(others.mean()),
        }


def told(history: list[dict]) -> dict:
    """The target's share and lowest loss, and how often which branch was taken."""
    notes = [record["note"] or "" for record in history]
    measured = [record["losses"][TARGET] for record in history if record["losses"]]
    return {
        "share": history[-1]["drawn_by_domain"][TARGET] / history[-1]["num_drawn"],
        "last_share": history[-1]["proportions"][TARGET],
        "raised": sum(f"{TARGET} raised" in note for note in notes),
        "lowered": sum(f"{TARGET} lowered" in note for note in notes),
        "else": sum("not raised" in note or "at its ceiling" in note for note in notes),
        "lowest": min(measured, default=None),
    }


# --- what came out ------------------------------------------------------------------------------------------


def compared(results: list[dict]) -> list[dict]:
    """Every run beside `specific` of its seed: gain kept, degradation avoided, and its distance to constant shares."""
    rows = []
    for result in results:
        seed = [other for other in results if other["seed"] == result["seed"]]
        whole = next(other for other in seed if other["name"] == "specific")
        constant = [other for other in seed if other["name"] == "uniform" or other["name"].startswith("specific")]
        frontier = sorted((other["gain"], other["rise"], other["change"]) for other in constant)
        gains, rises, changes = zip(*frontier, strict=True)
        rows.append(
            result
            | {
                "kept": result["gain"] / whole["gain"],
                "less": 1 - result["rise"] / whole["rise"],
                "rise_beyond": result["rise"] - float(np.interp(result["gain"], gains, rises)),
                "change_beyond": result["change"] - float(np.interp(result["gain"], gains, changes)),
            }
        )
    return rows


def show(results: list[dict]) -> None:
    """The mean over seeds of each run; `beyond`: worse (+) than constant shares that gain as much, in points."""
    rows = compared(results)
    print(f"{'':38} n share kept  rise less change | beyond: rise change | raised lowered else")
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        mean = {key: np.mean([row[key] for row in same]) for key in same[0] if isinstance(same[0][key], float | int)}
        print(
            f"{name:38} {len(same)}  {mean['share']:.2f}  {100 * mean['kept']:4.0f} {100 * mean['rise']:5.2f} "
            f"{100 * mean['less']:4.0f} {100 * mean['change']:6.2f} |        {100 * mean['rise_beyond']:+5.2f}  "
            f"{100 * mean['change_beyond']:+5.2f} | {mean['raised']:6.1f} {mean['lowered']:7.1f} {mean['else']:4.1f}"
        )


def fails(sums: np.ndarray, potentials: list[np.ndarray]) -> np.ndarray:
    """Whether the test fails, by update, epsilon and margin.

    Args:
        sums: Summed losses, target tokens and numbers of rows, shape (num_measurements, 3, num_pieces, num_domains);
            one piece, without the numbers: no error is asked for.
        potentials: Of all domains at each measurement.
    """
    losses = sums[:, 0].sum(axis=1) / sums[:, 1].sum(axis=1)
    failed = np.zeros((len(sums) - 1, len(EPSILONS), len(MARGINS)), dtype=bool)
    for update in range(1, len(sums)):
        forgetting = forgetting_degree(losses[update], losses[update - 1])
        error = relative_change_error(sums[update], sums[update - 1]) if sums.shape[2] > 1 else 0.0
        for i, epsilon in enumerate(EPSILONS):
            for j, margin in enumerate(MARGINS):
                beyond = np.maximum(forgetting - margin * error, 0.0)
                left, right = expansion_test(potentials[update], beyond, DOMAINS.index(TARGET), epsilon)
                failed[update - 1, i, j] = left >= right
    return failed


def resampled_tests(trace: Path, reference: float) -> None:
    """How often the test on some rows per domain comes out otherwise than on all of them, along one run."""
    measured = dict(np.load(trace))  # by domain, shape (num_measurements, 2, num_rows)
    whole = np.stack([sums.sum(axis=2) for sums in measured.values()], axis=2)[:, :, None]
    losses = whole[:, 0, 0] / whole[:, 1, 0]
    potentials = [learnable_potential(now, np.full(len(DOMAINS), reference)) for now in losses]  # the target's counts
    truth, rng, resampled = fails(whole, potentials), np.random.default_rng(0), []
    for _ in range(NUM_RESAMPLES):
        rows = [sums[:, :, rng.choice(sums.shape[2], PROBE_ROWS, replace=False)] for sums in measured.values()]
        drawn = np.stack(rows, axis=3)  # every row is a piece
        resampled.append(fails(np.concatenate([drawn, np.ones_like(drawn[:, :1])], axis=1), potentials))
    resampled = np.array(resampled)
    print(f"{trace.stem}: share of updates at which the test fails, on all rows / on {PROBE_ROWS};")
    print("how often it fails on these where it holds / fails on all")
    for i, epsilon in enumerate(EPSILONS):
        real = truth[:, i, 0]
        for j, margin in enumerate(MARGINS):
            failed = resampled[:, :, i, j]
            false, right = (failed[:, where].mean() if where.any() else np.nan for where in (~real, real))
            print(
                f"  epsilon {epsilon:4} margin {margin}: {real.mean():.2f} / {failed.mean():.2f}; "
                f"{false:.2f} / {right:.2f}"
            )


def with_longest(references: dict, results: list[dict]) -> dict:
    """References whose target was trained for as long as the runs: by the first one of `specific`."""
    lowest = [run["lowest"] for run in results if (run["name"], run["seed"]) == ("specific", 0)]
    return references | {TARGET: min([references[TARGET], *lowest])}


def run_all(lab: Lab, references: dict, options) -> list[dict]:
    """The results of all runs, also of those that were finished before."""
    lines = options.output / "results.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    finished = {(result["name"], result["seed"]) for result in done}
    chosen = {name: block for name, block in blocks().items() if name == "specific" or name in (options.only or [name])}
    for seed in range(options.seeds):
        for name, block in chosen.items():
            if (name, seed) in finished:
                continue
            trace = options.output / f"trace-{seed}.npz" if name == TRACED else None
            done.append(lab.run(name, block, with_longest(references, done), seed, trace))
            with lines.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{name}, seed {seed}: gain {done[-1]['gain']:.4f} rise {done[-1]['rise']:.4f}", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("versatune-quickstart/data"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1, help="orders of the training rows")
    parser.add_argument("--only", nargs="+", default=[], help="names of runs beside `specific`")
    parser.add_argument("--tokens", type=int, default=3_000_000, help="pre-training tokens")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lab = Lab(options.data, options.output, options.learning_rate, options.tokens)
    references = lab.reference_losses()
    print("base", lab.base, "references", references)
    done = run_all(lab, references, options)
    show(done)
    for result in done:
        trace = options.output / f"trace-{result['seed']}.npz"
        if result["name"] == "specific" and trace.exists():
            resampled_tests(trace, result["losses"][TARGET])  # a reference on all rows, as the losses beside it


if __name__ == "__main__":
    main()
