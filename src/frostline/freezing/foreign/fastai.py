"""``freeze_to: n`` as in fastai: the groups below number n are frozen, it and those above train.

A negative n counts from the top: -1 leaves the top group trainable. fastai's groups come from the
splitter of its learner; here they are the model's layers (see :attr:`frostline.Blocks.layers`).
"""

from __future__ import annotations

from frostline.errors import PlanError
from frostline.freezing.foreign.fields import Fields, Rules
from frostline.selection import Selector, glob
from frostline.selection.suggest import nearest

KEYS = frozenset({"freeze_to"})


def rules(fields: Fields) -> Rules:
    """Train everything but the lowest layers; raises PlanError for any other field."""
    for key in fields:
        if key != "freeze_to":
            raise PlanError(
                f"{fields.place}: unknown key {key!r}; 'freeze_to' stands alone."
                + nearest(key, ["freeze_to"])
            )
    if fields.raw("freeze_to") is None:
        raise fields.error("freeze_to", "expected a whole number, got nothing")
    count = fields.whole_number("freeze_to", default=0)
    if count < 0:
        return [("freeze", glob("**")), ("train", Selector.parse(f"layers:last:{-count}"))]
    if count == 0:
        return [("train", glob("**"))]
    return [("train", glob("**")), ("freeze", Selector.parse(f"layers:first:{count}"))]
