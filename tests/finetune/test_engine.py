from __future__ import annotations

import sys

import pytest
import torch

from frostline.errors import ConfigError
from frostline.finetune.engine import Engine, MainFailedError


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


class Box(Engine):
    """One of two processes, alone: what the main one shares lies in a list."""

    def __init__(self, box: list[object], *, is_main: bool) -> None:
        super().__init__()
        self.box, self.rank = box, 0 if is_main else 1

    def shared(self, value):
        if self.is_main:
            self.box.append(value)
            return value
        return self.box.pop(0)


def test_what_fails_in_the_main_process_first_is_not_begun_in_the_others():
    box: list[object] = []
    with pytest.raises(OSError, match="no disk"), Box(box, is_main=True).main_first():
        raise OSError("no disk")
    with pytest.raises(MainFailedError, match="in the main process: no disk"):
        Box(box, is_main=False).main_first().__enter__()
    assert box == []


def test_the_main_process_goes_first():
    box: list[object] = []
    with Box(box, is_main=True).main_first():
        assert box == []
    with Box(box, is_main=False).main_first():
        assert box == []
