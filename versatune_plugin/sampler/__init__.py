"""Which row comes next: draws, fair shares, permutation, packing window, streams."""

from versatune_plugin.sampler.draws import MixtureSampler

__all__ = ["MixtureSampler"]
