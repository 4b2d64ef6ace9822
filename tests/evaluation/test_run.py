"""Real tasks of local rows, run by the real harness on the tiny model."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

pytest.importorskip("lm_eval")

from tests.evaluation.tasks import ALL_OF_LAW, cached_task_manager, law_of, make_tasks
from versatune_plugin import cli
from versatune_plugin.evaluation import harness, run, tables
from versatune_plugin.evaluation.results import Evaluation, LeftOut


@pytest.fixture(autouse=True)
def one_index_of_tasks(monkeypatch):
    """The harness reads its 14,000 task files in two seconds; their index is the same in all tests."""
    monkeypatch.setattr(harness, "task_manager", cached_task_manager)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("benchmarks"))


def evaluated(model, benchmarks, output, **options):
    """The document, what failed, and what was said."""
    said = []
    options = {"limit": 6, "device": "cpu"} | options
    _, document, failed = run.evaluate(
        str(model),
        options.pop("domains", ()),
        tasks_file=benchmarks,
        output=output,
        options=run.Options(**options),
        say=said.append,
    )
    return document, failed, said


@pytest.fixture(scope="module")
def whole(workspace, benchmarks, tmp_path_factory):
    """One evaluation of both domains."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "task_manager", cached_task_manager)
        return folder, *evaluated(workspace / "model", benchmarks, folder)


def test_a_domain_scores_the_mean_of_its_benchmarks(whole):
    _, document, _, _ = whole
    law = document.domains["law"]
    words, written = law.tasks["words"], law.tasks["written"]
    assert law.score == pytest.approx((words.score + written.score) / 2)
    assert (law.num_benchmarks, law.of) == (2, 5)
    assert written.score == 0
    assert (written.stderr, law.stderr) == (None, None), "six rows that all failed do not make the error 0"
    assert words.title == "Words of law"
    assert words.harness_tasks == ["law_words", "medicine_words"]
    assert (words.num_fewshot, words.num_samples) == (1, 12)
    assert (written.metric, written.num_fewshot, written.num_samples) == ("exact_match", 0, 6)
    assert 0 < words.score < 1
    assert (words.batch_size, words.dtype, words.trust_remote_code) == ("8", "float32", False)


def test_the_document_is_strict_json_and_says_limit_harness_and_model(whole, workspace):
    folder, document, _, _ = whole
    file = folder / "versatune" / "evaluation.json"
    assert Evaluation.read(file) == document
    json.loads(file.read_text(), parse_constant=pytest.fail)
    assert document.limit == 6
    assert (document.harness.name, document.harness.version) == ("lm-evaluation-harness", harness.harness_version())
    assert document.model.name == str(workspace / "model")
    assert document.model.fingerprint.startswith("content ")
    assert document.step is None
    assert document.seconds > 0


def test_a_benchmark_that_fails_keeps_the_others_and_is_named(whole):
    _, document, failed, said = whole
    assert failed == ["law / lost", "law / upside_down", "law / typo"]
    reasons = {(one.domain, one.task): one.reason for one in document.left_out}
    assert set(reasons) == {("law", "lost"), ("law", "upside_down"), ("law", "typo"), ("tools", "executed")}
    assert reasons["law", "lost"].startswith("failed: the data of lost_rows cannot be read: ")
    assert "hub" not in reasons["law", "lost"].lower(), "rows of the user's own are on no hub"
    assert "higher is not better in the metric 'acc'" in reasons["law", "upside_down"]
    assert "has no metric 'akk'; it has: acc" in reasons["law", "typo"]
    assert any(line.startswith("law / lost: failed: ") for line in said)
    assert set(document.domains["tools"].tasks) == {"words"}


def test_the_table_shows_scores_and_what_was_left_out(whole):
    text = tables.format_evaluation(whole[1])
    lines = text.splitlines()
    assert lines[0].split() == ["metric", "shots", "rows", "score", "+-"]
    assert lines[1].split()[:2] == ["law", "mean"]
    assert lines[2].split()[:6] == ["Words", "of", "law", "acc", "1", "12"]
    assert "at most 6 rows per task: a trial" in text
    assert "left out: tools / executed: it executes code" in text


def test_a_benchmark_of_two_tasks_scores_what_the_harness_gives_their_group(whole, workspace, benchmarks):
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(workspace / "model"), "device": "cpu"},
        tasks=["both"],
        num_fewshot=1,
        limit=6,
        task_manager=cached_task_manager(benchmarks.parent / "tasks"),
    )["results"]["both"]
    words = whole[1].domains["law"].tasks["words"]
    assert words.score == pytest.approx(results["acc,none"])
    assert words.stderr == pytest.approx(results["acc_stderr,none"], rel=0.01)


def test_code_of_the_model_is_executed_only_when_asked_for(workspace, benchmarks, whole):
    folder = whole[0]
    document, failed, said = evaluated(workspace / "model", benchmarks, folder, domains=("tools",), run_model_code=True)
    assert set(document.domains["tools"].tasks) == {"executed", "words"}
    assert [line for line in said if line.startswith("evaluating")] == ["evaluating tools / executed: executed"]
    assert failed == []
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    assert {one.domain for one in document.left_out} == {"law"}, "what other domains left out stays"


def test_a_run_that_was_cut_off_goes_on_with_what_is_missing(workspace, benchmarks, tmp_path):
    said = []

    def cut_off(line):
        said.append(line)
        if line.startswith("evaluating law / written"):
            raise KeyboardInterrupt

    options = {"options": run.Options(limit=6, device="cpu"), "output": tmp_path, "tasks_file": benchmarks}
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(str(workspace / "model"), ["law"], **options, say=cut_off)
    halfway = Evaluation.read(tmp_path / "versatune" / "evaluation.json")
    assert set(halfway.domains["law"].tasks) == {"words"}
    assert LeftOut(domain="law", task="written", reason="not evaluated yet") in halfway.left_out
    said = []
    _, document, _ = run.evaluate(str(workspace / "model"), ["law"], **options, say=said.append)
    assert not any(line.startswith("evaluating law / words") for line in said)
    assert document.domains["law"].tasks["words"] == halfway.domains["law"].tasks["words"]
    assert "written" in document.domains["law"].tasks


def test_a_mean_counts_the_benchmarks_as_they_are_defined_now(workspace, benchmarks, tmp_path):
    model, file = workspace / "model", tmp_path / "versatune" / "evaluation.json"
    first, _, _ = evaluated(model, law_of(tmp_path, benchmarks, **ALL_OF_LAW), tmp_path, limit=None)
    law = first.domains["law"]
    assert (list(law.tasks), law.num_benchmarks, law.of) == (["words", "other"], 2, 3)
    words, other = law.tasks.values()
    assert law.score == pytest.approx((words.score + other.score) / 2)
    assert law.stderr == pytest.approx((words.stderr**2 + other.stderr**2) ** 0.5 / 2)
    assert tables.format_evaluation(first).splitlines()[1].split()[:5] == ["law", "mean", "of", "2", "of"]

    renamed = {**ALL_OF_LAW, "words": {**ALL_OF_LAW["words"], "title": "Words of law"}, "other": None}
    second, _, said = evaluated(model, law_of(tmp_path, benchmarks, **renamed), tmp_path, limit=None)
    assert [line.split(":")[0] for line in said] == ["law / other"]
    law = second.domains["law"]
    assert (law.score, law.num_benchmarks, law.of) == (words.score, 1, 2)
    assert law.tasks == {"words": words.model_copy(update={"title": "Words of law"})}
    assert Evaluation.read(file) == second

    more_shots = {**renamed, "words": {**ALL_OF_LAW["words"], "num_fewshot": 2}}
    third, _, said = evaluated(model, law_of(tmp_path, benchmarks, **more_shots), tmp_path, limit=None)
    assert "evaluating law / words: law_words" in said
    assert third.domains["law"].tasks["words"].num_fewshot == 2


def test_a_domain_without_benchmarks_is_named(workspace, benchmarks, tmp_path):
    document, _, said = evaluated(workspace / "model", law_of(tmp_path, benchmarks), tmp_path)
    assert said == ["law: has no benchmark (null took them away, or none was given)"]
    assert document.domains == {}


def test_a_refresh_that_fails_loses_nothing(workspace, tmp_path):
    own = make_tasks(tmp_path / "tasks_and_rows")
    file = law_of(tmp_path, own, **{name: ALL_OF_LAW[name] for name in ("words", "other")})
    model, written = workspace / "model", tmp_path / "versatune" / "evaluation.json"
    evaluated(model, file, tmp_path, limit=2)
    rows = own.parent / "law.jsonl"
    rows.rename(own.parent / "away.jsonl")
    before = Evaluation.read(written).domains["law"].tasks
    document, failed, said = evaluated(model, file, tmp_path, limit=2, refresh=True)
    assert failed == ["law / words"]
    assert any(line.startswith("law / words keeps its earlier result: failed: the data of law_words") for line in said)
    assert document.domains["law"].tasks["words"] == before["words"]
    assert document.left_out == []

    (own.parent / "medicine.jsonl").rename(own.parent / "away_too.jsonl")
    unchanged = written.read_bytes()
    document, failed, said = evaluated(model, file, tmp_path, limit=3, refresh=True)
    assert said[0].endswith("which do not go with it (limit 2, now 3)")
    assert (document.domains, len(failed)) == ({}, 2)
    assert written.read_bytes() == unchanged


def test_prompts_get_the_chat_template_when_asked_for(workspace, benchmarks, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    options = {"domains": ("tools",), "limit": 2, "chat_template": True}
    with pytest.raises(ValueError, match=r"--chat-template: the tokenizer of .*model has no chat template"):
        evaluated(workspace / "model", benchmarks, tmp_path / "none", **options)
    model = tmp_path / "chat"
    shutil.copytree(workspace / "model", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for one in messages %}[{{ one.role }}] {{ one.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    prompts, real = [], HFLM.apply_chat_template
    monkeypatch.setattr(HFLM, "apply_chat_template", lambda *a, **k: prompts.append(real(*a, **k)) or prompts[-1])
    document, failed, _ = evaluated(model, benchmarks, tmp_path, **options)
    assert (document.chat_template, failed) == (True, [])
    assert prompts
    assert all(prompt.startswith("[user] Repeat: ") for prompt in prompts)
    with pytest.raises(ValueError, match="chat template True, now False"):
        evaluated(model, benchmarks, tmp_path, **options | {"chat_template": False})


def test_what_to_do_is_said_where_it_is_known(workspace, benchmarks, tmp_path, monkeypatch):
    many = {"tasks": "law_words", "metric": "acc", "num_fewshot": 50}
    _, _, said = evaluated(workspace / "model", law_of(tmp_path, benchmarks, many=many), tmp_path)
    assert "too few rows for the solved examples in a prompt: set a lower num_fewshot" in said[-1]

    def offline(*_):
        raise ConnectionError("Couldn't reach 'law/rows' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(harness, "load_tasks", offline)
    _, _, said = evaluated(workspace / "model", law_of(tmp_path, benchmarks, many=many), tmp_path)
    assert "run it once where the hub can be reached" in said[-1]


def test_results_of_another_limit_or_model_are_not_mixed_and_not_lost(workspace, benchmarks, whole, tmp_path):
    folder = whole[0]
    before = (folder / "versatune" / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=r"limit 6, now 3\).*--output, or replace them with --refresh"):
        evaluated(workspace / "model", benchmarks, folder, limit=3)
    with pytest.raises(ValueError, match=r"model fingerprint content .*, now content "):
        evaluated(lora(workspace, tmp_path), benchmarks, folder)
    assert (folder / "versatune" / "evaluation.json").read_bytes() == before


def test_refresh_runs_again_what_has_a_result_and_forgets_what_does_not_fit(workspace, benchmarks, tmp_path):
    options = {"domains": ("tools",), "limit": 2}
    evaluated(workspace / "model", benchmarks, tmp_path, **options)
    _, _, said = evaluated(workspace / "model", benchmarks, tmp_path, **options, refresh=True)
    assert "evaluating tools / words: code_words" in said
    document, _, said = evaluated(workspace / "model", benchmarks, tmp_path, domains=("tools",), limit=3, refresh=True)
    assert said[0].endswith("which do not go with it (limit 2, now 3)")
    assert (document.limit, document.domains["tools"].tasks["words"].num_samples) == (3, 3)


def lora(workspace, folder):
    """An adapter that changes what the tiny model says, with its base named as training in the workspace names it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workspace / "model")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    torch.manual_seed(0)
    model.save_pretrained(folder / "checkpoint-5")
    return folder / "checkpoint-5"


def test_an_adapter_is_applied_to_its_base_model(workspace, benchmarks, tmp_path):
    from peft import PeftModel

    from versatune_plugin.evaluation.target import find_target

    folder = lora(workspace, tmp_path)
    model = harness.load_model(find_target(str(folder)), device="cpu", batch_size="2", trust_remote_code=False)
    assert isinstance(model.model, PeftModel)
    document, _, _ = evaluated(folder, benchmarks, None, domains=("tools",))
    assert Evaluation.read(folder / "versatune" / "evaluation.json").step == 5
    assert document.model.base_model == str(workspace / "model")
    assert "words" in document.domains["tools"].tasks


def test_a_device_that_is_not_there_is_an_error_not_another_device(workspace, benchmarks, tmp_path):
    with pytest.raises(ValueError, match="--device: the harness finds no 'npu:3' here"):
        evaluated(workspace / "model", benchmarks, tmp_path, device="npu:3", domains=("tools",))


def test_the_command_ends_with_status_1_and_names_what_failed(workspace, benchmarks, tmp_path):
    given = [str(workspace / "model"), "--tasks", str(benchmarks), "--output", str(tmp_path), "--limit", "2"]
    finished = CliRunner().invoke(cli.main, ["evaluate", *given, "--domains", "law"])
    assert finished.exit_code == 1
    assert "Words of law" in finished.output
    assert "failed, for the reasons above: law / lost, law / upside_down, law / typo" in finished.output


def test_the_command_lists_what_there_is_without_a_model(benchmarks):
    listed = CliRunner().invoke(cli.main, ["evaluate", "--list", "--domains", "law", "--domains", "code"])
    assert listed.exit_code == 0
    assert "legalbench: LegalBench\n    missing: " in listed.output
    assert "nearest are mmlu_professional_law" in listed.output
    assert "mbpp; pass_at_1; 3 shots (the task's default)\n    executes code" in listed.output
    assert "medqa" not in listed.output
    own = CliRunner().invoke(cli.main, ["evaluate", "--list", "--tasks", str(benchmarks)])
    assert "law_words, medicine_words; acc; 1 shot" in own.output
    without = CliRunner().invoke(cli.main, ["evaluate"])
    assert (without.exit_code, "which MODEL?" in without.output) == (2, True)


@pytest.mark.parametrize("processes", ["2", "abc"])
def test_a_launcher_is_refused(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", processes)
    refused = CliRunner().invoke(cli.main, ["evaluate", "gpt2"])
    assert (refused.exit_code, "start it without a launcher" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--domains", "lwa"], "no domain 'lwa'; did you mean 'law'?"),
        (["--domains", "law"], "no benchmark could be run"),
        (["--batch-size", "many"], "--batch-size must be a number of rows or auto, got 'many'"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_command_that_cannot_be_meant_ends_before_a_model_is_loaded(workspace, tmp_path, monkeypatch, given, said):
    monkeypatch.setattr(harness, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    finished = CliRunner().invoke(cli.main, ["evaluate", str(workspace / "model"), "--output", str(tmp_path), *given])
    assert finished.exit_code != 0
    assert said in finished.output


def test_an_unknown_task_ends_before_a_model_is_loaded(workspace, benchmarks, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    file = tmp_path / "mine.yml"
    file.write_text("domains: {law: {a: {tasks: mmlu_profesional_law, metric: acc}}}")
    with pytest.raises(ValueError, match=r"domains.law.a.tasks: .* did you mean 'mmlu_professional_law'\?"):
        run.evaluate(str(workspace / "model"), tasks_file=file, output=tmp_path)


def test_a_model_on_a_hub_needs_a_folder_for_its_results(benchmarks):
    with pytest.raises(ValueError, match="gpt2 is on a hub: name a folder for the results with --output"):
        run.evaluate("gpt2", tasks_file=benchmarks)
