"""Nets of patches, windows and tokens in the manner of timm, and hybrids of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.convnets_plain import StochasticDepth
from replay_zoo.cuts import cuts, pictures, sentences
from replay_zoo.settings import Setting


class ConvNextBlock(nn.Module):
    """Depthwise convolution, channels-last MLP, a learned scale, drop path."""

    def __init__(self, width: int, rate: float = 0.1) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.gamma = nn.Parameter(0.1 * torch.ones(width))
        self.drop_path = StochasticDepth(rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + self.drop_path((out * self.gamma).permute(0, 3, 1, 2))


class ConvNext(nn.Module):
    """timm's manner: ``forward_features`` and ``forward_head``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.stages = nn.Sequential(
            ConvNextBlock(8), nn.Conv2d(8, 16, 2, 2), ConvNextBlock(16), ConvNextBlock(16)
        )
        self.head = nn.ModuleDict(
            {"norm": nn.LayerNorm(16), "drop": nn.Dropout(0.1), "fc": nn.Linear(16, 3)}
        )

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        x = self.head["drop"](self.head["norm"](x.mean((2, 3))))
        return x if pre_logits else self.head["fc"](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class MixerBlock(nn.Module):
    """One MLP over places, one over channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(places, 16), nn.GELU(), nn.Linear(16, places))
        self.channels = nn.Sequential(
            nn.Linear(width, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches, mixer blocks, the mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(*[MixerBlock(16, 16) for _ in range(4)])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class Attention(nn.Module):
    """One projection for query, key and value."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, places, width = x.shape
        qkv = self.qkv(x).reshape(samples, places, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1)
        x = self.attn_drop(scores.softmax(dim=-1)) @ value
        return self.proj(x.transpose(1, 2).reshape(samples, places, width))


class Block(nn.Module):
    """Attention and MLP, each with a learned scale and drop path."""

    def __init__(self, width: int, rate: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )
        self.ls1 = nn.Parameter(torch.full((width,), 0.1))
        self.ls2 = nn.Parameter(torch.full((width,), 0.1))
        self.rate = rate

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * mask / (1 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.ls1 * self.attn(self.norm1(x)))
        return x + self._dropped(self.ls2 * self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """timm's ViT: class token and positions are parameters of the root."""

    def __init__(self, *, pool: str = "token") -> None:
        super().__init__()
        self.pool = pool
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16)) if pool == "token" else None
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 16 + (pool == "token"), 16))
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*[Block(16) for _ in range(4)])
        self.norm = nn.LayerNorm(16) if pool == "token" else nn.Identity()
        self.fc_norm = nn.Identity() if pool == "token" else nn.LayerNorm(16)
        self.head_drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 3)

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.pos_drop(x + self.pos_embed)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._pos_embed(self.patch_embed(x).flatten(2).transpose(1, 2))
        return self.norm(self.blocks(x))

    def forward_head(self, x: Tensor) -> Tensor:
        x = x[:, 0] if self.pool == "token" else x.mean(dim=1)
        return self.head(self.head_drop(self.fc_norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class WindowBlock(nn.Module):
    """Attention inside windows, which stand beside the samples in dimension 0."""

    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        samples, places, width = x.shape
        side, window = self.side, self.window
        shortcut = x
        x = self.norm1(x).view(samples, side, side, width)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        count = side // window
        x = x.view(samples, count, window, count, window, width).permute(0, 1, 3, 2, 4, 5)
        x = self.attn(x.reshape(-1, window * window, width))
        x = x.view(samples, count, count, window, window, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(samples, side, side, width)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        x = shortcut + x.reshape(samples, places, width)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], self.side, self.side, -1)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x.flatten(1, 2)))


class Swin(nn.Module):
    """Shifted windows in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 2, 2)
        self.layers = nn.Sequential(
            WindowBlock(8, 8, 4, 0),
            WindowBlock(8, 8, 4, 2),
            PatchMerging(8, 8),
            WindowBlock(16, 4, 2, 0),
            WindowBlock(16, 4, 2, 1),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patch_embed(x).flatten(2).transpose(1, 2)).mean(1))


class Hybrid(nn.Module):
    """A convolutional stem under torch's own transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 16, 3, 2, 1)
        )
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True),
            3,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class TokenEncoder(nn.Module):
    """torch's transformer over padded texts; places first, samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.embed(ids).transpose(0, 1), src_key_padding_mask=ids == 0)
        return self.head(x[0])


class Detector(nn.Module):
    """Learned queries look at what a backbone sees, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.input_proj = nn.Conv2d(8, 16, 1)
        self.transformer = nn.Transformer(16, 2, 1, 2, 32, dropout=0.1, batch_first=True)
        self.query_embed = nn.Embedding(4, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(64, 16))
        self.class_embed = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.input_proj(self.backbone(x)).flatten(2).transpose(1, 2) + self.positions
        queries = self.query_embed.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return self.class_embed(self.transformer(memory, queries)).mean(1)


class GatedMlp(nn.Module):
    """Half of the channels gate the other half over places; a positional table made once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.register_buffer("table", torch.randn(8, 16), persistent=False)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(16),
                    "inner": nn.Linear(16, 32),
                    "space": nn.Conv1d(8, 8, 1),
                    "outer": nn.Linear(16, 16),
                }
            )
            for _ in range(3)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.table
        for layer in self.layers:
            by, gate = functional.gelu(layer["inner"](layer["norm"](x))).chunk(2, -1)
            x = x + layer["outer"](by * layer["space"](gate))
        return self.head(x.mean(1))


_LAYERS = {
    "head": "head",
    "last": ("head", "last:1:layers"),
    "upper": ("head", "last:2:layers"),
}
_BLOCKS = {
    "head": "head",
    "last": ("head", "last:1:blocks"),
    "upper": ("head", "last:2:blocks"),
}
_ENCODER = {
    "head": "head",
    "last": ("head", "last:1:encoder.layers"),
    "upper": ("head", "last:2:encoder.layers"),
}

SETTINGS: list[Setting] = [
    *cuts(
        "convnext-own",
        ConvNext,
        pictures,
        {
            "head": "head",
            "last": ("head", "last:1:stages"),
            "upper": ("head", "last:2:stages"),
        },
    ),
    *cuts("mixer", Mixer, pictures, _BLOCKS),
    *cuts("vit-timm", VisionTransformer, pictures, _BLOCKS),
    *cuts(
        "vit-timm-mean",
        lambda: VisionTransformer(pool="mean"),
        pictures,
        {**_BLOCKS, "norm": ("head", "fc_norm")},
    ),
    *cuts("swin-own", Swin, pictures, _LAYERS),
    *cuts("hybrid", Hybrid, pictures, _ENCODER),
    *cuts("token-encoder", TokenEncoder, sentences, _ENCODER),
    *cuts(
        "detector",
        Detector,
        pictures,
        {
            "head": "class_embed",
            "last": ("class_embed", "last:1:transformer.decoder.layers"),
            "upper": ("class_embed", "transformer.decoder", "query_embed"),
        },
    ),
    *cuts("gated-mlp", GatedMlp, sentences, _LAYERS),
]
