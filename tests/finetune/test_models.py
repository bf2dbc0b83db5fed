from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.models import load_model
from frostline.finetune.networks import DigitsCNN, TutorialNet

MODEL = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from layers import Layer

print("built")
NUMBER = 3
SHARED = nn.Linear(2, 2)

@dataclass
class Config:
    width: int = 2

class Net(nn.Module):
    def __init__(self, width: int = Config().width) -> None:
        super().__init__()
        self.layer = Layer(width)

    @classmethod
    def small(cls) -> Net:
        return cls(1)

def build():
    from late import WIDTH
    return Net(WIDTH)

def sized(width, *, depth, name="net"):
    return Net(width)

def forgotten():
    Net()

def listed():
    return [Net()]

def broken():
    return nn.Linear(-1, 2)

def left():
    raise SystemExit(2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``nets/model.py``, and its neighbours ``layers`` and ``late``."""
    nets = tmp_path / "nets"
    nets.mkdir()
    (nets / "model.py").write_text(MODEL)
    (nets / "layers.py").write_text(
        "from torch import nn\n"
        "class Layer(nn.Linear):\n"
        "    def __init__(self, width): super().__init__(width, 1)\n"
    )
    (nets / "late.py").write_text("WIDTH = 5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _modules_as_before(tmp_path: Path) -> Iterator[None]:
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [pytest.param("tutorial", TutorialNet, id="t"), pytest.param("digits-cnn", DigitsCNN, id="d")],
)
def test_built_in_names(name: str, expected: type[nn.Module]) -> None:
    assert type(load_model(name)) is expected


@pytest.mark.parametrize(
    ("source", "width"),
    [
        pytest.param("nets/model.py:build", 5, id="file, function, late import"),
        pytest.param("./nets/../nets/model.py:Net", 2, id="file, class"),
        pytest.param("nets/model.py:Net.small", 1, id="file, class method"),
        pytest.param("nets/model.py:SHARED", 2, id="file, module object"),
    ],
)
def test_files(folder: Path, source: str, width: int) -> None:
    model = load_model(source)
    assert next(model.parameters()).shape[1] == width


def test_an_absolute_path(folder: Path) -> None:
    assert type(load_model(f"{folder}/nets/model.py:Net")).__name__ == "Net"


def test_a_module_of_the_current_folder(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "parts.py").write_text("from torch.nn import Identity as Part\n")
    (folder / "package" / "net.py").write_text("from .parts import Part as build\n")
    assert isinstance(load_model("package.net:build"), nn.Identity)


def test_an_installed_module() -> None:
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


def test_nothing_is_left_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = list(sys.path)
    load_model("nets/model.py:build")
    with pytest.raises(ModelSourceError):
        load_model("nets/model.py:broken")
    assert sys.path == path
    assert sys.dont_write_bytecode is False
    assert sorted(file.name for file in (folder / "nets").iterdir()) == [
        "late.py",
        "layers.py",
        "model.py",
    ]
    assert capsys.readouterr() == ("", "built\nbuilt\n")


def test_a_file_that_does_not_import_is_forgotten(folder: Path) -> None:
    (folder / "bad.py").write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ModelSourceError):
        load_model("bad.py:build")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("digits-cnn", id="built-in"),
        pytest.param("nets/model.py:SHARED", id="module object in a file"),
        pytest.param("shared:MODEL", id="module object in a module, which is imported once"),
    ],
)
def test_each_call_gives_a_model_of_its_own(folder: Path, source: str) -> None:
    (folder / "shared.py").write_text("from torch import nn\nMODEL = nn.Linear(2, 2)\n")
    first, second = load_model(source), load_model(source)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_a_model_from_a_file_can_be_pickled(folder: Path) -> None:
    model = load_model("nets/model.py:build")
    copy = pickle.loads(pickle.dumps(model))
    assert type(copy) is type(model)
    torch.testing.assert_close(copy.state_dict(), model.state_dict())


def test_two_folders_with_equal_names_are_kept_apart(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "model.py").write_text("from layers import Layer as build\n")
    (other / "layers.py").write_text("from torch.nn import Identity as Layer\n")
    assert type(load_model("nets/model.py:build").layer).__name__ == "Layer"
    assert type(load_model("other/model.py:build")).__name__ == "Identity"
    assert type(load_model("nets/model.py:build").layer).__name__ == "Layer"


FORMS = "a built-in name, package.module:factory or path/model.py:factory"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "digits",
            f"there is no built-in model 'digits' (there are tutorial, digits-cnn): give {FORMS}",
            id="no such name",
        ),
        pytest.param(
            "",
            f"there is no built-in model '' (there are tutorial, digits-cnn): give {FORMS}",
            id="empty",
        ),
        pytest.param(
            "torch.nn.Identity",
            "there is no built-in model 'torch.nn.Identity'. Did you mean 'torch.nn:Identity'?",
            id="a dot for a colon",
        ),
        pytest.param(
            "nets/model.py",
            "model 'nets/model.py': name what builds it too, as in nets/model.py:build_model",
            id="no factory",
        ),
        pytest.param(
            "tuned.safetensors",
            "model 'tuned.safetensors' is a checkpoint, which holds weights but no code: give"
            f" {FORMS}, and load the weights there",
            id="a checkpoint",
        ),
        pytest.param(
            "nets/nodel.py:build",
            "model 'nets/nodel.py:build': there is no file nets/nodel.py",
            id="no such file",
        ),
        pytest.param(
            "not_there.net:build",
            "there is no module 'not_there' to import: install its package, run from the folder"
            " that holds it, or name a file (path/model.py:factory)",
            id="no such package",
        ),
        pytest.param(
            "torch.nope:build",
            "there is no module 'torch.nope' to import: install its package, run from the folder"
            " that holds it, or name a file (path/model.py:factory)",
            id="no such module in a package",
        ),
        pytest.param(
            "nets/model.py:biuld",
            "nets/model.py has no 'biuld'. Nearest names: 'build'.",
            id="no such factory",
        ),
        pytest.param(
            "nets/model.py:zzz",
            "nets/model.py has no 'zzz'. It has: 'Config', 'Net', 'build', 'sized', 'forgotten',"
            " 'listed'.",
            id="nothing like it, and nothing that is only imported there",
        ),
        pytest.param(
            "nets/model.py:Net.smal",
            "nets/model.py has no 'Net.smal'. Nearest names: 'small'.",
            id="no such method",
        ),
        pytest.param(
            "nets/model.py:NUMBER",
            "model 'nets/model.py:NUMBER' is of type int: name a function or class that builds a"
            " torch.nn.Module",
            id="no factory but a value",
        ),
        pytest.param(
            "nets/model.py:sized",
            "model 'nets/model.py:sized' needs arguments (width, depth): name a function that"
            " takes none and builds the model",
            id="a factory with arguments",
        ),
        pytest.param(
            "nets/model.py:forgotten",
            "model 'nets/model.py:forgotten' should return a torch.nn.Module, got NoneType: does"
            " it end in return?",
            id="returns nothing",
        ),
        pytest.param(
            "nets/model.py:listed",
            "model 'nets/model.py:listed' should return a torch.nn.Module, got list",
            id="returns something else",
        ),
        pytest.param(
            "nets/model.py:broken",
            "model 'nets/model.py:broken' raised RuntimeError: Trying to create tensor with"
            " negative dimension -1: [2, -1] (nets/model.py, line 38)",
            id="raises in what it calls",
        ),
        pytest.param(
            "nets/model.py:left",
            "model 'nets/model.py:left' raised SystemExit: 2 (nets/model.py, line 41)",
            id="exits",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder: Path, source: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=f"^{re.escape(message)}$"):
        load_model(source)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        pytest.param(
            "import torch\nx = undefined\n",
            "importing bad.py raised NameError: name 'undefined' is not defined (bad.py, line 2)",
            id="raises",
        ),
        pytest.param(
            "def f(:\n",
            "importing bad.py raised SyntaxError: invalid syntax (bad.py, line 1)",
            id="does not compile",
        ),
        pytest.param(
            "import not_there\n",
            "importing bad.py raised ModuleNotFoundError: No module named 'not_there'"
            " (bad.py, line 1)",
            id="lacks a package",
        ),
        pytest.param(
            "\nimport json\njson.loads('{')\n",
            "importing bad.py raised JSONDecodeError: Expecting property name enclosed in double"
            " quotes: line 1 column 2 (char 1) (bad.py, line 3)",
            id="raises in an installed package",
        ),
        pytest.param(
            "import inner\n",
            "importing bad.py raised ZeroDivisionError: division by zero (inner.py, line 1)",
            id="raises in a neighbour",
        ),
        pytest.param(
            "raise ValueError('two\\nlines')\n",
            "importing bad.py raised ValueError: two lines (bad.py, line 1)",
            id="message of two lines",
        ),
        pytest.param(
            "raise KeyError\n",
            "importing bad.py raised KeyError (bad.py, line 1)",
            id="no message",
        ),
        pytest.param(
            "import sys\nsys.exit('usage: bad.py FILE')\n",
            "importing bad.py raised SystemExit: usage: bad.py FILE (bad.py, line 2)",
            id="a script that exits",
        ),
        pytest.param(
            "from .layers import Layer\n",
            "importing bad.py raised ImportError: attempted relative import with no known parent"
            " package (bad.py, line 1); it belongs to a package, so name it as a module:"
            " package.module:factory",
            id="a part of a package",
        ),
    ],
)
def test_a_file_that_does_not_import(folder: Path, code: str, message: str) -> None:
    (folder / "bad.py").write_text(code)
    (folder / "inner.py").write_text("1 / 0\n")
    with pytest.raises(ModelSourceError, match=f"^{re.escape(message)}$"):
        load_model("bad.py:build")


def test_a_module_that_lacks_a_package_is_not_called_missing(folder: Path) -> None:
    (folder / "needy.py").write_text("import not_there\n")
    message = (
        "importing needy raised ModuleNotFoundError: No module named 'not_there' (needy.py, line 1)"
    )
    with pytest.raises(ModelSourceError, match=f"^{re.escape(message)}$"):
        load_model("needy:build")


def test_ctrl_c_in_a_factory_is_no_error_of_the_model(folder: Path) -> None:
    (folder / "slow.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_model("slow.py:build")


def test_an_error_of_installed_code_alone_is_placed_there() -> None:
    with pytest.raises(ValueError, match="double quotes") as caught:
        json.loads("{")
    assert caught.tb.tb_next
    alone = caught.value.with_traceback(caught.tb.tb_next)
    assert re.search(r"\(.*json.decoder\.py, line \d+\)$", describe(alone))
