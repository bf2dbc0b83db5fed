"""Plain PyTorch: a network that knows the digits 0 to 4 learns 5 to 9 with its backbone frozen.

    python examples/plain_pytorch.py

Real scans of scikit-learn, 8 × 8 pixels; a few seconds on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl


def digits(first: int) -> tuple[DataLoader, Tensor, Tensor]:
    """Five digits from ``first`` on: a loader to train on; pixels and labels to test with."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels) - first
    chosen = (y >= 0) & (y < 5)
    x, y = x[chosen], y[chosen]
    cut = int(0.8 * len(x))
    loader = DataLoader(TensorDataset(x[:cut], y[:cut]), batch_size=32, shuffle=True)
    return loader, x[cut:], y[cut:]


def network() -> nn.Module:
    backbone = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
    )
    return nn.Sequential(backbone, nn.Linear(32 * 16, 5))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    model = network()

    # The model that somebody else has trained.
    loader, x, y = digits(first=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(3):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    print(f"digits 0 to 4: {accuracy(model, x, y):.1%} right")

    # Yours: everything frozen but a new head.
    optimizer.zero_grad()
    loader, x, y = digits(first=5)
    model[1] = nn.Linear(32 * 16, 5)
    frozen = fl.freeze(model, all_but="1")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=3e-3)
    with fl.guard(model, optimizer):
        for _ in range(8):
            model.train()
            for images, labels in fl.replay(model, loader):  # the backbone computes once
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()
                optimizer.step()
    print(f"digits 5 to 9: {accuracy(model, x, y):.1%} right")
    print(frozen.verify())
    print(fl.replay(model, loader).replayer.stats)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.safetensors"
        fl.save_trained(model, path)
        print(f"what was trained: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
