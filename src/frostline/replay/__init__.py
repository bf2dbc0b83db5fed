"""Skip what is frozen: record at the frost line once, replay ever after."""

from frostline.replay.frost_line import FrostLine, frost_line
from frostline.replay.loop import Replay, replay
from frostline.replay.replayer import Replayer, ReplayStats
from frostline.replay.sampler import HomeSampler

__all__ = ["FrostLine", "HomeSampler", "Replay", "ReplayStats", "Replayer", "frost_line", "replay"]
