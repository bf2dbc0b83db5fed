"""Rows of a tensor held while the others train."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import frostline as fl

HELD = slice(0, 6)


class Tagger(nn.Module):
    """An embedding, tied to the head if asked, and one matrix that trains as a whole."""

    def __init__(self, *, tied: bool = False, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, sparse=sparse)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids)).relu())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        ids = torch.arange(10).roll(step)
        nn.functional.cross_entropy(model(ids), ids).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().view(torch.int32).flatten().tolist()


@pytest.mark.parametrize(
    ("rows", "dim", "expected"),
    [
        pytest.param(slice(0, 3), 0, (0, 1, 2), id="slice"),
        pytest.param(slice(-2, None), 0, (8, 9), id="slice-from-the-end"),
        pytest.param(slice(None, None, 4), 0, (0, 4, 8), id="slice-with-step"),
        pytest.param(slice(3, 0, -1), 0, (1, 2, 3), id="slice-backwards"),
        pytest.param(4, 0, (4,), id="one"),
        pytest.param([7, 0, -1, 7], 0, (0, 7, 9), id="list"),
        pytest.param(range(2, 5), 0, (2, 3, 4), id="range"),
        pytest.param(torch.tensor([5, 3], dtype=torch.int32), 0, (3, 5), id="int-tensor"),
        pytest.param(torch.arange(10) % 5 == 0, 0, (0, 5), id="mask"),
        pytest.param([True, False, False, True], 1, (0, 3), id="mask-as-list-in-columns"),
        pytest.param(slice(1, 2), -1, (1,), id="last-dimension"),
    ],
)
def test_rows_are_named_in_many_ways(rows, dim, expected):
    model = Tagger()
    before = model.embed.weight.detach().clone()
    frozen = fl.freeze_rows(model, "embed.weight", rows, dim=dim)
    assert frozen.rows == {"embed.weight": expected}
    train(model, sgd(model))
    moved = model.embed.weight.detach() != before
    others = [n for n in range(before.shape[dim]) if n not in expected]
    assert not moved.index_select(dim, torch.tensor(expected)).any()
    assert moved.index_select(dim, torch.tensor(others)).any()
    assert frozen.verify().bytes == before.index_select(dim, torch.tensor(expected)).nbytes


@pytest.mark.parametrize(
    ("what", "rows", "options", "message"),
    [
        pytest.param("embed", [10], {}, "there is no row 10; it has 10 rows", id="beyond"),
        pytest.param("embed", [-11], {}, "there is no row -11", id="before"),
        pytest.param("embed", slice(0, 11), {}, "reaches beyond its 10 rows", id="slice-beyond"),
        pytest.param("embed", [], {}, "names no row", id="none"),
        pytest.param("embed", slice(5, 5), {}, "names no row", id="empty-slice"),
        pytest.param("embed", [False] * 10, {}, "names no row", id="empty-mask"),
        pytest.param("embed", [True] * 9, {}, r"shape \(10,\), got \(9,\)", id="short-mask"),
        pytest.param("embed", [0.5], {}, "whole numbers", id="floats"),
        pytest.param("embed", "0:3", {}, "give a slice, indices, or a mask", id="text"),
        pytest.param("embed", slice("a", "b"), {}, "no slice of whole numbers", id="bad-slice"),
        pytest.param("embed", [0], {"dim": 2}, "has no dimension 2", id="dimension"),
        pytest.param("embedding", [0], {}, "Nearest names: 'embed'", id="name"),
    ],
)
def test_mistakes_are_errors_that_name_them(what, rows, options, message):
    model = Tagger()
    with pytest.raises(fl.SelectorError, match=message):
        fl.freeze_rows(model, what, rows, **options)
    assert not model.embed._forward_pre_hooks


def test_rows_that_are_frozen_already_are_refused():
    model = Tagger()
    fl.freeze_rows(model, "embed", [1, 2])
    with pytest.raises(fl.PlanError, match="row 2 is frozen already"):
        fl.freeze_rows(model, "embed", [2, 3])
    fl.freeze_rows(model, "embed", [3])  # beside them is fine
    fl.freeze(model, "embed")
    with pytest.raises(fl.PlanError, match=r"embed\.weight is frozen as a whole already"):
        fl.freeze_rows(model, "embed", [5])


def test_tensors_without_content_are_refused():
    with pytest.raises(fl.PlanError, match="without content of its own"):
        fl.freeze_rows(nn.Linear(2, 2, device="meta"), "weight", [0])
    with pytest.raises(fl.PlanError, match="lazy module"):
        fl.freeze_rows(nn.LazyLinear(2), "weight", [0])


def test_pending_gradients_are_refused_or_dropped():
    model = Tagger()
    model(torch.arange(10)).sum().backward()
    with pytest.raises(fl.TransitionError, match="has a gradient"):
        fl.freeze_rows(model, "embed", HELD)
    fl.freeze_rows(model, "embed", HELD, gradients="drop")
    assert model.embed.weight.grad is None


OPTIMIZERS = {
    "SGD-momentum-decay": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD-fused": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.1, fused=True),
    "Adam-amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.1, weight_decay=0.1, amsgrad=True),
    "AdamW-foreach": lambda ps: torch.optim.AdamW(ps, lr=0.1, foreach=True),
    "AdamW-fused": lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
    "Muon": lambda ps: torch.optim.Muon([p for p in ps if p.ndim == 2], lr=0.1, weight_decay=0.1),
    "LBFGS": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=2),
    "Rprop": lambda ps: torch.optim.Rprop(ps, lr=0.1),
    "RMSprop-momentum": lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9),
    "Adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("tied", [False, True], ids=["single", "tied"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_rows_hold_under_every_optimizer(build, tied):
    model = Tagger(tied=tied)
    optimizer = build(list(model.parameters()))
    ids = torch.arange(10)

    def closure() -> torch.Tensor:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), ids)
        loss.backward()
        return loss

    optimizer.step(closure)  # there is momentum before the rows are frozen
    model.zero_grad()
    frozen = fl.freeze_rows(model, "embed", HELD)
    before = model.embed.weight.detach().clone()
    for _ in range(5):
        optimizer.step(closure)
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])
    assert (model.embed.weight[6:] != before[6:]).any()
    assert frozen.verify().ok


def test_the_gradient_of_held_rows_is_zero_and_inflates_no_norm():
    model, reference = Tagger(), Tagger()
    reference.load_state_dict(model.state_dict())
    fl.freeze_rows(model, "embed", HELD)
    for each in (model, reference):
        each(torch.arange(10)).sum().backward()
    expected = reference.embed.weight.grad.clone()
    expected[HELD] = 0
    assert model.embed.weight.grad.abs().sum() > 0
    assert torch.equal(model.embed.weight.grad, expected)


def test_sparse_gradients_lose_the_held_rows():
    model = Tagger(sparse=True)
    frozen = fl.freeze_rows(model, "embed", HELD)
    before = model.embed.weight.detach().clone()
    optimizer = torch.optim.SparseAdam([model.embed.weight], lr=0.1)
    model(torch.arange(10)).sum().backward()
    assert model.embed.weight.grad.is_sparse
    assert not model.embed.weight.grad.to_dense()[HELD].any()
    optimizer.step()
    assert (model.embed.weight[6:] != before[6:]).all()
    assert frozen.verify().ok


def torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
        pytest.param(torch_save, id="torch.save"),
    ],
)
@pytest.mark.parametrize("tied", [False, True], ids=["single", "tied"])
def test_a_copy_holds_its_rows(duplicate, tied):
    model = Tagger(tied=tied)
    frozen = fl.freeze_rows(model, "embed", HELD)
    made = duplicate(model)
    before = made.embed.weight.detach().clone()
    assert made.state_dict().keys() == model.state_dict().keys()
    train(made, sgd(made))
    assert made.embed.weight.grad[6:].any()
    assert not made.embed.weight.grad[HELD].any()
    assert bits(made.embed.weight[HELD]) == bits(before[HELD])
    assert bits(model.embed.weight) == bits(before)
    made.zero_grad()
    fl.unfreeze(made, "embed")  # the copy has no handle: a thaw of the tensor lets the rows go
    train(made, sgd(made))
    assert (made.embed.weight[HELD] != before[HELD]).any()
    assert frozen.verify().ok


def test_the_copy_of_a_copy_holds_before_any_forward():
    model = Tagger()
    fl.freeze_rows(model, "embed", HELD)
    made = copy.deepcopy(pickle.loads(pickle.dumps(model)))
    made.embed.weight.grad = torch.ones_like(made.embed.weight)
    sgd(made).step()
    assert bits(made.embed.weight[HELD]) == bits(model.embed.weight[HELD])
    assert (made.embed.weight[6:] != model.embed.weight[6:]).all()


def test_rows_follow_dtype_and_come_back_unrounded():
    model = Tagger()
    before = model.embed.weight.detach().clone()
    frozen = fl.freeze_rows(model, "embed", HELD)
    model.to(torch.bfloat16)
    train(model, sgd(model))
    assert torch.equal(model.embed.weight[HELD], before[HELD].to(torch.bfloat16))
    assert frozen.verify().ok
    model.float()
    model(torch.arange(10))
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])


def test_rows_survive_a_visit_to_meta():
    model = Tagger()
    before = model.embed.weight.detach().clone()
    fl.freeze_rows(model, "embed", HELD)
    model.to("meta")
    model(torch.arange(10, device="meta"))
    model.to_empty(device="cpu")
    model(torch.arange(10))
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("tied", [False, True], ids=["single", "tied"])
def test_rows_stay_what_they_are_when_a_checkpoint_is_loaded(assign, tied):
    model, other = Tagger(tied=tied), Tagger(tied=tied)
    before = model.embed.weight.detach().clone()
    frozen = fl.freeze_rows(model, "embed", HELD)
    model.load_state_dict(copy.deepcopy(other.state_dict()), strict=True, assign=assign)
    for weight in (model.embed.weight, model.head.weight)[: 1 + tied]:
        assert bits(weight[HELD]) == bits(before[HELD])
        assert bits(weight[6:]) == bits(other.embed.weight[6:])
    train(model, sgd(model))
    assert not model.embed.weight.grad[HELD].any()
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])
    assert frozen.verify().ok


def test_what_is_written_by_other_means_is_seen_and_put_back():
    model = Tagger()
    frozen = fl.freeze_rows(model, "embed", HELD)
    before = model.embed.weight.detach().clone()
    model.embed.weight.data[2, 3] += 1
    with pytest.raises(fl.FrozenChangedError) as caught:
        frozen.verify()
    (change,) = caught.value.changes
    assert (change.name, change.elements, change.moved) == ("embed.weight[0:6]", 24, 1)
    assert change.max_abs == pytest.approx(1)
    assert bits(model.state_dict()["embed.weight"]) == bits(before)  # never in a checkpoint
    model.embed.weight.data[2, 3] += 1
    model(torch.tensor([0]))
    assert frozen.verify().ok


def test_undo_lets_go_and_leaves_nothing_behind():
    model = Tagger(tied=True)
    hooks = [
        (m._forward_pre_hooks, m._state_dict_pre_hooks, m._load_state_dict_post_hooks)
        for m in (model.embed, model.head)
    ]
    before = model.embed.weight.detach().clone()
    with fl.freeze_rows(model, "embed", HELD) as frozen:
        assert all(len(held) == 1 for each in hooks for held in each)
        assert frozen.names == ("embed.weight",)
    assert all(len(held) == 0 for each in hooks for held in each)
    assert frozen.names == ()
    assert str(frozen) == "embed.weight, dim 0, rows 0:6 (6 of 10) (undone)"
    with pytest.raises(fl.TransitionError, match="nothing to verify"):
        frozen.verify()
    frozen.undo()
    train(model, sgd(model))
    assert (model.embed.weight[HELD] != before[HELD]).any()


@pytest.mark.parametrize("rows_first", [True, False], ids=["rows-undone-first", "whole-first"])
def test_a_freeze_of_the_whole_tensor_stands_on_its_own(rows_first):
    model = Tagger()
    before = model.embed.weight.detach().clone()
    rows = fl.freeze_rows(model, "embed", HELD)
    whole = fl.freeze(model, "embed")
    train(model, sgd(model))
    assert bits(model.embed.weight) == bits(before)
    assert rows.verify().ok
    assert whole.verify().ok
    first, second = (rows, whole) if rows_first else (whole, rows)
    first.undo()
    model.zero_grad()
    train(model, sgd(model))
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])
    assert torch.equal(model.embed.weight, before) == rows_first
    second.undo()
    model.zero_grad()
    train(model, sgd(model))
    assert (model.embed.weight[HELD] != before[HELD]).any()


def test_a_thaw_lifts_the_rows_and_its_undo_holds_them_again():
    model = Tagger()
    rows = fl.freeze_rows(model, "embed", HELD)
    before = model.embed.weight.detach().clone()
    thawed = fl.unfreeze(model, "embed")
    assert rows.names == ()
    train(model, sgd(model))
    assert (model.embed.weight[HELD] != before[HELD]).any()
    now = model.embed.weight.detach().clone()
    model.zero_grad()
    thawed.undo()
    assert rows.names == ("embed.weight",)
    train(model, sgd(model))
    assert bits(model.embed.weight[HELD]) == bits(now[HELD])


def test_a_plan_that_trains_the_tensor_keeps_its_rows():
    model = Tagger()
    rows = fl.freeze_rows(model, "embed", HELD)
    fl.freeze(model, all_but="embed")
    train(model, sgd(model))
    assert rows.verify().ok


def test_a_hold_keeps_no_model_alive():
    model = Tagger()
    frozen = fl.freeze_rows(model, "embed", HELD)
    dead = weakref.ref(model.embed)
    gc.disable()
    try:
        del model
        assert dead() is None  # without the cycle collector: large models are freed at once
    finally:
        gc.enable()
    with pytest.raises(fl.FrozenChangedError):
        frozen.verify()


def test_several_tensors_at_once_and_the_table():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    frozen = fl.freeze_rows(model, "weight", [0, 2, 3], dim=1)
    assert str(frozen) == (
        "0.weight, dim 1, rows 0, 2:4 (3 of 4)\n1.weight, dim 1, rows 0, 2:4 (3 of 4)"
    )
    assert frozen.verify().parameters == 2


@pytest.mark.slow
def test_a_compiled_model_holds_its_rows():
    model = Tagger()
    frozen = fl.freeze_rows(model, "embed", HELD)
    before = model.embed.weight.detach().clone()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        compiled(torch.arange(10)).sum().backward()
        optimizer.step()
    assert bits(model.embed.weight[HELD]) == bits(before[HELD])
    assert (model.embed.weight[6:] != before[6:]).any()
    assert frozen.verify().ok
