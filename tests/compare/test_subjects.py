from __future__ import annotations

import pytest
import torch

import frostline as fl
from frostline.compare.subjects import SUBJECTS, find_subject
from frostline.errors import ConfigError
from frostline.finetune.loop import batch_loss


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        pytest.param("tutorial", (3, 8), 10, id="tutorial"),
        pytest.param("digits-cnn", (32, 1, 8, 8), 5, id="digits-cnn"),
    ],
)
def test_networks_and_batches_fit(name: str, shape: tuple[int, ...], classes: int) -> None:
    subject = find_subject(name)
    network, batches = subject.network(), subject.batches(0)
    assert len(batches) >= 10
    for inputs, targets in batches:
        assert inputs.shape == shape
        assert targets.shape == shape[:1]
        assert 0 <= int(targets.min()) <= int(targets.max()) < classes
    assert batch_loss(network, batches[0]).shape == ()
    assert fl.select(network, subject.freeze).numel > 0


@pytest.mark.parametrize("name", SUBJECTS)
def test_batches_come_from_the_seed_alone(name: str) -> None:
    subject = find_subject(name)
    torch.manual_seed(1)
    one = subject.batches(7)
    torch.manual_seed(2)
    same, other = subject.batches(7), subject.batches(8)
    assert all(torch.equal(a, b) for a, b in zip(one[0], same[0], strict=True))
    assert not torch.equal(one[0][0], other[0][0])


def test_digits_are_frozen_up_to_the_last_block() -> None:
    subject = find_subject("digits-cnn")
    network = subject.network()
    fl.freeze(network, subject.freeze)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"block3", "head"}


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'digit' be trained on\?.*mean 'digits-cnn'\?"):
        find_subject("digit")
