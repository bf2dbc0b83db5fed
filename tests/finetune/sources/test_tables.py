"""Tables as they are in the file: no value is read as another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frostline.finetune.sources.tables import read_tables

LONG = "a " * 2_500_000  # 5 MB, longer than the blocks in which Arrow reads
DATE = "2020-01-01"


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_tables(file.name, [file]).train.to_list()
    return rows


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_row_may_be_as_long_as_a_book(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": LONG, "label": "x"}, {"text": "b", "label": "y"}]
    file = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        file.write_text(f'text,label\n"{LONG}",x\nb,y\n')
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(file) == rows


@pytest.mark.parametrize(
    "value",
    [DATE, [DATE, "2021-01-01T10:00:00Z"], {"day": DATE, "with": {"hour": ["2021-01-01 10:00"]}}],
    ids=["text", "list", "structure"],
)
def test_a_text_that_looks_like_a_date_stays_as_it_is(tmp_path: Path, value: object) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": value, "number": 1.5, "none": None}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(file) == rows
