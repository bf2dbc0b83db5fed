"""Models, data and loops for the tests of replay: every loop runs with replay and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import frostline as fl

WIDTH = 16  # one register of floats: no elementwise kernel then rounds the last sample otherwise
CLASSES = 3


class Pairs(Dataset):
    """``(x, y)`` of each sample, and how often each was asked for."""

    def __init__(self, size: int = 40, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(size, WIDTH, generator=generator)
        self.y = torch.randint(CLASSES, (size,), generator=generator)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(int(index))
        return self.x[index], self.y[index]


class Block(nn.Module):
    """Two layers with dropout and a shortcut; it counts its calls."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(self.fc2(torch.tanh(self.fc1(x)))))


class Net(nn.Module):
    """Four blocks, dropout, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(WIDTH, CLASSES)

    def encode(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.encode(x)))


HEAD = "head"
LAST_TWO = ("blocks.2", "blocks.3", "head")


def net(trains: str | tuple[str, ...] = HEAD, *, seed: int = 0) -> Net:
    """A small net of which only ``trains`` is not frozen."""
    torch.manual_seed(seed)
    model = Net()
    freeze(model, trains)
    return model


def freeze(model: nn.Module, trains: str | tuple[str, ...]) -> None:
    fl.freeze(model, all_but=trains if isinstance(trains, str) else list(trains))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x), y)


@dataclass
class Run:
    """What a run leaves: one loss a step, all tensors, the state of torch's generator."""

    model: nn.Module
    losses: list[Tensor]
    randomness: Tensor
    replays: list[Any] = field(default_factory=list)

    @property
    def replayer(self) -> fl.Replayer:
        return self.replays[0].replayer

    @property
    def counts(self) -> tuple[int, int, int]:
        """Passes recorded, replayed, plain."""
        stats = self.replayer.stats
        return stats.recorded, stats.replayed, stats.plain


Batches = Callable[[DataLoader[Any]], Iterable[Any]]
Loop = Callable[[nn.Module, torch.optim.Optimizer, DataLoader[Any], Batches], Iterator[Tensor]]


def steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    batches: Batches,
    *,
    loss_of: Callable[[Any, Any], Tensor] = cross_entropy,
    epochs: int = 3,
) -> Iterator[Tensor]:
    """The plainest loop: yields the loss of each step."""
    for _ in range(epochs):
        model.train()
        for batch in batches(loader):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            yield loss.detach()


def run(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], DataLoader[Any]],
    loop: Loop = steps,
    *,
    replayed: bool,
    once: bool = False,
    optimizer: Any = torch.optim.AdamW,
    **options: Any,
) -> Run:
    """Train, with the same seeds whether ``replayed`` or not.

    ``options`` go to :func:`frostline.replay`; it is called in every epoch, or ``once`` for each
    loader.
    """
    torch.manual_seed(1)
    model, loader = make_model(), make_loader()
    steps_with = fl.optimizer(optimizer, model, lr=1e-2)
    result = Run(model, [], torch.empty(0))
    known: dict[int, Any] = {}

    def batches(loader: DataLoader[Any]) -> Iterable[Any]:
        if not replayed:
            return loader
        given = known.get(id(loader)) if once else None
        if given is None:
            given = known[id(loader)] = fl.replay(model, loader, **options)
            if given not in result.replays:
                result.replays.append(given)
        return given

    torch.manual_seed(2)
    result.losses.extend(loop(model, steps_with, loader, batches))
    result.randomness = torch.get_rng_state()
    return result


def assert_same(plain: Run, replayed: Run) -> None:
    """Bit for bit: losses, weights, buffers, and the random numbers that come next."""
    assert len(plain.losses) == len(replayed.losses)
    for number, (one, other) in enumerate(zip(plain.losses, replayed.losses, strict=True)):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), f"step {number}: {one} or {other}"
    theirs = replayed.model.state_dict()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(plain.randomness, replayed.randomness)


def both(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], DataLoader[Any]],
    loop: Loop = steps,
    **options: Any,
) -> Run:
    """Run without and with replay, see that they agree, and give the replayed one."""
    plain = run(
        make_model,
        make_loader,
        loop,
        replayed=False,
        optimizer=options.get("optimizer", torch.optim.AdamW),
    )
    replayed = run(make_model, make_loader, loop, replayed=True, **options)
    assert_same(plain, replayed)
    return replayed


@contextlib.contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """How many rows the forwards of these modules' classes compute; not by hooks, on purpose.

    Only calls that compute the class's own ``forward`` count, wherever they are made.
    """
    computed: list[int] = []
    kinds = {type(module): type(module).forward for module in modules}
    chosen = {id(module) for module in modules}

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) in chosen:
                computed.append(len(x))
            return original(self, x, *args, **kwargs)

        return forward

    for kind, original in kinds.items():
        kind.forward = counting(original)  # type: ignore[method-assign]
    try:
        yield computed
    finally:
        for kind, original in kinds.items():
            kind.forward = original  # type: ignore[method-assign]


def shuffled(size: int = 40, **options: Any) -> DataLoader[Any]:
    """Pairs in batches of 8, in another order each epoch."""
    return DataLoader(Pairs(size), **{"batch_size": 8, "shuffle": True, **options})


def two() -> Net:
    """A net of which the last two blocks and the head train."""
    return net(LAST_TWO)


def with_loss(loss_of: Callable[[Any, Any], Tensor], epochs: int = 3) -> Any:
    return lambda *given: steps(*given, loss_of=loss_of, epochs=epochs)


def step(model: nn.Module, optimizer: Any, batch: Any) -> Tensor:
    optimizer.zero_grad()
    loss = cross_entropy(model, batch)
    loss.backward()
    optimizer.step()
    return loss.detach()
