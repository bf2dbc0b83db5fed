"""How many threads a small network is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread while this is open.

    A step of the built-in networks takes a few milliseconds, in which a second thread gains next
    to nothing. On a busy machine it costs dearly: each operator waits for a thread that another
    process holds up, and the default job was seen to take 20 times as long. Also, sums that are
    not split are rounded the same way whatever the number of cores.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
