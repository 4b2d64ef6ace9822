"""What the colours and patterns of the charts promise, computed."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import versatune_plugin.report
from versatune_plugin.report.drawing import marks

CSS = Path(versatune_plugin.report.__file__).with_name("page.css").read_text()
# simulated as in Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
BLINDNESSES = {
    "none": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts > 0.04045, ((parts + 0.055) / 1.055) ** 2.4, parts / 12.92)


def oklab(rgb):
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(cones) @ np.clip(rgb, 0, 1))


def contrast(one, other):
    lighter, darker = sorted((linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


COLOURS = [mark.colour for mark in marks(6)]


@pytest.mark.parametrize("blindness", BLINDNESSES)
def test_the_six_colours_stay_apart_for_the_colour_blind(blindness):
    seen = [oklab(np.array(BLINDNESSES[blindness]) @ linear(colour)) for colour in COLOURS]
    nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
    assert nearest > 0.10


@pytest.mark.parametrize("card", re.findall(r"--card: (#[0-9a-f]{6})", CSS))
def test_every_colour_stands_out_from_the_paper_in_light_and_dark(card):
    assert min(contrast(colour, card) for colour in COLOURS) >= 3


def test_the_stylesheet_has_a_light_and_a_dark_card():
    assert len(re.findall(r"--card: #[0-9a-f]{6}", CSS)) == 2


def test_twenty_four_marks_are_all_different():
    assert len(set(marks(24))) == 24
