"""Processes of one script: what the main one does for all, and random states that a measurement leaves alone."""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def on_main(function: Callable):
    """Call a function in the main process alone; its result, or its error, is that of all processes."""
    state = PartialState()
    box: list = [None, None]
    if state.is_main_process:
        try:
            box[0] = function()
        except Exception as error:  # whatever it is: the other processes wait for it
            box[1] = _portable(error) if state.num_processes > 1 else error
    if state.num_processes > 1:
        broadcast_object_list(box)
    result, failure = box
    if failure is not None:
        raise failure
    return result


def _portable(error: Exception) -> Exception:
    """The error itself where it can be sent to another process, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's class may raise anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch as they were, so that the main run is the same either way."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
