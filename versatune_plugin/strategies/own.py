"""A user's own strategy, named in the block as `module:Class`."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from versatune_plugin.strategies.base import Strategy


def own_strategy(name: str) -> Strategy:
    """An instance of the class that `module:Class` names; modules in the working directory are found, too.

    Importing runs the module's code: the user has named it.

    Raises:
        ValueError: The module cannot be imported, has no such class, or the class is no `Strategy` that can be made
            without arguments.
    """
    module, _, attribute = name.partition(":")
    try:
        with _working_directory_on_path():
            found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"module {module!r} cannot be imported from {os.getcwd()}: {error!r}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ValueError(
            f"{module!r} has no class {attribute!r} derived from versatune_plugin.strategies.Strategy; "
            "write module:Class"
        )
    if found.decide is Strategy.decide:
        raise ValueError(f"{attribute!r} has no method decide(self, observation)")
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{attribute!r} cannot be made without arguments: {error!r}") from error


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Commands that were installed, such as `axolotl`, do not look for modules there."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
