"""``inputs="skip"``: what only replayed modules would look at is not loaded any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from replaying import (
    CLASSES,
    HEAD,
    LAST_TWO,
    WIDTH,
    Pairs,
    both,
    cross_entropy,
    net,
    run,
    steps,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import frostline as fl


class _Noted(Pairs):
    """Notes on the disk whom it was asked for: workers have memory of their own."""

    def __init__(self, path: Path, size: int = 40) -> None:
        super().__init__(size)
        self.path = path
        path.write_text("")

    def __getitem__(self, index: int) -> Any:
        with self.path.open("a") as file:
            file.write(f"{int(index)}\n")
        return super().__getitem__(index)

    def loaded(self) -> int:
        """How many samples were asked for since this was last called."""
        count = len(self.path.read_text().splitlines())
        self.path.write_text("")
        return count


def _loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("trains", [HEAD, LAST_TWO], ids=["head", "two"])
def test_recorded_samples_are_not_loaded(tmp_path: Path, trains: Any, workers: int) -> None:
    data = _Noted(tmp_path / "asked")
    loaded: list[int] = []

    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(5):
            yield from steps(model, optimizer, loader, batches, epochs=1)
            loaded.append(data.loaded())

    done = both(
        lambda: net(trains), lambda: _loader(data, num_workers=workers), loop, inputs="skip"
    )
    assert loaded[:5] == [40] * 5  # without replay
    assert loaded[5] >= 40  # a few may be loaded twice, to see that they are the same
    # Later on: audited batches alone, the 1st and the 8th of those skipped; and with workers those
    # that had been asked for before the first was seen to be the same.
    assert sum(loaded[6:]) <= 4 * 8 + (40 if workers else 0)
    assert loaded[9] == 0
    assert done.counts == (5, 20, 0)


@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_audits_load_really(tmp_path: Path, audit: float) -> None:
    data = _Noted(tmp_path / "asked")
    done = both(
        lambda: net(LAST_TWO),
        lambda: _loader(data),
        lambda *given: steps(*given, epochs=5),
        inputs="skip",
        audit=audit,
    )
    loaded = data.loaded() - 5 * 40  # of the run without replay
    if audit:
        assert loaded >= 5 * 40
        assert done.replayer.stats.compared == done.replayer.stats.replayed == 20
    else:
        assert 40 < loaded < 40 + 5 * 8
        assert done.replayer.stats.compared >= 2


def test_fields_come_as_poison_and_labels_from_memory() -> None:
    model, loader = net(HEAD), _loader()
    data = loader.dataset
    poisoned = 0
    for _ in range(4):
        for x, y in fl.replay(model, loader, inputs="skip"):
            if x.isnan().any():
                poisoned += 1
                assert x.isnan().all()
                assert x.shape == (8, WIDTH)
                assert x.dtype == torch.float32
            assert y.dtype == torch.int64
            assert ((y >= 0) & (y < CLASSES)).all()
            cross_entropy(model, (x, y))
    assert poisoned >= 12
    # The labels are those of the samples that the loader drew.
    unshuffled = DataLoader(data, batch_size=8)
    for _ in range(3):
        given = [y for _, y in fl.replay(model, unshuffled, inputs="skip")]
        for _, y in fl.replay(model, unshuffled, inputs="skip"):
            cross_entropy(model, (torch.full((8, WIDTH), torch.nan), y))
    assert torch.equal(torch.cat(given), data.y)


class _Integers(Pairs):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x * 3).long().clamp(0, 9), y


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).mean(1))


def _reads() -> nn.Module:
    torch.manual_seed(0)
    model = _Reads()
    fl.freeze(model, all_but="head")
    return model


def test_whole_numbers_are_poisoned_too() -> None:
    both(_reads, lambda: _loader(_Integers(40)), inputs="skip")
    model, loader = _reads(), _loader(_Integers(40))
    least = torch.iinfo(torch.int64).min
    seen: Counter[bool] = Counter()
    for _ in range(4):
        for batch in fl.replay(model, loader, inputs="skip"):
            seen[bool((batch[0] == least).all())] += 1
            cross_entropy(model, batch)
    assert seen[True] >= 12


def test_a_loop_that_uses_a_skipped_field_fails_loudly() -> None:
    def loss_of(model: Any, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x), y) + model.head.weight.mean() * x.mean()

    done = run(
        lambda: net(LAST_TWO),
        _loader,
        lambda *given: steps(*given, loss_of=loss_of),
        replayed=True,
        inputs="skip",
    )
    assert any(loss.isnan() for loss in done.losses)


def test_an_index_from_a_skipped_field_fails_loudly() -> None:
    def loss_of(model: Any, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x), y) + model.words.weight.detach()[x].mean() * 0

    with pytest.raises(IndexError):
        run(
            _reads,
            lambda: _loader(_Integers(40)),
            lambda *given: steps(*given, loss_of=loss_of),
            replayed=True,
            inputs="skip",
        )


# What the loop makes of a placeholder is never taken for the field itself.


def _twofold(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x * 2), y)


def _turned(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x.flip(1)), y)


def _reordered(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x.flip(0)), y)


def _noisy(model: Any, batch: Any) -> Tensor:
    x, y = batch
    changed = x + 0.1 * torch.randn_like(x)
    return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(changed), y)


@pytest.mark.parametrize("loss_of", [_twofold, _turned, _reordered, _noisy])
def test_changed_inputs(loss_of: Any) -> None:
    plain = run(
        lambda: net(LAST_TWO), _loader, lambda *g: steps(*g, loss_of=loss_of), replayed=False
    )
    try:
        done = run(
            lambda: net(LAST_TWO),
            _loader,
            lambda *g: steps(*g, loss_of=loss_of),
            replayed=True,
            inputs="skip",
        )
    except fl.ReplayError:
        return
    for one, other in zip(plain.losses, done.losses, strict=True):
        assert torch.equal(one, other) or other.isnan()  # right or loud


class _Pools(nn.Module):
    """Takes any length."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x[..., None])).mean(1))


def test_a_part_of_a_placeholder_is_not_taken_for_all_of_it() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Pools()
        fl.freeze(model, all_but="head")
        return model

    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(4):
            for x, y in batches(loader):
                if epoch > 1:
                    with torch.no_grad():
                        yield model(x[:, :5])
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    plain = run(make, _loader, loop, replayed=False)
    done = run(make, _loader, loop, replayed=True, inputs="skip")
    for one, other in zip(plain.losses, done.losses, strict=True):
        assert torch.equal(one, other) or other.isnan().any()


# When nothing is skipped.


class _Draws(Pairs):
    """Draws random numbers that the loop would otherwise draw."""

    def __getitem__(self, index: int) -> Any:
        torch.rand(1)
        return super().__getitem__(index)


def test_a_data_set_that_draws_in_the_main_process_is_not_skipped() -> None:
    done = both(lambda: net(HEAD), lambda: _loader(_Draws(40)), inputs="skip")
    assert done.counts == (5, 10, 0)
    assert len(done.replays[0].loader.dataset.asked) == 3 * 40


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation_is_not_skipped(workers: int) -> None:
    class _Noisy(Pairs):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + 0.1 * torch.randn(WIDTH), y

    done = both(
        lambda: net(HEAD),
        lambda: _loader(_Noisy(40), num_workers=workers),
        lambda *given: steps(*given, epochs=4),
        inputs="skip",
    )
    assert done.counts[1] == 0


@pytest.mark.parametrize("size", [42, 47])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_smaller_last_batch(size: int, shuffle: bool) -> None:
    done = both(
        lambda: net(LAST_TWO),
        lambda: _loader(Pairs(size), shuffle=shuffle),
        lambda *given: steps(*given, epochs=4),
        inputs="skip",
    )
    assert done.replayer.declined is None
    assert done.counts[2] == (4 if shuffle else 1)


def test_a_field_that_live_code_needs_is_loaded() -> None:
    class _Gated(nn.Module):
        """The head sees the input, too."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) + x)

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Gated()
        fl.freeze(model, all_but="head")
        return model

    done = both(make, _loader, inputs="skip")
    assert done.counts == (5, 10, 0)
    for x, _ in done.replays[0]:
        assert not x.isnan().any()


def test_data_with_nan_are_not_taken_for_placeholders() -> None:
    class _Gaps(Pairs):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.x[:8] = torch.nan

    class _Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x.nan_to_num(0.5))))

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Fills()
        fl.freeze(model, all_but="head")
        return model

    for inputs in ("load", "skip"):
        both(
            make,
            lambda: _loader(_Gaps(40), shuffle=False),
            lambda *given: steps(*given, epochs=4),
            inputs=inputs,
        )


@pytest.mark.parametrize("change", ["eval", "no_grad", "autocast"])
def test_another_kind_of_pass_over_skipped_samples(change: str) -> None:
    """Evaluation over the training loader, in a mode that was never recorded."""

    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(6):
            if epoch < 3:
                yield from steps(model, optimizer, loader, batches, epochs=1)
                continue
            for x, _ in batches(loader):
                if change == "eval":
                    model.eval()
                    yield model(x).detach()
                elif change == "no_grad":
                    with torch.no_grad():
                        yield model(x)
                else:
                    with torch.autocast("cpu", torch.bfloat16):
                        yield model(x).detach()

    both(lambda: net(LAST_TWO), _loader, loop, inputs="skip")


def test_skipping_stops_when_the_model_is_not_called() -> None:
    """Batches that the loop does not run through the model come whole, or as poison; never old."""
    model, loader = net(), _loader(shuffle=False)
    for _ in range(3):
        for batch in fl.replay(model, loader, inputs="skip"):
            cross_entropy(model, batch)
    for number, (x, y) in enumerate(fl.replay(model, loader, inputs="skip")):
        rows = slice(8 * number, 8 * number + 8)
        assert x.isnan().all() or torch.equal(x, loader.dataset.x[rows])
        assert torch.equal(y, loader.dataset.y[rows])
