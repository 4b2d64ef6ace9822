"""Task files over local rows, and files of benchmarks made of them."""

import json
from functools import cache

from tests.tiny import WORDS, write_jsonl
from versatune_plugin.evaluation import harness

cached_task_manager = cache(harness.task_manager)  # the harness reads its 14,000 task files in two seconds

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GENERATED = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
LOWER = CHOICE.replace("true}", "false}")
GROUP = """
group: both
task: [law_words, medicine_words]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""
BENCHMARKS = """
include_path: tasks
domains:
  law:
    words: {title: Words of law, tasks: [law_words, medicine_words], metric: acc, num_fewshot: 1}
    written: {tasks: law_written, metric: exact_match}
    lost: {tasks: lost_rows, metric: acc}
    upside_down: {tasks: lower, metric: acc}
    typo: {tasks: law_words, metric: akk}
    legalbench: null
    lawbench: null
  tools:
    executed: {tasks: executed, metric: exact_match}
    words: {tasks: code_words, metric: acc}
"""


def make_tasks(folder, num_rows=12):
    """Task files over rows whose question is a word of one domain, and a file of benchmarks."""

    def task(name, rows, text):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        path = folder / "tasks" / f"{name}.yaml"
        path.write_text(f"task: {name}\n" + "".join(f"{key}: {json.dumps(v)}\n" for key, v in data.items()) + text)

    for domain, words in WORDS.items():
        rows = [
            {"question": f"Repeat: {words[n % 10]}", "choices": [words[n % 10], words[(n + 3) % 10]], "answer": n % 2}
            for n in range(num_rows)
        ]
        path = write_jsonl(folder / f"{domain}.jsonl", rows)
        task(f"{domain}_words", path, CHOICE)
        task(f"{domain}_written", path, GENERATED)
    task("executed", path, GENERATED + "unsafe_code: true\n")
    task("lower", path, LOWER)
    task("lost_rows", folder / "lost.jsonl", CHOICE)
    (folder / "tasks" / "both.yaml").write_text(GROUP)
    file = folder / "mine.yml"
    file.write_text(BENCHMARKS)
    return file


def law_of(folder, benchmarks, **more):
    """A file of benchmarks of law, of single choice unless `more` says otherwise; None takes one away."""
    shipped = dict.fromkeys(("legalbench", "lawbench"))
    file = folder / "law.yml"
    content = {"include_path": str(benchmarks.parent / "tasks"), "domains": {"law": shipped | more}}
    file.write_text(json.dumps(content))
    return file


ALL_OF_LAW = {
    "words": {"tasks": "law_words", "metric": "acc"},
    "other": {"tasks": "medicine_words", "metric": "acc", "num_fewshot": 2},
    "gone": {"title": "Gone", "missing": "nobody has it"},
}
