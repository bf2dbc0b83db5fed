from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from storing import KEY, digest, fill, found

from frostline.errors import OutputError, ReplayError
from frostline.replay.cache import clear, list_entries
from frostline.replay.folder_store import FolderStore
from frostline.replay.store import ReplayWarning

OLD = "f" * 32


@pytest.fixture
def folder(tmp_path):
    with FolderStore(tmp_path) as store:
        fill(store.shelf(KEY, 10, note="layer 3"), range(4))
        fill(store.shelf(OLD, 20, note="layer 5"), range(2))
    for path in (tmp_path / OLD).iterdir():
        os.utime(path, (1_000_000, 1_000_000))
    return tmp_path


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_lists_the_last_used_first(folder):
    new, old = list_entries(folder)
    assert (new.key, new.entries, new.note) == (KEY, 4, "layer 3")
    assert (old.key, old.entries, old.note) == (OLD, 2, "layer 5")
    assert (new.nbytes, old.nbytes) == (size(folder / KEY), size(folder / OLD))
    assert old.last_used == datetime.fromtimestamp(1_000_000, timezone.utc)
    now = datetime.now(timezone.utc)
    assert now - timedelta(minutes=5) < new.created <= new.last_used + timedelta(seconds=1)
    assert new.last_used <= now + timedelta(seconds=1)


def test_opening_a_shelf_is_using_it(folder):
    FolderStore(folder).shelf(OLD, 20)
    assert [entry.key for entry in list_entries(folder)] == [OLD, KEY]


def test_clears_everything(folder):
    expected = size(folder / KEY) + size(folder / OLD)
    assert clear(folder) == expected
    assert list(folder.iterdir()) == []
    assert clear(folder) == 0


def test_clears_what_was_not_used_for_long(folder):
    expected = size(folder / OLD)
    assert clear(folder, older_than=timedelta(days=30)) == expected
    assert [entry.key for entry in list_entries(folder)] == [KEY]


def test_files_of_somebody_else_stay(folder):
    theirs = [folder / "notes.txt", folder / KEY / "notes.txt", folder / ("a" * 32) / "1.index"]
    theirs[2].parent.mkdir()
    for path in theirs:
        path.write_text("mine")
    clear(folder)
    assert [path.read_text() for path in theirs] == ["mine"] * 3
    assert not (folder / OLD).exists()


def test_what_a_killed_process_left_goes_too(folder):
    (folder / KEY / ".shelf.json.abc123.tmp").write_text("{")
    clear(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("header", [None, "{}", '{"format": "other"}', "\0"])
def test_a_folder_that_is_no_store_is_refused(tmp_path, header):
    shelf = tmp_path / KEY
    shelf.mkdir()
    (shelf / "1-0123456789ab.data").write_text("mine")
    if header is not None:
        (shelf / "shelf.json").write_text(header)
    with pytest.raises(ReplayError, match="no shelf of a Frostline store, so nothing"):
        clear(tmp_path)
    assert (shelf / "1-0123456789ab.data").read_text() == "mine"


def test_a_missing_folder_is_named(tmp_path):
    for use in (list_entries, clear):
        with pytest.raises(ReplayError, match="there is no folder"):
            use(tmp_path / "nowhere")


@pytest.mark.parametrize("deleted", range(3))
def test_what_was_cleared_by_half_can_be_cleared_again(folder, monkeypatch, deleted):
    true_unlink = Path.unlink
    left = iter([True] * deleted + [False])

    def unlink(path, missing_ok=False):
        if not next(left):
            raise OSError(5, "Input/output error")
        true_unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(OutputError, match="cannot clear"):
            clear(folder)
    assert len(list_entries(folder)) == 2
    clear(folder)
    assert list(folder.iterdir()) == []


def test_a_run_that_uses_what_is_cleared_goes_on(folder):
    store = FolderStore(folder)
    shelf = store.shelf(KEY, 10)
    digests = [digest(n) for n in range(4)]
    assert found(shelf, digests) == digests
    fill(shelf, ["buffered"])
    clear(folder)
    with pytest.warns(ReplayWarning, match="nothing more is recorded"):
        store.flush()
    assert found(shelf, [*digests, digest("buffered")]) == digests
