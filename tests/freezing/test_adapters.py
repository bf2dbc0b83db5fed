"""Adapters over a frozen base, in PEFT's manner and with its names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import frostline as fl


class Lora(nn.Module):
    """An adapter over a layer, in PEFT's manner and with its names."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.5)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.lora_B["default"](low)

    def merge(self) -> None:
        delta = self.lora_B["default"].weight @ self.lora_A["default"].weight
        self.base_layer.weight.data += delta


class SavedBeside(nn.Module):
    """PEFT's modules_to_save: a second copy that trains in place of the original."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original_module = original
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(original)})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)


def adapted() -> nn.Module:
    """As PEFT leaves a model: everything below ``base_model.model``."""
    inner = nn.ModuleDict({"proj": Lora(nn.Linear(4, 4)), "head": SavedBeside(nn.Linear(4, 2))})
    peft = nn.Module()
    peft.base_model = nn.Module()
    peft.base_model.model = inner
    return peft


def test_adapters_train_over_a_frozen_base():
    model = adapted()
    inner = model.base_model.model
    frozen = fl.freeze(model, all_but=["lora_A", "lora_B", "modules_to_save"])
    assert frozen.names == (
        "base_model.model.proj.base_layer.weight",
        "base_model.model.proj.base_layer.bias",
        "base_model.model.head.original_module.weight",
        "base_model.model.head.original_module.bias",
    )
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        inner.head(inner.proj(torch.randn(5, 4))).sum().backward()
        optimizer.step()
    # The adapter's dropout belongs to what trains; the base is at rest.
    assert inner.proj.lora_dropout["default"].training
    assert not inner.proj.base_layer.training
    assert frozen.verify().ok
    inner.proj.merge()
    with pytest.raises(fl.FrozenChangedError, match=r"proj\.base_layer\.weight: 16 of 16"):
        frozen.verify()


def test_by_name_an_adapted_layer_is_base_and_adapter():
    model = adapted()
    assert len(fl.select(model, "proj").names) == 4
    assert len(fl.select(model, "proj.base_layer").names) == 2
    assert len(fl.select(model, "head").names) == 4  # the original and the copy that trains
