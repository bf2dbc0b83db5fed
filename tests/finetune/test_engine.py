from __future__ import annotations

import sys

import pytest
import torch

from frostline.errors import ConfigError
from frostline.finetune.engine import Engine


def test_without_accelerate_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"needs accelerate, .*pip install 'frostline\[hf\]'"):
        Engine()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_half_precision_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU.*; take bf16, or no"):
        Engine("fp16")


def test_one_job_after_another_may_have_another_precision():
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        engine = Engine(precision)
        with engine.autocast():
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_alone_it_is_the_main_process_and_agrees_with_itself():
    engine = Engine()
    assert (engine.rank, engine.ranks, engine.is_main) == (0, 1, True)
    assert engine.total((1.0, 2.0)) == [1.0, 2.0]
    assert engine.gathered("a") == ["a"]
    assert engine.by_main(lambda: 3) == 3
    assert engine.any(True) is True
    model = torch.nn.Linear(2, 2)
    assert engine.spread(model) is model
    batch = {"a": torch.ones(2), "b": [torch.zeros(1)]}
    assert engine.to_device(batch)["b"][0].device == engine.device
