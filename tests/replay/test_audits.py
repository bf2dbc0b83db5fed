"""Which replays are compared."""

from __future__ import annotations

import random

import torch

from frostline.replay.audits import Audits


def due(share: float, until: int) -> list[int]:
    audits = Audits(share)
    return [number for number in range(1, until) if audits.is_due(number)]


def test_ever_rarer() -> None:
    assert due(0.0, 5000) == [1, 8, 64, 512, 4096]


def test_all() -> None:
    assert due(1.0, 100) == list(range(1, 100))


def test_a_share_of_all_and_the_rare_ones() -> None:
    found = due(0.25, 4000)
    assert {1, 8, 64, 512} <= set(found)
    assert 900 < len(found) < 1100
    assert found == due(0.25, 4000)


def test_the_random_numbers_of_the_loop_stay() -> None:
    before = random.getstate(), torch.get_rng_state().tolist()
    due(0.5, 100)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
