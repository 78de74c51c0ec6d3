"""`python -m live`: opens the source, the view and the outputs, runs the loop, and reports the session.

Files are read frame by frame, as fast as possible; cameras, streams and `--realtime` files give the newest
frame and drop older ones.
"""

import contextlib
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.cli import UserError, echo, log_error, log_warning
from live.commands import DONE, Control
from live.config import SUBJECT, LiveConfig
from live.inference.calibration import CalibrationSession, can_calibrate
from live.inference.model import describe, model_card, open_model
from live.inference.predictor import Predictor
from live.inference.profiles import forget_personal, personal_file
from live.loop import Loading, Loop
from live.session import OutputOptions, Session
from live.sources.base import Source, open_source
from live.ui.view import NoView, WindowView, window_problem
from seqmodel.runs.card import Card

if TYPE_CHECKING:
    from live.loop import View


def watch(config: LiveConfig) -> tuple[dict[str, Any], int]:
    """Run a session until the source ends, the user quits or the time is over; returns summary and exit code.

    Raises UserError when the run or the source cannot be opened, or no window can be shown.
    """
    subject = unicodedata.normalize("NFC", config.subject or SUBJECT)  # some systems decompose Hangul
    if config.forget:
        return _forget(subject)
    personal_file(subject)  # raises for an invalid name before a camera is opened
    started = time.perf_counter()
    card = model_card(config.run)
    _require_possible(config, card)
    # With --serve at its own speed: else a file is over before a browser is open.
    source = open_source(config.camera, config.video, config.realtime or config.serve)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        session = Session(
            card.labelling.names,
            OutputOptions(config.log, config.record, config.record_raw, subject),
            card.data_statement.synthetic_notice,
        )
        stack.callback(session.close)
        control = Control(session, subject=subject, calibrate_s=config.calibrate, notify=echo)
        stack.callback(control.close)
        view = _open_view(config, session)
        stack.callback(view.close)
        status = "recording" if config.record or config.record_raw else "not recording"
        echo(f"{config.run}: local only, {status}")
        loading = Loading(lambda: Predictor(open_model(config.run, backend=config.backend)))
        stack.callback(loading.finish)
        try:
            Loop(config.seconds, source, loading, session, control, view).run()
        except KeyboardInterrupt:
            control.quits = True  # Ctrl-C ends a session like key q
    if control.predictor is None and not control.quits:
        loading.ready()  # raises the error of the loading thread
    failures = _failures(config, source, session, control)
    summary = _summary(config, source, session, control, started)
    if session.log_path and summary["rows"]:
        try:
            summary["report"] = _session_report(session, session.log_path, card)
        except (UserError, OSError) as error:  # the log was rotated away: the session itself is complete
            log_warning(f"no session report: {error}")
    _print_summary(summary)
    for failure in failures:
        log_error(failure)
    return summary, 1 if failures else 0


def _session_report(session: Session, log_path: Path, card: Card) -> str:
    """Write the report of a session; returns its path."""
    from live.output.log_summary import summarise_log
    from live.output.report import write_report

    found = [summarise_log(log_path, card.labelling.task)]
    return str(write_report(found, of_session=True, notice=session.notice))


def _require_possible(config: LiveConfig, card: Card) -> None:
    """Raises UserError where the browser view, the calibration or the window is not possible."""
    if config.serve:
        _require_server()
    if config.calibrate is not None:
        assert card.recipe.pixels is not None  # model_card refused others
        CalibrationSession.begin(0.0, config.calibrate, card.recipe.pixels.window_s)
        if not can_calibrate(card.labelling.task):
            raise UserError("--calibrate needs a binary or ordinal run: this run is multiclass")
    if not config.headless and not config.serve and (problem := window_problem()):
        raise UserError(f"cannot open a window ({problem}): use --serve (browser) or --headless")


def _summary(
    config: LiveConfig, source: Source, session: Session, control: Control, started: float
) -> dict[str, Any]:
    """Summary of an ended session, ready for JSON."""
    return {
        "run": str(config.run),
        "model": describe(control.predictor.model) if control.predictor else None,
        "duration_s": round(source.last_s, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "encoded": control.num_encoded,
        "dropped": source.num_dropped,
        **session.summary(),
        "calibration": control.calibration or None,
        "log": config.log if config.log == "-" else session.log_path and str(session.log_path),
    }


def _failures(config: LiveConfig, source: Source, session: Session, control: Control) -> list[str]:
    """What failed in an ended session, one line each."""
    found = [f"{path}: the file is incomplete: {reason}" for path, reason in session.failures]
    if source.failure:
        found.append(f"the video ended too early: {source.failure}")
    if control.predictor is None and not control.quits:
        found.append("the session ended before the model was loaded: there are no predictions")
    if config.calibrate is not None and control.calibration != DONE:
        found.append(f"calibration: {control.calibration}")
    return found


def _open_view(config: LiveConfig, session: Session) -> "View":
    if config.serve:
        from live.web.server import BrowserView

        browser = BrowserView(config.port, session)
        echo(f"open {browser.address} in a browser on this machine (the link works only once)")
        return browser
    return NoView() if config.headless else WindowView()


def _require_server() -> None:
    """Raises UserError when the packages of the browser view are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--serve needs the package {error.name}, which is not installed: pip install 'brainbuddy[serve]'"
        ) from error


def _forget(subject: str) -> tuple[dict[str, Any], int]:
    removed = forget_personal(subject)
    echo(f"calibration of {subject} removed" if removed else f"{subject} has no calibration")
    return {"subject": subject, "removed": removed}, 0 if removed else 1


def _print_summary(summary: dict[str, Any]) -> None:
    states = ", ".join(f"{state} {count}" for state, count in summary["states"].items()) or "none"
    echo(f"{summary['duration_s']:.1f} s of video in {summary['seconds']:.1f} s; rows by state: {states}")
    if summary["labels"]:
        labels = ", ".join(f"{label} {count}" for label, count in summary["labels"].items())
        echo(f"rows by class: {labels}; median latency {summary['latency_ms']['median']} ms")
    for path in summary["files"] + ([summary["report"]] if "report" in summary else []):
        echo(f"wrote {path}")
