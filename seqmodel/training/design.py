"""The study design: what is held out as a whole, and how a model is evaluated, given who there is.

Enough people for a test subset: it is kept for one evaluation. Fewer: `evaluate` holds out every one of them
in folds, and no test subset is taken away from training. One person, or nobody known: recordings take the
place of people, and the report says so.
"""

from dataclasses import dataclass

import numpy as np

from features.cli import UserError
from features.store.table import ClipTable, groups_of
from seqmodel.config import Design

HOLDOUT_PEOPLE, FOLDS_PEOPLE, FOLDS = 40, 6, "5"
"""From so many people a fifth is a test subset that says something (8 people or more); from so many on folds
hold out several people each, else one. Coverage of intervals: `seqmodel.metrics.bootstrap.COVERAGE`."""
PERSON, VIDEO = "person", "video"
DAY_COLUMNS = ("day", "date", "session")
"""Columns of the manifest that divide the recordings of one person, the first that does."""


@dataclass(frozen=True)
class StudyDesign:
    """What is held out, and how `evaluate` works."""

    folds: str = ""
    """Folds as `--folds` takes them: a number, loso (one person, video or day left out at a time), or column
    (the folds that the manifest names). '' = a test subset."""
    unit: str = PERSON
    """What is held out as a whole: person, video, or a column of `DAY_COLUMNS`."""
    people: int = 0
    """Number of people with labels; 0 = unknown."""
    count: int = 0
    """Number of units."""

    @property
    def scope(self) -> str:
        """What the results are limited to, for headings; '' = new people."""
        if self.unit == PERSON:
            return ""
        return "valid for this person only" if self.people else "subjects unknown"

    @property
    def text(self) -> str:
        """The design in one line."""
        who = "subjects are unknown" if not self.people else "1 person with labels"
        if self.unit == PERSON:
            who = f"{self.count} people (or videos of unknown people) with labels"
            who = f"{self.people} people with labels" if self.count == self.people else who
        else:
            who += f", {self.count} {self.unit}s"
        if not self.folds:
            return f"{who}: evaluated on a test subset"
        how = {"loso": ", one left out at a time", "column": " in the folds of the manifest"}.get(
            self.folds, f" in {self.folds} folds"
        )
        scope = f" ({self.scope})" if self.scope else ""
        return f"{who}: evaluate holds every {self.unit} out once{how}; no test subset{scope}"


def study_design(table: ClipTable, rows: np.ndarray, choice: Design, *, is_official: bool) -> StudyDesign:
    """The design for these rows; `choice` is --design. is_official: the manifest says what is held out.

    Raises UserError if there is only one unit: nothing can be held out.
    """
    people = len(set(table.subject[rows].tolist()) - {""})
    unit = PERSON
    if len(np.unique(groups_of(table, rows))) == 1 or not people:
        unit = next((name for name in DAY_COLUMNS if people and _divides(table, rows, name)), VIDEO)
    units, folds = units_of(table, rows, unit).tolist(), table.fold[rows].tolist()
    count = len(set(units))
    if count < 2:
        raise UserError(
            f"the labelled clips are of one person and one {unit}: nothing can be held out. Add recordings "
            "of other days, or of other people"
        )
    # The manifest names a fold for every clip, and none shares people (or recordings) with another.
    has_folds = len(set(folds)) > 1 and "" not in folds and len(set(zip(units, folds, strict=True))) == count
    enough = is_official or (count >= HOLDOUT_PEOPLE and (unit == PERSON or not people) and not has_folds)
    if choice == "holdout" or (choice == "auto" and enough):
        return StudyDesign("", unit, people, count)
    how = "column" if has_folds else "loso" if count < FOLDS_PEOPLE else FOLDS
    return StudyDesign(how, unit, people, count)


def units_of(table: ClipTable, rows: np.ndarray, unit: str) -> np.ndarray:
    """(len(rows),) str: the unit of each row; one without an entry in the unit's column counts by its
    video."""
    if unit == PERSON:
        return groups_of(table, rows)
    values = table.slices[unit][rows].tolist() if unit in table.slices else [""] * len(rows)
    sources = table.source[rows].tolist()
    return np.array(
        [
            f"{unit} {value}" if value else f"{VIDEO} {source}"
            for value, source in zip(values, sources, strict=True)
        ],
        str,
    )


def _divides(table: ClipTable, rows: np.ndarray, column: str) -> bool:
    """Whether the store has this column, with two values or more."""
    return column in table.slices and len(set(table.slices[column][rows].tolist()) - {""}) > 1
