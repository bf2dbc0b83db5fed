"""Several processes: one word on what they do, and wrappers that reduce what trains."""

from frostline.distributed.agreement import Agreement, agreement_among
from frostline.distributed.data_parallel import (
    Parallel,
    has_peers,
    live_wrappers,
    reduced_parameters,
    unreduced,
)

__all__ = [
    "Agreement",
    "Parallel",
    "agreement_among",
    "has_peers",
    "live_wrappers",
    "reduced_parameters",
    "unreduced",
]
