from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from torch import nn

from frostline.report.records import model_records, module_types
from frostline.report.tree import Node, TensorRecord, Totals, build_tree, is_repeat, runs


def record(
    name: str,
    *shape: int,
    kind: Literal["parameter", "buffer"] = "parameter",
    dtype: str = "float32",
    frozen: bool | None = False,
    same_as: str | None = None,
) -> TensorRecord:
    elements = 1
    for size in shape:
        elements *= size
    return TensorRecord(
        name=name,
        kind=kind,
        shape=shape,
        dtype=dtype,
        elements=elements,
        nbytes=4 * elements,
        frozen=frozen,
        same_as=same_as,
    )


def outline(node: Node) -> dict[str, object]:
    """Names alone: a module's tensors and children, nested."""
    tensors: dict[str, object] = dict.fromkeys((r.leaf for r in node.tensors), "tensor")
    return tensors | {child.name: outline(child) for child in node.children}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param(["scale"], {"scale": "tensor"}, id="held by the root"),
        pytest.param(
            ["a.b.c.w", "a.v"],
            {"a": {"v": "tensor", "b": {"c": {"w": "tensor"}}}},
            id="modules without tensors of their own",
        ),
        pytest.param(
            ["layer.10.w", "layer.2.w"],
            {"layer": {"10": {"w": "tensor"}, "2": {"w": "tensor"}}},
            id="the order given is kept",
        ),
        pytest.param(
            ["a", "a.b"], {"a": {"b": "tensor"}}, id="a name that is a tensor and a module"
        ),
    ],
)
def test_dots_make_the_tree(names: list[str], expected: dict[str, object]) -> None:
    assert outline(build_tree([record(name, 1) for name in names])) == expected


def test_paths_and_types_reach_down() -> None:
    tree = build_tree([record("a.b.w", 1)], {"": "Net", "a.b": "Linear"})
    assert (tree.path, tree.type_name) == ("", "Net")
    child = tree.children[0]
    assert (child.path, child.type_name) == ("a", "")
    assert (child.children[0].path, child.children[0].type_name) == ("a.b", "Linear")


def test_totals_count_each_memory_once() -> None:
    tree = build_tree(
        [
            record("embed.weight", 10, 4, frozen=True),
            record("fc.weight", 4, 4),
            record("fc.mean", 4, kind="buffer", frozen=None),
            record("head.weight", 10, 4, frozen=True, same_as="embed.weight"),
        ]
    )
    assert tree.totals == Totals(
        parameter_tensors=2,
        parameters=56,
        trainable=16,
        parameter_bytes=224,
        trainable_bytes=64,
        buffer_tensors=1,
        buffer_bytes=16,
    )
    assert tree.totals.nbytes == 240
    assert {child.path: child.totals.parameters for child in tree.children} == {
        "embed": 40,
        "fc": 16,
        "head": 0,
    }


@pytest.mark.parametrize(
    ("records", "state"),
    [
        pytest.param([], "unknown", id="nothing"),
        pytest.param([record("a.w", 1, frozen=True)], "frozen", id="frozen"),
        pytest.param([record("a.w", 1)], "trainable", id="trainable"),
        pytest.param([record("a.w", 1), record("b.w", 1, frozen=True)], "partly", id="partly"),
        pytest.param([record("a.w", 1, frozen=None)], "unknown", id="not known"),
        pytest.param(
            [record("a.w", 1), record("a.m", 1, kind="buffer", frozen=True)],
            "trainable",
            id="buffers have no say",
        ),
        pytest.param(
            [record("a.w", 1, frozen=True), record("b.w", 1, frozen=None)],
            "frozen",
            id="what is not known has no say",
        ),
    ],
)
def test_state_of_the_whole(records: list[TensorRecord], state: str) -> None:
    assert build_tree(records).state == state


def test_a_tied_part_has_the_state_of_what_it_is_tied_to() -> None:
    tree = build_tree(
        [record("embed.w", 2, frozen=True), record("head.w", 2, frozen=True, same_as="embed.w")]
    )
    assert tree.children[1].state == "frozen"


def test_dtypes_are_those_of_the_parameters() -> None:
    tree = build_tree(
        [
            record("a.w", 1, dtype="bfloat16"),
            record("a.count", kind="buffer", dtype="int64"),
            record("b.w", 1, dtype="float32"),
            record("b.v", 1, dtype="bfloat16"),
        ]
    )
    assert tree.dtypes == ("bfloat16", "float32")
    assert tree.children[0].dtypes == ("bfloat16",)


def block(index: int, **changes: object) -> list[TensorRecord]:
    weight = replace(record(f"{index}.fc.weight", 2, 2), **changes)  # type: ignore[arg-type]
    return [weight, record(f"{index}.fc.bias", 2)]


@pytest.mark.parametrize(
    ("changes", "repeats"),
    [
        pytest.param({}, True, id="the same"),
        pytest.param({"shape": (4, 1)}, False, id="another shape of the same size"),
        pytest.param({"dtype": "int32"}, False, id="another dtype"),
        pytest.param({"frozen": True}, False, id="frozen"),
        pytest.param({"kind": "buffer"}, False, id="a buffer"),
        pytest.param({"name": "1.fc.w"}, False, id="another name inside"),
        pytest.param({"name": "1.proj.weight"}, False, id="another module inside"),
        pytest.param({"same_as": "0.fc.weight"}, False, id="tied to the first"),
    ],
)
def test_only_what_is_equal_repeats(changes: dict[str, object], repeats: bool) -> None:
    first, second = build_tree([*block(0), *block(1, **changes)]).children
    assert is_repeat(second, first) is repeats


def test_blocks_with_another_name_inside_do_not_repeat() -> None:
    first, second = build_tree([record("0.query.w", 2), record("1.key.w", 2)]).children
    assert not is_repeat(second, first)


def test_blocks_tied_to_different_tensors_do_not_repeat() -> None:
    ties = [record(f"{n}.w", 2, same_as=f"embed.{n}") for n in range(2)]
    first, second = build_tree(ties).children
    assert not is_repeat(second, first)


def test_blocks_of_another_class_do_not_repeat() -> None:
    first, second = build_tree([*block(0), *block(1)], {"0.fc": "Linear", "1.fc": "LoRA"}).children
    assert not is_repeat(second, first)


def test_runs_join_numbered_neighbours_only() -> None:
    shapes = [("0", 2), ("1", 2), ("2", 3), ("3", 2), ("query", 2), ("key", 2)]
    tree = build_tree([record(f"{name}.w", size) for name, size in shapes])
    assert [[node.name for node in run] for run in runs(tree.children)] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["query"],
        ["key"],
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.view = nn.Linear(4, 10, bias=False)
        self.view.weight = nn.Parameter(self.embed.weight.detach())
        self.norm.register_buffer("again", self.norm.running_mean)


def test_records_of_a_model_are_in_definition_order_with_ties() -> None:
    model = Tied()
    model.norm.requires_grad_(False)
    records = model_records(model, frozen_buffers=("norm.running_mean",))
    assert [(r.name, r.kind, r.shape, r.dtype, r.frozen, r.same_as) for r in records] == [
        ("norm.weight", "parameter", (4,), "float32", True, None),
        ("norm.bias", "parameter", (4,), "float32", True, None),
        ("norm.running_mean", "buffer", (4,), "float32", True, None),
        ("norm.running_var", "buffer", (4,), "float32", None, None),
        ("norm.num_batches_tracked", "buffer", (), "int64", None, None),
        ("norm.again", "buffer", (4,), "float32", True, "norm.running_mean"),
        ("embed.weight", "parameter", (10, 4), "float32", False, None),
        ("head.weight", "parameter", (10, 4), "float32", False, "embed.weight"),
        ("view.weight", "parameter", (10, 4), "float32", False, "embed.weight"),
    ]
    totals = build_tree(records).totals
    assert (totals.parameters, totals.parameter_bytes) == (48, 192)
    assert (totals.buffer_tensors, totals.buffer_bytes) == (3, 40)


def test_records_see_through_wrappers() -> None:
    wrapped = nn.DataParallel(nn.Sequential(nn.Linear(2, 1)))
    assert [r.name for r in model_records(wrapped)] == ["0.weight", "0.bias"]
    assert module_types(wrapped) == {"": "Sequential", "0": "Linear"}


def test_a_lazy_module_has_no_shape_yet() -> None:
    weight, bias = model_records(nn.LazyLinear(3))
    assert (weight.shape, weight.elements, weight.nbytes) == (None, 0, 0)
    assert (bias.shape, bias.elements, bias.nbytes) == (None, 0, 0)


def test_a_deep_model_needs_no_deep_stack() -> None:
    model: nn.Module = nn.Linear(1, 1)
    for _ in range(200):
        model = nn.Sequential(model)
    tree = build_tree(model_records(model), module_types(model))
    assert tree.totals.parameters == 2
