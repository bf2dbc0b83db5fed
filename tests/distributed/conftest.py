from __future__ import annotations

from collections.abc import Iterator

import pytest
from ranking import Party


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Party]:
    """Two ranks, started once for all tests."""
    party = Party(tmp_path_factory.mktemp("pair"))
    yield party
    party.close()
