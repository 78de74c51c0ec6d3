"""python -m tests.bench faults: commands that die or fail at chosen moments, and are started again.

For each command, a write below its folder (in a database: a statement) is drawn with a seed. Just before it
a fault happens: the process is killed (SIGKILL), the write fails, the clock jumps by a day, the videos are
removed, or the database server restarts. Then what was removed is put back and the same command runs to its
end: its result must equal that of an undisturbed command where that is deterministic, and must open and be
complete otherwise. Or the process is stopped (SIGSTOP) while a second command writes into the same folder;
then both must end well, or one with one line. Prints a table; returns 1 if a row is not as it should be.
FAULT_SHARE sets the share of the kills (default 1), FAULT_SEED the seed.
`python -m tests.bench.faults NAME...` runs the named rows only.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import sqlalchemy

from extract.demo.generate import make_demo
from seqmodel.encoders.model_files import detector_file
from tests.support import whole_folders as whole
from tests.support.postgres import BINARIES, PostgresServer, postgres_server
from tests.support.small_run import write_run

SHARE, SEED = float(os.environ.get("FAULT_SHARE", "1")), int(os.environ.get("FAULT_SEED", "0"))
IMPORTED = ("extract.run", "live.app", "tune.run", "seqmodel.commands.evaluate", "seqmodel.commands.finetune")
"""Imported before the children are forked. Nothing else runs before: threads do not survive a fork."""
DAY_S = 86400.0
IDLE_S = 10.0
"""A second command that writes nothing for so long waits for the first, which then continues. Another time
gives other moments, but no other result."""
TOGETHER, STORE_REMOVED = "two commands", "store removed"
Check = Callable[[Path], None]
"""Requires that the folder of a command is as it should be; raises AssertionError otherwise."""
Fault = Callable[[Path, str], None]
"""What happens in a command's process, given its folder and the path that it writes to."""


def away(folder: Path) -> Path:
    """Where a fault puts what it removes from a command's folder."""
    return folder.with_name(f"{folder.name} away")


def remove(folder: Path, path: Path) -> None:
    """Move a file or folder below a command's folder away."""
    target = away(folder) / path.relative_to(folder)
    target.parent.mkdir(parents=True)
    path.rename(target)


def put_back(folder: Path) -> None:
    """Undo `remove`; sizes and times of the files stay."""
    if away(folder).exists():
        shutil.copytree(away(folder), folder, dirs_exist_ok=True)
        shutil.rmtree(away(folder))


def kill(folder: Path, path: str) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_fails(number: int) -> Fault:
    """The fault that a write raises OSError with this errno."""

    def fail(folder: Path, path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return fail


def clock_jumps(folder: Path, path: str) -> None:
    """Set this process's clock a day later."""
    real = time.time
    time.time = lambda: real() + DAY_S


FAULTS: dict[str, Fault] = {
    "killed": kill,
    "disk full": write_fails(errno.ENOSPC),
    "read-only disk": write_fails(errno.EROFS),
    "clock jumps": clock_jumps,
}
STOPPED: dict[str, Fault] = {TOGETHER: lambda folder, path: os.kill(os.getpid(), signal.SIGSTOP)}
REMOVED: dict[str, Fault] = {
    "video deleted": lambda folder, path: remove(folder, max((folder / "data").rglob("*.mp4"))),
    "videos unmounted": lambda folder, path: remove(folder, folder / "data"),
}
BETWEEN: dict[str, Fault] = {STORE_REMOVED: lambda folder, path: remove(folder, folder / "s.zarr")}


@dataclass(frozen=True)
class Case:
    """A command that writes into a folder."""

    name: str
    kills: int
    """Number of kills in a whole campaign; two commands run a third, each other fault a sixth as often."""
    package: str
    argv: Callable[[Path], Sequence[object]]
    """Arguments of the command that writes into this folder."""
    prepare: Callable[[Path], None]
    """Makes the folder as it is before the command."""
    check: Check
    is_whole: Callable[[Path, Path], None] = lambda folder, undisturbed: None
    """Requires that a folder equals the undisturbed one; raises AssertionError otherwise."""
    faults: Mapping[str, Fault] = field(default_factory=lambda: FAULTS | STOPPED)
    again: tuple[str, ...] = ()
    """More arguments of the second command."""
    ends_right: Callable[[Path, int, str], None] = lambda folder, code, stderr: None
    """Requires that a folder, the exit code and the messages are as they should be after the fault."""
    restore: Callable[[Path], None] = put_back
    """Puts back what a fault removed."""
    has_database: bool = False
    """The fault happens at a statement of the database, not at a write."""


def start(action: Callable[[], object]) -> tuple[int, IO[bytes]]:
    """Fork a process that calls a function; (process id, file with its stderr). See `ended`."""
    stderr = tempfile.TemporaryFile()
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
    return child, stderr


def ended(child: int, stderr: IO[bytes]) -> tuple[int, str]:
    """(exit code, stderr) of a process of `start`, after its end.

    The code is what the function returns, if that is a number; negative for a signal; 70 after an exception.
    """
    _, status = os.waitpid(child, 0)
    with stderr:
        stderr.seek(0)
        return os.waitstatus_to_exitcode(status), stderr.read().decode(errors="replace")


def in_child(action: Callable[[], object]) -> tuple[int, str]:
    """(exit code, stderr) of a function in a forked process."""
    return ended(*start(action))


def command(case: Case, folder: Path, more: Sequence[str] = (), fault: str = "", at: int = 0) -> int:
    """Run the command in this process; at its `at`-th moment the fault happens. Returns the exit code."""
    hook_moments(case, folder, case.faults.get(fault, kill), at)
    words = [str(word) for word in (*case.argv(folder), *more)]
    with contextlib.redirect_stdout(io.StringIO()):
        return int(import_module(f"{case.package}.__main__").main(words) or 0)


def run_two(case: Case, folder: Path, at: int) -> list[tuple[int, str]]:
    """Stop a command at its `at`-th moment, until a second one has ended or waits for it; both results."""
    first = start(lambda: command(case, folder, fault=TOGETHER, at=at))
    os.waitid(os.P_PID, first[0], os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    second, began_s = start(lambda: command(case, folder)), time.time()
    while os.waitid(os.P_PID, second[0], os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.time() - max(began_s, moments_file(folder).stat().st_mtime) > IDLE_S:
            break
        time.sleep(0.1)
    os.kill(first[0], signal.SIGCONT)
    return [ended(*first), ended(*second)]


def hook_moments(case: Case, folder: Path, fault: Fault, at: int) -> None:
    """Count this process's moments in a file next to the folder, and let the fault happen at the `at`-th.

    Moments are writes below the folder (files opened for writing, renames), or statements of a database.
    """
    count, place, total = [0], str(folder), os.open(moments_file(folder), os.O_WRONLY | os.O_CREAT)

    def note(path: str) -> None:
        count[0] += 1
        os.pwrite(total, f"{count[0]:9d}".encode(), 0)
        if count[0] == at:
            fault(folder, path)

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if not (flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set("wax+") & set(mode)):
                return
        elif event == "os.rename":
            path = args[1]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(place):
            note(os.fsdecode(path))

    if case.has_database:
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", lambda *call: note("statement"))
    else:
        sys.addaudithook(on_event)


def moments_file(folder: Path) -> Path:
    """The file with the number of moments of the last command in a folder."""
    return folder.with_name(f"{folder.name}.moments")


def campaign(case: Case, base: Path) -> dict[str, str]:
    """The result of each fault: "n of n"; prints what went wrong first."""
    undisturbed = base / case.name / "undisturbed"
    require_ok(in_child(lambda: case.prepare(undisturbed)))
    require_ok(in_child(lambda: command(case, undisturbed)))
    moments = int(moments_file(undisturbed).read_text(encoding="utf-8"))
    found = {}
    for fault in case.faults:
        part = {"killed": 1, TOGETHER: 3}.get(fault, 6)
        times, wrong = max(1, round(SHARE * case.kills / part)), []
        rng = random.Random(f"{SEED} {case.name} {fault}")
        for number in range(times):
            folder, at = base / case.name / f"{fault} {number}", rng.randrange(1, moments + 1)
            if problem := attempt(case, folder, undisturbed, fault, at):
                wrong.append(f"moment {at} of {moments}: {problem}")
            shutil.rmtree(folder, ignore_errors=True)
        found[fault] = f"{times - len(wrong)} of {times}"
        if wrong:
            print(f"WRONG {case.name}, {fault}: {wrong[0]}", flush=True)
    print(f"{case.name:18}", f"{moments:4} moments", found, flush=True)
    return found


def attempt(case: Case, folder: Path, undisturbed: Path, fault: str, at: int) -> str:
    """One fault, and the second command; returns what went wrong."""
    require_ok(in_child(lambda: case.prepare(folder)))
    if fault == STORE_REMOVED:
        require_ok(in_child(lambda: command(case, folder)))
        case.faults[fault](folder, "")
        at = 0
    if fault == TOGETHER:
        ends = run_two(case, folder, at)
    else:
        ends = [in_child(lambda: command(case, folder, fault=fault, at=at))]
    told = "; ".join(f"exit code {code}: {' '.join(stderr.split())[-400:]}" for code, stderr in ends)
    if not all(is_right_end(fault, *end) for end in ends) or (fault == TOGETHER and all(c for c, _ in ends)):
        return told
    code, stderr = in_child(lambda: case.ends_right(folder, *ends[0]))
    if code:
        return f"{told}; then {' '.join(stderr.split())[-400:]}"
    if fault != TOGETHER:
        case.restore(folder)
        code, stderr = in_child(lambda: command(case, folder, case.again))
        if code or "Traceback" in stderr:
            return f"{told}; again: exit code {code}: {' '.join(stderr.split())[-400:]}"
    code, stderr = in_child(lambda: compare(case, folder, undisturbed))
    return f"{told}; then {' '.join(stderr.split())[-400:]}" if code else ""


def is_right_end(fault: str, code: int, stderr: str) -> bool:
    """Whether a command may end so: killed, or without a traceback; refused by one line."""
    if fault == STORE_REMOVED:
        return code == 2 and len(stderr.splitlines()) == 1
    if fault == TOGETHER and code and (code != 2 or stderr.count("error:") != 1):
        return False
    return "Traceback" not in stderr and (fault == "killed") == (code == -signal.SIGKILL)


def compare(case: Case, folder: Path, undisturbed: Path) -> None:
    """Check a folder after a fault and the second command."""
    case.check(folder)
    case.is_whole(folder, undisturbed)


def require_ok(result: tuple[int, str]) -> None:
    """Raises RuntimeError with the output of a child that did not end well."""
    if result[0]:
        raise RuntimeError(result[1])


def store_cases(data: Path) -> list[Case]:
    """The commands that write a store."""
    options = ["--weights", "random", "--window", "2", "--workers", "0", "--crops", "jpeg"]

    def with_videos(folder: Path) -> None:
        shutil.copytree(data, folder / "data")

    extract = Case(
        "extract",
        30,
        "extract",
        lambda folder: ["--data", data, *options, "--out", folder / "s.zarr"],
        lambda folder: folder.mkdir(parents=True),
        whole.opens,
        whole.same_store,
    )
    return [
        extract,
        replace(
            extract,
            name="extract, videos",
            argv=lambda folder: ["--data", folder / "data", *options, "--out", folder / "s.zarr"],
            prepare=with_videos,
            faults=REMOVED,
            again=("--retry-failed",),
            ends_right=whole.lists_failures,
        ),
        Case(
            "features pack",
            24,
            "features",
            lambda folder: ["pack", folder / "s.zarr"],
            whole.with_store,
            whole.opens,
            whole.same_packed,
        ),
    ]


def tune_cases(server: PostgresServer | None) -> list[Case]:
    """The search, in a journal file and in PostgreSQL."""
    options = ["--trials", "3", "--epochs", "2", "--workers", "1"]

    tune = Case(
        "tune",
        12,
        "tune",
        lambda folder: ["--store", folder / "s.zarr", "--out", folder / "run", *options],
        whole.with_store,
        lambda folder: whole.has_run_and_trials(folder, str(folder / "run/study.log")),
        faults=FAULTS | STOPPED | BETWEEN,
    )
    if server is None:
        print("no PostgreSQL server here (Debian: apt install postgresql): a row is left out")
        return [tune]

    def restart(folder: Path, path: str) -> None:
        server.stop()
        server.start()

    return [
        tune,
        replace(
            tune,
            name="tune, PostgreSQL",
            kills=24,
            argv=lambda folder: [*tune.argv(folder), "--storage", server.url, "--study", folder.name],
            check=lambda folder: whole.has_run_and_trials(folder, server.url, folder.name),
            faults={"server restarts": restart, "server stops": lambda folder, path: server.stop()},
            restore=lambda folder: server.start(),
            has_database=True,
        ),
    ]


def run_cases() -> list[Case]:
    """The commands that change a run."""
    options = ["--head-only-epochs", "1", "--epochs", "1", "--save-every-s", "0"]
    return [
        Case(
            "finetune",
            12,
            "seqmodel",
            lambda folder: ["finetune", "--run", folder / "run", *options],
            whole.with_crops,
            whole.evaluates,
            whole.same_weights,
        ),
        Case(
            "evaluate --folds",
            4,
            "seqmodel",
            lambda folder: ["evaluate", "--run", folder / "run", "--folds", "2"],
            whole.with_run,
            whole.evaluates,
            whole.same_predictions,
        ),
        Case(
            "evaluate",
            12,
            "seqmodel",
            lambda folder: ["evaluate", "--run", folder / "run"],
            whole.with_run,
            whole.opens,
            whole.same_evaluation,
            faults=STOPPED | BETWEEN,
        ),
    ]


def live_case(video: Path, model: Path) -> Case:
    """A session with a log and a recording."""
    options = ["--run", model, "--video", video, "--headless"]
    return Case(
        "live",
        18,
        "live",
        lambda folder: [*options, "--log", folder / "log.csv", "--record", folder / "video.mp4"],
        lambda folder: folder.mkdir(parents=True),
        whole.has_whole_logs,
        whole.same_session,
        faults=FAULTS,
    )


def main() -> int:
    """Run the campaign, or the rows that the arguments name; returns 1 if a row is not as it should be."""
    os.environ |= {"OMP_NUM_THREADS": "1", "SLURM_CPUS_PER_TASK": "1"}
    for name in IMPORTED:
        import_module(name)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgres_server()) if BINARIES else None
        data, model = base / "data", base / "model"
        require_ok(in_child(lambda: make_demo(data, clips=2, seed=0)))
        require_ok(in_child(lambda: write_run(model, detector_file("short"))))
        live = live_case(sorted(data.rglob("*.mp4"))[0], model)
        cases = [*store_cases(data), *tune_cases(server), *run_cases(), live]
        wanted = sys.argv[1:] or [case.name for case in cases]
        rows = {case.name: campaign(case, base) for case in cases if case.name in wanted}
    print(json.dumps(rows, indent=1))
    counts = [count.split(" of ") for row in rows.values() for count in row.values()]
    return int(any(right != times for right, times in counts))


if __name__ == "__main__":
    sys.exit(main())
