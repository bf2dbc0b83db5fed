from __future__ import annotations

import sys

import pytest
import torch

from frostline.errors import ConfigError
from frostline.finetune.data import FINETUNING_DIGITS, PRETRAINING_DIGITS, load_digits_task


@pytest.mark.parametrize(
    ("digits", "train", "held_out"),
    [
        pytest.param(PRETRAINING_DIGITS, 676, 225, id="pretraining"),
        pytest.param(FINETUNING_DIGITS, 671, 225, id="fine-tuning"),
        pytest.param((9, 3), 272, 91, id="any-two"),
    ],
)
def test_every_scan_of_the_digits_is_in_one_part(digits, train, held_out):
    task = load_digits_task(digits, seed=0)
    assert (len(task.train), len(task.held_out)) == (train, held_out)
    scans = torch.cat([task.train.inputs, task.held_out.inputs])
    assert scans.shape == (train + held_out, 1, 8, 8)
    assert scans.dtype == torch.float32
    assert (scans.min(), scans.max()) == (0, 1)
    assert len(scans.flatten(1).unique(dim=0)) == len(scans)


def test_labels_are_positions_in_the_digits():
    def scans(digits, label):
        task = load_digits_task(digits, seed=0)
        parts = (task.train, task.held_out)
        return torch.cat([part.inputs[part.targets == label] for part in parts]).unique(dim=0)

    nines = scans((9, 3), 0)
    assert len(nines) == 180
    assert torch.equal(nines, scans((3, 9), 1))
    assert not torch.equal(nines, scans((3, 9), 0)[:180])


def test_each_digit_has_its_share_held_out():
    task = load_digits_task(FINETUNING_DIGITS, seed=3)
    assert task.held_out.targets.bincount().tolist() == [46, 45, 45, 44, 45]


def test_the_seed_decides_the_split():
    first, same, other = (load_digits_task((5, 6), seed=seed).held_out.inputs for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    load_digits_task((5, 6), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'frostline\[demo\]'"):
        load_digits_task((5, 6), seed=0)


def test_a_broken_scikit_learn_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("frostline.finetune.data.import_module", broken)
    with pytest.raises(ConfigError, match=r"does not import \(libgomp"):
        load_digits_task((5, 6), seed=0)
