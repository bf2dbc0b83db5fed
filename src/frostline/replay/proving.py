"""Proofs before the first replay: mixtures of recorded batches, until a cut holds for them."""

from __future__ import annotations

import time

import torch

from frostline.replay.catcher import Catcher
from frostline.replay.kinds import ROUNDS, SEAL, Kind, plan_kind
from frostline.replay.regroup import mixed, prove, shifts
from frostline.replay.runner import try_frame
from frostline.replay.store import Store

_SECONDS = 0.5
"""After so long no further mixture is tried; one always is. An eighth where batches come out even:
kernels then treat all rows alike, and what looks across the batch is found by the first."""


def prove_by_mixtures(kind: Kind, samples: int, store: Store, catcher: Catcher) -> None:
    """Prove that values do not depend on the batch around them; cut anew until they don't.

    Takes the two recorded passes of ``kind.recent``. Where no mixture can be made of them,
    nothing is proven, and the first replay will be compared instead.
    """
    start = time.perf_counter()
    waiting = shifts(samples)
    for _ in range(ROUNDS):
        batch = mixed(kind.recent[0], kind.recent[1], shift=waiting[0]) if waiting else None
        if kind.plan is None or batch is None:
            return
        is_first = kind.plan.proofs == 0
        try:
            verdict = prove(kind.plan, batch, kind.exclusions, catcher, with_output=is_first)
        except Exception:
            kind.can_be_mixed = False  # a mixture need not be a valid batch
            return
        if verdict.holds:
            kind.plan.proofs += 1
            if not kind.exclusions.has_rounded:  # a run that accepts no rounding would find it
                kind.plan.seal(store).add([SEAL], torch.ones(1, 1, dtype=torch.uint8))
            waiting = waiting[1:]
            if time.perf_counter() - start > (_SECONDS if samples % 16 else _SECONDS / 8):
                return
        elif verdict.exclusions:
            plan_kind(kind, batch.call, samples, store)
            _record_again(kind, catcher)
        else:
            kind.give_up(verdict.why)


def _record_again(kind: Kind, catcher: Catcher) -> None:
    """The recorded passes, for a new cut."""
    for recorded in kind.recent if kind.plan is not None else ():
        assert kind.plan is not None
        _, frame = try_frame(kind.plan, recorded.call, recorded.ids, "record", catcher)
        frame.commit()
        kind.remember(recorded.ids, frame.keys)
