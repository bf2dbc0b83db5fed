"""Unusual ways to call the model or its parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from replay_zoo.cuts import vectors
from replay_zoo.nasty import Net, Part, nasty, plain_part, scored
from replay_zoo.settings import Setting


def _checkpointed_head(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    lifted = checkpoint(lambda h: torch.tanh(net.stem(net.drop(h))), hidden, use_reentrant=False)
    return net.head(lifted)


def _checkpointed_whole(net: Net, x: Tensor) -> Tensor:
    return checkpoint(
        lambda value: net.head(net.drop(torch.tanh(net.stem(net.part(value))))),
        x,
        use_reentrant=False,
    )


def _mapped(part: Part, x: Tensor) -> Tensor:
    return vmap(lambda row: part.fc2(torch.tanh(part.fc1(row))))(x)


def _jacobian(part: Part, x: Tensor) -> Tensor:
    return vmap(torch.func.jacrev(lambda row: torch.tanh(part.fc1(row))))(x).sum(1)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


def _own_function(part: Part, x: Tensor) -> Tensor:
    return _Doubled.apply(plain_part(part, x))


def _own_function_live(net: Net, x: Tensor) -> Tensor:
    return net.head(_Doubled.apply(net.stem(net.part(x))))


def _forward_itself(net: Net, x: Tensor) -> Tensor:
    return net.head(net.drop(net.part.forward(x)))


def _functional_weights(net: Net, x: Tensor) -> Tensor:
    weights = {name: value * 2 for name, value in net.part.named_parameters()}
    return net.head(net.drop(functional_call(net.part, weights, (x,)) + net.part(x)))


def _no_modules(net: Net, x: Tensor) -> Tensor:
    hidden = torch.tanh(functional.linear(x, net.part.fc1.weight, net.part.fc1.bias))
    return net.head(net.drop(hidden))


def _without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = net.part(x)
    return net.head(net.drop(hidden))


def _in_inference(net: Net, x: Tensor) -> Tensor:
    with torch.inference_mode():
        hidden = net.part(x)
    return net.head(net.drop(hidden.clone()))


def _in_thread(net: Net, x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        hidden = pool.submit(net.part, x).result()
    return net.head(net.drop(hidden))


def _alternates(net: Net, x: Tensor) -> Tensor:
    first = net.part(x)
    return net.head(net.drop(first + net.part(x=x)))


class _Parts(nn.Module):
    """Methods of its own beside ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.upper(torch.tanh(self.lower(x))))

    def decode(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def _by_methods(model: _Parts, batch: dict[str, Tensor]) -> Tensor:
    return scored(model.decode(model.encode(batch["x"])), batch)


def _two_views(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return scored(model(batch["x"]), batch) + scored(model(batch["x"].flip(1)), batch)


def _teacher_pass(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        target = model(batch["x"]).softmax(-1)
    model.train()
    logits = model(batch["x"])
    return scored(logits, batch) + functional.kl_div(logits.log_softmax(-1), target)


def _rebuilds(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return scored(model(batch["x"]), batch) + (model(batch["x"]) - batch["x"][:, :3]).abs().mean()


def _augmented(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return scored(model(batch["x"] + 0.1 * torch.randn_like(batch["x"])), batch)


def _gradient_penalty(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    x = batch["x"].clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return scored(logits, batch) + gradient.square().sum()


def _autocast_outside(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return scored(model(batch["x"]).float(), batch)


def _heated(net: Net, x: Tensor, prototypes: Tensor) -> Tensor:
    return net.head(net.drop(net.part(x))) @ prototypes


def _with_prototypes(samples: int) -> dict[str, Tensor]:
    return {**vectors(samples), "prototypes": torch.randn(3, 3)}


def _prototype_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return scored(model(batch["x"], batch["prototypes"]), batch)


class _Hidden(nn.Module):
    """A frozen module in a plain list, which nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(8, 8).requires_grad_(False)]
        self.lower, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lower(torch.tanh(self.hidden[0](x))))


SETTINGS: list[Setting] = [
    nasty(
        "checkpointed-head",
        "the live part is checkpointed",
        "identical",
        net=_checkpointed_head,
        trains=("head", "stem"),
    ),
    nasty(
        "checkpointed-whole",
        "frozen and live are recomputed in the backward pass",
        "either",
        net=_checkpointed_whole,
        trains=("head", "stem"),
    ),
    nasty("mapped", "vmap over the samples", "either", part=_mapped),
    nasty("jacobian", "a jacobian as a feature", "either", part=_jacobian),
    nasty(
        "own-function", "an autograd function in the frozen part", "identical", part=_own_function
    ),
    nasty(
        "own-function-live",
        "an autograd function between live layers",
        "identical",
        net=_own_function_live,
        trains=("head", "stem"),
    ),
    nasty("forward-itself", "the part is called by .forward()", "either", net=_forward_itself),
    nasty(
        "functional-weights",
        "the part is called with other weights too",
        "either",
        net=_functional_weights,
    ),
    nasty("no-modules", "frozen weights are used without their module", "either", net=_no_modules),
    nasty(
        "without-gradients",
        "the frozen part runs under no_grad",
        "identical",
        net=_without_gradients,
    ),
    nasty("in-inference", "the frozen part runs in inference mode", "either", net=_in_inference),
    nasty("in-thread", "the frozen part runs in another thread", "either", net=_in_thread),
    nasty("alternates", "called by position, then by keyword", "either", net=_alternates),
    nasty(
        "by-methods",
        "the loop calls encode and decode, never the model",
        "identical",
        make=_Parts,
        loss=_by_methods,
    ),
    nasty(
        "two-views",
        "the model is called twice a step, with different inputs",
        "identical",
        loss=_two_views,
    ),
    nasty(
        "teacher-pass",
        "a pass in eval mode before the one that trains",
        "either",
        loss=_teacher_pass,
    ),
    nasty("rebuilds", "the loss reads the input", "identical", loss=_rebuilds),
    nasty("augmented", "the loop adds noise to the inputs", "declined", loss=_augmented),
    nasty(
        "gradient-penalty",
        "the loss needs gradients of the input",
        "either",
        loss=_gradient_penalty,
    ),
    nasty("autocast-outside", "the step runs under autocast", "identical", loss=_autocast_outside),
    nasty(
        "prototypes",
        "a tensor of the batch that has no samples",
        "identical",
        net=_heated,
        batch=_with_prototypes,
        loss=_prototype_loss,
    ),
    nasty("hidden", "a frozen module that is not registered", "either", make=_Hidden),
]
