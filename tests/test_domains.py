import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.domains import (
    WRITTEN_TOLERANCE,
    check_domain_names,
    check_proportions,
    in_domain_order,
    is_domain_name,
    misfits,
    nearest,
)

DOMAINS = ("law", "medicine", "code")


# --- names --------------------------------------------------------------------------------------------------


def test_names_keep_the_order_they_were_given_in():
    assert check_domain_names(["medicine", "law", "code"]) == ("medicine", "law", "code")


def test_no_domain_is_an_error():
    with pytest.raises(ValueError, match="domains: at least one domain is needed"):
        check_domain_names([])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "non-empty"),
        ("  ", "without blanks around"),
        (" law", "without blanks around"),
        ("law\n", "without blanks around"),
        ("la\nw", "one line"),
        ("la\tw", "one line"),
        ("la\x1b[2Jw", "control"),
        ("la\u2028w", "one line"),
        (["law"], "a string"),
    ],
)
def test_a_name_that_is_empty_padded_no_text_or_no_single_line_is_an_error_that_shows_it(name, reason):
    assert not is_domain_name(name)
    with pytest.raises(ValueError, match=f"{reason}.*, got {re.escape(repr(name))}"):
        check_domain_names(["law", name])


@pytest.mark.parametrize(
    ("value", "written"), [(False, "`no`"), (True, "`yes`"), (None, "`null`"), (3, "'3'"), (1.5, "'1.5'")]
)
def test_what_yaml_reads_as_another_kind_of_value_is_to_be_put_in_quotes(value, written):
    with pytest.raises(ValueError, match=f"got {value!r}.*{written}.*") as error:
        check_domain_names(["law", value])
    assert "in quotes" in str(error.value)


@pytest.mark.parametrize("name", ["law", "法律", "d" * 200, "e\u0301tudes", "👩\u200d⚕️ medicine", "$a_b$", "null"])
def test_a_name_may_be_long_and_in_any_script(name):
    assert check_domain_names([name]) == (name,)


def test_duplicate_names_are_an_error_that_names_each_of_them_once():
    with pytest.raises(ValueError, match=r"duplicate domain 'code', 'law'; each name must occur once"):
        check_domain_names(["law", "code", "law", "code", "law", "medicine"])


def test_the_error_names_the_key_it_comes_from():
    with pytest.raises(ValueError, match=r"^train_dataset: duplicate"):
        check_domain_names(["law", "law"], "train_dataset")


def test_a_near_name_is_offered_for_a_misspelt_one_and_all_names_for_a_strange_one():
    assert nearest("medicin", DOMAINS) == "; did you mean 'medicine'?"
    assert nearest("xyz", DOMAINS) == "; valid names: law, medicine, code"


# --- mappings -----------------------------------------------------------------------------------------------


def test_values_come_in_domain_order_whatever_the_order_of_the_mapping():
    values = in_domain_order({"code": 3, "law": 1, "medicine": 2.5}, DOMAINS, "key")
    assert values.tolist() == [1.0, 2.5, 3.0]
    assert values.dtype == np.float64


def test_unknown_and_missing_domains_are_reported_together():
    lines = [
        "reference_losses names an unknown domain 'medicin'; did you mean 'medicine'?",
        "reference_losses has no value for domain 'medicine'; give one for each of: law, medicine, code",
        "reference_losses has no value for domain 'code'; give one for each of: law, medicine, code",
    ]
    assert misfits(["law", "medicin"], DOMAINS, "reference_losses") == lines
    with pytest.raises(ValueError, match="unknown domain") as error:
        in_domain_order({"law": 1, "medicin": 2}, DOMAINS, "reference_losses")
    assert str(error.value) == "; ".join(lines)


def test_names_that_fit_are_no_misfits_in_any_order():
    assert misfits(["code", "law", "medicine"], DOMAINS, "key") == []


# --- proportions --------------------------------------------------------------------------------------------


def test_a_mapping_and_a_vector_give_the_same_proportions():
    by_domain = check_proportions({"code": 0.2, "law": 0.5, "medicine": 0.3}, DOMAINS)
    assert by_domain.tolist() == check_proportions([0.5, 0.3, 0.2], DOMAINS).tolist() == [0.5, 0.3, 0.2]


@pytest.mark.parametrize("off", [0.9e-6, -0.9e-6])
def test_a_sum_within_a_millionth_of_one_is_normalised(off):
    proportions = check_proportions([0.5, 0.3, 0.2 + off], DOMAINS)
    assert proportions.sum() == pytest.approx(1.0, abs=1e-15)
    # every entry is divided by the same sum, 1 + off
    assert proportions[0] == pytest.approx(0.5 / (1 + off), abs=1e-15)


@pytest.mark.parametrize("off", [1.1e-6, -1.1e-6, 0.5])
def test_a_sum_farther_from_one_is_an_error_that_shows_it(off):
    with pytest.raises(ValueError, match=r"must sum to 1 \(within 1e-06\), got"):
        check_proportions([0.5, 0.3, 0.2 + off], DOMAINS)


def test_what_a_person_wrote_may_be_farther_from_one():
    assert check_proportions([0.3333] * 3, DOMAINS, tolerance=WRITTEN_TOLERANCE).tolist() == [1 / 3] * 3
    with pytest.raises(ValueError, match=r"must sum to 1 \(within 0.0001\), got 0.999"):
        check_proportions([0.333] * 3, DOMAINS, tolerance=WRITTEN_TOLERANCE)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_negative_or_endless_proportion_is_an_error_that_names_the_domain(value):
    with pytest.raises(ValueError, match=f"domain 'medicine' must be a number of at least 0, got {value}"):
        check_proportions([0.5, value, 0.5], DOMAINS)


@pytest.mark.parametrize("proportions", [[0.5, 0.5], [0.25] * 4, [[0.5, 0.3, 0.2]], 1.0])
def test_another_number_of_proportions_than_domains_is_an_error_that_lists_the_domains(proportions):
    with pytest.raises(ValueError, match=r"one number per domain \(3: law, medicine, code\), got shape"):
        check_proportions(proportions, DOMAINS)


def test_one_domain_has_proportion_one():
    assert check_proportions([1.0], ["law"]).tolist() == [1.0]


def vectors(min_size=1, max_size=12):
    """Proportion vectors: any shape of them, zeros included."""
    weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1.0)), min_size=min_size, max_size=max_size)
    return weights.filter(any).map(lambda w: np.array(w) / np.sum(w))


@given(vectors())
def test_checked_proportions_sum_to_one_and_are_a_copy(proportions):
    given_before = proportions.copy()
    checked = check_proportions(proportions, range(len(proportions)))
    assert abs(checked.sum() - 1) < 1e-12
    assert (checked >= 0).all()
    checked[0] = 7
    assert (proportions == given_before).all()


@given(vectors())
def test_checking_twice_changes_no_bit(proportions):
    once = check_proportions(proportions, range(len(proportions)))
    assert check_proportions(once, range(len(proportions))).tolist() == once.tolist()
