"""Reading delimited text, plain or gzipped, into text columns.

The files are read by polars as a whole. Only when it refuses one, or the counts do not add up, a slow reader goes through
the lines to name the one to blame. Every table has the column `line`, the place of a row in its file.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from datamodules.contract.errors import InputError, reason_of

CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
LAST = "\n"
"""Name of the last field beside the wanted ones, which no file's header can hold."""
_LONGEST_FIELD = 1 << 27  # bytes; of Python's own reader, which by itself takes no field above 128 KiB


def read_delimited(
    path: Path,
    columns: Mapping[str, str],
    *,
    separator: str = ",",
    quoted: bool = False,
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
    short_rows: bool = False,
) -> pl.DataFrame:
    r"""Reads columns of a delimited file as text.

    Args:
        path: the file; a byte order mark, CRLF line ends and blank lines at the end are accepted.
        columns: which to keep and what to call them, `{"userId": "user"}`.
        separator: between fields; of more than one character only where no field is quoted.
        quoted: fields may stand in double quotes, which a double quote in them doubles or a backslash escapes.
        names: of the columns, where the file has no header.
        encoding: of the file; other than UTF-8 it is read into memory.
        short_rows: take rows with too few fields, whose last fields are then null.

    Returns:
        The columns as String, empty fields as null, and `line`.

    Raises:
        InputError: the file is not there, empty or of another encoding, a column is missing or stands twice, or a row
            has too many or too few fields.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "movies.csv"
    >>> _ = path.write_text('movieId,title\n1,"American President, The"\n')
    >>> read_delimited(path, {"title": "title"}, quoted=True).rows()
    [('American President, The', 2)]
    """
    path, plain = _plain_form(path, separator, quoted, encoding)
    mark = separator if len(separator) == 1 else "\x1f"
    fields = list(names) if names else header_of(path, plain, mark, quoted)
    refuse_line(columns.values(), path)
    places = _places(path, columns, fields)
    kept = {f"{place}": pl.String() for place in range(len(fields))}
    try:
        table = (
            pl.scan_csv(
                plain,
                has_header=False,
                skip_rows=0 if names else 1,
                schema=kept,
                separator=mark,
                quote_char='"' if quoted else None,
                glob=False,
                raise_if_empty=False,
            )
            .select(
                *(pl.col(str(place)).alias(name) for name, place in places.items()),
                pl.col(str(len(fields) - 1)).alias(LAST),
            )
            .collect()
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        _blame_row(path, plain, mark, quoted, len(fields), names is None)
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    lines, marks, blank = count_lines(plain, mark)
    table = table.head(len(table) - blank) if not quoted else table
    if not short_rows and (table[LAST].null_count() > 0 if quoted else marks != (lines - blank) * (len(fields) - 1)):
        _blame_row(path, plain, mark, quoted, len(fields), names is None)
        table = table.head(len(table) - blank) if quoted else table
    return _with_lines(table, quoted, first=1 if names else 2).drop(LAST)


def _plain_form(path: Path, separator: str, quoted: bool, encoding: str) -> tuple[Path, Any]:
    """The path and what polars can read: the path itself, or the whole text as UTF-8 with one-character separators."""
    if not path.is_file():
        raise InputError(f"cannot read {path}: it does not exist")
    if encoding == "utf-8" and len(separator) == 1 and not quoted:
        return path, path
    with open_raw(path) as file:
        raw = file.read()
    if encoding != "utf-8":
        raw = raw.decode(encoding).encode()
    if quoted and b'\\"' in raw:
        raw = raw.replace(b'\\"', b'""')
    return path, raw.replace(separator.encode(), b"\x1f") if len(separator) > 1 else raw


@contextmanager
def open_raw(source: Path | bytes) -> Iterator[IO[bytes]]:
    """Opens a file, unpacked if it is gzipped, or bytes.

    Raises:
        InputError: it cannot be read, there or further on.

    >>> with open_raw(b"text") as file:
    ...     file.read()
    b'text'
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        with source.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {source}: {reason_of(error)}") from error


def header_of(path: Path, source: Path | bytes, separator: str, quoted: bool) -> list[str]:
    """The fields of the first line.

    Raises:
        InputError: the file is empty or not UTF-8.

    >>> header_of(Path("a.csv"), b"user,item", ",", quoted=False)
    ['user', 'item']
    """
    with open_raw(source) as file:
        try:
            first = file.readline(CHUNK).removeprefix(BOM).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:1: not UTF-8") from error
    if not first:
        raise InputError(
            f"{path}: the file is empty" if not count_lines(source, separator)[1] else f"{path}:1: there is no header"
        )
    try:
        return next(csv.reader([first], delimiter=separator)) if quoted else first.split(separator)
    except csv.Error as error:
        raise InputError(f"{path}:1: {error}") from error


def refuse_line(names: Iterable[str], path: Path) -> None:
    """Refuses a column whose name stands for a row's place in its file.

    Raises:
        InputError: one is called so.
    """
    if "line" in names:
        raise InputError(f"{path}: column 'line' has the name of a row's place in its file; give it another name")


def _places(path: Path, columns: Mapping[str, str], fields: list[str]) -> dict[str, int]:
    for wanted in columns:
        if fields.count(wanted) != 1:
            trouble = "stands more than once" if wanted in fields else "is missing"
            raise InputError(f"{path}:1: column {wanted!r} {trouble}; there are {', '.join(fields)[:300]}")
    return {name: fields.index(wanted) for wanted, name in columns.items()}


def count_lines(source: Path | bytes, separator: str) -> tuple[int, int, int]:
    r"""Lines, separators, and blank lines at the end.

    >>> count_lines(b"a,b\n1,2\n\n", ",")
    (3, 2, 1)
    """
    lines = marks = 0
    tail = b""
    with open_raw(source) as file:
        while chunk := file.read(CHUNK):
            lines += chunk.count(b"\n")
            marks += chunk.count(separator.encode())
            tail = tail[-CHUNK:] + chunk
    ended = tail.rstrip(b"\r\n")
    whole = 0 if not tail or tail.endswith(b"\n") else 1
    return lines + whole, marks, max(0, tail[len(ended) :].count(b"\n") - 1)


def _blame_row(path: Path, source: Path | bytes, separator: str, quoted: bool, width: int, headed: bool) -> None:
    """Raises the error of the first row that is wrong, if one is."""
    csv.field_size_limit(_LONGEST_FIELD)
    whose = "the header has" if headed else "a row has"
    with open_raw(source) as file:
        reader = csv.reader(
            decoded_lines(file, path),
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
        late: tuple[int, int] | None = None
        try:
            for row in reader:
                if late:
                    raise InputError(f"{path}:{late[0]}: {late[1]} fields, {whose} {width}")
                if len(row) != width:  # a blank line counts only where another follows
                    late = (reader.line_num, max(1, len(row)))
                    if row:
                        raise InputError(f"{path}:{late[0]}: {late[1]} fields, {whose} {width}")
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: {error}") from error


def decoded_lines(file: IO[bytes], path: Path) -> Iterator[str]:
    r"""The lines as text, without a byte order mark.

    Raises:
        InputError: one is not UTF-8.

    >>> list(decoded_lines(io.BytesIO(b"a\nb"), Path("a.txt")))
    ['a\n', 'b']
    """
    for number, line in enumerate(file, start=1):
        try:
            yield (line.removeprefix(BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8") from error


def _with_lines(table: pl.DataFrame, quoted: bool, first: int) -> pl.DataFrame:
    """Adds `line`: quoted fields may hold line ends, which shift the rows after them."""
    number = pl.int_range(pl.len(), dtype=pl.Int64) + first
    if quoted:
        ends = pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True)).cast(pl.Int64)
        number += ends.cum_sum().shift(1, fill_value=0)
    return table.with_columns(line=number)


def finite(table: pl.DataFrame, column: str, path: Path, optional: bool = False) -> pl.DataFrame:
    """Turns a column of text into numbers.

    Args:
        table: with the columns and `line`.
        column: its name.
        path: of the file, for messages.
        optional: an empty field is null instead of an error.

    Raises:
        InputError: a field is not a finite number, or a whole number too large to be told from another one.

    >>> finite(pl.DataFrame({"rating": ["4.5"], "line": [2]}), "rating", Path("ratings.csv"))["rating"].to_list()
    [4.5]
    """
    text = table[column]
    number = text.cast(pl.Float64, strict=False)
    bad = (number.is_null() | ~number.is_finite().fill_null(False)) & (text.is_not_null() if optional else True)
    rows = bad.arg_true()
    if len(rows):
        row = int(rows[0])
        told = "" if text[row] is None else str(text[row])[:80]
        raise InputError(f"{path}:{table['line'][row]}: {column} is {told!r}, not a finite number")
    _refuse_merged(text, number, table, path)
    return table.with_columns(number.alias(column))


def _refuse_merged(text: pl.Series, number: pl.Series, table: pl.DataFrame, path: Path) -> None:
    """Raises where whole numbers beyond 53 bits, such as times of 19 digits, become equal as floating-point numbers."""
    if text.dtype != pl.String or number.len() == 0 or (number.abs().max() or 0) < 2**53:  # type: ignore[operator]
        return
    large = pl.DataFrame({"text": text, "number": number, "line": table["line"]}).filter(
        pl.col("number").abs() >= 2**53
    )
    large = large.with_columns(whole=pl.col("text").cast(pl.Int128, strict=False)).drop_nulls("whole")
    twins = large.unique("whole", maintain_order=True).filter(pl.col("number").is_duplicated()).sort("number", "whole")
    if len(twins):
        one, other = twins["text"][0], twins["text"][1]
        raise InputError(
            f"{path}:{twins['line'][0]}: {text.name} {one} and {other} are too large to be told apart (more than 53 bits);"
            " subtract what all of them begin with, or leave the column out: rows then stand in the order of the file"
        )


def moments(table: pl.DataFrame, column: str, pattern: str, path: Path) -> pl.DataFrame:
    """Turns a column of written dates into seconds since 1970, UTC.

    Raises:
        InputError: a field is no such date.

    >>> table = pl.DataFrame({"timestamp": ["1970-01-02"], "line": [1]})
    >>> moments(table, "timestamp", "%Y-%m-%d", Path("a.csv"))["timestamp"].to_list()
    [86400.0]
    """
    text = table[column]
    try:
        read = text.str.to_datetime(pattern, time_unit="ms", strict=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{pattern!r} is no pattern of dates: {' '.join(str(error).split())[:120]}") from error
    rows = read.is_null().arg_true()
    if len(rows):
        row = int(rows[0])
        raise InputError(
            f"{path}:{table['line'][row]}: {column} is {str(text[row] or '')[:80]!r}, not like {pattern!r}"
        )
    return table.with_columns((read.dt.timestamp("ms").cast(pl.Float64) / 1000).alias(column))


def read_atomic_file(path: Path, columns: dict[str, str], lines: bool = False) -> pl.DataFrame:
    r"""Reads a RecBole atomic file: tab-separated, with a header of `name:type` fields.

    Args:
        path: the file, UTF-8 (a byte order mark and CRLF line ends are accepted).
        columns: which fields to keep and what to call them, `{"user_id": "user"}`.
        lines: add the column `line`.

    Returns:
        The columns in the given order; `float` fields as Float64, everything else as String, null where it is empty.

    Raises:
        InputError: the file is not there or not UTF-8, a field is missing, or a row is malformed (named by line).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.inter"
        >>> _ = path.write_text("user_id:token\trating:float\n7\t4.5\n")
        >>> read_atomic_file(path, {"user_id": "user", "rating": "rating"}).rows()
        [('7', 4.5)]
    """
    header = header_of(path, path, "\t", quoted=False)
    fields = [each.split(":")[0] for each in header]
    for wanted in columns:
        if fields.count(wanted) != 1:
            trouble = "stands more than once" if wanted in fields else "is missing"
            raise InputError(f"{path}:1: column {wanted!r} {trouble}; there are {', '.join(fields)[:300]}")
    typed = {wanted: header[fields.index(wanted)] for wanted in columns}
    table = read_delimited(path, {typed[wanted]: name for wanted, name in columns.items()}, separator="\t")
    for wanted, name in columns.items():
        if typed[wanted].endswith(":float"):
            table = finite(table, name, path)
    return table.drop("line") if not lines else table
