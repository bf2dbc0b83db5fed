"""A sample's values that depend on its batch, and batches in unusual places of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.cuts import sentences, vectors
from replay_zoo.nasty import Net, Part, nasty, plain_part, scored
from replay_zoo.settings import Setting


def _centred(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x - x.mean(0))


def _softmax_over_batch(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).softmax(0)


def _sorted(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).sort(0).values


def _summed(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).cumsum(0)


def _by_largest(part: Part, x: Tensor) -> Tensor:
    hidden = plain_part(part, x)
    return hidden / hidden.abs().max()


def _attends_to_batch(part: Part, x: Tensor) -> Tensor:
    hidden = part.fc1(x)
    return part.fc2((hidden @ hidden.t()).softmax(-1) @ hidden)


def _placed(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x + torch.arange(len(x))[:, None] / 10)


def _by_size(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x) / len(x)


def _with_mean(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = plain_part(part, x)
    return hidden, hidden.square().mean()


def _uses_mean(net: Net, x: Tensor) -> Tensor:
    hidden, mean = net.part(x)
    return net.head(net.drop(hidden)) * mean


def _grouped_by_expert(part: Part, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    chosen = (x[:, 0] > 0).long()
    for expert, layer in enumerate((part.fc1, part.fc2)):
        rows = (chosen == expert).nonzero().squeeze(-1)
        out.index_add_(0, rows, layer(x[rows]))
    return out


def _selected(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).masked_select(x > 0)


def _uses_selected(net: Net, x: Tensor) -> Tensor:
    values = net.part(x)
    spread = torch.zeros_like(x).masked_scatter(x > 0, values)
    return net.head(net.drop(spread))


def _second_dimension(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, torch.stack([x, 2 * x, 3 * x], 0))


def _uses_second(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part(x))).sum(0)


def _last_dimension(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).t()


def _uses_last(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part(x).t()))


def _heads_inside(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x[:, None].repeat(1, 3, 1).flatten(0, 1) * 0.5)


def _uses_heads_inside(net: Net, x: Tensor) -> Tensor:
    return net.head(net.part(x)).view(len(x), 3, -1).mean(1)


def _heads_outside(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, torch.cat([x, 2 * x, 3 * x], 0))


def _uses_heads_outside(net: Net, x: Tensor) -> Tensor:
    return net.head(net.part(x)).view(3, len(x), -1).mean(0)


def _square(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x)[:, :5].t()


def _uses_square(net: Net, x: Tensor) -> Tensor:
    return net.head(functional.pad(net.part(x).t(), (0, 3)))


def _position_table(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    table = part.fc1(torch.eye(8)[: len(x)].sum(0))
    return plain_part(part, x), table.expand(len(x), -1)


def _uses_pair(net: Net, x: Tensor) -> Tensor:
    hidden, table = net.part(x)
    return net.head(net.drop(hidden * table))


def _constant_table(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    return plain_part(part, x), part.fc1(torch.eye(8))


def _uses_table(net: Net, x: Tensor) -> Tensor:
    hidden, table = net.part(x)
    return net.head(net.drop(hidden @ table))


def _contrast(model: Net, batch: dict[str, Tensor]) -> Tensor:
    hidden = model.part(batch["x"])
    scores = functional.normalize(hidden) @ functional.normalize(model.stem(batch["x"])).t()
    return functional.cross_entropy(scores, torch.arange(len(scores))) + scored(
        model.head(hidden), batch
    )


def _contrast_inside(part: Part, x: Tensor) -> Tensor:
    hidden = functional.normalize(plain_part(part, x))
    return functional.log_softmax(hidden @ hidden.t(), -1)


def _uses_contrast(net: Net, x: Tensor) -> Tensor:
    return net.head(functional.pad(net.part(x), (0, 8 - len(x))))


class _Normalised(nn.Module):
    """BatchNorm in the frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class _Trimmed(nn.Module):
    """Each batch is cut to its own longest text, so shapes differ from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, padding_idx=0)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids[:, : int((ids != 0).sum(1).max())]
        hidden = torch.tanh(self.body(self.embed(ids))) * (ids != 0)[..., None]
        return self.head(hidden.sum(1))


def _few_values(samples: int) -> dict[str, Tensor]:
    batch = vectors(samples)
    return {**batch, "x": batch["x"].sign()[:, :2].repeat(1, 4)}


def _unique(part: Part, x: Tensor) -> Tensor:
    rows, back = x.unique(dim=0, return_inverse=True)
    return plain_part(part, rows)[back]


SETTINGS: list[Setting] = [
    nasty("centred", "the batch's mean is taken away", "declined", part=_centred),
    nasty("softmax-over-batch", "softmax over dimension 0", "either", part=_softmax_over_batch),
    nasty("sorted", "each column sorted over the batch", "either", part=_sorted),
    nasty("summed", "a running sum over the batch", "either", part=_summed),
    nasty("by-largest", "scaled by the batch's largest value", "either", part=_by_largest),
    nasty("attends-to-batch", "samples attend to each other", "either", part=_attends_to_batch),
    nasty(
        "train-mode-norm",
        "BatchNorm in train mode, kept out of the pin",
        "either",
        make=_Normalised,
        options={"pin_eval": False},
    ),
    nasty(
        "loose-norm",
        "the same, and its statistics move",
        "either",
        make=_Normalised,
        options={"pin_eval": False, "hold_statistics": False},
    ),
    nasty(
        "contrast-late",
        "live contrast within the batch over frozen features",
        "identical",
        loss=_contrast,
        trains=("head", "stem"),
    ),
    nasty(
        "contrast-inside",
        "frozen contrast within the batch",
        "either",
        part=_contrast_inside,
        net=_uses_contrast,
    ),
    nasty("placed", "each sample knows its place in the batch", "declined", part=_placed),
    nasty(
        "by-size",
        "divided by the batch's size; the last batch is smaller",
        "identical",
        part=_by_size,
        samples=22,
    ),
    nasty("smaller-last", "the last batch of an epoch is smaller", "identical", samples=22),
    nasty(
        "with-mean",
        "features, and one mean over the whole batch",
        "either",
        part=_with_mean,
        net=_uses_mean,
    ),
    nasty(
        "grouped-by-expert",
        "samples sent to experts by nonzero and index_add",
        "rounding",
        part=_grouped_by_expert,
    ),
    nasty(
        "experts-rounded",
        "the same, where rounding is welcome",
        "rounding",
        part=_grouped_by_expert,
        replay={"rounding": True},
    ),
    nasty(
        "selected",
        "masked_select: the size depends on the data",
        "either",
        part=_selected,
        net=_uses_selected,
    ),
    nasty(
        "second-dimension",
        "samples along dimension 1",
        "identical",
        part=_second_dimension,
        net=_uses_second,
    ),
    nasty(
        "last-dimension",
        "samples along the last dimension",
        "identical",
        part=_last_dimension,
        net=_uses_last,
    ),
    nasty(
        "heads-inside",
        "samples × heads in dimension 0",
        "identical",
        part=_heads_inside,
        net=_uses_heads_inside,
    ),
    nasty(
        "heads-outside",
        "heads × samples in dimension 0",
        "either",
        part=_heads_outside,
        net=_uses_heads_outside,
    ),
    nasty(
        "square",
        "as many columns as samples, and transposed",
        "either",
        part=_square,
        net=_uses_square,
    ),
    nasty(
        "position-table",
        "a table expanded to the batch, and made of its size",
        "either",
        part=_position_table,
        net=_uses_pair,
    ),
    nasty(
        "constant-table",
        "a table that no sample has a part in",
        "identical",
        part=_constant_table,
        net=_uses_table,
    ),
    nasty(
        "trimmed", "batches are cut to their longest text", "either", make=_Trimmed, batch=sentences
    ),
    nasty("unique", "equal samples are computed once", "either", part=_unique, batch=_few_values),
    nasty("equal-samples", "many samples have the same content", "identical", batch=_few_values),
]
