"""LLaMA-Factory's ``finetuning_type: freeze`` and its fields.

Some layers of the model's own train, the last or (a negative number) the first, whole or some of
their modules, and of what lies outside the layers the modules that are named.
"""

from __future__ import annotations

from frostline.freezing.foreign.fields import Fields, Rules
from frostline.selection import Selector, as_selector, glob

KEYS = frozenset(
    {
        "finetuning_type",
        "freeze_trainable_layers",
        "freeze_trainable_modules",
        "freeze_extra_modules",
    }
)
_DEFAULT_LAYERS = 2


def rules(fields: Fields) -> Rules:
    """Freeze everything, then train the layers and the extra modules."""
    fields.refuse(
        "finetuning_type",
        "freeze",
        "'full' freezes nothing, and adapters are new weights; only 'freeze' is a plan",
    )
    fields.refuse("use_llama_pro", False, "it trains layers that LLaMA-Factory inserts")
    fields.refuse("use_badam", False, "layers that change while training are a schedule: 'badam'")
    for key, usual in (
        ("freeze_vision_tower", True),
        ("freeze_multi_modal_projector", True),
        ("freeze_language_model", False),
    ):
        fields.refuse(key, usual, "the part has another name in each model; name it in a plan")
    count = fields.whole_number("freeze_trainable_layers", default=_DEFAULT_LAYERS)
    modules = fields.strings("freeze_trainable_modules", commas=True) or ["all"]
    extra = fields.strings("freeze_extra_modules", commas=True)
    trained = [*_in_layers(count, modules), *(_outside(name) for name in extra)]
    if not trained:
        raise fields.error("freeze_trainable_layers", "0 and no extra modules: nothing would train")
    return [("freeze", glob("**")), ("train", as_selector(trained))]


def _in_layers(count: int, modules: list[str]) -> list[Selector]:
    if count == 0:
        return []
    layers = f"blocks:{'last' if count > 0 else 'first'}:{abs(count)}"
    if "all" in modules:
        return [Selector.parse(layers)]
    return [Selector.parse(f"{layers}:{name}") for name in modules]


def _outside(name: str) -> Selector:
    return Selector.parse(name) & ~Selector.parse("blocks:all")
