"""The executor on Ray, with a stand-in for Ray: a script says what each actor's first call gives."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extract.config import ExtractConfig
from extract.executors import ray_executor
from extract.executors.worker import Event
from extract.pipeline.types import ExtractorConfig, Job, Window
from extract.run import _events
from features.recipe import EncoderId, Recipe

NO_MODELS = ExtractorConfig(Recipe(None, EncoderId("none", "none", "", 1), None), ())
JOBS = [Job(Path(name), (Window(row, 0.0, 2.0),)) for row, name in enumerate("abc")]


class RayError(Exception):
    pass


class Pending(RayError):
    pass


def ray_whose_starts(*outcomes: Exception | None) -> Any:
    """A stand-in for the module: the n-th actor's start ends like this, the last outcome repeats. Started
    actors finish every job at once."""
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=ZeroDivisionError, GetTimeoutError=Pending)
    starts = iter([*outcomes, *[outcomes[-1]] * 100])

    class Ref:
        def __init__(self, job: Job | None) -> None:
            self.outcome = next(starts) if job is None else None
            self.events = [Event(job.path, job.windows[0].row)] if job else []

    def get(ref: Any, timeout: float) -> list[Event]:
        if ref.outcome:
            raise ref.outcome
        return ref.events

    actor = SimpleNamespace(do=SimpleNamespace(remote=Ref))
    return SimpleNamespace(
        exceptions=exceptions,
        remote=lambda **_: lambda cls: SimpleNamespace(remote=lambda: actor),
        wait=lambda refs, timeout: None,
        get=get,
        kill=lambda actor: None,
    )


def run(ray: Any, workers: int) -> list[int | None]:
    return sorted(event.row for event in ray_executor._run(ray, JOBS, NO_MODELS, "s.zarr", workers))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(ray_executor, "log_warning", found.append)
    return found


def test_an_actor_that_dies_before_its_first_video_is_replaced(warnings: list[str]) -> None:
    assert run(ray_whose_starts(RayError("killed"), None), workers=1) == [0, 1, 2]
    assert warnings == ["a worker could not start: killed"]


def test_failed_starts_do_not_end_a_run_while_another_actor_works(warnings: list[str]) -> None:
    assert run(ray_whose_starts(None, RayError("killed")), workers=4) == [0, 1, 2]


def test_a_run_whose_actors_never_start_ends_in_one_line(warnings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^3 workers in a row could not start: killed$"):
        run(ray_whose_starts(RayError("killed")), workers=1)


def test_an_actor_that_waits_for_a_core_does_not_delay_the_end() -> None:
    assert run(ray_whose_starts(None, Pending()), workers=2) == [0, 1, 2]


def test_without_jobs_ray_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "run_jobs_on_ray", None)
    config = ExtractConfig(tmp_path, str(tmp_path / "s.zarr"), engine="ray")
    assert list(_events([], NO_MODELS, config, workers=2)) == []
