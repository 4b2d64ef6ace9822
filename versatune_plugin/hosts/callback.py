"""VersaTuneCallback: at the host's events has the mixture updated, and records and tells what happened."""

import logging
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from versatune_plugin.config.settings import Settings
from versatune_plugin.files.history import History, history_path
from versatune_plugin.files.record import Block, Record, Run
from versatune_plugin.files.rows import UNITS
from versatune_plugin.hosts import progress
from versatune_plugin.hosts.checkpoints import step_of_best
from versatune_plugin.hosts.plan import never_updated
from versatune_plugin.hosts.steered import Steered
from versatune_plugin.mixture.steering import LookAhead, Steering, Turn, by_domain, num_acting_updates
from versatune_plugin.report import format_summary, format_update, numbered, plot_history
from versatune_plugin.strategies import Fixed, Staged
from versatune_plugin.tables import in_a_line

STATE_VERSION = 5

_MOST_ROWS = 24  # of the table at the end of a run

_MUCH = 0.05  # of the rows trained on, waiting at the end: so much is said

_IN_WORDS = {
    "look_ahead_steps": "steps until new proportions act",
    "num_processes": "number of processes",
    "interval": "steps between updates",
    "probe_rows": "probe rows",
    "training_rows": "training rows",
    "heldout_rows": "held-out rows",
}
"""What keys of the saved state are called in messages."""


def look_ahead_of(args) -> LookAhead:
    """How far the loader draws ahead of training, by transformers' training arguments."""
    return LookAhead.of_loader(
        args.dataloader_num_workers, args.dataloader_prefetch_factor, args.gradient_accumulation_steps
    )


class VersaTuneCallback(TrainerCallback, ExportableState):
    """Has a trainer's mixture updated at every interval, and records what happened.

    Args:
        trainer: The trainer, as far as the callback knows it.
        logger: Where the log lines go.
    """

    is_running: bool = False
    """Whether a run has its loader, and with it the feed that is steered."""
    has_begun: bool = False
    """Whether the newest run has begun; it may have ended since."""

    _steering: Steering
    _settings: Settings
    _circumstances: dict[str, Any]  # of a run, apart from its block: a resumed one says which of them changed

    def __init__(self, trainer: Steered, logger: logging.Logger) -> None:
        # the trainer holds this callback: a cycle would keep its loader's workers
        self._trainer: Steered = weakref.proxy(trainer)
        self._logger = logger
        self._history: History | None = None
        self._before_end: tuple[int, dict] | None = None  # a step, and the state there without the run's end
        self._ended = 0  # the last optimizer step whose end was dealt with
        self._stops = False  # a reference run whose loss rises
        self._changes_at: int | None = None  # the step after which a resumed run takes over other proportions

    @property
    def records(self) -> list[Record]:
        """The history of the newest run, oldest first; empty on all processes but the main one."""
        return [] if self._history is None else self._history.read()

    # Hooks of the host

    def on_train_begin(self, args, state, control, **kwargs):
        """A new run measures before its first step; a resumed one takes over the checkpoint's state."""
        if self.has_begun:  # for a checkpoint that something wrote before
            return
        self.is_running = self.has_begun = True
        self._state, self._look_ahead = state, look_ahead_of(args)
        self._settings = self._trainer.settings_of_run(state.max_steps)
        self._steering = self._new_steering(state.max_steps)
        self._circumstances = {
            "look_ahead_steps": self._look_ahead.num_steps,
            "num_processes": args.world_size,
            "interval": self._settings.interval,
            "probe_rows": _probe_rows(self._trainer.facts.probe),
        }
        self._tells_probe = self._tells_facts = True  # in the next line; of a resumed run where they are others
        self._before_end = None
        self._ended, self._stops, self._changes_at = state.global_step, False, None
        self._probe_seconds = 0.0
        self._began = self._recorded_at = time.perf_counter()
        resumed = state.global_step > 0
        if resumed:
            self._restore(state)
        else:
            self._steering.begin()
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._history = self._open_history(args.output_dir, resumed) if state.is_world_process_zero else None
        with progress.beside_the_bar():
            self._announce(state)
        if not resumed:
            self._record(state, self._steering.observe(0))
        elif state.global_step >= state.max_steps:  # it was finished, and its checkpoint is without its end
            self._measure_end(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Point the sampler at the epoch: a loader that skips batches after a resume does not pass it on."""
        feed = self._steering.feed
        feed.set_epoch(state.global_step // feed.steps_per_epoch)

    def on_step_end(self, args, state, control, **kwargs):
        """Deal with the end of the step, where that was not done before."""
        self.end_step(state)
        if self._stops:
            control.should_training_stop = True

    def end_step(self, state) -> None:
        """Update where the interval is over, or where a planned change acts; of every step once, on all ranks.

        Other callbacks may come first: one that saves by itself needs the update before, one that logs or evaluates
        does not make it.
        """
        step = state.global_step
        if self._ended == step:
            return
        self._ended = step
        self._trainer.check_rows_per_step()
        self._trainer.end_step()
        if step == self._changes_at:
            turn = self._steering.change(step, self._settings.start)
        elif self._steering.is_due(step):
            turn = self._steering.update(step)
        else:
            return
        self._trainer.check_agreement(turn.update.proportions)
        self._record(state, turn)
        forgetting = turn.update.forgetting
        risen = forgetting is not None and (forgetting > 0).any()
        self._stops = bool(self._settings.stop_when_rising and risen and step > self._settings.interval)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Measure the end of a run: later its trackers are closed, and the model may be that of another step."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._measure_end(state)
        elif state.global_step % self._steering.feed.steps_per_epoch:
            raise ValueError(
                f"a callback ended an epoch early, after step {state.global_step} (control.should_epoch_stop): the "
                "mixture's rows are dealt out in whole epochs; let it set control.should_training_stop"
            )

    def on_log(self, args, state, control, **kwargs):
        """Measure the end where something has stopped the run after its last epoch's end."""
        if self.is_running and control.should_training_stop and self._ended == state.global_step:
            self._measure_end(state)

    on_evaluate = on_save = on_log

    def on_train_end(self, args, state, control, **kwargs):
        """Show what happened; what nobody was told of before, the end of the run, is measured first."""
        self.is_running, self._before_end = False, None
        step = state.global_step
        if self._steering.step < step:
            is_another = step_of_best(args, state) not in (None, step)  # the host has loaded its weights
            self._record(state, self._steering.count(step) if is_another else self._steering.observe(step))
        if self._history is not None:
            self._history.finish()
            self._show_summary(self._history, time.perf_counter() - self._began)
            self._show_waiting(step)

    def state(self) -> dict:
        """What a checkpoint keeps of a run: without the measurement of its end, which a longer run does not make."""
        if not self.has_begun or self._trainer.feed is None:
            return {"args": {}, "attributes": {}}
        if self._before_end is not None and self._before_end[0] == self._state.global_step:
            return self._before_end[1]
        losses = self._trainer.train_losses
        return {
            "args": {},
            "attributes": {
                "version": STATE_VERSION,
                "steering": self._steering.state_dict(),
                "train_losses": None if losses is None else losses.state_dict(),
                "fingerprints": self._trainer.facts.fingerprints,
                "settings": self._settings.block,
                "asked": self._settings.asked.tolist(),
                "circumstances": self._circumstances,
            },
        }

    # What happened

    def _new_steering(self, num_steps: int) -> Steering:
        if self._trainer.feed is None:
            raise RuntimeError(
                f"{type(self._trainer).__name__} does not draw its rows from the mixture: a get_train_dataloader or "
                "_get_train_sampler of your own hides the one that does. Let it call the inherited one "
                "(super().get_train_dataloader())"
            )
        trainer = self._trainer  # the proxy, so that the steering holds the trainer no more than the callback does
        return Steering(
            self._settings.mixture(),
            trainer.feed,
            num_steps=num_steps,
            interval=self._settings.interval,
            look_ahead=self._look_ahead.num_steps,
            measure=lambda step: trainer.measure(step),
            amounts=lambda first, last: trainer.amounts_of_steps(first, last),
        )

    def _measure_end(self, state) -> None:
        if self._steering.step < state.global_step:
            self._before_end = (state.global_step, self.state())
            self._record(state, self._steering.observe(state.global_step))

    def _record(self, state, turn: Turn) -> None:
        """Write a line to the history, the trackers and the log."""
        domains, facts, settings = self._settings.domains, self._trainer.facts, self._settings
        _, tokens, target_tokens = turn.drawn
        before, self._recorded_at = self._recorded_at, time.perf_counter()
        self._probe_seconds += turn.measured_in_seconds
        record = Record(
            **turn.by_domain(domains),
            epoch=state.global_step / self._steering.feed.steps_per_epoch,
            num_rows_by_domain=facts.num_rows_by_domain,
            tokens_by_domain=by_domain(tokens, domains),
            target_tokens_by_domain=by_domain(target_tokens, domains),
            unit=settings.unit,
            signal="train" if settings.of_training else "probe",
            seconds=self._recorded_at - before,
            probe_seconds=turn.measured_in_seconds,
            loss_unit=settings.loss_unit,
            probe=facts.probe if self._tells_probe else None,
            run=self._facts_of_run(state) if self._tells_facts else None,
        )
        self._tells_probe = self._tells_facts = False
        if self._history is not None:
            self._history.append(record)
        self._trainer.log_mixture(self._tracked(record, turn))
        if self._history is not None:
            with progress.beside_the_bar():
                self._logger.info(format_update(record, state.max_steps))

    def _tracked(self, record: Record, turn: Turn) -> dict[str, float]:
        """What the trackers get of a line."""
        amounts = turn.drawn_since_last[UNITS.index(self._settings.unit)]
        numbers = {
            "proportion": record.proportions,
            "realised_share": by_domain(amounts / amounts.sum(), self._settings.domains) if amounts.any() else None,
            "loss": record.losses,
            "potential": record.potential,
        }
        return {
            f"{progress.PREFIX}{name}/{domain}": value
            for name in progress.QUANTITIES
            for domain, value in (numbers[name] or {}).items()
            if value is not None
        }

    def _facts_of_run(self, state) -> Run:
        """What a simulation and a report need to know of the run."""
        facts = self._trainer.facts
        return Run(
            settings=Block(**self._settings.block),
            num_steps=state.max_steps,
            block_size=self._steering.feed.sampler.block_size,
            update_interval=self._settings.interval,
            look_ahead_steps=self._look_ahead.num_steps,
            predicted_probe_share=facts.probe_share,
            fingerprints=facts.fingerprints,
            versions=facts.versions,
            sources={name: self._settings.sources.get(name) for name in ("detection", "references")},
        )

    # Start and end of a run

    def _restore(self, state) -> None:
        """Take over the checkpoint's state, or refuse and say why."""
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes")
        if not saved:
            raise ValueError(
                f"the checkpoint at step {state.global_step} was written without versatune, so the rows it was trained "
                "on are unknown: start a new run from its weights instead of resuming it"
            )
        if saved["version"] != STATE_VERSION:
            raise ValueError(
                f"the checkpoint's state has version {saved['version']}, this release reads {STATE_VERSION}"
            )
        self._steering.load_state_dict(saved["steering"])
        changed = [
            f"{_IN_WORDS[rows]} of {domain!r}"
            for rows, by_name in self._trainer.facts.fingerprints.items()
            for domain, fingerprint in by_name.items()
            if saved["fingerprints"][rows].get(domain) != fingerprint
        ]
        if changed:
            raise ValueError(
                f"the {', '.join(changed)} are not those of the checkpoint: the resumed run would silently be another "
                "one. Restore the data, and the settings that decide its tokens and targets (max_length or "
                "sequence_len, the chat template, what is masked), or start a new run"
            )
        if self._trainer.train_losses is not None and saved["train_losses"] is not None:
            self._trainer.train_losses.load_state_dict(saved["train_losses"])
        before, now = saved["settings"] | saved["circumstances"], self._settings.block | self._circumstances
        self._tells_probe = before.get("probe_rows") != now["probe_rows"]
        self._tells_facts = before != now
        then = (
            "The rows go on exactly until the next update; from there this run differs from one that was never stopped"
        )
        if self._asks_for_other_proportions(saved):
            self._changes_at = state.global_step + 1
            acts = self._changes_at + self._look_ahead.num_steps
            shares = _shown(self._settings.domains, self._settings.start)
            then = f"The rows go on exactly up to step {acts}; from there they are drawn by {shares}"
        for name, was in before.items():
            if was != now.get(name):
                self._logger.warning(
                    "resumed with another setting: %s was %s, is now %s. %s",
                    _IN_WORDS.get(name, name),
                    was,
                    now.get(name),
                    then,
                )

    def _asks_for_other_proportions(self, saved: Mapping) -> bool:
        """Whether a strategy that keeps its proportions is to keep others than those of the checkpoint's run.

        Raises:
            ValueError: Another start was given to a strategy that goes on from where it is.
        """
        settings, before = self._settings, saved["settings"]
        strategy, is_another = settings.strategy, saved["asked"] != settings.asked.tolist()
        if isinstance(strategy, Staged):
            return is_another or before["strategy"] != settings.block["strategy"]
        if isinstance(strategy, Fixed):
            return is_another or any(before[key] != settings.block[key] for key in ("strategy", "guards"))
        if is_another:
            raise ValueError(
                "versatune.initial_proportions (with initial_power and expansion.start) asked for "
                f"{_shown(settings.domains, saved['asked'])} when the run began, and now for "
                f"{_shown(settings.domains, settings.asked)}: under strategy {settings.block['strategy']!r} a resumed "
                "run goes on from the proportions that it has reached, so a new start would do nothing; give the one "
                "that it had, or start a new run from the checkpoint's weights"
            )
        return False

    def _open_history(self, output_dir: str, resumed: bool) -> History:
        """A new history, or that of the run which wrote the checkpoint (it may lie in another folder)."""
        if not resumed:
            return History(history_path(output_dir))
        assert self._trainer.resumed_from is not None
        path, before = history_path(output_dir), history_path(Path(self._trainer.resumed_from).parent)
        if not before.exists():  # a checkpoint that was moved away from its run
            missing, before = before, path
            found = f"goes on with {path}" if path.exists() else f"begins after step {self._steering.step}"
            self._logger.warning("there is no %s beside the checkpoint: the history %s", missing, found)
        return History(path, before, self._steering.step)

    def _announce(self, state) -> None:
        settings, look_ahead, num_rows = self._settings, self._look_ahead, self._trainer.facts.num_rows_by_domain
        if state.is_world_process_zero:
            self._logger.info(
                "%s: strategy %s, %d domains, %s, %s; update every %d steps, acting %d step(s) later (the loader "
                "holds up to %d batch(es))",
                f"resumed at step {state.global_step}" if state.global_step else "start",
                settings.block["strategy"],
                len(settings.domains),
                "streams" if num_rows is None else f"{sum(num_rows.values())} rows",
                _shown(settings.domains, self._steering.mixture.proportions),
                settings.interval,
                look_ahead.num_steps,
                look_ahead.num_batches,
            )
            if (planned := settings.strategy.describe(state.max_steps)) is not None:
                self._logger.info("%s", planned)
            of_run = (state.max_steps, settings.interval)
            if not (num_acting_updates(*of_run, look_ahead.num_steps) or isinstance(settings.strategy, Fixed | Staged)):
                self._logger.warning("%s", never_updated(*of_run))
        if look_ahead.num_steps > settings.interval:
            self._logger.warning(
                "new proportions act %d steps after their update, later than the next update (every %d steps): lower "
                "dataloader_num_workers or dataloader_prefetch_factor, or raise versatune.update_interval",
                look_ahead.num_steps,
                settings.interval,
            )

    def _show_summary(self, history: History, seconds: float) -> None:
        records = history.read()
        if not records or self._trainer.reference_run is not None:  # unreadable, or no mixture to show
            return
        self._logger.info("rows drawn and losses by domain:\n%s", format_summary(records, _MOST_ROWS))
        self._logger.info("history %s", history.path)
        if self._probe_seconds:
            share = 100 * self._probe_seconds / seconds
            self._logger.info(
                "probes took %.1f s, %.1f %% of the run (predicted: %.1f %%)",
                self._probe_seconds,
                share,
                100 * (self._trainer.facts.probe_share or 0.0),
            )
        try:
            plot = plot_history(records, history.path.with_name("mixture.png"))
        except ImportError as error:
            self._logger.warning("no plot: %s; pip install 'versatune_plugin[report]'", error)
        except Exception as error:  # whatever a plotting library may raise, a finished run must not fail by it
            self._logger.warning("no plot: %r", error)
        else:
            self._logger.info("plot %s", plot)
            if names := numbered(self._settings.domains):
                in_words = ", ".join(f"{number} {name}" for name, number in names.items())
                self._logger.info("no font here has the characters of some names, so the plot has: %s", in_words)

    def _show_waiting(self, step: int) -> None:
        """Say what was drawn and did not come to be trained on, where that is much beside what was."""
        feed, trained_on = self._steering.feed, int(self._steering.drawn[0].sum())
        waiting = feed.sampler.count_by_domain(feed.waiting_before(step))
        if self._trainer.reference_run is None and waiting.sum() > _MUCH * trained_on:
            self._logger.info(
                "still waiting for a bin when the run ended: %s rows, beside %d that were trained on; by so much the "
                "realised shares may differ from the requested ones, as in any packed run so short",
                in_a_line(dict(zip(self._settings.domains, waiting.tolist(), strict=True)), digits=0),
                trained_on,
            )


def _shown(domains: Sequence[str], proportions: Iterable[Any]) -> str:
    """Proportions in words, such as "law 0.333, code 0.667"."""
    return in_a_line(dict(zip(domains, proportions, strict=True)))


def _probe_rows(probe: Mapping[str, Mapping] | None) -> dict[str, str] | None:
    """Which rows each domain is measured on, in short: how many, and the beginning of their fingerprint."""
    if probe is None:
        return None
    return {domain: f"{facts['rows']} ({facts['fingerprint'][:8]})" for domain, facts in probe.items()}
