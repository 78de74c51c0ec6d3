"""The search: one seed gives one study, the winner is chosen fairly, and test clips are never read."""

import copy
import dataclasses
import json
import shlex
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file

from features.datasets import Samples, select_samples
from features.maintenance.import_external import read_sequences, write_external
from features.maintenance.near_duplicates import near_duplicates
from features.store.store import FeatureStore
from seqmodel.__main__ import main as seqmodel
from seqmodel.config import LabelArgs
from seqmodel.reporting.search_history import trials_of as history_of
from seqmodel.reporting.style import style
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import load_split, load_weights
from seqmodel.runs.settings import load_settings
from seqmodel.runs.training_stats import read_training_stats
from tests.support.crop_store import write_crop_store
from tests.support.small_store import write_store
from tests.support.toy_sequences import write_toy_store
from tune import finalists, run
from tune.__main__ import main
from tune.config import BASELINE_ROLE, TuneArgs
from tune.objective import Fold, make_folds, scored_folds
from tune.run import tune
from tune.search_space import (
    Space,
    baseline_point,
    is_baseline,
    may_prune,
    space_hash,
    starting_points,
    suggest,
    trial_config_of,
)
from tune.study import plots
from tune.study.storage import open_storage, refuse_shared_disk, without_password
from tune.study.study import (
    StudySpec,
    enqueue_again,
    load_study,
)
from tune.study.worker import set_up, trial_value

pytestmark = pytest.mark.usefixtures("no_drawing", "converted_once")

PICTURES = {"study_history", "study_importances", "study_parallel", "study_slices"}
SPACE = Space("binary", ("embeddings",), False, 4)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Each search and each worker process uses one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported sequences of fifteen subjects; the label depends on the features."""
    return write_toy_store(tmp_path_factory.mktemp("저장"))


def args_for(store: Path, out: Path, **changes: Any) -> TuneArgs:
    args = TuneArgs(
        store=store,
        out=out,
        label=LabelArgs(labels="distracted,engaged"),
        trials=4,
        workers=1,
        reseed=1,
        epochs=3,
    )
    return dataclasses.replace(args, **changes)


def trials_of(out: Path) -> list[FrozenTrial]:
    storage = open_storage(str(out / "study.log"))
    return optuna.load_study(study_name=None, storage=storage).trials


def stored_trials(out: Path) -> list[tuple[dict[str, Any], float | None, TrialState]]:
    return [(trial.params, trial.value, trial.state) for trial in trials_of(out)]


@pytest.fixture(scope="module")
def searched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search of six trials in one process."""
    out = tmp_path_factory.mktemp("runs") / "첫째"
    summary, code = tune(args_for(store, out, trials=6))
    assert code == 0
    return out, summary


def test_search_writes_a_self_contained_run(searched: tuple[Path, dict[str, Any]]) -> None:
    out, summary = searched
    card = load_card(out)
    assert card.labelling.names == ("distracted", "engaged")
    assert card.metric == "auroc"
    assert card.stages[0]["trial"] == summary["best"]["trial"]
    assert card.stages[0]["val_score"] == pytest.approx(summary["best"]["value"], abs=1e-6)
    assert set(load_weights(out)["head"]) >= {"mean_embeddings", "std_embeddings", "output.weight"}
    assert (out / "study.log").is_file()
    assert {subset for _, subset in load_split(out).values()} == {"train", "val"}, "10 people"
    first = [trial_config_of(trial.params, dataclasses.replace(SPACE, epochs=3)) for trial in trials_of(out)]
    assert load_settings(out, card) == tuple(first), "folds choose from the first trials"
    assert set(summary["baselines"]) == {"majority", "logistic_embeddings"}
    reference = read_training_stats(out)
    assert reference is not None
    assert reference.min_filled is None, "only live needs it, and live does not read imported features"
    json.dumps(summary)


def test_two_runs_with_one_seed_and_one_job_are_the_same_study(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    tune(args_for(store, tmp_path / "again", trials=6))
    assert stored_trials(tmp_path / "again") == stored_trials(searched[0])


def test_resumed_search_equals_an_uninterrupted_one(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    tune(args_for(store, tmp_path / "parts", trials=2))
    summary, _ = tune(args_for(store, tmp_path / "parts", trials=6))
    assert stored_trials(tmp_path / "parts") == stored_trials(searched[0])
    assert summary["best"] == searched[1]["best"]


def test_of_two_searches_that_end_together_one_writes_the_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first begins to write the run, the second one starts, and waits or also writes it."""
    seconds, written, waits_or_ended = list[threading.Thread](), list[Path](), threading.Event()
    write_run = run.write_run

    def search_again() -> None:
        tune(args_for(store, tmp_path / "run"))
        waits_or_ended.set()

    def write(out: Path, *args: Any, **options: Any) -> Any:
        written.append(out)
        if not seconds:
            monkeypatch.setattr("seqmodel.runs.writer.echo", lambda text: waits_or_ended.set())
            seconds.append(threading.Thread(target=search_again))
            seconds[0].start()
            assert waits_or_ended.wait(120)
        return write_run(out, *args, **options)

    monkeypatch.setattr(run, "write_run", write)
    tune(args_for(store, tmp_path / "run"))
    seconds[0].join()
    assert len(written) == 1
    assert load_card(tmp_path / "run").stages[0]["stage"] == "head"


def test_the_first_trial_is_the_seed_projects_settings(searched: tuple[Path, dict[str, Any]]) -> None:
    first = trials_of(searched[0])[0]
    assert first.params == baseline_point(SPACE)
    trial_config = trial_config_of(first.params, dataclasses.replace(SPACE, epochs=50))
    assert (trial_config.train.epochs, trial_config.train.patience, trial_config.head.kind) == (15, 4, "lstm")
    assert searched[1]["best"]["value"] >= first.value


def test_starting_points_are_never_pruned(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    first = trials_of(searched[0])[:3]
    assert [trial.params for trial in first] == list(starting_points(SPACE))
    assert first[0].params == baseline_point(SPACE)
    assert {trial.state for trial in first} == {TrialState.COMPLETE}
    assert not any(may_prune(trial, SPACE) for trial in first)


def test_with_many_clips_one_later_trial_in_eight_is_not_pruned(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    trial = trials_of(searched[0])[3]

    def never_stopped(space: Space, num_folds: int = 1) -> list[int]:
        return [n for n in range(2, 40) if not may_prune(with_number(trial, n), space, num_folds)]

    many = dataclasses.replace(SPACE, many=True)
    assert never_stopped(many) == [23, 31, 39]
    assert never_stopped(many, num_folds=5) == []
    assert never_stopped(SPACE) == []


def with_number(trial: FrozenTrial, number: int) -> FrozenTrial:
    other = copy.copy(trial)
    other.number = number
    return other


def test_run_has_the_head_that_the_search_scored(searched: tuple[Path, dict[str, Any]]) -> None:
    out, summary = searched
    kept = load_file(checkpoint_of(out, summary))
    weights = load_weights(out)["head"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("broken", [False, True])
def test_winner_without_a_readable_checkpoint_is_trained_to_the_same_head(
    searched: tuple[Path, dict[str, Any]],
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: bool,
) -> None:
    out, summary = searched
    (tmp_path / "artifacts").mkdir()
    shutil.copy(out / "study.log", tmp_path / "study.log")
    if broken:
        checkpoint = checkpoint_of(out, summary)
        (tmp_path / "artifacts" / checkpoint.name).write_bytes(checkpoint.read_bytes()[:5000])
    tune(args_for(store, tmp_path, trials=6))
    stderr = " ".join(capsys.readouterr().err.split())
    assert ("cannot be read; training the head again" in stderr) == broken
    weights = load_weights(out)["head"]
    for name, tensor in load_weights(tmp_path)["head"].items():
        torch.testing.assert_close(tensor, weights[name])
    assert epochs_of(tmp_path) == epochs_of(out)
    assert load_card(tmp_path).calibration == load_card(out).calibration


def checkpoint_of(run: Path, summary: dict[str, Any]) -> Path:
    return run / "artifacts" / trials_of(run)[summary["best"]["trial"]].user_attrs["checkpoint"]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_same_command_again_changes_nothing(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, summary = searched
    before = (out / "weights.safetensors").stat().st_mtime_ns
    again, code = tune(args_for(store, out, trials=6))
    assert code == 0
    assert again["best"] == summary["best"]
    assert (out / "weights.safetensors").stat().st_mtime_ns == before


def test_same_command_goes_on_after_a_power_cut_and_names_other_damage(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a line at the end of the journal is removed; a line that is no record is an error in one line."""
    shutil.copytree(searched[0], out := tmp_path / "run")
    journal, options = out / "study.log", ["--labels", "distracted,engaged", "--epochs", "3", "--reseed", "1"]
    argv = ["--store", str(store), "--out", str(out), "--trials", "6", "--workers", "1", *options]
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    assert main(argv) == 0
    err = capsys.readouterr().err
    assert "ended with half a line" in err
    assert "nothing to do" in err
    assert journal.read_bytes().startswith(whole)
    journal.write_bytes(whole + b"{}\n")
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"error: {journal} is damaged: line {len(whole.splitlines()) + 1} is not a record")


def test_study_with_other_settings_is_rejected(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    args = args_for(store, searched[0], seed=1, study=trial_study_name(searched[0]))
    with pytest.raises(ValueError, match=r"seed: 0 in the study, 1 now.*use another --out or --study"):
        tune(args)


def trial_study_name(out: Path) -> str:
    return optuna.get_all_study_names(open_storage(str(out / "study.log")))[0]


def test_workers_give_the_same_scores_as_one_process(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    summary, _ = tune(args_for(store, tmp_path / "two", trials=4, workers=2, reseed=2))
    assert summary["trials"].get("complete", 0) + summary["trials"].get("pruned", 0) in (4, 5)
    assert trials_of(tmp_path / "two")[0].value == trials_of(searched[0])[0].value
    assert all(len(finalist["scores"]) == 2 for finalist in summary["finalists"])


def test_folds_validate_all_subjects_except_test(store: Path, tmp_path: Path) -> None:
    summary, _ = tune(args_for(store, tmp_path / "folds", trials=2, folds=3))
    best = next(t for t in trials_of(tmp_path / "folds") if t.number == summary["best"]["trial"])
    assert len(best.user_attrs["val_curve"]) == 3
    assert best.value == pytest.approx(sum(best.user_attrs["val_curve"]) / 3, abs=1e-4)


def write_subjects(folder: Path, subjects: dict[str, tuple[str, list[int]]]) -> Path:
    """A store of noise, with eight clips per subject. subjects: name -> (subset, classes of the clips in
    turn)."""
    y = np.array([labels[k % len(labels)] for _, labels in subjects.values() for k in range(8)])
    np.savez(
        folder / "features.npz",
        x=np.random.default_rng(0).normal(size=(len(y), 4, 3)).astype(np.float32),
        y=y,
        subject=np.repeat(list(subjects), 8),
        split=np.repeat([subset for subset, _ in subjects.values()], 8),
        label_names=np.array(["distracted", "engaged"]),
    )
    write_external(folder / "clips.zarr", read_sequences(folder / "features.npz"), "people")
    return folder / "clips.zarr"


def test_fold_with_one_class_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is used in no trial, new seed or baseline. One warning says so before the search."""
    subsets = {"a": ("train", [0, 1]), "b": ("val", [0, 1]), "c": ("train", [0]), "d": ("test", [0, 1])}
    store = write_subjects(tmp_path, subsets)
    args = args_for(store, tmp_path / "run", folds=3, reseed=2, trials=3)
    summary, code = tune(args)
    assert code == 0
    message = "1 of 3 folds have clips of one class only, in training or in validation"
    stderr = " ".join(capsys.readouterr().err.split())
    assert stderr.count(message) == 1
    assert sum(message in text for text in summary["warnings"]) == 1
    assert sum(message in text for text in load_card(args.out).warnings) == 1
    context = set_up(args)
    assert sorted(np.unique(fold.val.subjects).tolist() for fold in context.folds) == [["a"], ["b"]]
    trials = trials_of(args.out)
    assert len(trials) == 3
    for trial in trials:
        assert list(trial.intermediate_values) == [0, 1]
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["val_curve"]), abs=1e-4)
    assert all(np.isfinite(f["scores"]).all() for f in summary["finalists"])
    assert summary["baselines"]["majority"] == 0.5
    assert np.isfinite(summary["baselines"]["logistic_embeddings"])


def test_single_scored_fold_keeps_no_checkpoint(tmp_path: Path) -> None:
    subsets = {"a": ("train", [0, 1]), "b": ("val", [0]), "c": ("val", [1]), "d": ("test", [0, 1])}
    args = args_for(write_subjects(tmp_path, subsets), tmp_path / "run", folds=3, trials=2)
    tune(args)
    assert len(set_up(args).folds) == 1
    assert not any("checkpoint" in trial.user_attrs for trial in trials_of(args.out))
    assert not list(args.out.glob("artifacts/*"))


@pytest.mark.parametrize("metric", ["auto", "macro_f1"])
def test_folds_with_one_class_each_are_rejected_before_the_search(tmp_path: Path, metric: Any) -> None:
    subsets = {"a": ("train", [0]), "b": ("train", [1]), "c": ("val", [0]), "d": ("val", [1])}
    store = write_subjects(tmp_path, subsets | {"e": ("test", [0])})
    args = args_for(store, tmp_path / "run", folds=4, metric=metric)
    with pytest.raises(
        ValueError, match=r"--folds 4: every fold has clips of one class only.*use fewer folds"
    ):
        tune(args)
    assert not args.out.exists()


def test_folds_over_the_encoders_subjects_give_a_warning(tmp_path: Path) -> None:
    """The warning is in the summary and the card. Subjects keep the subsets of the encoder's training, for
    any seed."""
    path = write_toy_store(tmp_path)
    subsets = {f"subject 사람{k}": "train" if k < 9 else "val" if k < 12 else "test" for k in range(15)}
    FeatureStore.open(path, "r+").carry_over([], subsets)
    args = args_for(path, tmp_path / "run", trials=1, folds=3, seed=5)
    summary, code = tune(args)
    assert code == 0
    warning = "metrics of folds are too optimistic here"
    for texts in (summary["warnings"], load_card(args.out).warnings):
        (text,) = [text for text in texts if warning in text]
        assert "12 of the 12 held-out subjects" in text
    kept = {f"subject {subject}": subset for subject, subset in load_split(args.out).values()}
    assert kept == subsets


def test_scored_folds_need_two_classes_in_train_and_val() -> None:
    """Two classes in training and two in validation."""
    labels = np.array([0, 1, 0, 0, 1, 1])
    no_subject = np.full(6, "", dtype=object)
    clips = Samples({}, {}, labels, np.array([f"{k}#0" for k in range(6)]), no_subject, np.arange(6))
    both, zeros, ones = np.array([0, 1]), np.array([2, 3]), np.array([4, 5])

    def has_score(train: np.ndarray, held_out: np.ndarray) -> bool:
        return bool(scored_folds([Fold(select_samples(clips, train), select_samples(clips, held_out), {})]))

    assert has_score(both, np.array([3, 4]))
    assert not has_score(both, zeros)
    assert not has_score(both, ones)
    assert not has_score(zeros, both)


def test_folds_keep_windows_of_one_video_together_without_subjects() -> None:
    ids = np.array([f"video {k // 6}.mp4#{k % 6 * 10_000}" for k in range(60)])
    x, valid = {"embeddings": np.ones((60, 2, 3), np.float32)}, {"embeddings": np.ones((60, 2), bool)}
    clips = Samples(x, valid, np.arange(60) % 2, ids, np.full(60, "", dtype=object), np.arange(60))
    folds = make_folds(
        select_samples(clips, np.arange(40)), select_samples(clips, np.arange(40, 60)), 5, seed=0
    )
    held = [{name.partition("#")[0] for name in fold.val.clip_ids} for fold in folds]
    assert [len(videos) for videos in held] == [2] * 5
    assert len(set.union(*held)) == 10
    with pytest.raises(ValueError, match=r"--folds must be 2 to 10, .*got 11"):
        make_folds(clips, select_samples(clips, np.arange(0)), 11, seed=0)


def test_folds_keep_nearly_equal_clips_together(tmp_path: Path) -> None:
    """Of other subjects. A study of an earlier version, whose folds were others, is not continued."""
    x = np.random.default_rng(0).normal(size=(80, 10, 12)).astype(np.float32)
    x[8], x[17] = x[0], x[9]  # subjects 0, 1 and 2
    subsets = np.repeat(["train"] * 7 + ["val"] * 2 + ["test"], 8)
    np.savez(tmp_path / "f.npz", x=x, y=np.arange(80) % 2, subject=np.arange(80) // 8, split=subsets)
    write_external(tmp_path / "clips.zarr", read_sequences(tmp_path / "f.npz"), "copies")
    args = args_for(tmp_path / "clips.zarr", tmp_path / "run", label=LabelArgs(), folds=4)
    for seed in range(4):
        context = set_up(dataclasses.replace(args, seed=seed))
        held = [set(fold.val.subjects.tolist()) & {"0", "1", "2"} for fold in context.folds]
        assert sorted(map(len, held)) == [0, 0, 0, 3]
    assert run.settings_of(args, context, "auroc")["folds"] != 4
    with_one_fold = dataclasses.replace(args, folds=0)
    assert run.settings_of(with_one_fold, context, "auroc")["folds"] == 0


class PoolHere:
    """A ProcessPoolExecutor that runs everything at once in this process."""

    def __init__(self, workers: int, context: Any, initializer: Callable[..., None], initargs: Any) -> None:
        initializer(*initargs)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self) -> None:
        """Nothing to stop."""


def test_nearly_equal_clips_are_looked_for_once_per_search(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again by every worker, and by every process that trains with new seeds."""
    found: list[list[tuple[int, int]]] = []

    def looked_for(*args: Any) -> list[tuple[int, int]]:
        found.append(near_duplicates(*args))
        return found[-1]

    def run_here(study: Any, spec: Any, target: Any, args: Any, num_workers: int) -> Iterator[Any]:
        target(*args, 0)
        yield study.trials

    monkeypatch.setattr("seqmodel.training.task.near_duplicates", looked_for)
    monkeypatch.setattr(run, "run_workers", run_here)
    monkeypatch.setattr(finalists, "ProcessPoolExecutor", PoolHere)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("tune.study.worker._context", None)
    summary, code = tune(args_for(store, tmp_path / "run", trials=2, epochs=1, workers=2, reseed=2))
    assert code == 0
    assert len(summary["finalists"][0]["scores"]) == 2
    assert found == [[]]


def test_search_loads_no_test_clip(store: Path, tmp_path: Path) -> None:
    context = set_up(args_for(store, tmp_path / "x", folds=2, design="holdout"))
    test_rows = set(context.learning_task.split.test.tolist())
    assert test_rows
    seen: list[Samples] = [subset for fold in context.folds for subset in (fold.train, fold.val)]
    assert not any(test_rows & set(samples.rows.tolist()) for samples in seen)


def test_running_trial_stores_signs_of_life(searched: tuple[Path, dict[str, Any]]) -> None:
    trials = trials_of(searched[0])
    assert len(trials) == 6
    for trial in trials:
        assert trial.datetime_start is not None
        assert abs(trial.user_attrs["seen"] - trial.datetime_start.timestamp()) < 60


# Command line and errors


def test_sqlite_on_a_shared_disk_is_refused_with_a_hint(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sqlite on a shared disk \(nfs4 at /home\).*postgresql"):
        refuse_shared_disk("sqlite:////home/me/study.db", mounts)
    refuse_shared_disk("sqlite:////var/study.db", mounts)


def test_storage_that_cannot_be_opened_is_a_one_line_error() -> None:
    with pytest.raises(ValueError, match="must be grpc://HOST:PORT"):
        open_storage("grpc://nowhere")
    with pytest.raises(ValueError, match="--storage mongodb://x: "):
        open_storage("mongodb://x")


def test_wrong_options_give_one_line_and_exit_code_2(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["--store", str(store), "--out", out, "--label", "mood"]) == 2
    assert "no label column 'mood'; it has: label" in capsys.readouterr().err
    assert main(["--store", str(store), "--out", out, "--finetune"]) == 2
    assert "imported features: there is no encoder to fine-tune" in capsys.readouterr().err
    assert main(["--store", str(tmp_path / "none.zarr"), "--out", out]) == 2
    assert "none.zarr" in capsys.readouterr().err
    assert not (tmp_path / "run" / "card.json").exists()


@pytest.mark.parametrize(
    "argv",
    [("--folds", "1"), ("--folds", "-2"), ("--trials", "0"), ("--seed", "-1"), ("--storage", "None")],
)
def test_wrong_options_are_refused_before_anything_is_written(
    store: Path, tmp_path: Path, argv: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--store", str(store), "--out", str(tmp_path / "run"), *argv])
    assert left.value.code == 2
    assert not (tmp_path / "run").exists()


def test_data_set_at_the_path_of_the_run_is_not_changed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train/LABEL/VIDEO` is a format that extract reads, and `train` is also a report folder of a run."""
    for subset in ("train", "val"):
        (tmp_path / subset / "engaged").mkdir(parents=True)
        (tmp_path / subset / "engaged" / "a.mp4").write_text("the only copy", encoding="utf-8")
    assert main(["--store", str(store), "--out", str(tmp_path), "--trials", "1"]) == 2
    assert seqmodel(["train", "--store", str(store), "--run", str(tmp_path), "--epochs", "1"]) == 2
    assert capsys.readouterr().err.count("has other files (train, val, …) and no run") == 2
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_head_that_reads_no_embeddings_is_not_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error before the search if the user chose geometry; if the search chose it: no fine-tuning."""
    store = Path(write_store(tmp_path / "s.zarr", 64, crops=True).path)
    with pytest.raises(ValueError, match="--inputs geometry does not read it"):
        tune(args_for(store, tmp_path / "a", inputs="geometry", finetune=True))
    of_geometry = baseline_point(Space("binary", ("embeddings", "geometry"), False, 3)) | {
        "inputs": "geometry"
    }
    monkeypatch.setattr(run, "starting_points", lambda space: [of_geometry])
    summary, code = tune(args_for(store, tmp_path / "b", trials=1, finetune=True))
    assert code == 0
    assert "finetune" not in summary
    assert set(load_card(tmp_path / "b").dims) == {"geometry"}
    assert "no encoder to fine-tune" in capsys.readouterr().err


def test_fine_tuning_takes_the_best_head_that_reads_embeddings(tmp_path: Path) -> None:
    store = Path(write_store(tmp_path / "s.zarr", 64, crops=True).path)
    args = args_for(store, tmp_path / "run", trials=12)
    tune(args)
    context = set_up(args)
    spec = run.spec_of(args, context, "auroc")
    study = load_study(spec)
    read = {
        finetune: [
            f.trial.params["inputs"]
            for f in finalists.choose_finalists(
                dataclasses.replace(args, finetune=finetune, reseed=2), study, context
            )
        ]
        for finetune in (False, True)
    }
    assert "geometry" in read[False], "the test needs such a trial: use another seed"
    assert len(read[True]) in (3, 4), "the best three, and the seed project's settings"
    assert "geometry" not in read[True]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("streams", [("embeddings",), ("geometry",), ("embeddings", "geometry")])
def test_other_starting_points_are_in_the_search_space(streams: tuple[str, ...], many: bool) -> None:
    space = Space("binary", streams, False, 20, many)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in starting_points(space)[1:]:
        study.enqueue_trial(point)
        trial = study.ask()
        trial_config = suggest(trial, space)
        assert trial.params == point
        assert trial_config.inputs == ("both" if len(streams) > 1 else streams[0])


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal"])
def test_baseline_point_is_in_the_search_space_of_every_task(task: str, fixed: bool) -> None:
    space = Space(task, ("embeddings", "geometry"), fixed, 20)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(baseline_point(space))
    trial = study.ask()
    trial_config = suggest(trial, space)
    assert trial.params == baseline_point(space)
    assert trial_config.inputs == ("both" if fixed else "embeddings"), "the seed project used only embeddings"
    assert trial_config.head.shared_thresholds == (task == "ordinal")


def test_many_clips_use_large_batches_except_in_the_baseline_trial() -> None:
    """Also if that trial is run again after its worker was killed."""
    space = dataclasses.replace(SPACE, many=True)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3))
    study.enqueue_trial(baseline_point(space), user_attrs={"role": BASELINE_ROLE})
    sizes = []
    for number in range(12):
        trial = study.ask()
        sizes.append(suggest(trial, space).train.batch_size)
        if number == 0:
            study.tell(trial, state=TrialState.FAIL)
            enqueue_again(study, study.trials[0])
        else:
            study.tell(trial, float(number))
    assert sizes[:2] == [8, 8]
    assert is_baseline(study.trials[1].params, space)
    assert min(sizes[2:]) >= 32
    assert max(sizes) <= 128
    assert space_hash(space) != space_hash(SPACE)
    assert space_hash(SPACE) == space_hash(dataclasses.replace(SPACE, epochs=5))


# Output of a search


def test_trials_record_epochs_and_seconds(searched: tuple[Path, dict[str, Any]]) -> None:
    trials = trials_of(searched[0])
    assert len(trials) == 6
    for trial in trials:
        attributes = trial.user_attrs
        assert len(attributes["val_curve"]) == attributes["epochs"]
        assert max(attributes["val_curve"]) == pytest.approx(
            max(trial.intermediate_values.values()), abs=1e-4
        )
        assert attributes["seconds"] > 0
        if trial.state == TrialState.COMPLETE:
            assert attributes["parameters"] > 0


@pytest.mark.draws
def test_pictures_of_the_study_stay_in_the_run(store: Path, tmp_path: Path) -> None:
    summary, _ = tune(args_for(store, tmp_path, trials=5, epochs=1, pruning="off"))
    drawn = {path.stem for path in (tmp_path / "plots").glob("study_*.png")}
    assert drawn == PICTURES
    assert sum(summary["importances"].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("span", [(1e-4, 1e-2), (1e-4, 4e-4), (1e-3, 1e-3)])
def test_plots_do_not_change_matplotlib_settings(tmp_path: Path, span: tuple[float, float]) -> None:
    """Optuna changes the global style. Names that look like formulas (also invalid ones) are text."""
    import matplotlib.pyplot as plt

    study = optuna.create_study(direction="maximize")
    known: dict[str, Any] = {
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "kind": CategoricalDistribution(["$\\frac$", "집중"]),
    }
    for k in range(plots.MIN_TRIALS):
        params = {"lr": span[k % 2], "kind": known["kind"].choices[k // 2]}
        study.add_trial(optuna.trial.create_trial(value=k / 4, params=params, distributions=known))
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED))
    with style():
        pass  # without a display from now on
    before = dict(plt.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = plots.save_study_plots(study, tmp_path, "recall:$\\frac$")
    assert shares.keys() == {"lr", "kind"}
    assert {path.stem for path in tmp_path.iterdir()} == PICTURES
    assert dict(plt.rcParams) == before
    assert not plt.get_fignums()


def finalist(number: int, *scores: float) -> finalists.Finalist:
    return finalists.Finalist(optuna.trial.create_trial(value=0.99), scores)


def test_uncertain_winner_gives_warnings() -> None:
    clear = [finalist(0, 0.90, 0.91), finalist(1, 0.70, 0.71)]
    assert not finalists.warnings_about_winner(clear, {"majority": 0.5}, "auroc")
    (note,) = finalists.warnings_about_winner(clear, {"logistic_embeddings": 0.95}, "auroc")
    assert "on validation, the best head is not better than the baseline logistic_embeddings" in note
    assert "auroc 0.9050, baseline 0.9500" in note
    (note,) = finalists.warnings_about_winner([finalist(0, 0.90, 0.80), finalist(1, 0.84, 0.84)], {}, "auroc")
    assert (
        "differ by 0.0100 in auroc, which is less than their standard deviation over seeds (0.0707)" in note
    )


def test_score_in_the_search_is_not_part_of_the_mean() -> None:
    assert finalist(0, 0.6, 0.8).mean == pytest.approx(0.7)
    assert finalist(0).mean == 0.99


def test_seed_project_settings_are_always_finalists(
    searched: tuple[Path, dict[str, Any]], store: Path
) -> None:
    """Even if all other trials were better in the search."""
    args = args_for(store, searched[0], reseed=2)
    context, study = set_up(args), optuna.create_study(direction="maximize")
    for t in trials_of(searched[0]):
        value = 0.9 + 0.01 * t.number if t.number else 0.5
        study.add_trial(
            optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=value)
        )
    found = finalists.choose_finalists(args, study, context)
    assert {f.trial.number for f in found} == {0, 3, 4, 5}
    assert found[0].mean >= next(f.mean for f in found if f.trial.number == 0)
    assert {len(f.scores) for f in found} == {2}
    expected = next(f for f in found if f.trial.number == 0)
    assert trials_of(searched[0])[0].value not in expected.scores, "the seeds are not those of the search"


def test_duplicate_trials_are_ranked_once(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    """For example a starting point that two machines enqueued: only the first trial is a finalist."""
    args = args_for(store, searched[0], reseed=2)
    context, study = set_up(args), optuna.create_study(direction="maximize")
    for t in [*trials_of(searched[0])[:3], *trials_of(searched[0])[:2]]:
        study.add_trial(
            optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=t.value)
        )
    assert sorted(f.trial.number for f in finalists.choose_finalists(args, study, context)) == [0, 1, 2]


def test_baselines_use_the_same_folds(store: Path, tmp_path: Path) -> None:
    context = set_up(args_for(store, tmp_path / "x", folds=3))
    found = run.mean_baselines(context, "auroc")
    each = [
        run.mean_baselines(dataclasses.replace(context, folds=[fold]), "auroc")["logistic_embeddings"]
        for fold in context.folds
    ]
    assert len(set(each)) == 3
    assert found["logistic_embeddings"] == pytest.approx(sum(each) / 3)


def test_baseline_trial_is_never_pruned(store: Path, tmp_path: Path) -> None:
    """It is enqueued again after a trial with a score that no head reaches."""
    args = args_for(store, tmp_path / "run", epochs=8)
    context = set_up(args)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2.0))
    study.enqueue_trial(baseline_point(context.space))
    study.enqueue_trial(baseline_point(context.space) | {"hidden": 32})
    study.optimize(lambda trial: trial_value(context, trial), n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_later_trials_are_compared_with_starting_points_that_are_not_pruned(
    store: Path, tmp_path: Path
) -> None:
    args = args_for(store, tmp_path / "run", epochs=4)
    context = set_up(args)
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(direction="maximize", pruner=halving)
    study.enqueue_trial(baseline_point(context.space))
    study.enqueue_trial(baseline_point(context.space) | {"lr": 1e-4, "batch_size": 128})
    study.optimize(lambda trial: trial_value(context, trial), n_trials=2)
    first, second = study.trials
    assert first.intermediate_values[1] > second.intermediate_values[1]
    assert (second.state, second.user_attrs["epochs"]) == (TrialState.PRUNED, 1)


def test_printed_text_has_no_password(tmp_path: Path) -> None:
    args = TuneArgs(Path("s"), tmp_path)

    def printed(storage: str) -> str:
        return run.dashboard_command(args, StudySpec(storage, "study", 6, 0, 4, pruning=False, folds=0))

    assert printed("postgresql+psycopg://me:secret@host/db") == (
        "optuna-dashboard 'postgresql+psycopg://me:…@host/db'"
    )
    assert printed("postgresql://host:5432/db?user=me&password=secret").endswith(
        "'postgresql://host:5432/db?user=me&password=…'"
    )
    assert "grpc" not in printed("grpc://host:13000")
    assert "database behind the proxy" in printed("grpc://host:13000")
    (tmp_path / "artifacts").mkdir()
    assert printed("a b.log") == f"optuna-dashboard 'a b.log' --artifact-dir {tmp_path / 'artifacts'}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:se:cr/e?t@host:5432/db", "postgresql+psycopg://me:…@host:5432/db"),
        ("postgresql://me@host/db?password=s@cr:et", "postgresql://me@host/db?password=…"),
        (
            "postgresql://me:secret@host/db?sslmode=a&password=secret&b=c",
            "postgresql://me:…@host/db?sslmode=a&password=…&b=c",
        ),
        ("mysql+pymysql://host/db?user=me&PASSWD=secret", "mysql+pymysql://host/db?user=me&PASSWD=…"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("folder/me:and@you?password=1.log", "folder/me:and@you?password=1.log"),
        ("--storage=postgresql://me:secret@host/db", "--storage=postgresql://me:…@host/db"),
        ("--labels=a:b@c", "--labels=a:b@c"),
        ("", ""),
    ],
)
def test_a_password_is_left_out_wherever_a_url_has_it(url: str, shown: str) -> None:
    """The path of a journal is not a URL and does not change."""
    assert without_password(url) == shown


def test_card_keeps_the_command_without_its_password(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_storage(str(tmp_path / "journal.log"))
    monkeypatch.setattr("tune.study.study.open_storage", lambda url: journal)
    out = tmp_path / "내 실행"
    argv = ["--store", str(store), "--out", str(out), "--labels", "distracted,engaged", "--workers", "1"]
    argv += ["--trials", "1", "--reseed", "0", "--epochs", "1"]
    secret = [
        "--storage=mysql://me:secret@a/b",
        "--storage",
        "postgresql://me:secret@host/db?password=secret",
    ]
    assert main([*argv, *secret]) == 0
    (stage,) = load_card(out).stages
    assert shlex.split(stage["command"]) == [
        *("python", "-m", "tune", *argv),
        *("--storage=mysql://me:…@a/b", "--storage", "postgresql://me:…@host/db?password=…"),
    ]
    kept = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"secret" in path.read_bytes()]


def test_interrupted_refits_end_at_once(store: Path, tmp_path: Path) -> None:
    """Four fits of ten minutes are queued for two processes."""
    futures: list[Any] = []

    def interrupted() -> None:
        with finalists.refitting(args_for(store, tmp_path / "x", workers=2)) as pool:
            futures.extend(pool.submit(time.sleep, 600) for _ in range(4))
            while not futures[0].running():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # not concurrent.futures.wait: it is not notified of futures that a pool cancels at shutdown
    deadline = time.monotonic() + 120
    while not all(future.done() for future in futures) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(future.cancelled() or future.exception(0) is not None for future in futures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names", "task", "metric"),
    [
        ([], ("distracted", "engaged", "very engaged", "absorbed"), "multiclass", "macro_f1"),
        (["--task", "ordinal"], ("distracted", "engaged", "very engaged", "absorbed"), "ordinal", "qwk"),
        (
            ["--merge", "low=distracted+engaged", "high=very engaged+absorbed", "--labels", "low,high"],
            ("low", "high"),
            "binary",
            "auroc",
        ),
        (["--binarize-at", "2"], None, "binary", "auroc"),
    ],
    ids=["multiclass", "ordinal", "merge", "binarize"],
)
def test_every_task_from_search_to_evaluation(
    tmp_path: Path,
    options: list[str],
    names: tuple[str, ...] | None,
    task: str,
    metric: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = write_toy_store(tmp_path, num_classes=4, num_clips=150, unlabelled=10)
    run = tmp_path / "run"
    argv = ["--store", str(store), "--out", str(run), "--trials", "2", "--workers", "1", "--reseed", "1"]
    assert main([*argv, "--epochs", "3", "--json", *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["clips"]["unlabelled"] == 10
    card = load_card(run)
    assert (card.labelling.task, card.metric) == (task, metric)
    assert names is None or card.labelling.names == names
    assert (
        seqmodel(["evaluate", "--run", str(run), "--split", "val", "--bootstrap-rounds", "50", "--json"]) == 0
    )
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated


# Search, then fine-tune


@pytest.mark.slow
def test_repeated_search_and_finetune(tmp_path: Path) -> None:
    """The same command again, then with more trials, then with another winner."""
    store, run = write_crop_store(tmp_path / "s.zarr"), tmp_path / "run"
    args = args_for(Path(store.path), run, trials=1, epochs=2, finetune=True)

    def state() -> dict[Path, bytes]:
        own = [run / "card.json", run / "weights.safetensors", run / "log.jsonl", run / "training_stats.json"]
        return {path: path.read_bytes() for path in own}

    first, code = tune(args)
    assert code == 0
    assert [stage["stage"] for stage in load_card(run).stages] == ["head", "finetune"]
    before = state()
    (run / "metrics.json").write_text("{}", encoding="utf-8")
    for _ in range(2):
        again, code = tune(args)
        assert code == 0
        assert again["finetune"] | {"seconds": 0} == first["finetune"] | {"seconds": 0}
        assert state() == before
        assert (run / "metrics.json").exists(), "the metrics are about the weights that are kept"

    card = load_card(run)
    save_card(run, dataclasses.replace(card, test_evaluations=("2026-01-01T00:00:00",)))
    before = state()
    numbers = {first["best"]["trial"]}
    for trials in range(2, 9):
        found, _ = tune(dataclasses.replace(args, trials=trials))
        number = found["best"]["trial"]
        if number in numbers:
            assert state() == before, "with more trials and the same winner, the fine-tuned weights are kept"
            continue
        stages = load_card(run).stages
        assert [stage["stage"] for stage in stages] == ["head", "finetune"]
        assert (stages[0]["trial"], stages[1]["started_from"]) == (number, "stage 1")
        assert load_card(run).test_evaluations == ("2026-01-01T00:00:00",)
        assert not (run / "metrics.json").exists()
        numbers.add(number)
        before = state()
    assert len(numbers) > 1, "the test needs another winner: use another seed"


def test_other_settings_write_another_head_with_the_same_trial_number(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(searched[0], tmp_path / "run"))
    tune(args_for(store, run, trials=1, label=LabelArgs(labels="engaged,distracted")))
    assert load_card(run).labelling.names == ("engaged", "distracted")
    number = load_card(run).stages[0]["trial"]
    tune(args_for(store, run, trials=1, study="other"))
    assert load_card(run).stages[0]["trial"] == number == 0
    assert load_card(run).labelling.names == ("distracted", "engaged")
    assert len(history_of(run)) == 1, "the report shows the one of three searches that made the run"


@pytest.mark.slow
def test_crops_added_later_do_not_change_the_study(tmp_path: Path) -> None:
    store = write_crop_store(tmp_path / "s.zarr", cropless=tuple(range(32)))
    args = args_for(Path(store.path), tmp_path / "run", trials=1, epochs=1)
    tune(args)
    before = stored_trials(args.out)
    for row, files in enumerate(map(write_crop_store(tmp_path / "t.zarr").read_crops, range(32))):
        store.write_row(row, crops=files)
    summary, _ = tune(dataclasses.replace(args, finetune=True))
    assert summary["finetune"]["epochs"] > 0
    assert stored_trials(args.out) == before


def test_missing_crops_are_reported_before_the_search(tmp_path: Path) -> None:
    store = write_crop_store(tmp_path / "s.zarr", cropless=(0,))
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"has no face crops of 1 clips.*python -m extract .*--crops jpeg"):
        tune(args_for(Path(store.path), out, finetune=True))
    assert not out.exists()
