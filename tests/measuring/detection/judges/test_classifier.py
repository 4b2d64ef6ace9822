import json

import numpy as np
import pytest

from tests.measuring.detection.judges.rows import rows_of
from tests.tiny import WORDS
from versatune_plugin.measuring.detection.judges.classifier import MAX_ROWS, ClassifierJudge
from versatune_plugin.measuring.detection.texts import MIN_ROWS

DOMAINS = tuple(WORDS)
NUM_TEXTS = {"law": 60, "medicine": 30, "code": 150}
COMMON = ["the", "of", "and", "with", "for", "that", "was", "this", "from", "are", "not", "all"]


def make_texts(domain: str, num_texts: int, seed: int = 0, share: float = 0.5) -> list[str]:
    """Sentences of common words and, each with this share, words of the domain."""
    rng = np.random.default_rng([seed, len(domain)])
    lengths = rng.integers(6, 14, size=num_texts)
    return [
        " ".join(rng.choice(WORDS[domain] if rng.random() < share else COMMON) for _ in range(length))
        for length in lengths
    ]


@pytest.fixture(scope="module")
def texts_by_domain():
    return {domain: make_texts(domain, NUM_TEXTS[domain]) for domain in DOMAINS}


@pytest.fixture(scope="module")
def judge(texts_by_domain):
    return ClassifierJudge.fit(texts_by_domain)


def test_separable_domains_are_told_apart(judge):
    for domain_id, domain in enumerate(DOMAINS):
        judgements = rows_of(judge, make_texts(domain, 50, seed=1))
        assert judgements.dtype == np.float64
        assert np.allclose(judgements.sum(axis=1), 1.0)
        assert (judgements.argmax(axis=1) == domain_id).mean() >= 0.95


def test_probabilities_are_as_right_as_they_say():
    vague = {domain: make_texts(domain, 150, share=0.12) for domain in DOMAINS}
    judge = ClassifierJudge.fit(vague)
    fresh = np.concatenate([rows_of(judge, make_texts(domain, 150, seed=1, share=0.12)) for domain in DOMAINS])
    right = fresh.argmax(axis=1) == np.repeat(np.arange(3), 150)
    assert 0.5 < right.mean() < 0.9
    assert fresh.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.08)


def test_sizes_of_the_datasets_do_not_matter(judge):
    uniform = np.concatenate([rows_of(judge, make_texts(domain, 40, seed=2)) for domain in DOMAINS])
    assert uniform.mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_permuting_domains_permutes_the_judgements(judge, texts_by_domain):
    order = [2, 0, 1]
    permuted = ClassifierJudge.fit({DOMAINS[place]: texts_by_domain[DOMAINS[place]] for place in order})
    assert permuted.domains == tuple(DOMAINS[place] for place in order)
    texts = make_texts("law", 20, seed=3) + make_texts("code", 20, seed=3)
    assert rows_of(permuted, texts) == pytest.approx(rows_of(judge, texts)[:, order], abs=0.02)


def test_same_texts_and_seed_give_the_same_judge(judge, texts_by_domain):
    again = ClassifierJudge.fit(texts_by_domain)
    texts = make_texts("medicine", 20, seed=4)
    assert (rows_of(again, texts) == rows_of(judge, texts)).all()
    assert again.identity() == judge.identity()
    assert json.loads(json.dumps(judge.identity())) == judge.identity()


def test_identity_changes_with_the_texts_and_the_seed(judge, texts_by_domain):
    changed = texts_by_domain | {"law": texts_by_domain["law"][:-1]}
    assert ClassifierJudge.fit(changed).identity() != judge.identity()
    assert ClassifierJudge.fit(texts_by_domain, seed=1).identity() != judge.identity()


def test_one_domain_gets_all(texts_by_domain):
    judge = ClassifierJudge.fit({"law": texts_by_domain["law"]})
    assert (rows_of(judge, ["anything", ""]) == 1.0).all()
    assert judge.report()["confusion"] == {"law": {"law": 1.0}}


def test_text_of_which_nothing_is_known_gets_no_domain(judge):
    assert rows_of(judge, ["", "   ", "患者の熱", "суд и закон", "\ud800"]) == pytest.approx(np.full((5, 3), 1 / 3))
    assert rows_of(judge, []).shape == (0, 3)


def test_scripts_without_spaces_are_told_apart():
    rng = np.random.default_rng(0)
    letters = {"law": "法律裁判契約原告被告証拠", "medicine": "患者発熱手術血管神経症状"}
    texts = {domain: ["".join(rng.choice(list(signs), 12)) for _ in range(30)] for domain, signs in letters.items()}
    judgements = rows_of(ClassifierJudge.fit(texts), ["被告の契約は裁判で", "血管の手術で患者は"])
    assert judgements.argmax(axis=1).tolist() == [0, 1]


def test_report_holds_quality_sizes_and_speed(judge):
    rows_of(judge, make_texts("law", 600, seed=5))  # more than a batch
    report = json.loads(json.dumps(judge.report()))
    assert report["held_out_accuracy"] >= 0.9
    assert [sum(row.values()) for row in report["confusion"].values()] == pytest.approx([1.0] * 3)
    assert report["num_rows"] == NUM_TEXTS
    assert report["judgements_per_second"] > 0


def test_large_domains_are_cut_to_a_seeded_choice():
    texts = {"law": [f"court {number}" for number in range(MAX_ROWS + 500)], "code": make_texts("code", 40)}
    judge = ClassifierJudge.fit(texts)
    assert judge.report()["num_rows_used"]["law"] == MAX_ROWS
    assert judge.report()["num_rows"]["law"] == MAX_ROWS + 500


def test_too_few_texts_are_refused_with_the_domain_and_the_number(texts_by_domain):
    few = {"law": ["one", "two", "two", " "], "medicine": [], "code": texts_by_domain["code"]}
    with pytest.raises(ValueError, match=f"at least {MIN_ROWS} different.*'law' has 2, domain 'medicine' has 0"):
        ClassifierJudge.fit(few)


def test_no_domain_is_refused():
    with pytest.raises(ValueError, match="at least one domain"):
        ClassifierJudge.fit({})
