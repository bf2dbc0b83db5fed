"""Processes over gloo that are started once and asked many things, each of all of them at once."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch import multiprocessing as mp


class Answer(NamedTuple):
    """What one rank answered: a value, or the error that it met."""

    value: Any = None
    error: str = ""
    kind: str = ""


class Party:
    """Ranks of one process group, which wait for work.

    A piece of work is a function of this module's or a test module's top level; its first argument
    is the rank.
    """

    def __init__(self, folder: Path, *, size: int = 2, timeout_seconds: float = 60) -> None:
        context = mp.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, size, str(folder), timeout_seconds), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ask(self, work: Callable[..., Any], *args: Any, **options: Any) -> list[Answer]:
        """Each rank's answer; ``kind="gone"`` for one that did not live to give it."""
        for pipe in self._pipes:
            pipe.send((work, args, options))
        answers = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv() if pipe.poll(120) else Answer(kind="silent"))
            except EOFError:
                answers.append(Answer(kind="gone"))
        return answers

    def values(self, work: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Each rank's value, if none met an error."""
        answers = self.ask(work, *args, **options)
        problems = [f"rank {rank}: {a.kind} {a.error}" for rank, a in enumerate(answers) if a.kind]
        assert not problems, "\n".join(problems)
        return [answer.value for answer in answers]

    def close(self) -> None:
        """Send all home."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()


def _serve(pipe: Any, rank: int, size: int, folder: str, timeout_seconds: float) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    while True:
        try:
            work, args, options = pipe.recv()
        except EOFError:
            # The group is not taken down: a rank that does so while the other's reducer is still
            # at work aborts the process now and then.
            os._exit(0)
        torch.manual_seed(0)
        try:
            answer = Answer(work(rank, *args, **options))
        except Exception as error:
            answer = Answer(error=str(error), kind=type(error).__name__)
        gc.collect()
        pipe.send(answer)
