from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import frostline as fl
from frostline.cli.app import run

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


@pytest.fixture
def inspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inspect:
    """Run ``frostline inspect`` in an empty folder, 80 columns wide; give what stdout holds."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, columns: int = 80, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["inspect", *arguments]) == code
        out, err = capsys.readouterr()
        if code:
            assert out == ""
            return err
        assert "error" not in err
        return "".join(f"{line.rstrip()}\n" for line in out.splitlines())

    return call


TUTORIAL = """\
name                   state        parameters  bytes
─────────────────────────────────────────────────────
tutorial  TutorialNet  ● trainable          86  344 B
├─ fc1  Linear         ● trainable          36  144 B
│  ├─ weight           ● trainable         4×8  128 B
│  └─ bias             ● trainable           4   16 B
└─ fc2  Linear         ● trainable          50  200 B
   ├─ weight           ● trainable        10×4  160 B
   └─ bias             ● trainable          10   40 B

86 parameters in 4 tensors, float32, 344 B.
Trainable: 86 parameters (100 %), 344 B.
Next: frostline inspect tutorial --train fc2
"""

FROZEN = """\
name                   state        parameters  bytes
─────────────────────────────────────────────────────
tutorial  TutorialNet  ◐ partly             86  344 B
├─ fc1  Linear         ❄ frozen             36  144 B
└─ fc2  Linear         ● trainable          50  200 B

86 parameters in 4 tensors, float32, 344 B.
Trainable: 50 parameters (58.1 %), 200 B.
"""

BATCHNORM = """\
name                          state        parameters      bytes  dtype
─────────────────────────────────────────────────────────────────────────
digits-cnn  DigitsCNN         ◐ partly        130,533  512.2 KiB  float32
├─ stem  Sequential           ❄ frozen            352    1.6 KiB  float32
│  ├─ 0  Conv2d               ❄ frozen            288    1.1 KiB  float32
│  │  └─ weight               ❄ frozen       32×1×3×3    1.1 KiB  float32
│  └─ 1  BatchNorm2d          ❄ frozen             64      520 B  float32
│     ├─ weight               ❄ frozen             32      128 B  float32
│     ├─ bias                 ❄ frozen             32      128 B  float32
│     ├─ running_mean         ❄ frozen             32      128 B  float32
│     ├─ running_var          ❄ frozen             32      128 B  float32
│     └─ num_batches_tracked  ❄ frozen         scalar        8 B  int64
├─ block1  Sequential         ● trainable      18,560   73.0 KiB  float32
│  ├─ 0  Conv2d               ● trainable      18,432   72.0 KiB  float32
│  │  └─ weight               ● trainable   64×32×3×3   72.0 KiB  float32
│  └─ 1  BatchNorm2d          ● trainable         128    1.0 KiB  float32
│     ├─ weight               ● trainable          64      256 B  float32
│     ├─ bias                 ● trainable          64      256 B  float32
│     ├─ running_mean         · buffer             64      256 B  float32
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


def test_a_model_as_it_is(inspect: Inspect) -> None:
    assert inspect("tutorial") == TUTORIAL


@pytest.mark.parametrize(
    ("options", "then"),
    [
        pytest.param(["--freeze", "fc1"], "frostline compare --freeze fc1", id="--freeze"),
        pytest.param(
            ["--freeze", "fc1.weight", "--freeze", "fc1.bias"],
            "frostline compare --freeze fc1.weight --freeze fc1.bias",
            id="--freeze twice",
        ),
        pytest.param(["--train", "fc2"], "frostline compare", id="--train"),
        pytest.param(["--plan", "plan.yaml"], "frostline compare", id="--plan"),
    ],
)
def test_what_a_plan_would_do(
    inspect: Inspect, tmp_path: Path, options: list[str], then: str
) -> None:
    fl.Plan.freezing("fc1").save(tmp_path / "plan.yaml")
    printed = inspect("tutorial", *options, "--depth", "1")
    assert printed == f"{FROZEN}Next: {then}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


def test_frozen_buffers_are_told_from_live_ones(inspect: Inspect) -> None:
    printed = inspect("digits-cnn", "--freeze", "stem", "--all").splitlines()
    assert printed[:19] == BATCHNORM.splitlines()


@pytest.mark.parametrize(
    ("options", "then"),
    [
        pytest.param([], "frostline inspect digits-cnn --train head", id="no plan"),
        pytest.param(["--train", "head"], "frostline finetune --train head", id="--train"),
        pytest.param(
            ["--freeze", "block?.**"], "frostline finetune --freeze 'block?.**'", id="quoted"
        ),
    ],
)
def test_the_next_command(inspect: Inspect, options: list[str], then: str) -> None:
    assert inspect("digits-cnn", *options).splitlines()[-1] == f"Next: {then}"


@pytest.fixture
def gpt(tmp_path: Path) -> None:
    (tmp_path / "gpt.py").write_text(GPT)


@pytest.mark.usefixtures("gpt")
@pytest.mark.parametrize("columns", [80, 120])
def test_equal_blocks_ties_and_dtypes(inspect: Inspect, columns: int) -> None:
    assert inspect("gpt.py:GPT", columns=columns) == GPT_TREE


@pytest.mark.usefixtures("gpt")
def test_where_it_is_narrow_classes_are_shortened_and_names_are_not(inspect: Inspect) -> None:
    assert inspect("gpt.py:GPT", "--train", "head", "--depth", "2", columns=60) == NARROW


@pytest.mark.usefixtures("gpt")
def test_all_shows_every_block(inspect: Inspect) -> None:
    assert inspect("gpt.py:GPT", "--all").count("mlp  Linear") == 12


@pytest.mark.usefixtures("gpt")
def test_a_block_that_stands_out_is_shown_apart(inspect: Inspect) -> None:
    printed = inspect("gpt.py:GPT", "--freeze", "layers.4.mlp", "--depth", "2")
    blocks = [line.split()[1:4] for line in printed.splitlines() if "Block" in line]
    assert blocks == [
        ["├─", "0", "…"],
        ["├─", "4", "Block"],
        ["├─", "5", "…"],
        ["└─", "11", "Block"],
    ]


@pytest.mark.usefixtures("gpt")
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
@pytest.mark.usefixtures("gpt")
def test_the_next_step_in_python(
    inspect: Inspect, tmp_path: Path, options: list[str], then: str
) -> None:
    fl.Plan.freezing("embed").save(tmp_path / "plan.yaml")
    assert inspect("gpt.py:GPT", *options).splitlines()[-1] == f"Next: in Python, {then}"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        pytest.param(
            "tutorial",
            ["--freeze", "fc1", "--train", "fc2"],
            "--freeze and --train can't go together: give one of them",
            id="freeze and train",
        ),
        pytest.param(
            "tutorial",
            ["--freeze", "fc1", "--plan", "plan.yaml"],
            "--freeze and --plan can't go together: give one of them",
            id="freeze and plan",
        ),
        pytest.param(
            "tutorial",
            ["--train", "fc3"],
            "selector 'fc3' matches none of the model's 4 parameters. Nearest names:",
            id="nothing selected",
        ),
        pytest.param(
            "tutorial", ["--freeze", "**"], "this leaves nothing to train", id="everything"
        ),
        pytest.param("tutorial", ["--plan", "plan.yaml"], "plan.yaml is empty", id="empty plan"),
        pytest.param("tutorial", ["--plan", "none.yaml"], "cannot read the plan", id="no plan"),
        pytest.param(
            "net.pt",
            ["--freeze", "type:Linear"],
            "'type:' selects by class, and a checkpoint does not tell classes: select by name, or"
            " inspect the model that it belongs to",
            id="a class in a checkpoint",
        ),
        pytest.param(
            "net.pt",
            ["--train", "haed"],
            "selector 'haed' matches none of the model's 4 parameters. Nearest names: 'head'",
            id="nothing selected in a checkpoint",
        ),
        pytest.param("gone.pt", [], "there is no file gone.pt", id="no checkpoint"),
        pytest.param("model.py:build", [], "there is no file model.py", id="no model file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    inspect: Inspect, tmp_path: Path, model: str, options: list[str], message: str
) -> None:
    (tmp_path / "plan.yaml").touch()
    torch.save(tied().state_dict(), tmp_path / "net.pt")
    printed = inspect(model, *options, code=2)
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_built_in_name_wins_over_a_folder(inspect: Inspect, tmp_path: Path) -> None:
    (tmp_path / "tutorial").mkdir()
    assert inspect("tutorial") == TUTORIAL
