from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.finetune.data import Split
from frostline.finetune.loop import accuracy, batch_count, batches, epoch_seed, train_epoch

SPLIT = Split(inputs=torch.arange(12.0).view(6, 2), targets=torch.tensor([0, 1, 0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        pytest.param(6, 3, [3, 3], id="even"),
        pytest.param(8, 3, [3, 3, 2], id="rest"),
        pytest.param(7, 3, [3, 4], id="a-single-one-joins"),
        pytest.param(1, 3, [1], id="only-one"),
        pytest.param(3, 1, [1, 1, 1], id="one-by-one"),
        pytest.param(2, 9, [2], id="fewer-than-a-batch"),
    ],
)
def test_batches_hold_each_position_once(count, size, sizes):
    parts = batches(count, size)
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert batch_count(count, size) == len(sizes)


def test_an_epoch_depends_on_its_seed_and_number_alone():
    def train(number, *, draws):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.rand(draws)
        train_epoch(model, optimizer, SPLIT, batch_size=2, seed=1, epoch=number)
        return model[0].weight.detach()

    assert torch.equal(train(1, draws=0), train(1, draws=5))
    assert not torch.equal(train(1, draws=0), train(2, draws=0))


def test_seeds_of_neighbours_differ_and_fit_torch():
    seeds = {epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_loss_is_the_mean_over_scans_not_over_batches():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([2.0, 0.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    # Four scans of class 0 and two of class 1, in batches of 4 and 2.
    split = Split(inputs=SPLIT.inputs, targets=torch.tensor([0, 0, 0, 0, 1, 1]))
    loss = train_epoch(model, optimizer, split, batch_size=4, seed=0, epoch=1)
    right, wrong = 0.126928, 2.126928  # log(1 + exp(-2)), log(1 + exp(2))
    assert loss == pytest.approx((4 * right + 2 * wrong) / 6, abs=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    with pytest.raises(ConfigError, match=r"the loss became (nan|inf) in epoch 4; try a lower lr"):
        train_epoch(model, optimizer, SPLIT, batch_size=2, seed=0, epoch=4)


def test_accuracy_counts_every_scan_in_eval_mode():
    class Constant(nn.Module):
        def forward(self, x):
            assert not self.training
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    model = Constant()
    targets = torch.tensor([0, 0, 0, 0, 1, 0])
    assert accuracy(model, Split(inputs=SPLIT.inputs, targets=targets), batch_size=4) == 5 / 6
