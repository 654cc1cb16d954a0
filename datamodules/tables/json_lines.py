"""Reading files with one object a line, plain or gzipped: JSON, and the Python literals of older data sets."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from datamodules.contract.errors import InputError
from datamodules.tables.delimited import BOM, CHUNK, count_lines, decoded_lines, open_raw, read_delimited


def read_json_lines(path: Path, columns: Mapping[str, tuple[str, pl.DataType]]) -> pl.DataFrame:
    r"""Reads keys of a file with one JSON object a line.

    Args:
        path: the file; blank lines are skipped.
        columns: which keys to keep, what to call them and their types, `{"asin": ("item", pl.String())}`.

    Returns:
        The columns, null where an object lacks the key, and `line`.

    Raises:
        InputError: the file is not there, or a line is no such object.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "reviews.json"
    >>> _ = path.write_text('{"asin": "B01", "overall": 5.0}\n')
    >>> read_json_lines(path, {"asin": ("item", pl.String()), "overall": ("rating", pl.Float64())}).rows()
    [('B01', 5.0, 1)]
    """
    with open_raw(path) as file:
        start = file.read(CHUNK)
        source: Any = io.BytesIO((start + file.read()).removeprefix(BOM)) if start.startswith(BOM) else path
    if not start.strip():
        raise InputError(f"{path}: the file is empty")
    schema = {key: dtype for key, (_, dtype) in columns.items()}
    try:
        table = pl.scan_ndjson(source, schema=schema).rename({k: n for k, (n, _) in columns.items()}).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        _blame_object(path, schema)
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    lines, _, blank = count_lines(path, "{")
    if lines - blank == len(table):
        return table.with_columns(line=pl.int_range(pl.len(), dtype=pl.Int64) + 1)
    with open_raw(path) as file:
        numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    if len(numbers) != len(table):
        _blame_object(path, schema)
        raise InputError(f"{path} cannot be read: it has {len(numbers)} lines and {len(table)} objects")
    return table.with_columns(line=pl.Series(numbers, dtype=pl.Int64))


def _blame_object(path: Path, schema: Mapping[str, pl.DataType]) -> None:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    with open_raw(path) as file:
        for number, line in enumerate(decoded_lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, parse_constant=refuse)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not a JSON object: {error}") from error
            if not isinstance(value, dict):
                raise InputError(f"{path}:{number}: a {type(value).__name__}, not a JSON object")
            for key, dtype in schema.items():
                given = value.get(key)
                kinds = (int, float) if dtype.is_numeric() else (list,) if dtype.base_type() == pl.List else (object,)
                if given is not None and (not isinstance(given, kinds) or isinstance(given, bool)):
                    raise InputError(f"{path}:{number}: {key} is {str(given)[:80]!r}, not a {dtype}")


def read_literal_lines(path: Path, key: str, wanted: set[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Iterates (line, dictionary) of a file with one Python dictionary a line, as some older data sets were printed.

    It reads what fits in a slow loop, such as a catalogue; `read_flat_literals` is for the many rows of events.

    Raises:
        InputError: the file is not there, or a line holds no dictionary with the key.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "meta.json"
    >>> _ = path.write_text("{u'asin': 'B01', 'title': \"It's\"}\n")
    >>> list(read_literal_lines(path, "asin"))
    [(1, {'asin': 'B01', 'title': "It's"})]
    """
    pattern = re.compile(rf"""u?["']{re.escape(key)}["']: ?u?["']([^"'\\]*)["']""")
    with open_raw(path) as file:
        for number, line in enumerate(decoded_lines(file, path), start=1):
            if not line.strip():
                continue
            found = pattern.search(line) if wanted is not None else None
            if found and wanted is not None and found[1] not in wanted:
                continue
            value = _literal(line, path, number)
            if not isinstance(value, dict) or key not in value:
                raise InputError(f"{path}:{number}: not a dictionary with the key {key!r}")
            yield number, value


_VALUE = r"""(?:u?'(?:[^'\\]|\\.)*'|u?"(?:[^"\\]|\\.)*"|[^'",\[\]{}()]+)"""


def read_flat_literals(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    r"""Reads text of a file with one flat Python dictionary a line, without a loop over the lines.

    Each value is found by a pattern that begins at the line's start and walks over whole keys and values, so what looks
    like a key inside a text is never taken for one.

    Returns:
        The columns as String, null where a dictionary lacks the key, and `line`.

    Raises:
        InputError: the file is not there, or a line is no dictionary.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "reviews.json"
    >>> _ = path.write_text("{u'text': u\"'user': 'no'\", u'user': u'J\\xf6rg'}\n")
    >>> read_flat_literals(path, {"user": "user"}).rows()
    [('Jörg', 1)]
    """
    table = read_delimited(path, {"text": "text"}, separator="\x1e", names=("text",)).drop_nulls("text")
    table = table.filter(pl.col("text").str.strip_chars() != "")
    whole = rf"(?s)^\{{(?:u?'[^']*': {_VALUE}(?:, |\}}\s*$))+$"
    odd = table.filter(~pl.col("text").str.contains(whole))
    for line, text in odd.select("line", "text").iter_rows():
        _literal(text, path, line)
        raise InputError(f"{path}:{line}: a dictionary that is not flat")
    found = [
        pl.col("text").str.extract(rf"(?s)^\{{(?:u?'[^']*': {_VALUE}, )*?u?'{re.escape(key)}': ({_VALUE})").alias(name)
        for key, name in columns.items()
    ]
    table = table.select(*found, "line")
    return table.with_columns(_unquoted(table[name]) for name in columns.values())


def _unquoted(value: pl.Series) -> pl.Series:
    """The text of literals; only those with escapes go through the literal reader."""
    escaped = value.filter(value.str.contains("\\", literal=True)).unique()
    plain = value.str.replace(r"""(?s)^u?['"](.*)['"]$""", "${1}")
    if escaped.is_empty():
        return plain
    read = {each: str(ast.literal_eval(each)) for each in escaped}
    known = pl.DataFrame({"raw": value, "plain": plain}, schema={"raw": pl.String, "plain": pl.String})
    return (
        known.select(pl.col("raw").replace_strict(read, default=pl.col("plain"), return_dtype=pl.String))
        .to_series()
        .alias(value.name)
    )


def _literal(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text) if text.startswith('{"') else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise InputError(f"{path}:{line}: not a dictionary: {' '.join(str(error).split())[:120]}") from error
