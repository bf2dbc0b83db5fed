"""Loops of all sorts around ``fl.replay``: each gives the bits that it gives without."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import frostline as fl
from replaying import (
    CLASSES,
    HEAD,
    LAST_TWO,
    WIDTH,
    Block,
    Net,
    Pairs,
    both,
    cross_entropy,
    freeze,
    net,
    run,
    steps,
)


def _shuffled(size: int = 40, **options: Any) -> DataLoader[Any]:
    return DataLoader(Pairs(size), **{"batch_size": 8, "shuffle": True, **options})


def _two() -> Net:
    return net(LAST_TWO)


def _with_loss(loss_of: Callable[[Any, Any], Tensor], epochs: int = 3) -> Any:
    return lambda *given: steps(*given, loss_of=loss_of, epochs=epochs)


def _step(model: nn.Module, optimizer: Any, batch: Any) -> Tensor:
    optimizer.zero_grad()
    loss = cross_entropy(model, batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


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
    done = both(_two, _shuffled, _with_loss(loss_of), once=once)
    assert done.replayer.declined is None
    assert done.counts == counts


def test_changed_inputs_are_not_taken_for_the_batch() -> None:
    done = both(_two, _shuffled, _with_loss(_changed_and_not))
    assert done.replayer.declined is None
    assert done.counts[1] >= 10


def test_parts_called_one_by_one_are_replayed() -> None:
    done = both(_two, _shuffled, _with_loss(_by_parts))
    # Two frozen blocks, each a call of its own; two live blocks and the head in each step.
    assert done.counts == (10, 20, 45)
    assert done.replayer.declined is None


# Batches: how the loader hands them over.


@dataclasses.dataclass
class _Record:
    x: Tensor
    y: Tensor


class _Named(NamedTuple):
    x: Tensor
    y: Tensor


def _stacked(items: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


_BATCHES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": (
        lambda items: dict(zip("xy", _stacked(items), strict=True)),
        lambda b: (b["x"], b["y"]),
    ),
    "list": (lambda items: list(_stacked(items)), tuple),
    "named-tuple": (lambda items: _Named(*_stacked(items)), tuple),
    "dataclass": (lambda items: _Record(*_stacked(items)), lambda b: (b.x, b.y)),
    "nested": (
        lambda items: {"in": _stacked(items), "names": ["a"] * len(items)},
        lambda b: b["in"],
    ),
}


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("name", _BATCHES)
def test_batches(name: str, inputs: str) -> None:
    collate, open_batch = _BATCHES[name]
    done = both(
        _two,
        lambda: _shuffled(collate_fn=collate),
        _with_loss(lambda model, batch: cross_entropy(model, open_batch(batch))),
        inputs=inputs,
    )
    assert done.counts == (5, 10, 0)


class _Takes(Net):
    """Gets its inputs in a dataclass."""

    def forward(self, given: _Record) -> Tensor:
        return super().forward(given.x)


def test_a_dataclass_as_the_model_takes_it() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Takes()
        freeze(model, LAST_TWO)
        return model

    def loss_of(model: Any, batch: _Record) -> Tensor:
        return functional.cross_entropy(model(batch), batch.y)

    done = both(
        make,
        lambda: _shuffled(collate_fn=lambda items: _Record(*_stacked(items))),
        _with_loss(loss_of),
    )
    assert done.counts == (5, 10, 0)


class _Sentences(torch.utils.data.Dataset):
    """Sequences of three to six words."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.words = [torch.randint(1, 20, (int(n),)) for n in torch.randint(3, 7, (40,))]
        self.y = torch.randint(CLASSES, (40,))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.words[index], self.y[index]


def _padded(items: Any) -> tuple[Tensor, Tensor]:
    words = [words for words, _ in items]
    return nn.utils.rnn.pad_sequence(words, batch_first=True), torch.stack([y for _, y in items])


class _Reader(nn.Module):
    """Blocks over words, and a mean over those that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0)[..., None]
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head((x * there).sum(1) / there.sum(1))


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_padding_that_differs_from_batch_to_batch(inputs: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Reader()
        freeze(model, LAST_TWO)
        return model

    done = both(
        make,
        lambda: DataLoader(_Sentences(), batch_size=4, shuffle=True, collate_fn=_padded),
        _with_loss(cross_entropy, epochs=8),
        inputs=inputs,
    )
    assert done.replayer.declined is None
    assert done.counts[1] >= 30  # of 80; a sample is known in each length that it came in


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
            yield _step(model, optimizer, batch)
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
                yield _step(model, optimizer, batch)
                if inside and number == 2:
                    yield from evaluated()
            if not inside:
                yield from evaluated()

    return loop


def _toggling(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for _ in range(6):
        for number, batch in enumerate(batches(loader)):
            model.train(number % 3 != 0)
            yield _step(model, optimizer, batch)


def _breaking(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for epoch in range(5):
        model.train()
        for number, batch in enumerate(batches(loader)):
            if number == 3 and epoch < 3:
                break
            yield _step(model, optimizer, batch)


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
            yield _step(model, optimizer, batch)


def _seeding(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for epoch in range(3):
        model.train()
        torch.manual_seed(100 + epoch)
        for batch in batches(loader):
            yield torch.rand(2)
            yield _step(model, optimizer, batch)
            yield torch.rand(2)


def _copying(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    for _ in range(3):
        model.train()
        for batch in batches(loader):
            before = dict.fromkeys(model.state_dict())
            yield _step(model, optimizer, batch)
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
            yield _step(model, optimizer, (given, y))
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
    done = both(_two, _shuffled, loop, once=once)
    assert done.replayer.declined is None
    assert done.counts[1] >= 5
    if counts is not None:
        assert done.counts == counts


@pytest.mark.parametrize("workers", [0, 2])
def test_breaking_leaves_workers_in_order(workers: int) -> None:
    done = both(_two, lambda: _shuffled(num_workers=workers), _breaking)
    assert done.counts[1] >= 5


def test_evaluation_loaders_are_replayed_on_their_own() -> None:
    done = both(_two, _shuffled, _evaluating(wrapped=True, inside=False))
    training, evaluation = (replay.replayer.stats for replay in done.replays)
    assert (training.recorded, training.replayed, training.plain) == (5, 15, 0)
    assert (evaluation.recorded, evaluation.replayed, evaluation.plain) == (10, 30, 0)


def test_other_data_in_the_middle_of_an_epoch_are_computed() -> None:
    done = both(_two, _shuffled, _looking_elsewhere)
    assert done.replayer.declined is None
    assert done.counts[1] == 10


def test_an_evaluation_in_the_middle_of_an_epoch_is_no_augmentation() -> None:
    done = both(_two, _shuffled, _evaluating(wrapped=False, inside=True))
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

    run(_two, _shuffled, loop, replayed=True)
    assert kept[1] == kept[3]


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

    done = both(make, _shuffled)
    assert done.counts == (5, 10, 0)


# Two loaders at once.


def _second(seed: int | None) -> DataLoader[Any]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(Pairs(40, seed=9), batch_size=8, shuffle=True, generator=generator)


def _alternating(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    other = _second(None)
    for _ in range(4):
        model.train()
        for given in (loader, other):
            for batch in batches(given):
                yield _step(model, optimizer, batch)


def test_two_loaders_in_turn() -> None:
    done = both(_two, _shuffled, _alternating)
    assert [r.replayer.stats.replayed for r in done.replays] == [15, 15]
    assert [r.replayer.stats.recorded for r in done.replays] == [5, 5]


def test_iterating_draws_from_the_generators_when_the_loader_would() -> None:
    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(3):
            iterator = iter(batches(loader))
            yield torch.rand(2)
            for batch in iterator:
                yield _step(model, optimizer, batch)

    assert both(_two, _shuffled, loop).counts == (5, 10, 0)


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_two_loaders_at_once_are_refused_or_right(inputs: str) -> None:
    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        other = _second(4)
        for _ in range(4):
            model.train()
            for batch, also in zip(batches(loader), batches(other), strict=True):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch) + cross_entropy(model, also)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    try:
        both(
            _two,
            lambda: _shuffled(generator=torch.Generator().manual_seed(3)),
            loop,
            inputs=inputs,
        )
    except fl.ReplayError as error:
        assert "one batch at a time" in str(error)


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_a_replayed_evaluation_inside_an_open_batch_is_refused_or_right(inputs: str) -> None:
    try:
        both(_two, _shuffled, _evaluating(wrapped=True, inside=True), inputs=inputs)
    except fl.ReplayError as error:
        assert "one batch at a time" in str(error)


def test_one_loader_of_the_same_data_takes_over_from_another() -> None:
    data = Pairs(40)

    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(3):
            model.train()
            for batch in batches(DataLoader(data, batch_size=8, shuffle=True)):
                yield _step(model, optimizer, batch)

    done = both(_two, _shuffled, loop)
    assert len(done.replays) == 1
    assert done.counts == (5, 10, 0)


def test_batches_and_length_are_the_loaders() -> None:
    model, loader = net(HEAD), DataLoader(Pairs(20), batch_size=8)
    replay = fl.replay(model, loader)
    assert len(replay) == len(loader) == 3
    for (x, y), (given_x, given_y) in zip(loader, replay, strict=True):
        assert torch.equal(x, given_x)
        assert torch.equal(y, given_y)
    assert fl.replay(model, loader) is replay


def test_a_copy_of_the_model_begins_anew() -> None:
    model, loader = net(HEAD), _shuffled()
    replay = fl.replay(model, loader)
    for batch in replay:
        cross_entropy(model, batch)
    other = copy.deepcopy(model)
    assert fl.replay(other, loader) is not replay
    assert fl.replay(other, loader).replayer.stats.recorded == 0


def test_the_model_is_as_it_was_afterwards() -> None:
    model = net(HEAD)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    for _ in range(3):
        for batch in fl.replay(model, _shuffled()):
            cross_entropy(model, batch)
    after = {name: set(vars(module)) for name, module in model.named_modules()}
    after[""].discard("_frostline_replays")
    assert after == before
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks
