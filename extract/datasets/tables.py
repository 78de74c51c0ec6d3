"""Reading of label and split tables, and of lists of names."""

from collections.abc import Sequence
from pathlib import Path

from features.cli import UserError
from features.tables import csv_rows, sheet_rows


def table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV or .xlsx file by column name, stripped; rows with an empty first column are left out.

    Raises UserError for a file that does not exist or cannot be read, and if a column is missing.
    """
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    lines = sheet_rows(file) if file.suffix == ".xlsx" else [cells for _, cells in csv_rows(file)]
    header = [cell.strip() for cell in lines[0]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{file} has no column {missing[0]!r}: its header is {','.join(header)}")
    rows = (dict(zip(header, (cell.strip() for cell in line), strict=False)) for line in lines[1:])
    return [row for row in rows if row.get(columns[0]) and all(name in row for name in columns)]


def read_names(file: Path) -> list[str]:
    """The whitespace-separated names in a text file; empty if it does not exist."""
    return file.read_text(encoding="utf-8-sig").split() if file.is_file() else []
