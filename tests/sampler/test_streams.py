"""The mixture over streams: dealt out as fairly as rows are, live, and resumed exactly whatever the streams are.

`pytest tests/test_streams.py`; no host.
"""

import itertools
import json
import logging
import re
import threading

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset

from tests.tiny import axolotl_config
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files import rows as data
from versatune_plugin.files.record import Record
from versatune_plugin.hosts import stream_checks
from versatune_plugin.hosts.axolotl.config import fill_in
from versatune_plugin.hosts.checks import source_problems
from versatune_plugin.report import format_summary
from versatune_plugin.sampler.draws import MixtureSampler
from versatune_plugin.sampler.feed import Feed
from versatune_plugin.sampler.packing import PackedBatchSampler
from versatune_plugin.sampler.streams import MixtureStream, first_rows

SIZES = {"law": 70, "medicine": 45, "code": 9}
BLOCK = 6
START = (0.5, 0.3, 0.2)


def tokenised(row: dict) -> dict:
    """A row of 2 to 5 tokens that begins with its number; the first half of them are no targets."""
    tokens = [row["n"], *range(1 + row["n"] % 4)]
    return {"input_ids": tokens, "labels": [-100] * (len(tokens) // 2) + tokens[len(tokens) // 2 :]}


def numbers(first: int, count: int) -> Dataset:
    return Dataset.from_dict({"n": list(range(first, first + count))})


def streams(num_shards: int = 3) -> dict[str, IterableDataset]:
    """A stream per domain whose rows are numbered from 0, 1000 and 2000."""
    return {
        domain: numbers(1000 * place, size).to_iterable_dataset(num_shards).map(tokenised)
        for place, (domain, size) in enumerate(SIZES.items())
    }


class Run:
    """A loader that reads one row ahead of training, and the step that training has reached."""

    def __init__(self, given=None, state=None, num_steps=40, proportions=START, logger=None, block_size=BLOCK):
        self.step = 0
        self.stream = MixtureStream(
            given or streams(),
            proportions,
            block_size=block_size,
            steps_per_epoch=num_steps,
            seed=3,
            step=lambda: self.step,
            logger=logger,
        )
        self.block_size = block_size
        if state is not None:
            self.step = state["step"]
            self.stream.load_state_dict(json.loads(json.dumps(state, allow_nan=False)))
        self.stream.set_epoch(0)
        self._rows = itertools.islice(iter(self.stream), self.step * block_size, None)  # as a host skips
        self._ahead = next(self._rows)

    def train(self) -> list[int]:
        """One optimizer step; the numbers of its rows."""
        rows = []
        for _ in range(self.block_size):
            rows.append(self._ahead)
            self._ahead = next(self._rows, None)
        self.step += 1
        return [row["input_ids"][0] for row in rows]


def domains_of(rows) -> np.ndarray:
    return np.array(rows) // 1000


def logger_of(caplog) -> logging.Logger:
    """A logger of its own: once Axolotl was imported, pytest sees nothing of one made by name."""
    logger = logging.Logger("streams", logging.INFO)
    logger.addHandler(caplog.handler)
    return logger


def test_domains_are_dealt_out_as_the_sampler_does():
    run, sampler = Run(), MixtureSampler(dict(SIZES), START, block_size=BLOCK, num_samples=10**6, seed=3)
    for step in range(40):
        expected = sampler.domain_ids(sampler.rows(step * BLOCK, (step + 1) * BLOCK))
        assert domains_of(run.train()).tolist() == expected.tolist()


def test_every_stream_is_read_in_its_order_and_begins_anew_where_it_ends(caplog):
    run = Run(streams(num_shards=1), logger=logger_of(caplog))
    read = np.concatenate([run.train() for _ in range(40)])
    for place, size in enumerate(SIZES.values()):
        of_domain = read[read // 1000 == place] - 1000 * place
        assert len(of_domain) > size
        assert (of_domain == np.arange(len(of_domain)) % size).all()
    assert [record.message for record in caplog.records] == [
        "the stream of code has ended after 9 rows and begins anew",
        "the stream of law has ended after 70 rows and begins anew",
        "the stream of medicine has ended after 45 rows and begins anew",
    ]


def test_new_proportions_act_at_the_announced_draw():
    run = Run()
    read = [run.train() for _ in range(10)]
    at_draw = run.stream.sampler.set_proportions((0, 0, 1), at_draw=run.stream.draws_until(run.step + 1))
    assert at_draw == 11 * BLOCK
    read += [run.train() for _ in range(5)]
    assert set(domains_of(read[10])) == {0, 1, 2}
    assert all(set(domains_of(rows)) == {2} for rows in read[11:])


def test_what_was_read_ahead_cannot_be_given_new_proportions():
    run = Run()
    run.train()
    with pytest.raises(ValueError, match="at_draw must be a multiple of 6 and at least 12"):
        run.stream.sampler.set_proportions((0, 0, 1), at_draw=BLOCK)


def test_resumed_at_every_step_it_is_the_run_that_was_never_stopped():
    def change(run):
        if run.step % 7 == 3:
            weights = np.array([1, 1 + run.step % 5, 2])
            run.stream.sampler.set_proportions(weights / weights.sum(), at_draw=run.stream.draws_until(run.step + 1))
        if run.step % 5 == 0:
            run.stream.forget_before(run.step)

    whole, read, states = Run(), [], []
    for _ in range(40):
        states.append(whole.stream.state_dict())
        read.append(whole.train())
        change(whole)
    for step in (*range(1, 40), 39):
        run = Run(state=states[step])
        for later in range(step, min(40, step + 12)):
            assert run.train() == read[later], f"resumed at {step}, step {later}"
            change(run)
        if run.step < 40:
            assert run.stream.state_dict() == states[run.step]


def shuffled_with_a_buffer() -> IterableDataset:
    return numbers(0, 100).to_iterable_dataset(4).shuffle(seed=1, buffer_size=20)


def jsonl(folder) -> IterableDataset:
    for part in range(3):
        lines = [json.dumps({"n": 40 * part + row}) for row in range(40)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    files = [str(folder / f"{part}.jsonl") for part in range(3)]
    return load_dataset("json", data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache"))


def doubled(batch: dict) -> dict:
    return {"n": [2 * n + more for n in batch["n"] for more in (0, 1)]}


KINDS = {
    "rows in shards": lambda folder: numbers(0, 100).to_iterable_dataset(3),
    "a generator": lambda folder: IterableDataset.from_generator(lambda: ({"n": n} for n in range(100))),
    "files": jsonl,
    "files, filtered": lambda folder: jsonl(folder).filter(lambda row: row["n"] % 3 > 0),
    "files of a given format": lambda folder: jsonl(folder).with_format(None),
    "mapped in batches": lambda folder: numbers(0, 50).to_iterable_dataset(2).map(doubled, batched=True, batch_size=8),
    "a shuffle buffer": lambda folder: shuffled_with_a_buffer(),
    "interleaved": lambda folder: interleave_datasets(
        [numbers(0, 60).to_iterable_dataset(2), numbers(60, 50).to_iterable_dataset(1)],
        probabilities=[0.4, 0.6],
        seed=1,
    ),
    "concatenated": lambda folder: concatenate_datasets([jsonl(folder), numbers(200, 30).to_iterable_dataset(2)]),
    "a part": lambda folder: jsonl(folder).skip(20).take(80),
    "torch tensors": lambda folder: numbers(0, 100).to_iterable_dataset(3).map(tokenised).with_format("torch"),
}
ITS_STATE_DOES = {"a generator", "files of a given format"}
ITS_STATE_DOES_NOT = {"a shuffle buffer"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stream_is_resumed_exactly(kind, tmp_path, caplog):

    def build(state=None):
        stream = KINDS[kind](tmp_path)
        stream = stream if kind == "torch tensors" else stream.map(tokenised, remove_columns=["n"])
        logger = logger_of(caplog)
        return Run({"all": stream}, state, num_steps=60, proportions=(1.0,), block_size=5, logger=logger)

    whole, read, states = build(), [], []
    for _ in range(52):
        states.append(whole.stream.state_dict())
        read.append(whole.train())
    assert "begins anew" in caplog.text, "the stream should end within the run"
    caplog.clear()
    for step in range(1, 50, 4):
        run = build(states[step])
        assert [run.train(), run.train()] == read[step : step + 2], f"resumed at {step}"
    again = "does not lead back" in caplog.text
    assert again or kind not in ITS_STATE_DOES_NOT
    assert not again or kind not in ITS_STATE_DOES


@pytest.mark.parametrize("sources", [1, 2])
def test_streams_made_from_one_keep_their_places_apart(sources, caplog):
    parts = [
        IterableDataset.from_generator(lambda first=first: ({"n": n} for n in range(first, first + 150)))
        for first in (0, 150)
    ]
    base = concatenate_datasets(parts) if sources == 2 else parts[0]

    def build(state=None):
        parts = {
            domain: base.filter(lambda row, third=third: (row["n"] % 3 == 0) == third).map(tokenised)
            for domain, third in (("law", False), ("medicine", True))
        }
        return Run(parts, state, proportions=(0.4, 0.6), num_steps=30, logger=logger_of(caplog))

    whole, read, states = build(), [], []
    for _ in range(25):
        states.append(whole.stream.state_dict())
        read.append(whole.train())
    for step in (3, 12, 20):
        run = build(states[step])
        assert [run.train() for _ in range(4)] == read[step : step + 4]
    assert "does not lead back" not in caplog.text


class Source:
    """Rows from behind a lock, which no process can copy."""

    def __init__(self, first: int):
        self.lock = threading.Lock()
        self.first = first

    def rows(self, source=None):
        for n in range(self.first, self.first + 50):
            with self.lock:
                row = {"n": n}
            yield row

    def tokenised(self, row, lock=None):
        return tokenised(row)


UNCOPIED = {
    "a method": lambda source: IterableDataset.from_generator(source.rows),
    "an argument": lambda source: IterableDataset.from_generator(source.rows, gen_kwargs={"source": source}),
    "a mapped method": lambda source: numbers(source.first, 50).to_iterable_dataset(2).map(source.tokenised),
    "an argument of a map": lambda source: concatenate_datasets([numbers(source.first, 50).to_iterable_dataset(2)]).map(
        source.tokenised, fn_kwargs={"lock": source.lock}
    ),
}


@pytest.mark.parametrize("kind", UNCOPIED)
def test_what_a_stream_reads_from_and_calls_is_not_copied(kind):
    given = {d: UNCOPIED[kind](Source(1000 * n)).map(tokenised) for n, d in enumerate(("law", "medicine"))}

    def build(state=None):
        return Run(given, state, proportions=(0.4, 0.6), num_steps=30)

    whole, read, states = build(), [], []
    for _ in range(25):
        states.append(whole.stream.state_dict())
        read.append(whole.train())
    assert whole.stream.state_dict()["places"]["medicine"]["pass"] == 1, "the stream should end within the run"
    for step in (3, 20):
        run = build(states[step])
        assert [run.train() for _ in range(4)] == read[step : step + 4]
    assert [stream.epoch for stream in given.values()] == [0, 0], "the given streams are the user's"


def test_one_stream_for_two_domains_is_read_by_each_from_its_beginning():
    one = numbers(0, 100).to_iterable_dataset(2).map(tokenised)
    run = Run({"law": one, "medicine": one}, proportions=(0.5, 0.5))
    read = [row for _ in range(10) for row in run.train()]
    assert sorted(read) == sorted([*range(30), *range(30)])


def test_amounts_are_those_of_the_rows_that_were_trained_on():
    def of_rows(numbers) -> list[list[int]]:
        """By definition, from the rows as a Dataset."""
        parts = [[tokenised({"n": n}) for n in numbers if n // 1000 == place] for place in range(3)]
        return [[int(data.costs(Dataset.from_list(p), unit).sum()) if p else 0 for p in parts] for unit in data.UNITS]

    whole = Run()
    read = [whole.train() for _ in range(4)]
    whole.stream.forget_before(4)
    state = whole.stream.state_dict()
    read += [whole.train() for _ in range(3)]
    since = of_rows([n for rows in read[4:] for n in rows])
    assert whole.stream.amounts_of_steps(4, 7).tolist() == since
    assert whole.stream.amounts_of_steps(0, 7).tolist() == since  # what came before is forgotten
    later = whole.stream.state_dict()
    for resumed in (Run(state=state), Run(state=later)):
        while resumed.step < 9:
            resumed.train()
        while whole.step < 9:
            whole.train()
        expected = whole.stream.amounts_of_steps(4, 9)
        assert resumed.stream.amounts_of_steps(4, 9).tolist() == expected.tolist()


def test_rows_without_labels_are_their_own():
    stream = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4}).to_iterable_dataset()
    run = Run({"law": stream}, proportions=(1.0,), block_size=2)
    run.train()
    assert run.stream.amounts_of_steps(0, 1).tolist() == [[2], [6], [4]]


def test_memory_and_state_do_not_grow_with_the_steps():
    run, sizes = Run(num_steps=2000), []
    for _ in range(1200):
        run.train()
        if run.step % 10 == 0:
            weights = np.array([1, 1 + run.step % 3, 2])
            run.stream.sampler.set_proportions(weights / weights.sum(), at_draw=run.stream.draws_until(run.step + 1))
            run.stream.forget_before(run.step)
            sizes.append(len(json.dumps(run.stream.state_dict())))
            assert len(run.stream._places) <= 2
            assert len(run.stream._amounts) <= 1
    assert max(sizes[60:]) < 1.1 * max(sizes[:30])


def test_before_it_is_read_a_stream_is_at_its_beginning_whatever_step_a_former_run_reached():
    stream = MixtureStream(streams(), START, block_size=BLOCK, steps_per_epoch=40, seed=3, step=lambda: 14)
    state = stream.state_dict()
    assert state["step"] == 0
    assert Run(state=state).train() == Run().train()


def test_rows_of_equal_length_that_differ_show_in_the_state():
    def with_row(token):
        row = Dataset.from_list([{"input_ids": [token, 1, 2]}])
        rows = concatenate_datasets([Dataset.from_list([{"input_ids": [n, 1, 2]}] * 40) for n in range(2)])
        given = concatenate_datasets([rows, row]).to_iterable_dataset()
        run = Run({"law": given}, proportions=(1.0,), block_size=9)
        for _ in range(9):
            run.train()
        return run.stream

    one, same, other = with_row(5), with_row(5), with_row(6)
    assert other.amounts_of_steps(0, 9).tolist() == one.amounts_of_steps(0, 9).tolist()
    assert same.state_dict() == one.state_dict() != other.state_dict()


def test_every_way_in_which_rows_come_is_a_feed():
    sampler = MixtureSampler(dict(SIZES), START, block_size=BLOCK, num_samples=60)
    assert isinstance(sampler, Feed)
    assert isinstance(Run().stream, Feed)
    names = [name for name in vars(Feed) if not name.startswith("_")]
    assert "steps_per_epoch" in names
    assert all(hasattr(PackedBatchSampler, name) for name in names if name not in ("sampler", "steps_per_epoch"))


def test_a_stream_without_rows_is_named():
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match=r"the stream of domain 'code' gives no row$"):
        Run(streams() | {"code": empty}).train()


def test_a_stream_that_can_be_read_only_once_is_named():
    once = iter([tokenised({"n": 2000})] * 5)
    given = streams() | {"code": IterableDataset.from_generator(lambda: once)}
    run = Run(given)
    with pytest.raises(ValueError, match="'code' gives no row, when it is begun anew: give one that can be read"):
        [run.train() for _ in range(20)]


ONCE = iter([{"n": n} for n in range(100)])
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (IterableDataset.from_generator(lambda: iter(())), "the stream of domain 'code' gives no row"),
        (IterableDataset.from_generator(lambda: ONCE), "'code' gives another first row when it is opened again"),
        (
            IterableDataset.from_generator(lambda: ({"n": int(n)} for n in RANDOM.permutation(1000))),
            "always in the same order",
        ),
    ],
)
def test_a_stream_that_cannot_be_begun_anew_is_found_before_the_run(stream, message):
    assert source_problems(streams() | {"torch": streams()["law"].with_format("torch")}) == []
    (problem,) = source_problems(streams() | {"code": stream})
    assert message in problem


@pytest.mark.parametrize("seed", [None, 7])
def test_a_shuffle_that_seems_to_have_no_seed_is_told_at_the_start(caplog, seed):
    ordered = numbers(0, 40).to_iterable_dataset(2)
    given = {
        "law": ordered.map(tokenised),
        "medicine": ordered.shuffle(seed=seed, buffer_size=9).map(tokenised),
        "code": interleave_datasets([ordered, ordered], probabilities=[0.5, 0.5], seed=seed).map(tokenised),
    }
    Run(given, logger=logger_of(caplog))
    told = [record.message.split(" seems")[0] for record in caplog.records]
    assert told == ([] if seed else ["the stream of medicine", "the stream of code"])


def test_a_resumed_run_reads_on_to_its_place_once_and_when_the_state_is_loaded():
    read = []

    def counted(row):
        read.append(row["n"])
        return tokenised(row)

    given = {"law": numbers(0, 200).to_iterable_dataset(2).map(counted)}
    run = Run(given, proportions=(1.0,))
    for _ in range(9):
        run.train()
    state = run.stream.state_dict()
    read.clear()
    resumed = Run(given, proportions=(1.0,)).stream
    read.clear()
    resumed.load_state_dict(state)
    assert read[-1] == 9 * BLOCK - 1
    resumed.set_epoch(0)
    read.clear()
    next(itertools.islice(iter(resumed), 9 * BLOCK, None))
    assert read == [9 * BLOCK]


@pytest.mark.parametrize("steps", [1, 9])
def test_another_stream_under_the_same_name_is_refused(steps):
    def build(first, state=None):
        stream = numbers(first, 200).to_iterable_dataset(2).map(tokenised)
        return Run({"law": stream}, state, proportions=(1.0,))

    run = build(0)
    for _ in range(steps):
        run.train()
    with pytest.raises(ValueError, match="the stream of domain 'law' gives other rows than before: pass 1 up to row"):
        build(500).stream.load_state_dict(run.stream.state_dict())


def test_a_shuffle_without_a_seed_is_refused_at_a_resume():
    def build(state=None):
        stream = numbers(0, 200).to_iterable_dataset(2).shuffle(buffer_size=50).map(tokenised)
        return Run({"law": stream}, state, proportions=(1.0,))

    run = build()
    for _ in range(9):
        run.train()
    with pytest.raises(ValueError, match=r"needs `shuffle\(seed=...\)`"):
        build(run.stream.state_dict()).train()


def test_the_state_of_rows_that_were_no_streams_is_refused():
    sampler = MixtureSampler(dict(SIZES), START, block_size=BLOCK, num_samples=60)
    with pytest.raises(ValueError, match="not those of streams of version 1"):
        Run().stream.load_state_dict(sampler.state_dict())


def test_first_rows_are_those_of_each_stream_and_leave_it_at_its_beginning():
    given = streams()
    assert {d: len(rows) for d, rows in first_rows(given).items()} == {"law": 32, "medicine": 32, "code": 9}
    assert Run(given).train() == Run().train()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"unit": "tokens"}, "versatune.unit: 'tokens' is not available with streams"),
        ({"strategy": "multitask"}, "'multitask' plans by the number of rows"),
        ({"strategy": "proportional"}, "'proportional' needs the number of rows"),
        ({"initial_proportions": "proportional"}, "'proportional' needs the number of rows"),
        ({"strategy": "temperature"}, "versatune.strategy: 'temperature' needs the number of rows"),
        ({"repeats": {"law": 2}, "initial_proportions": None}, "versatune.repeats: 'repeats' needs the number of rows"),
        ({"strategy": "unimax"}, "versatune.strategy: unimax needs the number of rows"),
        ({"guards": {"max_passes": 2}}, "max_passes needs the number of rows"),
        ({"samples_per_epoch": 100}, "a run on streams has no epochs"),
        ({"initial_proportions": "detected"}, "detection.json does not exist, and streams are not read through"),
        ({"reference_losses": "some.json"}, "that some.json was measured on cannot be told of streams"),
        ({"domain_column": "domain"}, "give every domain a stream of its own"),
    ],
)
def test_what_streams_cannot_give_is_refused(block, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    allowed = {"strategy": "versatune", "initial_proportions": "uniform", "reference_losses": "self"}
    assert stream_checks.block_problems(VersaTuneConfig.model_validate(allowed)) == []
    (problem,) = stream_checks.block_problems(VersaTuneConfig.model_validate(allowed | block))
    assert message in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "streaming: a stream has no length, so max_steps must be given"),
        ({"dataloader_num_workers": 4}, "dataloader_num_workers 4: a worker reads a copy of the streams"),
        (
            {"dataloader_num_workers": None, "dataloader_prefetch_factor": 4},
            "dataloader_prefetch_factor 4: streams",
        ),
        (
            {"test_datasets": None, "val_set_size": 0.1},
            "no held-out rows to measure the domains on: none are",
        ),
        ({"sample_packing": True}, "streaming: with sample_packing Axolotl streams one dataset only"),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "accelerator_config.dispatch_batches: every process reads",
        ),
        ({"versatune": {"strategy": "proportional", "update_interval": 4}}, "versatune.strategy: 'proportional' needs"),
        ({"pretraining_dataset": [{"path": "c4"}]}, "pretraining_dataset: cannot be combined with versatune"),
    ],
)
def test_what_axolotl_cannot_do_on_streams_is_a_mistake_in_the_yaml(changes, message, tmp_path):
    fill_in(axolotl_config(tmp_path, tmp_path, streaming=True))
    with pytest.raises(ValueError, match=f"1 mistake.*\n  {re.escape(message)}"):
        fill_in(axolotl_config(tmp_path, tmp_path, streaming=True, **changes))


def test_the_summary_leaves_out_what_a_stream_does_not_tell():
    law = {"law": 1.0}
    records = [
        Record(step=n, num_drawn=n, drawn_by_domain={"law": n}, proportions_before=law, proportions=law) for n in (0, 4)
    ]
    (line,) = format_summary(records).splitlines()[1:]
    assert line.split()[:6] == ["law", "-", "4", "-", "1.000", "1.000"]
