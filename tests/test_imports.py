"""What importing costs, and that every public name is there and explained."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import pytest

import frostline
import frostline as fl

HEAVY = {"torch", "numpy", "typer", "rich", "pydantic", "yaml", "sklearn"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    report = "import sys, json; print('\\n' + json.dumps([m.split('.')[0] for m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_frostline_loads_nothing_heavy() -> None:
    assert modules_after("import frostline") & HEAVY == set()


def test_errors_are_there_without_torch() -> None:
    loaded = modules_after("import frostline; frostline.FrozenChangedError, frostline.PlanError")
    assert "torch" not in loaded


def test_a_public_name_loads_torch_when_it_is_used() -> None:
    assert "torch" in modules_after("import frostline; frostline.freeze")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--help"], id="help"),
        pytest.param(["--version"], id="version"),
        pytest.param(["finetune", "--help"], id="finetune"),
        pytest.param(["compare", "--help"], id="compare"),
        pytest.param(["inspect", "--help"], id="inspect"),
        pytest.param(["verify", "--help"], id="verify"),
        pytest.param(["merge", "--help"], id="merge"),
        pytest.param(["cache", "--help"], id="cache"),
    ],
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['frostline', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('frostline', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert end.code in (None, 0), end.code\n"
    )
    loaded = modules_after(code)
    assert "typer" in loaded
    assert loaded & {"torch", "numpy", "sklearn"} == set()


@pytest.mark.parametrize("name", fl.__all__)
def test_every_public_name_resolves_and_is_explained(name: str) -> None:
    value = getattr(fl, name)
    if name == "__version__":
        assert value == "0.1.0"
        return
    assert value.__doc__
    if isinstance(value, ModuleType):
        assert value.__name__ == f"frostline.{name}"
        return
    assert value.__module__.startswith("frostline.")
    # dataclass() writes "Name(field: type, ...)" where there is no docstring.
    assert not value.__doc__.startswith(f"{value.__name__}(")


def test_a_public_name_is_never_the_folder_of_the_same_name() -> None:
    """But for ``fl.schedules``, which is one."""
    code = (
        "import importlib, pkgutil, types, frostline\n"
        "for found in pkgutil.walk_packages(frostline.__path__, 'frostline.'):\n"
        "    if found.name != 'frostline.__main__':\n"
        "        importlib.import_module(found.name)\n"
        "for name in set(frostline.__all__) - {'schedules'}:\n"
        "    assert not isinstance(getattr(frostline, name), types.ModuleType), name\n"
    )
    assert "frostline" in modules_after(code)


def test_dir_lists_every_public_name() -> None:
    assert set(fl.__all__) <= set(dir(frostline))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'frostline' has no attribute 'freze'"):
        fl.freze  # noqa: B018 (the access is what is tested)


def test_star_import_gives_exactly_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from frostline import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(fl.__all__)
