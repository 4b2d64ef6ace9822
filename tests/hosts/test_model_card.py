"""The section "Training data mixture" in the model cards of real runs."""

import copy
import json
import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("trl")

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import TrainerCallback

from tests.hosts import inside, runs
from tests.report.histories import typed
from tests.tiny import DOMAINS, NUM_ROWS
from versatune_plugin.hosts.model_card import section_of, write_section

SAVING = {"save_strategy": "steps", "save_steps": 4}


class Cards(TrainerCallback):
    """Reads the card at every checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.path, self.seen = folder / "README.md", {}

    def on_save(self, args, state, control, **kwargs):
        self.seen[state.global_step] = self.path.read_text()


@pytest.fixture(scope="module")
def finished(workspace, tmp_path_factory):
    """A run with checkpoints: its trainer, folder and the cards at its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    cards = Cards(folder)
    return inside.train(workspace, folder, trainer={"callbacks": [cards]}, **SAVING), folder, cards.seen


@pytest.fixture
def records(finished) -> list[dict]:
    return copy.deepcopy(runs.history(finished[1]))


def cells(section: str) -> list[dict[str, str]]:
    """The table as a Markdown renderer reads it: a dict by column for each row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(section)
    texts, rows = [], []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type in ("th_open", "td_open"):
            texts.append("".join(child.content for child in following.children))
            assert {child.type for child in following.children} <= {"text", "text_special", "html_inline"}
            assert not any(child.type == "html_inline" for child in following.children), "a name became HTML"
        if token.type == "tr_close":
            rows.append(texts)
            texts = []
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def section_in(text: str) -> str:
    assert text.count("## Training data mixture") == text.count("versatune: end") == 1
    return text[text.index("## Training data mixture") : text.index("<!-- versatune: end")]


def test_card_of_a_finished_run_tells_what_its_history_tells(finished, records):
    _, folder, _ = finished
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert card.data.tags[-1] == "versatune"
    assert {"generated_from_trainer", "trl", "sft"} <= set(card.data.tags)
    assert card.data.library_name == "transformers"
    section, first, last = section_in(card.text), records[0], records[-1]
    tokens, drawn = sum(last["tokens_by_domain"].values()), last["num_drawn"]
    assert cells(section) == [
        {
            "domain": domain,
            "rows": str(NUM_ROWS[domain]),
            "proportion at the start": f"{first['proportions'][domain]:.3f}",
            "proportion at step 14": f"{last['proportions'][domain]:.3f}",
            "share of examples": f"{last['drawn_by_domain'][domain] / drawn:.3f}",
            "share of tokens": f"{last['tokens_by_domain'][domain] / tokens:.3f}",
            "passes": f"{last['drawn_by_domain'][domain] / NUM_ROWS[domain]:.2f}",
            "first loss": f"{first['losses'][domain]:.3f}",
            "last loss": f"{last['losses'][domain]:.3f} ± {last['loss_errors'][domain]:.3f}",
            "reference loss": f"{runs.VERSATUNE['reference_losses'][domain]:.3f}",
        }
        for domain in DOMAINS
    ]
    for fact in (
        "**Strategy**: versatune, by versatune_plugin (after [VersaTune, arXiv 2411.11266]",
        "**Start**: the same for every domain\n",
        "**Proportions**: of the examples drawn, changed 4 time(s); an update every 3 optimizer step(s)\n",
        "**Losses**: on held-out rows, in nats per target token, ± standard error\n",
        "**Reference losses**: given as numbers\n",
        "**As of**: optimizer step 14 of 14\n",
        f"torch {first['run']['versions']['torch']}",
    ):
        assert fact in section
    assert "Weights" not in section
    assert card.text.index("### Framework versions") < card.text.index(section) < card.text.index("## Citations")


def test_card_at_a_checkpoint_tells_of_the_run_so_far(finished, records):
    _, _, seen = finished
    assert sorted(seen) == [4, 8, 12, 14]
    section = section_in(seen[4])
    assert "optimizer step 3 of 14\n" in section
    assert [row["last loss"][:5] for row in cells(section)] == [f"{x:.3f}" for x in inside.vector(records[1], "losses")]
    assert section_in(seen[8]) != section


def test_writing_again_changes_nothing(finished, records, tmp_path):
    text = (finished[1] / "README.md").read_text()
    for name in ("with the section", "without"):
        path = tmp_path / f"{name}.md"
        path.write_text(text if name == "with the section" else "# Mine\n\nBody.\n")
        write_section(path, typed(records))
        once = path.read_text()
        write_section(path, typed(records))
        assert path.read_text() == once
        assert section_in(once) == section_in(text)
        assert ModelCard.load(path, ignore_metadata_errors=False).data.tags.count("versatune") == 1


def test_resumed_run_writes_the_card_of_a_whole_one(workspace, finished, tmp_path):
    folder = inside.stopped_at(finished[1], tmp_path / "stopped", 8)
    inside.train(workspace, folder, resume=True, **SAVING)
    assert section_in((folder / "README.md").read_text()) == section_in((finished[1] / "README.md").read_text())


def test_card_before_a_run_is_the_hosts_own(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert "versatune" not in card.data.tags
    assert "mixture" not in card.text


def test_card_of_a_plain_trainer_keeps_its_metadata_and_ends_with_the_section(workspace, finished, tmp_path):
    from transformers import Trainer

    trainer, _, _ = finished
    before = trainer.args.output_dir
    trainer.args.output_dir = str(tmp_path)
    try:
        Trainer.create_model_card(trainer, model_name="mine", dataset_tags="sets", dataset="sets")
        plain = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
        trainer._write_mixture_into_card()
    finally:
        trainer.args.output_dir = before
    card = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert card.data.to_dict() == plain.data.to_dict() | {"tags": [*plain.data.tags, "versatune"]}
    assert card.text.startswith(plain.text.rstrip())
    assert section_in(card.text)


@pytest.mark.parametrize(
    "name", ["a|b", "two\nlines", "<script>alert(1)</script>", "*x* _y_ `z` [l](u) $5 ~~n~~", "a\\|b", "&lt; <!-- -->"]
)
def test_domain_names_stand_in_the_card_letter_by_letter(records, name):
    renamed = json.loads(json.dumps(records).replace('"law"', json.dumps(name)))
    rows = cells(section_of(typed(renamed)))
    assert [row["domain"] for row in rows] == [" ".join(name.split()), *DOMAINS[1:]]
    assert {row["rows"] for row in rows} == {"60", "35", "21"}


def test_run_without_probes_has_no_losses_in_its_card(workspace, tmp_path):
    inside.train(workspace, tmp_path, versatune=inside.fixed(probe={"rows_per_domain": 0}), max_steps=4, **SAVING)
    section = section_in((tmp_path / "README.md").read_text())
    assert list(cells(section)[0])[-1] == "passes"
    assert "**Strategy**: uniform" in section
    assert "oss" not in section
    assert "changed 0 time(s)" in section


def test_run_on_streams_has_no_rows_in_its_card(workspace, tmp_path):
    streams = {domain: runs.text_rows(domain, NUM_ROWS[domain]).to_iterable_dataset() for domain in DOMAINS}
    inside.train(workspace, tmp_path, rows=streams, max_steps=4, **SAVING)
    section = section_in((tmp_path / "README.md").read_text())
    assert not {"rows", "passes"} & set(cells(section)[0])
    assert sum(float(row["share of examples"]) for row in cells(section)) == pytest.approx(1, abs=0.002)


def test_history_without_its_first_line_tells_what_it_can(records):
    section = section_of(typed(records[2:]))
    assert "proportion at the start" not in cells(section)[0]
    assert "Strategy" not in section
    assert "optimizer step 14\n" in section


def test_proportions_that_no_row_was_drawn_by_are_not_shown(workspace, tmp_path):
    inside.train(workspace, tmp_path, max_steps=6, **SAVING)
    records = runs.history(tmp_path)
    assert records[-1]["proportions"] != records[-1]["proportions_before"]
    shown = [row["proportion at step 6"] for row in cells(section_in((tmp_path / "README.md").read_text()))]
    assert shown == [f"{records[-1]['proportions_before'][domain]:.3f}" for domain in DOMAINS]


def test_card_says_whose_weights_the_best_model_has(workspace, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_code_loss", "greater_is_better": True}
    trainer = inside.train(workspace, tmp_path, max_steps=10, eval_strategy="steps", eval_steps=4, **SAVING, **best)
    assert trainer.state.best_global_step == 4
    for _ in range(2):
        section = section_in((tmp_path / "README.md").read_text())
        assert "**Weights**: those of step 4, the best checkpoint" in section
        assert "**As of**: optimizer step 10 of 10" in section
        trainer.create_model_card()


def test_card_names_no_best_weights_where_the_host_kept_no_checkpoint_of_them(workspace, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_code_loss", "greater_is_better": True}
    options = best | SAVING | {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 8}
    trainer = inside.train(workspace, tmp_path, **options)
    assert (trainer.state.best_global_step, trainer.state.best_model_checkpoint) == (4, None)
    assert "**Weights**" not in section_in((tmp_path / "README.md").read_text())
    assert runs.history(tmp_path)[-1]["losses"]


def test_resume_with_other_settings_is_told_in_history_and_card(workspace, tmp_path):
    inside.train(workspace, tmp_path, max_steps=6, **SAVING)
    inside.train(workspace, tmp_path, resume=True, versatune=inside.fixed(update_interval=4), max_steps=10, **SAVING)
    records = runs.history(tmp_path)
    assert [record["step"] for record in records if record["run"]] == [0, 7], "decided after a step"
    section = section_in((tmp_path / "README.md").read_text())
    assert "**Strategy**: uniform" in section
    assert "an update every 4 optimizer step(s)" in section
    assert "**Resumed**: before step 7, with other settings" in section


def test_card_that_cannot_be_written_is_a_warning(workspace, tmp_path, caplog):
    (tmp_path / "README.md.tmp").mkdir()
    inside.train(workspace, tmp_path, max_steps=4, **SAVING)
    assert "gets no section about the mixture" in caplog.text
    assert "mixture" not in (tmp_path / "README.md").read_text()
    assert runs.history(tmp_path)[-1]["step"] == 4


def test_expansion_and_files_of_measurements_stand_in_history_and_card(workspace, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    block = inside.block(
        initial_proportions=str(tmp_path / "detection.json"),
        detection={"num_samples": 16, "iterations": 1, "max_new_tokens": 4, "batch_size": 16},
        reference_losses=str(tmp_path / "references.json"),
        reference={"model": str(workspace / "model"), "epochs": 1, "samples_per_epoch": 4},
        expansion={"domain": "law"},
    )
    sections = []
    for name in ("made", "read"):
        inside.train(workspace, tmp_path / name, versatune=block, max_steps=4, **SAVING)
        run = runs.history(tmp_path / name)[0]["run"]
        found, losses = (json.loads((tmp_path / f"{part}.json").read_text()) for part in ("detection", "references"))
        assert run["sources"]["detection"] == {
            "file": str(tmp_path / "detection.json"),
            "base_model": str(workspace / "model"),
            "judge": {"kind": "classifier", "model": found["judge"]["model"]},
            "num_samples": 16,
            "num_judged": found["num_judged"],
            "count": "samples",
            "intervals": found["intervals"],
            "seconds": found["seconds"]["total"],
        }
        assert run["sources"]["references"] == {
            "file": str(tmp_path / "references.json"),
            "model": str(workspace / "model"),
            "epochs": 1,
            "unit": "nats per target token",
            "seconds": losses["seconds"],
        }
        sections.append(section_in((tmp_path / name / "README.md").read_text()))
    assert sections[0] == sections[1]
    assert "sources" not in run["settings"]
    assert f"detected from what model writes by itself, in {found['num_judged']} texts, by classifier" in sections[0]
    assert "(references.json)" in sections[0]
    assert "**Target**: law\n" in sections[0]
    assert str(tmp_path) not in sections[0]
    low, high = found["intervals"]["law"]
    assert cells(sections[0])[0]["detected, 95 % interval"] == f"{low:.3f} to {high:.3f}"


def test_history_says_what_was_used_and_how_long_a_line_took(finished):
    from versatune_plugin.files.history import history_path, read_history

    _, folder, _ = finished
    records = read_history(history_path(folder))
    run = records[0].run.model_dump()
    assert all(0 <= record.probe_seconds <= record.seconds < 60 for record in records)
    assert list(run["versions"]) == ["versatune_plugin", "torch", "transformers", "trl"]
    assert all(re.match(r"\d+\.\d+", version) for version in run["versions"].values())
    assert {rows: len(found) for rows, found in run["fingerprints"].items()} == {
        "training_rows": len(DOMAINS),
        "heldout_rows": len(DOMAINS),
    }
    assert run["sources"] == {"detection": None, "references": None}
