"""What the fault campaign compares: that the folder of a command is whole, and equals an undisturbed one.

Each function requires it and raises AssertionError otherwise. A folder has a store `s.zarr` and a run `run`.
"""

from importlib import import_module
from pathlib import Path

import av
import numpy as np
from optuna.trial import TrialState

from features.maintenance.verify import verify_store
from features.store.store import DONE, FeatureStore
from live.config import NOVELTY
from live.output.log_reader import read_log
from seqmodel.runs.card import load_card
from tests.support.crop_store import write_crop_store
from tests.support.stores import require_equal_stores
from tests.support.trained_run import make_run, make_store
from tune.study.storage import open_storage


def with_store(folder: Path) -> None:
    """Make a folder with a store."""
    folder.mkdir(parents=True)
    make_store(folder / "s.zarr", num_subjects=8, clips_each=4)


def with_run(folder: Path) -> None:
    """Make a folder with a store and a run."""
    with_store(folder)
    make_run(folder / "run", FeatureStore.open(folder / "s.zarr"), epochs=2)


def with_crops(folder: Path) -> None:
    """Make a folder with a store of crops and a run."""
    folder.mkdir(parents=True)
    write_crop_store(folder / "s.zarr")
    argv = ["train", "--store", str(folder / "s.zarr"), "--run", str(folder / "run"), "--epochs", "2"]
    assert import_module("seqmodel.__main__").main(argv) == 0


def same_store(folder: Path, undisturbed: Path) -> None:
    """Require stores with the same bytes."""
    require_equal_stores(folder / "s.zarr", undisturbed / "s.zarr")


def same_weights(folder: Path, undisturbed: Path) -> None:
    """Require the same weights, bit for bit, the same stages and the same calibration."""
    weights = [(run / "run/weights.safetensors").read_bytes() for run in (folder, undisturbed)]
    assert weights[0] == weights[1], "other weights"
    cards = [load_card(run / "run") for run in (folder, undisturbed)]
    assert [stage["stage"] for stage in cards[0].stages] == [stage["stage"] for stage in cards[1].stages]
    assert cards[0].calibration == cards[1].calibration


def same_predictions(folder: Path, undisturbed: Path) -> None:
    """Require the same predictions of folds, byte by byte."""
    tables = [(run / "run/folds-2/predictions.csv").read_bytes() for run in (folder, undisturbed)]
    assert tables[0] == tables[1], "other predictions"


def evaluates(folder: Path) -> None:
    """Require that the run is finished, and has a report."""
    argv = ["evaluate", "--run", str(folder / "run"), "--split", "val"]
    assert import_module("seqmodel.__main__").main(argv) == 0


def opens(folder: Path) -> None:
    """Require that the store has no problem."""
    assert not verify_store(FeatureStore.open(folder / "s.zarr"))


def same_packed(folder: Path, undisturbed: Path) -> None:
    """Require that both packed copies are whole and equal."""
    stores = [FeatureStore.open(base / "s.zarr") for base in (folder, undisturbed)]
    for stream in stores[0].streams:
        maps = [store.mapped_stream(stream) for store in stores]
        assert maps[0] is not None, "no packed copy"
        assert maps[1] is not None, "no undisturbed packed copy"
        assert all(np.array_equal(x, y) for x, y in zip(*maps, strict=True)), "the packed copy differs"


def has_whole_logs(folder: Path) -> None:
    """Require that all logs with rows can be read together."""
    argv = ["report", *map(str, _logs(folder)), "--out", str(folder / "all.html")]
    assert import_module("live.__main__").main(argv) == 0


def same_session(folder: Path, undisturbed: Path) -> None:
    """Require the same predictions in the last log, and as many pictures in the last recording.

    A command never adds to an earlier log or recording: it writes log-2.csv and video-2.mp4.
    """
    found = []
    for base in (folder, undisturbed):
        _, rows = read_log(max(_logs(base), key=_written_at))
        with av.open(max(base.glob("video*.mp4"), key=_written_at)) as recording:
            num_pictures = sum(1 for _ in recording.decode(video=0))
        found.append((num_pictures, [(row.t_s, row.state, row.label, row.p) for row in rows]))
    assert found[0] == found[1], "another session"


def _logs(folder: Path) -> list[Path]:
    logs = [log for log in folder.glob("log*.csv") if not log.name.endswith(NOVELTY)]
    return [log for log in logs if log.stat().st_size]


def _written_at(path: Path) -> float:
    return path.stat().st_mtime


def same_evaluation(folder: Path, undisturbed: Path) -> None:
    """Require the same predictions and metrics, a report, and that both logs name every evaluation."""
    for name in ("predictions.csv", "metrics.json"):
        assert (folder / "run" / name).read_bytes() == (undisturbed / "run" / name).read_bytes(), name
    assert (folder / "run/report.html").is_file()
    logged = load_card(folder / "run").test_evaluations
    assert len(logged) == len(FeatureStore.open(folder / "s.zarr").test_evaluations)


def lists_failures(folder: Path, code: int, stderr: str) -> None:
    """Require that each clip is extracted or a printed failure, and exit code 1 if there are failures."""
    table = FeatureStore.open(folder / "s.zarr").table()
    assert ((table.state == DONE) != (table.failure != "")).all(), "neither finished nor failed"
    assert code == int((table.failure != "").any())
    for row in np.flatnonzero(table.failure != ""):
        assert str(table.clip_id[row]) in stderr


def has_run_and_trials(folder: Path, storage: str, name: str = "") -> None:
    """Require a finished run, and that the study has its three trials, finished, and none twice."""
    evaluates(folder)
    opened = open_storage(storage)
    study = next(study for study in opened.get_all_studies() if name in ("", study.study_name))
    trials = opened.get_all_trials(study._study_id)
    done = [str(trial.params) for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(done) >= 3, done
    assert len(set(done)) == len(done), f"trials run twice: {done}"
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
