from __future__ import annotations

import threading
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from storing import KEY, digest, fill, found, records

from frostline.errors import ReplayError
from frostline.replay.memory_store import MemoryStore
from frostline.replay.store import ReplayWarning, Shelf, Store, open_store

NAMES = st.lists(st.integers(0, 30), max_size=8)


@given(batches=st.lists(st.tuples(st.integers(0, 1), NAMES, NAMES), max_size=12))
def test_behaves_as_a_dict(batches):
    store = MemoryStore()
    known: list[set[int]] = [set(), set()]
    for number, added, asked in batches:
        shelf = store.shelf(f"{number:032x}", record_bytes=3 + number)
        fill(shelf, added)
        known[number] |= set(added)
        digests = [digest(name) for name in asked]
        assert found(shelf, digests) == [digest(n) for n in asked if n in known[number]]
    assert store.entries == len(known[0]) + len(known[1])
    assert store.nbytes == 3 * len(known[0]) + 4 * len(known[1])


def test_is_a_store_with_shelves():
    store = open_store("memory")
    assert isinstance(store, Store)
    assert isinstance(store.shelf(KEY, 1), Shelf)
    assert store.shelf(KEY, 1) is store.shelf(KEY, 1)


def test_what_is_read_is_fresh_and_writable():
    shelf = MemoryStore().shelf(KEY, 8)
    digests = fill(shelf, range(3))
    shelf.read(shelf.find(digests)).zero_()
    assert found(shelf, digests) == digests


def test_what_was_added_may_change_afterwards():
    shelf = MemoryStore().shelf(KEY, 8)
    given = records([digest(0)], 8)
    shelf.add([digest(0)], given)
    given.zero_()
    assert found(shelf, [digest(0)]) == [digest(0)]


def test_the_first_record_of_a_digest_stays():
    shelf = MemoryStore().shelf(KEY, 1)
    shelf.add([digest(0), digest(0)], torch.tensor([[1], [1]], dtype=torch.uint8))
    shelf.add([digest(0)], torch.tensor([[2]], dtype=torch.uint8))
    assert shelf.read(shelf.find([digest(0)])).tolist() == [[1]]


def test_records_made_in_inference_mode_serve_outside_it():
    store = MemoryStore()
    with torch.inference_mode():
        shelf = store.shelf(KEY, 4)
        fill(shelf, [0])
        read = shelf.read([0])
    fill(shelf, range(1, 100))
    read.add_(1)
    assert len(found(shelf, [digest(n) for n in range(100)])) == 100


def test_past_the_budget_nothing_is_taken_and_that_is_said_once():
    store = MemoryStore(budget=250)
    shelf = store.shelf(KEY, 50)
    kept = fill(shelf, range(4))
    with pytest.warns(ReplayWarning, match="the budget of 250 B is used up") as caught:
        fill(shelf, ["one", "two"])
    assert len(caught) == 1
    assert store.full == "the budget of 250 B is used up"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(shelf, ["fits, but comes too late"])
        fill(store.shelf("f" * 32, 1), ["small"])
    assert store.nbytes == 200
    assert found(shelf, [*kept, digest("one"), digest("small")]) == kept


def test_an_exact_budget_is_used_to_the_last_byte():
    store = MemoryStore(budget=300)
    fill(store.shelf(KEY, 100), range(2))
    fill(store.shelf(KEY, 100), [2])
    assert (store.nbytes, store.full) == (300, None)


def test_known_digests_need_no_room():
    store = MemoryStore(budget=100)
    fill(store.shelf(KEY, 50), range(2))
    fill(store.shelf(KEY, 50), range(2))
    assert store.full is None


def test_closing_frees_and_ends_it():
    store = MemoryStore()
    digests = fill(store.shelf(KEY, 4), range(3))
    store.close()
    fill(store.shelf(KEY, 4), range(3))
    assert (store.nbytes, store.shelf(KEY, 4).find(digests)) == (0, [-1, -1, -1])
    assert store.full == "the store is closed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(lambda s: s.shelf("0" * 31, 4), "32 lowercase hex", id="key"),
        pytest.param(lambda s: s.shelf("A" * 32, 4), "32 lowercase hex", id="key in capitals"),
        pytest.param(lambda s: s.shelf(KEY, 5), "records of 4 bytes, not 5", id="size"),
        pytest.param(lambda s: s.shelf("0" * 32, 0), "at least one byte", id="no size"),
        pytest.param(
            lambda s: s.shelf(KEY, 4).add([b"short"], torch.zeros(1, 4, dtype=torch.uint8)),
            "a digest has 16 bytes",
            id="digest",
        ),
        pytest.param(
            lambda s: s.shelf(KEY, 4).add([digest(0)], torch.zeros(2, 4, dtype=torch.uint8)),
            r"uint8 \[1, 4\] on the CPU",
            id="count",
        ),
        pytest.param(
            lambda s: s.shelf(KEY, 4).add([digest(0)], torch.zeros(1, 4)),
            r"got torch.float32 \[1, 4\]",
            id="dtype",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_wrong_use_is_named(kind, wrong, message, tmp_path):
    store = open_store("memory" if kind == "memory" else tmp_path)
    store.shelf(KEY, 4)
    with pytest.raises(ReplayError, match=message):
        wrong(store)


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize("rows", [[-1], [0, 3], [2**45]])
def test_rows_that_were_never_given_are_no_records(kind, rows, tmp_path):
    shelf = open_store("memory" if kind == "memory" else tmp_path).shelf(KEY, 4)
    fill(shelf, range(3))
    with pytest.raises((IndexError, ReplayError)):
        shelf.read(rows)


def test_readers_see_whole_records_while_another_thread_adds():
    shelf = MemoryStore().shelf(KEY, 64)
    digests = [digest(n) for n in range(3000)]

    def add():
        for start in range(0, 3000, 10):
            fill(shelf, range(start, start + 10))

    adding = threading.Thread(target=add)
    adding.start()
    while adding.is_alive():
        found(shelf, digests[::50])
    adding.join()
    assert found(shelf, digests) == digests


def test_open_store_refuses_what_is_none(tmp_path):
    with pytest.raises(ReplayError, match="an empty path"):
        open_store("")
    with pytest.raises(ReplayError, match="not 3"):
        open_store(3)
    with pytest.raises(ReplayError, match="from 0 on, not -1"):
        open_store("memory", budget=-1)
    opened = open_store(tmp_path)
    assert open_store(opened) is opened
    with pytest.raises(ReplayError, match="where the store is made"):
        open_store(opened, budget=5)
