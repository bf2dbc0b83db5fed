"""Of what a frozen call returns only that part is kept which is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import Wired, cut_of
from replaying import CLASSES, WIDTH, both, counted, freeze, run, steps
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.replay.windows import Box

TOKENS = 6
FLOATS = 4
WHOLE = TOKENS * WIDTH * FLOATS

Way = Callable[[Any, Tensor], Any]


def _model(read: Way, *, trains: str | tuple[str, ...] = "head", **modules: nn.Module) -> Wired:
    """A frozen body that gives tokens, and what ``read`` makes of them."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    head = nn.Linear(WIDTH, CLASSES)
    model = Wired(lambda m, x: read(m, m.body(x)), body=body, head=head, **modules)
    freeze(model, trains)
    return model


def _loader(**options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, TOKENS, WIDTH, generator=generator)
    data = TensorDataset(x, torch.randint(CLASSES, (40,), generator=generator))
    return DataLoader(data, **{"batch_size": 8, "shuffle": True, **options})


def _kept(model: nn.Module) -> int:
    """Bytes a sample that replay keeps of a model that is trained so."""
    line = fl.frost_line(model, next(iter(_loader(shuffle=False)))[0])
    assert line.declined is None
    return line.bytes_per_sample


def _parts(model: nn.Module) -> list[Box | None]:
    """For each kept result the part that the analysis alone says, before anything is proven."""
    planned = cut_of(model, torch.randn(8, TOKENS, WIDTH)).planned
    return [part for p in planned for part, kept in zip(p.parts, p.kept, strict=True) if kept]


def _first(m: Any, h: Tensor) -> Tensor:
    return m.head(h[:, 0])


def _product(tokens: Tensor, weight: Tensor) -> Tensor:
    return (tokens.unsqueeze(-2) * weight).sum(-1).mean(1)


class _Asks(nn.Module):
    """Answers beside what it is given, as the models of transformers do, or with None."""

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor) -> dict[str, Any]:
        is_so = bool((x.sum() > 9).item())
        return {"x": x, "is_so": is_so if self.answers else None}


def _after_a_question(m: Any, h: Tensor) -> Tensor:
    m.asks(m.head.bias.detach())
    return m.head(h[:, 0])


_PARTS: dict[str, tuple[Way, int]] = {
    "first": (_first, 1),
    "last": (lambda m, h: m.head(h[:, -1]), 1),
    "a run": (lambda m, h: m.head(h[:, 1:3]).mean(1), 2),
    "narrow": (lambda m, h: m.head(h.narrow(1, 2, 1)).squeeze(1), 1),
    "a chain": (lambda m, h: m.head(h[:, 2:6][:, 1:].transpose(1, 2)[..., 0]), 1),
    "heads": (lambda m, h: m.head(h.view(8, TOKENS, 4, 4)[:, 1].flatten(1)), 1),
    "between": (lambda m, h: m.head((h[:, 0] * 2).tanh()), 1),
    "after a question": (_after_a_question, 1),
    "neighbours": (lambda m, h: m.head(h[:, 0] + h[:, 1]), 2),
    "every other": (lambda m, h: m.head(h[:, :4:2]).mean(1), 3),
    "detached": (lambda m, h: m.head(h.detach()[:, 0].data), 1),
    "expanded": (lambda m, h: m.head(h[:, :1].expand(-1, 3, -1)).mean(1), 1),
    "features": (lambda m, h: _product(h[..., :8], m.head.weight[:, :8]), 3),
}


@pytest.mark.parametrize("name", _PARTS)
def test_a_part_is_kept(name: str) -> None:
    read, tokens = _PARTS[name]

    def made() -> nn.Module:
        return _model(read, asks=_Asks(answers=False))

    assert _kept(made()) == tokens * WIDTH * FLOATS
    assert both(made, _loader).counts == (5, 10, 0)


class _Own(torch.autograd.Function):
    """Its backward may use what its forward does not read."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return tokens[:, 0] @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (tokens,) = ctx.saved_tensors
        return None, gradient.T @ tokens.mean(1)


class _Twice(nn.Module):
    """Returns one piece of memory two times."""

    def forward(self, tokens: Tensor) -> Any:
        doubled = tokens * 2
        return doubled, doubled[:, 1:]


def _adds(m: Any, h: Tensor) -> Tensor:
    h[:, 1] += 1
    return m.head(h[:, 0])


def _leaves(m: Any, h: Tensor) -> Tensor:
    m.seen = h
    return m.head(h[:, 0])


class _IsTold(nn.Module):
    """Reads one token or another, as its caller says."""

    def forward(self, tokens: Tensor, weight: Tensor, *, second: bool) -> Tensor:
        return functional.linear(tokens[:, 1] if second else tokens[:, 0], weight)


def _number(bias: Tensor) -> int:
    """A token's place that hangs on the content of a tensor."""
    return int(bias.detach().argmax().item())


def _as_long_as(bias: Tensor) -> int:
    return len((bias.detach() > 9).nonzero())


def _yes_or_no(bias: Tensor) -> bool:
    return bool((bias.detach().sum() > 9).item())


_WHOLE: dict[str, tuple[Way, dict[str, nn.Module]]] = {
    "mean": (lambda m, h: m.head(h.mean(1)), {}),
    "the most of it": (lambda m, h: m.head(h[:, 1:]).mean(1), {}),
    "two far apart": (lambda m, h: m.head(h[:, 0] + h[:, -1]), {}),
    "by a tensor": (lambda m, h: m.head(h[:, torch.tensor([0])]).mean(1), {}),
    "of each its own": (lambda m, h: m.head(h[torch.arange(8), h[:, :, 0].argmax(1)]), {}),
    "samples": (lambda m, h: m.head(h[:4, 0]).repeat(2, 1), {}),
    "no box": (lambda m, h: m.head(h.view(8, -1)[:, 8 : 8 + WIDTH]), {}),
    "written by live code": (_adds, {}),
    "left on the model": (_leaves, {}),
    "by content": (lambda m, h: m.head(h[:, _number(m.head.bias)]), {}),
    "by a shape of content": (lambda m, h: m.head(h[:, _as_long_as(m.head.bias)]), {}),
    "by a yes or no": (lambda m, h: m.head(h[:, _yes_or_no(m.head.bias) + 0]), {}),
    "by a yes or no from below": (
        lambda m, h: m.head(h[:, m.asks(m.head.bias.detach())["is_so"] + 0]),
        {"asks": _Asks(answers=True)},
    ),
    "by a yes or no handed on": (
        lambda m, h: m.told(h, m.head.weight, second=_yes_or_no(m.head.bias)) + m.head.bias,
        {"told": _IsTold()},
    ),
    "by hand backwards": (lambda m, h: _Own.apply(h, m.head.weight), {}),
    "twice in one memory": (lambda m, h: m.head(m.twice(h)[1][:, 0]), {"twice": _Twice()}),
}


def test_a_frozen_call_that_reads_past_its_arguments() -> None:
    held: list[Tensor] = []

    def past(m: Any, x: Tensor) -> Tensor:
        return m.fc(x) + held[0].mean(1)

    def read(m: Any, h: Tensor) -> Tensor:
        held[:] = [h]
        return m.head(h[:, 0] + m.past(h[:, 0].tanh()))

    model = _model(read, past=Wired(past, fc=nn.Linear(WIDTH, WIDTH)))
    cut = cut_of(model, torch.randn(8, TOKENS, WIDTH))
    assert [(str(p.call.place), p.kept, p.parts) for p in cut.planned] == [
        ("body", (True,), (None,)),
        ("past", (True,), (None,)),
    ]


def test_a_frozen_call_that_takes_what_is_kept_in_part() -> None:
    """It can't be made from a part, so if its own result is missing all is computed."""

    def read(m: Any, h: Tensor) -> Tensor:
        return m.head((h[:, 0] if m.training else h.mean(1)) + m.other(h))

    other = Wired(lambda m, x: m.fc(x).mean(1), fc=nn.Linear(WIDTH, WIDTH))
    model, x = _model(read, other=other), torch.randn(8, TOKENS, WIDTH)
    assert [p.can_rerun for p in cut_of(model, x).planned] == [True, False]
    assert [p.can_rerun for p in cut_of(model.eval(), x).planned] == [True, True]


@pytest.mark.parametrize("name", _WHOLE)
def test_all_is_kept(name: str) -> None:
    read, modules = _WHOLE[name]
    # Where samples are counted is not known yet when the pass is cut.
    assert any(_parts(_model(read, **modules))) == (name == "samples")
    assert _kept(_model(read, **modules)) >= WHOLE - WIDTH * FLOATS
    done = both(lambda: _model(read, **modules), _loader)
    assert done.counts[1] >= 5


def test_all_is_kept_where_nan_could_not_show() -> None:
    assert _parts(_model(lambda m, h: m.head(h[:, 0]).argmax(-1))) == [None]


class _Scores:
    """What a model may return: a plain object."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores


def test_nan_in_an_object_is_seen() -> None:
    place = [0]
    model = _model(lambda m, h: _Scores(m.head(h[:, place[0]])))
    loader = _loader(shuffle=False)

    def epoch() -> None:
        for x, _y in fl.replay(model, loader):
            assert not model(x).scores.isnan().any()

    epoch()
    epoch()
    place[0] = 1
    with pytest.raises(fl.ReplayError, match="read a part of what body returned"):
        epoch()


def test_what_the_loop_gets_is_whole() -> None:
    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        scores, more = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) + more["tokens"][0].square().mean()

    def given() -> nn.Module:
        return _model(lambda m, h: (m.head(h[:, 0]), {"tokens": (h,)}))

    assert _parts(given()) == [None]
    done = both(given, _loader, lambda *a: steps(*a, loss_of=loss_of))
    assert done.counts == (5, 10, 0)


def test_what_a_hook_gets_is_whole() -> None:
    def hooked() -> nn.Module:
        top = Wired(lambda m, h: m.fc(h[:, 0]), fc=nn.Linear(WIDTH, CLASSES))
        top.register_forward_pre_hook(lambda module, given: seen.extend(given))
        return _model(lambda m, h: m.top(h), trains="top", top=top)

    seen: list[Tensor] = []
    assert _parts(hooked()) == [None]


def test_integers_are_whole() -> None:
    class Codes(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return (tokens > 0).long()

    def coded() -> nn.Module:
        return _model(lambda m, h: m.head(m.codes(h)[:, 0].float()), codes=Codes())

    assert _kept(coded()) == 2 * WHOLE
    assert both(coded, _loader).counts == (5, 10, 0)


def test_samples_in_the_second_dimension() -> None:
    def turned() -> nn.Module:
        model = _model(lambda m, h: m.head(h[0]))
        inner = model.body
        model.body = Wired(lambda m, x: m.inner(x.transpose(0, 1)), inner=inner)
        return model

    assert _kept(turned()) == WIDTH * FLOATS
    assert both(turned, _loader).counts == (5, 10, 0)


@pytest.mark.parametrize(
    "options",
    [{"inputs": "skip"}, {"evict": True}, {"store": "folder"}],
    ids=["skip", "evict", "folder"],
)
def test_with_options(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = both(lambda: _model(_first), _loader, **options)
    assert done.counts == (5, 10, 0)


def test_rounded_parts() -> None:
    done = run(lambda: _model(_first), _loader, replayed=True, keep_as=torch.bfloat16)
    assert done.counts == (5, 10, 0)
    assert not any(loss.isnan() for loss in done.losses)


def test_another_head_of_the_same_folder(tmp_path: Path) -> None:
    heads: list[Way] = [_first, lambda m, h: m.head(h.mean(1)), lambda m, h: m.head(h[:, 1])]
    counts = [
        both(lambda read=read: _model(read), _loader, store=tmp_path / "s").counts
        for read in (*heads, *heads)
    ]
    assert counts == [(5, 10, 0)] * 3 + [(0, 15, 0)] * 3


def _freezing_the_pooler(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    yield from steps(model, optimizer, loader, batches, epochs=2)
    fl.freeze(model, "pooler", gradients="drop")
    fl.sync(model, optimizer)
    yield from steps(model, optimizer, loader, batches, epochs=2)


class _Pooler(nn.Linear):
    """Reads the first token, as BERT's does; in eval mode others, if it is told so."""

    def __init__(self, *, reads_more: bool) -> None:
        super().__init__(WIDTH, WIDTH)
        self.reads_more = reads_more

    def forward(self, tokens: Tensor) -> Tensor:
        more = self.reads_more and not self.training
        return super().forward(tokens.mean(1) if more else tokens[:, 0]).tanh()


@pytest.mark.parametrize("reads_more", [False, True], ids=["as before", "more"])
def test_a_deeper_cut_is_recorded_from_parts(reads_more: bool) -> None:
    computed: list[int] = []

    def pooled() -> nn.Module:
        return _model(
            lambda m, h: m.head(m.pooler(h)),
            trains=("pooler", "head"),
            pooler=_Pooler(reads_more=reads_more),
        )

    def counting(model: Any, *rest: Any) -> Iterator[Tensor]:
        with counted(model.body) as rows:
            yield from _freezing_the_pooler(model, *rest)
        computed[:] = rows

    done = both(pooled, _loader, counting)
    assert done.counts == (10, 10, 0)
    # A part that is too small is of no use: then the body is computed again.
    assert (sum(computed) >= 80) == reads_more


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_other_tokens_than_were_seen(inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay can't see that the environment says which token is read."""
    monkeypatch.setenv("FROSTLINE_TEST_TOKEN", "0")

    def told(m: Any, h: Tensor) -> Tensor:
        return m.head(h[:, int(os.environ["FROSTLINE_TEST_TOKEN"])])

    model, loader = _model(told), _loader(shuffle=False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)

    def epoch() -> list[Tensor]:
        batches = fl.replay(model, loader, inputs=inputs)
        return list(steps(model, optimizer, loader, lambda _: batches, epochs=1))

    for _ in range(4):
        epoch()
    before = model.head.weight.detach().clone()
    monkeypatch.setenv("FROSTLINE_TEST_TOKEN", "1")
    with pytest.raises(fl.ReplayError, match=r"read a part of what body returned"):
        epoch()
    assert torch.equal(before, model.head.weight)
    # Whoever goes on gets all of it.
    plain = _model(told)
    plain.load_state_dict(model.state_dict())
    other = torch.optim.SGD(plain.head.parameters(), lr=0.1)
    for _ in range(2):
        assert epoch() == list(steps(plain, other, loader, lambda given: given, epochs=1))


class _Told(nn.Linear):
    """Reads the token that the environment says."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens[:, int(os.environ["FROSTLINE_TEST_TOKEN"])])


def test_other_tokens_than_an_earlier_cut_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made of poison is not recorded."""
    monkeypatch.setenv("FROSTLINE_TEST_TOKEN", "0")
    told = _Told(WIDTH, WIDTH)
    model = _model(lambda m, h: m.head(m.told(h)), trains=("told", "head"), told=told)
    loader = _loader(shuffle=False)

    def outputs() -> list[Tensor]:
        return [model(x).detach() for x, _ in fl.replay(model, loader)]

    for _ in range(3):
        outputs()
    fl.freeze(model, "told")
    batches = iter(fl.replay(model, loader))
    model(next(batches)[0])
    monkeypatch.setenv("FROSTLINE_TEST_TOKEN", "1")
    x, _ = next(batches)
    with pytest.raises(fl.ReplayError, match=r"read a part of what body returned"):
        model(x)
    del batches
    for _ in range(3):
        assert all(map(torch.equal, outputs(), [model(x) for x, _ in loader]))


def test_an_earlier_cut_and_samples_that_are_nan() -> None:
    """NaN that the samples bring is recorded."""

    def with_nan() -> DataLoader[Any]:
        loader = _loader()
        loader.dataset.tensors[0][3] = float("nan")
        return loader

    def pooled() -> nn.Module:
        pooler = _Pooler(reads_more=False)
        return _model(lambda m, h: m.head(m.pooler(h)), trains=("pooler", "head"), pooler=pooler)

    done = run(pooled, with_nan, _freezing_the_pooler, replayed=True)
    assert done.counts == (10, 10, 0)


def test_diverging_is_no_fault_of_replay() -> None:
    model, loader = _model(_first), _loader()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    for epoch in range(4):
        batches = fl.replay(model, loader)
        if epoch == 2:
            model.head.weight.data.fill_(float("nan"))
        losses = list(steps(model, optimizer, loader, lambda _, b=batches: b, epochs=1))
        assert all(loss.isnan() for loss in losses) == (epoch >= 2)
    assert batches.replayer.stats.replayed == 15
