"""From the loader's inner iterator to what the loader yields: which answer is which batch."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from frostline.errors import ReplayError
from frostline.replay.fields import leaves, same_value
from frostline.replay.loading_requests import Answer, Request, RequestSampler


class Handover:
    """Answers that the loader has received, each until the loader yields its batch.

    A subclass of ``DataLoader`` may move batches to a device, cast, drop or read ahead in its
    ``__iter__``. It sees plain batches; their requests wait here.

    >>> handover = Handover()
    >>> asked = Request(indices=[4], ids=(4,), epoch=0, skipped=False)
    >>> handover.waiting.append(Answer(asked, "batch"))
    >>> request, batch = handover.claim("BATCH")
    >>> request.ids, batch
    ((4,), 'BATCH')
    """

    def __init__(self) -> None:
        self.waiting: deque[Answer] = deque()

    def claim(self, batch: Any) -> tuple[Request, Any]:
        """The request of a batch that the loader has just yielded, and the batch.

        Raises:
            ReplayError: if it can't be told which request the batch answers.
        """
        if len(self.waiting) == 1:  # the usual case, whatever was done to the batch
            return self.waiting.popleft().request, batch
        for position, answer in enumerate(self.waiting):
            if _same_content(answer.batch, batch):
                for _ in range(position):  # dropped by the loader
                    self.waiting.popleft()
                return self.waiting.popleft().request, batch
        raise ReplayError(
            f"the loader's own __iter__ read {len(self.waiting)} batches before it yielded one "
            "that is none of them, so its samples can't be told; give fl.replay a plain "
            "DataLoader and change the batches in the loop, or use fl.Replayer and name the "
            "samples: with replayer.samples(ids)"
        )


class HandingIterator:
    """A loader's inner iterator, handing plain batches on and their requests over.

    >>> from torch.utils.data import DataLoader
    >>> requests, handover = RequestSampler([], views=None, skip=None), Handover()
    >>> asked = Request(indices=[4], ids=(4,), epoch=0, skipped=False)
    >>> next(HandingIterator(iter([Answer(asked, "batch")]), requests, handover))
    'batch'
    >>> len(handover.waiting)
    1
    """

    def __init__(self, inner: Any, requests: RequestSampler, handover: Handover) -> None:
        self.inner = inner
        self.requests = requests
        self.handover = handover

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        answer = next(self.inner)
        self.handover.waiting.append(answer)
        return answer.batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _reset(self, *arguments: Any, **options: Any) -> None:
        """Begin the next epoch with the same workers: ``DataLoader`` calls this."""
        self.requests.epoch += 1
        self.inner._reset(*arguments, **options)


def hand_over(loader: DataLoader[Any], *, requests: RequestSampler, handover: Handover) -> None:
    """Make the inner iterators of a loader hand over the requests; each begins an epoch.

    >>> from torch.utils.data import DataLoader
    >>> loader, handover = DataLoader([10, 20], batch_size=2), Handover()
    >>> hand_over(loader, requests=RequestSampler([], views=None, skip=None), handover=handover)
    >>> type(iter(loader)).__name__
    'HandingIterator'
    """
    make_inner = type(loader)._get_iterator
    # No cycle: a loader that is let go must end its workers at once, as torch's does.
    weakly = weakref.ref(loader)

    def get_iterator() -> HandingIterator:
        owner = weakly()
        assert owner is not None, "only the loader's own __iter__ calls this"
        requests.epoch += 1
        return HandingIterator(make_inner(owner), requests, handover)

    vars(loader)["_get_iterator"] = get_iterator


def _same_content(one: Any, other: Any) -> bool:
    if one is other:
        return True
    mine, theirs = leaves(one), leaves(other)
    return mine.keys() == theirs.keys() and all(
        same_value(value, theirs[path]) for path, value in mine.items()
    )
