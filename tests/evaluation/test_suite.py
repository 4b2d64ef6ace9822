import pytest

from versatune_plugin.evaluation.suite import read_suite

PAPER = {
    "law": ["LegalBench", "LawBench"],
    "medicine": ["MedQA", "MedMCQA"],
    "finance": ["FinEval", "FinanceIQ"],
    "science": ["SciEval", "MMLU-Sci"],
    "code": ["HumanEval", "MBPP"],
    "general": ["AGIEval", "HellaSwag"],
}


def written(folder, text, name="mine.yml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder, text):
    with pytest.raises(ValueError, match=r"mine\.yml") as caught:
        read_suite(written(folder, text))
    return str(caught.value)


def test_the_shipped_benchmarks_are_the_papers_twelve_two_per_domain():
    titles = {domain: [b.title for b in benchmarks.values()] for domain, benchmarks in read_suite().domains.items()}
    assert {domain: [title.split(" (")[0] for title in given] for domain, given in titles.items()} == PAPER


def test_mmlu_sci_has_the_fourteen_sub_tasks_that_the_paper_counts():
    assert len(set(read_suite().domains["science"]["mmlu_sci"].tasks)) == 14


def test_benchmarks_that_execute_code_say_so():
    assert [name for _, b in read_suite().domains.items() for name in b if b[name].runs_code] == ["humaneval", "mbpp"]


def test_a_file_adds_replaces_and_takes_away(tmp_path):
    suite = read_suite(
        written(
            tmp_path,
            "domains:\n  medicine:\n    medqa: {tasks: my_medqa, metric: acc, num_fewshot: 5}\n    medmcqa: null\n"
            "  pottery:\n    glaze: {tasks: [glaze_a, glaze_b], metric: exact_match}\n",
        )
    )
    assert list(suite.domains) == [*PAPER, "pottery"]
    assert list(suite.domains["medicine"]) == ["medqa"]
    assert suite.domains["medicine"]["medqa"].num_fewshot == 5
    assert suite.domains["pottery"]["glaze"].tasks == ["glaze_a", "glaze_b"]
    assert suite.choose(()) == ("medicine", "pottery")
    assert suite.choose(("all",)) == tuple(suite.domains)


def test_without_a_file_and_without_names_all_domains_are_meant():
    assert read_suite().choose(()) == tuple(PAPER)
    assert read_suite().choose(("code", "law", "code")) == ("code", "law")


def test_an_unknown_domain_comes_with_the_nearest():
    with pytest.raises(ValueError, match="no domain 'medicin'; did you mean 'medicine'"):
        read_suite().choose(("medicin",))


def test_all_mistakes_of_a_file_are_named_with_their_keys(tmp_path):
    text = mistakes(
        tmp_path,
        "include_paht: x\ndomains:\n  law:\n    one: {tasks: a, metrc: acc}\n    two: {metric: acc}\n"
        "    three: {tasks: a, missing: why}\n    four: {tasks: a, metric: acc, weight: size, num_fewshot: -1}\n",
    )
    assert "mine.yml.include_paht: unknown key; did you mean 'include_path'?" in text
    assert "domains.law.one.metrc: unknown key; did you mean 'metric'?" in text
    assert "domains.law.one.metric: is needed" in text
    assert "domains.law.two.tasks: names no task" in text
    assert "domains.law.three.tasks: must be empty" in text
    assert "domains.law.four.weight" in text
    assert "domains.law.four.num_fewshot" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("domains: [", "is not YAML"),
        ("- law", "must hold keys"),
        ("domains: {}", "at least one domain"),
        ("include_path: nowhere\ndomains: {law: {a: {tasks: a, metric: acc}}}", "include_path: there is no folder"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text, said):
    assert said in mistakes(tmp_path, text)


def test_a_definition_changes_with_what_changes_the_score_and_not_with_the_title(tmp_path):
    def definition(more):
        text = f"domains: {{law: {{a: {{tasks: a, metric: acc{more}}}}}}}"
        return read_suite(written(tmp_path, text)).domains["law"]["a"].definition

    assert definition("") == definition(", title: A") == definition(", weight: rows")
    assert len({str(definition(more)) for more in ("", ", num_fewshot: 0", ", weight: tasks", ", scale: 100")}) == 4
