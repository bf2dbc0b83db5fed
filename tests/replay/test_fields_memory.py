from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from frostline.replay.fields import can_be_poisoned, is_plain, leaves, same_value
from frostline.replay.fields_memory import FieldMemory

NOTHING: frozenset[str] = frozenset()
Pair = namedtuple("Pair", ["image", "label"])
IMAGES = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


@dataclass
class Example:
    image: Tensor
    scale: float = field(init=False, default=3.0)


class Encoding(UserDict):
    def __init__(self, data: dict[str, Any], encodings: Any) -> None:
        super().__init__(data)
        self._encodings = encodings


def images(ids):
    return IMAGES[list(ids)]


def ragged(ids):
    """Each sample with a number of boxes of its own, as for detection."""
    targets = tuple({"boxes": IMAGES[i, 0, : i % 3].clone(), "label": i} for i in ids)
    return tuple(IMAGES[i, :2].clone() for i in ids), targets


# By name: a collate function from ids, whatever the batch's size.
STEADY = {
    "tensor": images,
    "dict": lambda ids: {"image": images(ids), "label": torch.tensor(ids), "none": None, "n": 3},
    "list": lambda ids: [images(ids), torch.tensor(ids)],
    "list-of-alike": lambda ids: [images(ids), -images(ids)],
    "namedtuple": lambda ids: Pair(images(ids), torch.tensor(ids) % 2 == 0),
    "dataclass": lambda ids: Example(images(ids)),
    "batch-encoding": lambda ids: Encoding({"ids": torch.tensor(ids)}, None),
    "half": lambda ids: (images(ids).half(), images(ids).bfloat16()),
    "channels-last": lambda ids: images(ids).contiguous(memory_format=torch.channels_last),
    "columns-first": lambda ids: images(ids).transpose(0, 1).contiguous().transpose(0, 1),
    "one-number-a-sample": lambda ids: torch.tensor(ids, dtype=torch.int32),
    "rows-without-elements": lambda ids: {"empty": torch.empty(len(ids), 0), "x": images(ids)},
    "arrays": lambda ids: {"x": images(ids).numpy(), "n": numpy.array([f"n{i:02}" for i in ids])},
    "empty-arrays": lambda ids: {"empty": numpy.empty((len(ids), 0)), "x": images(ids)},
    "names": lambda ids: default_collate([{"x": IMAGES[i], "name": f"n{i}"} for i in ids]),
    "ragged": ragged,
    "class-weights": lambda ids: {"x": images(ids), "w": WEIGHTS.clone(), "array": numpy.ones(2)},
    "all-the-same": lambda ids: {"x": images(ids), "mask": torch.ones(len(ids), 2)},
}  # fmt: skip
SPLITS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def taught(collate, splits=SPLITS, skipped=NOTHING, **options: Any) -> FieldMemory:
    memory = FieldMemory(**options)
    for ids in splits:
        memory.learn(ids, collate(ids), frozenset(skipped))
    return memory


def strides(batch: Any) -> list[Any]:
    return [leaf.stride() for leaf in leaves(batch).values() if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("ids", [[5, 9, 0, 5], [8, 9, 10]], ids=["mixed", "as-before"])
def test_put_together_as_the_loader_would(name, ids):
    collate = STEADY[name]
    memory = taught(collate, [*SPLITS, *SPLITS])
    assembled, true = memory.assemble(ids), collate(ids)
    assert memory.refused is None
    assert type(assembled) is type(true)
    assert list(leaves(assembled)) == list(leaves(true))
    for path, leaf in leaves(true).items():
        assert same_value(leaves(assembled)[path], leaf), path
    assert strides(assembled) == strides(true)
    assert memory.disagrees(ids, true) is None


@pytest.mark.parametrize("name", STEADY)
def test_skipped_fields_are_poisoned_and_of_the_same_look(name):
    collate, ids = STEADY[name], [3, 10, 4]
    memory = taught(collate, [*SPLITS, *SPLITS], skipped=leaves(collate(range(12))))
    assembled = leaves(memory.assemble(ids))
    poisoned = 0
    for path, true in leaves(collate(ids)).items():
        if not is_plain(true) or not can_be_poisoned(true.dtype):
            assert same_value(assembled[path], true)
            continue
        made = torch.as_tensor(assembled[path])
        assert (made.shape, str(assembled[path].dtype)) == (true.shape, str(true.dtype))
        floating = made.is_floating_point()
        assert (made.isnan() if floating else made == torch.iinfo(made.dtype).min).all()
        poisoned += made.numel()
    assert poisoned
    assert memory.disagrees(ids, collate(ids)) is None


def test_a_skipped_container_skips_all_in_it():
    memory = taught(lambda ids: {"in": {"x": images(ids), "y": images(ids)}}, skipped={"in"})
    assert all(leaf.isnan().all() for leaf in leaves(memory.assemble([1, 5])).values())
    assert memory.nbytes == 0


def test_flags_and_pixels_are_kept_although_skipped():
    def collate(ids):
        return {"flag": torch.tensor(ids) % 2 == 0, "pixel": torch.tensor(ids, dtype=torch.uint8)}

    assembled = taught(collate, skipped={"flag", "pixel"}).assemble([6, 1])
    assert assembled["flag"].tolist() == [True, False]
    assert assembled["pixel"].tolist() == [6, 1]


@pytest.mark.parametrize("name", ["tensor", "ragged", "class-weights"])
def test_no_memory_is_shared(name):
    collate, memory = STEADY[name], FieldMemory()
    for ids in SPLITS:
        batch = collate(ids)
        memory.learn(ids, batch, NOTHING)
        for leaf in leaves(batch).values():
            if isinstance(leaf, Tensor):
                leaf.zero_()
    for leaf in leaves(memory.assemble([1, 5])).values():
        if isinstance(leaf, Tensor):
            leaf.zero_()
    assert memory.disagrees([1, 5], collate([1, 5])) is None
    assert memory.disagrees([1, 2], collate([1, 3])) is not None


def test_the_first_batch_is_not_held():
    memory = FieldMemory()
    for ids in SPLITS[:2]:
        batch = {"x": images(ids), "positions": torch.arange(4)}
        memory.learn(ids, batch, NOTHING)
        batch["positions"].zero_()
    # Were it held, the two would look unlike each other and be taken for rows.
    assert memory.assemble([1, 0, 2, 3]) is None


def test_only_known_samples():
    memory = taught(STEADY["dict"])
    assert memory.knows([10, 0])
    assert not memory.knows([0, 11])
    assert memory.assemble([0, 11]) is None
    assert memory.assemble([]) is None
    assert (len(memory), memory.refused) == (11, None)


def test_one_batch_does_not_show_what_belongs_to_a_sample():
    memory = taught(STEADY["dict"], SPLITS[:1])
    assert (memory.knows([0]), memory.assemble([0])) == (False, None)


def padded(ids):
    return {"x": torch.zeros(len(ids), max(ids))}


def ranks(ids):
    return {"x": images(ids), "rank": torch.tensor(ids).argsort()}


@pytest.mark.parametrize(
    ("collate", "splits", "reason"),
    [
        pytest.param(padded, SPLITS, r"'x' has another structure, shape", id="padding"),
        pytest.param(
            lambda ids: {"x": images(ids), **({"y": 1} if 9 in ids else {})}, SPLITS,
            "has another structure", id="a-field-more",
        ),
        pytest.param(
            lambda ids: (images(ids),) if 9 in ids else [images(ids)], SPLITS,
            "has another structure", id="another-container",
        ),
        pytest.param(
            lambda ids: images(ids).double() if 9 in ids else images(ids), SPLITS,
            "has another structure", id="another-dtype",
        ),
        pytest.param(
            lambda ids: {"x": images(ids), "sum": images(ids).sum()}, SPLITS,
            "'sum' belongs to no sample", id="sum-of-the-batch",
        ),
        pytest.param(
            lambda ids: {"x": images(ids), "size": len(ids)}, SPLITS,
            "'size' belongs to no sample", id="size-of-the-batch",
        ),
        pytest.param(
            lambda ids: Encoding({"x": images(ids)}, [object()]), SPLITS,
            "_encodings.0' belongs to no sample", id="state-beside-the-items",
        ),
        pytest.param(
            lambda ids: images(ids) + torch.rand(()), [[0, 1], [1, 2]],
            "'' was not the same twice for one sample", id="random",
        ),
        pytest.param(
            lambda ids: [f"{torch.rand(())}" for _ in range(9)], [range(9), range(9)],
            "not the same twice", id="random-items",
        ),
        pytest.param(ranks, [[0, 1, 2], [2, 1, 3]], "'rank' was not the same twice", id="ranks"),
        pytest.param(
            lambda ids: {"x": images(ids), "graphs": [{1} for _ in ids]}, [range(9)],
            "'graphs' holds objects", id="opaque-items",
        ),
        pytest.param(
            lambda ids: {"x": images(ids), "graph": {1}}, SPLITS,
            "'graph' belongs to no sample", id="opaque",
        ),
        pytest.param(
            lambda ids: {"x": images(ids).to_sparse()}, SPLITS,
            "'x' belongs to no sample", id="sparse",
        ),
    ],
)  # fmt: skip
def test_refused(collate, splits, reason):
    memory = taught(collate, splits)
    assert reason.strip("r") in memory.refused
    assert not memory.knows([0])
    assert memory.assemble([0]) is None
    assert memory.nbytes == 0


def test_once_refused_nothing_more_is_kept():
    memory = taught(padded)
    memory.learn([1], images([1]), NOTHING)
    assert len(memory) == 0


def test_a_budget_is_respected():
    memory = taught(images, budget_bytes=1000)
    assert "more than 1000 bytes" in memory.refused
    assert taught(images, budget_bytes=10**6).refused is None


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(torch.arange(4), id="positions"),
        pytest.param(numpy.arange(4), id="array"),
    ],
)
def test_what_is_the_same_in_every_batch_is_not_taken_for_rows(whole):
    memory = taught(lambda ids: {"x": images(ids), "fixed": whole}, SPLITS[:2])
    assert memory.assemble([0, 1, 2, 3]) is not None
    assert memory.assemble([1, 0, 2, 3]) is None
    assert memory.assemble([0, 1]) is None


def test_names_that_are_the_same_in_every_batch():
    names = [f"class {i}" for i in range(9)]
    memory = taught(lambda ids: {"x": images(ids), "names": names}, [range(9), range(9, 18)])
    assert memory.assemble(range(9))["names"] == names
    assert memory.assemble(range(1, 10)) is None


@pytest.mark.parametrize(
    "collate",
    [
        pytest.param(lambda ids: [images(ids), -images(ids)], id="two-tensors"),
        pytest.param(lambda ids: (images(ids), (min(ids), max(ids))), id="height-and-width"),
    ],
)
def test_two_things_beside_two_samples_are_open_until_another_size(collate):
    memory = taught(collate, [[0, 1], [2, 3], [0, 1]])
    assert (len(memory), memory.refused) == (0, None)
    memory.learn([4], collate([4]), NOTHING)
    memory.learn([0, 1], collate([0, 1]), NOTHING)
    assembled = memory.assemble([4, 1])
    assert assembled is None or all(
        same_value(leaf, leaves(collate([4, 1]))[path]) for path, leaf in leaves(assembled).items()
    )
    assert assembled is not None or memory.refused


def test_two_unlike_tensors_beside_two_samples_are_fields():
    memory = taught(STEADY["list"], [[0, 1], [2, 3]])
    assert memory.disagrees([3, 0], STEADY["list"]([3, 0])) is None
    assert memory.assemble([3, 0])[1].tolist() == [3, 0]


def test_skipping_something_else_starts_anew():
    collate = STEADY["dict"]
    memory = taught(collate, skipped={"image"})
    memory.learn([0, 1], collate([0, 1]), NOTHING)
    assert len(memory) == 2
    memory.learn([2, 3, 4], collate([2, 3, 4]), NOTHING)
    assert same_value(memory.assemble([3, 0])["image"], images([3, 0]))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"label": torch.tensor([0, 1, 3])}, "label", id="a-kept-value"),
        pytest.param({"label": torch.tensor([0, 1, 2]).int()}, "label", id="a-kept-dtype"),
        pytest.param({"image": images([0, 1, 2])[:, :2]}, "image", id="a-skipped-shape"),
        pytest.param({"image": images([5, 5, 5])}, None, id="a-skipped-value"),
        pytest.param({"n": 4}, "n", id="a-constant"),
        pytest.param({"more": 4}, "more", id="a-field-more"),
        pytest.param({"label": [1, 2]}, "label.0", id="a-list"),
    ],
)
def test_disagreement_is_named(changed, expected):
    memory = taught(STEADY["dict"], skipped={"image"})
    batch = {**STEADY["dict"]([0, 1, 2]), **changed}
    assert memory.disagrees([0, 1, 2], batch) == expected
    assert memory.disagrees([0, 1, 99], batch) is None


def test_a_thousand_samples_in_little_more_than_their_bytes():
    numbers = torch.arange(1024 * 64).reshape(1024, 64)
    batches = [range(i, i + 32) for i in range(0, 1024, 32)]
    memory = taught(lambda ids: {"x": numbers[list(ids)], "y": -numbers[list(ids)]}, batches)
    assert memory.nbytes == 2 * numbers.nbytes
    assert same_value(memory.assemble([1023, 0])["y"], -numbers[[1023, 0]])
