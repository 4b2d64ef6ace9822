"""VersaTuneCallback: at each update interval probe -> mixture -> sampler -> history; saved with checkpoints.

Staleness. Rows reach the model some batches after they were drawn: a rank holds up to 1 + workers * prefetch
micro-batches. New proportions therefore act on the first draw that no optimizer step within that look-ahead can need;
it is computed from the step, not from where the loader happens to be, so it is the same on all ranks and after a
resume.
"""

import logging
import math
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from versatune_plugin.files.history import History, history_path
from versatune_plugin.files.record import Block, Record, Run, Test
from versatune_plugin.files.rows import UNITS
from versatune_plugin.hosts import progress
from versatune_plugin.mixture.mixture import Mixture, Update
from versatune_plugin.report import format_summary, format_update, plot_history

STATE_VERSION = 3

_PACKAGES = ("versatune_plugin", "torch", "transformers", "trl", "axolotl")


@dataclass(frozen=True)
class LookAhead:
    """How far the loader draws ahead of training."""

    num_batches: int
    """Micro-batches per rank."""
    num_steps: int
    """The same in optimizer steps, rounded up."""

    @classmethod
    def of(cls, args) -> "LookAhead":
        """The look-ahead under these training arguments."""
        num_batches = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        return cls(num_batches, math.ceil(num_batches / args.gradient_accumulation_steps))


class VersaTuneCallback(TrainerCallback, ExportableState):
    """Measures, decides and records at every update interval.

    Args:
        trainer: A `VersaTuneMixin` trainer: gives the sampler, the probe losses and the log.
        fingerprints: Of each set of rows; a resumed run must have the same.
        logger: Where the log lines go.
    """

    def __init__(
        self,
        trainer,
        fingerprints: dict[str, str],
        logger: logging.Logger,
    ) -> None:
        self._trainer = weakref.proxy(trainer)  # which holds this callback: a cycle would keep its loader's workers
        self._fingerprints = fingerprints
        self._logger = logger
        self._mixture: Mixture | None = None
        self._history: History | None = None
        self._before_end: tuple[int, dict] | None = None  # a step, and the state there without the run's end

    @property
    def records(self) -> list[Record]:
        """The history of the newest run, oldest first; empty on all processes but the main one."""
        return [] if self._history is None else self._history.read()

    # Hooks of the host

    def on_train_begin(self, args, state, control, **kwargs):
        """A new run measures before its first step; a resumed one takes over the checkpoint's state."""
        self._trainer.is_running = True
        used = self._trainer.settings_of_run(state.max_steps)
        self._settings, self._sources, self._stop_when_rising = used.block, used.sources, used.stop_when_rising
        self._mixture = used.mixture()
        self._plan = dict(self._mixture.strategy.plan(state.max_steps))
        self._num_draws = self._planned_draw(state.max_steps)  # of the whole run
        self._interval = used.interval
        self._look_ahead = LookAhead.of(args)
        # rows, tokens and target tokens by domain, at the last history line
        self._drawn = np.zeros((len(UNITS), len(self._mixture.domains)), dtype=np.int64)
        self._recorded_step = -1  # optimizer step of the last history line
        self._tells_probe = self._tells_facts = True  # in the next line; of a resumed run where they are others
        self._before_end = None
        self._probe_seconds = self._last_probe_seconds = 0.0
        self._began = self._recorded_at = time.perf_counter()
        resumed = state.global_step > 0
        if self._trainer.train_losses is not None:
            self._trainer.start_train_losses()  # what an interrupted call of train() left does not count
        if resumed:
            self._restore(state)
        else:
            for step, proportions in self._plan.items():
                self._trainer.mixture_sampler.set_proportions(proportions, at_draw=self._planned_draw(step))
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._history = self._open_history(args.output_dir, resumed) if state.is_world_process_zero else None
        if state.is_world_process_zero:
            progress.chart_quantities(self._trainer)
        with progress.beside_the_bar():
            self._announce(state)
        if not resumed:
            self._record_measurement(state, self._measure(state, decide=False))
        elif state.global_step >= state.max_steps:  # it was finished, and its checkpoint is without its end
            self._measure_end(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Point the sampler at the epoch: a loader that skips batches after a resume does not pass it on."""
        feed = self._trainer.feed
        feed.set_epoch(state.global_step // feed.steps_per_epoch)

    def on_step_end(self, args, state, control, **kwargs):
        """Update where the interval is over, or where a planned change acts."""
        if self._trainer.train_losses is not None:
            self._trainer.train_losses.sync(self._trainer.accelerator)
        if state.global_step % self._interval == 0 or state.global_step in self._plan:
            update = self._update(state)
            risen = update.forgetting is not None and (update.forgetting > 0).any()
            if self._stop_when_rising and risen and state.global_step > self._interval:
                control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Measure the end of a run: later its trackers are closed, and the model may be that of another step."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._measure_end(state)
        elif state.global_step % self._trainer.feed.steps_per_epoch:
            raise ValueError(
                f"a callback ended an epoch early, after step {state.global_step} (control.should_epoch_stop): the "
                "mixture's rows are dealt out in whole epochs; let it set control.should_training_stop"
            )

    def on_log(self, args, state, control, **kwargs):
        """Measure the end where something has stopped the run after its last epoch's end."""
        if self._trainer.is_running and control.should_training_stop:
            self._measure_end(state)

    on_evaluate = on_save = on_log

    def on_train_end(self, args, state, control, **kwargs):
        """Show what happened; what nobody was told of before, the end of the run, is measured first."""
        self._trainer.is_running, self._before_end = False, None
        if self._recorded_step < state.global_step:
            is_another = self._trainer.step_of_weights not in (None, state.global_step)
            measured = self._mixture.unmeasured() if is_another else self._measure(state, decide=False)
            self._record_measurement(state, measured)
        if state.is_world_process_zero:
            self._history.finish()
            self._trainer.finish_model_card()
            self._show_summary(time.perf_counter() - self._began)

    def state(self) -> dict:
        """What a checkpoint keeps of a run: without the measurement of its end, which a longer run does not make."""
        if self._before_end is not None and self._before_end[0] == self._trainer.state.global_step:
            return self._before_end[1]
        if self._mixture is None or self._trainer.feed is None:
            return {"args": {}, "attributes": {}}
        return {
            "args": {},
            "attributes": {
                "version": STATE_VERSION,
                "kind of feed": type(self._trainer.feed).__name__,
                "feed": self._trainer.feed.state_dict(),
                "mixture": self._mixture.state_dict(),
                "train_losses": losses.state_dict() if (losses := self._trainer.train_losses) is not None else None,
                "drawn": self._drawn.tolist(),
                "recorded_step": self._recorded_step,
                "plan": self._listed_plan(),
                "fingerprints": self._fingerprints,
                "settings": self._settings
                | {
                    "steps until new proportions act": self._look_ahead.num_steps,
                    "number of processes": self._trainer.args.world_size,
                    "steps between updates": self._interval,
                    "probe rows": _named(self._trainer.probe_facts),
                },
            },
        }

    # One update

    def _measure_end(self, state) -> None:
        if self._recorded_step < state.global_step:
            self._before_end = (state.global_step, self.state())
            self._record_measurement(state, self._measure(state, decide=False))

    def _record_measurement(self, state, update: Update) -> None:
        """Record what changes no proportions."""
        self._account(state)
        self._record(state, update, acts_at_draw=None)

    def _update(self, state) -> Update:
        self._account(state)
        if state.global_step in self._plan:  # the sampler has known it since the start
            update = self._measure(state, decide=True)
            self._record(state, update, acts_at_draw=self._planned_draw(state.global_step))
            return update
        sampler, acts_at_draw = self._trainer.mixture_sampler, None
        next_draw = self._trainer.feed.draws_until(state.global_step + self._look_ahead.num_steps)
        update = self._measure(state, decide=True, caps=self._caps(next_draw))
        self._trainer.check_agreement(update.proportions)
        if not np.array_equal(update.proportions, update.proportions_before):
            acts_at_draw = sampler.set_proportions(update.proportions, at_draw=next_draw)
        self._record(state, update, acts_at_draw)
        return update

    def _measure(self, state, decide: bool, caps: np.ndarray | float = 1.0) -> Update:
        mixture, measured = self._mixture, self._losses(state)
        if measured is None:
            without = decide and not mixture.strategy.needs_losses
            return mixture.advance(state.global_step, caps) if without else mixture.unmeasured()
        losses, pieces = measured
        return mixture.update(losses, state.global_step, pieces, caps) if decide else mixture.observe(losses, pieces)

    def _losses(self, state) -> tuple[np.ndarray, np.ndarray | None] | None:
        """What was measured, by domain and in pieces; None where nothing was."""
        if self._trainer.train_losses is not None:
            return (self._trainer.train_losses.measure(self._trainer.accelerator), None) if state.global_step else None
        measurement = self._trainer.probe_losses()
        if measurement is None:
            return None
        losses, pieces, self._last_probe_seconds = measurement
        self._probe_seconds += self._last_probe_seconds
        return losses, pieces

    def _caps(self, draw: int) -> np.ndarray | float:
        """Highest proportions from a draw on, by the limit on passes."""
        guards, sampler = self._mixture.guards, self._trainer.mixture_sampler
        if math.isinf(guards.max_passes):
            return 1.0
        num_rows = np.array(list(sampler.num_rows_by_domain.values()))
        return guards.caps(num_rows, sampler.drawn_before(draw), self._num_draws - draw)

    def _planned_draw(self, step: int) -> int:
        """The draw at which an optimizer step (counted from 0) is expected to begin: exact unless rows are packed."""
        return step * self._trainer.mixture_sampler.block_size

    def _listed_plan(self) -> list:
        """The planned changes, as they are after a way through JSON."""
        return [[step, np.asarray(proportions).tolist()] for step, proportions in self._plan.items()]

    def _account(self, state) -> None:
        """Count what was trained on since the last history line."""
        self._since_last = self._trainer.amounts_of_steps(max(self._recorded_step, 0), state.global_step)
        self._drawn, self._recorded_step = self._drawn + self._since_last, state.global_step
        self._trainer.feed.forget_before(state.global_step)

    def _record(self, state, update: Update, acts_at_draw: int | None) -> None:
        """Write the update to the history, the trackers and the log."""
        feed = self._trainer.feed
        drawn, tokens, target_tokens = self._drawn
        before, self._recorded_at = self._recorded_at, time.perf_counter()
        record = Record(
            step=state.global_step,
            epoch=state.global_step / feed.steps_per_epoch,
            num_drawn=int(drawn.sum()),
            num_rows_by_domain=self._trainer.num_rows_by_domain,
            drawn_by_domain=self._by_domain(drawn),
            tokens_by_domain=self._by_domain(tokens),
            target_tokens_by_domain=self._by_domain(target_tokens),
            unit=self._settings["unit"],
            signal="probe" if self._trainer.train_losses is None else "train",
            losses=self._by_domain(update.losses),
            loss_errors=self._by_domain(update.loss_errors),
            reference_losses=self._by_domain(self._mixture.reference_losses),
            potential=self._by_domain(update.potential),
            forgetting=self._by_domain(update.forgetting),
            forgetting_since_start=self._by_domain(update.forgetting_since_start),
            forgetting_error=self._by_domain(update.forgetting_error),
            change_since_start=self._by_domain(update.change_since_start),
            change_since_start_error=self._by_domain(update.change_since_start_error),
            proportions_before=self._by_domain(update.proportions_before),
            proportions=self._by_domain(update.proportions),
            proposed=self._by_domain(update.proposed),
            expanded=update.expanded,
            test=update.test and Test(left=_or_null(update.test[0]), right=_or_null(update.test[1])),
            note=update.note,
            skipped=update.skipped,
            acts_at_draw=acts_at_draw,
            seconds=self._recorded_at - before,
            probe_seconds=self._last_probe_seconds,
            loss_unit=self._trainer.loss_unit,
            probe=self._trainer.probe_facts if self._tells_probe else None,
            run=self._facts(state) if self._tells_facts else None,
        )
        self._tells_probe = self._tells_facts = False
        if self._history is not None:
            self._history.append(record)
        amounts = self._since_last[UNITS.index(self._settings["unit"])]
        realised = amounts / amounts.sum() if amounts.any() else None
        numbers = {
            "proportion": record.proportions,
            "realised_share": self._by_domain(realised),
            "loss": record.losses,
            "potential": record.potential,
        }
        self._trainer.log_mixture(
            {
                f"{progress.PREFIX}{name}/{domain}": value
                for name in progress.QUANTITIES
                for domain, value in (numbers[name] or {}).items()
                if value is not None
            }
        )
        if self._history is not None:
            with progress.beside_the_bar():
                self._logger.info(format_update(record, state.max_steps))

    def _facts(self, state) -> Run:
        """What a simulation and a report need to know of the run."""
        return Run(
            settings=Block(**self._settings),
            num_steps=state.max_steps,
            block_size=self._trainer.mixture_sampler.block_size,
            update_interval=self._interval,
            look_ahead_steps=self._look_ahead.num_steps,
            predicted_probe_share=self._trainer.probe_share,
            fingerprints=self._fingerprints,
            versions=_versions(self._trainer.__class__),
            sources={name: self._sources.get(name) for name in ("detection", "references")},
        )

    def _by_domain(self, vector: np.ndarray | None) -> dict | None:
        """A vector as an object keyed by domain; numbers that are not finite become null."""
        if vector is None:
            return None
        return {domain: _or_null(value) for domain, value in zip(self._mixture.domains, vector.tolist(), strict=True)}

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
        self._mixture.load_state_dict(saved["mixture"])
        if saved["kind of feed"] != type(self._trainer.feed).__name__:
            raise ValueError(
                "the rows of the checkpoint's run came in another way than those of this run (packed, streamed or "
                "neither): resume it with the settings that it had"
            )
        self._trainer.feed.load_state_dict(saved["feed"])
        changed = [name for name, value in self._fingerprints.items() if saved["fingerprints"].get(name) != value]
        if changed:
            raise ValueError(
                f"the {', '.join(changed)} are not those of the checkpoint: the resumed run would silently be another "
                "one; restore the data or start a new run"
            )
        if saved["plan"] != self._listed_plan():
            raise ValueError(
                f"the stages of the checkpoint's run (steps and proportions) were {saved['plan']}, those of this run "
                f"are {self._listed_plan()}: resume it with the strategy, stages and number of steps that it had"
            )
        if self._trainer.train_losses is not None and saved["train_losses"] is not None:
            self._trainer.train_losses.load_state_dict(saved["train_losses"])
        self._drawn, self._recorded_step = np.array(saved["drawn"], dtype=np.int64), saved["recorded_step"]
        settings = self.state()["attributes"]["settings"]
        self._tells_probe = saved["settings"].get("probe rows") != settings["probe rows"]
        self._tells_facts = saved["settings"] != settings
        for name, was in saved["settings"].items():
            if was != settings.get(name):
                self._logger.warning(
                    "resumed with another setting: %s was %s, is now %s. The rows go on exactly until the next update; "
                    "from there this run differs from one that was never stopped",
                    name,
                    was,
                    settings.get(name),
                )

    def _open_history(self, output_dir: str, resumed: bool) -> History:
        """A new history, or that of the run which wrote the checkpoint (it may lie in another folder)."""
        if not resumed:
            return History(history_path(output_dir))
        path, before = history_path(output_dir), history_path(Path(self._trainer.resumed_from).parent)
        if not before.exists():  # a checkpoint that was moved away from its run
            missing, before = before, path
            found = f"goes on with {path}" if path.exists() else f"begins after step {self._recorded_step}"
            self._logger.warning("there is no %s beside the checkpoint: the history %s", missing, found)
        return History(path, before, self._recorded_step)

    def _announce(self, state) -> None:
        sampler = self._trainer.mixture_sampler
        if state.is_world_process_zero:
            self._logger.info(
                "%s: strategy %s, %d domains, %s, %s; update every %d steps, acting %d step(s) later (the loader "
                "holds up to %d batch(es))",
                f"resumed at step {state.global_step}" if state.global_step else "start",
                self._settings["strategy"],
                len(sampler.domains),
                "streams"
                if (num_rows := self._trainer.num_rows_by_domain) is None
                else f"{sum(num_rows.values())} rows",
                ", ".join(
                    f"{domain} {proportion:.3f}"
                    for domain, proportion in zip(sampler.domains, self._mixture.proportions, strict=True)
                ),
                self._interval,
                self._look_ahead.num_steps,
                self._look_ahead.num_batches,
            )
            if (planned := self._mixture.strategy.describe(state.max_steps)) is not None:
                self._logger.info("%s", planned)
        if self._look_ahead.num_steps > self._interval:
            self._logger.warning(
                "new proportions act %d steps after their update, later than the next update (every %d steps): lower "
                "dataloader_num_workers or dataloader_prefetch_factor, or raise versatune.update_interval",
                self._look_ahead.num_steps,
                self._interval,
            )

    def _show_summary(self, seconds: float) -> None:
        records = self._history.read()
        if not records or len(self._mixture.domains) == 1:  # unreadable, or a reference run: no mixture to show
            return
        self._logger.info("what the run drew and what it did:\n%s", format_summary(records))
        self._logger.info("history %s", self._history.path)
        if self._probe_seconds:
            share = 100 * self._probe_seconds / seconds
            self._logger.info(
                "probes took %.1f s, %.1f %% of the run (predicted: %.1f %%)",
                self._probe_seconds,
                share,
                100 * self._trainer.probe_share,
            )
        try:
            plot = plot_history(records, self._history.path.with_name("mixture.png"))
        except ImportError as error:
            self._logger.warning("no plot: %s; pip install 'versatune_plugin[report]'", error)
        except Exception as error:  # whatever a plotting library may raise, a finished run must not fail by it
            self._logger.warning("no plot: %r", error)
        else:
            self._logger.info("plot %s", plot)


def _or_null(number: float) -> float | None:
    """A number that JSON knows."""
    return number if math.isfinite(number) else None


def _versions(trainer_class: type) -> dict[str, str]:
    """Versions of torch and of the packages that a trainer's class comes from."""
    used = {base.__module__.split(".")[0] for base in trainer_class.__mro__} | {"torch"}
    return {name: str(sys.modules[name].__version__) for name in _PACKAGES if name in used}


def _named(probe_facts: dict | None) -> dict | None:
    """Which rows each domain is measured on, in short."""
    if probe_facts is None:
        return None
    return {domain: f"{facts['rows']} ({facts['fingerprint'][:8]})" for domain, facts in probe_facts.items()}
