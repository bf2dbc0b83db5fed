"""What travels through a ``DataLoader`` in place of bare indices: a request, and its answer.

The batch sampler makes requests in the main process; data set and collate function, possibly in
a worker, answer them. So a batch's identity never depends on the order in which batches come.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from frostline.errors import ReplayError
from frostline.replay.loading_views import Views

Skip = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One batch that is wanted.

    Attributes:
        indices: what the sampler drew, just as it drew it.
        ids: the same as whole numbers, or the identities of the views.
        epoch: counted from 0.
        skipped: whether nothing is to be loaded for it.
    """

    indices: Any
    ids: tuple[int, ...]
    epoch: int
    skipped: bool


class Samples(NamedTuple):
    """A request on its way from the data set to the collate function.

    Attributes:
        request: whose samples they are.
        items: what the data set gave; None if skipped.
    """

    request: Request
    items: Any


class Answer(NamedTuple):
    """A request with its batch: a tuple, since pinning memory looks into tuples alone.

    Attributes:
        request: whose batch it is.
        batch: what the collate function gave; None if skipped.
    """

    request: Request
    batch: Any


class RequestSampler:
    """A batch sampler's indices as requests; for everything else the sampler itself.

    >>> sampler = RequestSampler([[3, 1], [2]], views=None, skip=None)
    >>> [request.ids for request in sampler]
    [(3, 1), (2,)]
    """

    def __init__(self, inner: Iterable[Any], *, views: Views | None, skip: Skip | None) -> None:
        self.inner = inner
        self.views = views
        self.skip = skip
        self.epoch = -1

    def __iter__(self) -> Iterator[Request]:
        # `map` calls iter() now, as the loader would: some samplers draw their order there.
        return map(partial(self._request, self.epoch), self.inner)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _request(self, epoch: int, drawn: Any) -> Request:
        indices = list(drawn) if isinstance(drawn, Iterator) else drawn
        try:
            ids = tuple(operator.index(index) for index in indices)
        except TypeError as error:
            raise ReplayError(
                f"the loader's sampler draws {_shown(indices)}, where a batch of whole numbers is "
                "needed to tell the samples apart; number the samples in the data set, or use "
                "fl.Replayer and name them yourself: with replayer.samples(ids)"
            ) from error
        if self.views is not None:
            views = self.views
            ids = tuple(
                views.identity(index=index, view=views.of(index=index, epoch=epoch))
                for index in ids
            )
        skipped = self.skip is not None and self.skip(ids)
        return Request(indices=indices, ids=ids, epoch=epoch, skipped=skipped)


class RequestedDataset:
    """A data set that answers requests; for everything else the data set itself.

    Workers and their ``worker_init_fn`` see the data set's class, length and attributes, and
    what they set is set on it.

    >>> RequestedDataset("abc", None)[1], len(RequestedDataset("abc", None))
    ('b', 3)
    """

    __slots__ = ("_frostline_inner", "_frostline_views")

    def __init__(self, inner: Any, views: Views | None) -> None:
        object.__setattr__(self, "_frostline_inner", inner)
        object.__setattr__(self, "_frostline_views", views)

    def __getitems__(self, wanted: Any) -> Any:
        """The samples of a request; of plain indices, what the data set itself gives."""
        inner, views = self._frostline_inner, self._frostline_views
        if not isinstance(wanted, Request):
            return _items(inner, wanted)
        if wanted.skipped:
            return Samples(wanted, None)
        if views is None:
            return Samples(wanted, _items(inner, wanted.indices))
        items = []
        for index, identity in zip(wanted.indices, wanted.ids, strict=True):
            with views.random_numbers(identity):
                items.extend(_items(inner, [index]))
        return Samples(wanted, items)

    def __getitem__(self, index: Any) -> Any:
        return self._frostline_inner[index]

    def __len__(self) -> int:
        return len(self._frostline_inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frostline_inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._frostline_inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._frostline_inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestedDataset, (self._frostline_inner, self._frostline_views)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The data set's own, for ``isinstance`` in a ``worker_init_fn``."""
        return self._frostline_inner.__class__


class RequestedCollate:
    """A collate function that turns the samples of a request into its answer.

    >>> request = Request(indices=[2, 5], ids=(2, 5), epoch=0, skipped=False)
    >>> RequestedCollate(sum)(Samples(request, [20, 50])).batch
    70
    """

    def __init__(self, inner: Callable[[Any], Any]) -> None:
        self.inner = inner

    def __call__(self, samples: Samples) -> Answer:
        """The answer to a request, with the batch made of its samples."""
        if samples.request.skipped:
            return Answer(samples.request, None)
        return Answer(samples.request, self.inner(samples.items))


def _items(dataset: Any, indices: Any) -> Any:
    """What torch's own fetcher would give to the collate function."""
    at_once = getattr(dataset, "__getitems__", None)
    return at_once(indices) if at_once else [dataset[index] for index in indices]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
