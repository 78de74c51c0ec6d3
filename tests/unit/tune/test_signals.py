"""Signals to the processes that train with new seeds."""

import signal
from types import SimpleNamespace

import pytest

from features.cli import STOPS
from tune.study import worker


def test_a_closed_terminal_does_not_end_a_process_before_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gets Ctrl-C and SIGHUP too, and ends its processes by SIGTERM."""
    handlers: dict[int, object] = {}
    signals = SimpleNamespace(**vars(signal) | {"signal": handlers.__setitem__})
    monkeypatch.setattr(worker, "signal", signals)
    monkeypatch.setattr(worker, "set_up", lambda *_, **__: None)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(worker, "_context", None)
    worker.start_refitting(None, None, 1)  # type: ignore[arg-type]
    assert handlers == dict.fromkeys({signal.SIGINT, *STOPS} - {signal.SIGTERM}, signal.SIG_IGN)
