from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frostline.checkpoint import fingerprints
from frostline.errors import ConfigError
from frostline.finetune.checkpointing import Progress, fill, pack, unpack
from frostline.finetune.scoring import Scores

SCORES = Scores(loss=0.5, accuracy=0.9, f1=None, samples=10)
PROGRESS = Progress(epoch=3, before=SCORES, best=SCORES, best_epoch=2, seconds=1.5)


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


def begun() -> nn.Module:
    torch.manual_seed(3)
    return Tied()


BASE = fingerprints(begun())


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = begun()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def packed(model: nn.Module, optimizer: torch.optim.Optimizer, held: set[str] = frozenset()):
    return pack(PROGRESS, model, BASE, {"training": optimizer.state_dict()}, held=held)


def test_round_trip(tmp_path):
    model, optimizer = trained()
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(packed(model, optimizer))
    saved = unpack(file)
    assert saved.progress == PROGRESS
    other = begun()
    fill(other, saved.tensors, BASE)
    assert other.two.weight is other.one.weight
    assert torch.equal(other.one.weight, model.one.weight)
    assert torch.equal(other.two.bias, model.two.bias)
    assert other.seen.tolist() == [1, 1]
    restored = torch.optim.AdamW(other.parameters())
    restored.load_state_dict(saved.states["training"])
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(restored.state[mine][key], value)


def test_a_later_step_does_not_change_it(tmp_path):
    model, optimizer = trained()
    before = copy.deepcopy(model.one.weight)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(packed(model, optimizer))
    optimizer.step()
    assert torch.equal(unpack(file).tensors["one.weight"], before)


def test_what_is_held_and_has_not_moved_is_left_to_the_model(tmp_path):
    model, optimizer = trained()
    with torch.no_grad():
        model.two.bias.copy_(begun().two.bias)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(packed(model, optimizer, held={"two.bias", "one.bias"}))
    # one.bias has moved although it was held, which the proof at the end must be able to see.
    assert unpack(file).tensors.keys() == {"one.weight", "one.bias", "seen"}
    other = begun()
    fill(other, unpack(file).tensors, BASE)
    assert torch.equal(other.two.bias, model.two.bias)
    with torch.no_grad():
        other.two.bias += 1
    with pytest.raises(ConfigError, match=r"two\.bias differs\. Give it back the weights"):
        fill(other, unpack(file).tensors, BASE)


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
    file.write_bytes(packed(*trained()))
    damage(file)
    with pytest.raises(ConfigError, match=f"can't be resumed: checkpoint.pt: {reason}"):
        unpack(file)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it ran')",))

    file = tmp_path / "checkpoint.pt"
    torch.save({"progress": Attack(), "tensors": {}, "states": {}}, file)
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
    file.write_bytes(packed(*trained()))
    model = begun()
    change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=f"can't be resumed: {name} differs"):
        fill(model, unpack(file).tensors, BASE)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
