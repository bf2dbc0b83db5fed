"""Which samples are held out, where the data do not say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

from frostline.errors import ConfigError
from frostline.units import format_names

_TRAIN = ("train", "training")
_HELD_OUT = (("validation", "valid", "val", "dev", "eval"), ("test", "testing"))


def split_positions(
    classes: Sequence[int], *, share: float, seed: int, names: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Positions to train on and positions to hold out, each class in its share of both.

    Args:
        classes: the class of each sample; all the same where there are none.
        share: of each class that is held out, between 0 and 1; at least one sample of each.
        seed: decides which.
        names: of the classes, for the message.

    Raises:
        ConfigError: a class has one sample only, which can't be on both sides.

    >>> split_positions([0, 0, 0, 1, 1, 1], share=0.3, seed=0)
    ([0, 1, 3, 4], [2, 5])
    """
    members: dict[int, list[int]] = defaultdict(list)
    for position, each in enumerate(classes):
        members[each].append(position)
    lonely = [each for each, positions in sorted(members.items()) if len(positions) == 1]
    if lonely:
        called = format_names([repr(names[each]) if names else str(each) for each in lonely])
        raise ConfigError(
            f"one sample only of class {called}: one cannot be trained on and held out too. Add"
            " samples, leave the class out, or give the held-out samples yourself (a folder or"
            " file called validation beside one called train)"
        )
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for _, positions in sorted(members.items()):
        order = torch.randperm(len(positions), generator=generator).tolist()
        count = min(max(1, round(len(positions) * share)), len(positions) - 1)
        held += [positions[place] for place in order[:count]]
    kept = set(held)
    return [place for place in range(len(classes)) if place not in kept], sorted(held)


def choose_splits(names: Iterable[str]) -> tuple[str | None, str | None]:
    """Which of the names of splits is for training, and which is held out: validation, or test.

    >>> choose_splits(["train", "test"]), choose_splits(["test", "train", "val"])
    (('train', 'test'), ('train', 'val'))
    >>> choose_splits(["january", "february"])
    (None, None)
    """
    known = {name: name.lower() for name in names}
    train = next((name for name, lower in known.items() if lower in _TRAIN), None)
    for words in _HELD_OUT:
        for name, lower in known.items():
            if lower in words:
                return train, name
    return train, None


def split_word(stem: str) -> str | None:
    """The word in a file's name that tells its split, as ``choose_splits`` knows it.

    >>> split_word("train-00000-of-00002"), split_word("my_dev"), split_word("trainers")
    ('train', 'dev', None)
    """
    words = Counter(re.split(r"[^a-z]+", stem.lower()))
    return next((word for word in (*_TRAIN, *_HELD_OUT[0], *_HELD_OUT[1]) if word in words), None)
