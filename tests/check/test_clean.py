"""A clean set-up is never blamed, whatever the model and the selector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

import frostline as fl


class Cnn(nn.Module):
    """Stem, three blocks with BatchNorm and Dropout, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.1)
            )
            for _ in range(3)
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x.mean((2, 3))))


class Vit(nn.Module):
    """Parameters on the root, dropout after the position table, pre-norm blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),) * 1,
            *(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
                for _ in range(2)
            ),
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(self.pos_drop(x)))[:, 0])


class Bert(nn.Module):
    """Embeddings, an encoder with a padding mask, a pooler, a classifier; called by keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word": nn.Embedding(20, 8, padding_idx=0),
                "position": nn.Embedding(6, 8),
                "norm": nn.LayerNorm(8),
                "dropout": nn.Dropout(0.1),
            }
        )
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.pooler = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(8, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        e = self.embeddings
        x = e["word"](ids) + e["position"](torch.arange(ids.shape[1]))
        x = self.encoder(e["dropout"](e["norm"](x)), src_key_padding_mask=mask)
        logits = self.classifier(self.dropout(torch.tanh(self.pooler(x[:, 0]))))
        return {"loss": logits.square().mean(), "logits": logits}


class Gpt(nn.Module):
    """Embedding and head are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.wpe = nn.Embedding(6, 8)
        self.h = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1))
            for _ in range(3)
        )
        self.ln_f = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = x + block(x)
        return self.lm_head(self.ln_f(x))


def padded() -> dict[str, Tensor]:
    mask = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    return {"ids": torch.randint(1, 20, (2, 6)), "mask": mask}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], object]]] = {
    "cnn": (Cnn, lambda: torch.randn(4, 1, 8, 8)),
    "vit": (Vit, lambda: torch.randn(2, 1, 8, 8)),
    "bert": (Bert, padded),
    "gpt": (Gpt, lambda: torch.randint(0, 20, (2, 6))),
}

SCHEDULERS: list[Callable[[torch.optim.Optimizer], object]] = [
    lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 3)),
    lambda optimizer: schedulers.OneCycleLR(optimizer, 0.1, total_steps=20),
    lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, min_lr=1e-6),
    lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer), schedulers.CosineAnnealingLR(optimizer, 10)],
        [3],
    ),
]


def unexpected(model: nn.Module, findings: list[fl.Finding]) -> list[str]:
    """What is left when FL501 is true by construction: something trains before all that rests.

    Within a block the order of definition says nothing (torch's encoder layer defines its norms
    last and may run them first), so a tensor counts from where its block begins.
    """
    order = [name for name, _ in model.named_parameters()]
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    blocks = [name.split(".")[:2] for name in order]
    half = len(order) // 2
    early = {n for n, block in zip(order, blocks, strict=True) if blocks.index(block) < half}
    early &= trains
    return [str(f) for f in findings if not (f.code == "FL501" and f.where in early)]


@st.composite
def selectors(draw: st.DrawFn, model: nn.Module) -> fl.Plan:
    """Any of the ways to say what to freeze: names, parts of names, kinds, places."""
    names = [name for name, _ in model.named_parameters()]
    heads = sorted({".".join(n.split(".")[: k + 1]) for n in names for k in range(n.count("."))})
    kinds = sorted(
        {f"type:{type(m).__name__}" for m in model.modules() if any(True for _ in m.parameters())}
    )
    one = st.sampled_from(
        [*names, *heads, *kinds[1:], "bias", "weight", "first:1", "last:1", "first:2"]
    )
    what = draw(st.lists(one, min_size=1, max_size=2))
    return fl.Plan.all_but(what) if draw(st.booleans()) else fl.Plan.freezing(what)


@pytest.mark.parametrize("kind", MODELS)
@given(data=st.data())
def test_a_clean_setup_has_no_findings(kind: str, data: st.DataObject) -> None:
    build, example = MODELS[kind]
    model = build()
    plan = data.draw(selectors(model))
    try:
        frozen = fl.freeze(model, plan)
    except fl.PlanError:  # it leaves nothing to train
        assume(False)
    assume(frozen.names)  # "freeze all, then train all" leaves nothing to prove
    build_optimizer = data.draw(st.sampled_from([torch.optim.SGD, torch.optim.AdamW]))
    optimizer = fl.optimizer(
        build_optimizer,
        model,
        lr=0.1,
        no_decay=("bias", "norm"),
        weight_decay=0.1,
        declare_all=data.draw(st.booleans()),
    )
    scheduler = data.draw(st.sampled_from(SCHEDULERS))(optimizer)
    if data.draw(st.booleans()):
        model.train()
    batch = example() if data.draw(st.booleans()) else None
    findings = fl.check(model, optimizer, scheduler, example=batch)
    assert unexpected(model, findings) == []
    frozen.verify()


@pytest.mark.parametrize("kind", MODELS)
def test_an_untouched_model_has_no_findings(kind: str) -> None:
    build, example = MODELS[kind]
    model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    assert fl.check(model, optimizer, example=example()) == []
