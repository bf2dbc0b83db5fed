"""Watch over a training loop: nothing frozen moves, nothing trainable is missed."""

from frostline.guard.api import guard
from frostline.guard.session import Guard
from frostline.guard.violation import GuardReport, Violation, Writer

__all__ = ["Guard", "GuardReport", "Violation", "Writer", "guard"]
