"""The page of a session, or of several: what was predicted, when, and how it differs from training."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.cli import echo, log_warning
from live.config import NOVELTY, ReportConfig, free_name, log_files
from live.output.log_reader import is_log, read_log
from live.output.log_summary import Day, SessionSummary, clock, days, summarise_rows, timeline_png
from live.ui.drawing import STATE_WORDS, colour_of
from seqmodel.runs.card import Card, load_card, write_text

if TYPE_CHECKING:
    from seqmodel.runs.training_stats import PercentileRange, TrainingStats

TEMPLATE = Path(__file__).with_name("report.html")
LEVELS = {"binary": "probability", "multiclass": "largest probability", "ordinal": "level"}
"""What `level_of` is called, by task."""
GUESSED = "where they are levels, --reference-run RUN draws those"
"""Said of more than two classes, where no run says what they are."""


def report(config: ReportConfig) -> tuple[dict[str, Any], int]:
    """`python -m live report`: write the report of some logs; gives summary and exit code.

    Raises ValueError when no log is named or one cannot be read.
    """
    if not config.logs:
        raise ValueError("name at least one log: python -m live report LOG.csv …")
    card = load_card(config.reference_run) if config.reference_run else None
    sessions = find_sessions(config.logs, card.labelling.task if card else None)
    for session in sessions:
        if card is not None:
            _require_same_run(card, session)
        if config.out and config.out.resolve() in map(Path.resolve, log_files(session.log)[:3]):
            raise ValueError(
                f"--out {config.out} is a log that is told of, or its timeline: name an HTML file"
            )
    page = write_report(sessions, out=config.out, reference_run=config.reference_run)
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
            # Not a number is not JSON either.
            {name: None if value != value else value for name, value in vars(day).items()}
            for day in days(sessions)
        ]
    return summary, 0


def _require_same_run(card: Card, session: SessionSummary) -> None:
    """Raises ValueError where a session cannot be one of the run's."""
    if card.recipe.pixels is None:
        raise ValueError("--reference-run a run of imported features: no session can be held against it")
    if session.names != card.labelling.names:
        raise ValueError(
            f"{session.log} tells {', '.join(session.names)}, and the run of --reference-run tells "
            f"{', '.join(card.labelling.names)}"
        )


def find_sessions(paths: Sequence[Path], task: str | None = None) -> list[SessionSummary]:
    """The live logs among the files named, told. So `*.csv` will do: novelty goes with its log; any other
    file and a log without a row are left out with a line.

    Raises ValueError when no log is among them, or one cannot be read.
    """
    sessions, left_out = [], []
    for path in {path.resolve(): path for path in paths}.values():
        if path.is_file() and not is_log(path):
            if not path.name.endswith(NOVELTY):
                left_out.append(f"{path} is not a live log: left out")
            continue
        names, rows = read_log(path)
        if rows:
            sessions.append(summarise_rows(path, names, rows, task))
        else:  # just begun, or quit before the first frame
            left_out.append(f"{path} holds no row yet: left out")
    if not sessions:
        raise ValueError(f"no live log among the files named holds a row: {', '.join(map(str, paths))}")
    for line in left_out:
        log_warning(line)
    return sessions


def write_report(
    sessions: Sequence[SessionSummary],
    *,
    out: Path | None = None,
    reference_run: Path | None = None,
    own: bool = False,
) -> Path:
    """Write the HTML page of some sessions (one file, pictures inside) and a timeline PNG beside each log.

    The page is `out`, or takes the next free name beside the first log. A timeline that is there stays, but
    own: a session renews its own; one that cannot be written there is left out with a line. Gives the page's
    path. Raises OSError when that cannot be written.
    """
    pictures = []
    for session in sessions:
        png = timeline_png(session)
        beside = session.log.with_suffix(".png")
        try:
            if own or not beside.exists():
                beside.write_bytes(png)
        except OSError as error:
            log_warning(f"no timeline beside the log: {error}")
        pictures.append(base64.b64encode(png).decode())
    comparison = None
    if reference_run is not None:
        from seqmodel.runs.training_stats import read_training_stats, write_training_stats

        level = LEVELS[load_card(reference_run).labelling.task]
        training_stats = read_training_stats(reference_run) or write_training_stats(reference_run)
        comparison = _compare(days(sessions), training_stats) | {"level": level}
    page = out or _free_page(sessions[0].log)
    write_text(page, _page(sessions, pictures, comparison, is_guessed=reference_run is None and not own))
    return page


def _free_page(log: Path) -> Path:
    """The log's own page, or the next free name that is no other log's either."""
    page = log.with_suffix(".html")
    return free_name(
        page, lambda other: [page] if other == page else log_files(other.with_suffix(log.suffix))
    )


def _compare(found: list[Day], training_stats: "TrainingStats") -> dict[str, Any]:
    """Rows of the drift table: each day's figures, and whether they lie where training clips lay."""

    def cell(value: float, spread: "PercentileRange | None") -> dict[str, Any]:
        if spread is None or math.isnan(value):
            return {"text": "–", "odd": False}
        return {"text": f"{value:.2f}", "odd": not spread.low <= value <= spread.high}

    spreads = (training_stats.face_rate, training_stats.p, training_stats.novelty)
    rows = []
    for day in found:
        pairs = zip((day.face_rate, day.p, day.novelty), spreads, strict=True)
        cells = [cell(value, spread) for value, spread in pairs]
        rows.append({"date": day.date, "minutes": f"{day.minutes:.1f}", "cells": cells})
    usual = [f"{s.mean:.2f} ({s.low:.2f} – {s.high:.2f})" if s else "–" for s in spreads]
    return {"rows": rows, "usual": usual, "num_clips": training_stats.num_clips}


def _height(session: SessionSummary, is_guessed: bool) -> str:
    """What the height of a session's timeline means, in words."""
    if session.task == "binary":
        return f"probability of {session.names[-1]}"
    if session.task == "ordinal":
        return f"level, from {session.names[0]} to {session.names[-1]}"
    return "probability of the likeliest class" + (f"; {GUESSED}" if is_guessed else "")


def _page(
    sessions: Sequence[SessionSummary],
    pictures: Sequence[str],
    comparison: dict[str, Any] | None,
    is_guessed: bool,
) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=sessions[0].log.stem if len(sessions) == 1 else f"{len(sessions)} sessions",
        sessions=list(zip(sessions, pictures, strict=True)),
        comparison=comparison,
        clock=clock,
        height=lambda session: _height(session, is_guessed),
        colour=_css,
    )


def _css(shown: str, names: tuple[str, ...]) -> str:
    if shown in names:
        return "rgb({},{},{})".format(*colour_of("ok", names.index(shown) / (len(names) - 1)))
    state = next(state for state, words in STATE_WORDS.items() if words == shown)
    return "rgb({},{},{})".format(*colour_of(state))
