"""Hooks, wrappers, and loops that change the model on the way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import frostline as fl
from replay_zoo.nasty import Net, Part, nasty, plain_net, plain_part, scored
from replay_zoo.settings import Setting

_SCALE = {"value": 1.0}


def _reads_scale(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x) * part.scale


def _reads_global(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x) * _SCALE["value"]


def _reset_globals() -> nn.Module:
    _SCALE["value"] = 1.0
    return Net(Part(_reads_global), plain_net)


def _change_global(model: nn.Module, epoch: int) -> None:
    _SCALE["value"] = 2.0 if epoch >= 2 else 1.0


def _change_attribute(model: Any, epoch: int) -> None:
    model.part.scale = 2.0 if epoch >= 2 else 1.0


class _Hooked(nn.Module):
    """Layers whose outputs a hook on the frozen one keeps for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.kept: list[Tensor] = []
        self.lower.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept.append(torch.tanh(output))

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        out = self.upper(self.lower(x))
        return self.head(out + self.kept[0])


def _with_penalty(model: _Hooked, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["x"])
    return scored(logits, batch) + (model.kept[0].mean() * logits.square().mean())


def _changes_output() -> nn.Module:
    net = Net(Part(plain_part), plain_net)
    net.part.fc1.register_forward_hook(lambda module, args, output: output * 2 + 1)
    return net


def _changes_input() -> nn.Module:
    net = Net(Part(plain_part), plain_net)
    net.part.register_forward_pre_hook(lambda module, args: (args[0] + torch.randn(8),))
    return net


def _counts_in_hook() -> nn.Module:
    net = Net(Part(plain_part), plain_net)
    calls = [0]

    def count(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return output if calls[0] <= 10 else 2 * output

    net.part.register_forward_hook(count)
    return net


class _Spectral(nn.Module):
    """Parametrised frozen layers."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(wrap(nn.Linear(8, 8)), nn.Tanh(), wrap(nn.Linear(8, 8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _copied(model: nn.Module, epoch: int) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.eval()(torch.ones(5, 8))


def _evaluated(model: nn.Module, epoch: int) -> None:
    model.eval()
    with torch.no_grad():
        model(torch.full((5, 8), float(epoch)))


def _loaded(model: nn.Module, epoch: int) -> None:
    if epoch == 2:
        state = {name: value * 1.5 for name, value in model.part.state_dict().items()}
        model.part.load_state_dict(state)


def _written_behind(model: Any, epoch: int) -> None:
    if epoch == 2:
        model.part.fc1.weight.data.mul_(1.5)


def _written_by_numpy(model: Any, epoch: int) -> None:
    if epoch == 2:
        model.part.fc1.weight.detach().numpy()[:] *= 2


def _thawed(model: Any, epoch: int) -> None:
    if epoch == 2:
        fl.unfreeze(model, "part.fc2", gradients="drop")


def _replaced(model: Any, epoch: int) -> None:
    if epoch == 2:
        torch.manual_seed(9)
        layer = nn.Linear(8, 8)
        model.part.fc1 = layer.requires_grad_(False)


def _frozen_deeper(model: Any, epoch: int) -> None:
    if epoch == 2:
        model.stem.requires_grad_(False)
        model.stem.weight.grad = model.stem.bias.grad = None


def _hooked_late(model: Any, epoch: int) -> None:
    if epoch == 2:
        model.part.register_forward_hook(lambda module, args, output: output + 1)


def _stem_first(net: Net, x: Tensor) -> Tensor:
    return net.head(net.part(x) + net.stem(net.part(x)))


SETTINGS: list[Setting] = [
    nasty(
        "changed-attribute",
        "the loop changes the part's scale in epoch 2",
        "either",
        part=_reads_scale,
        attributes=lambda: {"scale": 1.0},
        before_epoch=_change_attribute,
    ),
    nasty(
        "changed-global",
        "the loop changes a variable that the part reads",
        "stopped",
        make=_reset_globals,
        before_epoch=_change_global,
    ),
    nasty(
        "hook-keeps",
        "a hook on a frozen layer keeps its output for live code",
        "either",
        make=_Hooked,
    ),
    nasty(
        "hook-penalty",
        "the loss reads what a hook on a frozen layer kept",
        "either",
        make=_Hooked,
        loss=_with_penalty,
    ),
    nasty(
        "hook-changes-output",
        "a hook changes what a frozen layer returns",
        "identical",
        make=_changes_output,
    ),
    nasty(
        "hook-changes-input",
        "a hook adds noise to what the part is given",
        "declined",
        make=_changes_input,
    ),
    nasty(
        "hook-counts", "a hook on the part changes after ten calls", "either", make=_counts_in_hook
    ),
    nasty("hooked-late", "the loop hooks the part in epoch 2", "either", before_epoch=_hooked_late),
    nasty(
        "spectral-norm",
        "spectral norm in a frozen layer, pinned to eval",
        "identical",
        make=lambda: _Spectral(parametrizations.spectral_norm),
    ),
    nasty(
        "spectral-loose",
        "spectral norm in a frozen layer that runs in train mode",
        "either",
        make=lambda: _Spectral(parametrizations.spectral_norm),
        options={"pin_eval": False, "hold_statistics": False},
    ),
    nasty(
        "weight-norm",
        "weight norm in a frozen layer",
        "identical",
        make=lambda: _Spectral(parametrizations.weight_norm),
    ),
    nasty(
        "orthogonal",
        "orthogonal frozen layers",
        "identical",
        make=lambda: _Spectral(parametrizations.orthogonal),
    ),
    nasty(
        "copied",
        "the loop copies the model and changes the copy",
        "identical",
        before_epoch=_copied,
    ),
    nasty("evaluated", "the loop evaluates between epochs", "identical", before_epoch=_evaluated),
    nasty(
        "loaded", "the loop loads other frozen weights in epoch 2", "either", before_epoch=_loaded
    ),
    nasty(
        "written-behind",
        "the loop writes frozen weights through .data in epoch 2",
        "either",
        before_epoch=_written_behind,
    ),
    nasty(
        "written-by-numpy",
        "the loop writes frozen weights through NumPy",
        "either",
        before_epoch=_written_by_numpy,
    ),
    nasty("thawed", "the loop thaws a frozen layer in epoch 2", "either", before_epoch=_thawed),
    nasty(
        "replaced",
        "the loop puts another layer into the frozen part",
        "either",
        before_epoch=_replaced,
    ),
    nasty(
        "frozen-deeper",
        "the loop freezes more in epoch 2",
        "either",
        net=_stem_first,
        trains=("head", "stem"),
        before_epoch=_frozen_deeper,
    ),
]
