import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from tests.word_lists import DOMAINS, WordGenerator, WordJudge
from versatune_plugin.measuring.detection.cached import judged_samples
from versatune_plugin.measuring.detection.detect import detect
from versatune_plugin.measuring.detection.document import Detection
from versatune_plugin.measuring.detection.samples import Sample
from versatune_plugin.measuring.detection.statistics import summarise

REPOSITORY = Path(__file__).parents[3]
NOT_REPEATABLE = {"created", "seconds"}


def run(folder, generator=None, judge=None, *, num_samples=700, iterations=2, **options):
    return detect(
        generator or WordGenerator(),
        judge or WordJudge(),
        num_samples=num_samples,
        iterations=iterations,
        folder=folder,
        show_progress=False,
        **options,
    )


def repeatable(document):
    return document.model_dump(exclude=NOT_REPEATABLE)


class FixedGenerator(WordGenerator):
    """The same text at every place."""

    def __init__(self, text, num_tokens=1):
        super().__init__()
        self.fixed = Sample(text, num_tokens, finished=True)

    def sample(self, iteration, index):
        return self.fixed


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    """An unbroken run of two iterations with 700 samples each, and its folder."""
    folder = tmp_path_factory.mktemp("detection")
    return run(folder), folder


# --- the document -------------------------------------------------------------------------------------------


def test_the_detected_proportions_are_those_of_the_words(detection):
    document, _ = detection
    truth = dict(zip(DOMAINS, (0.5, 0.3, 0.2), strict=True))
    # the judge adds 0.1 to each count, which draws every text towards 1/3
    assert document.proportions == pytest.approx(truth, abs=0.05)
    assert document.num_samples == 1400
    assert document.num_judged + document.num_empty == 1400
    assert document.num_empty == pytest.approx(1400 / 5, rel=0.2)
    assert document.share_finished == pytest.approx(0.75, abs=0.04)
    for domain, (low, high) in document.intervals.items():
        assert low < document.proportions[domain] < high
        assert high - low < 0.04


def test_the_document_says_what_it_was_made_from(tmp_path):
    document = run(tmp_path, num_samples=20, data_fingerprints={"law": "abc"})
    assert document.model == WordGenerator().identity()
    assert document.judge == WordJudge().identity()
    assert document.judge_report == {"held_out_accuracy": 0.93}
    assert document.domains == list(DOMAINS)
    assert (document.settings.num_samples, document.settings.iterations, document.settings.tolerance) == (20, 2, None)
    assert (document.stopped_early, document.data) == (False, {"law": "abc"})
    assert set(document.seconds) == {"generation", "judging", "total"}


# --- what is generated and judged once ----------------------------------------------------------------------


def test_identical_texts_are_judged_once_and_empty_ones_never(tmp_path):
    judge = WordJudge(tmp_path / "asked")
    document = run(tmp_path, judge=judge)
    asked = judge.asked.read_text().splitlines()
    assert len(asked) == len(set(asked)) < document.num_judged - 100
    assert all(map(str.strip, asked))


def test_a_second_run_takes_everything_from_the_cache(detection):
    document, folder = detection
    generator, judge = WordGenerator(), WordJudge()
    assert repeatable(run(folder, generator, judge)) == repeatable(document)
    assert (generator.num_generated, judge.num_judged) == (0, 0)


def test_another_judge_reuses_the_samples(detection):
    document, folder = detection
    generator, judge = WordGenerator(), WordJudge(name="another", domains=DOMAINS[::-1])
    other = run(folder, generator, judge)
    assert generator.num_generated == 0 < judge.num_judged
    assert other.proportions == pytest.approx(document.proportions)


def test_more_samples_and_more_iterations_extend_those_that_are_there(tmp_path):
    generator = WordGenerator()
    run(tmp_path, generator, num_samples=300, iterations=1)
    larger = run(tmp_path, generator, num_samples=500, iterations=2)
    assert generator.num_generated == 1000
    assert repeatable(larger) == repeatable(run(tmp_path / "fresh", num_samples=500, iterations=2))
    run(tmp_path, generator, num_samples=100, iterations=1)
    assert generator.num_generated == 1000


def test_a_text_without_an_answer_is_asked_for_again_by_the_next_run_only(tmp_path):
    silent = WordJudge(tmp_path / "asked", silent_on="dose")
    first = run(tmp_path, judge=silent)
    asked = silent.asked.read_text().splitlines()
    assert len(asked) == len(set(asked))
    assert first.num_not_judged > 100
    healed = WordJudge(tmp_path / "asked again")
    second = run(tmp_path, judge=healed)
    assert set(healed.asked.read_text().splitlines()) == {text for text in asked if "dose" in text}
    assert second.num_not_judged == 0
    assert repeatable(second) == repeatable(run(tmp_path / "fresh"))


def test_the_samples_and_judgements_of_a_detection_are_read_back(detection):
    document, folder = detection
    samples, probabilities = judged_samples(folder, document)
    assert len(samples) == len(probabilities) == 1400
    assert samples[701] == WordGenerator().sample(1, 1)
    summary = summarise(samples, probabilities, DOMAINS, 700, "samples", seed=0)
    assert document.model_dump(include=set(type(summary).model_fields)) == summary.model_dump()


def test_samples_that_are_no_longer_there_are_an_error(detection, tmp_path):
    document, _ = detection
    with pytest.raises(ValueError, match=r"no longer in .* \(1,400 of 1,400 samples are missing\)"):
        judged_samples(tmp_path, document)
    run(tmp_path, judge=WordJudge(name="another"))
    with pytest.raises(ValueError, match=r"no longer in .* \(0 of 1,400 samples are missing\)"):
        judged_samples(tmp_path, document)


# --- the early stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "tolerance"), [("samples", 0.045), ("tokens", 0.06), ("tokens", 0.035)])
def test_it_stops_after_the_first_block_with_narrow_intervals_and_a_second_run_stops_there_too(
    detection, tmp_path, count, tolerance
):
    samples, probabilities = judged_samples(detection[1], detection[0])
    ends = [256, 512, 700, 956, 1212, 1400]  # blocks of 256 that do not cross an iteration

    def width(end):
        summary = summarise(samples[:end], probabilities[:end], DOMAINS, 700, count, seed=0)
        return max(high - low for low, high in summary.intervals.values())

    expected = next(end for end in ends if width(end) < tolerance)
    generator = WordGenerator()
    first = run(tmp_path, generator, count=count, tolerance=tolerance)
    assert first.num_samples == generator.num_generated == expected < 1400
    assert first.stopped_early
    assert repeatable(run(tmp_path, generator, count=count, tolerance=tolerance)) == repeatable(first)
    assert generator.num_generated == expected


def test_a_tolerance_that_is_never_reached_draws_everything(tmp_path):
    document = run(tmp_path, tolerance=1e-6, num_samples=300)
    assert (document.num_samples, document.stopped_early) == (600, False)


def test_a_handful_of_equal_texts_is_no_reason_to_stop(tmp_path):
    document = run(tmp_path, FixedGenerator("court"), num_samples=99, tolerance=0.01)
    assert (document.num_samples, document.stopped_early) == (198, False)
    assert run(tmp_path / "more", FixedGenerator("court"), num_samples=100, tolerance=0.01).num_samples == 100


# --- faults -------------------------------------------------------------------------------------------------


def test_a_model_that_writes_nothing_is_an_error_after_the_first_block(tmp_path):
    generator = FixedGenerator(" \n\t")
    with pytest.raises(RuntimeError, match=r"all 256 samples are empty: .* Is the start token"):
        run(tmp_path, generator)
    assert generator.num_generated == 256


def test_a_judge_without_answers_for_more_than_half_of_the_texts_is_an_error(tmp_path):
    class EveryFifth(WordJudge):
        def row(self, text):
            return super().row(text) if len(text) % 5 == 0 else np.full(3, np.nan)

    with pytest.raises(RuntimeError, match=r"no answer for \d+ of \d+ texts, more than half: .* asks it again"):
        run(tmp_path, judge=EveryFifth())
    assert run(tmp_path).num_not_judged == 0


def test_a_judge_or_a_generator_that_breaks_its_word_is_an_error(tmp_path):
    class Doubled(WordJudge):
        def row(self, text):
            return 2 * super().row(text)

    class Forgetful(WordGenerator):
        def generate(self, iteration, wanted):
            return super().generate(iteration, wanted[2:])

    with pytest.raises(ValueError, match="a judgement must sum to 1"):
        run(tmp_path / "judge", judge=Doubled())
    with pytest.raises(ValueError, match="sample 0 of iteration 0 has a text but no number of tokens"):
        run(tmp_path / "tokens", FixedGenerator("court", num_tokens=0), num_samples=1)
    with pytest.raises(RuntimeError, match="2 samples of iteration 0 were not generated, such as 0"):
        run(tmp_path / "generator", Forgetful())


def test_two_runs_in_one_folder_at_the_same_time_are_refused(tmp_path):
    class Impatient(WordJudge):
        def row(self, text):
            return run(tmp_path) and super().row(text)

    with pytest.raises(RuntimeError, match="in use by another process"):
        run(tmp_path, judge=Impatient())


# --- kills --------------------------------------------------------------------------------------------------


def start(folder, asked, dies_generating=None, dies_judging=None, tolerance=None):
    options = {"num_samples": 700, "iterations": 2, "tolerance": tolerance, "show_progress": False}
    arguments = [str(folder), str(asked), *map(json.dumps, (options, dies_generating, dies_judging))]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.word_lists", *arguments], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )


@pytest.mark.parametrize("tolerance", [None, 0.045])
def test_a_run_that_was_killed_four_times_equals_an_unbroken_one_and_nothing_is_judged_twice(tmp_path, tolerance):
    folder, asked = tmp_path / "cache", tmp_path / "asked"
    # in the first and third block while generating, in the first and a later block while judging
    for dies in ({"dies_generating": 100}, {"dies_judging": 20}, {"dies_generating": 300}, {"dies_judging": 21}):
        process = start(folder, asked, **dies, tolerance=tolerance)
        output, _ = process.communicate()
        assert (process.returncode, output) == (-signal.SIGKILL, "")
    process = start(folder, asked, tolerance=tolerance)
    output, _ = process.communicate()
    assert process.returncode == 0
    unbroken = run(tmp_path / "unbroken", tolerance=tolerance)
    assert repeatable(Detection.model_validate_json(output)) == repeatable(unbroken)
    assert unbroken.stopped_early == (tolerance is not None)
    judged = asked.read_text().splitlines()
    assert len(judged) == len(set(judged)) > 41


def test_a_kill_at_any_moment_loses_at_most_what_is_in_flight(tmp_path):
    folder, asked = tmp_path / "cache", tmp_path / "asked"
    rng, num_kills = np.random.default_rng(0), 0
    for _ in range(3):
        process = start(folder, asked)
        while process.poll() is None and not any(folder.glob("*.sqlite3")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_kills += process.returncode == -signal.SIGKILL
    output, _ = start(folder, asked).communicate()
    assert repeatable(Detection.model_validate_json(output)) == repeatable(run(tmp_path / "unbroken"))
    judged = asked.read_text().splitlines()
    assert len(judged) - len(set(judged)) <= num_kills


DETECT_UNTIL_FULL = """
import resource, signal, sys
from pathlib import Path
from tests.word_lists import WordGenerator, WordJudge
from versatune_plugin.measuring.detection.detect import detect

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
options = dict(num_samples=700, iterations=2, folder=Path(sys.argv[1]), show_progress=False)
try: detect(WordGenerator(), WordJudge(), **options)
except OSError as error: print(error)
"""


def test_a_disk_that_becomes_full_is_an_error_and_the_same_command_goes_on_from_there(tmp_path):
    command = [sys.executable, "-c", DETECT_UNTIL_FULL, str(tmp_path), "80000"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert "cache.sqlite3 cannot be read or written" in finished.stdout, finished.stderr
    assert "what was written so far is kept: make room and repeat the same command" in finished.stdout
    generator = WordGenerator()
    document = run(tmp_path, generator)
    assert 0 < generator.num_generated < 1400
    assert repeatable(document) == repeatable(run(tmp_path / "unbroken"))


# --- progress -----------------------------------------------------------------------------------------------


def test_progress_can_be_switched_off_and_is_silent_off_a_terminal_in_a_short_run(tmp_path, capfd):
    detect(WordGenerator(), WordJudge(), num_samples=50, iterations=1, folder=tmp_path, show_progress=True)
    run(tmp_path / "other")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_of_the_whole_run_and_how_fast(tmp_path):
    arguments = [str(tmp_path), os.devnull, json.dumps({"num_samples": 300, "iterations": 2, "show_progress": True})]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-m", "tests.word_lists", *arguments]
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=REPOSITORY) as process:
        os.close(theirs)
        while piece := read_terminal(ours):
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    for part in (b"generating:   0%", b"judging:", b"256/600", b"text/s"):  # 256: the second block begins
        assert part in shown


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 10_000)
    except OSError:  # how Linux says that the other side was closed
        return b""
