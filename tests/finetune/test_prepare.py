from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError, FrostlineError
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.prepare import (
    find_optimizer,
    open_job,
    plan_of,
    prepare,
    with_absolute_paths,
)

MODELS = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 5)
    def forward(self, x):
        return self.head(self.body(x))

class Picky(Small):
    def forward(self, x):
        raise ValueError("not today")

class Twice(Small):
    def forward(self, x):
        return super().forward(x), None

def ten():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def bare():
    return nn.Flatten()
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    file = tmp_path / "models.py"
    file.write_text(MODELS)
    return str(file)


def ready(config: FinetuneConfig):
    sources, engine = open_job(config, lambda text: None)
    return prepare(config, plan_of(config, sources.head), sources, engine)


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        pytest.param(FinetuneConfig(), "freeze: **; train: block3; train: head", id="default"),
        pytest.param(
            FinetuneConfig(train=["head", "re:^block3"]),
            "freeze: **; train: head; train: re:^block3",
            id="train",
        ),
        pytest.param(
            FinetuneConfig(freeze=["stem", "block1"]), "freeze: stem; freeze: block1", id="freeze"
        ),
    ],
)
def test_plans(config, rules):
    assert str(plan_of(config, ("block3", "head"))) == rules


def test_a_plan_file(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("frostline: 1\nrules: [{freeze: stem}]")
    assert str(plan_of(FinetuneConfig(plan=file))) == "freeze: stem"


def test_the_default_model_is_pretrained_but_for_its_head():
    first, second = ready(FinetuneConfig(seed=0)), ready(FinetuneConfig(seed=1))
    assert torch.equal(first.model.block3[0].weight, second.model.block3[0].weight)
    assert not torch.equal(first.model.head.weight, second.model.head.weight)
    assert first.frozen.names[:2] == ("stem.0.weight", "stem.1.weight")
    assert len(first.frozen.names) == 9
    assert len(first.frozen.buffers) == 9
    assert sum(len(group["params"]) for group in first.optimizer.param_groups) == 5


def test_a_factory_is_tried_without_a_trace(models):
    setup = ready(FinetuneConfig(model=f"{models}:Small", train=["head"]))
    norm = setup.model.body[2]
    assert norm.running_mean.tolist() == [0] * 8
    assert norm.num_batches_tracked == 0
    assert setup.model.head.training
    assert setup.frozen.names == ("body.1.weight", "body.1.bias", "body.2.weight", "body.2.bias")


def test_options_reach_the_optimizer():
    setup = ready(
        FinetuneConfig(
            optimizer="SGD", lr=0.5, weight_decay=0.25, optimizer_options={"momentum": 0.75}
        )
    )
    (group,) = setup.optimizer.param_groups
    assert type(setup.optimizer) is torch.optim.SGD
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"train": ["hed"]}, "selector 'hed' matches none .*'head'", id="typo"),
        pytest.param({"freeze": ["**"]}, "nothing to train", id="all-frozen"),
        pytest.param({"train": ["**"]}, "this freezes nothing", id="none-frozen"),
        pytest.param({"optimizer": "AdamX"}, "no optimizer 'AdamX'.*'Adamax'", id="no-optimizer"),
        pytest.param({"optimizer": "Optimizer"}, "needs another loop", id="the-base-class"),
        pytest.param({"optimizer": "LBFGS"}, "LBFGS needs another loop", id="closure"),
        pytest.param({"optimizer": "lr_scheduler"}, "no optimizer 'lr_scheduler'", id="a-module"),
        pytest.param(
            {"optimizer_options": {"beta": 1}}, "AdamW has no option 'beta'.*'betas'", id="option"
        ),
        pytest.param(
            {"optimizer_options": {"betas": [3, 4]}}, "AdamW: Invalid beta", id="option-value"
        ),
        pytest.param({"optimizer_options": {"betas": 3}}, "optimizer AdamW: 'int'", id="type"),
        pytest.param({"optimizer": "Rprop", "weight_decay": 0.1}, "'weight_decay'", id="no-decay"),
        pytest.param({"plan": "nowhere.yaml"}, "cannot read the plan", id="no-plan"),
        pytest.param({"model": "digits"}, "no built-in model 'digits'", id="no-model"),
        pytest.param(
            {"model": "tutorial", "train": ["fc2"]},
            r"model 'tutorial': expected logits of shape \(2, 5\) for scans of shape"
            r" \(2, 1, 8, 8\), got \(2, 1, 8, 10\)",
            id="other-data",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(fields, message):
    with pytest.raises(FrostlineError, match=message) as caught:
        ready(FinetuneConfig(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("ten", r"expected logits of shape \(2, 5\) .*, got \(2, 10\)", id="classes"),
        pytest.param("Twice", "expected logits .*, got tuple", id="no-tensor"),
        pytest.param("Picky", r"it raised ValueError: not today \(.*models.py, line", id="raises"),
        pytest.param("bare", "has no parameters: there is nothing to train", id="no-parameters"),
    ],
)
def test_a_factory_whose_model_does_not_fit(models, name, message):
    with pytest.raises(FrostlineError, match=message):
        ready(FinetuneConfig(model=f"{models}:{name}", train=["1"]))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "RMSprop", "NAdam", "Rprop"])
def test_optimizers_of_torch(name):
    assert find_optimizer(name) is getattr(torch.optim, name)


def test_every_optimizer_that_is_offered_takes_a_step():
    unfit = []
    for name, found in vars(torch.optim).items():
        try:
            if isinstance(found, type) and find_optimizer(name):
                weight = nn.Parameter(torch.ones(2, 2))
                weight.grad = torch.ones(2, 2)
                found([weight], lr=0.1).step()
        except ConfigError:
            unfit.append(name)
    assert sorted(unfit) == ["LBFGS", "Optimizer", "SparseAdam"]


def test_a_model_without_a_head_is_not_guessed_at(models):
    with pytest.raises(ConfigError, match=r"what should be trained of .*models\.py:Small"):
        ready(FinetuneConfig(model=f"{models}:Small"))


def test_files_are_found_from_any_folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FinetuneConfig(model="models.py:Small", plan=Path("plan.yaml"), out=Path("runs"))
    absolute = with_absolute_paths(config)
    assert absolute.model == f"{tmp_path / 'models.py'}:Small"
    assert absolute.plan == tmp_path / "plan.yaml"
    assert absolute.out == Path("runs")


@pytest.mark.parametrize("model", ["digits-cnn", "package.module:build", f"no{os.sep}file.py:f"])
def test_other_models_keep_their_name(model):
    assert with_absolute_paths(FinetuneConfig(model=model)).model == model
