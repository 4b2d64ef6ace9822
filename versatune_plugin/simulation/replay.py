"""A block replayed through the Mixture and the MixtureSampler that a run uses, from update to update."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from versatune_plugin.config.settings import resolve
from versatune_plugin.files.record import Record
from versatune_plugin.mixture import mixture as mixtures
from versatune_plugin.mixture.mixture import Mixture
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
    interval = settings.interval
    with _warnings() as warnings:
        mixture = settings.mixture()
        notes, strategy = list(warnings), mixture.strategy
        plan = {step: proportions for step, proportions in strategy.plan(run.num_steps) if step <= run.last_step}
        due = sorted({*range(interval, run.last_step + 1, interval), *plan})
        if strategy.needs_losses and (problems := run.losses.problems(config, interval, due)):
            raise ValueError("\n".join(problems))
        records = list(_records(mixture, plan, due, run))
    if config.unused:
        notes.append(f"strategy {config.strategy!r} makes no use of {', '.join(config.unused)}")
    notes += [f"{file} was read without checking that it is of this model and these rows" for file in files]
    if (described := strategy.describe(run.num_steps)) is not None:
        notes.append(described)
    if block is run.block:
        notes += run.losses.comparison(records)
    return Outcome(title=title, config=config, interval=interval, records=records, notes=notes + _notes(records))


def _records(mixture: Mixture, plan: Mapping[int, np.ndarray], due: Collection[int], run: Run) -> Iterator[Record]:
    """What happens at each step, as in a history; the same as in `callback.VersaTuneCallback`."""
    block_size, due, domains = run.block_size, set(due), tuple(run.num_rows)
    sampler = MixtureSampler(run.num_rows, mixture.proportions, block_size=block_size, num_samples=block_size)
    for step, proportions in plan.items():
        sampler.set_proportions(proportions, at_draw=step * block_size)

    def by_domain(vector: np.ndarray | None) -> dict | None:
        if vector is None:
            return None
        known = [value if math.isfinite(value) else None for value in vector.tolist()]
        return dict(zip(domains, known, strict=True))

    for step in sorted({0, *due, run.last_step}):
        planned = step in plan  # the sampler has known it since the start
        at_draw = (step if planned else step + run.look_ahead_steps) * block_size
        drawn = sampler.drawn_before(step * block_size)
        losses = run.losses.measure(step)
        caps = 1.0  # to count what is drawn up to then takes longer than all the rest
        if step in due and not planned and not math.isinf(mixture.guards.max_passes):
            num_rows, num_draws_left = np.array(list(run.num_rows.values())), run.num_steps * block_size - at_draw
            caps = mixture.guards.caps(num_rows, sampler.drawn_before(at_draw), num_draws_left)
        if step in due and losses is not None:
            update = mixture.update(losses, step, caps=caps)
        elif step in due and not mixture.strategy.needs_losses:
            update = mixture.advance(step, caps)
        else:
            update = mixture.unmeasured() if losses is None else mixture.observe(losses)
        changed = not np.array_equal(update.proportions, update.proportions_before)
        if changed and not planned:
            sampler.set_proportions(update.proportions, at_draw=at_draw)
        yield Record(
            step=step,
            num_drawn=step * block_size,
            num_rows_by_domain=run.num_rows,
            drawn_by_domain=by_domain(drawn),
            losses=by_domain(update.losses),
            proportions_before=by_domain(update.proportions_before),
            proportions=by_domain(update.proportions),
            proposed=by_domain(update.proposed),
            expanded=update.expanded,
            note=update.note,
            skipped=update.skipped,
            acts_at_draw=at_draw if planned or changed else None,
        )


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
