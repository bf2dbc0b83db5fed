"""Of what a frozen call returns only that part is kept which is read."""

from __future__ import annotations

import os
import random
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
from frostline.replay.windows import box_of, window_of

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


def _first(m: Any, h: Tensor) -> Tensor:
    return m.head(h[:, 0])


def _product(tokens: Tensor, weight: Tensor) -> Tensor:
    return (tokens.unsqueeze(-2) * weight).sum(-1).mean(1)


_PARTS: dict[str, tuple[Way, int]] = {
    "first": (_first, 1),
    "last": (lambda m, h: m.head(h[:, -1]), 1),
    "a run": (lambda m, h: m.head(h[:, 1:3]).mean(1), 2),
    "narrow": (lambda m, h: m.head(h.narrow(1, 2, 1)).squeeze(1), 1),
    "a chain": (lambda m, h: m.head(h[:, 2:6][:, 1:].transpose(1, 2)[..., 0]), 1),
    "heads": (lambda m, h: m.head(h.view(8, TOKENS, 4, 4)[:, 1].flatten(1)), 1),
    "between": (lambda m, h: m.head((h[:, 0] * 2).tanh()), 1),
    "neighbours": (lambda m, h: m.head(h[:, 0] + h[:, 1]), 2),
    "every other": (lambda m, h: m.head(h[:, :4:2]).mean(1), 3),
    "detached": (lambda m, h: m.head(h.detach()[:, 0].data), 1),
    "expanded": (lambda m, h: m.head(h[:, :1].expand(-1, 3, -1)).mean(1), 1),
    "features": (lambda m, h: _product(h[..., :8], m.head.weight[:, :8]), 3),
}


@pytest.mark.parametrize("name", _PARTS)
def test_a_part_is_kept(name: str) -> None:
    read, tokens = _PARTS[name]
    assert _kept(_model(read)) == tokens * WIDTH * FLOATS
    assert both(lambda: _model(read), _loader).counts == (5, 10, 0)


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


def _longest(h: Tensor) -> int:
    """A token's place that hangs on the content of the batch, past tensors."""
    return int((h[:, :, 0] > 0).sum().item()) % TOKENS


def _as_long_as(h: Tensor) -> int:
    return len((h[0, :, 0] > 9).nonzero())


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
    "by content": (lambda m, h: m.head(h[:, _longest(h.detach())]), {}),
    "by a shape of content": (lambda m, h: m.head(h[:, _as_long_as(h)]), {}),
    "by a yes or no": (lambda m, h: m.head(h[:, int((h.sum() > 0).item())]), {}),
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


@pytest.mark.parametrize("name", _WHOLE)
def test_all_is_kept(name: str) -> None:
    read, modules = _WHOLE[name]
    assert _kept(_model(read, **modules)) >= WHOLE - WIDTH * FLOATS
    done = both(lambda: _model(read, **modules), _loader)
    assert done.counts[1] >= 5


def test_what_the_loop_gets_is_whole() -> None:
    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        scores, more = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) + more["tokens"][0].square().mean()

    def given() -> nn.Module:
        return _model(lambda m, h: (m.head(h[:, 0]), {"tokens": (h,)}))

    assert _kept(given()) == WHOLE
    done = both(given, _loader, lambda *a: steps(*a, loss_of=loss_of))
    assert done.counts == (5, 10, 0)


def test_what_a_hook_gets_is_whole() -> None:
    def hooked() -> nn.Module:
        model = _model(lambda m, h: m.top(h), top=nn.Module())
        model.top.forward = lambda h: model.head(h[:, 0])  # type: ignore[method-assign]
        model.top.register_forward_pre_hook(lambda module, given: (given[0] + 0 * given[0].mean(),))
        return model

    assert _kept(hooked()) == WHOLE


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


def _transformer(kind: str, config: str, **settings: Any) -> nn.Module:
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {"hidden_size": 32, "num_labels": CLASSES}
    return getattr(transformers, kind)(getattr(transformers, config)(**shape, **settings))


_WORDS = torch.randint(3, 48, (8, 8), generator=torch.Generator().manual_seed(5))
_MASK = (torch.arange(8) < torch.tensor([4, 5, 6, 7, 8, 8, 4, 5])[:, None]).long()


def test_transformers_vit() -> None:
    model = _transformer("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4)
    freeze(model.train(), "classifier")
    batch = {"pixel_values": torch.randn(8, 3, 16, 16)}
    assert fl.frost_line(model, batch).kept == {"vit": 32 * FLOATS}
    told = {**batch, "output_hidden_states": True}
    assert fl.frost_line(model, told).bytes_per_sample > 17 * 32 * FLOATS


def test_transformers_bert() -> None:
    model = _transformer(
        "BertForSequenceClassification", "BertConfig", vocab_size=50, max_position_embeddings=16
    )
    freeze(model.train(), ("pooler", "classifier"))
    batch = {"input_ids": _WORDS, "attention_mask": _MASK}
    assert fl.frost_line(model, batch).kept == {"bert.encoder": 32 * FLOATS}
    assert fl.frost_line(model.bert, batch).kept == {"encoder": 8 * 32 * FLOATS}


def test_transformers_last_word() -> None:
    """GPT-2's classifier reads another token of each text."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.0, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config).train()
    freeze(model, "score")
    line = fl.frost_line(model, {"input_ids": _WORDS * _MASK, "attention_mask": _MASK})
    assert line.kept == {"transformer.ln_f": 8 * 32 * FLOATS}


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
