"""Fixtures that several rooms share: real clips, model files, a small demo set."""

import signal
from pathlib import Path

import pytest

from tests.media import fetch_real_clips


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job is deaf to Ctrl-C, one under nohup to a closed terminal, and so would be every
    process that tests interrupt: what is ignored is inherited, what has a handler is not."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", lambda *_: None)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """Real face videos by the short names of tests/media.py."""
    return fetch_real_clips()


@pytest.fixture(scope="session")
def detector_path() -> Path:
    """The short-range face detector's file."""
    from seqmodel.assets import detector_file

    return detector_file("short")


@pytest.fixture(scope="session")
def landmarker_path() -> Path:
    """The face landmarker's file."""
    from seqmodel.assets import landmarker_file

    return landmarker_file()


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small demo set: labels.csv and a few ten-second clips of several pseudo-subjects."""
    from extract.demo import make_demo

    folder = tmp_path_factory.mktemp("tiny_demo")
    make_demo(folder, clips=16, seed=0)
    return folder
