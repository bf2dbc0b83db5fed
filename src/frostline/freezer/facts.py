"""What ranks compare: what must be the same on all of them, by the name it has in a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from frostline.freezer.position import Position
from frostline.schedules import Decision, Layout, Progress, Schedule, to_plain

Facts = dict[str, object]
"""Name → a plain JSON value."""


def run_facts(schedule: Schedule, layout: Layout, position: Position) -> Facts:
    """What stays for the whole run."""
    return {
        "the model's parts": [unit.name for unit in layout.units],
        "the schedule": to_plain(schedule),
        "steps_per_epoch": position.per_epoch_given,
        "total_steps": position.total_given,
    }


def position_facts(position: Position) -> Facts:
    """Where the run stands."""
    return {"the steps made": position.step, "the epochs ended": position.epoch}


def transition_facts(
    model: nn.Module, train: frozenset[str], decision: Decision, progress: Progress
) -> Facts:
    """What is frozen, and what was decided."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {
        "the epochs ended": progress.epoch,
        "what was frozen before": frozen,
        "what is to train": sorted(train),
        "the rates": dict(decision.rates or {}),
    }


def resume_facts(state: Mapping[str, Any]) -> Facts:
    """Which saved state is loaded; one that is none is refused later."""
    return {f"the saved {key}": state.get(key) for key in ("schedule", "position", "trains")}
