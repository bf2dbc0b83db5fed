"""Where the frost line runs: small models are traced, and the cut is held against a table."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cutting import WIDTH, Wired, body, cut_of, linear, sequential, told, trained
from torch import Tensor, nn

ELSEWHERE = torch.ones(WIDTH)


@dataclass(frozen=True, kw_only=True)
class Case:
    model: Callable[[], nn.Module]
    planned: dict[str, str]
    refused: dict[str, str] = field(default_factory=dict)
    needed: tuple[bool, ...] = (False,)
    hidden: tuple[int, ...] = ()
    args: Callable[[], tuple[Any, ...]] = lambda: (torch.randn(32, WIDTH),)


def two() -> tuple[Tensor, Tensor]:
    return torch.randn(32, WIDTH), torch.randn(32, WIDTH)


def branches(model: Any, x: Tensor) -> Tensor:
    return model.fc(x) if x.sum().item() > 0 else model.fc(-x)


def branches_between(model: Any, x: Tensor) -> Tensor:
    factor = 2 if model.gate(x).mean().item() > 0 else 1
    return model.head(model.body(x) * factor)


def leaves_aside(model: Any, x: Tensor) -> Tensor:
    model.aside = model.fc(x)
    return model.fc(model.aside)


def uses_what_is_left(model: Any, x: Tensor) -> Tensor:
    return model.head(model.body(x)) + model.body.aside


def draws_in_python(model: Any, x: Tensor) -> Tensor:
    return model.fc(x) * random.random()


def hooked(*, deep: bool) -> nn.Module:
    model = trained(nn.Sequential(nn.Sequential(linear(), nn.Tanh()), linear()), "1")
    (model[0][0] if deep else model[0]).register_forward_hook(lambda *_: None)
    return model


def u_net(model: Any, x: Tensor) -> Tensor:
    one = model.down1(x)
    other = model.down2(one)
    unused = model.down3(other)
    assert unused.shape == x.shape
    return model.head(torch.cat([one, other], 1))


CASES = {
    "prefix": Case(
        model=lambda: sequential(linear(), nn.Tanh(), linear(), linear(), trains="3"),
        planned={"0": "skipped", "1": "skipped", "2": "kept"},
    ),
    "maximal": Case(
        model=lambda: sequential(nn.Sequential(linear(), linear()), linear(), trains="1"),
        planned={"0": "kept"},
    ),
    "nothing-trains": Case(
        model=lambda: nn.Sequential(linear(), linear()).requires_grad_(False),
        planned={"the model": "kept"},
    ),
    "all-trains": Case(model=lambda: nn.Sequential(linear(), linear()), planned={}, needed=(True,)),
    "shared-frozen-then-live": Case(
        model=lambda: trained(
            Wired(lambda m, x: m.fc(m.head(m.fc(x))), fc=linear(), head=linear())
        ),
        planned={"fc": "kept"},
    ),
    "shared-twice-frozen": Case(
        model=lambda: trained(
            Wired(lambda m, x: m.head(m.fc(m.fc(x))), fc=linear(), head=linear())
        ),
        planned={"fc": "skipped", "fc (call 2)": "kept"},
    ),
    "one-of-a-tuple": Case(
        model=lambda: trained(
            Wired(
                lambda m, x: m.head(m.pair(x)[1]),
                pair=Wired(lambda m, x: (m.a(x), m.b(x)), a=linear(), b=linear()),
                head=linear(),
            )
        ),
        planned={"pair": "skipped kept"},
    ),
    "glue-before-frozen": Case(
        model=lambda: trained(
            Wired(lambda m, x: m.head(m.b(m.a(x) * m.scale)), a=linear(), b=linear(), head=linear())
        ),
        planned={"a": "skipped", "b": "kept"},
    ),
    "glue-before-live": Case(
        model=lambda: trained(
            Wired(lambda m, x: m.head(m.a(x).tanh() + x), a=linear(), head=linear())
        ),
        planned={"a": "kept"},
        needed=(True,),
    ),
    "in-place-relu": Case(
        model=lambda: sequential(linear(), nn.ReLU(inplace=True), linear(), trains="2"),
        planned={"0": "skipped", "1": "kept"},
    ),
    "in-place-on-the-batch": Case(
        model=lambda: sequential(nn.ReLU(inplace=True), linear(), linear(), trains="2"),
        planned={"1": "kept"},
        refused={"0": "it writes into the batch that it is given"},
        needed=(True,),
    ),
    "side-channel": Case(
        model=lambda: trained(
            Wired(uses_what_is_left, body=Wired(leaves_aside, fc=linear()), head=linear())
        ),
        planned={"body.fc": "kept", "body.fc (call 2)": "kept"},
        refused={"body": "a value from inside is used outside, past its output"},
    ),
    "bool-mask": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x[x[:, 0] > -9.0]))),
        planned={},
        refused={"body": "it groups rows by their content (index), as mixtures of experts do"},
        needed=(True,),
    ),
    "nonzero": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x) + (x > 0).nonzero().sum())),
        planned={"body.fc": "kept"},
        refused={"body": "it groups rows by their content (nonzero), as mixtures of experts do"},
        needed=(True,),
    ),
    "indices-are-no-mask": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x[:, torch.arange(WIDTH)]))),
        planned={"body": "kept"},
    ),
    "detached-live-value": Case(
        model=lambda: trained(
            Wired(lambda m, x: m.fc(m.head(x).detach()), fc=linear(), head=linear())
        ),
        planned={},
        needed=(True,),
    ),
    "branch-inside": Case(
        model=lambda: trained(body(branches)),
        planned={"body.fc": "kept"},
        refused={"body": "it branches on content (_local_scalar_dense)"},
        needed=(True,),
    ),
    "branch-on-a-weight": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x) * (2 if m.scale.sum().item() > 0 else 1))),
        planned={"body": "kept"},
    ),
    "tolist-inside": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x) * len(x[0].tolist()))),
        planned={"body.fc": "kept"},
        refused={"body": "it branches on content (tolist)"},
        needed=(True,),
    ),
    "branch-between": Case(
        model=lambda: trained(Wired(branches_between, gate=linear(), body=linear(), head=linear())),
        planned={"gate": "kept", "body": "kept"},
    ),
    "identity": Case(
        model=lambda: sequential(nn.Identity(), linear(), linear(), trains="2"),
        planned={"1": "kept"},
    ),
    "handed-through": Case(
        model=lambda: trained(
            Wired(
                lambda m, x: m.head(torch.add(*m.body(x))),
                body=Wired(lambda m, x: (x, m.fc(x)), fc=linear()),
                head=linear(),
            )
        ),
        planned={"body": "handed kept"},
        needed=(True,),
    ),
    "frozen-middle": Case(
        model=lambda: trained(nn.Sequential(linear(), linear(), linear()), "0", "2"),
        planned={},
        needed=(True,),
    ),
    "two-towers": Case(
        model=lambda: trained(
            Wired(lambda m, x, y: m.head(m.a(x) + m.b(y)), a=linear(), b=linear(), head=linear())
        ),
        planned={"a": "kept", "b": "kept"},
        needed=(False, False),
        args=two,
    ),
    "one-tower-trains": Case(
        model=lambda: trained(Wired(lambda m, x, y: m.a(x) + m.b(y), a=linear(), b=linear()), "b"),
        planned={"a": "kept"},
        needed=(False, True),
        args=two,
    ),
    "encoder-decoder": Case(
        model=lambda: trained(
            Wired(
                lambda m, x, y: m.decoder(y, m.encoder(x)),
                encoder=nn.Sequential(linear(), nn.Tanh(), linear()),
                decoder=Wired(lambda m, y, memory: m.fc(y) @ memory.T, fc=linear()),
            ),
            "decoder",
        ),
        planned={"encoder": "kept"},
        needed=(False, True),
        args=two,
    ),
    "hook": Case(
        model=lambda: hooked(deep=False),
        planned={"0.0": "skipped", "0.1": "kept"},
        refused={"0": "a hook hangs on it, which would not run"},
        needed=(True,),
    ),
    "hook-inside": Case(
        model=lambda: hooked(deep=True),
        planned={"0.1": "kept"},
        refused={
            "0": "a hook hangs on it, which would not run",
            "0.0": "a hook hangs on it, which would not run",
        },
        needed=(True,),
    ),
    "u-net": Case(
        model=lambda: trained(
            Wired(
                u_net,
                down1=linear(),
                down2=linear(),
                down3=linear(),
                head=nn.Linear(2 * WIDTH, 4),
            )
        ),
        planned={"down1": "kept", "down2": "kept", "down3": "skipped"},
    ),
    "dropout": Case(
        model=lambda: sequential(linear(), nn.Dropout(0.5), linear(), linear(), trains="3"),
        planned={"0": "kept"},
        refused={
            "1": "it draws random numbers, as it runs in train mode: set its rate to 0, or put 1 in"
            " eval mode after each model.train()"
        },
    ),
    "dropout-at-rate-0": Case(
        model=lambda: sequential(linear(), nn.Dropout(0.0), linear(), trains="2"),
        planned={"0": "kept"},
    ),
    "batch-norm-in-train-mode": Case(
        model=lambda: sequential(linear(), nn.BatchNorm1d(WIDTH), linear(), trains="2"),
        planned={"0": "kept"},
        refused={"1": "its buffer 'running_mean' changes as it runs"},
    ),
    "batch-norm-in-eval-mode": Case(
        model=lambda: sequential(linear(), nn.BatchNorm1d(WIDTH).eval(), linear(), trains="2"),
        planned={"0": "skipped", "1": "kept"},
    ),
    "random-in-python": Case(
        model=lambda: trained(body(draws_in_python)),
        planned={"body.fc": "kept"},
        refused={"body": "it draws random numbers of Python or NumPy"},
    ),
    "tensor-from-elsewhere": Case(
        model=lambda: trained(body(lambda m, x: m.fc(x) * ELSEWHERE)),
        planned={"body.fc": "kept"},
        refused={"body": "it reads a tensor that is neither its input nor its own"},
    ),
    "opaque-output": Case(
        model=lambda: trained(
            Wired(
                lambda m, x: m.head(m.body(x)[1].y),
                body=Wired(lambda m, x: (x + 1, SimpleNamespace(y=m.fc(x))), fc=linear()),
                head=linear(),
            )
        ),
        planned={"body.fc": "kept"},
        refused={"body": "it returns an object of class SimpleNamespace, which can't be made anew"},
    ),
    "view-of-its-input": Case(
        model=lambda: trained(
            Wired(
                lambda m, x: m.head(torch.cat(m.body(x), 1)),
                body=Wired(lambda m, x: (m.fc(x), x[:, :4]), fc=linear()),
                head=nn.Linear(WIDTH + 4, 4),
            )
        ),
        planned={"body.fc": "kept"},
        refused={"body": "it returns a view of something that it did not make"},
        needed=(True,),
    ),
    "tensor-in-an-object": Case(
        model=lambda: trained(body(lambda m, box: m.fc(box.x))),
        planned={"body": "kept"},
        hidden=(0,),
        args=lambda: (SimpleNamespace(x=torch.randn(32, WIDTH)),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cut(name: str) -> None:
    case = CASES[name]
    cut = cut_of(case.model(), *case.args())
    assert told(cut) == case.planned
    assert {str(place): why for place, why in cut.refused.items()} == case.refused
    assert cut.needed_inputs == case.needed
    assert cut.hidden_inputs == case.hidden
    assert cut.keeps_something == ("kept" in " ".join(case.planned.values()))
