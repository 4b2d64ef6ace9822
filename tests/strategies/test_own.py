import sys
import textwrap

import numpy as np
import pytest

from tests.resolving import strategy_of
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.strategies import own_strategy

DOMAINS = ("law", "medicine", "code")

CODE = """
    import numpy as np

    from versatune_plugin.strategies import Decision, Strategy


    class Hardest(Strategy):
        def decide(self, observation):
            calls = (observation.memory or 0) + 1
            proportions = np.where(observation.losses == observation.losses.max(), 1.0, 0.0)
            return Decision(proportions=proportions / proportions.sum(), note=f"update {calls}", memory=calls)


    class Wrong(Strategy):
        def decide(self, observation):
            return Decision(proportions=observation.proportions * 2)


    class Unfinished(Strategy):
        pass


    class Demanding(Strategy):
        def __init__(self, temperature):
            pass

        def decide(self, observation):
            pass


    class Stranger:
        def decide(self, observation):
            pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A working directory with a module `mine`, as beside a user's YAML."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


def test_a_class_beside_the_yaml_decides_and_remembers(mine):
    config = VersaTuneConfig(strategy="mine:Hardest", initial_proportions="uniform")
    mixture = Mixture(DOMAINS, strategy_of(config, dict.fromkeys(DOMAINS, 10)), np.full(3, 1 / 3), num_steps=9)
    first = mixture.update(np.array([2.0, 3.0, 1.0]), step=1)
    assert (first.proportions.tolist(), first.note) == ([0.0, 1.0, 0.0], "update 1")
    resumed = Mixture(DOMAINS, own_strategy("mine:Hardest"), np.full(3, 1 / 3), num_steps=9)
    resumed.load_state_dict(mixture.state_dict())
    assert resumed.update(np.array([2.0, 1.0, 1.0]), step=2).note == "update 2"


def test_importing_it_leaves_the_search_path_as_it_was(mine):
    before = list(sys.path)
    own_strategy("mine:Hardest")
    assert sys.path == before


def test_proportions_that_do_not_sum_to_one_are_an_error_that_names_the_strategy(mine):
    mixture = Mixture(DOMAINS, own_strategy("mine:Wrong"), np.full(3, 1 / 3), num_steps=9)
    with pytest.raises(ValueError, match="the proportions of strategy Wrong at step 1 must sum to 1"):
        mixture.update(np.ones(3), step=1)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("nowhere:Hardest", "module 'nowhere' cannot be imported from /"),
        ("broken:Hardest", "ModuleNotFoundError(\"No module named 'nothing_of"),
        (":Hardest", "module '' cannot be imported"),
        ("mine:Easiest", "'mine' has no class 'Easiest' derived from versatune_plugin.strategies.Strategy"),
        ("mine:Stranger", "'mine' has no class 'Stranger' derived from versatune_plugin.strategies.Strategy"),
        ("mine:Unfinished", "'Unfinished' has no method decide(self, observation)"),
        ("mine:Demanding", "'Demanding' cannot be made without arguments: TypeError"),
    ],
)
def test_a_name_that_is_no_strategy_is_a_mistake_at_its_key(mine, name, phrase):
    with pytest.raises(ValueError, match=r"versatune|strategy") as error:
        VersaTuneConfig(strategy=name, initial_proportions="uniform")
    assert phrase in str(error.value)
