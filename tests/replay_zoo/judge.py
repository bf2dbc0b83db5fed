"""Verdicts from processes of their own: in parallel, and with the zoo's warnings kept there."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache

from replay_zoo.settings import Setting, Verdict, is_repeatable, verdict


@contextmanager
def judged(names: Iterable[str], *, processes: int = 2) -> Iterator[dict[str, Future[Verdict]]]:
    """Verdicts on the settings of these names, each as soon as it is there."""
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_prepare
    )
    try:
        yield {name: pool.submit(_verdict, name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def repeated(names: Iterable[str], *, processes: int = 2) -> Iterator[dict[str, Future[Verdict]]]:
    """The same without replay: two plain runs, which are ``broken`` where they differ."""
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_prepare
    )
    try:
        yield {name: pool.submit(_repetition, name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    # What transformers says about tiny configurations is of no interest here.
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(1)


@cache
def _settings() -> dict[str, Setting]:
    from replay_zoo import SETTINGS

    return {setting.name: setting for setting in SETTINGS}


def _verdict(name: str) -> Verdict:
    return verdict(_settings()[name])


def _repetition(name: str) -> Verdict:
    try:
        differs = is_repeatable(_settings()[name])
    except Exception as error:
        differs = f"{type(error).__name__}: {error}"
    return Verdict(name=name, ruling="broken" if differs else "identical", why=differs)
