"""Record what the frozen part computes for each sample, and replay it ever after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.errors import ModelTypeError, ReplayError
from frostline.replay.passes import Passes
from frostline.replay.store import Store, open_store
from frostline.replay.suitable import bare


@dataclass(frozen=True, kw_only=True)
class ReplayStats:
    """What replay has done so far.

    Attributes:
        recorded: passes that were computed and recorded.
        replayed: passes in which frozen calls were replayed.
        plain: passes that were computed and not recorded (another batch size, changed inputs).
        compared: replays, of those above, that were also computed and held against the record.
        bytes: bytes that are kept.
        skipped_share: share of the forward time that a replayed pass leaves out, from 0 to 1.
    """

    recorded: int
    replayed: int
    plain: int
    compared: int
    bytes: int
    skipped_share: float


class Replayer:
    """Computes the frozen part of a model once for each sample.

    Wrap the forward pass of each step in :meth:`samples`. The first pass finds the frost line,
    the first epoch records there, and later passes over the same samples replay, with the same
    bits. What can't be replayed safely is computed as ever: :attr:`declined` and :attr:`refused`
    say why. See :func:`frostline.replay` for loops with a ``DataLoader``.

    Args:
        model: any module, frozen by :func:`frostline.freeze` or by hand.
        store: ``"memory"``, a folder in which later runs find what was recorded, or a store.
        budget: bytes that may be kept at most.
        audit: share of replayed passes, from 0 to 1, that are also computed and compared, besides
            the 1st, 8th, 64th and so on.
        rounding: whether parts whose last bits depend on the rest of the batch (mixtures of
            experts, small heads) may be replayed; :attr:`exact` is False once one is.
        keep_as: ``torch.bfloat16`` or ``torch.float16`` to keep wider floating values in so many
            bytes: less memory, but :attr:`exact` is False and the run is another one.

    Attributes:
        passes: decides for each pass; for :func:`frostline.replay` and integrations.

    Raises:
        ReplayError: (a RuntimeError) ``audit`` is no share, or the store can't be opened.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> frozen = fl.freeze(model, all_but="2")
    >>> replayer, x = fl.Replayer(model), torch.randn(6, 8)
    >>> for epoch in range(3):
    ...     for ids in torch.arange(6).split(3):
    ...         with replayer.samples(ids):
    ...             _ = model(x[ids])
    >>> replayer.stats.recorded, replayer.stats.replayed, replayer.declined
    (2, 4, None)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        store: str | Path | Store = "memory",
        budget: int | None = None,
        audit: float = 0.0,
        rounding: bool = False,
        keep_as: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelTypeError(f"a torch.nn.Module is wanted, got {type(model).__name__}")
        if isinstance(audit, bool) or not isinstance(audit, int | float) or not 0 <= audit <= 1:
            raise ReplayError(f"audit is a share from 0 to 1, got {audit!r}")
        if keep_as not in (None, torch.bfloat16, torch.float16):
            raise ReplayError(
                f"keep_as is torch.bfloat16, torch.float16 or None (all bits), got {keep_as!r}"
            )
        model = bare(model)
        self._model = model
        self._store = open_store(store, budget)
        self.passes = Passes(model, self._store, audit=audit, rounding=rounding, keep_as=keep_as)
        self._is_open = False

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed, and what to do; None while all is well."""
        return self.passes.declined

    @property
    def refused(self) -> Mapping[str, str]:
        """Frozen calls that are made every time, by place → why."""
        return self.passes.refused

    @property
    def exact(self) -> bool:
        """Whether all that was replayed has the bits that computing it would have given."""
        return self.passes.exact

    @property
    def stats(self) -> ReplayStats:
        """Passes recorded, replayed and computed so far; bytes kept; time left out."""
        counts = self.passes.counts
        return ReplayStats(
            recorded=counts["recorded"],
            replayed=counts["replayed"],
            plain=counts["plain"],
            compared=counts["compared"],
            bytes=self._store.nbytes,
            skipped_share=self.passes.skipped_share,
        )

    @contextmanager
    def samples(self, ids: Tensor | Sequence[int]) -> Iterator[Replayer]:
        """Replay, or record, the passes of the model over these samples while this is open.

        Args:
            ids: one whole number per sample of the batch, in its order: the sample's name, the
                same in every epoch.

        Raises:
            ReplayError: (a RuntimeError) ids are not a flat list of whole numbers, this is used
                inside itself, or an audit found that replayed values were not the true ones.
        """
        if self._is_open:
            raise ReplayError("samples() is open already: one batch at a time")
        names = _whole_numbers(ids)
        if not names:
            yield self
            return
        self._is_open = True
        try:
            with self.passes.batch(names):
                yield self
        finally:
            self._is_open = False


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _whole_numbers(ids: Tensor | Sequence[int]) -> tuple[int, ...]:
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ReplayError(f"ids are one whole number per sample, got {ids!r}") from error
    if tensor.ndim == 1 and not len(tensor):
        return ()
    if tensor.ndim != 1 or tensor.dtype not in _WHOLE:
        raise ReplayError(
            "ids are one whole number per sample, got a tensor of shape"
            f" {tuple(tensor.shape)} and {tensor.dtype}"
        )
    return tuple(tensor.tolist())
