"""What someone may have meant who wrote a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wanted: str, names: Iterable[str]) -> str:
    """A sentence that names up to three near names, or lists some if nothing is near.

    Names are compared whole and by every trailing part, so ``clasifier`` finds
    ``bert.classifier``.

    >>> nearest("fc", ["fc1.weight", "fc2.weight", "head.bias"])
    " Nearest names: 'fc1', 'fc2'."
    """
    candidates = _parts(names)
    lowered = {candidate.lower(): candidate for candidate in reversed(candidates)}
    close = difflib.get_close_matches(wanted.lower(), lowered, n=12, cutoff=0.6)
    if close:
        # Of equally near names difflib gives the last in the alphabet: take the model's order.
        order = {name: place for place, name in enumerate(reversed(lowered))}
        close.sort(key=lambda name: (-_likeness(wanted.lower(), name), order[name]))
        return f" Nearest names: {', '.join(repr(lowered[name]) for name in close[:3])}."
    some = list(dict.fromkeys(name.partition(".")[0] for name in candidates if name))[:6]
    return f" It has: {', '.join(map(repr, some))}." if some else ""


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _parts(names: Iterable[str]) -> list[str]:
    """Every run of leading components of the names, and every component, each once."""
    parts: dict[str, None] = {}
    for name in names:
        components = name.split(".")
        parts.update((".".join(components[:end]), None) for end in range(1, len(components) + 1))
        parts.update((component, None) for component in components if not component.isdigit())
    # difflib is quadratic: past some thousands the wait is worse than a missing hint.
    return list(parts)[:5000]
