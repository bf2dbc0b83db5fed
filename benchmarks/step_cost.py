"""What Frostline adds to a training step: way four by hand against fl.freeze + fl.optimizer.

Target: at most 1 % more a step, on a small ViT whose last block and head train.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from _report import heading, interleave, median_ratio, medians, table, verdict
from torch import Tensor, nn

import frostline as fl

WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 192, 3, 8, 8, 64, 10
BATCH, ROUNDS = 16, 300


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out: (batch, tokens, width)."""
        batch, tokens, _ = x.shape
        parts = self.query_key_value(self.norm1(x)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.feed_forward(self.norm2(x))


class SmallViT(nn.Module):
    """A ViT for 64 x 64 images: 8 blocks of width 192, 64 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) for images (batch, 3, 64, 64)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions)[:, 0]))


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """A measure of one whole training step, model.train() included, as loops call it."""
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    labels = torch.arange(BATCH) % CLASSES

    def step() -> float:
        start = perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return perf_counter() - start

    return step


def by_hand(model: SmallViT, trained: int) -> Callable[[], float]:
    """Way four as people write it: flags, eval mode of what is frozen, a filtered optimizer."""
    model.train()
    model.requires_grad_(False)
    model.patches.eval()
    for at, block in enumerate(model.blocks):
        block.requires_grad_(at >= DEPTH - trained).train(at >= DEPTH - trained)
    model.norm.eval()
    model.head.requires_grad_(True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return stepper(model, torch.optim.AdamW(trainable, lr=1e-4))


def with_frostline(model: SmallViT, trained: int) -> Callable[[], float]:
    """The same in two calls."""
    model.train()
    trains = ["head", fl.last(trained, "blocks")] if trained else "head"
    fl.freeze(model, all_but=trains)
    return stepper(model, fl.optimizer(torch.optim.AdamW, model, lr=1e-4))


def main() -> None:
    """Print one row for the head alone and one for the last block and the head."""
    heading(
        "Cost of a step",
        f"A ViT of {DEPTH} blocks, width {WIDTH}, batch {BATCH}, AdamW; {ROUNDS} interleaved rounds"
        " of forward, backward and optimizer step. The third column is the same hand-written step"
        " in a second copy: how much two equal things differ here.",
    )
    rows = []
    for label, trained in (("head alone", 0), ("last block and head", 1)):
        torch.manual_seed(0)
        base = SmallViT()
        taken = interleave(
            {
                "by hand": by_hand(copy.deepcopy(base), trained),
                "again": by_hand(copy.deepcopy(base), trained),
                "fl": with_frostline(copy.deepcopy(base), trained),
            },
            rounds=ROUNDS,
            warmup=20,
        )
        middle = medians(taken)
        more = median_ratio(taken, "fl", "by hand") - 1
        rows.append(
            [
                label,
                f"{middle['by hand'] * 1e3:.3f}",
                f"{median_ratio(taken, 'again', 'by hand') - 1:+.2%}",
                f"{middle['fl'] * 1e3:.3f}",
                f"{more:+.2%}",
                f"at most +1 %: {verdict(more, 0.01)}",
            ]
        )
    table(["trained", "by hand, ms", "by hand again", "fl, ms", "more a step", "target"], rows)


if __name__ == "__main__":
    main()
