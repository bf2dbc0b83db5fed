from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.replay import digest_table
from frostline.replay.digest_table import DigestTable

# Few digests, alike in either half, and with zeros at the end, which numpy's strings drop.
DIGESTS = st.sampled_from([bytes([a]) * 8 + bytes([b]) * 8 for a in range(4) for b in range(4)])
STEPS = st.one_of(
    st.tuples(st.just("add"), DIGESTS),
    st.tuples(st.just("extend"), st.lists(DIGESTS, max_size=8)),
    st.tuples(st.just("forget"), st.lists(st.integers(0, 20), max_size=4)),
)


@pytest.mark.parametrize("few", [0, 3, 65_536])
def test_behaves_as_a_dict(few):
    @given(steps=st.lists(STEPS, max_size=20))
    def check(steps):
        table, model, row = DigestTable(), {}, 0
        for kind, given_ in steps:
            if kind == "forget":
                table.forget(given_)
                model = {d: r for d, r in model.items() if r not in given_}
                continue
            batch = [given_] if kind == "add" else given_
            rows = list(range(row, row + len(batch)))
            row += len(batch)
            if kind == "extend":
                table.extend(np.array(batch, "S16"), np.array(rows, np.int64))
            elif batch[0] not in model:
                table.add(batch[0], rows[0])
            for digest, number in zip(batch, rows, strict=True):
                model.setdefault(digest, number)
            asked = [bytes([a]) * 8 + bytes([b]) * 8 for a in range(5) for b in range(4)]
            assert table.find(asked) == [model.get(digest, -1) for digest in asked]

    with mock.patch.object(digest_table, "_FEW", few):
        check()


def test_finds_nothing_among_nothing():
    table = DigestTable()
    assert table.find([]) == []
    table.extend(np.empty(0, "S16"), np.empty(0, np.int64))
    assert table.find([b"a" * 16]) == [-1]
