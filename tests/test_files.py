from __future__ import annotations

import os

import pytest

from frostline.errors import OutputError
from frostline.files import replace_atomically, write_atomically


def test_writes_and_leaves_nothing_beside(tmp_path):
    write_atomically(tmp_path / "a.txt", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.txt", b"new")]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    "failure", [pytest.param(OSError(28, "No space left on device"), id="full"), ValueError("bug")]
)
def test_a_failure_keeps_the_old_file_and_no_other(tmp_path, failure):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")

    def fail(temporary):
        temporary.write_bytes(b"ha")
        raise failure

    with pytest.raises((OutputError, ValueError)):
        replace_atomically(target, fail)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file") as caught:
        write_atomically(tmp_path / "no" / "a.txt", b"")
    assert isinstance(caught.value, OSError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_atomically(tmp_path / "a.txt", b"")
