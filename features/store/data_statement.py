"""The data statement: where the data of a store come from, read from `dataset.toml` beside the manifest.

A field without a value is "not stated" in reports. Reading a statement imports no array library.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from features.cli import UserError

FILE = "dataset.toml"
NOT_STATED = "not stated"
TITLES = {
    "name": "name",
    "version": "version",
    "licence": "licence",
    "synthetic": "synthetic",
    "labelled": "what is labelled",
    "raters": "raters",
    "num_raters": "number of raters of a clip",
    "agreement": "agreement of the raters (name of the measure)",
    "recruitment": "recruitment",
    "consent": "consent or ethics number",
    "camera": "camera",
    "language": "language that is spoken",
}
"""Field -> its name in reports, in their order."""
TEMPLATE = "\n".join(
    (
        "# Where these videos come from. Remove the first # of a line to state it. Reports show all lines.",
        *(
            f"# {name} = {dict(synthetic='false', num_raters='1').get(name, repr(''))}  # {title}"
            for name, title in TITLES.items()
        ),
        "",
    )
)
"""A `dataset.toml` that states nothing: every field is a comment, so each beginning of it is valid too."""


@dataclass(frozen=True)
class DataStatement:
    """Where the data of a store come from; '' and None = not stated."""

    name: str = ""
    version: str = ""
    licence: str = ""
    synthetic: bool | None = None
    """Whether the videos were made by a program, so that they show no people."""
    labelled: str = ""
    raters: str = ""
    num_raters: int | None = None
    agreement: str = ""
    recruitment: str = ""
    """How the people were found, or how synthetic data were made."""
    consent: str = ""
    camera: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        kinds = {"synthetic": (bool, "true or false"), "num_raters": (int, "a whole number")}
        for name, value in vars(self).items():
            kind, wanted = kinds.get(name, (str, 'a text in quotes, such as "1.0"'))
            if value is not None and type(value) is not kind:
                raise UserError(f"{name} must be {wanted}, got {value!r}")

    @property
    def synthetic_notice(self) -> str:
        """The notice that stands wherever results on synthetic data are shown; '' if they are not stated to
        be synthetic."""
        made = ", ".join(filter(None, (self.recruitment, self.raters))) or NOT_STATED
        return f"SYNTHETIC DATA: {made}" if self.synthetic else ""


def as_text(value: str | bool | int | None) -> str:
    """The value of a field as text for reports."""
    return "yes" if value is True else "no" if value is False else str(value or NOT_STATED)


def statement_rows(statement: DataStatement) -> list[tuple[str, str]]:
    """(title, value) of every field, as text for reports."""
    return [(title, as_text(getattr(statement, name))) for name, title in TITLES.items()]


def read_statement(folder: Path) -> DataStatement:
    """The statement in the `dataset.toml` of a folder; empty if there is no such file.

    Raises UserError, with the file, if it is damaged or has an unknown or a wrong field.
    """
    path = folder / FILE
    if not path.is_file():
        return DataStatement()
    try:
        fields = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        if unknown := sorted(fields.keys() - TITLES.keys()):
            raise UserError(f"unknown field {', '.join(unknown)}; the fields are {', '.join(TITLES)}")
        return DataStatement(**fields)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
