"""Rows of reference runs: how many are measured, and whether two tokenizers leave the same."""

import pytest

pytest.importorskip("torch")

from datasets import Dataset

from tests.known_references import PROBE
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.measuring.references.rows import Rows, check_same_rows, num_probe_rows


def number(**probe) -> int:
    """For 250 steps of 16 rows of 40 tokens at 3 forward passes each."""
    config = VersaTuneConfig(strategy="uniform", update_interval=20, probe=probe)
    sizes = {"law": [40] * 300, "code": [40] * 300}
    run = {"num_steps": 250, "rows_per_step": 16, "full": True}
    return num_probe_rows(config, sizes, sizes, **run, device_type="cpu", eval_batch_size=4, seed=1, world_size=1)


def test_rows_are_the_users_number_or_what_the_budget_allows():
    assert number(rows_per_domain=5) == 5
    assert number() == 22  # 14 probes of 2 * 22 rows are 616 beside 12,000 forward passes of rows: 4.9 % of both
    with pytest.raises(ValueError, match="rows_per_domain is 0"):
        number(rows_per_domain=0)


def test_fingerprints_are_those_of_the_rows_that_are_measured():
    train, heldout = ({"law": Dataset.from_dict({"input_ids": [[n, k, 9] for k in range(4)]})} for n in (1, 2))
    rows = Rows(train, heldout, 2, seed=5, decode=lambda tokens: " ".join(map(str, tokens)))
    assert rows.probe["law"]["rows"] == 2
    assert rows.of_size(4)["law"]["rows"] == 4
    assert rows.texts == [f"2 {k} 9" for k in range(4)]
    assert rows.probe == Rows(train, heldout, 2, seed=5, decode=lambda tokens: " ".join(map(str, tokens))).probe


def test_rows_of_another_text_are_refused_by_domain():
    main = {"law": PROBE, "code": PROBE, "tax": PROBE}
    other = {"row_texts": "x", "target_texts": "y"}
    check_same_rows(main, main | {"law": PROBE | {"row_texts": "a template"}}, "small", "max_length 40", "are cut")
    with pytest.raises(ValueError, match=r"'code', 'tax' are not those of the main run.*max_length 40 are cut"):
        check_same_rows(main, main | {"code": other, "tax": other}, "small", "max_length 40", "are cut")
