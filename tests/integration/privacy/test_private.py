"""Faces stay on the machine: no door opens a connection beyond loopback and unix sockets.

Under strace, on Linux: every `connect` and `sendto` of a door and its children is looked at. Names of hosts
are looked up over such sockets as well, so a look-up would show too.
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
    """Addresses outside this machine that a trace shows somebody talking to."""
    found = set()
    for line in trace.splitlines():
        if TALK.search(line):
            for groups in ADDRESS.findall(line):
                address = next(filter(None, groups))
                if not LOCAL.match(address):
                    found.add(address)
    return found


def lookups(trace: str) -> list[str]:
    """Lines of a trace in which a name is asked for, be it of a server on this machine that asks further."""
    return [line for line in trace.splitlines() if TALK.search(line) and re.search(r"port=htons\(53\)", line)]


def watched(tmp_path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A python process under strace; the assertion that it talked to nobody far is made here."""
    assert STRACE is not None
    trace = tmp_path / "trace.txt"
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
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
            *map(str, words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=400,
        # A fresh home: what a library asks at its first start, it asks now.
        env={**os.environ, "HOME": str(home), "BRAINBUDDY_CACHE": str(cache_dir())},
    )
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}")
    said = trace.read_text(encoding="utf-8", errors="replace")
    far, asked = far_addresses(said), lookups(said)
    assert not far, f"{words} talked to {far}"
    assert not asked, f"{words} looked up a name: {asked[:3]}"
    return done


def test_the_watch_itself_sees_a_connection(tmp_path: Path) -> None:
    """A process that does open one is caught, or the other tests would prove nothing."""
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    with pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        watched(tmp_path, "-c", code)
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
        watched(tmp_path, "-c", code)


def test_live_talks_to_nobody(
    tmp_path: Path, real_clips: dict[str, Path], detector_path: Path, landmarker_path: Path
) -> None:
    """Torch, MediaPipe with both models, OpenVINO, cv2, a log, a recording and a report."""
    run = write_run(
        tmp_path / "run", detector_path, landmarker=landmarker_path, inputs=("embeddings", "geometry")
    )
    words = ["-m", "live", "--run", run, "--video", real_clips["single"], "--headless"]
    done = watched(tmp_path, *words, "--log", tmp_path / "a.csv", "--record", tmp_path / "a.mp4")
    assert done.returncode == 0, done.stderr


def test_the_browser_view_talks_to_this_machine_alone(
    tmp_path: Path, real_clips: dict[str, Path], detector_path: Path
) -> None:
    """Its server listens on loopback and asks nobody anything."""
    run = write_run(tmp_path / "run", detector_path)
    done = watched(
        tmp_path, "-m", "live", "--run", run, "--video", real_clips["single"], "--serve", "--port", "0"
    )
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace.txt").read_text(encoding="utf-8", errors="replace")
    bound = [line for line in trace.splitlines() if "bind(" in line and "AF_INET" in line]
    assert bound
    assert all("127.0.0.1" in line for line in bound)


def test_extract_and_tune_talk_to_nobody(tmp_path: Path, tiny_demo: Path) -> None:
    """The whole way from videos to a run, in worker processes too."""
    store, run = tmp_path / "demo.zarr", tmp_path / "run"
    words = ["-m", "extract", "--data", tiny_demo / "labels.csv", "--out", store, "--weights", "random"]
    done = watched(tmp_path, *words, "--workers", "1", "--fps", "1")
    assert done.returncode == 0, done.stderr
    words = ["-m", "tune", "--store", store, "--out", run, "--trials", "2", "--workers", "1"]
    done = watched(tmp_path, *words, "--labels", "distracted,engaged")
    assert done.returncode == 0, done.stderr
