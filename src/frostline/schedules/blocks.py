"""The blocks that schedules are about; they are found in :mod:`frostline.selection.blocks`."""

from __future__ import annotations

from frostline.selection.blocks import Blocks, blocks

__all__ = ["Blocks", "blocks"]
