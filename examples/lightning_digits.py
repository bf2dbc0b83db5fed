"""Lightning: first the head, then the last block too; replayed, guarded, proven.

    python examples/lightning_digits.py

The LightningModule is written as ever. Real scans of scikit-learn, 8 × 8 pixels; a few seconds.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from frostline.integrations.lightning import FrostlineCallback


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 128)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128), nn.GELU(), nn.Dropout(0.1))
            for _ in range(4)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # All parameters: the callback takes out what is frozen and puts in what thaws.
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, validate = torch.utils.data.random_split(data, [1280, len(data) - 1280])

    callback = FrostlineCallback(
        schedule=[
            {"epoch": 0, "train": ["head"]},
            {"epoch": 3, "train": ["head", "blocks.3"]},
        ],
        replay=True,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=6,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Digits(),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(validate, batch_size=64),
    )
    print(f"accuracy: {trainer.callback_metrics['accuracy']:.1%}")
    for row in callback.freezer.timeline():
        print(f"from step {row.step}: {len(row.frozen)} parts frozen")
    print(callback.proof)
    print(callback.replayer.stats)


if __name__ == "__main__":
    main()
