from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import finetune_files as files
import pytest

from frostline.finetune.sources.base import Sources
from frostline.finetune.sources.opening import open_sources


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> Iterator[None]:
    from transformers import logging

    logging.disable_progress_bar()  # save_pretrained's; the tests read what is said
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def open_(tmp_path: Path) -> Callable[..., Sources]:
    """``open_sources`` with paths; a share of 0.25 is held out if the test says nothing."""

    def call(model: object, data: object, **options: object) -> Sources:
        return open_sources(model=str(model), data=str(data), **{"held_out": 0.25, **options})

    return call
