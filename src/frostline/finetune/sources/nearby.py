"""What lies on disk that may have been meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from frostline.errors import ConfigError, ModelSourceError

_LIKENESS = 0.6


def near_on_disk(name: str, *, also: Iterable[str] = ()) -> str | None:
    """The entry of the folder that ``name`` points into whose name is nearest to it.

    Args:
        name: a path, or something else that was not found.
        also: further names that it may have been.

    Returns:
        As it would have to be written; None if nothing is near.

    >>> near_on_disk("digit-cnn", also=["digits-cnn", "tutorial"])
    'digits-cnn'
    """
    path = Path(name).expanduser()
    here = {known: known for known in also}
    if path.parent.is_dir():
        here |= {entry.name: str(entry) for entry in path.parent.iterdir() if entry.name[0] != "."}
    close = difflib.get_close_matches(path.name, here, n=1, cutoff=_LIKENESS)
    return here[close[0]] if close else None


@contextmanager
def suggesting(name: str, *, also: Iterable[str] = ()) -> Iterator[None]:
    """Put what may have been meant by ``name`` before the error that it was not found.

    >>> with suggesting("digit-cnn", also=["digits-cnn"]):
    ...     raise ModelSourceError("there is no such model")
    Traceback (most recent call last):
    frostline.errors.ModelSourceError: did you mean 'digits-cnn'? Otherwise: there is no such model
    """
    try:
        yield
    except (ModelSourceError, ConfigError) as error:
        near = near_on_disk(name, also=also)
        if near is None:
            raise
        raise type(error)(f"did you mean {near!r}? Otherwise: {error}") from error
