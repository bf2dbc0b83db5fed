"""Live values that reach frozen calls, and branches that depend on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from replay_zoo.cuts import sentences
from replay_zoo.nasty import Net, Part, nasty, scored
from replay_zoo.settings import Setting


def _detached(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part(net.stem(x).detach())))


def _fed_back(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        guess = functional.pad(net.head(x).softmax(-1), (0, 5))
        hidden = net.part(x + guess)
    return net.head(net.drop(hidden))


def _steered(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part(x * net.head.weight.mean().item())))


def _steered_branch(net: Net, x: Tensor) -> Tensor:
    turned = net.head.bias.sum().item() > 0
    return net.head(net.drop(net.part(-x if turned else x)))


def _branch_on_batch(part: Part, x: Tensor) -> Tensor:
    return part.fc1(x) if x.sum() > 0 else part.fc2(x)


def _branch_in_net(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x) if x.sum() > 0 else net.part(-x)
    return net.head(net.drop(hidden))


def _branch_on_mask(net: Net, ids: Tensor) -> Tensor:
    x = functional.one_hot(ids % 8, 8).float()
    mask = ids != 0
    hidden = net.part(x) if mask.all() else net.part(x) * mask[..., None]
    return net.head(net.drop(hidden.mean(1)))


def _exits_early(net: Net, x: Tensor) -> Tensor:
    hidden = torch.tanh(net.part.fc1(x))
    early = net.head(hidden)
    if early.softmax(-1).amax(-1).min() > 0.45:
        return early
    return early + net.head(net.part.fc2(hidden))


def _middle(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part(net.stem(x))))


def _twice(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    return net.head(net.part(net.drop(net.stem(hidden)))) + net.head(hidden)


def _unrolled(net: Net, ids: Tensor) -> Tensor:
    x = functional.one_hot(ids % 8, 8).float()
    hidden = torch.zeros(len(ids), 8)
    for place in range(int((ids != 0).sum(1).max())):
        hidden = net.part(hidden + x[:, place])
    return net.head(net.drop(hidden))


def _until_settled(part: Part, x: Tensor) -> Tensor:
    for _ in range(20):
        following = torch.tanh(part.fc1(x))
        if (following - x).abs().max() < 0.05:
            break
        x = following
    return part.fc2(x)


def _live_weights(net: Net, x: Tensor) -> Tensor:
    weights = {"fc1.weight": net.part.fc1.weight + net.stem.weight}
    return net.head(net.drop(functional_call(net.part, weights, (x,))))


def _writes_weights(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.part.fc1.weight.copy_(net.stem.weight)
    return net.head(net.drop(net.part(x) + net.stem(x)))


def _catches(part: Part, x: Tensor) -> Tensor:
    try:
        if x[:, 0].sum() > 0:
            raise ValueError("not this way")
        return part.fc1(x)
    except ValueError:
        return part.fc2(x)


def _raises(part: Part, x: Tensor) -> Tensor:
    hidden = part.fc1(x)
    if hidden[:, 0].sum() > 0:
        raise ValueError("not this way")
    return part.fc2(hidden)


def _catches_outside(net: Net, x: Tensor) -> Tensor:
    try:
        hidden = net.part(x)
    except ValueError:
        hidden = x
    return net.head(net.drop(hidden))


class _Teacher(nn.Module):
    """A frozen copy that follows the trained encoder, as in self-distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.teacher = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.encoder.parameters(), strict=True)
            for mine, other in pairs:
                mine.mul_(0.9).add_(other, alpha=0.1)
            target = self.teacher(x)
        hidden = self.encoder(x)
        return self.head(hidden), (hidden - target).square().mean()


def _distilled(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, distance = model(batch["x"])
    return scored(logits, batch) + distance


class _Judge(nn.Module):
    """A frozen judge of what the live part makes and of what it should have made."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.judge(self.head(x)) - self.judge(x.flip(1))).square().mean()


class _Tied(nn.Module):
    """The frozen embedding is the output's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.body(self.embed(ids))))[:, 0, :3]


class _Adapted(nn.Module):
    """A frozen layer with a low-rank live one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(self.drop(x)))


SETTINGS: list[Setting] = [
    nasty(
        "detached",
        "a detached trained value flows into the frozen part",
        "declined",
        net=_detached,
        trains=("head", "stem"),
    ),
    nasty("fed-back", "the head's guess flows back under no_grad", "declined", net=_fed_back),
    nasty(
        "steered", "a trained weight scales the frozen input by .item()", "declined", net=_steered
    ),
    nasty(
        "steered-branch",
        "a trained weight decides a frozen branch by .item()",
        "either",
        net=_steered_branch,
    ),
    nasty(
        "branch-on-batch",
        "the batch's sum decides between frozen layers",
        "either",
        part=_branch_on_batch,
    ),
    nasty(
        "branch-in-net",
        "the batch's sum decides what the part is given",
        "either",
        net=_branch_in_net,
    ),
    nasty(
        "branch-on-mask",
        "mask.all() decides whether to mask",
        "either",
        net=_branch_on_mask,
        batch=sentences,
    ),
    nasty(
        "exits-early",
        "a live guess decides whether a frozen layer is called",
        "either",
        net=_exits_early,
    ),
    nasty(
        "middle",
        "the frozen part lies after a trained stem",
        "declined",
        net=_middle,
        trains=("head", "stem"),
    ),
    nasty(
        "called-twice",
        "one frozen part, on a frozen input and on a live one",
        "identical",
        net=_twice,
        trains=("head", "stem"),
    ),
    nasty(
        "unrolled",
        "as many calls as the longest text of the batch is long",
        "either",
        net=_unrolled,
        batch=sentences,
    ),
    nasty(
        "until-settled", "repeated until the whole batch has settled", "either", part=_until_settled
    ),
    nasty(
        "live-weights",
        "the part is called with trained weights",
        "either",
        net=_live_weights,
        trains=("head", "stem"),
    ),
    nasty(
        "writes-weights",
        "trained weights are copied into the frozen part",
        "either",
        net=_writes_weights,
        trains=("head", "stem"),
    ),
    nasty("catches", "an exception inside the part decides", "either", part=_catches),
    nasty(
        "raises",
        "the part raises, and the model goes on without it",
        "either",
        part=_raises,
        net=_catches_outside,
    ),
    nasty(
        "teacher",
        "a frozen copy follows the trained encoder",
        "either",
        make=_Teacher,
        trains=("head", "encoder"),
        loss=_distilled,
    ),
    nasty(
        "judge",
        "a frozen judge of live and of frozen values",
        "either",
        make=_Judge,
        loss=lambda model, batch: model(batch["x"]),
    ),
    nasty(
        "tied",
        "the frozen embedding is the output's weight",
        "identical",
        make=_Tied,
        trains=("norm",),
        batch=sentences,
    ),
    nasty(
        "adapted",
        "low-rank layers beside frozen ones",
        "identical",
        make=lambda: nn.Sequential(_Adapted(), nn.Tanh(), _Adapted(), nn.Linear(8, 3)),
        trains=("down", "up", "3"),
    ),
]
