"""Which runs each part has: the `versatune:` block of every run by its name.

What all runs share (references, probe, update interval) is added by the laboratory where a block does not say it, and
`detected` becomes the base's detected proportions.
"""

import re
from pathlib import Path

DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
BASES = ("tiny-0", "tiny-1")
TARGETS = {"tiny-0": ("medicine", "law"), "tiny-1": ("law", "medicine")}
SHARES = (0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
NO_PROBE = {"probe": {"rows_per_domain": 0}}


def run_file(base: Path, name: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    return base / "runs" / re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") / f"{seed}.json"


def fostering(base: str) -> dict[str, dict]:
    """The strategies for all domains at once; those of the paper start from the detected proportions."""
    detected, even = {"initial_proportions": "detected"}, {"initial_proportions": "uniform"}
    return {
        "uniform": {"strategy": "uniform"} | NO_PROBE,
        "inverse": {"strategy": "inverse"} | detected | NO_PROBE,
        "constant": {"strategy": "constant"} | detected | NO_PROBE,
        "proportional": {"strategy": "proportional"} | NO_PROBE,
        "versatune": {"strategy": "versatune"} | detected,
        "versatune from uniform": {"strategy": "versatune"} | even,
        "odm": {"strategy": "odm", "update_interval": 2},  # it explores evenly for K ln K = 11 updates
        "dynamic_batch_loading": {"strategy": "dynamic_batch_loading"} | even,
        "sequential": {"strategy": "sequential"} | NO_PROBE,
        "mixed_sequential": {"strategy": "mixed_sequential"} | NO_PROBE,
        "dmt": {"strategy": "dmt"} | NO_PROBE,
    }


def expansion(base: str) -> dict[str, dict]:
    """The base's first target raised above the others, by each of the ways to do it."""
    return {"uniform": fostering(base)["uniform"]} | _expanded(TARGETS.get(base, ("medicine",))[:1])


def crossed(base: str) -> dict[str, dict]:
    """What matters most of it for the base's other targets."""
    names = ("specific", *(f"share {share}" for share in SHARES[:4]), "held 0.6", "held 0.5")
    return {name: block for name, block in _expanded(TARGETS.get(base, ())[1:]).items() if name.endswith(names)}


def _expanded(targets: tuple[str, ...]) -> dict[str, dict]:
    runs = {}
    for target in targets:
        held = _raised("versatune", target, start=0.98, hold=0.6, delta=0.2, forgetting_since="start")
        named = {
            "specific": _raised("specific", target) | NO_PROBE,
            **{f"share {share}": _raised("specific", target, share=share) | NO_PROBE for share in SHARES},
            "increase_uniform": _raised("increase_uniform", target),
            "increase_unconditional": _raised("increase_unconditional", target),
            "versatune": _raised("versatune", target),
            "start 0.9": _raised("versatune", target, start=0.9),
            "held 0.6": held,
            "held 0.5": _changed(held, hold=0.5, delta=0.15),
            "held 0.6, test off": _changed(held, epsilon=0.0),  # comes down whatever was forgotten: a schedule
            "held 0.6, epsilon 1": _changed(held, epsilon=1.0),
        }
        runs |= {f"{target}: {name}": block for name, block in named.items()}
    return runs


def sensitivity(base: str) -> dict[str, dict]:
    """One value of the default changed at a time, for fostering and for expansion."""
    default = fostering(base)["versatune from uniform"]
    target = TARGETS.get(base, ("medicine",))[0]
    runs = {"versatune from uniform": default}
    runs |= {f"sigma {sigma}": default | {"sigma": sigma} for sigma in (0.25, 1.0, 2.0, 4.0)}
    runs |= {f"interval {interval}": default | {"update_interval": interval} for interval in (5, 30)}
    runs |= {f"probe {rows}": default | {"probe": {"rows_per_domain": rows}} for rows in (8, 64)}
    runs |= {f"delta {delta}": _raised("versatune", target, delta=delta) for delta in (0.025, 0.1, 0.2)}
    runs |= {f"epsilon {epsilon}": _raised("versatune", target, epsilon=epsilon) for epsilon in (0.01, 0.2, 0.5)}
    return runs


def ablations(base: str) -> dict[str, dict]:
    """Changes of the default that could make it better; those that are no option of the product are in `rules`."""
    default = fostering(base)["versatune from uniform"]
    detected = default | {"initial_proportions": "detected"}
    return {
        "versatune from uniform": default,
        "potential over mean": default | {"strategy": "rules:RelativePotential"},
        "bounded": default | {"strategy": "rules:Bounded"},
        "learned temperature": default | {"strategy": "rules:LearnedTemperature"},
        "training losses": default | {"signal": "train", "reference_losses": "self"},
        "own reference": default | {"reference_losses": "self"},
        "from the square root of detected": detected | {"initial_power": 0.5},
        "from inverse": detected | {"initial_power": -1.0},
    }


def real(base: str) -> dict[str, dict]:
    """What a real model can be asked in some hours on a CPU."""
    parts = fostering(base), _expanded(("medicine",))
    names = ("uniform", "versatune from uniform"), ("medicine: specific", "medicine: share 0.95", "medicine: held 0.6")
    return {name: runs[name] for runs, chosen in zip(parts, names, strict=True) for name in chosen}


def _changed(block: dict, **expansion) -> dict:
    return block | {"expansion": block["expansion"] | expansion}


def _raised(strategy: str, target: str, **expansion) -> dict:
    return {"strategy": strategy, "initial_proportions": "uniform", "expansion": {"domain": target, **expansion}}


PARTS = ("fostering", "expansion", "crossed", "sensitivity", "ablations", "real")
_RUNS = dict(zip(PARTS, (fostering, expansion, crossed, sensitivity, ablations, real), strict=True))


def runs(part: str, base: str) -> dict[str, dict]:
    """Name and block of every run of a part."""
    return _RUNS[part](base)
