"""How deep each parameter lies: the layer that it belongs to, counted from the input up."""

from __future__ import annotations

from torch import nn

from frostline.naming import Inventory, child_name


def layer_depths(inventory: Inventory) -> list[int]:
    """The depth of each tensor group, 0 for what lies nearest the input, without gaps.

    Where the model has lists of alike blocks (a ``ModuleList`` or ``Sequential`` of which all
    children with parameters, two or more, are of one class), each block is a layer; what comes
    before the first block is the layer below it, what comes after the last one is the top layer.
    Otherwise each child of the model is a layer. A tied tensor counts where it is defined first.

    >>> from torch import nn
    >>> from frostline.naming import take_inventory
    >>> model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 5)})
    >>> layer_depths(take_inventory(model))
    [0, 1, 1]
    """
    blocks = _block_names(inventory)
    layers = [_layer(group.aliases[0].owner_name, blocks) for group in inventory.groups]
    if not blocks:
        order = list(dict.fromkeys(layers))
        return [order.index(layer) for layer in layers]
    last = max(index for index, layer in enumerate(layers) if layer in blocks)
    seen: dict[str, int] = {}
    raw = []
    for index, layer in enumerate(layers):
        if layer in blocks:
            raw.append(seen.setdefault(layer, len(seen) + 1))
        else:
            raw.append(len(seen) + (index > last))
    ranks = {depth: rank for rank, depth in enumerate(sorted(set(raw)))}
    return [ranks[depth] for depth in raw]


def _layer(owner: str, blocks: set[str]) -> str:
    """The outermost block that the module lies in; else the model's child that it lies in."""
    components = owner.split(".")
    prefixes = (".".join(components[:end]) for end in range(1, len(components) + 1))
    return next((prefix for prefix in prefixes if prefix in blocks), components[0])


def _block_names(inventory: Inventory) -> set[str]:
    names: set[str] = set()
    for name, module, _ in inventory.placements:
        if isinstance(module, nn.ModuleList | nn.Sequential):
            children = {
                child_name(name, module, key): type(child)
                for key, child in module.named_children()
                if next(child.parameters(), None) is not None
            }
            if len(children) >= 2 and len(set(children.values())) == 1:
                names.update(children)
    return names
