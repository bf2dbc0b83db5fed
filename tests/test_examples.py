"""Every script in examples/ runs, without network and on what is here, and says what it shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"

SAYS = {
    "accelerate_loop": "right on digits that it has not seen",
    "lightning_digits": "from step 60: 14 parts frozen",
    "plain_pytorch": "what was trained",
    "resnet_batchnorm": "statistics of a frozen BatchNorm as before: True",
}
"""A line that each prints only if what it is about has worked."""

NEEDS = {"accelerate": "accelerate", "lightning": "lightning", "huggingface": "transformers"}


def scripts() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def forget_accelerators() -> None:
    """Accelerate keeps precision and accumulation for the whole process."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


# Frameworks' remarks about one small machine, about each other, about what is frozen.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",
    "ignore:.*LeafSpec",
    "ignore:`is_gradient_checkpointing` is deprecated",
    "ignore:'pin_memory' argument is set as true",
    "ignore:.*`tie_word_embeddings`",
)
@pytest.mark.parametrize("name", scripts())
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, package in NEEDS.items():
        if name.startswith(word):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    state = torch.random.get_rng_state()
    forget_accelerators()
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    forget_accelerators()
    torch.random.set_rng_state(state)
    printed = capsys.readouterr().out
    assert SAYS.get(name, "") in printed
    assert printed.strip()


def test_every_expectation_has_its_example() -> None:
    assert set(SAYS) <= set(scripts())
