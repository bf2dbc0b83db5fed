"""Convolutional nets with shortcuts, in the manner of torchvision and timm."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.cuts import cuts, pictures
from replay_zoo.settings import Setting


def _conv_norm(inner: int, outer: int, kernel: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outer),
    )


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut; one ReLU for both, in place."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        nn.init.zeros_(self.bn2.weight)
        self.downsample = (
            _conv_norm(inner, outer, 1, stride=stride) if stride > 1 or inner != outer else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """Narrow, convolve in groups, widen; beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        width = outer // 2
        self.conv1 = _conv_norm(inner, width, 1)
        self.conv2 = _conv_norm(width, width, 3, stride=stride, groups=groups)
        self.conv3 = _conv_norm(width, outer, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            _conv_norm(inner, outer, 1, stride=stride) if stride > 1 or inner != outer else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.conv1(x))
        out = self.relu(self.conv2(out))
        out = self.conv3(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class SqueezeExcite(nn.Module):
    """Weighs channels by what is in all of the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // 4, 1)
        self.fc2 = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(functional.silu(self.fc1(scale), inplace=True)))


class SqueezedBlock(BasicBlock):
    """A basic block whose output is squeezed and excited."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__(inner, outer, stride)
        self.se = SqueezeExcite(outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(super().forward(x))


class ResNet(nn.Module):
    """A stem, four stages, average pooling, one linear layer."""

    def __init__(self, block: type[nn.Module], **options: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(block(8, 8, **options), block(8, 8, **options))
        self.layer2 = nn.Sequential(block(8, 16, 2, **options))
        self.layer3 = nn.Sequential(block(16, 16, 2, **options), block(16, 16, **options))
        self.layer4 = nn.Sequential(block(16, 16, **options))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution over all that came before, given as a list."""

    def __init__(self, inner: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        out = self.conv(self.relu(self.norm(torch.cat(features, 1))))
        return functional.dropout(out, 0.1, training=self.training)


class DenseBlock(nn.ModuleDict):
    """Each layer reads the outputs of all before."""

    def __init__(self, inner: int, growth: int, layers: int) -> None:
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = DenseLayer(inner + i * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            DenseBlock(8, 4, 3),
            nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(True), nn.Conv2d(20, 8, 1), nn.AvgPool2d(2)),
            DenseBlock(8, 4, 3),
            nn.BatchNorm2d(20),
        )
        self.classifier = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.features(x), inplace=True)
        pooled = functional.adaptive_avg_pool2d(features, (1, 1))
        return self.classifier(torch.flatten(pooled, 1))


class WeightStandardized(nn.Conv2d):
    """A convolution whose kernels are standardised at every call."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-6), self.bias)


class PreActivation(nn.Module):
    """GroupNorm and ReLU before each standardised convolution; dropout between."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, inner)
        self.conv1 = WeightStandardized(inner, outer, 3, stride, 1)
        self.norm2 = nn.GroupNorm(4, outer)
        self.drop = nn.Dropout2d(0.1)
        self.conv2 = WeightStandardized(outer, outer, 3, 1, 1)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inner == outer
            else WeightStandardized(inner, outer, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        normal = functional.relu(self.norm1(x))
        out = self.conv1(normal)
        out = self.conv2(self.drop(functional.relu(self.norm2(out))))
        return out + self.shortcut(normal)


class RepVggBlock(nn.Module):
    """Three branches that are one convolution when deployed."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.wide = _conv_norm(inner, outer, 3, stride=stride)
        self.narrow = _conv_norm(inner, outer, 1, stride=stride)
        self.identity = nn.BatchNorm2d(inner) if inner == outer and stride == 1 else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.wide(x) + self.narrow(x)
        if self.identity is not None:
            out = out + self.identity(x)
        return self.act(out)


class RepVgg(nn.Module):
    """Blocks of three branches, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [RepVggBlock(3, 8, 2), RepVggBlock(8, 8), RepVggBlock(8, 16, 2), RepVggBlock(16, 16)]
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.linear(self.gap(x).view(x.size(0), -1))


class Dark(nn.Module):
    """Leaky convolutions whose last two scales are classified, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 8, 16, 16]
        self.backbone = nn.ModuleList(
            nn.Sequential(_conv_norm(a, b, 3, stride=2), nn.LeakyReLU(0.1, inplace=True))
            for a, b in pairwise(widths)
        )
        self.lateral = nn.Conv2d(16, 16, 1)
        self.heads = nn.ModuleList([nn.Conv2d(16, 3, 1), nn.Conv2d(16, 3, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        scales = []
        for stage in self.backbone:
            x = stage(x)
            scales.append(x)
        deep = self.lateral(scales[-1])
        up = functional.interpolate(deep, scale_factor=2, mode="nearest")
        return [self.heads[0](up + scales[-2]), self.heads[1](deep)]


def _both_scales(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    losses = [functional.cross_entropy(out.mean((2, 3)), batch["y"]) for out in model(batch["x"])]
    return losses[0] + 0.5 * losses[1]


_STAGES = {"head": "fc", "last": ("fc", "layer4"), "upper": ("fc", "layer3", "layer4")}

SETTINGS: list[Setting] = [
    *cuts("resnet-basic", lambda: ResNet(BasicBlock), pictures, _STAGES),
    *cuts("resnet-bottleneck", lambda: ResNet(Bottleneck), pictures, _STAGES),
    *cuts("resnext", lambda: ResNet(Bottleneck, groups=2), pictures, _STAGES),
    *cuts("se-resnet", lambda: ResNet(SqueezedBlock), pictures, _STAGES),
    *cuts("resnet-standardized", lambda: ResNet(PreActivation), pictures, _STAGES),
    *cuts(
        "resnet-channels-last",
        lambda: ResNet(BasicBlock).to(memory_format=torch.channels_last),
        lambda n: {
            "x": (b := pictures(n))["x"].contiguous(memory_format=torch.channels_last),
            "y": b["y"],
        },
        _STAGES,
    ),
    *cuts(
        "densenet",
        DenseNet,
        pictures,
        {
            "head": "classifier",
            "last": ("classifier", "features.4"),
            "upper": ("classifier", "features.3", "features.4"),
            "inside": ("classifier", "features.3.denselayer3"),
        },
    ),
    *cuts(
        "repvgg",
        RepVgg,
        pictures,
        {
            "head": "linear",
            "last": ("linear", "last:1:stages"),
            "upper": ("linear", "last:2:stages"),
        },
    ),
    *cuts(
        "darknet",
        Dark,
        lambda n: pictures(n, side=32),
        {
            "head": "heads",
            "last": ("heads", "lateral"),
            "upper": ("heads", "lateral", "last:2:backbone"),
        },
        loss=_both_scales,
    ),
]
