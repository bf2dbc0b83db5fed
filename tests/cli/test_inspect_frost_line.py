"""What ``frostline inspect`` shows of replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.finetune import job
from frostline.finetune.config import FinetuneConfig

Inspect = Callable[..., str]

NETS = """
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

def deep():
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2))

def noisy():
    net = plain()
    net[0].requires_grad_(False)
    net[0].register_forward_hook(lambda *call: None)
    return net
"""


@pytest.fixture
def nets(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)


def cells(printed: str) -> dict[str, str]:
    """The tree's states by the modules' names."""
    tree, _, _ = printed.partition("\n\n")
    heading, _, *rows = tree.splitlines()
    start = heading.index("state")
    return {row.lstrip("├─└│ ").split("  ")[0]: row[start:].split("  ")[0] for row in rows}


def test_the_tree_shows_what_is_skipped_and_what_is_kept(inspect: Inspect) -> None:
    printed = inspect("digits-cnn", "--train", "head", "--depth", "1")
    assert cells(printed) == {
        "digits-cnn": "◐ partly",
        "stem": "❄ skipped",
        "block1": "❄ skipped",
        "block2": "❄ skipped",
        "block3": "❄ kept",
        "head": "● trainable",
    }
    assert "Frost line: 2.0 KiB a sample are kept, of block3. Replay leaves out " in printed


def test_equal_blocks_are_told_apart_where_replay_does(inspect: Inspect, nets: None) -> None:
    printed = inspect("nets.py:deep", "--train", "4", "--input-shape", "8", "--depth", "1")
    assert [cells(printed)[name] for name in ("0 … 2", "3")] == ["❄ skipped", "❄ kept"]
    alone = cells(inspect("nets.py:deep", "--train", "4", "--input-shape", "8", "--all"))
    assert [alone[name] for name in "01234"] == [
        *["❄ skipped"] * 3,
        "❄ kept",
        "● trainable",
    ]


def test_json_has_it(inspect: Inspect, nets: None) -> None:
    found = json.loads(inspect("nets.py:plain", "--train", "2", "--input-shape", "8", "--json"))
    line = found["frost_line"]
    assert line["skipped"] == ["0", "1"]
    assert line["kept"] == {"1": 32}
    assert (line["bytes_per_sample"], line["samples"], line["declined"]) == (32, 32, None)
    assert line["needless_inputs"] == ["0"]
    assert 0 < line["skipped_share"] <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["digits-cnn"], id="no-plan"),
        pytest.param(["nets.py:plain", "--train", "2"], id="no-input"),
    ],
)
def test_without_a_plan_or_an_input_there_is_none(
    inspect: Inspect, nets: None, arguments: list[str]
) -> None:
    assert json.loads(inspect(*arguments, "--json"))["frost_line"] is None
    assert "Frost line" not in inspect(*arguments)


def test_a_model_frozen_by_its_factory_needs_no_plan(inspect: Inspect, nets: None) -> None:
    printed = inspect("nets.py:noisy", "--input-shape", "8")
    assert "Frozen, and made every time: 0, as a hook hangs on it, which would not run." in printed


def test_a_run_of_a_built_in_network_knows_its_plan(
    inspect: Inspect, swift: None, tmp_path: Path
) -> None:
    run = job.start(FinetuneConfig(out=tmp_path, epochs=1, train=("head",), replay="off")).run
    assert cells(inspect(str(run), "--depth", "1"))["block3"] == "❄ kept"
    other = inspect(str(run), "--depth", "1", "--train", "block3", "--train", "head")
    assert cells(other)["block2"] == "❄ kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["nets.py:plain", "--train", "2", "--input-shape", "6,x"],
            "--input-shape: got '6,x', expected sizes of a sample, as 3,224,224",
            id="no-sizes",
        ),
        pytest.param(
            ["nets.py:plain", "--train", "2", "--input-shape", "0"], "got '0'", id="nothing"
        ),
        pytest.param(
            ["nets.py:plain", "--train", "2", "--input-shape", "5"],
            "a forward pass of floats of shape (32, 5) raised RuntimeError",
            id="another-size",
        ),
        pytest.param(
            ["net.pt", "--input-shape", "8"], "a checkpoint holds no code to run", id="checkpoint"
        ),
    ],
)
def test_a_wrong_shape_is_one_line(
    inspect: Inspect, nets: None, arguments: list[str], message: str
) -> None:
    printed = inspect(*arguments, code=2)
    assert message in printed
    assert printed.count("\n") == 1


def test_where_nothing_is_replayed_it_says_why(inspect: Inspect, nets: None) -> None:
    printed = inspect("nets.py:plain", "--input-shape", "8")
    assert "Frost line: none, nothing is replayed: nothing in the model is frozen" in printed
