from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import frostline as fl

Inspect = Callable[..., str]

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
├─ fc1  Linear         ❄ skipped            36  144 B
└─ fc2  Linear         ● trainable          50  200 B

86 parameters in 4 tensors, float32, 344 B.
Trainable: 50 parameters (58.1 %), 200 B.
"""

BATCHNORM = """\
name                          state        parameters      bytes  dtype
─────────────────────────────────────────────────────────────────────────
digits-cnn  DigitsCNN         ◐ partly        130,533  512.2 KiB  float32
├─ stem  Sequential           ❄ kept              352    1.6 KiB  float32
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
    *tree, line, last = printed.splitlines(keepends=True)
    assert ("".join(tree), last) == (FROZEN, f"Next: {then}\n")
    assert re.fullmatch(
        r"Frost line: 16 B a sample are kept, of relu\. Replay leaves out \d+ % of a forward pass,"
        r" which takes [\d.]+ [µm]s plainly and [\d.]+ [µm]s replayed, for 32 samples here\.\n",
        line,
    )
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


def test_a_built_in_name_wins_over_a_folder(inspect: Inspect, tmp_path: Path) -> None:
    (tmp_path / "tutorial").mkdir()
    assert inspect("tutorial") == TUTORIAL


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
    names = ("norm.weight", "norm.bias", "embed.weight", "head.weight")
    torch.save({name: torch.zeros(4) for name in names}, tmp_path / "net.pt")
    printed = inspect(model, *options, code=2)
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
