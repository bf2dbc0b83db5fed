"""The one place that joins schedule, freezing, optimizer and proof."""

from frostline.freezer.events import Event, Row
from frostline.freezer.freezer import Freezer

__all__ = ["Event", "Freezer", "Row"]
