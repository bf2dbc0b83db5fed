"""When to freeze what: a contract, and the published methods on it."""

from frostline.schedules.alpha import Alpha
from frostline.schedules.apf import APF
from frostline.schedules.autofreeze import AutoFreeze
from frostline.schedules.autorgn import AutoRGN
from frostline.schedules.badam import BAdam
from frostline.schedules.base import Decision, Progress, Schedule, Signals, State, Traits
from frostline.schedules.blocks import Blocks, blocks
from frostline.schedules.explicit import Explicit, Phase
from frostline.schedules.first import write_first_schedule
from frostline.schedules.formats import load_schedule as load
from frostline.schedules.freezeout import FreezeOut
from frostline.schedules.gradual_unfreeze import GradualUnfreeze
from frostline.schedules.layout import Layout, Unit, layout_of
from frostline.schedules.lisa import LISA
from frostline.schedules.lpft import LPFT
from frostline.schedules.plasticity import Plasticity
from frostline.schedules.registry import registry
from frostline.schedules.snr import snr_scores
from frostline.schedules.spectrum import Spectrum
from frostline.schedules.surgical import SurgicalBlock
from frostline.schedules.written import from_plain, parse, to_plain, to_yaml

__all__ = [
    "APF",
    "LISA",
    "LPFT",
    "Alpha",
    "AutoFreeze",
    "AutoRGN",
    "BAdam",
    "Blocks",
    "Decision",
    "Explicit",
    "FreezeOut",
    "GradualUnfreeze",
    "Layout",
    "Phase",
    "Plasticity",
    "Progress",
    "Schedule",
    "Signals",
    "Spectrum",
    "State",
    "SurgicalBlock",
    "Traits",
    "Unit",
    "blocks",
    "from_plain",
    "layout_of",
    "load",
    "parse",
    "registry",
    "snr_scores",
    "to_plain",
    "to_yaml",
    "write_first_schedule",
]
