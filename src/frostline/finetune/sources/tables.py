"""Tables from files: CSV, TSV, JSON lines, Parquet, and text."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frostline.errors import ConfigError
from frostline.finetune.sources.digests import digest_of_files
from frostline.finetune.sources.extras import require
from frostline.finetune.sources.raw import Raw, Table
from frostline.finetune.sources.splitting import choose_splits, split_word

_JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".csv", ".tsv", *_JSON, ".parquet", ".txt")
"""The files that :func:`read_tables` reads."""

_LEAST_BLOCK, _MOST_BLOCK = 2**20, 2**31 - 1  # bytes; Arrow's own block, and the most it can count


def read_tables(source: str, files: Sequence[Path]) -> Raw:
    """Read files of one kind and the same columns.

    Files whose name has a split in it (``train.csv``, ``dev.csv``) are the splits, if one is
    there to train on; otherwise all of them together are the data.

    Args:
        source: what the user named, for messages.
        files: at least one; each text file is one row with the column ``text``.

    Raises:
        ConfigError: a file can't be read, is damaged (with the line), or the columns differ.
    """
    suffixes = {"json" if file.suffix.lower() in _JSON else file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        raise ConfigError(
            f"data {source!r} has files of several kinds ({', '.join(sorted(suffixes))}): give one"
            " of them, or a folder with one kind"
        )
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        splits[split_word(file.stem) or ""].append(file)
    train, held_out = choose_splits(splits)
    if train is None or len(files) == 1:
        return Raw(source=source, train=_read(files), held_out=None, digest=digest_of_files(files))
    used = [*splits[train], *(splits[held_out] if held_out else [])]
    unused = [file.name for file in files if file not in used]
    return Raw(
        source=source,
        train=_read(splits[train]),
        held_out=_read(splits[held_out]) if held_out else None,
        digest=digest_of_files(used),
        notes=(f"not used of {source}: {', '.join(unused[:5])}",) if unused else (),
    )


def _read(files: Sequence[Path]) -> Table:
    datasets = require("datasets", reason="reading a table")
    pyarrow = require("pyarrow", reason="reading a table")
    tables = [_read_file(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.num_rows == 0:
            raise ConfigError(f"{file} has no rows: there is nothing to train on")
        if table.column_names != tables[0].column_names:
            raise ConfigError(
                f"{file} has the columns {', '.join(table.column_names)}, but {files[0]} has"
                f" {', '.join(tables[0].column_names)}: give files of the same columns"
            )
    try:
        # Permissive: a column may hold whole numbers in one file and others in the next.
        return datasets.Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"the files beside {files[0]} do not fit together: {error}") from error


def _read_file(file: Path) -> Any:
    """The file as an Arrow table."""
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }
    try:
        return readers.get(file.suffix.lower(), _read_json)(file)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{file} could not be read: {reason}") from error


def _read_csv(file: Path) -> Any:
    """Every column as text: a guess at types would make numbers and dates of texts."""
    pyarrow, reader = (require(name, reason="CSV") for name in ("pyarrow", "pyarrow.csv"))
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines, delimiter=delimiter), [])
    if len(set(header)) < len(header) or not all(header):
        raise ConfigError(
            f"{file}, line 1: expected the names of the columns, each different, got"
            f" {', '.join(map(repr, header[:8]))}"
        )
    try:
        return reader.read_csv(
            file,
            # One thread: only then do errors have the number of the row.
            read_options=reader.ReadOptions(use_threads=False, block_size=_block_size(file)),
            parse_options=reader.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=reader.ConvertOptions(
                column_types=dict.fromkeys(header, pyarrow.string())
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(
            f"{file} is damaged: {_first_line(error)}; a text with a {delimiter!r} in it must be"
            ' in quotes ("…")'
        ) from error


def _read_json(file: Path) -> Any:
    pyarrow, reader = (require(name, reason="JSON lines") for name in ("pyarrow", "pyarrow.json"))

    def read(schema: Any = None) -> Any:
        return reader.read_json(
            file,
            read_options=reader.ReadOptions(block_size=_block_size(file)),
            parse_options=reader.ParseOptions(newlines_in_values=False, explicit_schema=schema),
        )

    try:
        table = read()
        # Arrow makes times of texts that look like dates, which would come back as other texts.
        fields = [(field.name, _without_times(field.type)) for field in table.schema]
        schema = pyarrow.schema(fields)
        return table if schema.types == table.schema.types else read(schema)
    except pyarrow.ArrowInvalid as error:
        # Arrow counts rows within a block; the line is found by reading again.
        _check_lines(file)
        raise ConfigError(
            f"{file} is damaged: {_first_line(error)}; every line must hold the same fields with"
            " values of the same type"
        ) from error


def _without_times(kind: Any) -> Any:
    """An Arrow type with text in the place of times, also inside lists and structures."""
    pyarrow = require("pyarrow", reason="JSON lines")
    if pyarrow.types.is_timestamp(kind):
        return pyarrow.string()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_without_times(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _without_times(field.type)) for field in kind])
    return kind


def _block_size(file: Path) -> int:
    """Bytes that Arrow reads at once: the file, since it refuses a row longer than a block."""
    return min(max(_LEAST_BLOCK, file.stat().st_size), _MOST_BLOCK)


def _check_lines(file: Path) -> None:
    """Raise ConfigError at the first line that is no JSON object."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise ConfigError(
                    f"{file}, line {number}: {error}; expected one JSON object a line, such as"
                    ' {"text": "…", "label": "…"}'
                ) from error
            if not isinstance(row, dict):
                raise ConfigError(
                    f"{file}, line {number}: expected a JSON object, got {line.strip()[:60]}"
                )


def _read_parquet(file: Path) -> Any:
    pyarrow, reader = (require(name, reason="Parquet") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        return reader.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{file} is no Parquet file, or a damaged one: {_first_line(error)}"
        ) from error


def _read_text(file: Path) -> Any:
    pyarrow = require("pyarrow", reason="text")
    text = file.read_text(encoding="utf-8-sig")
    rows = [text] if text.strip() else []
    return pyarrow.table({"text": pyarrow.array(rows, pyarrow.large_string())})


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
