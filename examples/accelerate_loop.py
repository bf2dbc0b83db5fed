"""Accelerate: gradient accumulation, a replayed backbone, and a state that knows what is frozen.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py

Real scans of scikit-learn, 8 × 8 pixels; a few seconds on one core.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.integrations.accelerate import keep_in_state, prepare


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    loader = DataLoader(TensorDataset(x[:1280], y[:1280]), batch_size=64, shuffle=True)

    backbone = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU())
    model = nn.Sequential(backbone, nn.Linear(256, 10))
    frozen = fl.freeze(model, all_but="1")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)

    # frostline's prepare is Accelerate's, which would hand a replay on as it is.
    model, optimizer, batches = prepare(accelerator, model, optimizer, fl.replay(model, loader))
    keep_in_state(accelerator, frozen)

    for epoch in range(5):
        model.train()
        for images, wanted in batches:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(images), wanted)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        accelerator.load_state(folder)  # refused if something else were frozen by now

    model.eval()
    with torch.no_grad():
        given, right = x[1280:].to(accelerator.device), y[1280:].to(accelerator.device)
        share = (model(given).argmax(1) == right).float().mean().item()
    accelerator.print(f"{share:.1%} right on digits that it has not seen")
    accelerator.print(frozen.verify())
    accelerator.print(batches.replayer.stats)


if __name__ == "__main__":
    main()
