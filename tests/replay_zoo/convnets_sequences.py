"""Recurrent nets, sequences, points, graphs, tables, and models of two towers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.nn.utils.parametrizations import weight_norm

from replay_zoo.cuts import cuts, pictures, sentences
from replay_zoo.settings import Setting


class Tagger(nn.Module):
    """LSTMs, one upon the other; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.drop = nn.Dropout(0.1)
        self.layers = nn.ModuleList(nn.LSTM(16, 16, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.embed(ids))
        for layer in self.layers:
            x, (state, _) = layer(x)
        return self.head(self.drop(state[-1]))


class PackedGru(nn.Module):
    """A two-way GRU over packed texts: the lengths are read on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.lower = nn.GRU(16, 8, bidirectional=True, batch_first=True)
        self.upper = nn.GRU(16, 8, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 3))

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1).cpu()
        packed = rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        packed, _ = self.lower(packed)
        _, state = self.upper(packed)
        return self.head(torch.cat([state[0], state[1]], -1))


class CellLoop(nn.Module):
    """A cell called once per place, frozen; a live cell over its states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lower, self.upper = nn.GRUCell(16, 16), nn.LSTMCell(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        state = x.new_zeros(x.shape[0], 16)
        pair = (state, state)
        for place in x.unbind(1):
            state = self.lower(place, state)
            pair = self.upper(state, pair)
        return self.head(pair[0])


class TemporalBlock(nn.Module):
    """Causal convolutions with weight norm, the end cut off, beside a shortcut."""

    def __init__(self, inner: int, outer: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        options = {"padding": self.cut, "dilation": dilation}
        self.conv1 = weight_norm(nn.Conv1d(inner, outer, 3, **options))
        self.conv2 = weight_norm(nn.Conv1d(outer, outer, 3, **options))
        self.drop = nn.Dropout(0.1)
        self.shortcut = nn.Conv1d(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(functional.relu(self.conv1(x)[:, :, : -self.cut].contiguous()))
        out = self.drop(functional.relu(self.conv2(out)[:, :, : -self.cut].contiguous()))
        return functional.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class Tcn(nn.Module):
    """Dilated causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            TemporalBlock(4, 8, 1), TemporalBlock(8, 8, 2), TemporalBlock(8, 8, 4)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[:, :, -1])


class TransformNet(nn.Module):
    """A matrix for each cloud of points, near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Sequential(nn.Conv1d(width, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.fc = nn.Linear(16, width * width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max(self.conv(x), 2, keepdim=True)[0].view(-1, 16)
        identity = torch.eye(self.width).flatten().view(1, -1).repeat(x.shape[0], 1)
        return (self.fc(x) + identity).view(-1, self.width, self.width)


class PointNet(nn.Module):
    """Points, turned, widened one by one, and the largest of each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.turn_features = TransformNet(3), TransformNet(8)
        self.conv1 = nn.Conv1d(3, 8, 1)
        self.conv2 = nn.Sequential(nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16))
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        turned = torch.bmm(points.transpose(2, 1), self.turn(points)).transpose(2, 1)
        x = functional.relu(self.conv1(turned))
        matrix = self.turn_features(x)
        x = torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1)
        return self.head(torch.max(self.conv2(x), 2)[0]), matrix


def _regular(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, matrix = model(batch["x"])
    away = torch.eye(8)[None] - torch.bmm(matrix, matrix.transpose(2, 1))
    return functional.cross_entropy(logits, batch["y"]) + 0.001 * away.norm(dim=(1, 2)).mean()


def _clouds(samples: int) -> dict[str, Tensor]:
    return {"x": torch.randn(samples, 3, 12), "y": torch.randint(0, 3, (samples,))}


class TextCnn(nn.Module):
    """Convolutions of several widths, each pooled over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(16, 8, kernel) for kernel in (2, 3, 4))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        pooled = [functional.relu(conv(x)).amax(-1) for conv in self.convs]
        return self.head(torch.cat(pooled, 1))


class GraphNet(nn.Module):
    """Neighbours are averaged along each sample's own adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges / edges.sum(-1, keepdim=True).clamp(min=1)
        for layer in self.layers:
            nodes = functional.relu(layer(edges @ nodes))
        return self.head(nodes.mean(1))


def _graphs(samples: int) -> dict[str, Tensor]:
    return {
        "nodes": torch.randn(samples, 6, 4),
        "edges": (torch.rand(samples, 6, 6) > 0.5).float(),
        "y": torch.randint(0, 3, (samples,)),
    }


def _graph_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch["nodes"], batch["edges"]), batch["y"])


class Encoder(nn.Module):
    """What the towers below are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.norm(self.conv(x))).mean((2, 3)))


class Siamese(nn.Module):
    """One encoder for two pictures; the head compares."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(8, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.encoder(left) - self.encoder(right)).abs()).squeeze(-1)


class Towers(nn.Module):
    """A tower for pictures and one for texts, which meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.image = Encoder()
        self.text = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 8))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.scale * (self.image(x) * self.text(ids)).sum(-1)


def _pairs(samples: int) -> dict[str, Tensor]:
    return {
        "left": torch.randn(samples, 3, 16, 16),
        "right": torch.randn(samples, 3, 16, 16),
        "ids": torch.randint(0, 50, (samples, 6)),
        "y": torch.randint(0, 2, (samples,)).float(),
    }


def _siamese_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["left"], batch["right"])
    return functional.binary_cross_entropy_with_logits(logits, batch["y"])


def _tower_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["left"], batch["ids"])
    return functional.binary_cross_entropy_with_logits(logits, batch["y"])


class Recommender(nn.Module):
    """Embedding tables, their products, and a net over both."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(14, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        columns = [dense, *(table(kinds[:, i]) for i, table in enumerate(self.tables))]
        stacked = torch.stack(columns, 1)
        products = stacked @ stacked.transpose(1, 2)
        rows, others = torch.tril_indices(4, 4, -1).unbind(0)
        return self.top(torch.cat([dense, products[:, rows, others]], 1))


def _table(samples: int) -> dict[str, Tensor]:
    return {
        "numbers": torch.randn(samples, 4),
        "kinds": torch.randint(0, 20, (samples, 3)),
        "y": torch.randint(0, 3, (samples,)),
    }


def _table_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch["numbers"], batch["kinds"]), batch["y"])


class Autoencoder(nn.Module):
    """A frozen encoder, a sampled code, a live decoder that is held against the input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.mean, self.spread = nn.Linear(8, 4), nn.Linear(8, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3 * 16 * 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * spread)
        return self.decoder(code).view_as(x), mean, spread


def _rebuilt(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    picture, mean, spread = model(batch["x"])
    divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).mean()
    return functional.mse_loss(picture, batch["x"]) + divergence


_LAYERS = {
    "head": "head",
    "last": ("head", "last:1:layers"),
    "upper": ("head", "last:2:layers"),
}

SETTINGS: list[Setting] = [
    *cuts("lstm", Tagger, sentences, _LAYERS),
    *cuts("gru-packed", PackedGru, sentences, {"head": "head", "last": ("head", "upper")}),
    *cuts("cells", CellLoop, sentences, {"head": "head", "last": ("head", "upper")}),
    *cuts(
        "tcn", Tcn, lambda n: {"x": torch.randn(n, 4, 12), "y": torch.randint(0, 3, (n,))}, _LAYERS
    ),
    *cuts(
        "pointnet",
        PointNet,
        _clouds,
        {
            "head": "head",
            "last": ("head", "conv2"),
            "upper": ("head", "conv2", "turn_features"),
        },
        loss=_regular,
    ),
    *cuts(
        "text-cnn",
        TextCnn,
        sentences,
        {
            "head": "head",
            "last": ("head", "last:1:convs"),
            "upper": ("head", "convs"),
        },
    ),
    *cuts("graph", GraphNet, _graphs, _LAYERS, loss=_graph_loss),
    *cuts(
        "siamese",
        Siamese,
        _pairs,
        {"head": "head", "last": ("head", "encoder.fc")},
        loss=_siamese_loss,
    ),
    *cuts(
        "towers",
        Towers,
        _pairs,
        {
            "head": "scale",
            "last": ("scale", "image.fc"),
            "upper": ("scale", "text"),
        },
        loss=_tower_loss,
    ),
    *cuts(
        "recommender",
        Recommender,
        _table,
        {
            "head": "top.2",
            "last": "top",
            "upper": ("top", "bottom"),
        },
        loss=_table_loss,
    ),
    *cuts(
        "autoencoder",
        Autoencoder,
        pictures,
        {
            "head": "decoder",
            "last": ("decoder", "mean", "spread"),
            "upper": ("decoder", "mean", "spread", "encoder.fc"),
        },
        loss=_rebuilt,
    ),
]
