"""ms-swift's fields for training without adapters.

All parameters train; then a share of them from the bottom, those whose names begin with one of
some prefixes and those in which a regular expression is found are frozen; then others, by prefix
and expression, train in any case.
"""

from __future__ import annotations

import re

from frostline.freezing.foreign.fields import Fields, Rules
from frostline.selection import Selector, glob, regex

KEYS = frozenset(
    {
        "freeze_parameters",
        "freeze_parameters_ratio",
        "freeze_parameters_regex",
        "trainable_parameters",
        "trainable_parameters_regex",
    }
)


def rules(fields: Fields) -> Rules:
    """Train everything, freeze by share, prefix and expression, train again; in this order."""
    for key in ("tuner_type", "train_type", "sft_type"):
        fields.refuse(key, "full", "adapters are new weights; only 'full' reads these fields")
    fields.refuse("freeze_llm", False, "the part has another name in each model; name its prefix")
    for key in ("freeze_vit", "freeze_aligner"):
        fields.refuse(
            key,
            False,
            "it is about multimodal models, where the part has another name in each: put its prefix"
            " into freeze_parameters; for a model of text alone, drop the field",
        )
    found: Rules = [("train", glob("**"))]
    share = fields.share("freeze_parameters_ratio")
    if share > 0:
        found.append(("freeze", Selector.parse(f"lowest:{share!r}")))
    found += [("freeze", _starting(prefix)) for prefix in fields.strings("freeze_parameters")]
    frozen = fields.text("freeze_parameters_regex")
    found += [("freeze", regex(frozen))] if frozen else []
    if len(found) == 1:
        raise fields.error("freeze_parameters", "neither it nor its like freezes anything")
    found += [("train", _starting(prefix)) for prefix in fields.strings("trainable_parameters")]
    trained = fields.text("trainable_parameters_regex")
    found += [("train", regex(trained))] if trained else []
    return found


def _starting(prefix: str) -> Selector:
    """A prefix of the text, not of whole components: ``layers.1`` is in ``layers.10`` too."""
    return regex(f"^{re.escape(prefix)}")
