"""A budget, a full disk and an interrupted write end or delay the recording, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from contextlib import contextmanager
from unittest import mock

import pytest
from storing import KEY, digest, fill, found

from frostline.replay.folder_disk import Pace
from frostline.replay.folder_store import FolderStore
from frostline.replay.store import ReplayWarning

SIZE = 100
ENTRY = 32


@contextmanager
def room_for(nbytes, failure):
    """Only so many bytes can be written, the last of them as a part of what was to be written."""
    left = nbytes
    true_write = os.write

    def write(file, content):
        nonlocal left
        if not left:
            raise failure
        written = true_write(file, content[:left])
        left -= written
        return written

    with mock.patch("os.write", write):
        yield


def check_full(store, shelf, before, more):
    """A flush fails, says so once, and keeps what had arrived; then all goes on without it."""
    fill(shelf, more)
    with pytest.warns(ReplayWarning, match="nothing more is recorded: .* can't be written") as said:
        store.flush()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(shelf, ["late"])
        store.flush()
    assert "can't be written" in store.full
    arrived = found(shelf, [*before, *map(digest, more), digest("late")])
    assert arrived[: len(before)] == before
    return len(arrived) - len(before)


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EACCES", "EROFS"])
def test_a_disk_that_takes_no_more(tmp_path, code):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, SIZE)
    before = fill(shelf, range(4))
    store.flush()
    failure = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    with room_for(0, failure):
        assert check_full(store, shelf, before, ["a", "b"]) == 0
    assert os.strerror(getattr(errno, code)) in store.full
    assert found(FolderStore(tmp_path).shelf(KEY, SIZE), before) == before


@pytest.mark.parametrize("room", range(0, 3 * (SIZE + ENTRY), 11))
def test_a_disk_that_is_full_in_the_middle(tmp_path, room):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, SIZE)
    before = fill(shelf, range(4))
    store.flush()
    with room_for(room, OSError(errno.ENOSPC, "No space left on device")):
        arrived = check_full(store, shelf, before, ["a", "b", "c"])
    assert arrived == max(0, room - 3 * SIZE) // ENTRY
    again = FolderStore(tmp_path).shelf(KEY, SIZE)
    assert len(found(again, [*before, *map(digest, "abc")])) == 4 + arrived
    # No part of a record or an entry stays behind.
    [index], [data] = tmp_path.glob("*/*.index"), tmp_path.glob("*/*.data")
    assert index.stat().st_size == (4 + arrived) * ENTRY
    assert data.stat().st_size == (4 + min(room // SIZE, 3)) * SIZE


def test_a_limit_on_the_size_of_files(tmp_path):
    resource = pytest.importorskip("resource")
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, 4096)
    before = fill(shelf, range(4))
    store.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 4096 + 7, hard))
    try:
        arrived = check_full(store, shelf, before, ["a", "b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert arrived == 1
    [index] = tmp_path.glob("*/*.index")
    assert index.stat().st_size == 5 * ENTRY  # none for the record that did not arrive


def test_a_shelf_that_cannot_be_made(tmp_path):
    store = FolderStore(tmp_path)
    with (
        mock.patch("tempfile.mkstemp", side_effect=OSError(errno.ENOSPC, "No space left")),
        pytest.warns(ReplayWarning, match="can't be written .*No space left"),
    ):
        shelf = store.shelf(KEY, SIZE)
    fill(shelf, [1])
    assert shelf.find([digest(1)]) == [-1]
    assert store.full is not None


def test_a_store_that_is_deleted_while_it_is_written(tmp_path):
    store = FolderStore(tmp_path / "store")
    shelf = store.shelf(KEY, SIZE)
    fill(shelf, range(4))
    store.flush()
    shutil.rmtree(tmp_path / "store")
    assert check_full(store, shelf, [], ["a", "b"]) == 0


def test_a_segment_that_somebody_changed_is_not_appended_to(tmp_path):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, SIZE)
    before = fill(shelf, range(4))
    store.flush()
    [data] = tmp_path.glob("*/*.data")
    data.write_bytes(data.read_bytes() + b"x")
    assert check_full(store, shelf, before, ["a"]) == 0
    assert "changed by another program" in store.full


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_interrupted_write_is_followed_by_another_segment(tmp_path, writes):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, SIZE)
    before = fill(shelf, range(4))
    store.flush()
    fill(shelf, ["a", "b"])
    true_write = os.write
    calls = iter(range(10))

    def write(file, content):
        if next(calls) == writes:
            raise KeyboardInterrupt
        return true_write(file, content)

    # After two writes the records and entries are there, but nobody was told.
    interrupted = mock.patch("os.write", write)
    if writes == 2:
        interrupted = mock.patch(
            "frostline.replay.folder_segment.decode_entries", side_effect=KeyboardInterrupt
        )
    with interrupted, pytest.raises(KeyboardInterrupt):
        store.flush()
    fill(shelf, ["a", "c", "d"])
    store.close()
    assert store.full == "the store is closed"
    everything = [*before, digest("c"), digest("d")]
    again = FolderStore(tmp_path).shelf(KEY, SIZE)
    assert found(again, everything) == everything
    assert (len(found(again, [digest("a"), digest("b")])) == 2) == (writes == 2)


def test_the_budget_counts_the_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: True)
    other = FolderStore(tmp_path)
    fill(other.shelf("f" * 32, SIZE), range(3))
    other.close()
    budget = other.nbytes + 1000
    store = FolderStore(tmp_path, budget=budget)
    shelf = store.shelf(KEY, SIZE)
    kept = fill(shelf, range(2))
    store.flush()
    kept += fill(shelf, [2])
    with pytest.warns(ReplayWarning, match="the budget of 1.5 KiB is used up") as said:
        fill(shelf, range(3, 10))
    assert len(said) == 1
    fill(shelf, ["fits, but comes too late"])
    store.close()
    everything = [digest(n) for n in range(10)]
    assert found(FolderStore(tmp_path).shelf(KEY, SIZE), everything) == kept
    assert budget - 1000 < store.nbytes <= budget


def test_the_budget_sees_what_others_write(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: True)
    store, other = FolderStore(tmp_path, budget=2000), FolderStore(tmp_path)
    fill(store.shelf(KEY, SIZE), range(3))
    fill(other.shelf(KEY, SIZE), range(100, 120))
    other.flush()
    with pytest.warns(ReplayWarning, match="budget"):
        fill(store.shelf(KEY, SIZE), [3])


def test_an_exact_budget_is_used_to_the_last_byte(tmp_path):
    FolderStore(tmp_path).shelf(KEY, SIZE)
    header = FolderStore(tmp_path).nbytes
    store = FolderStore(tmp_path, budget=header + 3 * (SIZE + ENTRY))
    for n in range(3):  # written in between, faster than the disk is looked at
        fill(store.shelf(KEY, SIZE), [n])
        store.flush()
    assert (store.full, store.nbytes) == (None, header + 3 * (SIZE + ENTRY))
    with pytest.warns(ReplayWarning, match="budget"):
        fill(store.shelf(KEY, SIZE), [3])
