"""What runs in a worker process: open the models, then run one video at a time and report its events."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from extract.pipeline.extractor import FeatureExtractor, StageTimer, open_extractor
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job
from extract.pipeline.writer import StoreWriteError, extract_and_write
from features.cli import STOPS, UserError
from features.files import end_with_parent
from features.store.store import FeatureStore


@dataclass(frozen=True)
class Event:
    """The result of one window, or (row None) the end of a video."""

    path: Path
    row: int | None = None
    reason: str = ""
    """Why the window failed; '' = it is in the store."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage; only at the end of a video."""
    began_s: float = 0.0
    """time.time() at the start of the video; only at its end."""


def work(pipe: Connection, extractor_config: ExtractorConfig, store_path: str) -> None:
    """The main function of a worker: open the models, then run jobs until the pipe is closed."""
    # Ctrl-C and a closed terminal reach the whole process group, but the parent decides when a worker stops.
    for number in (signal.SIGINT, *STOPS):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    try:
        extractor = open_extractor(extractor_config)
        store = FeatureStore.open(store_path, "r+")
    except (UserError, OSError) as error:
        _tell(pipe, "start", str(error))
        return
    try:
        pipe.send("ready")
        while True:
            for event in events(store, pipe.recv(), extractor, extractor_config):
                pipe.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the pipe: done
    except StoreWriteError as error:
        _tell(pipe, "store", str(error))
    except Exception as error:  # an unexpected error: report it to the parent, then end with the traceback
        _tell(pipe, "crash", f"{type(error).__name__}: {error}")
        raise
    finally:
        extractor.close()


def _tell(pipe: Connection, kind: str, text: str) -> None:
    """Send an error, unless the parent has closed the pipe: another worker may have had the same error."""
    with contextlib.suppress(OSError):
        pipe.send((kind, text))


def events(
    store: FeatureStore, job: Job, extractor: FeatureExtractor, extractor_config: ExtractorConfig
) -> Iterator[Event]:
    """Run one job and yield its events; used by the Ray executor too."""
    timer, began_s = StageTimer(), time.time()
    for outcome in extract_and_write(store, job, extractor, threads=extractor_config.threads, timer=timer):
        yield Event(job.path, outcome.window.row, outcome.reason if isinstance(outcome, FailedWindow) else "")
    yield Event(job.path, stage_s=dict(timer.seconds), began_s=began_s)
