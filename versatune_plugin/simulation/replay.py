"""A block replayed through the Steering that a run uses, from update to update."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from versatune_plugin.config.settings import resolve
from versatune_plugin.files.record import Record
from versatune_plugin.mixture import mixture as mixtures
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.mixture.steering import Measurement, Steering
from versatune_plugin.sampler.draws import MixtureSampler
from versatune_plugin.simulation.run import Outcome, Run
from versatune_plugin.simulation.variants import checked


def replay(title: str, block: Mapping, run: Run) -> Outcome:
    """What comes of a block.

    Raises:
        ValueError: It has mistakes, or the run's losses do not serve it; a line each.
    """
    if run.not_imported is not None and block.get("strategy") == run.not_imported:
        raise ValueError(
            f"versatune.strategy: {run.not_imported!r} is recorded code of somebody's own, imported only where you "
            f"name it, too: --try strategy={run.not_imported}"
        )
    config, measured, files = checked(block, tuple(run.num_rows))
    settings = resolve(
        config,
        measured,
        run.num_rows,
        num_steps=run.num_steps,
        steps_per_epoch=run.num_steps,
        rows_per_step=run.block_size,
    )
    with _warnings() as warnings:
        mixture = settings.mixture()
        notes, strategy = list(warnings), mixture.strategy
        steering = _steering(mixture, settings.interval, run)
        due = [step for step in range(1, run.last_step + 1) if steering.is_due(step)]
        if strategy.needs_losses and (problems := run.losses.problems(config, settings.interval, due)):
            raise ValueError("\n".join(problems))
        records = list(_records(steering, set(due), run))
    if config.unused:
        notes.append(f"strategy {config.strategy!r} makes no use of {', '.join(config.unused)}")
    notes += [f"{file} was read without checking that it is of this model and these rows" for file in files]
    if (described := strategy.describe(run.num_steps)) is not None:
        notes.append(described)
    if block is run.block:
        notes += run.losses.comparison(records)
    return Outcome(
        title=title, config=config, interval=settings.interval, records=records, notes=notes + _notes(records)
    )


def _steering(mixture: Mixture, interval: int, run: Run) -> Steering:
    """What a run's callback steers by, with a sampler that nobody reads."""
    block_size = run.block_size
    sampler = MixtureSampler(run.num_rows, mixture.proportions, block_size=block_size, num_samples=block_size)

    def measure(step: int) -> Measurement | None:
        losses = run.losses.measure(step)
        return None if losses is None else Measurement(losses=losses)

    def amounts(first: int, last: int) -> np.ndarray:
        return (sampler.drawn_before(last * block_size) - sampler.drawn_before(first * block_size))[None]

    return Steering(
        mixture,
        sampler,
        num_steps=run.num_steps,
        interval=interval,
        look_ahead=run.look_ahead_steps,
        measure=measure,
        amounts=amounts,
    )


def _records(steering: Steering, due: Collection[int], run: Run) -> Iterator[Record]:
    """What happens at each step, as in a history."""
    steering.begin()
    for step in sorted({0, *due, run.last_step}):
        turn = steering.update(step) if step in due else steering.observe(step)
        yield Record(**turn.by_domain(tuple(run.num_rows)), num_rows_by_domain=run.num_rows)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What a mixture warns of, in a list instead of on the screen."""
    messages: list[str] = []

    def keep(record) -> bool:
        messages.append(record.getMessage())
        return False

    mixtures.logger.addFilter(keep)
    try:
        yield messages
    finally:
        mixtures.logger.removeFilter(keep)


def _notes(records: Sequence[Record]) -> list[str]:
    """What the table cannot show."""
    notes = []
    if raised := [record.expanded for record in records if record.expanded is not None]:
        notes.append(f"the target was raised at {sum(raised)} of {len(raised)} updates")
    if held := [record.step for record in records if record.proposed]:
        notes.append(f"guards held the strategy's proposal at {len(held)} update(s), the first at step {held[0]}")
    if skipped := [record for record in records if record.skipped]:
        first = skipped[0]
        notes.append(f"{len(skipped)} update(s) skipped, the first at step {first.step}: {first.skipped}")
    return notes
