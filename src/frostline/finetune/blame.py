"""What went wrong in a user's own code, in one line: the error and where it was raised."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_FROSTLINE = str(Path(__file__).parents[1])
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def describe(error: BaseException) -> str:
    """Type, message and place of an error that a user's code raised.

    The place is the innermost line of that code: not the line of an installed package that it
    called, unless all of it is installed.

    >>> try:
    ...     import nonexistent
    ... except ImportError as error:
    ...     describe(error)
    "ModuleNotFoundError: No module named 'nonexistent' (<doctest ...>, line 2)"
    """
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"{type(error).__name__}: {' '.join(message.split())}".rstrip(": ")
    return f"{text} ({_place(error)})"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{_shown(error.filename)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_installed(frame.filename)]
    frame = (own or frames)[-1]
    return f"{_shown(frame.filename)}, line {frame.lineno}"


def _is_installed(filename: str) -> bool:
    """Whether the code belongs to Python, to an installed package or to Frostline."""
    return filename.startswith((_FROSTLINE, *_INSTALLED, "<frozen "))


def _shown(filename: str) -> str:
    """The path as the user would write it: relative, if it lies below the current folder."""
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename
