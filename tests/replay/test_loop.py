"""Loops of all sorts around ``fl.replay``: each gives the bits that it gives without."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from replaying import (
    LAST_TWO,
    WIDTH,
    Net,
    Pairs,
    both,
    cross_entropy,
    freeze,
    run,
    shuffled,
    step,
    two,
    with_loss,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

# Losses: how the loop calls the model.


def _twice(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x), y)


def _changed_and_not(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x * 2), y)


def _by_parts(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model.head(model.encode(x)), y)


def _in_bfloat16(model: Any, batch: Any) -> Tensor:
    x, y = batch
    with torch.autocast("cpu", torch.bfloat16):
        return functional.cross_entropy(model(x).float(), y)


def _halved(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x.half().float()), y)


def _written_in_place(model: Any, batch: Any) -> Tensor:
    x, y = batch
    x = x.clone().mul_(2).add_(1)
    return functional.cross_entropy(model(x), y)


def _with_random_numbers_of_its_own(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model, batch) * torch.rand(())


def _with_a_penalty_on_the_input(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model, batch) + (model(batch[0]).mean() - batch[0].mean()).square()


# loss → passes recorded, replayed, plain, in three epochs of five batches.
_LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], tuple[int, int, int]]] = {
    "twice-a-batch": (_twice, (5, 25, 0)),
    "autocast": (_in_bfloat16, (5, 10, 0)),
    "casts-first": (_halved, (5, 10, 0)),
    "writes-first": (_written_in_place, (5, 10, 0)),
    "draws-too": (_with_random_numbers_of_its_own, (5, 10, 0)),
    "uses-the-input-too": (_with_a_penalty_on_the_input, (5, 25, 0)),
}


@pytest.mark.parametrize("once", [False, True], ids=["every-epoch", "once"])
@pytest.mark.parametrize("name", _LOSSES)
def test_losses(name: str, once: bool) -> None:
    loss_of, counts = _LOSSES[name]
    done = both(two, shuffled, with_loss(loss_of), once=once)
    assert done.replayer.declined is None
    assert done.counts == counts


def test_changed_inputs_are_not_taken_for_the_batch() -> None:
    done = both(two, shuffled, with_loss(_changed_and_not))
    assert done.replayer.declined is None
    assert done.counts[1] >= 10


def test_parts_called_one_by_one_are_replayed() -> None:
    done = both(two, shuffled, with_loss(_by_parts))
    # Two frozen blocks, each a call of its own; two live blocks and the head in each step.
    assert done.counts == (10, 20, 45)
    assert done.replayer.declined is None


# Loops: what happens between the steps.


def _accumulating(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for _ in range(3):
        model.train()
        for number, batch in enumerate(batches(loader)):
            loss = cross_entropy(model, batch) / 2
            loss.backward()
            yield loss.detach()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()


_OTHER = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(8))


def _looking_elsewhere(
    model: nn.Module, optimizer: Any, loader: Any, batches: Any
) -> Iterator[Tensor]:
    for _ in range(3):
        model.train()
        for number, batch in enumerate(batches(loader)):
            yield step(model, optimizer, batch)
            if number == 2:
                model.eval()
                with torch.no_grad():
                    yield model(_OTHER)
                with torch.inference_mode():
                    yield model(_OTHER[:3]).clone()
                yield model(_OTHER).detach()
                model.train()
                yield model(_OTHER).detach()


def _evaluating(*, wrapped: bool, inside: bool) -> Any:
    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        held_out = DataLoader(Pairs(80, seed=11), batch_size=8)

        def evaluated() -> Iterator[Tensor]:
            model.eval()
            with torch.no_grad():
                for x, _ in batches(held_out) if wrapped else held_out:
                    yield model(x)
            model.train()

        for _ in range(4):
            model.train()
            for number, batch in enumerate(batches(loader)):
                yield step(model, optimizer, batch)
                if inside and number == 2:
                    yield from evaluated()
            if not inside:
                yield from evaluated()

    return loop


def _toggling(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for _ in range(6):
        for number, batch in enumerate(batches(loader)):
            model.train(number % 3 != 0)
            yield step(model, optimizer, batch)


def _breaking(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for epoch in range(5):
        model.train()
        for number, batch in enumerate(batches(loader)):
            if number == 3 and epoch < 3:
                break
            yield step(model, optimizer, batch)


def _failing_in_the_body(
    model: nn.Module, optimizer: Any, loader: Any, batches: Any
) -> Iterator[Tensor]:
    for epoch in range(4):
        model.train()
        try:
            for number, batch in enumerate(batches(loader)):
                loss = cross_entropy(model, batch)
                if number == 2 and epoch < 2:
                    raise KeyError("of the loop")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield loss.detach()
        except KeyError:
            yield torch.tensor(-1.0)


def _failing_in_the_model(
    model: nn.Module, optimizer: Any, loader: Any, batches: Any
) -> Iterator[Tensor]:
    for _ in range(3):
        model.train()
        for number, batch in enumerate(batches(loader)):
            if number % 2:
                with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                    model(batch[0][:, :5])
            yield step(model, optimizer, batch)


def _seeding(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for epoch in range(3):
        model.train()
        torch.manual_seed(100 + epoch)
        for batch in batches(loader):
            yield torch.rand(2)
            yield step(model, optimizer, batch)
            yield torch.rand(2)


def _copying(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for _ in range(3):
        model.train()
        for batch in batches(loader):
            before = dict.fromkeys(model.state_dict())
            yield step(model, optimizer, batch)
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copies = [
                copy.deepcopy(model),
                pickle.loads(pickle.dumps(model)),
                torch.load(file, weights_only=False),
            ]
            for other in copies:
                with torch.no_grad():
                    for parameter in other.parameters():
                        parameter.add_(1)
                yield other.eval()(batch[0]).detach()
            assert dict.fromkeys(model.state_dict()) == before
            fresh = Net()
            fresh.load_state_dict(model.state_dict())
            yield fresh.eval()(batch[0]).detach()


def _distilling(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    teacher = copy.deepcopy(model).eval()
    for _ in range(3):
        model.train()
        for x, y in batches(loader):
            with torch.no_grad():
                wanted = teacher(x)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y) + (model(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            yield loss.detach()


def _clearing(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    """Keeps nothing of a batch, and writes over it."""
    for _ in range(3):
        model.train()
        for x, y in batches(loader):
            given = x.clone()
            yield step(model, optimizer, (given, y))
            given.fill_(9)


# loop → passes recorded, replayed, plain; None where only the bits matter.
_LOOPS: dict[str, tuple[Any, tuple[int, int, int] | None]] = {
    "accumulates": (_accumulating, (5, 10, 0)),
    "evaluates-after-each-epoch": (_evaluating(wrapped=False, inside=False), (5, 15, 0)),
    "replays-evaluation-after-each-epoch": (_evaluating(wrapped=True, inside=False), (5, 15, 0)),
    "toggles-train-and-eval": (_toggling, None),
    "breaks": (_breaking, None),
    "fails-in-the-body": (_failing_in_the_body, None),
    "fails-in-the-model": (_failing_in_the_model, None),
    "seeds": (_seeding, (5, 10, 0)),
    "copies-and-saves": (_copying, (5, 10, 0)),
    "distils": (_distilling, (5, 25, 0)),
    "writes-over-the-batch": (_clearing, (5, 10, 0)),
}


@pytest.mark.parametrize("once", [False, True], ids=["every-epoch", "once"])
@pytest.mark.parametrize("name", _LOOPS)
def test_loops(name: str, once: bool) -> None:
    loop, counts = _LOOPS[name]
    done = both(two, shuffled, loop, once=once)
    assert done.replayer.declined is None
    assert done.counts[1] >= 5
    if counts is not None:
        assert done.counts == counts


@pytest.mark.parametrize("workers", [0, 2])
def test_breaking_leaves_workers_in_order(workers: int) -> None:
    done = both(two, lambda: shuffled(num_workers=workers), _breaking)
    assert done.counts[1] >= 5


def test_evaluation_loaders_are_replayed_on_their_own() -> None:
    done = both(two, shuffled, _evaluating(wrapped=True, inside=False))
    training, evaluation = (replay.replayer.stats for replay in done.replays)
    assert (training.recorded, training.replayed, training.plain) == (5, 15, 0)
    assert (evaluation.recorded, evaluation.replayed, evaluation.plain) == (10, 30, 0)


def test_other_data_in_the_middle_of_an_epoch_are_computed() -> None:
    done = both(two, shuffled, _looking_elsewhere)
    assert done.replayer.declined is None
    assert done.counts[1] == 10


def test_an_evaluation_in_the_middle_of_an_epoch_is_no_augmentation() -> None:
    done = both(two, shuffled, _evaluating(wrapped=False, inside=True))
    assert done.replayer.declined is None
    assert done.counts[1] == 15


def test_an_evaluation_in_the_middle_of_an_epoch_is_not_kept() -> None:
    kept = []

    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for number, loss in enumerate(
            _evaluating(wrapped=False, inside=True)(model, optimizer, loader, batches)
        ):
            if number % 15 == 14:
                kept.append(batches(loader).replayer.stats.bytes)
            yield loss

    run(two, shuffled, loop, replayed=True)
    assert kept[1] == kept[3]


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_a_replayed_evaluation_inside_an_open_batch(inputs: str) -> None:
    done = both(two, shuffled, _evaluating(wrapped=True, inside=True), inputs=inputs)
    assert done.counts[1] >= 10


# Gradient checkpointing.


class _Checkpointed(Net):
    def __init__(self, first: int, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.reentrant = first, reentrant

    def encode(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            if number < self.first:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize(
    ("first", "reentrant"),
    [(2, False), (3, True), (0, False)],
    ids=["live-part", "live-part-reentrant", "all-of-it"],
)
def test_gradient_checkpointing(first: int, reentrant: bool) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Checkpointed(first, reentrant=reentrant)
        freeze(model, LAST_TWO)
        return model

    done = both(make, shuffled)
    assert done.counts == (5, 10, 0)
