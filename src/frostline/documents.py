"""YAML files, read strictly: whatever is wrong is one error that says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml


def read_text(path: Path, *, called: str, error: Callable[[str], Exception]) -> str:
    """The text of a file that a person wrote.

    Args:
        path: the file, in UTF-8, with a byte-order mark or without.
        called: what it is, for the message: ``the plan``.
        error: makes what is raised if the file can't be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is not UTF-8 text"
        raise error(f"cannot read {called} {path}: {reason}") from fault


def parse_yaml(text: str, *, source: str, error: Callable[[str], Exception]) -> object:
    r"""The plain values of a YAML document; None if it is empty.

    Args:
        text: the document.
        source: what to call it in the message.
        error: makes what is raised for what is not YAML, names a class, can't be read (the date
            2024-13-45), or gives a key twice.

    >>> parse_yaml("train: [head]", source="job.yaml", error=ValueError)
    {'train': ['head']}
    >>> parse_yaml("lr: 1\nlr: 2", source="job.yaml", error=ValueError)
    Traceback (most recent call last):
    ValueError: job.yaml: lr is given twice, in line 2 again
    """
    try:
        nodes = yaml.compose(text, Loader=yaml.SafeLoader)
        document: object = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as fault:
        raise error(f"{source} is not YAML{_complaint(fault)}") from fault
    except ValueError as fault:
        raise error(f"{source} has a value that YAML can't read: {fault}") from fault
    twice = _repeated_key(nodes)
    if twice is not None:
        line = twice.start_mark.line + 1
        raise error(f"{source}: {twice.value} is given twice, in line {line} again")
    return document


def _complaint(fault: Exception) -> str:
    """Where and why, without the lines of source that PyYAML draws."""
    mark = getattr(fault, "problem_mark", None)
    if mark is None:
        return f": {' '.join(str(fault).split())}"
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    parts = (getattr(fault, "context", None), getattr(fault, "problem", None))
    return f" ({place}): {', '.join(part for part in parts if part)}"


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    r"""Where each key and item of a YAML document stands: path → line, counted from 1.

    Args:
        text: a document that :func:`parse_yaml` could read.

    >>> lines_of("a: 1\nb:\n  c: [2]")
    {('a',): 1, ('b',): 2, ('b', 'c'): 3, ('b', 'c', '0'): 3}
    """
    found: dict[tuple[str, ...], int] = {}
    waiting: list[tuple[tuple[str, ...], yaml.Node | None]] = [((), yaml.compose(text))]
    walked: set[int] = set()  # by identity: aliases make one node stand in many places
    while waiting:
        path, node = waiting.pop(0)
        if node is None or id(node) in walked:
            continue
        walked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            inner = [((*path, str(n)), item, item) for n, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            inner = [((*path, str(key.value)), key, value) for key, value in node.value]
        else:
            continue
        for below, at, value in inner:
            found[below] = at.start_mark.line + 1
            waiting.append((below, value))
    return found


def _repeated_key(document: yaml.Node | None) -> yaml.Node | None:
    """A key that its mapping has already: PyYAML would take the last of two and say nothing."""
    waiting = [document]
    walked: set[int] = set()  # by identity: aliases make one node stand in many places
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in walked:
            continue
        walked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[object] = set()
            for key, value in node.value:
                if key.value in keys:
                    return key  # type: ignore[no-any-return]
                keys.add(key.value)
                waiting.append(value)
    return None
