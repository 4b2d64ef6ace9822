import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.measuring.detection.judges.prompt import (
    check_question,
    harmless,
    in_domain_order,
    messages,
    rotations,
)

DOMAINS = ("law", "medicine", "code")
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>"),
    *("</s>", "<s>", "<<SYS>>", "[INST]", "[/INST]", "[gMASK]", "[SYSTEM_PROMPT]", "<|User|>", "<think>", "]~b]"),
    *("</text>", "<text>", "<|im_start|>"),
)


def content(text, rotation=0, descriptions=None, **settings):
    [message] = messages(text, DOMAINS, descriptions or {}, rotation, **{"max_text_tokens": 100} | settings)
    assert message["role"] == "user"
    return message["content"]


def fenced(prompt):
    [text] = re.findall(r"^<text>\n(.*)\n</text>$", prompt, flags=re.MULTILINE | re.DOTALL)
    return text


# --- options ------------------------------------------------------------------------------------------------


def test_options_are_shown_from_the_rotation_on_with_their_descriptions():
    prompt = content("x", rotation=1, descriptions={"code": "programs,\n  and scripts"})
    assert "\nA. medicine\nB. code: programs, and scripts\nC. law\n" in prompt
    assert "letter" in prompt


def test_json_questions_show_names_instead_of_letters():
    prompt = content("x", rotation=2, as_json=True)
    assert "\n- code\n- law\n- medicine\n" in prompt
    assert '{"domain": "..."}' in prompt
    assert "letter" not in prompt


def test_texts_with_the_same_rotation_share_everything_before_the_text():
    first, second = content("one text", rotation=1), content("another", rotation=1)
    assert first.partition("<text>\n")[0] == second.partition("<text>\n")[0]
    assert first.endswith(second.rpartition("</text>")[2])


@given(st.integers(1, 26), st.data())
def test_in_domain_order_undoes_the_rotation_of_the_options(num_domains, data):
    rotation = data.draw(st.integers(0, num_domains - 1))
    names = [f"d{number}" for number in range(num_domains)]
    [message] = messages("", names, {}, rotation, max_text_tokens=1)
    shown = re.findall(r"^[A-Z]\. d(\d+)$", message["content"], flags=re.MULTILINE)
    np.testing.assert_array_equal(in_domain_order(np.array(shown, dtype=int), rotation), np.arange(num_domains))


def test_every_domain_stands_first_equally_often():
    firsts = Counter(rotations(f"text {number}", 6, 1)[0] for number in range(6000))
    # 1,000 each, standard deviation 29
    assert all(880 < firsts[domain] < 1120 for domain in range(6))


@pytest.mark.parametrize("orders", [1, 2, 3, 6])
def test_the_orders_of_a_text_are_evenly_spaced(orders):
    shown_first = sorted(rotations("a text", 6, orders))
    assert np.diff([*shown_first, shown_first[0] + 6]).tolist() == [6 // orders] * orders


# --- untrusted text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", MARKERS)
def test_no_marker_of_a_chat_template_survives(marker):
    text = f"before {marker}system {marker}"
    assert marker not in fenced(content(text))
    assert content("")[:50] == content(text)[:50]


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("</text>[INST]|<\x00\r\n"))))
def test_no_text_ends_its_fence_or_crashes(text):
    prompt = content(text)
    assert prompt.count("<text>\n") == 1
    assert prompt.count("</text>") == 2  # the explanation and the fence
    assert len(fenced(prompt).encode()) <= 4 * 100
    assert not re.search(r"[<\[]\S", fenced(prompt))


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="<[]\r", categories=("L", "N", "P", "Z"))))
def test_ordinary_text_is_shown_as_it_is(text):
    assert harmless(text, 1000) == text


def test_lone_surrogates_control_characters_and_line_ends_are_cleaned_and_hidden_markers_found():
    assert harmless("a\ud800b\x00c\x1b[31m\r\nd\re\tf", 100) == "a?bc[ 31m\nd\ne\tf"
    assert harmless("<\x00|im_end|>", 100) == "< |im_end|>"


def test_long_text_is_cut_at_four_ascii_characters_or_one_other_per_token():
    assert harmless("abcdefghijkl", 2) == "abcdefgh"
    assert harmless("患者患者", 3) == "患者患"
    assert harmless("ab患者", 2) == "ab患"  # 2/4 + 1 tokens; one more would be too much


# --- checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": [f"d{number}" for number in range(27)]}, "at most 26 domains, got 27"),
        ({"descriptions": {"laww": "x"}}, "unknown domain 'laww'; did you mean 'law'"),
        ({"descriptions": {"law": " "}}, "description of 'law' must be a line of text, got ' '"),
        ({"orders": 4}, "orders must be between 1 and the number of domains \\(3\\), got 4"),
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1, got 0"),
    ],
)
def test_a_question_that_cannot_be_put_is_refused(change, message):
    question = {"domains": DOMAINS, "descriptions": {}, "orders": 1, "max_text_tokens": 10} | change
    with pytest.raises(ValueError, match=message):
        check_question(question.pop("domains"), question.pop("descriptions"), **question)
