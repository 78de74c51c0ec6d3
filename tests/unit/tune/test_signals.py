"""Signals to the worker processes of a search."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from features.cli import STOPS
from tune.study import worker


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Signal -> handler, in place of those of this process; all at their default."""
    found: dict[int, Any] = dict.fromkeys((signal.SIGINT, *STOPS), signal.SIG_DFL)
    own = {"signal": found.__setitem__, "getsignal": found.__getitem__}
    monkeypatch.setattr(worker, "signal", SimpleNamespace(**vars(signal) | own))
    return found


def begin(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Start the main function of a worker, in which this happens instead of the loading of clips."""
    monkeypatch.setattr(worker, "set_up", happens)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda threads: None)
    worker.worker(None, (), None, 1, 0)  # type: ignore[arg-type]


def test_each_signal_interrupts_a_worker_once(
    handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one, of the terminal and then of the command, must not interrupt the cleanup."""
    cleaned = []

    def interrupted(*_: Any, **__: Any) -> None:
        try:
            handlers[signal.SIGTERM](signal.SIGTERM, None)
        finally:
            for number in (signal.SIGINT, *STOPS):
                handlers[number](number, None)
            cleaned.append(True)

    begin(monkeypatch, interrupted)
    assert cleaned == [True]


def test_a_signal_that_nohup_ignores_stays_ignored(
    handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = next(number for number in STOPS if number != signal.SIGTERM)
    handlers[ignored] = signal.SIG_IGN

    def loads(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    begin(monkeypatch, loads)
    assert handlers[ignored] == signal.SIG_IGN
    assert callable(handlers[signal.SIGINT])
    assert callable(handlers[signal.SIGTERM])
