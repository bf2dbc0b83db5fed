"""A ResNet with BatchNorm, built and named as timm does: the last stage and the head train.

    python examples/resnet_batchnorm.py

A frozen BatchNorm stands still here: its scale, and its statistics too, whatever ``model.train()``
says. Real scans of scikit-learn, 8 × 8 pixels; a few seconds on one core.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            None
            if inputs == outputs and stride == 1
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for index, width in enumerate(widths, 1):
            stage = nn.Sequential(
                BasicBlock(before, width, 1 if index == 1 else 2), BasicBlock(width, width, 1)
            )
            self.add_module(f"layer{index}", stage)
            before = width
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    # Batches of one size, a multiple of 32: those are replayed to the last bit.
    loader = DataLoader(TensorDataset(x[:1280], y[:1280]), 64, shuffle=True)

    model = ResNet()
    frozen = fl.freeze(model, all_but=["layer3", "fc"])
    statistics = model.layer1[0].bn1.running_mean.clone()
    optimizer = fl.optimizer(
        torch.optim.AdamW, model, lr=3e-3, weight_decay=0.05, no_decay=("bn1", "bn2")
    )
    batches = fl.replay(model, loader)
    for epoch in range(4):
        model.train()
        for images, wanted in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), wanted)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

    model.eval()
    with torch.no_grad():
        right = (model(x[1280:]).argmax(1) == y[1280:]).float().mean().item()
    print(f"{right:.1%} right on digits that it has not seen")
    print("statistics of a frozen BatchNorm as before:", end=" ")
    print(torch.equal(statistics, model.layer1[0].bn1.running_mean))
    print(frozen.verify())
    print(batches.replayer.stats)


if __name__ == "__main__":
    main()
