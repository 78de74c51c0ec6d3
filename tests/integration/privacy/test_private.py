"""Tests that no command opens a connection other than loopback and unix sockets.

They use strace on Linux and check every `connect` and `sendto` of a command and its children. Host names are
looked up over sockets too, so a look-up is detected as well.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_run import write_run

ROOT = Path(__file__).resolve().parents[3]
STRACE = shutil.which("strace")
TALK = re.compile(r"(connect|sendto|sendmsg|sendmmsg)\(")
ADDRESS = re.compile(
    r"sin6?_addr=inet_(?:addr|pton)\((?:AF_INET6?, )?\"([^\"]+)\"|inet_pton\(AF_INET6, \"([^\"]+)\""
)
LOCAL = re.compile(r"^(127\.|::1$|::ffff:127\.|0\.0\.0\.0$)")

pytestmark = [
    pytest.mark.skipif(STRACE is None, reason="no strace here (Linux: apt install strace)"),
]


def far_addresses(trace: str) -> set[str]:
    """Addresses outside this machine to which a traced process connects or sends."""
    found = set()
    for line in trace.splitlines():
        if TALK.search(line):
            for groups in ADDRESS.findall(line):
                address = next(filter(None, groups))
                if not LOCAL.match(address):
                    found.add(address)
    return found


def lookups(trace: str) -> list[str]:
    """Lines of a trace with a DNS look-up, also through a server on this machine."""
    return [line for line in trace.splitlines() if TALK.search(line) and re.search(r"port=htons\(53\)", line)]


def run_traced(tmp_path: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run Python under strace and assert that it connects only to this machine."""
    assert STRACE is not None
    trace = tmp_path / "trace.txt"
    home_folder = tmp_path / "home"
    home_folder.mkdir(exist_ok=True)
    from features.files import cache_dir

    done = subprocess.run(
        [
            STRACE,
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            "trace=network",
            "-o",
            trace,
            sys.executable,
            *map(str, argv),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=400,
        # A new home folder, so that requests which a library makes at its first start are made now.
        env={**os.environ, "HOME": str(home_folder), "BRAINBUDDY_CACHE": str(cache_dir())},
    )
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}")
    trace_text = trace.read_text(encoding="utf-8", errors="replace")
    far, names_looked_up = far_addresses(trace_text), lookups(trace_text)
    assert not far, f"{argv} connected to {far}"
    assert not names_looked_up, f"{argv} looked up a name: {names_looked_up[:3]}"
    return done


def test_connection_check_detects_a_connection(tmp_path: Path) -> None:
    """A process that opens an outside connection is detected; else the other tests would prove nothing."""
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    with pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        run_traced(tmp_path, "-c", code)
    six = 'connect(3, {sa_family=AF_INET6, inet_pton(AF_INET6, "2001:db8::1", &sin6_addr)}, 28) = 0'
    assert far_addresses(six) == {"2001:db8::1"}
    near = 'connect(3, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, 16) = 0'
    assert far_addresses(near) == set()
    assert lookups(near) == []
    assert lookups(near.replace("htons(9)", "htons(53)").replace("127.0.0.1", "127.0.0.53"))
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.53', 53))"
    )
    with pytest.raises(AssertionError, match="looked up a name"):
        run_traced(tmp_path, "-c", code)


def test_live_makes_no_outside_connection(
    tmp_path: Path, real_clips: dict[str, Path], detector_path: Path, landmarker_path: Path
) -> None:
    """With torch, MediaPipe with both models, OpenVINO, cv2, a log, a recording and a report."""
    run = write_run(
        tmp_path / "run", detector_path, landmarker=landmarker_path, inputs=("embeddings", "geometry")
    )
    argv = ["-m", "live", "--run", run, "--video", real_clips["single"], "--headless"]
    done = run_traced(tmp_path, *argv, "--log", tmp_path / "a.csv", "--record", tmp_path / "a.mp4")
    assert done.returncode == 0, done.stderr


def test_browser_view_connects_only_to_this_machine(
    tmp_path: Path, real_clips: dict[str, Path], detector_path: Path
) -> None:
    """The server listens on loopback and sends no request."""
    run = write_run(tmp_path / "run", detector_path)
    done = run_traced(
        tmp_path, "-m", "live", "--run", run, "--video", real_clips["single"], "--serve", "--port", "0"
    )
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace.txt").read_text(encoding="utf-8", errors="replace")
    bound = [line for line in trace.splitlines() if "bind(" in line and "AF_INET" in line]
    assert bound
    assert all("127.0.0.1" in line for line in bound)


def test_extract_and_tune_make_no_outside_connection(tmp_path: Path, tiny_demo: Path) -> None:
    """From videos to a run, also in worker processes."""
    store, run, few = tmp_path / "demo.zarr", tmp_path / "run", tmp_path / "few.csv"
    header, *clips = (tiny_demo / "labels.csv").read_text(encoding="utf-8").splitlines()
    # Two clips or more of each subset, with both labels.
    few.write_text("\n".join([header, *(f"{tiny_demo}/{clip}" for clip in clips[:8])]), encoding="utf-8")
    argv = ["-m", "extract", "--data", few, "--out", store, "--weights", "random"]
    done = run_traced(tmp_path, *argv, "--workers", "1", "--fps", "1")
    assert done.returncode == 0, done.stderr
    argv = ["-m", "tune", "--store", store, "--out", run, "--trials", "2", "--workers", "1"]
    argv += ["--epochs", "2"]
    done = run_traced(tmp_path, *argv, "--labels", "distracted,engaged")
    assert done.returncode == 0, done.stderr
