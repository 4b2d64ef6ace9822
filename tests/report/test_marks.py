"""What the colours and patterns of the charts promise, computed."""

import re
from pathlib import Path

import numpy as np
import pytest

import versatune_plugin.report
from versatune_plugin.report.drawing import marks

CSS = Path(versatune_plugin.report.__file__).with_name("page.css").read_text()


def luminance(colour):
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts > 0.04045, ((parts + 0.055) / 1.055) ** 2.4, parts / 12.92)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("card", re.findall(r"--card: (#[0-9a-f]{6})", CSS))
def test_every_colour_stands_out_from_the_paper_in_light_and_dark(card):
    assert min(contrast(mark.colour, card) for mark in marks(6)) >= 3


def test_twenty_four_marks_are_all_different():
    assert len(set(marks(24))) == 24
