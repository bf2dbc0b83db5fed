"""Whatever happens to a store's files, what is read is what was written, or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from storing import KEY, digest, fill, found

from frostline.errors import ReplayError
from frostline.replay.folder_store import FolderStore
from frostline.replay.store import StoreDamaged

SIZE = 7
COUNT = 5
ENTRY = 32
EVERYTHING = [digest(n) for n in range(COUNT)]


@pytest.fixture
def folder(tmp_path):
    with FolderStore(tmp_path) as store:
        fill(store.shelf(KEY, SIZE), range(COUNT))
    return tmp_path


def the_file(folder: Path, suffix: str) -> Path:
    [path] = folder.glob(f"*/*{suffix}")
    return path


def readable(folder: Path) -> list[int]:
    """The numbers of the records that can be read, each of them right."""
    shelf = FolderStore(folder).shelf(KEY, SIZE)
    numbers = []
    for number, name in enumerate(EVERYTHING):
        try:
            numbers += [number] * len(found(shelf, [name]))
        except StoreDamaged:
            assert shelf.find([name]) == [-1]
    return numbers


@pytest.mark.parametrize(("suffix", "unit"), [(".index", ENTRY), (".data", SIZE)])
def test_cut_off_anywhere(folder, suffix, unit):
    path = the_file(folder, suffix)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert readable(folder) == list(range(length // unit))


@pytest.mark.parametrize(("suffix", "unit"), [(".index", ENTRY), (".data", SIZE)])
def test_any_bit_flipped(folder, suffix, unit):
    path = the_file(folder, suffix)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert readable(folder) == [n for n in range(COUNT) if n != bit // 8 // unit]


def test_any_bit_of_the_header_flipped(folder):
    path = the_file(folder, "shelf.json")
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert readable(folder) == list(range(COUNT))  # white space, the note, the date
        except ReplayError:
            refused += 1
    assert refused > 4 * len(whole)


@pytest.mark.parametrize("suffix", [".index", ".data"])
def test_grown_by_anything(folder, suffix):
    path = the_file(folder, suffix)
    whole = path.read_bytes()
    for length in (1, ENTRY - 1, ENTRY, 5 * ENTRY + 3):
        path.write_bytes(whole + os.urandom(length))
        assert readable(folder) == list(range(COUNT))


def test_zeros_where_the_machine_lost_power(folder):
    data = the_file(folder, ".data")
    data.write_bytes(data.read_bytes()[: 2 * SIZE] + bytes(3 * SIZE))
    assert readable(folder) == [0, 1]


def test_entries_exchanged(folder):
    path = the_file(folder, ".index")
    entries = path.read_bytes()
    path.write_bytes(entries[ENTRY : 2 * ENTRY] + entries[:ENTRY] + entries[2 * ENTRY :])
    assert readable(folder) == [2, 3, 4]


def test_records_exchanged(folder):
    path = the_file(folder, ".data")
    data = path.read_bytes()
    path.write_bytes(data[SIZE : 2 * SIZE] + data[:SIZE] + data[2 * SIZE :])
    assert readable(folder) == [2, 3, 4]


@pytest.mark.parametrize(("key", "size"), [("f" * 32, SIZE), (KEY, SIZE - 1)])
def test_segments_of_another_shelf(folder, key, size, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shelf_folder = other / key
    FolderStore(other).shelf(key, size)
    for path in [the_file(folder, ".index"), the_file(folder, ".data")]:
        shutil.copy(path, shelf_folder)
    assert FolderStore(other).shelf(key, size).find(EVERYTHING) == [-1] * COUNT


def test_a_copied_segment_is_as_good_as_the_first(folder):
    for path in [the_file(folder, ".index"), the_file(folder, ".data")]:
        shutil.copy(path, path.with_name(f"1-0123456789ab{path.suffix}"))
    assert readable(folder) == list(range(COUNT))


def test_a_record_found_damaged_is_recorded_again(folder):
    data = the_file(folder, ".data")
    data.write_bytes(b"\xff" * (COUNT * SIZE))
    os.utime(the_file(folder, ".index"), (1, 1))  # long ago
    with FolderStore(folder) as store:
        shelf = store.shelf(KEY, SIZE)
        with pytest.raises(StoreDamaged, match=r"2 of 2 records in .* are not what was written"):
            shelf.read(shelf.find(EVERYTHING[:2]))
        assert shelf.find(EVERYTHING)[:2] == [-1, -1]
        fill(shelf, range(2))
        assert found(shelf, EVERYTHING[:2]) == EVERYTHING[:2]
    # The next run finds the good copy first.
    assert found(FolderStore(folder).shelf(KEY, SIZE), EVERYTHING[:2]) == EVERYTHING[:2]


def test_a_damaged_record_is_followed_by_a_good_one_in_the_same_segment(tmp_path):
    with FolderStore(tmp_path) as store:
        shelf = store.shelf(KEY, SIZE)
        fill(shelf, range(COUNT))
        store.flush()
        with the_file(tmp_path, ".data").open("r+b") as data:
            data.write(b"\xff" * SIZE)
        with pytest.raises(StoreDamaged):
            shelf.read(shelf.find(EVERYTHING))
        fill(shelf, range(COUNT))
        assert found(shelf, EVERYTHING) == EVERYTHING
    assert store.entries == COUNT + 1
    assert readable(tmp_path) == list(range(COUNT))


def test_the_sound_records_beside_a_damaged_one_stay(folder):
    data = the_file(folder, ".data")
    data.write_bytes(b"\xff" + data.read_bytes()[1:])
    shelf = FolderStore(folder).shelf(KEY, SIZE)
    with pytest.raises(StoreDamaged):
        shelf.read(shelf.find(EVERYTHING))
    assert found(shelf, EVERYTHING) == EVERYTHING[1:]


@pytest.mark.parametrize("length", [0, 3 * SIZE])
def test_data_cut_off_while_it_is_mapped(folder, length):
    shelf = FolderStore(folder).shelf(KEY, SIZE)
    assert found(shelf, EVERYTHING) == EVERYTHING
    os.truncate(the_file(folder, ".data"), length)
    with pytest.raises(StoreDamaged):
        shelf.read(shelf.find(EVERYTHING[-1:]))


def test_files_deleted_before_they_are_read(folder):
    shelf = FolderStore(folder).shelf(KEY, SIZE)
    shutil.rmtree(folder)
    with pytest.raises(StoreDamaged):
        shelf.read(shelf.find(EVERYTHING))
    assert shelf.find(EVERYTHING) == [-1] * COUNT


def test_files_deleted_while_they_are_mapped(folder):
    shelf = FolderStore(folder).shelf(KEY, SIZE)
    assert found(shelf, EVERYTHING) == EVERYTHING
    shutil.rmtree(folder)
    assert found(shelf, EVERYTHING) == EVERYTHING
