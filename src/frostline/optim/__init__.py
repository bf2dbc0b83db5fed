"""What does the optimizer see? Named groups of what trains."""

from frostline.optim.build import optimizer
from frostline.optim.groups import ParameterGroup, parameter_groups
from frostline.optim.report import SyncReport
from frostline.optim.resume import ResumeReport, load_optimizer_state, optimizer_state
from frostline.optim.sync import sync

__all__ = [
    "ParameterGroup",
    "ResumeReport",
    "SyncReport",
    "load_optimizer_state",
    "optimizer",
    "optimizer_state",
    "parameter_groups",
    "sync",
]
