"""Models by name: the built-in ones, and those that a user's own code builds."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from frostline.checkpoint.listing import is_checkpoint
from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.networks import BUILTIN
from frostline.selection.suggest import nearest

# Prefixed and hashed: such a module can hide no other, and two files called model.py are two.
_FILE_MODULE = "_frostline_model_"


def load_model(source: str) -> nn.Module:
    """Build the model that ``source`` names.

    While a user's code runs it can import what lies in the file's folder (for a module: in the
    current folder). Afterwards ``sys.path`` is as before and no ``__pycache__`` is left. What the
    code prints goes to stderr, since stdout is for results.

    Args:
        source: a built-in name (``tutorial``, ``digits-cnn``), ``package.module:factory`` or
            ``path/model.py:factory``. The factory is called without arguments; it may be dotted
            (``Net.small``). A module object in place of a factory is copied.

    Returns:
        A model of its own: no two calls share parameters, unless the factory hands out shared ones.

    Raises:
        ModelSourceError: (a ValueError) there is no such name, file or factory; importing or
            calling it raised; or what it gave is no ``nn.Module``.

    >>> load_model("tutorial").fc1
    Linear(in_features=8, out_features=4, bias=True)
    >>> load_model("torch.nn:Identity")
    Identity()
    """
    if source in BUILTIN:
        return BUILTIN[source]()
    place, _, factory = source.rpartition(":")
    if not place or not all(part.isidentifier() for part in factory.split(".")):
        raise ModelSourceError(_unnamed(source))
    if not (place.endswith(".py") or "/" in place or "\\" in place):
        with importable(Path()):
            return _build(find_attribute(_import_module(place), factory, place), source)
    file = Path(place)
    if not file.is_file():
        raise ModelSourceError(f"model {source!r}: there is no file {place}")
    with importable(file.parent):
        return _build(find_attribute(import_file(file), factory, place), source)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # The module itself, or a package above it; not something that its code imports.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise ModelSourceError(
                f"there is no module {missing!r} to import: install its package, run from the"
                " folder that holds it, or name a file (path/model.py:factory)"
            ) from error
        raise ModelSourceError(f"importing {name} raised {describe(error)}") from error


def import_file(file: Path) -> ModuleType:
    """Run a Python file as a module of its own name; call it under :func:`importable`.

    Raises:
        ModelSourceError: it is no Python file, or importing it raised.
    """
    path = file.resolve()
    name = f"{_FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelSourceError(f"{file} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Registered, since dataclasses, pickle and torch.compile look up a class's module by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "; it belongs to a package, so name it as a module: package.module:factory"
        raise ModelSourceError(f"importing {file} raised {describe(error)}{hint}") from error
    return module


def find_attribute(module: ModuleType, factory: str, place: str) -> object:
    """The attribute of ``module`` that the dotted name ``factory`` reaches.

    Args:
        module: where to look.
        factory: such as ``build`` or ``Net.small``.
        place: what the user called the module, for the message.

    Raises:
        ModelSourceError: there is none; the nearest names are given.

    >>> find_attribute(contextlib, "suppress", "contextlib")
    <class 'contextlib.suppress'>
    """
    found: object = module
    for part in factory.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ModelSourceError(
                f"{place} has no {factory!r}.{nearest(part, _offered(found))}"
            ) from error
        except Exception as error:  # packages that load their parts late
            raise ModelSourceError(f"importing {place} raised {describe(error)}") from error
    return found


def _offered(holder: object) -> list[str]:
    """What a module or class has that can be called and is public: its own, if it has any."""
    found = {name: getattr(holder, name) for name in vars(holder) if not name.startswith("_")}
    public = {name: value for name, value in found.items() if callable(value)}
    home = getattr(holder, "__name__", None)
    own = [name for name, value in public.items() if getattr(value, "__module__", None) == home]
    return own or list(public)


def _build(factory: object, source: str) -> nn.Module:
    """Call the factory, or copy what is a model already."""
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    if not callable(factory):
        raise ModelSourceError(
            f"model {source!r} is of type {type(factory).__name__}: name a function or class that"
            " builds a torch.nn.Module"
        )
    needed = _required_arguments(factory)
    if needed:
        raise ModelSourceError(
            f"model {source!r} needs arguments ({', '.join(needed)}): name a function that takes"
            " none and builds the model"
        )
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise ModelSourceError(f"model {source!r} raised {describe(error)}") from error
    if not isinstance(model, nn.Module):
        hint = ": does it end in return?" if model is None else ""
        raise ModelSourceError(
            f"model {source!r} should return a torch.nn.Module, got {type(model).__name__}{hint}"
        )
    return model


def _required_arguments(factory: object) -> list[str]:
    """Names of the parameters without which ``factory`` can't be called."""
    assert callable(factory)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # written in C, with no signature to see
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let code in ``folder`` import its neighbours, quietly and without a trace."""
    folder = folder.resolve()
    _forget_namesakes(folder)
    path, writes_no_bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()  # the folder may have been written a moment ago
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = writes_no_bytecode


def _forget_namesakes(folder: Path) -> None:
    """Drop modules left by another model file's folder that ``folder`` has of the same name.

    Otherwise the second of two models, each with a ``layers.py`` beside it, would silently be
    built of the first one's layers.
    """
    files = {
        name: Path(file)
        for name, module in sys.modules.items()
        if (file := getattr(module, "__file__", None))
    }
    others = {file.parent for name, file in files.items() if name.startswith(_FILE_MODULE)}
    others -= {folder}
    namesakes = {
        name
        for name, file in files.items()
        if (file.parent.parent if file.name == "__init__.py" else file.parent) in others
        and ((folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file())
    }
    for name in list(sys.modules):
        if name.partition(".")[0] in namesakes:
            del sys.modules[name]


def _unnamed(source: str) -> str:
    """Why ``source`` names no model, and what would."""
    forms = "a built-in name, package.module:factory or path/model.py:factory"
    if source.endswith(".py"):
        return f"model {source!r}: name what builds it too, as in {source}:build_model"
    if is_checkpoint(source):
        return (
            f"model {source!r} is a checkpoint, which holds weights but no code: give {forms}, and"
            " load the weights there"
        )
    package, dot, name = source.rpartition(".")
    if dot and name.isidentifier():
        return f"there is no built-in model {source!r}. Did you mean '{package}:{name}'?"
    return f"there is no built-in model {source!r} (there are {', '.join(BUILTIN)}): give {forms}"
