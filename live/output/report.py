"""HTML report of one or more sessions: predictions over time, and comparison with the training data."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.cli import UserError, echo, log_warning
from live.config import NOVELTY, ReportConfig, free_name, log_files
from live.inference.state_machine import STATES
from live.output.log_reader import is_log, read_log
from live.output.log_summary import (
    Day,
    SessionSummary,
    clock,
    days,
    state_text,
    summarise_rows,
    timeline_png,
)
from live.ui.drawing import colour_of
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import write_text

if TYPE_CHECKING:
    from seqmodel.runs.training_stats import PercentileRange, TrainingStats

TEMPLATE = Path(__file__).with_name("report.html")
LEVELS = {"binary": "probability", "multiclass": "largest probability", "ordinal": "level"}
"""Name of the value of `level_of`, by task."""
UNKNOWN_TASK = "if the classes are levels, use --reference-run RUN to draw levels"
"""Note for more than two classes without a reference run."""


def report(config: ReportConfig) -> tuple[dict[str, Any], int]:
    """`python -m live report`: write the report of some logs; returns summary and exit code.

    Raises UserError when no log is given or a log cannot be read.
    """
    if not config.logs:
        raise UserError("no log: give at least one, as in python -m live report LOG.csv …")
    card = load_card(config.reference_run) if config.reference_run else None
    sessions = find_sessions(config.logs, card.labelling.task if card else None)
    for session in sessions:
        if card is not None:
            _require_same_run(card, session)
        if config.out and config.out.resolve() in map(Path.resolve, log_files(session.log)[:3]):
            raise UserError(f"--out {config.out} is one of the logs or its timeline: give another HTML file")
    page = write_report(
        sessions,
        out=config.out,
        reference_run=config.reference_run,
        notice=card.data_statement.synthetic_notice if card else "",
    )
    echo(f"wrote {page}")
    summary: dict[str, Any] = {
        "report": str(page),
        "sessions": [
            {
                "log": str(session.log),
                "duration_s": round(session.duration_s, 1),
                "seconds": {shown: round(seconds, 1) for shown, seconds in session.seconds.items()},
                "marks": len(session.marks),
            }
            for session in sessions
        ],
    }
    if config.reference_run:
        summary["days"] = [
            # NaN is not valid JSON.
            {name: None if value != value else value for name, value in vars(day).items()}
            for day in days(sessions)
        ]
    return summary, 0


def _require_same_run(card: Card, session: SessionSummary) -> None:
    """Raises UserError where a session cannot be from this run."""
    if card.recipe.pixels is None:
        raise UserError(
            "--reference-run was trained on imported features: sessions cannot be compared with it"
        )
    if session.names != card.labelling.names:
        raise UserError(
            f"{session.log} has the classes {', '.join(session.names)}, but the run of --reference-run has "
            f"{', '.join(card.labelling.names)}"
        )


def find_sessions(paths: Sequence[Path], task: str | None = None) -> list[SessionSummary]:
    """Summaries of the live logs among the given files, so that `*.csv` works.

    Novelty files belong to their logs; other files and logs without rows are left out with a warning.
    Raises UserError when there is no log with rows, or a log cannot be read.
    """
    sessions, left_out = [], []
    for path in {path.resolve(): path for path in paths}.values():
        if path.is_file() and not is_log(path):
            if not path.name.endswith(NOVELTY):
                left_out.append(f"left out: {path} is not a live log")
            continue
        names, rows = read_log(path)
        if rows:
            sessions.append(summarise_rows(path, names, rows, task))
        else:  # just started, or ended before the first frame
            left_out.append(f"left out: {path} has no rows yet")
    if not sessions:
        raise UserError(f"no live log with rows among the given files: {', '.join(map(str, paths))}")
    for line in left_out:
        log_warning(line)
    return sessions


def write_report(
    sessions: Sequence[SessionSummary],
    *,
    out: Path | None = None,
    reference_run: Path | None = None,
    of_session: bool = False,
    notice: str = "",
) -> Path:
    """Write the HTML report of some sessions (one file) and a timeline PNG next to each log.

    The report is `out`, or the next free name next to the first log. of_session: a session writes its own
    report; an existing timeline is then replaced, else kept. notice: a text at the top. A timeline that
    cannot be written is left out with a warning. Returns the report's path. Raises OSError when the report
    cannot be written.
    """
    pictures = []
    for session in sessions:
        png = timeline_png(session)
        timeline = session.log.with_suffix(".png")
        try:
            if of_session or not timeline.exists():
                timeline.write_bytes(png)
        except OSError as error:
            log_warning(f"no timeline next to the log: {error}")
        pictures.append(base64.b64encode(png).decode())
    comparison = None
    if reference_run is not None:
        from seqmodel.runs.training_stats import read_training_stats, write_training_stats

        level = LEVELS[load_card(reference_run).labelling.task]
        training_stats = read_training_stats(reference_run) or write_training_stats(reference_run)
        comparison = _compare(days(sessions), training_stats) | {"level": level}
    page = out or _free_page(sessions[0].log)
    is_task_unknown = reference_run is None and not of_session
    write_text(page, _page(sessions, pictures, comparison, is_task_unknown, notice))
    return page


def _free_page(log: Path) -> Path:
    """The report's name of the log, or the next name that is free and belongs to no other log."""
    page = log.with_suffix(".html")
    return free_name(
        page, lambda other: [page] if other == page else log_files(other.with_suffix(log.suffix))
    )


def _compare(session_days: list[Day], training_stats: "TrainingStats") -> dict[str, Any]:
    """Rows of the drift table: values per day, and whether they are outside the range of training."""

    def cell(value: float, spread: "PercentileRange | None") -> dict[str, Any]:
        if spread is None or math.isnan(value):
            return {"text": "–", "is_outside": False}
        return {"text": f"{value:.2f}", "is_outside": not spread.low <= value <= spread.high}

    spreads = (training_stats.face_rate, training_stats.p, training_stats.novelty)
    rows = []
    for day in session_days:
        pairs = zip((day.face_rate, day.p, day.novelty), spreads, strict=True)
        cells = [cell(value, spread) for value, spread in pairs]
        rows.append({"date": day.date, "minutes": f"{day.minutes:.1f}", "cells": cells})
    training = [f"{s.mean:.2f} ({s.low:.2f} – {s.high:.2f})" if s else "–" for s in spreads]
    return {"rows": rows, "training": training, "num_clips": training_stats.num_clips}


def _height(session: SessionSummary, is_task_unknown: bool) -> str:
    """Meaning of the height in a session's timeline."""
    if session.task == "binary":
        return f"probability of {session.names[-1]}"
    if session.task == "ordinal":
        return f"level, from {session.names[0]} to {session.names[-1]}"
    return "largest class probability" + (f"; {UNKNOWN_TASK}" if is_task_unknown else "")


def _page(
    sessions: Sequence[SessionSummary],
    pictures: Sequence[str],
    comparison: dict[str, Any] | None,
    is_task_unknown: bool,
    notice: str,
) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=sessions[0].log.stem if len(sessions) == 1 else f"{len(sessions)} sessions",
        sessions=list(zip(sessions, pictures, strict=True)),
        comparison=comparison,
        notice=notice,
        clock=clock,
        height=lambda session: _height(session, is_task_unknown),
        colour=_css,
    )


def _css(shown: str, names: tuple[str, ...]) -> str:
    if shown in names:
        return "rgb({},{},{})".format(*colour_of("ok", names.index(shown) / (len(names) - 1)))
    state = next(state for state in STATES if state_text(state, names) == shown)
    return "rgb({},{},{})".format(*colour_of(state))
