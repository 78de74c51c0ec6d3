"""A PostgreSQL server on loopback for tests and benchmarks: a new one, which can be stopped and started."""

import gc
import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if os.name == "posix" else []
"""Folders of the installed versions (Debian: apt install postgresql)."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server and how it was started."""

    folder: Path
    port: int
    as_user: tuple[str, ...]
    """Words before a command: PostgreSQL refuses root."""

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tuner@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server; one that runs is ended first, as by `stop`."""
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -c unix_socket_directories={self.folder}"
        argv = ("-w", "-l", f"{self.folder}/log", "-o", f"{options} -c fsync=off", "-m", "immediate")
        self._run("pg_ctl", *argv, "restart")

    def stop(self) -> None:
        """End the server at once, as a crash does: open transactions are lost."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def create(self) -> None:
        """Make the database files."""
        self._run("initdb", "-U", "tuner", "--auth=trust", "-N", "-E", "UTF8")

    def _run(self, program: str, *argv: str) -> None:
        words: Sequence[str] = (
            *self.as_user,
            str(BINARIES[-1] / program),
            "-D",
            f"{self.folder}/data",
            *argv,
        )
        done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", cwd="/", timeout=120)
        assert done.returncode == 0, done.stderr or done.stdout


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A new server, run by a normal user, and stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="brainbuddy-pg-", dir="/tmp"))  # a socket's path must be short
    folder.chmod(0o755)
    as_user: tuple[str, ...] = ()
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ("runuser", "-u", "postgres", "--")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = PostgresServer(folder, probe.getsockname()[1], as_user)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            with warnings.catch_warnings():
                # Optuna's heartbeat threads leave open sessions to the garbage collector.
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
