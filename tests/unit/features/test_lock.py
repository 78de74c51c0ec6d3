"""The planner lock: a model of several planners whose file operations are interleaved in any order."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from features.store import lock
from features.store.description import commit
from features.store.location import StoreLocation, existing_group, location_of
from features.store.lock import LOCK_STALE_S, planner_lock
from features.store.planner import write_rows
from tests.support.small_store import WITH_GEOMETRY, clips_of, write_store
from tests.support.stores import all_files

LOCATION = StoreLocation("model", Path("model"))
SLOTS = 3
OPERATIONS = ("any", "list", "read", "create", "overwrite", "delete", "plan")


class Killed(BaseException):
    """Ends the threads of a killed planner at their next step; no file operation follows."""


class Task:
    """A thread of a planner that runs only when it is stepped: up to its next file operation."""

    current: ClassVar[Any] = threading.local()

    def __init__(self, planner: "Planner", code: Callable[[], None]):
        self.planner, self.is_done, self.next = planner, False, "start"
        self.error: BaseException | None = None
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(code,), daemon=True).start()

    def _run(self, code: Callable[[], None]) -> None:
        Task.current.task = self
        self._turn.acquire()
        try:
            if not self.planner.is_dead:
                code()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._paused.release()

    def run_to_next(self) -> None:
        """Let the thread run to its next file operation, or to its end."""
        if not self.is_done:
            self._turn.release()
            assert self._paused.acquire(timeout=60)

    def step(self) -> None:
        """The same, and raise the error that ended the thread."""
        self.run_to_next()
        if self.error is not None:
            raise self.error

    @staticmethod
    def pause(operation: str) -> "Planner":
        """Called in the thread before an operation: wait for the next step. Returns the planner."""
        task: Task = Task.current.task
        task.next = operation
        if not task.planner.is_dead:
            task._paused.release()
            task._turn.acquire()
        if task.planner.is_dead:
            raise Killed
        return task.planner


class Planner:
    """A process that plans again and again. A plan reads the store's version and commits the next one."""

    def __init__(self, model: "Planners", pid: int):
        self.model, self.pid, self.is_dead = model, pid, False
        self.written_s = self.longest_pause_s = 0.0
        self.tasks = [Task(self, self.plan_again_and_again)]

    def plan_again_and_again(self) -> None:
        while True:
            try:
                with planner_lock(LOCATION) as held:
                    read = self.model.version
                    Task.pause("plan")
                    Task.pause("plan")
                    held.require_lock()
                    assert self.model.version == read, "two planners committed at the same time"
                    self.model.version += 1
            except ValueError:  # the lock is lost
                pause_s = max(self.longest_pause_s, self.model.now_s - self.written_s)
                assert pause_s > LOCK_STALE_S, "a lock was taken from a planner that renewed it"

    def note_write(self, *, is_first: bool = False) -> None:
        pause_s = self.model.now_s - self.written_s
        self.longest_pause_s = 0.0 if is_first else max(self.longest_pause_s, pause_s)
        self.written_s = self.model.now_s

    def kill(self) -> None:
        self.is_dead = True
        for task in self.tasks:
            task.run_to_next()


class Planners(RuleBasedStateMachine):
    """Three planners on one disk. Each file operation is one step; any of them can be killed at any step."""

    overwriting_creates = False

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.now_s, self.version, self.num_started = 0.0, 0, 0
        self.planners: list[Planner] = []
        self.everyone: list[Planner] = []
        self.patch = pytest.MonkeyPatch()
        self.patch_operations()
        self.planners = [self.start() for _ in range(SLOTS)]

    def start(self) -> Planner:
        self.num_started += 1
        self.everyone.append(Planner(self, self.num_started))
        return self.everyone[-1]

    def patch_operations(self) -> None:
        clock = {
            "monotonic": lambda: self.now_s,
            "time": lambda: self.now_s,
            "sleep": lambda s: Task.pause("sleep"),
        }
        layer: dict[str, Any] = {
            "root_names": lambda location: (Task.pause("list"), list(self.files))[1],
            "read_bytes": lambda location, key: (Task.pause("read"), self.files.get(key))[1],
            "delete_keys": self.delete_keys,
            "_create": self.create,
            "_overwrite": self.overwrite,
            "this_process": lambda: {"pid": Task.current.task.planner.pid, "host": "model"},
            "in_same_namespace": lambda process: True,
            "is_alive": lambda process: not self.everyone[process["pid"] - 1].is_dead,
            "log_warning": lambda text: None,
            "time": SimpleNamespace(**clock),
            "threading": SimpleNamespace(Thread=RenewalThread, Event=SteppedEvent),
        }
        for name, replacement in layer.items():
            self.patch.setattr(lock, name, replacement)

    def create(self, location: StoreLocation, number: int, body: bytes) -> None:
        """Exclusive creation; on a disk the content follows as a second operation."""
        planner, key = Task.pause("create"), f"{lock.LOCK_NAME}.{number}"
        if key not in self.files:
            planner.note_write(is_first=True)
            self.files[key] = body if self.overwriting_creates else b""
            if not self.overwriting_creates:
                self.overwrite(location, number, body)

    def overwrite(self, location: StoreLocation, number: int, body: bytes) -> None:
        planner, key = Task.pause("overwrite"), f"{lock.LOCK_NAME}.{number}"
        if key in self.files or self.overwriting_creates:
            planner.note_write()
            self.files[key] = body

    def delete_keys(self, location: StoreLocation, keys: list[str]) -> None:
        for key in keys:
            Task.pause("delete")
            self.files.pop(key, None)

    @rule(
        event=st.sampled_from([*["go on"] * 8, "renew", "wait", "pause", "kill"]),
        slot=st.integers(0, SLOTS - 1),
        operation=st.sampled_from(OPERATIONS),
    )
    def happen(self, event: str, slot: int, operation: str) -> None:
        if event == "kill":
            self.kill(slot)
        elif event == "wait":
            self.now_s += LOCK_STALE_S / 3
        elif event == "pause":
            self.pause_all()
        else:
            self.go_on(slot, operation, is_renewal=event == "renew")

    def go_on(self, slot: int, operation: str, *, is_renewal: bool = False) -> bool:
        """A planner, or its renewal, goes on until just before its next operation of this kind.

        At most 40 steps; returns whether it got there. A planner that waits for its renewal steps that too.
        """
        tasks = self.planners[slot].tasks
        task = tasks[-1 if is_renewal else 0]
        task.step()
        for _ in range(40):
            if operation not in ("any", task.next):
                task.step()
                if task.next == "join":
                    tasks[-1].step()
        return task.next == operation

    def kill(self, slot: int) -> None:
        """A planner is killed; another one starts."""
        self.planners[slot].kill()
        self.planners[slot] = self.start()

    def pause_all(self) -> None:
        """Time passes, in which no planner renews its lock."""
        self.now_s += LOCK_STALE_S + 1

    def teardown(self) -> None:
        """A planner that is left alone commits: no state of the files blocks it for ever."""
        try:
            for planner in self.planners[1:]:
                planner.kill()
            before = self.version
            for _ in range(200):
                self.now_s += 5
                for task in list(self.planners[0].tasks):
                    task.step()
            assert self.version > before
        finally:
            for planner in self.everyone:
                planner.kill()
            self.patch.undo()


class RenewalThread:
    """Stands for `threading.Thread`: a second task of the planner."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool):
        self.code = lambda: target(*args)

    def start(self) -> None:
        planner = Task.current.task.planner
        self.task = Task(planner, self.code)
        planner.tasks[1:] = [self.task]

    def join(self) -> None:
        while not self.task.is_done:
            Task.pause("join")


class SteppedEvent(threading.Event):
    """An event whose `wait` takes one step instead of time."""

    def wait(self, timeout: float | None = None) -> bool:
        Task.pause("wait")
        return self.is_set()


class PlannersOnObjectStorage(Planners):
    """An object appears with its content, and overwriting a deleted one creates it again."""

    overwriting_creates = True


MODEL = settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
Planners.TestCase.settings = MODEL
PlannersOnObjectStorage.TestCase.settings = MODEL
TestPlanners = Planners.TestCase
TestPlannersOnObjectStorage = PlannersOnObjectStorage.TestCase


@pytest.fixture(params=[Planners, PlannersOnObjectStorage])
def model(request: pytest.FixtureRequest) -> Iterator[Planners]:
    """Three planners that have not begun."""
    planners: Planners = request.param()
    yield planners
    planners.teardown()


def test_of_two_waiters_that_see_a_dead_lock_one_takes_it(model: Planners) -> None:
    """The other one is paused just before it takes the lock too; a third one comes in the meantime."""
    assert model.go_on(0, "plan")
    model.kill(0)
    assert model.go_on(1, "create")
    assert model.go_on(2, "plan")
    assert not model.go_on(1, "plan")
    assert not model.go_on(0, "plan")
    assert model.go_on(2, "create")
    assert model.version == 1


def test_planner_that_was_paused_commits_nothing(model: Planners) -> None:
    assert model.go_on(0, "plan")
    assert model.go_on(1, "sleep")
    model.pause_all()
    assert model.go_on(1, "plan")
    assert model.go_on(1, "create")
    assert model.version == 1
    assert model.go_on(0, "create")
    assert model.version == 1


def test_renewal_that_was_paused_does_not_take_the_lock_back(model: Planners) -> None:
    """On object storage it creates the deleted lock again, with a lower number."""
    assert model.go_on(0, "plan")
    assert model.go_on(0, "overwrite", is_renewal=True)
    assert model.go_on(1, "sleep")
    model.pause_all()
    assert model.go_on(1, "plan")
    assert model.go_on(0, "wait", is_renewal=True)
    assert model.go_on(0, "sleep")
    assert model.version == 0
    assert model.go_on(1, "create")
    assert model.version == 1


def test_released_number_is_not_used_again(model: Planners) -> None:
    """Or a waiter that saw it before could create the next number, while another planner has a lower one."""
    assert model.go_on(0, "plan")
    assert model.go_on(1, "sleep")
    model.pause_all()
    assert model.go_on(1, "create")
    assert model.go_on(0, "create")
    assert model.version == 1
    assert model.go_on(2, "plan")
    assert not model.go_on(1, "plan")


def test_planner_that_lost_its_lock_writes_nothing(tmp_path: Path) -> None:
    """Of a plan, in one clear line."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    before = all_files(path)
    location = location_of(path)
    with planner_lock(location) as held:
        group = existing_group(held, read_only=False)
        number = max(lock._numbers(location))
        (path / f"planner.lock.{number + 1}").write_bytes(b"{}")
        with pytest.raises(ValueError, match="is locked by another process now, because this one was paused"):
            write_rows(group, held, clips_of(4), WITH_GEOMETRY, has_crops=False, listing="whole")
        with pytest.raises(ValueError, match="run the same command again"):
            commit(group, held, {"num_clips": 0})
    assert all_files(path) == before
