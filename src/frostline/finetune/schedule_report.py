"""What is said and kept of a schedule when a run has ended."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from frostline.files import replace_atomically
from frostline.finetune import run_folder
from frostline.finetune.result import ScheduleReport, Trained
from frostline.finetune.run_folder import RunFolder, json_bytes
from frostline.finetune.timeline import Timeline
from frostline.finetune.timeline_plot import can_plot, plot
from frostline.freezer import Freezer
from frostline.freezing import Frozen


def schedule_report(timeline: Timeline) -> ScheduleReport:
    """What ``result.json`` and the table say of a timeline."""
    return ScheduleReport(
        name=str(timeline.schedule["schedule"]),
        transitions=len(timeline.stretches) - 1,
        places=timeline.places,
        frozen=timeline.by_epoch,
    )


def trained_by(freezer: Freezer, timeline: Timeline, model: nn.Module, fixed: Frozen) -> Trained:
    """How much trained for at least a step.

    Args:
        freezer: what carried the schedule out.
        timeline: what it froze when.
        model: its model.
        fixed: what was frozen for the whole run.
    """
    units = [unit for unit in freezer.layout.units if unit.name in timeline.trained]
    rules = f"schedule: {freezer.schedule.name}"
    return Trained(
        rules=f"{rules}; {fixed.plan}" if fixed.names else rules,
        parameters=sum(unit.numel for unit in units),
        of=sum(parameter.numel() for parameter in model.parameters()),
    )


def write_timeline(folder: RunFolder, timeline: Timeline, note: Callable[[str], None]) -> None:
    """Write ``timeline.json``, and ``timeline.png`` where matplotlib is installed.

    Args:
        folder: the run's folder.
        timeline: what was frozen when.
        note: told in one line why there is no picture, if drawing it failed.

    Raises:
        OutputError: ``timeline.json`` can't be written.
    """
    folder.write(run_folder.TIMELINE, json_bytes(timeline.to_json()))
    if not can_plot():
        return
    try:
        replace_atomically(folder.path / run_folder.PLOT, lambda path: plot(timeline, path))
    # The picture is an extra: what another package does must not take the run with it.
    except Exception as error:
        note(f"the timeline could not be drawn: {error}")
