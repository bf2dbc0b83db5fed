"""Bytes, counts, seconds and lists of names as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """Bytes with a binary unit: at most four digits, one decimal from KiB on.

    >>> format_bytes(512), format_bytes(1536), format_bytes(8 * 2**30)
    ('512 B', '1.5 KiB', '8.0 GiB')
    """
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        # 1023.95 would print as 1024.0: hand it to the next unit instead.
        if abs(count) < 1023.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} PiB"


def format_count(count: int) -> str:
    """A whole number with separators, or in millions and billions when it is large.

    >>> format_count(12_345), format_count(7_200_000), format_count(70_553_706_496)
    ('12,345', '7.2 M', '70.6 B')
    """
    if abs(count) < 1_000_000:
        return f"{count:,}"
    if abs(count) < 1_000_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e9:.1f} B"


def format_number_of(count: int, noun: str) -> str:
    """A whole number and what it counts.

    >>> format_number_of(1, "tensor"), format_number_of(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_names(names: Sequence[str]) -> str:
    """Up to three names, and how many more.

    >>> format_names(["a", "b", "c"]), format_names(["a", "b", "c", "d", "e"])
    ('a, b, c', 'a, b, c and 2 more')
    """
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def format_seconds(seconds: float) -> str:
    """A duration with three significant digits, in the unit that suits it.

    >>> format_seconds(0.0000042), format_seconds(0.0123), format_seconds(3.2), format_seconds(95)
    ('4.2 µs', '12.3 ms', '3.2 s', '1 min 35 s')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
