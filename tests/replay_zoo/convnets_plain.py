"""Convolutional nets without shortcuts, mobile ones, and those that draw masks."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.convnets_residual import SqueezeExcite
from replay_zoo.cuts import cuts, pictures
from replay_zoo.settings import Setting


class Vgg(nn.Module):
    """Two long Sequentials: features, and a classifier with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for outer in (8, "pool", 16, 16, "pool"):
            if outer == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, outer, 3, padding=1), nn.ReLU(inplace=True)]
            width = outer
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(64, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Conv(nn.Module):
    """Convolution, BatchNorm, functional ReLU."""

    def __init__(self, inner: int, outer: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, bias=False, **options)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class InceptionBlock(nn.Module):
    """Four branches side by side."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1 = Conv(inner, 4, kernel_size=1)
        self.branch3 = nn.Sequential(
            Conv(inner, 4, kernel_size=1), Conv(4, 4, kernel_size=3, padding=1)
        )
        self.branch5 = nn.Sequential(
            Conv(inner, 4, kernel_size=1), Conv(4, 4, kernel_size=5, padding=2)
        )
        self.pool = Conv(inner, 4, kernel_size=1)

    def _branches(self, x: Tensor) -> list[Tensor]:
        pooled = functional.avg_pool2d(x, 3, stride=1, padding=1)
        return [self.branch1(x), self.branch3(x), self.branch5(x), self.pool(pooled)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._branches(x), 1)


class InceptionOutputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class Inception(nn.Module):
    """Branches, and a second head that is there in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 8, kernel_size=3, stride=2, padding=1)
        self.mixed1 = InceptionBlock(8)
        self.mixed2 = InceptionBlock(16)
        self.AuxLogits = nn.Sequential(Conv(16, 8, kernel_size=1), nn.Flatten(), nn.Linear(512, 3))
        self.mixed3 = InceptionBlock(16)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> InceptionOutputs | Tensor:
        x = self.mixed2(self.mixed1(self.stem(x)))
        aux = self.AuxLogits(x) if self.training else None
        x = self.dropout(self.mixed3(x).mean((2, 3)))
        logits = self.fc(x)
        return InceptionOutputs(logits, aux) if self.training else logits


def _with_aux(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    out = model(batch["x"])
    main = functional.cross_entropy(out.logits, batch["y"])
    return main + 0.4 * functional.cross_entropy(out.aux, batch["y"])


class StochasticDepth(nn.Module):
    """Drops a whole branch for some samples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel alone, narrow; beside a shortcut where shapes allow."""

    def __init__(
        self,
        inner: int,
        outer: int,
        stride: int,
        *,
        activation: type[nn.Module] = nn.ReLU6,
        squeeze: bool = False,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        wide = inner * 2
        self.conv = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(inner, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                activation(inplace=True),
            ),
            nn.Sequential(
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                activation(inplace=True),
            ),
            SqueezeExcite(wide) if squeeze else nn.Identity(),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.drop = StochasticDepth(rate) if rate else nn.Identity()
        self.has_shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.conv(x)) if self.has_shortcut else self.conv(x)


class MobileNet(nn.Module):
    """Inverted residuals, dropout, a linear layer."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
            InvertedResidual(8, 8, 1, **options),
            InvertedResidual(8, 16, 2, **options),
            InvertedResidual(16, 16, 1, **options),
            nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def _shuffled(x: Tensor, groups: int) -> Tensor:
    samples, channels, height, width = x.shape
    x = x.view(samples, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(samples, channels, height, width)


class ShuffleBlock(nn.Module):
    """Half of the channels go through, half go by; then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            Conv(half, half, kernel_size=1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            Conv(half, half, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        by, through = x.chunk(2, dim=1)
        return _shuffled(torch.cat((by, self.branch(through)), dim=1), 2)


class ShuffleNet(nn.Module):
    """Blocks that shuffle channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv(3, 16, kernel_size=3, stride=2, padding=1)
        self.stage2 = nn.Sequential(ShuffleBlock(16), ShuffleBlock(16))
        self.stage3 = nn.Sequential(ShuffleBlock(16), ShuffleBlock(16))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage3(self.stage2(self.conv1(x))).mean([2, 3]))


class Fire(nn.Module):
    """Squeeze, then expand twice and join."""

    def __init__(self, inner: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inner, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1(x)), self.activation(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules and a classifier that is itself a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(8, 4, 8),
            Fire(16, 4, 8),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(16, 3, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class UNet(nn.Module):
    """A decoder that reads the encoder at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [
                Conv(3, 8, kernel_size=3, padding=1),
                Conv(8, 16, kernel_size=3, padding=1),
                Conv(16, 16, kernel_size=3, padding=1),
            ]
        )
        self.pool = nn.MaxPool2d(2)
        self.middle = Conv(16, 16, kernel_size=3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2) for _ in range(3)])
        self.decode = nn.ModuleList(
            [
                Conv(32, 16, kernel_size=3, padding=1),
                Conv(32, 16, kernel_size=3, padding=1),
                Conv(24, 16, kernel_size=3, padding=1),
            ]
        )
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for up, decode in zip(self.up, self.decode, strict=True):
            x = decode(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)


def _dense_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    labels = (batch["x"].sum(1) > 0).long()
    return functional.cross_entropy(model(batch["x"]), labels)


class Fpn(nn.Module):
    """Segmentation with a pyramid; backbone and result are dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "c2": Conv(3, 8, kernel_size=3, stride=2, padding=1),
                "c3": Conv(8, 16, kernel_size=3, stride=2, padding=1),
                "c4": Conv(16, 16, kernel_size=3, stride=2, padding=1),
            }
        )
        self.lateral = nn.ModuleDict(
            {"c2": nn.Conv2d(8, 8, 1), "c3": nn.Conv2d(16, 8, 1), "c4": nn.Conv2d(16, 8, 1)}
        )
        self.classifier = nn.Conv2d(8, 3, 3, padding=1)
        self.aux_classifier = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        features: OrderedDict[str, Tensor] = OrderedDict()
        for name, stage in self.backbone.items():
            x = features[name] = stage(x)
        top = self.lateral["c4"](features["c4"])
        for name in ("c3", "c2"):
            top = self.lateral[name](features[name]) + functional.interpolate(top, scale_factor=2)
        results: OrderedDict[str, Tensor] = OrderedDict()
        for name, out in (("out", self.classifier(top)), ("aux", self.aux_classifier(x))):
            results[name] = functional.interpolate(
                out, size=size, mode="bilinear", align_corners=False
            )
        return results


def _pyramid_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    labels = (batch["x"].sum(1) > 0).long()
    out = model(batch["x"])
    return sum(functional.cross_entropy(value, labels) for value in out.values())


_FEATURES = {
    "head": "classifier",
    "last": ("classifier", "last:1:features"),
    "upper": ("classifier", "last:2:features"),
}

SETTINGS: list[Setting] = [
    *cuts("vgg", Vgg, pictures, _FEATURES),
    *cuts(
        "inception",
        Inception,
        pictures,
        {
            "head": "fc",
            "heads": ("fc", "AuxLogits"),
            "last": ("fc", "mixed3"),
            "upper": ("fc", "mixed2", "mixed3"),
        },
        loss=_with_aux,
    ),
    *cuts("mobilenet", MobileNet, pictures, _FEATURES),
    *cuts(
        "efficientnet-own",
        lambda: MobileNet(activation=nn.SiLU, squeeze=True, rate=0.2),
        pictures,
        _FEATURES,
    ),
    *cuts(
        "shufflenet",
        ShuffleNet,
        pictures,
        {
            "head": "fc",
            "last": ("fc", "stage3.1"),
            "upper": ("fc", "stage3"),
        },
    ),
    *cuts("squeezenet", SqueezeNet, pictures, _FEATURES),
    *cuts(
        "unet",
        UNet,
        pictures,
        {
            "head": "out",
            "last": ("out", "last:1:decode"),
            "upper": ("out", "decode", "up"),
        },
        loss=_dense_loss,
    ),
    *cuts(
        "fpn",
        Fpn,
        pictures,
        {
            "head": "classifier",
            "last": ("classifier", "aux_classifier", "lateral"),
            "upper": ("classifier", "lateral", "backbone.c4"),
        },
        loss=_pyramid_loss,
    ),
]
