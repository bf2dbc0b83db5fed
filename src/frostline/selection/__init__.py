"""Which parameters? Selectors, and what they find in a model."""

from frostline.selection.resolve import Selection, select, select_in
from frostline.selection.selector import (
    Selector,
    SelectorLike,
    as_selector,
    before,
    first,
    from_plain,
    glob,
    kind,
    last,
    regex,
    where,
)

__all__ = [
    "Selection",
    "Selector",
    "SelectorLike",
    "as_selector",
    "before",
    "first",
    "from_plain",
    "glob",
    "kind",
    "last",
    "regex",
    "select",
    "select_in",
    "where",
]
