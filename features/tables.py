"""Rows of tables as people have them: CSV files and .xlsx spreadsheets."""

import csv
import io
import zipfile
from pathlib import Path

from features.cli import UserError


def csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, stripped cells) of every row of a CSV file, header first; blank rows are skipped.

    UTF-8 (a BOM is allowed). The first line decides whether commas, semicolons or tabs separate the cells.

    Raises UserError, with file and line, for a file that is not UTF-8, not a CSV, or has no row.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line} is not UTF-8: save it as 'CSV UTF-8'") from error
    # In some locales, spreadsheet programs write semicolons or tabs.
    delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        stripped = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
        rows = [(number, cells) for number, cells in stripped if any(cells)]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from error
    if not rows:
        raise UserError(f"{path} is empty; expected a header line, then one line per clip")
    return rows


def sheet_rows(file: Path) -> list[list[str]]:
    """Cells of the first sheet of an .xlsx file as text; '' = empty."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{file} is not an .xlsx spreadsheet: {error}") from error
    rows = [["" if cell is None else str(cell) for cell in row] for row in book.worksheets[0].values]
    book.close()
    return rows
