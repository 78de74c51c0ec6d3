"""Reading of label and split tables, and of lists of names."""

from collections.abc import Sequence
from pathlib import Path

from features.cli import UserError
from features.tables import table_rows


def table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table by column name, stripped; rows with an empty first column are left out.

    Raises UserError for a file that does not exist or cannot be read, and if a column is missing.
    """
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    header, *lines = (cells for _, cells in table_rows(file))
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{file} has no column {missing[0]!r}: its header is {','.join(header)}")
    rows = (dict(zip(header, line, strict=False)) for line in lines)
    return [row for row in rows if row.get(columns[0]) and all(name in row for name in columns)]


def read_names(file: Path) -> list[str]:
    """The whitespace-separated names in a text file; empty if it does not exist."""
    return file.read_text(encoding="utf-8-sig").split() if file.is_file() else []
