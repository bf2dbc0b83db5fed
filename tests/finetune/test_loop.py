from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from frostline.errors import ConfigError
from frostline.finetune.data import Split
from frostline.finetune.engine import Engine
from frostline.finetune.loading import Batches, make_loader
from frostline.finetune.loop import train_epoch
from frostline.finetune.scoring import Scores, evaluate, is_better

SPLIT = Split(inputs=torch.arange(12.0).view(6, 2), targets=torch.tensor([0, 1, 0, 1, 0, 1]))


def loader_of(split: Split, size: int, *, seed: int | None = 0, epoch: int = 1):
    batches = Batches(len(split), size, seed=seed)
    batches.epoch = epoch
    return make_loader(split, default_collate, batches)


def train(model, split, *, size, seed=0, epoch=1, lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return train_epoch(
        lambda: model,
        optimizer,
        loader_of(split, size, seed=seed, epoch=epoch),
        engine=Engine(),
        seed=seed,
        epoch=epoch,
        **options,
    )


def test_an_epoch_depends_on_its_seed_and_number_alone():
    def trained(number, *, draws):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        torch.rand(draws)
        train(model, SPLIT, size=2, seed=1, epoch=number)
        return model[0].weight.detach()

    assert torch.equal(trained(1, draws=0), trained(1, draws=5))
    assert not torch.equal(trained(1, draws=0), trained(2, draws=0))


def test_the_loss_is_summed_over_samples_not_over_batches():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([2.0, 0.0]))
    # Four scans of class 0 and two of class 1, in batches of 4 and 2.
    split = Split(inputs=SPLIT.inputs, targets=torch.tensor([0, 0, 0, 0, 1, 1]))
    loss, count = train(model, split, size=4, lr=1e-12)
    right, wrong = 0.126928, 2.126928  # log(1 + exp(-2)), log(1 + exp(2))
    assert (loss, count) == (pytest.approx(4 * right + 2 * wrong, abs=1e-5), 6)


@pytest.mark.parametrize(
    ("size", "accumulate", "steps"),
    [
        pytest.param(2, 3, 1, id="all-in-one"),
        pytest.param(1, 3, 2, id="twice"),
        pytest.param(1, 4, 2, id="what-is-left-makes-a-step"),
    ],
)
def test_accumulated_batches_make_one_step_of_their_mean(size, accumulate, steps):
    torch.manual_seed(0)
    model = nn.Linear(2, 2, dtype=torch.float64)
    split = Split(inputs=SPLIT.inputs.double(), targets=SPLIT.targets)
    at_once = nn.Linear(2, 2, dtype=torch.float64)
    at_once.load_state_dict(model.state_dict())
    losses = []
    train(model, split, size=size, accumulate=accumulate, after_step=losses.append)
    assert len(losses) == steps
    train(at_once, split, size=size * accumulate)
    torch.testing.assert_close(model.weight, at_once.weight)


def test_a_loss_that_is_not_finite_ends_the_training():
    with pytest.raises(ConfigError, match=r"the loss became (nan|inf) in epoch 4; try a lower lr"):
        train(nn.Linear(2, 2), SPLIT, size=2, epoch=4, lr=1e38)


def test_accuracy_counts_every_sample_in_eval_mode():
    class Constant(nn.Module):
        def forward(self, x):
            assert not self.training
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    split = Split(inputs=SPLIT.inputs, targets=torch.tensor([0, 0, 0, 0, 1, 0]))
    loader = loader_of(split, 4, seed=None)
    scores = evaluate(Constant(), loader, engine=Engine(), kind="custom")
    assert (scores.accuracy, scores.samples, scores.f1) == (5 / 6, 6, None)


class Says(nn.Module):
    """Predicts the tokens that it is given."""

    def forward(self, says, labels):
        return SimpleNamespace(logits=10.0 * nn.functional.one_hot(says, 4).float())


@pytest.mark.parametrize(
    ("kind", "labels", "accuracy", "f1"),
    [
        # Counted are 6 tokens, of which 4 are right; of 4 told and 3 named ones 2 are hits.
        pytest.param("token-classification", ("O", "A", "B", "C"), 4 / 6, 4 / 7, id="tokens"),
        # Each target is the token after; of 4 that count 2 are right.
        pytest.param("causal-lm", (), 2 / 4, None, id="next-token"),
    ],
)
def test_measures_of_tokens(kind, labels, accuracy, f1):
    batch = {
        "says": torch.tensor([[0, 1, 2, 3], [0, 3, 1, 0]]),
        "labels": torch.tensor([[0, 1, 1, -100], [0, 0, 1, -100]]),
    }
    scores = evaluate(Says(), [batch], engine=Engine(), kind=kind, labels=labels)
    assert scores.accuracy == pytest.approx(accuracy)
    assert scores.f1 == (None if f1 is None else pytest.approx(f1))
    assert scores.samples == 2


def scores(loss, accuracy):
    return Scores(loss=loss, accuracy=accuracy, f1=None, samples=1)


@pytest.mark.parametrize(
    ("kind", "new", "old", "better"),
    [
        pytest.param("custom", scores(2.0, 0.9), scores(1.0, 0.8), True, id="accuracy"),
        pytest.param("custom", scores(0.5, 0.9), scores(1.0, 0.9), True, id="equal-but-surer"),
        pytest.param("custom", scores(1.0, 0.9), scores(1.0, 0.9), False, id="the-same"),
        pytest.param("causal-lm", scores(0.9, 0.1), scores(1.0, 0.9), True, id="loss"),
        pytest.param("custom", scores(9.0, 0.0), None, True, id="the-first"),
    ],
)
def test_which_epoch_is_better(kind, new, old, better):
    assert is_better(new, old, kind) is better
