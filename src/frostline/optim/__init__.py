"""What does the optimizer see? Named groups of what trains."""

from frostline.optim.build import optimizer
from frostline.optim.groups import ParameterGroup, parameter_groups

__all__ = ["ParameterGroup", "optimizer", "parameter_groups"]
