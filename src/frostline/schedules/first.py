"""A first schedule to edit: one phase for each layer of a model, from the top down."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from frostline.selection import select
from frostline.selection.blocks import blocks
from frostline.units import format_count, format_number_of

_HEAD = """\
# A first schedule for {kind}: edit it, then train with
#   frostline finetune --schedule THIS_FILE
#
# The model, from the input up: {found}.
#
# A phase begins at an 'epoch', at a 'step', or after a 'stall': so many epochs in which the metric
# got no better. It lists everything that trains from then on; all else is frozen. What trains is
# named by selectors: layers:last:2, a part's name (classifier), a glob ("**"), type:LayerNorm.
# Rates, where wanted, are factors on the learning rate:
#   rates: {{"layers:first:2": 0.1}}
schedule: explicit
better: max  # of the metric that a stall waits for; min for a loss
phases:
"""


def write_first_schedule(model: nn.Module) -> str:
    """A schedule as YAML text: the head first, then one more block each epoch, then everything.

    Raises:
        SelectorError: (a ValueError) the model has no blocks (see :func:`frostline.blocks`).

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(write_first_schedule(model).partition("phases:")[2])
    <BLANKLINE>
      # 3: 10 parameters
      - epoch: 0
        train: ["layers:last:1"]
      # and 2: 20 parameters
      - epoch: 1
        train: ["layers:last:2"]
      # and 0: 36 parameters, which is all
      - epoch: 2
        train: ["**"]
    <BLANKLINE>
    """
    found = blocks(model)
    layers = [names for names in reversed(found.layers) if names]
    everything = select(model, "**").numel
    lines: list[str] = []
    thawed = 0
    for count, names in enumerate(layers, 1):
        numel = select(model, f"layers:last:{count}").numel
        if numel == thawed:  # it is tied to what trains already
            continue
        last = numel == everything
        lines += [
            f"  # {'and ' if thawed else ''}{_said(names)}: {_counted(numel - thawed)}"
            + (", which is all" if last else ""),
            f"  - epoch: {len(lines) // 3}",
            f'    train: ["{"**" if last else f"layers:last:{count}"}"]',
        ]
        thawed = numel
    return _HEAD.format(kind=type(model).__name__, found=found.found) + "\n".join(lines) + "\n"


def _said(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _counted(numel: int) -> str:
    if numel < 1_000_000:
        return format_number_of(numel, "parameter")
    return f"{format_count(numel)} parameters"
