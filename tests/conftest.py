"""Fixtures that several rooms share: real clips, model files, a small demo set."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.media import fetch_real_clips

LONGEST = (
    "test_finetune_team test_finetune test_extract_robust test_private test_export test_tune test_evaluate "
    "test_extract_ray test_tune_postgres test_liveness test_extract_door test_object_store test_tune_grpc "
    "test_store test_serve test_who_counts test_report"
).split()
"""Files that take longest: they are begun first, so that no process waits long for the other at the end."""
# Two test processes share two cores: one thread each. Two threads that wait for each other on a busy machine
# spin, and took a test of folds from 10 s to 200.
os.environ.setdefault("SLURM_CPUS_PER_TASK", "1")
BuildOnce = Callable[[str, Callable[[Path], Any]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests under integration/ are slow. The files of LONGEST come first, in its order."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.slow)
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job is deaf to Ctrl-C, one under nohup to a closed terminal, and so would be every
    process that tests interrupt: what is ignored is inherited, what has a handler is not."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", lambda *_: None)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """A function that gives the folder of a name. The first test process that asks builds what lies in it;
    all others wait for it, and read: whoever changes something makes a copy."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built once"
    root.mkdir(exist_ok=True)

    def folder_of(name: str, build: Callable[[Path], Any]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def fetching(build_once: BuildOnce) -> FileLock:
    """Held while files are fetched into the cache, so that only one test process does."""
    return FileLock(build_once("fetching", lambda folder: None) / "lock")


@pytest.fixture(scope="session")
def real_clips(fetching: FileLock) -> dict[str, Path]:
    """Real face videos by the short names of tests/support/media.py."""
    with fetching:
        return fetch_real_clips()


@pytest.fixture(scope="session")
def detector_path(fetching: FileLock) -> Path:
    """The short-range face detector's file."""
    from seqmodel.encoders.model_files import detector_file

    with fetching:
        return detector_file("short")


@pytest.fixture(scope="session")
def landmarker_path(fetching: FileLock) -> Path:
    """The face landmarker's file."""
    from seqmodel.encoders.model_files import landmarker_file

    with fetching:
        return landmarker_file()


@pytest.fixture(scope="session")
def tiny_demo(build_once: BuildOnce) -> Path:
    """A folder with a small demo set: labels.csv and a few ten-second clips of several pseudo-subjects."""
    from extract.demo.generate import make_demo

    return build_once("tiny demo", lambda folder: make_demo(folder, clips=16, seed=0))


@pytest.fixture
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of this test get empty pictures: drawing them is most of what an evaluation takes. Figures are
    made all the same; only rendering them is left out."""
    if request.node.get_closest_marker("draws"):
        return
    import matplotlib.pyplot as plt

    def save(figure: Any, png: Path) -> str:
        plt.close(figure)
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(b"no picture")
        return "<svg></svg>"

    monkeypatch.setattr("tune.run.save_study_plots", lambda study, folder, metric: {})
    monkeypatch.setattr("seqmodel.reporting.content.save", save)
    monkeypatch.setattr("seqmodel.reporting.worst_errors.save", save)
    monkeypatch.setattr("seqmodel.reporting.style.save", save)


@pytest.fixture
def converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenVINO makes of a network is kept for the next test with the same weights: converting is most of
    what a small fine-tune takes."""
    from seqmodel.encoders import engine
    from seqmodel.encoders.backbone import state_sha256

    def converted(network: Any, crop_px: int) -> Any:
        state = state_sha256(network.state_dict())
        key = (type(network).__name__, getattr(network, "cut", None), crop_px, state)
        if key not in _CONVERTED:
            _CONVERTED[key] = convert(network, crop_px)
        return _CONVERTED[key]

    convert = engine._converted
    monkeypatch.setattr(engine, "_converted", converted)


_CONVERTED: dict[tuple[Any, ...], Any] = {}


@pytest.fixture
def not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that train a run do not make it ready for live: these tests are not about that."""
    monkeypatch.setattr("seqmodel.commands.export.export_for_live", lambda run: None)
