"""The first sheet of an .xlsx file as text, with the standard library alone: data sets ship labels in them.

Knows nothing about what the cells mean; formulas give their stored values.
"""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
MAX_BYTES = 200_000_000
"""A sheet that unpacks to more is no table of labels."""


def read_xlsx(path: Path) -> list[list[str]]:
    """Rows of cells, '' where a cell is empty.

    Raises ValueError when the file is not a spreadsheet.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shared = [_text(item) for item in _root(archive, "xl/sharedStrings.xml").iter(f"{_NAMESPACE}si")]
            sheet = _root(archive, "xl/worksheets/sheet1.xml")
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} is not an .xlsx spreadsheet: {error}") from error
    return [_row(row, shared) for row in sheet.iter(f"{_NAMESPACE}row")]


def _root(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if name.endswith("sharedStrings.xml") and name not in archive.namelist():
        return ElementTree.Element("sst")  # a sheet of numbers and inline texts has none
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise KeyError(f"{name} is too large")
    return ElementTree.fromstring(archive.read(name))


def _row(row: ElementTree.Element, shared: list[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_NAMESPACE}c"):
        column = _column(cell.get("r", ""), len(cells))
        cells += [""] * (column - len(cells))
        value = cell.findtext(f"{_NAMESPACE}v", "")
        kind = cell.get("t")
        if kind == "s" and value.isdigit() and int(value) < len(shared):
            value = shared[int(value)]
        elif kind == "inlineStr":
            value = _text(cell)
        cells.append(value)
    return cells


def _column(reference: str, default: int) -> int:
    """0 for A12, 26 for AA3."""
    letters = re.match(r"[A-Z]+", reference)
    if letters is None:
        return default
    number = 0
    for letter in letters.group():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _text(element: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in element.iter(f"{_NAMESPACE}t"))
