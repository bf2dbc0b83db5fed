"""How many threads a small network is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute on ``count`` threads while this is open; None leaves their number as it is.

    For the built-in networks one is best: a step of theirs takes a few milliseconds, in which a
    second thread gains next to nothing. On a busy machine it costs dearly: each operator waits for
    a thread that another process holds up, and the default job was seen to take 20 times as long.
    Also, sums that are not split are rounded the same way whatever the number of cores.

    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
