from __future__ import annotations

import copy
import pickle

import pytest

from frostline.replay.loading_requests import Request, RequestedDataset
from frostline.replay.loading_views import Views


class Letters:
    def __init__(self) -> None:
        self.text = "abc"

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> str:
        return self.text[index]


class AtOnce(Letters):
    def __getitems__(self, indices: list[int]) -> list[str]:
        return [self[index].upper() for index in indices]


def test_for_everybody_else_it_is_the_data_set():
    dataset = Letters()
    wrapped = RequestedDataset(dataset, None)
    wrapped.text = "abcd"
    wrapped.more = 1
    del wrapped.more
    assert isinstance(wrapped, Letters)
    assert (len(wrapped), wrapped[3], dataset.text, hasattr(dataset, "more")) == (
        4,
        "d",
        "abcd",
        False,
    )
    assert not hasattr(wrapped, "nothing")


@pytest.mark.parametrize(
    ("dataset", "expected"), [(Letters(), ["b", "a"]), (AtOnce(), ["B", "A"])], ids=["one", "all"]
)
def test_requests_and_plain_indices_are_answered_as_torch_would(dataset, expected):
    wrapped = RequestedDataset(dataset, None)
    request = Request(indices=[1, 0], ids=(1, 0), epoch=0, skipped=False)
    assert wrapped.__getitems__([1, 0]) == expected
    assert wrapped.__getitems__(request) == (request, expected)


@pytest.mark.parametrize("again", [copy.copy, lambda wrapped: pickle.loads(pickle.dumps(wrapped))])
def test_a_copy_is_wrapped_too(again):
    wrapped = again(RequestedDataset("abc", Views(count=2, seed=3)))
    request = Request(indices=[1], ids=(3,), epoch=0, skipped=False)
    assert wrapped.__getitems__(request).items == ["b"]
    assert type(wrapped) is RequestedDataset
