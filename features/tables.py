"""Rows of tables as people have them: CSV, .xlsx spreadsheets, JSON lines.

A CSV may be separated by commas, semicolons or tabs, and be UTF-8, UTF-16 or CP949, which Excel writes in
Korea.
"""

import codecs
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from features.cli import UserError, log_warning

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".jsonl")


def table_rows(path: Path, warn: Callable[[str], None] = log_warning) -> list[tuple[int, list[str]]]:
    """(line number, stripped cells) of every row of a table, header first; blank rows are skipped.

    warn: called with a message if the file is not UTF-8 and read as CP949. Raises UserError, with file and
    line, for a file that cannot be read as its suffix says, or has no row.
    """
    if path.suffix.lower() == ".xlsx":
        rows = _sheet(path)
    else:
        read = _json_lines if path.suffix.lower() == ".jsonl" else _csv
        rows = read(_decoded(path.read_bytes(), path, warn), path)
    stripped = ((number, [cell.strip() for cell in cells]) for number, cells in rows)
    found = [(number, cells) for number, cells in stripped if any(cells)]
    if not found:
        raise UserError(f"{path} is empty; expected a header line, then one line per clip")
    return found


def _csv(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first line decides whether commas, semicolons or tabs separate the cells: in some locales,
    spreadsheet programs write semicolons or tabs."""
    delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from error


def _decoded(content: bytes, path: Path, warn: Callable[[str], None]) -> str:
    """The text of a file; a byte order mark is allowed."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        raise UserError(f"{path} line {line} is not UTF-8: save it as 'CSV UTF-8'") from None
    warn(f"{path} line {line} is not UTF-8: the file is read as Korean (CP949)")
    return text


def _sheet(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first sheet, up to the last column with a header."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is not an .xlsx spreadsheet: {error}") from error
    rows = [["" if cell is None else str(cell) for cell in row] for row in book.worksheets[0].values]
    book.close()
    width = max((index + 1 for index, name in enumerate(rows[0]) if name.strip()), default=0) if rows else 0
    yield from ((number, row[:width]) for number, row in enumerate(rows, start=1))


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """One JSON object a line; the header has the names of all of them."""
    lines = list(enumerate(text.splitlines(), start=1))
    try:
        objects = [(number, json.loads(line)) for number, line in lines if line.strip()]
        names = list(dict.fromkeys(name for _, each in objects for name in each.keys()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not one JSON object a line: {error}") from error
    yield 1, names
    for number, each in objects:
        yield number, ["" if each.get(name) is None else str(each[name]) for name in names]
