from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.finetune.checkpointing import Progress, fill, pack, unpack

PROGRESS = Progress(epoch=3, accuracy_before=0.2, accuracy=0.9, seconds=1.5)


class Tied(nn.Module):
    """Tied weights, and a buffer that the state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.seen += 1
        return self.two(self.one(x))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_round_trip(tmp_path):
    model, optimizer = trained()
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(pack(PROGRESS, model, optimizer))
    progress, tensors, state = unpack(file)
    assert progress == PROGRESS
    other = Tied()
    fill(other, tensors)
    assert other.two.weight is other.one.weight
    assert torch.equal(other.one.weight, model.one.weight)
    assert torch.equal(other.two.bias, model.two.bias)
    assert other.seen.tolist() == [1, 1]
    restored = torch.optim.AdamW(other.parameters())
    restored.load_state_dict(state)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(restored.state[mine][key], value)


def test_a_later_step_does_not_change_it(tmp_path):
    model, optimizer = trained()
    before = copy.deepcopy(model.one.weight)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(pack(PROGRESS, model, optimizer))
    optimizer.step()
    assert torch.equal(unpack(file)[1]["one.weight"], before)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda file: file.unlink(), "No such file", id="missing"),
        pytest.param(lambda file: file.write_bytes(b""), "it is damaged", id="empty"),
        pytest.param(
            lambda file: file.write_bytes(file.read_bytes()[:-200]), "it is damaged", id="truncated"
        ),
        pytest.param(lambda file: torch.save({"a": 1}, file), "it is damaged", id="other-content"),
    ],
)
def test_a_damaged_checkpoint(tmp_path, damage, reason):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(pack(PROGRESS, *trained()))
    damage(file)
    with pytest.raises(ConfigError, match=f"can't be resumed: checkpoint.pt: {reason}"):
        unpack(file)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it ran')",))

    file = tmp_path / "checkpoint.pt"
    torch.save({"progress": Attack(), "tensors": {}, "optimizer": {}}, file)
    with pytest.raises(ConfigError, match="it is damaged"):
        unpack(file)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(lambda model: delattr(model, "two"), "two.bias", id="a-layer-less"),
        pytest.param(lambda model: setattr(model, "new", nn.Linear(1, 1)), "new.bias", id="more"),
        pytest.param(lambda model: setattr(model, "one", nn.Linear(2, 2)), "one.bias", id="shape"),
        pytest.param(lambda model: model.one.half(), "one.bias", id="dtype"),
    ],
)
def test_a_model_that_changed_since_is_refused_and_left_as_it_is(tmp_path, change, name):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(pack(PROGRESS, *trained()))
    model = Tied()
    change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=f"can't be resumed: {name} differs"):
        fill(model, unpack(file)[1])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
