"""A timeline as a picture, where matplotlib is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from frostline.finetune.timeline import Timeline

_COLOURS = ("#f2a541", "#9db4c0", "#1d4e89")
"""Trains, frozen in part, frozen."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot(timeline: Timeline, path: Path) -> None:
    """Draw the blocks over the steps, dark where they were frozen, as a PNG file.

    Args:
        timeline: what was frozen when.
        path: the file; replaced if it is there.

    Raises:
        ImportError: matplotlib is not installed (``frostline[report]``).
        OSError: the file can't be written.
    """
    # By name: matplotlib is an extra. Without pyplot, which would look for a display.
    figures, colors, ticker = (
        import_module(f"matplotlib.{part}") for part in ("figure", "colors", "ticker")
    )
    places, stretches = timeline.places, [s for s in timeline.stretches if s.steps]
    edges = [stretches[0].step, *(s.step + s.steps for s in stretches)]
    columns = [timeline.shares(stretch) for stretch in stretches]
    figure: Any = figures.Figure(figsize=(8, 1.6 + 0.28 * len(places)), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(
        [edge / timeline.steps_per_epoch for edge in edges],
        range(len(places) + 1),
        [[column[place] for column in columns] for place in places],
        cmap=colors.LinearSegmentedColormap.from_list("frost", _COLOURS),
        vmin=0.0,
        vmax=1.0,
    )
    axes.set_yticks([place + 0.5 for place in range(len(places))], places)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("epochs")
    axes.set_title(f"{timeline.schedule['schedule']}: dark is frozen, bright trains", loc="left")
    figure.savefig(path, format="png", dpi=150)
