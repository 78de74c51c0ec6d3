"""Claims about the search: one seed one study, nothing lost when workers die, no look at the test split."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from features.external import read_sequences, write_external
from seqmodel.config import LabelArgs
from seqmodel.reference import read_reference
from seqmodel.run import load_card, load_split, load_weights
from tests.small_store import write_store
from tune import liveness, outcome
from tune.__main__ import main
from tune.config import TuneArgs
from tune.outcome import tune
from tune.search import Space, choice_of, seed_point, suggest
from tune.storage import open_storage, refuse_shared_disk
from tune.study import (
    StudySpec,
    create_study,
    load_study,
    num_done,
    reclaim,
    run_workers,
    work,
)
from tune.workers import set_up

STUCK = 2
"""Number of the trial that never ends by itself."""
SPACE = Space("binary", ("embeddings",), False, 4)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Searches and their worker processes take one thread each, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported sequences of fifteen people whose label leans on the features."""
    folder = tmp_path_factory.mktemp("저장")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 90)
    x = rng.normal(size=(90, 6, 8)).astype(np.float32)
    x[:, :, 0] += 0.5 * y[:, None]
    np.savez(
        folder / "features.npz",
        x=x,
        y=y,
        subject=np.array([f"사람{i % 15}" for i in range(90)]),
        label_names=np.array(["distracted", "engaged"]),
    )
    write_external(folder / "clips.zarr", read_sequences(folder / "features.npz"), "toy")
    return folder / "clips.zarr"


def args_for(store: Path, out: Path, **changes: Any) -> TuneArgs:
    args = TuneArgs(
        store=store,
        out=out,
        label=LabelArgs(labels="distracted,engaged"),
        trials=4,
        jobs=1,
        reseed=1,
        epochs=3,
    )
    return dataclasses.replace(args, **changes)


def trials_of(out: Path) -> list[FrozenTrial]:
    storage = open_storage(str(out / "study.log"))
    return optuna.load_study(study_name=None, storage=storage).trials


def facts(out: Path) -> list[tuple[dict[str, Any], float | None, TrialState]]:
    return [(trial.params, trial.value, trial.state) for trial in trials_of(out)]


@pytest.fixture(scope="module")
def searched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search of six trials in one process."""
    out = tmp_path_factory.mktemp("runs") / "첫째"
    summary, code = tune(args_for(store, out, trials=6))
    assert code == 0
    return out, summary


def test_a_search_leaves_a_run_that_stands_alone(searched: tuple[Path, dict[str, Any]]) -> None:
    out, summary = searched
    card = load_card(out)
    assert card.labelling.names == ("distracted", "engaged")
    assert card.metric == "auroc"
    assert card.stages[0]["trial"] == summary["best"]["trial"]
    assert card.stages[0]["val_score"] == pytest.approx(summary["best"]["value"], abs=1e-6)
    assert set(load_weights(out)["head"]) >= {"mean_embeddings", "std_embeddings", "output.weight"}
    assert (out / "study.log").is_file()
    assert {side for _, side in load_split(out).values()} == {"train", "val", "test"}
    assert set(summary["baselines"]) == {"majority", "logistic_embeddings"}
    reference = read_reference(out)
    assert reference is not None
    assert reference.min_filled is not None, "live is to know from when on it may speak"
    json.dumps(summary)


def test_two_runs_with_one_seed_and_one_job_are_the_same_study(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    tune(args_for(store, tmp_path / "again", trials=6))
    assert facts(tmp_path / "again") == facts(searched[0])


def test_a_search_stopped_and_continued_is_the_same_study(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    tune(args_for(store, tmp_path / "parts", trials=2))
    summary, _ = tune(args_for(store, tmp_path / "parts", trials=6))
    assert facts(tmp_path / "parts") == facts(searched[0])
    assert summary["best"] == searched[1]["best"]


def test_the_first_trial_is_the_seed_projects_settings(searched: tuple[Path, dict[str, Any]]) -> None:
    first = trials_of(searched[0])[0]
    assert first.params == seed_point(SPACE)
    choice = choice_of(first.params, dataclasses.replace(SPACE, epochs=50))
    assert (choice.train.epochs, choice.train.patience, choice.head.kind) == (15, 4, "lstm")
    assert searched[1]["best"]["value"] >= first.value


def test_the_same_command_again_does_nothing_new(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, summary = searched
    before = (out / "weights.safetensors").stat().st_mtime_ns
    again, code = tune(args_for(store, out, trials=6))
    assert code == 0
    assert again["best"] == summary["best"]
    assert (out / "weights.safetensors").stat().st_mtime_ns == before


def test_a_study_is_not_continued_on_other_ground(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    args = args_for(store, searched[0], seed=1, study=trial_study_name(searched[0]))
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 here.*use another --out or --study"):
        tune(args)


def trial_study_name(out: Path) -> str:
    return optuna.get_all_study_names(open_storage(str(out / "study.log")))[0]


def test_workers_score_what_one_process_scores(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    summary, _ = tune(args_for(store, tmp_path / "two", trials=4, jobs=2, reseed=2))
    assert summary["trials"].get("complete", 0) + summary["trials"].get("pruned", 0) in (4, 5)
    assert trials_of(tmp_path / "two")[0].value == trials_of(searched[0])[0].value
    assert all(len(finalist["scores"]) == 2 for finalist in summary["finalists"])


def test_folds_judge_everybody_but_the_test_people(store: Path, tmp_path: Path) -> None:
    summary, _ = tune(args_for(store, tmp_path / "folds", trials=2, folds=3))
    best = next(t for t in trials_of(tmp_path / "folds") if t.number == summary["best"]["trial"])
    assert len(best.user_attrs["val_curve"]) == 3
    assert best.value == pytest.approx(sum(best.user_attrs["val_curve"]) / 3, abs=1e-4)


def test_search_never_loads_a_test_clip(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from features.datasets import Samples
    from tune.workers import set_up

    bench = set_up(args_for(store, tmp_path / "x", folds=2))
    test_rows = set(bench.question.split.test.tolist())
    assert test_rows
    seen: list[Samples] = [side for fold in bench.folds for side in (fold.train, fold.val)]
    assert not any(test_rows & set(samples.rows.tolist()) for samples in seen)


# Workers that die


def spec_at(path: Path, trials: int = 6) -> StudySpec:
    return StudySpec(str(path), "study", trials=trials, seed=0, epochs=4, pruning=False, folds=0)


def square(trial: optuna.Trial) -> float:
    value = trial.suggest_float("a", -1, 1)
    if trial.number == STUCK:
        time.sleep(600)  # until somebody kills it
    return -(value**2)


def slow_worker(spec: StudySpec, index: int) -> None:
    work(spec, square, index)


def test_a_killed_workers_trial_is_tried_again_and_nothing_is_lost(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, {"a": 0.5}, {})
    killed: int | None = None
    for trials in run_workers(study, spec, slow_worker, (spec,), jobs=2):
        stuck = [t for t in trials if t.number == STUCK and "worker" in t.user_attrs and t.params]
        if killed is None and stuck and num_done(study) >= 3:
            killed = STUCK
            os.kill(stuck[0].user_attrs["worker"]["pid"], signal.SIGKILL)
    trials = study.trials
    assert killed is not None
    assert trials[killed].state == TrialState.FAIL
    assert [t.params for t in trials if t.user_attrs.get("retry_of") == killed] == [trials[killed].params]
    assert all(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in trials)
    assert num_done(study) >= spec.trials


def test_a_restarted_search_reclaims_the_trials_of_dead_workers_alone(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, {"a": 0.25}, {})
    dead, mine, foreign = study.ask(), study.ask(), study.ask()
    for trial, worker in (
        (dead, liveness.this_worker() | {"pid": 2**22 + 1}),
        (mine, liveness.this_worker()),
        (foreign, liveness.this_worker() | {"host": "elsewhere", "pid": 1}),
    ):
        trial.suggest_float("a", -1, 1)
        trial.set_user_attr("worker", worker)
    assert reclaim(load_study(spec)) == [dead.number]
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING, TrialState.WAITING]
    retried = study.ask()
    assert retried.suggest_float("a", -1, 1) == 0.25


def test_a_process_number_that_came_round_again_is_not_the_same_worker() -> None:
    worker = liveness.this_worker()
    assert liveness.is_alive(worker)
    assert not liveness.is_alive(worker | {"started": "1"})


def test_ctrl_c_leaves_a_study_that_goes_on_with_the_same_trial(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, {"a": 0.5}, {})

    def interrupted(trial: optuna.Trial) -> float:
        trial.suggest_float("a", -1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(spec, interrupted)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    assert [t.params["a"] for t in study.trials][:2] == [0.5, 0.5]
    assert num_done(study) == 2


# Doors and refusals


def test_sqlite_on_a_shared_disk_is_refused_with_a_hint(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sqlite on a shared disk \(nfs4 at /home\).*postgresql"):
        refuse_shared_disk("sqlite:////home/me/study.db", mounts)
    refuse_shared_disk("sqlite:////var/study.db", mounts)


def test_a_storage_that_cannot_be_opened_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="wanted grpc://HOST:PORT"):
        open_storage("grpc://nowhere")
    with pytest.raises(ValueError, match="--storage mongodb://x: "):
        open_storage("mongodb://x")


def test_wrong_use_is_one_line_and_exit_code_2(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["--store", str(store), "--out", out, "--label", "mood"]) == 2
    assert "no label column 'mood'; it has: label" in capsys.readouterr().err
    assert main(["--store", str(store), "--out", out, "--finetune"]) == 2
    assert "--crops jpeg" in capsys.readouterr().err
    assert main(["--store", str(tmp_path / "none.zarr"), "--out", out]) == 2
    assert "none.zarr" in capsys.readouterr().err
    assert not (tmp_path / "run" / "card.json").exists()


def test_a_head_that_reads_no_embeddings_is_not_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the search where the user chose so; where the search did, stage 1 stays."""
    store = Path(write_store(tmp_path / "s.zarr", 64, crops=True).path)
    with pytest.raises(ValueError, match="--inputs geometry does not read"):
        tune(args_for(store, tmp_path / "a", inputs="geometry", finetune=True))
    point = outcome.seed_point
    monkeypatch.setattr(outcome, "seed_point", lambda space: point(space) | {"inputs": "geometry"})
    summary, code = tune(args_for(store, tmp_path / "b", trials=1, finetune=True))
    assert code == 0
    assert "finetune" not in summary
    assert set(load_card(tmp_path / "b").dims) == {"geometry"}
    assert "no encoder to fine-tune" in capsys.readouterr().err


def test_fine_tuning_takes_the_best_head_that_reads_embeddings(tmp_path: Path) -> None:
    store = Path(write_store(tmp_path / "s.zarr", 64, crops=True).path)
    args = args_for(store, tmp_path / "run", trials=12)
    tune(args)
    bench = set_up(args)
    spec = outcome.spec_of(args, bench, "auroc")
    study = load_study(spec)
    read = {
        finetune: [
            f.trial.params["inputs"]
            for f in outcome.choose(dataclasses.replace(args, finetune=finetune, reseed=2), study, bench)
        ]
        for finetune in (False, True)
    }
    assert "geometry" in read[False], "else this shows nothing: take another seed"
    assert len(read[True]) == 3
    assert "geometry" not in read[True]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal"])
def test_the_seed_point_lies_in_the_space_of_every_task(task: str, fixed: bool) -> None:
    space = Space(task, ("embeddings", "geometry"), fixed, 20)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(seed_point(space))
    trial = study.ask()
    choice = suggest(trial, space)
    assert trial.params == seed_point(space)
    assert choice.inputs == "both"
    assert choice.head.shared_thresholds == (task == "ordinal")
