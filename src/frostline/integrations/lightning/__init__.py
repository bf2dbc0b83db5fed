"""Freezing, proof, replay and schedules in a Lightning ``Trainer``."""

from frostline.integrations.lightning.callback import FrostlineCallback

__all__ = ["FrostlineCallback"]
