"""Plans that were written for other programs: what they mean as rules of our own.

A whole training configuration may be given: what is not about freezing is passed over. What is
about freezing and can't be said by a plan is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frostline.errors import PlanError, SelectorError
from frostline.freezing.foreign import axolotl, fastai, llamafactory, swift
from frostline.freezing.foreign.fields import Fields, Rules

_READERS: Mapping[str, tuple[frozenset[str], Callable[[Fields], Rules]]] = {
    "Axolotl": (axolotl.KEYS, axolotl.rules),
    "LLaMA-Factory": (llamafactory.KEYS, llamafactory.rules),
    "ms-swift": (swift.KEYS, swift.rules),
    "fastai": (fastai.KEYS, fastai.rules),
}
FOREIGN_KEYS = tuple(sorted(key for keys, _ in _READERS.values() for key in keys))
"""The fields by which other programs' configurations are known."""


def foreign_rules(document: Mapping[object, object], *, source: str) -> Rules | None:
    """The rules that another program's configuration stands for; None if it is none that is known.

    Args:
        document: the configuration, as YAML holds it.
        source: what to call it in errors.

    Raises:
        PlanError: (a ValueError) it mixes two programs' fields, a value has the wrong type, or it
            asks for what a plan can't say.

    >>> for action, selector in foreign_rules({"freeze_to": -1}, source="plan.yaml"):
    ...     print(action, selector)
    freeze **
    train layers:last:1
    """
    readers = [(name, read) for name, (keys, read) in _READERS.items() if keys & set(document)]
    if not readers:
        return None
    if len(readers) > 1:
        raise PlanError(
            f"{source} mixes fields of {' and '.join(name for name, _ in readers)}: keep those of"
            " one program"
        )
    ((name, read),) = readers
    try:
        return read(Fields(document, place=f"{source} ({name})"))
    except SelectorError as error:
        raise PlanError(f"{source} ({name}): {error}") from error
