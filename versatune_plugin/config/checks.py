"""Contradictions between the keys of a `versatune:` block, and names in it that are no domains."""

from collections.abc import Iterable, Mapping

from versatune_plugin import strategies
from versatune_plugin.config.blocks import Problem
from versatune_plugin.config.sections import SELF, GuardsConfig, StagesConfig
from versatune_plugin.domains import SUM_TOLERANCE, WRITTEN_TOLERANCE, check_proportions, misfits, nearest
from versatune_plugin.strategies import STRATEGIES, powered
from versatune_plugin.strategies.staged import STAGED

START_NAMES = ("detected", "uniform", "proportional", "temperature")
"""What `initial_proportions` can name, besides a file."""


_NAMING_ALL = ("initial_proportions", "repeats", "reference_losses")  # where they hold a number per domain

_RISE = {"expansion.domain", "expansion.delta", "expansion.ceiling", "expansion.start"}
KEYS_OF_STRATEGIES = {
    "versatune": _RISE | {"expansion.epsilon", "expansion.hold", "expansion.forgetting_since"},
    "increase_uniform": _RISE,
    "increase_unconditional": _RISE,
    "specific": {"expansion.domain", "expansion.share"},
    "sequential": {"stages.general", "stages.order"},
    "mixed_sequential": {"stages.general"},
    "dmt": {"stages.general", "stages.kappa"},
    "odm": {"odm.alpha", "odm.warm_up"},
}
"""The keys of the inner blocks `expansion`, `stages` and `odm` that act under each strategy."""


def contradictions(config) -> list[Problem]:
    """What a `VersaTuneConfig` says that cannot be."""
    problems = [
        *_strategy_problems(config),
        *_interval_problems(config),
        *_unit_problems(config),
        *_start_problems(config),
        *_reference_problems(config),
        *_name_problems(config),
    ]
    if config.kind is None:
        return problems
    return [*problems, *_signal_problems(config), *_target_problems(config)]


def _strategy_problems(config) -> list[Problem]:
    if config.strategy not in STRATEGIES:
        if ":" not in config.strategy:
            return [(("strategy",), f"unknown strategy{nearest(config.strategy, [*STRATEGIES, 'module:Class'])}")]
        try:
            strategies.own_strategy(config.strategy)
        except ValueError as error:
            return [(("strategy",), str(error))]
    return []


def _interval_problems(config) -> list[Problem]:
    if config.update_interval >= 1 and config.update_interval != int(config.update_interval):
        return [(("update_interval",), "must be a whole number of steps, or a share below 1")]
    return []


def _unit_problems(config) -> list[Problem]:
    if config.unit == "examples":
        return []
    problems: list[Problem] = []
    if config.strategy == "unimax":
        problems.append((("unit",), "strategy 'unimax' limits passes over rows: leave it at 'examples'"))
    if config.strategy in STAGED:
        problems.append((("unit",), f"strategy {config.strategy!r} plans its stages in rows: leave it at 'examples'"))
    if config.repeats is not None:
        problems.append((("unit",), "`repeats` counts rows: leave it at 'examples', or give proportions"))
    if config.guards.max_passes is not None:
        problems.append((("unit",), "`guards.max_passes` counts rows: leave it at 'examples', or the limit out"))
    return problems


def _start_problems(config) -> list[Problem]:
    key = ("initial_proportions",)
    given = config.initial_proportions
    if config.repeats is not None and given is not None:
        return [(("repeats",), "gives the proportions, and so does `initial_proportions`: leave one of the two out")]
    if config.strategy == "manual" and not isinstance(given, dict) and config.repeats is None:
        return [(key, "strategy 'manual' needs a proportion per domain: {law: 0.2, medicine: 0.8}")]
    if isinstance(given, str) and given not in START_NAMES and not given.endswith(".json"):
        return [(key, f"not a name, a proportion per domain or a .json file{nearest(given, START_NAMES)}")]
    if isinstance(given, dict):
        try:
            powered(check_proportions(given, list(given), tolerance=WRITTEN_TOLERANCE), config.power)
        except ValueError as error:
            return [(key, str(error))]
    return []


def _reference_problems(config) -> list[Problem]:
    key = ("reference_losses",)
    if isinstance(config.reference_losses, str):
        named = config.reference_losses == SELF or config.reference_losses.endswith(".json")
        return [] if named else [(key, f"must be a loss per domain, a .json file or {SELF!r}")]
    if config.reference_losses is None:
        hint = f"strategy {config.strategy!r} needs a loss per domain: {{law: 1.21, ...}}, a `reference:` model to "
        missing = config.needs_reference_losses and not config.reference
        return [(key, f"{hint}measure them with, or {SELF!r}")] if missing else []
    return [
        ((*key, domain), f"must be at least 0 nats per target token, got {loss}")
        for domain, loss in config.reference_losses.items()
        if loss < 0
    ]


def _name_problems(config) -> list[Problem]:
    """Domains that one key names and another does not; proportions and reference losses name all domains."""
    given = {key: getattr(config, key) for key in _NAMING_ALL}
    whole = {key: values for key, values in given.items() if values and isinstance(values, dict)}
    if not whole:
        return []
    naming, domains = next(iter(whole.items()))
    problems: list[Problem] = [
        ((key,), f"has no {domain!r}, which `{naming}` names: give both the same domains")
        for key, values in whole.items()
        for domain in domains
        if domain not in values
    ]
    named = {**whole, **_names_in(config.model_dump())}
    return problems + [
        (tuple(key.split(".")), f"names {name!r}, which `{naming}` does not name{nearest(name, domains)}")
        for key, names in named.items()
        for name in names
        if name not in domains
    ]


def _signal_problems(config) -> list[Problem]:
    if config.measures_training:
        problems: list[Problem] = []
        if config.references_file is not None:
            reason = f"{config.references_file} is measured on held-out rows: with `signal: train` give the numbers"
            problems.append((("reference_losses",), f"{reason}, or {SELF!r}"))
        return problems
    if config.probe.rows_per_domain == 0 and config.needs_losses:
        return [(("probe", "rows_per_domain"), f"strategy {config.strategy!r} needs losses: at least 1 row per domain")]
    return []


def _target_problems(config) -> list[Problem]:
    if config.expansion is None:
        acting = KEYS_OF_STRATEGIES.get(config.strategy, set())
        if config.strategy == "versatune" or "expansion.domain" not in acting:
            return []
        return [(("expansion",), f"strategy {config.strategy!r} needs a target: {{domain: NAME}}")]
    return []


def unused_keys(config) -> list[str]:
    """What was given and does nothing under this strategy: no mistake, so that one line of YAML compares strategies."""
    if config.kind is None:
        return []
    acting = KEYS_OF_STRATEGIES.get(config.strategy, set())
    whole = {
        "expansion": config.expansion is not None and "expansion.domain" not in acting,
        "guards": config.strategy in STAGED and bool(config.guards.changed()),
        "initial_proportions": config.initial_proportions not in (None, config.start),
        "repeats": config.repeats is not None and config.start != "repeats",
        "temperature": "temperature" in config.changed() and config.start != "temperature",
        "initial_power": config.initial_power != 1 and config.strategy in (*STAGED, "uniform", "inverse"),
        "sigma": "sigma" in config.changed() and config.strategy not in ("versatune", "increase_unconditional"),
        "reference_losses": str(config.reference_losses).endswith(".json") and config.references_file is None,
        "probe.rows_per_domain": config.measures_training and bool(config.probe.rows_per_domain),
        "probe.budget": not config.measures_probes and "budget" in config.probe.changed(),
        "guards.max_change": config.guards.max_change is not None and config.kind is strategies.Fixed,
    }
    blocks = {name: getattr(config, name) for name in ("expansion", "stages", "odm") if not whole.get(name)}
    changed = [f"{name}.{key}" for name, block in blocks.items() if block is not None for key in block.changed()]
    return [*(key for key, is_unused in whole.items() if is_unused), *(key for key in changed if key not in acting)]


def domain_problems(block: Mapping, domains: tuple[str, ...]) -> list[str]:
    """Names in a `versatune:` block that do not fit the domains of the datasets, and bounds that leave no room."""
    problems = []
    for key in _NAMING_ALL:
        if isinstance(block.get(key), Mapping):
            problems += misfits(block[key], domains, f"versatune.{key}")
    targets = _mapping(block, "expansion").get("domain", [])
    problems += [
        f"versatune.{key} names an unknown domain {name!r}{nearest(str(name), domains)}"
        for key, names in _names_in(block).items()
        for name in names
        if name not in domains
    ]
    if block.get("strategy") in STAGED:
        try:
            stages = StagesConfig.model_validate(dict(_mapping(block, "stages")))
        except ValueError:
            return problems  # reported by the block's own checks
        general = stages.general_of(domains)
        problems += strategies.stage_problems(block["strategy"], domains, general, stages.order)
    if isinstance(targets, list) and len(domains) > 1 and all(domain in targets for domain in domains):
        problems.append("versatune.expansion.domain names all domains: leave at least one out, whose rows can be taken")
    return problems + _room_problems(_mapping(block, "guards"), domains)


def _names_in(block: Mapping) -> dict[str, Iterable]:
    """The domains that keys name which need not name all."""
    guards, targets = _mapping(block, "guards"), _mapping(block, "expansion").get("domain", [])
    return {
        "detection.descriptions": _mapping(_mapping(block, "detection"), "descriptions"),
        "guards.floor": _mapping(guards, "floor"),
        "guards.ceiling": _mapping(guards, "ceiling"),
        "expansion.domain": targets if isinstance(targets, list) else [targets],
    }


def _mapping(block: Mapping, key: str) -> Mapping:
    """An inner block as far as it is one; the blocks' own checks report the rest."""
    value = block.get(key)
    return value if isinstance(value, Mapping) else {}


def _room_problems(guards: Mapping, domains: tuple[str, ...]) -> list[str]:
    """Floors and ceilings between which no proportions fit."""
    try:
        bounds = GuardsConfig.model_validate(dict(guards))
    except ValueError:
        return []  # reported by the block's own checks
    floors, ceilings = (bounds.vector(key, domains) for key in ("floor", "ceiling"))
    problems = [
        f"versatune.guards.floor: {floor:g} for domain {domain!r} is above its ceiling, {ceiling:g}"
        for domain, floor, ceiling in zip(domains, floors, ceilings, strict=True)
        if floor > ceiling
    ]
    low, high = floors.sum(), ceilings.sum()
    if low > 1 + SUM_TOLERANCE:
        problems.append(f"versatune.guards.floor: the floors of {len(domains)} domains sum to {low:.4g}, above 1")
    if high < 1 - SUM_TOLERANCE:
        problems.append(f"versatune.guards.ceiling: the ceilings of {len(domains)} domains sum to {high:.4g}, below 1")
    return problems
