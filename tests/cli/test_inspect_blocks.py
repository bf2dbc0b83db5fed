"""A model of equal blocks, tied weights and two dtypes, of the user's own file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import frostline as fl

pytestmark = pytest.mark.usefixtures("gpt")


Inspect = Callable[..., str]

GPT = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width, bias=False)

class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 4)
        self.layers = nn.ModuleList(Block(4) for _ in range(12))
        self.layers[11].mlp.bfloat16()
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 50, bias=False)
        self.head.weight = self.embed.weight
        print("a model that prints")
"""

GPT_TREE = """\
name                          state        parameters      bytes  dtype
──────────────────────────────────────────────────────────────────────────
gpt.py:GPT  GPT               ● trainable         489    1.9 KiB  mixed
├─ scale                      ● trainable      scalar        4 B  float32
├─ mask                       · buffer              2        2 B  bool
├─ embed  Embedding           ● trainable         200      800 B  float32
│  └─ weight                  ● trainable        50×4      800 B  float32
├─ layers  ModuleList         ● trainable         288    1.1 KiB  mixed
│  ├─ 0 … 10  Block           ● trainable     11 × 24  11 × 96 B  float32
│  │  ├─ norm  LayerNorm      ● trainable           8       32 B  float32
│  │  │  ├─ weight            ● trainable           4       16 B  float32
│  │  │  └─ bias              ● trainable           4       16 B  float32
│  │  └─ mlp  Linear          ● trainable          16       64 B  float32
│  │     └─ weight            ● trainable         4×4       64 B  float32
│  └─ 11  Block               ● trainable          24       64 B  mixed
│     ├─ norm  LayerNorm      ● trainable           8       32 B  float32
│     │  ├─ weight            ● trainable           4       16 B  float32
│     │  └─ bias              ● trainable           4       16 B  float32
│     └─ mlp  Linear          ● trainable          16       32 B  bfloat16
│        └─ weight            ● trainable         4×4       32 B  bfloat16
└─ head  Linear               ● trainable                         float32
   └─ weight  = embed.weight  ● trainable        50×4     shared  float32

489 parameters in 38 tensors, float32/bfloat16, 1.9 KiB; 1 buffer, 2 B.
Trainable: 489 parameters (100 %), 1.9 KiB.
Tied, so frozen or trained together: head.weight = embed.weight.
Next: frostline inspect gpt.py:GPT --train head
"""

NARROW = """\
name             state        parameters      bytes  dtype
────────────────────────────────────────────────────────────
gpt.py:GPT       ◐ partly            489    1.9 KiB  mixed
├─ scale         ❄ frozen         scalar        4 B  float32
├─ mask          · buffer              2        2 B  bool
├─ embed  Embe…  ● trainable         200      800 B  float32
│  └─ weight     ● trainable        50×4      800 B  float32
├─ layers  Mod…  ❄ frozen            288    1.1 KiB  mixed
│  ├─ 0 … 10     ❄ frozen        11 × 24  11 × 96 B  float32
│  └─ 11  Block  ❄ frozen             24       64 B  mixed
└─ head  Linear  ● trainable                         float32
   └─ weight     ● trainable        50×4     shared  float32

489 parameters in 38 tensors, float32/bfloat16, 1.9 KiB; 1 buffer, 2 B.
Trainable: 200 parameters (40.9 %), 800 B.
Tied, so frozen or trained together: head.weight = embed.weight.
Next: in Python, fl.freeze(model, all_but='head')
"""


@pytest.fixture
def gpt(tmp_path: Path) -> None:
    (tmp_path / "gpt.py").write_text(GPT)


@pytest.mark.parametrize("columns", [80, 120])
def test_equal_blocks_ties_and_dtypes(inspect: Inspect, columns: int) -> None:
    assert inspect("gpt.py:GPT", columns=columns) == GPT_TREE


def test_where_it_is_narrow_classes_are_shortened_and_names_are_not(inspect: Inspect) -> None:
    assert inspect("gpt.py:GPT", "--train", "head", "--depth", "2", columns=60) == NARROW


def test_all_shows_every_block(inspect: Inspect) -> None:
    assert inspect("gpt.py:GPT", "--all").count("mlp  Linear") == 12


def test_a_block_that_stands_out_is_shown_apart(inspect: Inspect) -> None:
    printed = inspect("gpt.py:GPT", "--freeze", "layers.4.mlp", "--depth", "2")
    blocks = [line.split()[1:4] for line in printed.splitlines() if "Block" in line]
    assert blocks == [
        ["├─", "0", "…"],
        ["├─", "4", "Block"],
        ["├─", "5", "…"],
        ["└─", "11", "Block"],
    ]


def test_json_has_everything_and_nothing_else(inspect: Inspect) -> None:
    found: dict[str, Any] = json.loads(inspect("gpt.py:GPT", "--json", "--train", "head"))
    assert {key: found[key] for key in ("source", "kind", "type", "plan", "totals")} == {
        "source": "gpt.py:GPT",
        "kind": "model",
        "type": "GPT",
        "plan": [{"freeze": "**"}, {"train": "head"}],
        "totals": {
            "parameter_tensors": 38,
            "parameters": 489,
            "trainable": 200,
            "parameter_bytes": 1924,
            "trainable_bytes": 800,
            "buffer_tensors": 1,
            "buffer_bytes": 2,
        },
    }
    assert found["tree"]["state"] == "partly"
    layers = found["tree"]["children"][1]
    assert [block["path"] for block in layers["children"]] == [f"layers.{n}" for n in range(12)]
    assert layers["children"][11]["children"][1] == {
        "name": "mlp",
        "path": "layers.11.mlp",
        "type": "Linear",
        "state": "frozen",
        "dtypes": ["bfloat16"],
        "parameter_tensors": 1,
        "parameters": 16,
        "trainable": 0,
        "parameter_bytes": 32,
        "trainable_bytes": 0,
        "buffer_tensors": 0,
        "buffer_bytes": 0,
        "tensors": ["layers.11.mlp.weight"],
        "children": [],
    }
    assert len(found["tensors"]) == 40
    assert found["tensors"][-1] == {
        "name": "head.weight",
        "kind": "parameter",
        "shape": [50, 4],
        "dtype": "float32",
        "elements": 200,
        "nbytes": 800,
        "frozen": False,
        "same_as": "embed.weight",
    }


@pytest.mark.parametrize(
    ("options", "then"),
    [
        pytest.param(["--freeze", "embed"], "fl.freeze(model, 'embed')", id="--freeze"),
        pytest.param(
            ["--train", "head", "--train", "scale"],
            "fl.freeze(model, all_but=['head', 'scale'])",
            id="--train twice",
        ),
        pytest.param(
            ["--plan", "plan.yaml"], "fl.freeze(model, fl.Plan.load('plan.yaml'))", id="--plan"
        ),
    ],
)
def test_the_next_step_in_python(
    inspect: Inspect, tmp_path: Path, options: list[str], then: str
) -> None:
    fl.Plan.freezing("embed").save(tmp_path / "plan.yaml")
    assert inspect("gpt.py:GPT", *options).splitlines()[-1] == f"Next: in Python, {then}"
