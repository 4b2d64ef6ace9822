"""Parts of what a run uses, asked for one by one."""

from versatune_plugin.config import settings
from versatune_plugin.config.measured import Measured

NOTHING = Measured()


def initial_vector(config, sizes, num_draws=1, measured=NOTHING):
    """Proportions at the start; in a run of one draw, no limit on passes matters."""
    return settings.start_vector(config, measured, sizes, num_draws)


def strategy_of(config, sizes, measured=NOTHING):
    return settings.build_strategy(config, measured, sizes)


def references_in(config, domains, measured=NOTHING):
    return settings.reference_vector(config, measured, domains)


def rows_of_probe(config, share, measured=NOTHING):
    return settings.num_probe_rows(config, measured, share)
