"""Fixtures for several packages: real clips, model files, a small demo set, faster reports and exports."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

pytest.register_assert_rewrite("tests.support")
from tests.support.media import fetch_real_clips  # noqa: E402

SLOWEST_FILES = (
    "test_finetune_distributed test_finetune test_extract_robustness test_private test_export test_tune "
    "test_evaluate test_extract_ray test_tune_postgres test_liveness test_extract_command "
    "test_object_store test_tune_grpc test_store test_serve test_evaluated_clips test_report "
    "test_search_space test_compare"
).split()
"""The test files that take longest. They start first, so that both processes end at about the same time."""
# Two test processes share two cores, so each uses one thread. With two threads each, waiting threads spin: a
# test of folds took 200 s instead of 10.
os.environ.setdefault("SLURM_CPUS_PER_TASK", "1")
BuildOnce = Callable[[str, Callable[[Path], Any]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests under integration/ as slow, and run SLOWEST_FILES first, in their order."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.slow)
    position = {name: index for index, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: position.get(item.path.stem, len(position)))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Replace ignored SIGINT and SIGHUP by handlers, so that the child processes of tests can be interrupted.

    A background job of a shell ignores SIGINT, and nohup ignores SIGHUP. A child process inherits an ignored
    signal, but not a handler.
    """
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", lambda *_: None)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """A function (name, build) -> folder. The first test process that calls it builds the folder's content.

    The other processes wait and then read it. A test that changes something works on a copy.
    """
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
    """A lock for downloads into the cache, so that only one test process downloads."""
    return FileLock(build_once("fetching", lambda folder: None) / "lock")


@pytest.fixture(scope="session")
def real_clips(fetching: FileLock) -> dict[str, Path]:
    """Real face videos by the short names of tests/support/media.py."""
    with fetching:
        return fetch_real_clips()


@pytest.fixture(scope="session")
def detector_path(fetching: FileLock) -> Path:
    """The file of the short-range face detector."""
    from seqmodel.encoders.model_files import detector_file

    with fetching:
        return detector_file("short")


@pytest.fixture(scope="session")
def landmarker_path(fetching: FileLock) -> Path:
    """The file of the face landmarker."""
    from seqmodel.encoders.model_files import landmarker_file

    with fetching:
        return landmarker_file()


@pytest.fixture(scope="session")
def tiny_demo(build_once: BuildOnce) -> Path:
    """A folder with a small demo set: labels.csv and 16 ten-second clips of several generated subjects."""
    from extract.demo.generate import make_demo

    return build_once("tiny demo", lambda folder: make_demo(folder, clips=16, seed=0))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread: sums in another order would change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty plots into the reports of this test, and fit logistic regression as the only simple method:
    rendering and fitting trees take most of an evaluation's time.

    The Matplotlib figures are still made; only their rendering is left out.
    """
    if request.node.get_closest_marker("draws"):
        return
    import matplotlib.pyplot as plt

    def save(figure: Any, png: Path) -> str:
        if not isinstance(figure, _Blank):
            plt.close(figure)
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(b"no picture")
        return "<svg></svg>"

    monkeypatch.setattr("seqmodel.evaluation.baselines.METHODS", {"logistic": "Logistic regression"})
    monkeypatch.setattr("seqmodel.reporting.content.save", save)
    monkeypatch.setattr("seqmodel.reporting.worst_errors.save", save)
    monkeypatch.setattr("seqmodel.reporting.style.save", save)


class _Blank:
    """Stands for a figure or its axes: each attribute, item and call is this object too."""

    def __getattr__(self, name: str) -> "_Blank":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Blank":
        return self

    def __getitem__(self, _: Any) -> "_Blank":
        return self

    def __iter__(self) -> Iterator["_Blank"]:
        return iter(())


@pytest.fixture
def no_figures(no_drawing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `no_drawing`, and the reports' figures are blank, for tests of anything but the reports: making the
    figures takes two thirds of an evaluation that does not render them."""

    @contextlib.contextmanager
    def drawing(width: float, height: float, panel_heights: Sequence[float] = (1.0,)) -> Iterator[Any]:
        panels = [_Blank() for _ in panel_heights]
        yield _Blank(), panels if len(panels) > 1 else panels[0]

    monkeypatch.setattr("seqmodel.reporting.plots_metrics.drawing", drawing)
    monkeypatch.setattr("seqmodel.reporting.plots_analysis.drawing", drawing)


@pytest.fixture
def converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each converted OpenVINO model for later tests with the same weights.

    The conversion takes most of the time of a small fine-tune.
    """
    from seqmodel.encoders import engine
    from seqmodel.encoders.backbone import state_sha256

    def converted(network: Any, crop_px: int) -> Any:
        state = state_sha256(network.state_dict())
        key = (type(network).__name__, getattr(network, "first_block", None), crop_px, state)
        if key not in _CONVERTED:
            _CONVERTED[key] = convert(network, crop_px)
        return _CONVERTED[key]

    convert = engine._converted
    monkeypatch.setattr(engine, "_converted", converted)


_CONVERTED: dict[tuple[Any, ...], Any] = {}


@pytest.fixture
def not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that train a run do not export it; the tests with this fixture do not need the export."""
    monkeypatch.setattr("seqmodel.commands.export.export_for_live", lambda run: None)
