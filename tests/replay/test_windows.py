"""Which part of a tensor a view of it shows."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frostline.replay.windows import box_of, window_of


def _random_view(tensor: Tensor, choose: random.Random) -> Tensor:
    dim = choose.randrange(tensor.ndim)
    size = tensor.shape[dim]
    first = choose.randrange(size)
    ways = [
        lambda: tensor.select(dim, first) if tensor.ndim > 1 else tensor,
        lambda: tensor.narrow(dim, first, choose.randint(1, size - first)),
        lambda: tensor.transpose(dim, choose.randrange(tensor.ndim)),
        lambda: tensor[(slice(None),) * dim + (slice(first, None, 2),)],
        lambda: tensor.unsqueeze(dim),
        lambda: tensor.unflatten(dim, (2, -1)) if size % 2 == 0 else tensor,
        lambda: _merged(tensor),
    ]
    return choose.choice(ways)()


def _merged(tensor: Tensor) -> Tensor:
    """Without its last two dimensions' border, where that takes no copy."""
    merged = tensor.flatten(-2) if tensor.ndim > 1 else tensor
    is_view = merged.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return merged if is_view else tensor


_NO_BOX: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "another type": (torch.zeros(4, 6, 8), lambda x: x.view(torch.int32)[:, 0]),
    "between elements": (torch.zeros(4, 8)[:, ::2], lambda x: x.as_strided((4,), (8,), 1)),
    "beside it": (torch.zeros(4, 8)[:, :4], lambda x: x.as_strided((4,), (8,), 5)),
    "in front of it": (torch.zeros(4, 8)[1:], lambda x: x.as_strided((4,), (8,), 0)),
    "behind it": (torch.zeros(4, 8)[:2], lambda x: x.as_strided((2, 8), (8, 1), 8)),
    "across rows": (torch.zeros(4, 8), lambda x: x.view(-1)[4:12]),
    "of an overlapping one": (torch.zeros(8).unfold(0, 4, 2), lambda x: x[0]),
    "of an expanded one": (torch.zeros(8).expand(3, 8), lambda x: x[0]),
    "nothing": (torch.zeros(4, 8), lambda x: x[:, :0]),
}


@pytest.mark.parametrize("name", _NO_BOX)
def test_no_box(name: str) -> None:
    whole, view = _NO_BOX[name]
    assert box_of([window_of(whole)], window_of(whole)) or "overlap" in name or "expand" in name
    assert box_of([window_of(view(whole))], window_of(whole)) is None


def test_boxes_of_random_views() -> None:
    choose, told = random.Random(0), 0
    for _ in range(400):
        shape = [choose.randint(1, 6) for _ in range(choose.randint(1, 4))]
        numbers = torch.arange(10_000)[7:]
        order = choose.sample(range(len(shape)), len(shape))
        elements = torch.tensor(shape).prod()
        whole = numbers[:elements].view([shape[d] for d in order])
        whole = whole.permute([order.index(d) for d in range(len(shape))])
        view = whole
        for _ in range(choose.randint(1, 5)):
            view = _random_view(view, choose)
        read = torch.isin(whole.contiguous(), view.contiguous())
        at = read.nonzero()
        box = box_of([window_of(view)], window_of(whole))
        if box is not None:
            told += 1
            expected = zip(at.amin(0).tolist(), (at.amax(0) + 1).tolist(), strict=True)
            assert box == tuple(expected)
    assert told > 250
