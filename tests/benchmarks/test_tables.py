"""Result files in, tables out."""

import json

import numpy as np
import plans
import pytest
from tables import degradation, frontier_degradation, gain, write_tables

BEFORE = {"law": 4.0, "medicine": 5.0, "code": 2.0}
PLANNED = {name: block for part in plans.PARTS for name, block in plans.runs(part, "tiny-0").items()}


def write_base(folder, mixture):
    facts = {
        "name": folder.name,
        "mixture": mixture,
        "detected": {"law": 0.5, "medicine": 0.2, "code": 0.3},
        "references": {"law": 3.0, "medicine": 4.0, "code": 1.5},
        "rows": dict.fromkeys(BEFORE, 900),
        "losses": BEFORE,
        "accuracy": dict.fromkeys(BEFORE, 0.3),
    }
    folder.mkdir(parents=True)
    (folder / "base.json").write_text(json.dumps(facts))


def write_run(folder, name, seed, losses, accuracy=0.5, **changes):
    """The result of a run as the laboratory leaves it, as far as it is read."""
    run = {
        "name": name,
        "seed": seed,
        "asked": PLANNED.get(name),
        "losses": dict(zip(BEFORE, losses, strict=True)),
        "accuracy": dict.fromkeys(BEFORE, accuracy),
        "drawn": {"law": 0.0, "medicine": 0.9, "code": 0.1},
    }
    path = plans.run_file(folder, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run | changes))


def rows_of(folder):
    """The cells of every row of all tables, by table and first cell."""
    tables = write_tables(folder).read_text().split("\n\n")
    split = [[line.strip("| ").split(" | ") for line in table.splitlines() if line[:1] == "|"] for table in tables]
    return {table[0][0].strip("| "): {row[0]: row[1:] for row in table[2:]} for table in split if table}


@pytest.fixture
def results(tmp_path):
    """Three orders of the rows; medicine raised by shares and by a rule."""
    write_base(tmp_path / "tiny-0", {"law": 0.6, "medicine": 0.1, "code": 0.3})
    for seed, noise in enumerate((0.0, 0.02, -0.01)):
        own = (0.001, -0.001, 0.003)[seed]
        write_run(tmp_path / "tiny-0", "uniform", seed, [4.0 + noise, 4.8, 2.0])
        write_run(tmp_path / "tiny-0", "versatune", seed, [3.7 + noise + 3 * own, 4.8, 2.0], accuracy=0.6)
        write_run(tmp_path / "tiny-0", "medicine: specific", seed, [4.4, 4.5, 2.2])
        write_run(tmp_path / "tiny-0", "medicine: share 0.9", seed, [4.2, 4.52, 2.1])
        write_run(tmp_path / "tiny-0", "medicine: versatune", seed, [4.2, 4.51 + own, 2.1])
    return tmp_path


def test_differences_from_uniform_are_paired_and_weighted_by_the_own_mixture(results):
    difference = rows_of(results)["minus uniform"]["versatune"]
    # -0.3 / 3 + (0.001, -0.001, 0.003): mean -0.099, t(2) = 4.303, standard error 0.00115
    assert difference[:2] == ["3", "-0.0990 [-0.1040, -0.0940] **"]
    assert difference[3].startswith("-0.1782 [")  # 0.6 * (-0.3 + 0.003)
    assert difference[2] == "+10.0"  # equal differences tell nothing of how they vary


def test_a_raised_domain_is_compared_with_specific_and_with_constant_shares(results):
    expansion = rows_of(results)["all in %"]
    assert list(expansion) == ["uniform", "medicine: specific", "medicine: share 0.9", "medicine: versatune"]
    assert expansion["medicine: share 0.9"][:6] == ["3", "90.0", "9.60", "5.00", "96.0", "50.0"]
    rule = expansion["medicine: versatune"]
    # gain 9.78: of the way from share 0.9 (9.6, 5) to specific (10, 10) 0.45, so the frontier's degradation is 7.25
    assert rule[2:4] == ["9.78", "5.00"]
    assert rule[6].startswith("-2.25 [")


def test_runs_that_are_not_planned_or_were_asked_otherwise_are_left_out(results):
    write_run(results / "tiny-0", "an old rule", 0, [1.0, 1.0, 1.0])
    write_run(results / "tiny-0", "constant", 0, [1.0, 1.0, 1.0], asked={"strategy": "manual"})
    assert list(rows_of(results)["losses"]) == [
        "before",
        "uniform",
        "versatune",
        "medicine: specific",
        "medicine: share 0.9",
        "medicine: versatune",
    ]


def test_what_is_not_known_is_a_dash(tmp_path):
    write_base(tmp_path / "model", None)
    write_run(tmp_path / "model", "uniform", 0, [None, 4.8, 2.0])
    write_run(tmp_path / "model", "versatune from uniform", 0, [3.7, 4.8, 2.0])
    tables = rows_of(tmp_path)
    assert tables["losses"]["uniform"] == ["1", "-", "4.8000", "2.0000", "-"]
    assert tables["minus uniform"]["versatune from uniform"] == ["1", "-", "+0.0"]


def test_gain_and_degradation_are_relative_to_before_and_improvement_counts_as_none():
    after = {"law": 4.4, "medicine": 4.5, "code": 1.8}
    assert gain(BEFORE, after, "medicine") == pytest.approx(0.1)
    assert degradation(BEFORE, after, "medicine") == pytest.approx((0.1 + 0) / 2)


def test_the_frontier_is_interpolated_without_the_points_that_another_share_beats():
    points = [(0.0, 0.0), (0.10, 0.10), (0.05, 0.01), (0.04, 0.09)]  # the last gains less and degrades more
    assert frontier_degradation(points, 0.025) == pytest.approx(0.005)
    assert frontier_degradation(points, 0.075) == pytest.approx(0.055)
    assert frontier_degradation(points, 0.2) == 0.10
    assert np.isnan(frontier_degradation(points, -0.01))
    assert np.isnan(frontier_degradation(points[:1], 0.0))
    assert frontier_degradation([(0.04, 0.0), (0.06, 0.0), (0.1, 0.1)], 0.05) == 0.0
