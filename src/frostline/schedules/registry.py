"""All methods, by the names that ``--schedule`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from frostline.schedules.alpha import Alpha
from frostline.schedules.apf import APF
from frostline.schedules.autofreeze import AutoFreeze
from frostline.schedules.autorgn import AutoRGN
from frostline.schedules.badam import BAdam
from frostline.schedules.base import Schedule
from frostline.schedules.explicit import Explicit
from frostline.schedules.freezeout import FreezeOut
from frostline.schedules.gradual_unfreeze import GradualUnfreeze
from frostline.schedules.lisa import LISA
from frostline.schedules.lpft import LPFT
from frostline.schedules.plasticity import Plasticity
from frostline.schedules.spectrum import Spectrum
from frostline.schedules.surgical import SurgicalBlock

registry: Mapping[str, type[Schedule]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Explicit,
            GradualUnfreeze,
            LPFT,
            FreezeOut,
            Alpha,
            AutoFreeze,
            Plasticity,
            LISA,
            BAdam,
            APF,
            AutoRGN,
            Spectrum,
            SurgicalBlock,
        )
    }
)
"""Name → class; every class can be built without arguments. A new method joins the list.

>>> type(registry["lisa"]()).__name__
'LISA'
"""
