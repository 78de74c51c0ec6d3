"""python -m tests.bench faults: commands that die or fail at chosen writes, and are started again.

For each command, a write below its folder is drawn with a seed. Just before it, the process is killed
(SIGKILL), or the write fails (disk full, read-only disk), or the clock jumps by a day. Then the same command
runs to its end: its result must equal that of an undisturbed command where that is deterministic, and must
open and be complete otherwise. Prints a table; returns 1 if a row is not as it should be.
FAULT_SHARE sets the share of the 100 kills (default 1), FAULT_SEED the seed.
"""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from extract.demo.generate import make_demo
from features.maintenance.verify import verify_store
from features.store.store import FeatureStore
from seqmodel.encoders.model_files import detector_file
from seqmodel.runs.card import load_card
from tests.support.crop_store import write_crop_store
from tests.support.small_run import write_run
from tests.support.stores import require_equal_stores
from tests.support.trained_run import make_run, make_store

SHARE, SEED = float(os.environ.get("FAULT_SHARE", "1")), int(os.environ.get("FAULT_SEED", "0"))
IMPORTED = ("extract.run", "live.app", "tune.run", "seqmodel.commands.evaluate", "seqmodel.commands.finetune")
"""Imported before the children are forked. Nothing else runs before: threads do not survive a fork."""
FAULTS = ("killed", "disk full", "read-only disk", "clock jumps")
DAY_S = 86400.0
Check = Callable[[Path], None]
"""Requires that the folder of a command is as it should be; raises AssertionError otherwise."""


@dataclass(frozen=True)
class Case:
    """A command that writes into a folder."""

    name: str
    kills: int
    """Number of kills in a whole campaign; each other fault happens a sixth as often."""
    package: str
    argv: Callable[[Path], Sequence[object]]
    """Arguments of the command that writes into this folder."""
    prepare: Callable[[Path], None]
    """Makes the folder as it is before the command."""
    check: Check
    is_whole: Callable[[Path, Path], None] = lambda folder, undisturbed: None
    """Requires that a folder equals the undisturbed one; raises AssertionError otherwise."""
    faults: tuple[str, ...] = FAULTS


def in_child(action: Callable[[], object]) -> tuple[int, str]:
    """(exit code, stderr) of a function in a forked process.

    The code is what it returns, if that is a number; negative for a signal; 70 after an exception.
    """
    with tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(stderr.fileno(), 2)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), "utf-8", write_through=True)
            code = 70
            try:
                found = action()
                code = found if isinstance(found, int) else 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        stderr.seek(0)
        return os.waitstatus_to_exitcode(status), stderr.read().decode(errors="replace")


def run(case: Case, folder: Path, fault: str = "", at: int = 0) -> tuple[int, str]:
    """Run the command in a child; at its `at`-th write below the folder, the fault happens."""

    def action() -> int:
        hook_writes(folder, fault, at)
        words = [str(word) for word in case.argv(folder)]
        with contextlib.redirect_stdout(io.StringIO()):
            return int(import_module(f"{case.package}.__main__").main(words) or 0)

    return in_child(action)


def hook_writes(folder: Path, fault: str, at: int) -> None:
    """Count this process's writes below a folder (files opened for writing, renames) in the file WRITES next
    to it, and let the fault happen at the `at`-th."""
    count, place, total = [0], str(folder), os.open(writes_file(folder), os.O_WRONLY | os.O_CREAT)

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if not (flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set("wax+") & set(mode)):
                return
        elif event == "os.rename":
            path = args[1]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(place):
            return
        count[0] += 1
        os.pwrite(total, f"{count[0]:9d}".encode(), 0)
        if count[0] != at:
            return
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        elif fault == "read-only disk":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))
        elif fault == "clock jumps":
            real = time.time
            time.time = lambda: real() + DAY_S

    sys.addaudithook(on_event)


def writes_file(folder: Path) -> Path:
    """The file with the number of writes of the last command in a folder."""
    return folder.with_name(f"{folder.name}.writes")


def campaign(case: Case, base: Path, rng: random.Random) -> dict[str, str]:
    """The result of each fault: "n of n", or what went wrong first."""
    undisturbed = base / case.name / "undisturbed"
    require_ok(in_child(lambda: case.prepare(undisturbed)))
    require_ok(run(case, undisturbed))
    writes = int(writes_file(undisturbed).read_text(encoding="utf-8"))
    found = {}
    for fault in case.faults:
        right, wrong = 0, ""
        times = max(1, round(SHARE * case.kills / (1 if fault == "killed" else 6)))
        for number in range(times):
            folder = base / case.name / f"{fault} {number}"
            require_ok(in_child(lambda folder=folder: case.prepare(folder)))  # type: ignore[misc]
            at = rng.randrange(1, writes + 1)
            code, stderr = run(case, folder, fault, at)
            text = f"write {at} of {writes}: exit code {code}: {' '.join(stderr.split())[-300:]}"
            if "Traceback" in stderr or (fault == "killed") != (code == -signal.SIGKILL):
                wrong = wrong or text
                continue
            code, stderr = run(case, folder)
            if code:
                wrong = wrong or f"{text}; again: exit code {code}: {' '.join(stderr.split())[-300:]}"
                continue
            code, stderr = in_child(lambda folder=folder: compare(case, folder, undisturbed))  # type: ignore[misc]
            right += not code
            wrong = wrong or (f"{text}; then {' '.join(stderr.split())[-300:]}" if code else "")
            shutil.rmtree(folder)
        found[fault] = f"{right} of {times}"
        if wrong:
            print(f"WRONG {case.name}, {fault}: {wrong}", flush=True)
    print(f"{case.name:18}", f"{writes:4} writes", found, flush=True)
    return found


def compare(case: Case, folder: Path, undisturbed: Path) -> None:
    """Check a folder after a fault and the second command."""
    case.check(folder)
    case.is_whole(folder, undisturbed)


def require_ok(result: tuple[int, str]) -> None:
    """Raises RuntimeError with the output of a child that did not end well."""
    if result[0]:
        raise RuntimeError(result[1])


def same_weights(folder: Path, undisturbed: Path) -> None:
    """Require the same weights, bit for bit, and the same calibration."""
    weights = [(run / "run/weights.safetensors").read_bytes() for run in (folder, undisturbed)]
    assert weights[0] == weights[1], "other weights"
    assert load_card(folder / "run").calibration == load_card(undisturbed / "run").calibration


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
        assert all(map(np.array_equal, *maps)), "the packed copy differs"


def has_whole_log(folder: Path) -> None:
    """Require that the session's log can be read, and its recording too."""
    assert import_module("live.__main__").main(["report", str(folder / "log.csv"), "--out", str(folder)]) == 0


def cases(data: Path, video: Path, model: Path) -> list[Case]:
    """The commands of the campaign."""

    def with_store(folder: Path) -> None:
        folder.mkdir(parents=True)
        make_store(folder / "s.zarr", num_subjects=8, clips_each=4)

    def with_run(folder: Path) -> None:
        with_store(folder)
        make_run(folder / "run", FeatureStore.open(folder / "s.zarr"), epochs=2)

    def with_crops(folder: Path) -> None:
        folder.mkdir(parents=True)
        write_crop_store(folder / "s.zarr")
        argv = ["train", "--store", str(folder / "s.zarr"), "--run", str(folder / "run"), "--epochs", "2"]
        assert import_module("seqmodel.__main__").main(argv) == 0

    extract_options = ["--data", data, "--weights", "random", "--window", "2", "--workers", "0"]
    tune_options = ["--trials", "3", "--epochs", "2", "--workers", "1", "--reseed", "0"]
    finetune_options = ["--head-only-epochs", "1", "--epochs", "1", "--save-every-s", "0"]
    live_options = ["--run", model, "--video", video, "--headless"]
    return [
        Case(
            "extract",
            30,
            "extract",
            lambda folder: [*extract_options, "--crops", "jpeg", "--out", folder / "s.zarr"],
            lambda folder: folder.mkdir(parents=True),
            opens,
            lambda folder, undisturbed: require_equal_stores(folder / "s.zarr", undisturbed / "s.zarr"),
        ),
        Case(
            "features pack",
            24,
            "features",
            lambda folder: ["pack", folder / "s.zarr"],
            with_store,
            opens,
            same_packed,
        ),
        Case(
            "tune",
            12,
            "tune",
            lambda folder: ["--store", folder / "s.zarr", "--out", folder / "run", *tune_options],
            with_store,
            evaluates,
        ),
        Case(
            "finetune",
            12,
            "seqmodel",
            lambda folder: ["finetune", "--run", folder / "run", *finetune_options],
            with_crops,
            evaluates,
            same_weights,
        ),
        Case(
            "evaluate --folds",
            4,
            "seqmodel",
            lambda folder: ["evaluate", "--run", folder / "run", "--folds", "2"],
            with_run,
            evaluates,
            same_predictions,
        ),
        Case(
            "live",
            18,
            "live",
            lambda folder: [*live_options, "--log", folder / "log.csv", "--record", folder / "video.mp4"],
            lambda folder: folder.mkdir(parents=True),
            has_whole_log,
        ),
    ]


def main() -> int:
    """Run the campaign; returns 1 if a row is not as it should be."""
    os.environ |= {"OMP_NUM_THREADS": "1", "SLURM_CPUS_PER_TASK": "1"}
    for name in IMPORTED:
        import_module(name)
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        data, model = base / "data", base / "model"
        require_ok(in_child(lambda: make_demo(data, clips=2, seed=0)))
        require_ok(in_child(lambda: write_run(model, detector_file("short"))))
        video = sorted(data.rglob("*.mp4"))[0]
        rows = {case.name: campaign(case, base, rng) for case in cases(data, video, model)}
    print(json.dumps(rows, indent=1))
    return int(
        any(
            count.split(" of ")[0] != count.split(" of ")[1]
            for row in rows.values()
            for count in row.values()
        )
    )


if __name__ == "__main__":
    sys.exit(main())
