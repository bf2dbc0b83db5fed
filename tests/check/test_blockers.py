from __future__ import annotations

import pytest

from frostline.check.blockers import Blockers, early_blockers

NONE = Blockers((), 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param("t........t", Blockers(("0",), 8), id="one ahead of all"),
        pytest.param("..tt.......t", Blockers(("2", "3"), 7), id="two, not at the very start"),
        pytest.param(".........t", NONE, id="a frozen prefix"),
        pytest.param("t.........", NONE, id="nothing trains behind"),
        pytest.param("ttt.......t", Blockers(("0", "1", "2"), 7), id="a trained stem"),
        pytest.param("t...t", NONE, id="too short to matter"),
        pytest.param("t.t.t.t.t.t.", NONE, id="all but the biases"),
        pytest.param("t....tttttttttt", NONE, id="less than half"),
        pytest.param("", NONE, id="no tensors"),
    ],
)
def test_early_blockers(flags: str, expected: Blockers) -> None:
    order = [(str(rank), flag == "t") for rank, flag in enumerate(flags)]
    assert early_blockers(order) == expected
