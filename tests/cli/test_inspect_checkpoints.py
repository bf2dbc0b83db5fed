from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file, save_model
from torch import nn

Inspect = Callable[..., str]


def tied() -> nn.Module:
    model = nn.ModuleDict(
        {
            "norm": nn.BatchNorm1d(4),
            "embed": nn.Embedding(5, 4),
            "head": nn.Linear(4, 5, bias=False),
        }
    )
    model["head"].weight = model["embed"].weight
    return model


TORCH_FILE = """\
name                          parameters   bytes
────────────────────────────────────────────────
net.pt                                28   152 B
├─ norm                                8    72 B
│  ├─ weight                           4    16 B
│  ├─ bias                             4    16 B
│  └─ 3 buffers                             40 B
├─ embed                              20    80 B
│  └─ weight                         5×4    80 B
└─ head
   └─ weight  = embed.weight         5×4  shared

28 parameters in 3 tensors, float32, 112 B; 3 buffers, 40 B.
Tied, so frozen or trained together: head.weight = embed.weight.
Next: frostline inspect net.pt --train head
"""

SAFETENSORS = """\
name             state        parameters   bytes
────────────────────────────────────────────────
net.safetensors  ◐ partly             28   152 B
├─ embed         ● trainable          20    80 B
│  └─ weight     ● trainable         5×4    80 B
├─ head          ● trainable
│  └─ weight     ● trainable         5×4  shared
└─ norm          ❄ frozen              8    72 B
   ├─ bias       ❄ frozen              4    16 B
   ├─ weight     ❄ frozen              4    16 B
   └─ 3 buffers  ❄ frozen                   40 B

28 parameters in 3 tensors, float32, 112 B; 3 buffers, 40 B.
Trainable: 20 parameters (71.4 %), 80 B.
Tied, so frozen or trained together: head.weight = embed.weight.
Next: in Python, fl.freeze(model, all_but='head')
"""


def test_a_torch_file(inspect: Inspect, tmp_path: Path) -> None:
    torch.save(tied().state_dict(), tmp_path / "net.pt")
    assert inspect("net.pt") == TORCH_FILE


def test_a_plan_on_a_safetensors_file(inspect: Inspect, tmp_path: Path) -> None:
    save_model(tied(), str(tmp_path / "net.safetensors"))
    assert inspect("net.safetensors", "--train", "head", columns=48) == SAFETENSORS


def test_json_of_a_checkpoint(inspect: Inspect, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "net.safetensors")
    found = json.loads(inspect("net.safetensors", "--json"))
    assert (found["kind"], found["type"], found["plan"]) == ("checkpoint", None, None)
    assert found["tree"]["state"] == "unknown"
    assert found["tensors"][0]["frozen"] is None
