"""Histories of runs that never were, as a run writes them."""

import json
import math

import numpy as np

from versatune_plugin.evaluation.results import DomainResult, Evaluation, LeftOut, Result
from versatune_plugin.files.history import history_path
from versatune_plugin.files.record import Record

NAMES = ("medicine", "general", "code", "law", "science", "finance")


def names(number):
    return (*NAMES, *(f"domain {position}" for position in range(len(NAMES), number)))[:number]


def expansion(domains=NAMES, num_updates=30, interval=20, seed=0):
    """An expansion of the last domain: the others begin to forget, guards hold some steps, one update is skipped."""
    rng = np.random.default_rng(seed)
    number, target = len(domains), domains[-1]
    rows = {domain: 400 + 150 * position for position, domain in enumerate(domains)}
    start, reference = rng.uniform(2.2, 4.5, number), rng.uniform(1.4, 2.0, number)
    pull = rng.uniform(-0.15, 0.9, number)

    def by_domain(values):
        return {domain: None if value is None else float(value) for domain, value in zip(domains, values, strict=True)}

    proportions, first, before, records = np.full(number, 1 / number), None, None, []
    drawn, tokens = np.zeros(number), np.zeros(number)
    for update in range(num_updates + 1):
        step = update * interval
        progress = update / max(num_updates, 1)
        losses = start - pull * (1 - math.exp(-4 * progress)) + rng.normal(0, 0.012, number)
        skipped = "domain " + repr(domains[0]) + " has loss nan" if update == 11 else None
        first = losses if first is None else first
        if update:
            drawn = drawn + 8 * interval * proportions
            tokens = tokens + 8 * interval * proportions * np.linspace(60, 180, number)
        was, proposed, note, test, expanded = proportions, None, None, None, None
        since = np.zeros(number) if before is None else np.maximum(losses / before - 1, 0)
        if update and not skipped and number > 1:
            test = {
                "left": float(since[:-1].sum() / number),
                "right": 0.5 * float(max(1 - reference[-1] / losses[-1], 0)),
            }
            expanded = bool(test["left"] < 0.03 * test["right"] / 0.5) or update < 6
            wanted = proportions.copy()
            wanted[-1] = min(max(wanted[-1] + (0.06 if expanded else -0.03), 1 / number), 0.9)
            wanted[:-1] *= (1 - wanted[-1]) / wanted[:-1].sum()
            note = f"{target} {'raised' if expanded else 'lowered'}: others forgot {test['left']:.3g}"
            proportions = wanted.copy()
            if wanted[-1] > 0.6:
                proportions[-1] = 0.6
                proportions[:-1] *= 0.4 / proportions[:-1].sum()
                proposed = by_domain(wanted)
        before = losses
        shown = [None if skipped and position == 0 else value for position, value in enumerate(losses)]
        records.append(
            {
                "step": step,
                "epoch": step / 1000,
                "num_drawn": int(8 * step),
                "num_rows_by_domain": rows,
                "drawn_by_domain": {domain: int(value) for domain, value in zip(domains, drawn, strict=True)},
                "tokens_by_domain": {domain: int(value) for domain, value in zip(domains, tokens, strict=True)},
                "target_tokens_by_domain": {
                    domain: int(value / 3) for domain, value in zip(domains, tokens, strict=True)
                },
                "unit": "examples",
                "signal": "probe",
                "losses": by_domain(shown),
                "loss_errors": by_domain([None if value is None else 0.03 for value in shown]),
                "reference_losses": by_domain(reference),
                "potential": by_domain(np.maximum(1 - reference / losses, 0)),
                "forgetting": by_domain(since),
                "forgetting_since_start": by_domain(np.maximum(losses / first - 1, 0)),
                "forgetting_error": None,
                "change_since_start": by_domain(losses / first - 1),
                "change_since_start_error": by_domain([0.015] * number),
                "proportions_before": by_domain(was),
                "proportions": by_domain(proportions),
                "proposed": proposed,
                "expanded": expanded,
                "test": test,
                "note": note,
                "skipped": skipped,
                "acts_at_draw": int(8 * (step + 1)) if not np.array_equal(was, proportions) else None,
                "probe_seconds": 2.5 + 0.1 * (update % 3),
                "seconds": 4.0 if update == 0 else 30.0 + update % 5,
                "loss_unit": "token",
                "probe": None
                if update
                else {
                    d: {"rows": 24, "target_tokens": 480, "fingerprint": "5495bbe8c7cc53bb9eadda24c8ff2453"}
                    for d in domains
                },
                "run": None
                if update
                else {
                    "settings": {
                        "strategy": "versatune",
                        "sigma": 0.5,
                        "expansion": {"domain": target, "delta": 0.06, "epsilon": 0.5},
                        "guards": {"ceiling": 0.6},
                    },
                    "num_steps": num_updates * interval,
                    "predicted_probe_share": 0.07,
                    "fingerprints": {"rows": "fe12"},
                    "versions": {"torch": "2.13.0"},
                },
            }
        )
    return records


def write(records, folder):
    """An output directory with this history."""
    path = history_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def evaluation(scores, step=None, stderr=0.02, limit=None, chat_template=False, left_out=True, **task):
    """What `versatune evaluate` measured: of each domain one benchmark, `task` changes its facts."""
    facts = {
        "definition": {},
        "metric": "acc",
        "stderr": stderr,
        "num_fewshot": 5,
        "num_samples": 1200,
        "harness_tasks": ["task"],
        "batch_size": "8",
        "dtype": "float32",
        "trust_remote_code": False,
        "seconds": 1.0,
    } | task
    results = {
        domain: {f"{domain}_task": Result(title=f"{domain.title()} QA", score=score, **facts)}
        for domain, score in scores.items()
    }
    reason = LeftOut(domain="law", task="lawbench", reason="the harness does not have it")
    return Evaluation(
        model={"name": "tiny", "fingerprint": "0", "base_model": None},
        step=step,
        domains={domain: DomainResult.mean(tasks, of=1) for domain, tasks in results.items()},
        left_out=[reason] if left_out else [],
        limit=limit,
        chat_template=chat_template,
        harness={"name": "lm-evaluation-harness", "version": "0.4"},
    )


def typed(records):
    """The lines of a history as a run holds them."""
    return [Record.model_validate(record) for record in records]
