"""Skip what is frozen: record at the frost line once, replay ever after."""

from frostline.replay.loop import Replay, replay
from frostline.replay.replayer import Replayer, ReplayStats

__all__ = ["Replay", "ReplayStats", "Replayer", "replay"]
