"""From a selector and a model to parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from frostline.collector import collector_paused
from frostline.naming import Inventory, TensorGroup, take_inventory
from frostline.selection.selector import Selector, SelectorLike, as_selector


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The parameters that a selector matches in one model, in definition order.

    Attributes:
        selector: what was asked for.
        groups: the tied or single tensors that matched.
    """

    selector: Selector
    groups: tuple[TensorGroup, ...] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The first name of each selected parameter; a tied tensor is listed once."""
        return tuple(name for group in self.groups for name in group.named)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The selected parameters, each object once, in the order of :attr:`names`."""
        return tuple(p for group in self.groups for p in group.named.values())

    @property
    def numel(self) -> int:
        """Number of scalars, shared memory counted once."""
        return sum(group.numel for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes of memory, shared memory counted once."""
        return sum(group.nbytes for group in self.groups)

    def __len__(self) -> int:
        return len(self.names)


@collector_paused()
def select(model: nn.Module, selector: SelectorLike) -> Selection:
    """Find the parameters of ``model`` that ``selector`` matches.

    Every alias of a tied tensor matches it. Wrapper prefixes (``module.``, ``_orig_mod.``) are
    invisible. Linear in the number of parameters; no tensor content is read.

    Args:
        model: the model, wrapped or not, on any device (meta too).
        selector: a string, a selector, a module, a parameter, or a list of those.

    Raises:
        SelectorError: (a ValueError) the selector is malformed or ambiguous, or it, or any part
            of it, matches nothing.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> select(model, "2").names, select(model, "bias").numel
    (('2.weight', '2.bias'), 6)
    """
    return select_in(take_inventory(model), as_selector(selector))


def select_in(inventory: Inventory, selector: Selector) -> Selection:
    """:func:`select` on an inventory that was already taken."""
    found = sorted(selector.find(inventory))
    return Selection(selector=selector, groups=tuple(inventory.groups[index] for index in found))
