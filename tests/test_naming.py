from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import Net, SharedStorage, TiedLm, Vit

from frostline.naming import canonical_keys, memory_span, take_inventory, tensor_bytes, walk_modules


class DistributedDataParallel(nn.Module):
    """Stands for torch's class of this name, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FsdpUnit(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


def wrapped_inside() -> nn.Module:
    model = Net(1)
    model.layers[0] = FsdpUnit(model.layers[0])
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda: torch.compile(Net(1), backend="eager"), id="compile"),
        pytest.param(lambda: DistributedDataParallel(Net(1)), id="ddp"),
        pytest.param(
            lambda: DistributedDataParallel(torch.compile(Net(1), backend="eager")),
            id="ddp-of-compile",
        ),
        pytest.param(lambda: nn.DataParallel(Net(1)), id="data-parallel"),
        pytest.param(lambda: torch.optim.swa_utils.AveragedModel(Net(1)), id="averaged"),
        pytest.param(wrapped_inside, id="wrapped-layer"),
    ],
)
def test_wrapper_prefixes_are_invisible(wrap):
    names = [group.name for group in take_inventory(wrap()).groups]
    assert names == [group.name for group in take_inventory(Net(1)).groups]


def test_module_is_a_fair_name_for_an_own_attribute():
    model = nn.Module()
    model.module = nn.Linear(2, 2, bias=False)
    assert take_inventory(model).groups[0].name == "module.weight"


def test_own_parameters_come_before_the_childrens():
    names = [group.name for group in take_inventory(Vit()).groups]
    assert names[:3] == ["cls_token", "pos_embed", "blocks.0.weight"]


def test_a_tied_parameter_is_one_group_with_two_names():
    tied = take_inventory(TiedLm()).groups[0]
    assert [alias.name for alias in tied.aliases] == ["transformer.wte.weight", "lm_head.weight"]
    assert len(tied.named) == 1
    assert (tied.numel, tied.nbytes) == (24, 96)


def test_parameters_on_one_memory_are_one_group():
    groups = take_inventory(SharedStorage()).groups
    assert [list(group.named) for group in groups] == [
        ["a.weight", "b.weight"],
        ["c.weight"],
        ["c.bias"],
    ]
    assert (groups[0].numel, groups[0].nbytes) == (16, 64)


def test_views_side_by_side_are_not_aliases():
    flat = torch.zeros(12)
    model = nn.Module()
    model.a, model.b, model.c = (nn.Parameter(flat[i : i + 4]) for i in (0, 4, 8))
    assert len(take_inventory(model).groups) == 3


def test_overlap_in_the_middle_joins():
    flat = torch.zeros(12)
    model = nn.Module()
    model.a, model.b, model.c = (nn.Parameter(flat[i : i + 5]) for i in (0, 4, 7))
    (group,) = take_inventory(model).groups
    assert group.nbytes == 48


def test_meta_tensors_are_told_apart():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert len(take_inventory(model).groups) == 4


def test_a_shared_module_has_all_its_names():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert [name for name, _ in walk_modules(model)] == ["", "a", "b"]
    assert [a.name for a in take_inventory(model).groups[0].aliases] == ["a.weight", "b.weight"]


def test_a_back_reference_ends():
    parent, child = nn.Module(), nn.Module()
    parent.child = child
    child.parent = parent
    assert [name for name, _ in walk_modules(parent)] == ["", "child"]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        pytest.param(["module.a", "module.b"], ["a", "b"], id="ddp"),
        pytest.param(["module.a", "b"], ["module.a", "b"], id="not-all"),
        pytest.param(["_orig_mod.a.w"], ["a.w"], id="compile"),
        pytest.param(["l._checkpoint_wrapped_module.w"], ["l.w"], id="checkpointing"),
        pytest.param([], [], id="empty"),
    ],
)
def test_canonical_keys(keys, names):
    assert canonical_keys(keys) == names


@pytest.mark.parametrize(
    ("tensor", "nbytes"),
    [
        pytest.param(torch.zeros(3, 4), 48, id="plain"),
        pytest.param(torch.zeros(0, 4), 0, id="empty"),
        pytest.param(torch.zeros(3, dtype=torch.bfloat16), 6, id="bf16"),
        pytest.param(torch.zeros(5, device="meta"), 20, id="meta"),
        pytest.param(nn.LazyLinear(2).weight, 0, id="lazy"),
        pytest.param(
            torch.sparse_coo_tensor(
                [[0, 2]], [1.0, 2.0], (4,), check_invariants=True, is_coalesced=True
            ),
            2 * 8 + 2 * 4,
            id="sparse",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_tensor_bytes(tensor, nbytes):
    assert tensor_bytes(tensor) == nbytes


def test_memory_span_of_a_strided_view():
    base = torch.zeros(4, 4)
    _, start, end = memory_span(base[1:, ::2])
    assert (start, end) == (16, 16 + (2 * 4 + 2 + 1) * 4)
