"""Real TRL runs on a tiny model: every way to give rows, every strategy, and what a user sees of a run."""

import gc
import json
import logging
import re
import shutil
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM, Trainer, TrainerCallback

pytest.importorskip("trl")

from tests.hosts import inside, runs
from tests.hosts.rows import HELDOUT, chats, prompts, text, tokenizer, tokens_only
from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, WORDS
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.report import drawing
from versatune_plugin.strategies import foster

SORTED = sorted(DOMAINS)
CHAT = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


# Rows


def test_dict_datasetdict_and_domain_column_give_the_same_run(workspace, tmp_path):
    from datasets import DatasetDict, concatenate_datasets

    rows, heldout = ({domain: given[domain] for domain in SORTED} for given in (text(), text(HELDOUT, 1000)))

    def column(by_domain):
        parts = [part.add_column("domain", [domain] * len(part)) for domain, part in by_domain.items()]
        return concatenate_datasets(parts).shuffle(seed=1)

    def in_order_of(column_rows, domain):  # a column keeps its own order of rows within a domain
        return column_rows.filter(lambda row: row["domain"] == domain).remove_columns("domain")

    mixed, mixed_heldout = column(rows), column(heldout)
    rows, heldout = ({domain: in_order_of(given, domain) for domain in SORTED} for given in (mixed, mixed_heldout))
    seen = []
    for name, forms in {
        "dict": (rows, heldout),
        "datasetdict": (DatasetDict(rows), DatasetDict(heldout)),
        "column": (mixed, mixed_heldout),
    }.items():
        inside.train(workspace, tmp_path / name, rows=forms[0], heldout=forms[1], max_steps=8)
        seen.append((runs.stream(tmp_path / name), runs.history(tmp_path / name)))
    assert seen[0] == seen[1] == seen[2]
    assert list(seen[0][1][0]["proportions"]) == SORTED


def test_column_of_another_name_is_read_where_the_block_names_it(workspace, tmp_path):
    from datasets import concatenate_datasets

    def column(by_domain):
        return concatenate_datasets([p.add_column("subject", [d] * len(p)) for d, p in by_domain.items()])

    trainer = inside.train(
        workspace,
        tmp_path,
        rows=column(text()),
        heldout=column(text(HELDOUT, 1000)),
        versatune=inside.block(domain_column="subject"),
        max_steps=3,
    )
    assert trainer.mixture_sampler.num_rows_by_domain == {domain: NUM_ROWS[domain] for domain in SORTED}


def test_domain_column_of_class_labels_gives_their_names(workspace, tmp_path):
    from datasets import ClassLabel, concatenate_datasets

    def column(by_domain):
        parts = [part.add_column("domain", [SORTED.index(d)] * len(part)) for d, part in by_domain.items()]
        return concatenate_datasets(parts).cast_column("domain", ClassLabel(names=SORTED))

    rows, heldout = column(text()), column(text(HELDOUT, 1000))
    trainer = inside.build(workspace, tmp_path, rows=rows, heldout=heldout)
    assert list(trainer.eval_dataset) == SORTED


def test_domains_of_different_row_formats_train_together(workspace, tmp_path):
    chat = tokenizer(workspace)
    chat.chat_template = CHAT
    makers = {"law": runs.text_rows, "medicine": prompts, "code": chats}
    trainer = inside.train(
        workspace,
        tmp_path,
        rows={domain: make(domain, NUM_ROWS[domain]) for domain, make in makers.items()},
        heldout={domain: make(domain, NUM_HELDOUT, 1000) for domain, make in makers.items()},
        trainer={"processing_class": chat},
        max_steps=6,
    )
    last = runs.history(tmp_path)[-1]
    assert last["num_rows_by_domain"] == NUM_ROWS
    assert min(last["drawn_by_domain"].values()) > 0
    assert all(0 < loss < 7 for loss in last["losses"].values())
    ends = np.cumsum(list(NUM_ROWS.values()))
    for row, tokens in enumerate(trainer.train_dataset["input_ids"]):
        domain = DOMAINS[np.searchsorted(ends, row, side="right")]
        assert f"Repeat {domain} " in chat.decode(tokens)
    assert chat.decode(trainer.train_dataset[len(trainer.train_dataset) - 1]["input_ids"]).startswith("<s>user: ")


@pytest.mark.parametrize("order", [("medicine", "law", "code"), ("law", "medicine", "code")], ids="-".join)
def test_prompts_are_masked_wherever_their_domain_stands(workspace, tmp_path, order):
    makers = {"law": runs.text_rows, "medicine": prompts, "code": runs.text_rows}
    trainer = inside.build(
        workspace,
        tmp_path,
        rows={domain: makers[domain](domain, NUM_ROWS[domain]) for domain in order},
        heldout={domain: makers[domain](domain, NUM_HELDOUT, 1000) for domain in order},
    )
    assert all(-100 in labels for labels in trainer.eval_dataset["medicine"]["labels"])
    assert not any(-100 in labels for labels in trainer.eval_dataset["law"]["labels"])
    domains = [domain for domain in order for _ in range(NUM_ROWS[domain])]
    for domain, labels in zip(domains, trainer.train_dataset["labels"][:], strict=True):
        assert (-100 in labels) == (domain == "medicine")


def test_users_word_on_masking_prompts_counts_in_every_domain(workspace, tmp_path):
    makers = {"law": runs.text_rows, "medicine": prompts, "code": runs.text_rows}
    trainer = inside.build(
        workspace,
        tmp_path,
        rows={domain: makers[domain](domain, NUM_ROWS[domain]) for domain in DOMAINS},
        heldout={domain: makers[domain](domain, NUM_HELDOUT, 1000) for domain in DOMAINS},
        completion_only_loss=False,
    )
    assert not any(-100 in labels for labels in trainer.eval_dataset["medicine"]["labels"])
    assert not any(-100 in labels for labels in trainer.train_dataset["labels"])


def test_rows_dropped_while_truncating_are_missing_in_their_own_domain(workspace, tmp_path):
    from datasets import Dataset

    rows = {domain: prompts(domain, NUM_ROWS[domain]) for domain in DOMAINS}
    too_long = " ".join(WORDS["medicine"] * 10)
    medicine = rows["medicine"].to_list()
    for place in (0, 7, 34):
        medicine[place]["prompt"] = f"{too_long} {place}"
    trainer = inside.train(
        workspace,
        tmp_path,
        rows=rows | {"medicine": Dataset.from_list(medicine)},
        heldout={domain: prompts(domain, NUM_HELDOUT, 1000) for domain in DOMAINS},
        max_steps=8,
    )
    sizes = NUM_ROWS | {"medicine": NUM_ROWS["medicine"] - 3}
    assert runs.history(tmp_path)[-1]["num_rows_by_domain"] == sizes
    assert len(trainer.train_dataset) == sum(sizes.values())
    check_every_row_is_in_its_domain(trainer, tokenizer(workspace), sizes)


def test_shuffled_rows_stay_in_their_domain(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, shuffle_dataset=True, max_steps=8)
    check_every_row_is_in_its_domain(trainer, tokenizer(workspace), NUM_ROWS)
    first = tokenizer(workspace).decode(trainer.train_dataset[0]["input_ids"])
    assert not first.startswith("Repeat law 0:"), "nothing was shuffled"
    rows = [row for step in inside.rows_trained_on(trainer, tmp_path) for row in step]
    assert inside.count_by_domain(trainer, rows) == inside.vector(runs.history(tmp_path)[-1], "drawn_by_domain")


def check_every_row_is_in_its_domain(trainer, words, sizes) -> None:
    texts = [words.decode(tokens) for tokens in trainer.train_dataset["input_ids"]]
    domain_ids = trainer.mixture_sampler.domain_ids(np.arange(len(texts)))
    for row, said in enumerate(texts):
        domain = DOMAINS[domain_ids[row]]
        assert any(word in said for word in WORDS[domain])
        assert not any(f"Repeat {other} " in said for other in DOMAINS if other != domain)
    assert np.bincount(domain_ids).tolist() == list(sizes.values())


@pytest.mark.parametrize("skip", [False, True], ids=["prepared", "skipped"])
def test_pretokenised_rows_give_the_same_run_as_their_text(workspace, tmp_path, skip):
    given = inside.train(workspace, tmp_path / "text", max_steps=8)
    ends = np.cumsum([0, *NUM_ROWS.values()])
    tokens = given.train_dataset.select_columns(["input_ids", "labels"])
    trainer = inside.train(
        workspace,
        tmp_path / "tokens",
        rows={d: tokens.select(range(ends[j], ends[j + 1])) for j, d in enumerate(DOMAINS)},
        heldout={d: rows.select_columns(["input_ids", "labels"]) for d, rows in given.eval_dataset.items()},
        dataset_kwargs={"skip_prepare_dataset": True} if skip else None,
        max_steps=8,
    )
    assert runs.stream(tmp_path / "tokens") == runs.stream(tmp_path / "text")
    assert runs.history(tmp_path / "tokens") == runs.history(tmp_path / "text")
    assert inside.same_weights(inside.weights(trainer), inside.weights(given))


def test_rows_without_labels_count_every_token_where_preparation_is_skipped(workspace, tmp_path):
    inside.train(
        workspace,
        tmp_path,
        rows=tokens_only(workspace, text()),
        heldout=tokens_only(workspace, text(HELDOUT, 1000)),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_steps=3,
    )
    assert runs.num_lines(history_path(tmp_path)) == 2


def test_tokens_of_another_integer_type_mix_with_text(workspace, tmp_path):
    rows = text() | {"law": tokens_only(workspace, text(), "int64")["law"]}
    trainer = inside.build(workspace, tmp_path, rows=rows)
    assert len(trainer.train_dataset) == sum(NUM_ROWS.values())


def test_columns_that_are_not_trained_on_may_differ_in_type(workspace, tmp_path):
    rows = text()
    rows["law"] = rows["law"].add_column("id", list(range(NUM_ROWS["law"])))
    for domain in ("medicine", "code"):
        rows[domain] = rows[domain].add_column("id", [f"{domain}-{row}" for row in range(NUM_ROWS[domain])])
    trainer = inside.build(workspace, tmp_path, rows=rows)
    assert len(trainer.train_dataset) == sum(NUM_ROWS.values())


def test_plain_training_arguments_are_taken_as_trl_takes_them(workspace, tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=4, use_cpu=True, bf16=False, report_to="none")
    assert inside.build(workspace, tmp_path, trainer={"args": arguments}).args.max_steps == 4


# Strategies

START = {"law": 0.6, "medicine": 0.3, "code": 0.1}
SHARES = {
    "uniform": (inside.fixed("uniform"), [1 / 3] * 3),
    "proportional": (inside.fixed("proportional"), [60 / 116, 35 / 116, 21 / 116]),
    "manual": (inside.fixed("manual", initial_proportions=START), [0.6, 0.3, 0.1]),
    "constant": (inside.fixed("constant", initial_proportions=START), [0.6, 0.3, 0.1]),
    # 1/0.6, 1/0.3, 1/0.1 = 5/3, 10/3, 10 = 1 : 2 : 6
    "inverse": (inside.fixed("inverse", initial_proportions=START), [1 / 9, 2 / 9, 6 / 9]),
    # squares 0.36, 0.09, 0.01 over 0.46
    "power 2": (inside.fixed("constant", initial_proportions=START, initial_power=2), [36 / 46, 9 / 46, 1 / 46]),
}


@pytest.mark.parametrize("name", SHARES)
def test_fixed_strategy_draws_its_shares(workspace, tmp_path, name):
    block, shares = SHARES[name]
    trainer = inside.train(workspace, tmp_path, versatune=block, max_steps=12, gradient_accumulation_steps=2)
    records = runs.history(tmp_path)
    for record in records:
        assert inside.vector(record, "proportions") == pytest.approx(shares, abs=1e-12)
        assert record["acts_at_draw"] is None
    num_drawn = 12 * 2 * 2
    assert records[-1]["num_drawn"] == num_drawn
    drawn = inside.vector(records[-1], "drawn_by_domain")
    assert all(abs(count - share * num_drawn) < 1 for count, share in zip(drawn, shares, strict=True))
    rows = [row for step in inside.rows_trained_on(trainer, tmp_path) for row in step]
    assert inside.count_by_domain(trainer, rows) == drawn


def test_versatune_draws_what_its_updates_ask_for(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, versatune=inside.block(sigma=5), max_steps=24, learning_rate=0.002)
    records = runs.history(tmp_path)
    changes = [(0, inside.vector(records[0], "proportions"))]
    for record in records[1:]:
        potential = np.array(inside.vector(record, "potential"))
        before = np.array(inside.vector(record, "proportions_before"))
        if record["step"] % 3 == 0:
            assert inside.vector(record, "proportions") == foster(before, potential, 5).tolist()
            changes.append((record["acts_at_draw"], inside.vector(record, "proportions")))
    assert changes[-1][1][0] > 0.7, "the domain with most to gain did not grow"
    rows = [row for step in inside.rows_trained_on(trainer, tmp_path) for row in step]
    changes = [(draw, shares) for draw, shares in changes if draw < len(rows)]
    ends = [draw for draw, _ in changes[1:]] + [len(rows)]
    assert len(changes) == 8
    for (draw, shares), end in zip(changes, ends, strict=True):
        counts = inside.count_by_domain(trainer, rows[draw:end])
        assert all(abs(count - share * (end - draw)) < 1 for count, share in zip(counts, shares, strict=True))


def test_update_interval_below_one_is_a_share_of_the_run(workspace, tmp_path):
    inside.train(workspace, tmp_path, versatune=inside.block(update_interval=0.25), max_steps=12)
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(("samples", "steps_per_epoch"), [(20, 10), (21, 11)])
def test_epoch_is_as_long_as_samples_per_epoch_in_whole_steps(workspace, tmp_path, samples, steps_per_epoch):
    trainer = inside.train(
        workspace,
        tmp_path,
        versatune=inside.block(samples_per_epoch=samples),
        max_steps=-1,
        num_train_epochs=2,
    )
    assert trainer.state.global_step == trainer.state.max_steps == 2 * steps_per_epoch
    records = runs.history(tmp_path)
    assert records[-1]["epoch"] == trainer.state.epoch == 2
    assert [r["epoch"] for r in records] == [r["step"] / steps_per_epoch for r in records]


def test_domain_at_proportion_zero_is_never_drawn_and_the_log_says_so(workspace, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    start = {"law": 0.5, "medicine": 0.0, "code": 0.5}
    inside.train(workspace, tmp_path, versatune=inside.block(initial_proportions=start))
    for record in runs.history(tmp_path):
        assert record["drawn_by_domain"]["medicine"] == record["tokens_by_domain"]["medicine"] == 0
        assert record["proportions"]["medicine"] == 0
        assert record["losses"]["medicine"] > 0, "it is measured all the same"
    said = [r.getMessage() for r in caplog.records if "never be drawn" in r.getMessage()]
    assert said == ["domain 'medicine' starts at proportion 0 and will never be drawn"]


# Ranks, workers and other trainers


def test_two_processes_share_the_stream_of_one_and_decide_alike(workspace, tmp_path):
    runs.run(workspace, tmp_path / "one", gradient_accumulation_steps=2)
    runs.run(workspace, tmp_path / "two", world_size=2)
    one, two = runs.stream(tmp_path / "one"), runs.stream(tmp_path / "two")
    assert sorted(one) == sorted(two) == list(range(14))
    for step, ranks in two.items():
        assert len(ranks) == 2
        first, second = (set(batch[0]) for batch in ranks)
        assert not first & second
        assert sorted(row for batch in ranks for row in batch[0]) == sorted(
            row for batch in one[step][0] for row in batch
        )
    decided = [json.loads((tmp_path / "two" / f"decided-{rank}.json").read_text()) for rank in (0, 1)]
    assert decided[0] == decided[1]
    assert len(decided[0]["sent"]) == 6
    assert len(decided[0]["state"]["steering"]["feed"]["journal"]) == 1, "what ended is forgotten"
    for alone, shared in zip(runs.history(tmp_path / "one"), runs.history(tmp_path / "two"), strict=True):
        assert alone["drawn_by_domain"] == shared["drawn_by_domain"]
        assert alone["tokens_by_domain"] == shared["tokens_by_domain"]
        assert inside.vector(alone, "proportions") == pytest.approx(inside.vector(shared, "proportions"), abs=1e-4)


@pytest.mark.parametrize(("accumulation", "num_steps"), [(1, 5), (4, 2)])
def test_rows_follow_new_proportions_from_the_announced_draw_on(workspace, tmp_path, accumulation, num_steps):
    """2 workers with 2 batches each and the one at hand: 5 micro-batches are drawn ahead of training."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        ahead = ()

        def on_step_end(self, args, state, control, **kwargs):
            self.ahead += (trainer.mixture_sampler.num_drawn - state.global_step * block,)

    block, watch = 2 * accumulation, Watch()
    trainer = inside.build(
        workspace,
        tmp_path,
        versatune=inside.block(update_interval=6, sigma=100, reference_losses={"law": 0.5, "medicine": 7, "code": 7}),
        dataloader_num_workers=2,
        dataloader_prefetch_factor=2,
        gradient_accumulation_steps=accumulation,
        max_steps=18,
        trainer={"callbacks": [watch]},
    )
    trainer.train()
    assert max(watch.ahead) == 5 * 2 <= num_steps * block
    records = runs.history(tmp_path)
    rows = [row for step in inside.rows_trained_on(trainer, tmp_path) for row in step]
    acts = records[1]["acts_at_draw"]
    assert acts == (6 + num_steps) * block
    assert inside.vector(records[1], "proportions")[0] > 0.97
    before = inside.count_by_domain(trainer, rows[:acts])
    assert all(abs(count - acts / 3) < 1 for count in before)
    after = inside.count_by_domain(trainer, rows[acts : acts + 6 * block])
    assert after[0] >= 6 * block * records[1]["proportions"]["law"] - 1


def test_look_ahead_longer_than_the_interval_is_warned_about(workspace, tmp_path, caplog):
    inside.train(workspace, tmp_path / "long", dataloader_num_workers=2, max_steps=3)
    assert "act 5 steps after their update, later than the next update (every 3 steps)" in caplog.text
    assert "dataloader_num_workers" in caplog.text
    caplog.clear()
    inside.train(workspace, tmp_path / "short", max_steps=3)
    assert "later than the next update" not in caplog.text


def test_mixin_gives_the_same_to_a_plain_transformers_trainer(workspace, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from versatune_plugin import VersaTuneMixin

    class Mixed(VersaTuneMixin, Trainer):
        pass

    prepared = inside.build(workspace, tmp_path / "trl", max_steps=8)
    ends = np.cumsum([0, *NUM_ROWS.values()])
    trainer = Mixed(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(tmp_path / "plain"),
            max_steps=8,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            seed=5,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer(workspace)),
        train_dataset={
            domain: prepared.train_dataset.select(range(ends[j], ends[j + 1])) for j, domain in enumerate(DOMAINS)
        },
        eval_dataset=prepared.eval_dataset,
        versatune=runs.VERSATUNE,
    )
    trainer.train()
    prepared.train()
    got, expected = (runs.history(tmp_path / name) for name in ("plain", "trl"))
    assert [record["drawn_by_domain"] for record in got] == [record["drawn_by_domain"] for record in expected]
    for one, other in zip(got, expected, strict=True):
        assert inside.vector(one, "losses") == pytest.approx(inside.vector(other, "losses"), rel=1e-4)


def test_lora_adapter_is_trained_and_the_model_below_stays(workspace, tmp_path):
    from peft import LoraConfig

    trainer = inside.build(workspace, tmp_path, trainer={"peft_config": LoraConfig(r=4, target_modules=["q_proj"])})
    before = inside.weights(trainer)
    trainer.train()
    after = inside.weights(trainer)
    changed = {name for name in after if not (before[name] == after[name]).all()}
    assert changed == {name for name in after if "lora_" in name}
    records = runs.history(tmp_path)
    assert records[-1]["losses"]["law"] < records[0]["losses"]["law"]
    assert records[-1]["proportions"] != records[0]["proportions"]


# What a user sees


def test_trackers_get_the_numbers_of_the_history(workspace, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tracker"))
    trainer = inside.train(workspace, tmp_path, report_to="tensorboard")
    tracked = EventAccumulator(str(tmp_path / "tracker")).Reload()
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "versatune/loss/law" in entry}
    records = runs.history(tmp_path)
    assert sorted(logged) == [record["step"] for record in records]
    for record in records:
        for domain in DOMAINS:
            for name, key in (("proportion", "proportions"), ("loss", "losses"), ("potential", "potential")):
                assert logged[record["step"]][f"versatune/{name}/{domain}"] == record[key][domain]
                points = {point.step: point.value for point in tracked.Scalars(f"train/versatune/{name}/{domain}")}
                assert points[record["step"]] == pytest.approx(record[key][domain], rel=1e-6)
    for earlier, later in pairwise(records):
        for domain in DOMAINS:
            drawn = later["drawn_by_domain"][domain] - earlier["drawn_by_domain"][domain]
            share = logged[later["step"]][f"versatune/realised_share/{domain}"]
            assert share == drawn / (later["num_drawn"] - earlier["num_drawn"])


@pytest.mark.parametrize("update_interval", [3, 5])  # 5: as logging_steps
def test_own_metrics_of_trl_are_logged_as_in_a_run_without_updates(workspace, tmp_path, update_interval):
    from versatune_plugin import VersaTuneCallback

    def metrics(trainer):
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "entropy" in entry and "train_runtime" not in entry]
        return [
            {key: e[key] for key in ("step", "loss", "entropy", "mean_token_accuracy", "num_tokens")} for e in entries
        ]

    block = inside.block(sigma=0, update_interval=update_interval)
    without = inside.build(workspace, tmp_path / "without", versatune=block)
    without.remove_callback(VersaTuneCallback)
    expected = metrics(without)
    assert [entry["step"] for entry in expected] == [5, 10]
    assert metrics(inside.build(workspace, tmp_path / "with", versatune=block)) == expected


def test_table_and_plot_at_the_end_show_the_run(workspace, tmp_path, caplog, plots):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    inside.train(workspace, tmp_path)
    last = runs.history(tmp_path)[-1]
    table = next(r.getMessage() for r in caplog.records if "requested  realised" in r.getMessage())
    lines = {line.split()[0]: line.split() for line in table.splitlines()[2:]}
    for domain in DOMAINS:
        drawn = last["drawn_by_domain"][domain]
        assert lines[domain][1:4] == [str(NUM_ROWS[domain]), str(drawn), f"{drawn / NUM_ROWS[domain]:.2f}"]
        assert lines[domain][5] == f"{drawn / last['num_drawn']:.3f}"
        assert lines[domain][8:11] == [f"{last['losses'][domain]:.3f}", "+-", f"{last['loss_errors'][domain]:.3f}"]
        change, error = (100 * last[key][domain] for key in ("change_since_start", "change_since_start_error"))
        assert lines[domain][11:] == [f"{change:+.1f}", "%", "+-", f"{error:.1f}"]
    assert (tmp_path / "versatune" / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert "% of the run" in caplog.text


def test_one_domain_ends_with_its_table_and_plot(workspace, tmp_path, caplog, plots):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    rows, heldout = {"law": text()["law"]}, {"law": text(HELDOUT, 1000)["law"]}
    inside.train(workspace, tmp_path, rows=rows, heldout=heldout, versatune=inside.fixed(), max_steps=3)
    (table,) = [r.getMessage() for r in caplog.records if "requested  realised" in r.getMessage()]
    assert table.splitlines()[2].split()[:3] == ["law", str(NUM_ROWS["law"]), "6"]
    assert f"history {history_path(tmp_path)}" in caplog.text
    assert (tmp_path / "versatune" / "mixture.png").exists()


def test_thirty_domains_of_any_name_are_shown_in_short_lines(workspace, tmp_path, caplog, monkeypatch, plots):
    monkeypatch.setattr(drawing, "_CJK", ())
    drawing._characters.cache_clear()
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    names = ["法律", "d" * 200, *(f"domain-{position}" for position in range(2, 30))]
    train, held = text()["law"].select(range(3)), text(HELDOUT, 1000)["law"].select(range(2))
    inside.train(
        workspace,
        tmp_path,
        rows=dict.fromkeys(names, train),
        heldout=dict.fromkeys(names, held),
        versatune=inside.fixed(),
        max_steps=2,
    )
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    (begins,) = [line for line in lines if line.startswith("start: ")]
    steps = [line for line in lines if line.startswith("step ")]
    assert all("+18 more" in line for line in [begins, *steps])
    (at,) = [number for number, line in enumerate(lines) if "requested  realised" in line]
    assert lines[at + 25] == "+6 more: `versatune report` shows all"
    assert len(runs.history(tmp_path)[-1]["proportions"]) == 30
    assert "the plot has: #1 法律" in caplog.text
    drawing._characters.cache_clear()


@pytest.mark.parametrize("name", ["la\nw", "la\tw", False, None])
def test_a_name_that_breaks_a_line_or_is_no_name_is_refused(workspace, tmp_path, name):
    rows = {"law": text()["law"], name: text()["code"]}
    with pytest.raises(ValueError, match=rf"train_dataset: .*got {re.escape(repr(name))}"):
        inside.build(workspace, tmp_path, rows=rows, versatune=inside.fixed())


def test_numbers_name_domains_as_keys_as_they_do_in_a_column(workspace, tmp_path):
    def numbered(by_domain):
        return {number: by_domain[domain] for number, domain in enumerate(DOMAINS)}

    def column(by_domain):
        parts = [rows.add_column("domain", [number] * len(rows)) for number, rows in numbered(by_domain).items()]
        return concatenate_datasets(parts)

    for number, form in enumerate((numbered, column)):
        rows, heldout = form(text()), form(text(HELDOUT, 1000))
        trainer = inside.build(workspace, tmp_path / str(number), rows=rows, heldout=heldout, versatune=inside.fixed())
        assert trainer.mixture_sampler is None
        assert list(trainer.facts.num_rows_by_domain.items()) == [
            (str(place), NUM_ROWS[domain]) for place, domain in enumerate(DOMAINS)
        ]


@pytest.mark.parametrize("name", ["trl", "transformers"])
def test_rows_may_be_given_by_position_as_the_host_takes_them(workspace, tmp_path, name):
    from versatune_plugin import VersaTuneMixin, VersaTuneSFTTrainer

    class Mixed(VersaTuneMixin, Trainer):
        pass

    given = inside.build(workspace, tmp_path, versatune=inside.fixed(), max_steps=2)
    rows, heldout = (
        {domain: part.add_column("labels", part["input_ids"]) for domain, part in tokens_only(workspace, of).items()}
        for of in (text(), text(HELDOUT, 1000))
    )
    trainer_class = VersaTuneSFTTrainer if name == "trl" else Mixed
    common = {"processing_class": tokenizer(workspace), "versatune": inside.fixed()}
    collator = given.data_collator
    trainer = trainer_class(given.model, given.args, collator, rows, heldout, **common)
    assert trainer.data_collator is collator
    assert trainer.facts.num_rows_by_domain == NUM_ROWS
    with pytest.raises(TypeError, match="eval_dataset was given twice"):
        trainer_class(given.model, given.args, None, rows, heldout, eval_dataset=heldout, **common)
    with pytest.raises(TypeError, match=r"by its name, not by position \(6 were\)"):
        trainer_class(given.model, given.args, None, rows, heldout, tokenizer(workspace), versatune=inside.fixed())


@pytest.mark.parametrize(("strategy", "warnings"), [("uniform", 0), ("versatune", 1)])
def test_a_run_shorter_than_the_interval_trains_and_one_that_would_update_says_so(
    workspace, tmp_path, caplog, strategy, warnings
):
    changes = inside.fixed() if strategy == "uniform" else inside.block()
    block = {key: value for key, value in changes.items() if key != "update_interval"}  # 50 by default
    inside.train(workspace, tmp_path, versatune=block, max_steps=2)
    said = [r.getMessage() for r in caplog.records if "never changes in this run" in r.getMessage()]
    assert len(said) == warnings
    assert all("run of 2 steps: lower versatune.update_interval (now 50 steps)" in line for line in said)
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 2]


def test_thirds_with_six_digits_are_thirds_and_it_is_said(workspace, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    block = inside.block(initial_proportions=dict.fromkeys(DOMAINS, 0.333333))
    trainer = inside.build(workspace, tmp_path, versatune=block)
    assert trainer._settings.start.tolist() == [1 / 3] * 3
    assert caplog.text.count("versatune.initial_proportions sum to 0.999999: each is divided by that") == 1


def test_domain_names_with_dollar_signs_do_not_break_the_end_of_a_run(workspace, tmp_path, plots):
    name = "price_$5_to_$10"
    rows, heldout = text(), text(HELDOUT, 1000)
    for given in (rows, heldout):
        given[name] = given.pop("law")
    inside.train(workspace, tmp_path, rows=rows, heldout=heldout, versatune=inside.fixed(), max_steps=3)
    assert (tmp_path / "versatune" / "mixture.png").exists()


def test_second_train_call_is_a_new_run_of_the_trained_model(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, max_steps=6)
    trainer.train()
    first, rows = runs.history(tmp_path), inside.rows_trained_on(trainer, tmp_path)
    (tmp_path / "stream-0.jsonl").unlink()
    trainer.train()
    second = runs.history(tmp_path)
    assert [record["step"] for record in second] == [0, 3, 6]
    assert second[0]["proportions"] == first[0]["proportions"]
    assert second[0]["losses"] == first[-1]["losses"], "the model goes on from where it was"
    assert second[0]["num_drawn"] == 0
    assert second[-1]["num_drawn"] == 12
    assert inside.rows_trained_on(trainer, tmp_path)[:3] == rows[:3]


def test_history_of_the_run_before_is_kept_beside(workspace, tmp_path):
    inside.train(workspace, tmp_path, max_steps=3)
    first = history_path(tmp_path).read_bytes()
    inside.train(workspace, tmp_path, max_steps=4, versatune=inside.fixed())
    assert (tmp_path / "versatune" / "history.previous.jsonl").read_bytes() == first
    assert [record.step for record in read_history(history_path(tmp_path))] == [0, 3, 4]


def test_a_trainer_is_freed_as_soon_as_it_is_let_go(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path)
    reference = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert reference() is None, "a cycle keeps it, and with it the workers of its loader"
    finally:
        gc.enable()


class Peek(TrainerCallback):
    """Asks for a loader of its own in the middle of a run, as a host's callback that shows samples does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            next(iter(self.trainer.get_train_dataloader()))


def test_another_loader_does_not_take_the_place_of_the_runs(workspace, tmp_path):
    inside.train(workspace, tmp_path / "alone", max_steps=9)
    peek = Peek()
    peek.trainer = inside.build(workspace, tmp_path / "peeked", max_steps=9, trainer={"callbacks": [peek]})
    peek.trainer.train()
    assert runs.stream(tmp_path / "peeked") == runs.stream(tmp_path / "alone")
    assert runs.history(tmp_path / "peeked") == runs.history(tmp_path / "alone")


def test_the_last_line_is_of_the_last_step_also_where_the_best_model_is_loaded(workspace, tmp_path):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_code_loss", "greater_is_better": True}
    inside.train(workspace, tmp_path / "last", **options)
    inside.train(workspace, tmp_path / "best", **options, **best)
    last, kept = (runs.history(tmp_path / name) for name in ("last", "best"))
    assert kept == last
    assert kept[-1]["step"] == 10


def test_a_checkpoint_moved_away_from_its_run_goes_on_with_the_runs_history(workspace, tmp_path, caplog):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    inside.train(workspace, tmp_path / "run", **options)
    shutil.copytree(tmp_path / "run" / "checkpoint-4", tmp_path / "moved" / "checkpoint-4")
    whole = runs.history(tmp_path / "run")
    inside.train(workspace, tmp_path / "run", resume=str(tmp_path / "moved" / "checkpoint-4"), **options)
    assert runs.history(tmp_path / "run") == whole
    assert "beside the checkpoint: the history goes on with" in caplog.text
    inside.train(workspace, tmp_path / "new", resume=str(tmp_path / "moved" / "checkpoint-4"), **options)
    assert [record["step"] for record in runs.history(tmp_path / "new")] == [6, 9, 10]
    assert "beside the checkpoint: the history begins after step 3" in caplog.text


def test_a_resumed_run_that_is_measured_on_other_rows_says_so_and_compares_with_none_before(
    workspace, tmp_path, caplog
):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    inside.train(workspace, tmp_path / "whole", **options)
    folder = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", 4)
    block = inside.block(probe={"rows_per_domain": 4})
    inside.train(workspace, folder, resume=True, versatune=block, **options)
    assert "resumed with another setting: probe rows was {'code': '6 (" in caplog.text
    first = runs.history(folder)[2]
    assert first["step"] == 6
    assert inside.vector(first, "forgetting") == [0, 0, 0]
    assert first["forgetting_error"] is None


def test_the_probe_leaves_the_loss_of_a_router_out(workspace, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(f"{workspace}/model")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    losses = []
    for router in (False, True):
        torch.manual_seed(0)
        model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, output_router_logits=router))
        trainer = inside.build(workspace, tmp_path / str(router), loss_type="nll", trainer={"model": model})
        losses.append(trainer.probe_losses().losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
