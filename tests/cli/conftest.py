from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.cli.app import run


@pytest.fixture
def job_folder(swift: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in an empty folder, its output 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def inspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run ``frostline inspect`` in an empty folder, 80 columns wide; give what stdout holds."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, columns: int = 80, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["inspect", *arguments]) == code
        out, err = capsys.readouterr()
        if code:
            assert out == ""
            return err
        assert "error" not in err
        return "".join(f"{line.rstrip()}\n" for line in out.splitlines())

    return call
