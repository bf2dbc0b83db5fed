from __future__ import annotations

import json
import os
import signal
import threading
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from storing import KEY, digest, fill, fork, found, records, succeeded

from frostline.errors import ReplayError
from frostline.replay import folder_shelf
from frostline.replay.folder_disk import Pace
from frostline.replay.folder_store import FolderStore
from frostline.replay.mapped_files import MappedFiles
from frostline.replay.store import Shelf, Store, open_store

NAMES = st.lists(st.integers(0, 40), max_size=8)
STEPS = st.one_of(
    st.tuples(st.just("add"), NAMES),
    st.tuples(st.just("ask"), NAMES),
    st.tuples(st.sampled_from(["reopen", "flush"]), st.just([])),
)


@pytest.fixture
def at_once(monkeypatch):
    """What other stores write is looked for at every miss."""
    monkeypatch.setattr(Pace, "due", lambda self: True)


@given(steps=st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=20), eager=st.booleans())
def test_two_stores_over_one_folder_behave_as_a_dict(tmp_path_factory, steps, eager):
    folder = tmp_path_factory.mktemp("store")
    stores = [FolderStore(folder), FolderStore(folder)]
    own: list[set[int]] = [set(), set()]  # added by each since it was opened, maybe only buffered
    on_disk: set[int] = set()
    flush_bytes = 1 if eager else 2**20
    with (
        mock.patch.object(Pace, "due", return_value=True),
        mock.patch.object(folder_shelf, "_FLUSH_BYTES", flush_bytes),
    ):
        for which, (kind, names) in steps:
            shelf = stores[which].shelf(KEY, 11)
            if kind == "add":
                fill(shelf, names)
                own[which] |= set(names)
            elif kind == "ask":
                known = own[which] | on_disk
                digests = [digest(name) for name in names]
                assert found(shelf, digests) == [digest(n) for n in names if n in known]
                stores[which].flush()  # to read what is buffered may have done so
            elif kind == "flush":
                stores[which].flush()
            else:
                stores[which].close()
                stores[which] = FolderStore(folder)
            if eager or kind != "add":
                on_disk |= own[which]
        for store in stores:
            store.close()
        everything = [digest(name) for name in sorted(own[0] | own[1])]
        assert found(FolderStore(folder).shelf(KEY, 11), everything) == everything


def test_is_a_store_with_shelves(tmp_path):
    store = open_store(tmp_path / "deep" / "store")
    assert isinstance(store, Store)
    assert isinstance(store.shelf(KEY, 1), Shelf)
    assert store.shelf(KEY, 1) is store.shelf(KEY, 1)


def test_serves_the_next_run(tmp_path):
    with FolderStore(tmp_path) as store:
        digests = fill(store.shelf(KEY, 1000), range(50))
        other = fill(store.shelf("f" * 32, 7), range(50))
    again = FolderStore(tmp_path)
    assert found(again.shelf(KEY, 1000), digests) == digests
    assert found(again.shelf("f" * 32, 7), other[::-1]) == other[::-1]
    assert again.shelf(KEY, 1000).find([digest("unknown")]) == [-1]


def test_what_is_known_is_not_written_again(tmp_path):
    for _ in range(3):
        with FolderStore(tmp_path) as store:
            fill(store.shelf(KEY, 10), range(20))
    assert store.entries == 20
    assert store.nbytes == sum(p.stat().st_size for p in tmp_path.glob("*/*"))


def test_what_is_read_is_fresh_and_writable(tmp_path):
    with FolderStore(tmp_path) as store:
        shelf = store.shelf(KEY, 8)
        digests = fill(shelf, range(3))
        shelf.read(shelf.find(digests)).zero_()
        assert found(shelf, digests) == digests


def test_what_was_added_may_change_before_it_is_written(tmp_path):
    with FolderStore(tmp_path) as store:
        given = records([digest(0)], 8)
        store.shelf(KEY, 8).add([digest(0)], given)
        given.zero_()
    assert found(FolderStore(tmp_path).shelf(KEY, 8), [digest(0)]) == [digest(0)]


def test_records_made_in_inference_mode_serve_outside_it(tmp_path):
    with torch.inference_mode():
        shelf = FolderStore(tmp_path).shelf(KEY, 4)
        digests = fill(shelf, [0])
        read = shelf.read(shelf.find(digests))
    read.add_(1)
    assert found(shelf, digests) == digests


def test_another_store_sees_what_is_flushed(tmp_path, at_once):
    writer, reader = FolderStore(tmp_path).shelf(KEY, 5), FolderStore(tmp_path).shelf(KEY, 5)
    digests = fill(writer, range(4))
    assert found(reader, digests) == []
    writer.flush()
    assert found(reader, digests) == digests


def test_looks_for_others_at_most_once_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    writer, reader = FolderStore(tmp_path).shelf(KEY, 5), FolderStore(tmp_path).shelf(KEY, 5)
    digests = fill(writer, range(4))
    assert found(reader, digests) == []
    writer.flush()
    now[0] += 0.9
    assert found(reader, digests) == []
    now[0] += 0.1
    assert found(reader, digests) == digests


def test_many_small_additions_are_written_together(tmp_path):
    shelf = FolderStore(tmp_path).shelf(KEY, 100)
    with mock.patch("os.write", side_effect=os.write) as write:
        for n in range(1000):
            fill(shelf, [n])
    assert write.call_count == 0
    shelf.flush()
    assert len(found(shelf, [digest(n) for n in range(1000)])) == 1000


def test_a_megabyte_is_written_at_once(tmp_path):
    store = FolderStore(tmp_path)
    fill(store.shelf(KEY, 2**20), [0])
    assert found(FolderStore(tmp_path).shelf(KEY, 2**20), [digest(0)]) == [digest(0)]


def test_a_store_that_nobody_closes_is_written_when_it_goes(tmp_path):
    store = FolderStore(tmp_path)
    fill(store.shelf(KEY, 5), range(3))
    del store
    assert FolderStore(tmp_path).entries == 3


def test_after_closing_it_is_read_and_takes_nothing(tmp_path):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, 5)
    digests = fill(shelf, range(3))
    store.close()
    fill(shelf, ["late"])
    store.close()
    assert found(shelf, [*digests, digest("late")]) == digests
    assert (store.full, store.entries) == ("the store is closed", 3)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux lists")
def test_hundreds_of_shelves_keep_few_files_open(tmp_path):
    def opened():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    for _ in range(2):  # written in the first run, read in the second
        with FolderStore(tmp_path) as store:
            store._disk.files = MappedFiles(9)
            for n in range(300):
                fill(store.shelf(f"{n:032x}", 5), [n])
            store.flush()
            for n in range(300):
                assert found(store.shelf(f"{n:032x}", 5), [digest(n)]) == [digest(n)]
            assert opened() <= before + 9
    assert store.entries == 300


def test_a_forked_process_writes_a_segment_of_its_own(tmp_path, at_once):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, 5)
    written = fill(shelf, range(3))
    store.flush()
    buffered = fill(shelf, range(3, 6))

    def child():
        assert found(shelf, written) == written
        assert found(shelf, buffered) == []
        fill(shelf, range(5, 9))
        store.close()

    assert succeeded(fork(child))
    store.close()
    segments = list(tmp_path.glob("*/*.index"))
    assert sorted(path.stat().st_size // 32 for path in segments) == [4, 6]
    everything = [digest(n) for n in range(9)]
    assert found(FolderStore(tmp_path).shelf(KEY, 5), everything) == everything


def test_a_fork_while_a_thread_holds_the_lock_does_not_hang(tmp_path):
    store = FolderStore(tmp_path)
    shelf = store.shelf(KEY, 5)
    digests = fill(shelf, range(3))
    store.flush()
    holds, leave = threading.Event(), threading.Event()

    def hold():
        with store._disk.lock():
            holds.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    child = fork(lambda: (signal.alarm(10), found(shelf, digests)))
    leave.set()
    thread.join()
    assert succeeded(child)


@pytest.mark.timeout(60)
def test_two_processes_write_one_folder(tmp_path, at_once):
    def write(order):
        with FolderStore(tmp_path) as store, mock.patch.object(folder_shelf, "_FLUSH_BYTES", 500):
            for name in order:
                fill(store.shelf(KEY, 77), [name, name + 1])

    names = np.random.default_rng(0).permutation(400).tolist()
    children = [fork(lambda: write(names)), fork(lambda: write(names[::-1]))]
    reader = FolderStore(tmp_path).shelf(KEY, 77)
    everything = [digest(n) for n in range(401)]
    seen = 0
    while seen < 401:  # grows while they write; a lost entry would be a timeout
        now = len(found(reader, everything))
        assert now >= seen
        seen = now
    assert [succeeded(child) for child in children] == [True, True]
    assert found(FolderStore(tmp_path).shelf(KEY, 77), everything) == everything


def edit_header(folder, **changes):
    path = folder / KEY / "shelf.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"version": 2}, "has version 2 of the format, .* knows 1; delete", id="new"),
        pytest.param({"record_bytes": 6}, "records of 6 bytes, not 5; delete it", id="size"),
        pytest.param({"key": "f" * 32}, "header of shelf ffff.*; delete it", id="key"),
        pytest.param({"format": "other"}, "is not the header of a shelf .*; delete", id="format"),
        pytest.param({"created": "soon"}, "is not the header of a shelf .*; delete", id="time"),
        pytest.param({"record_bytes": "5"}, "is not the header of a shelf .*; delete", id="type"),
    ],
)
def test_another_header_is_an_error_that_says_what_to_do(tmp_path, changes, message):
    with FolderStore(tmp_path) as store:
        fill(store.shelf(KEY, 5), range(3))
    edit_header(tmp_path, **changes)
    with pytest.raises(ReplayError, match=message):
        FolderStore(tmp_path).shelf(KEY, 5)


def test_files_of_somebody_else_are_ignored(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("e" * 32)).write_text("a file named as a shelf")
    with FolderStore(tmp_path) as store:
        digests = fill(store.shelf(KEY, 5), range(3))
    shelf = tmp_path / KEY
    (shelf / "notes.index").write_bytes(b"x" * 320)
    (shelf / "1-0123456789ab.index").write_bytes(os.urandom(320))
    (shelf / "1-0123456789ab.data").write_bytes(os.urandom(50))
    (shelf / "2-0123456789ab.index").mkdir()
    assert found(FolderStore(tmp_path).shelf(KEY, 5), digests) == digests


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ReplayError, match=f"cannot keep a store in '{path}'"):
            FolderStore(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_read(tmp_path):
    with FolderStore(tmp_path) as store:
        digests = fill(store.shelf(KEY, 5), range(3))
    (tmp_path / KEY).chmod(0o555)
    tmp_path.chmod(0o555)
    try:
        check_read_only(tmp_path, digests)
    finally:
        tmp_path.chmod(0o755)
        (tmp_path / KEY).chmod(0o755)


def test_a_folder_that_says_it_is_read_only_is_read(tmp_path, monkeypatch):
    with FolderStore(tmp_path) as store:
        digests = fill(store.shelf(KEY, 5), range(3))
    monkeypatch.setattr("os.access", lambda *_: False)
    check_read_only(tmp_path, digests)


def check_read_only(folder, digests):
    with pytest.warns(UserWarning, match="may not be written"):
        store = FolderStore(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(store.shelf(KEY, 5), digests) == digests
        fill(store.shelf(KEY, 5), ["new"])
        fill(store.shelf("f" * 32, 5), ["new"])
        store.close()
    assert "may not be written" in store.full
    assert sorted(path.name for path in folder.iterdir()) == [KEY]
    assert store.entries == 3
