"""The search: one seed gives one study, the same command resumes it, and test clips are never read."""

import dataclasses
import json
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from features.maintenance.import_external import read_sequences, write_external
from features.maintenance.near_duplicates import near_duplicates
from features.store.store import FeatureStore
from seqmodel.__main__ import main as seqmodel
from seqmodel.config import LabelArgs
from seqmodel.evaluation.simple_methods import baseline_scores
from seqmodel.reporting.search_history import trials_of as history_of
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import load_folds, load_split, load_weights
from seqmodel.runs.settings import load_settings
from seqmodel.runs.training_stats import read_training_stats
from seqmodel.runs.writer import rounded
from tests.support.crop_store import write_crop_store
from tests.support.small_store import write_store
from tests.support.toy_sequences import write_toy_store
from tests.support.trained_run import make_store
from tune import finalists, run
from tune.__main__ import main
from tune.config import TuneArgs
from tune.run import tune
from tune.search_space import Space, member_config_of, point_of, starting_points
from tune.study.storage import open_storage
from tune.study.study import StudySpec
from tune.study.worker import set_up

pytestmark = pytest.mark.usefixtures("no_drawing", "converted_once")

SPACE = Space("binary", ("embeddings",), 3)
NUM_STARTS = len(starting_points(SPACE))


@pytest.fixture(scope="module", autouse=True)
def every_family_is_a_member() -> Iterator[None]:
    """After a few epochs on toy sequences, it would be luck which families are good enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqmodel.training.select.MIN_SHARE", -1.0)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported sequences of fifteen subjects; the label depends on the features."""
    return write_toy_store(tmp_path_factory.mktemp("저장"))


def args_for(store: Path, out: Path, **changes: Any) -> TuneArgs:
    args = TuneArgs(
        store=store,
        out=out,
        label=LabelArgs(labels="distracted,engaged"),
        trials=2,
        workers=1,
        epochs=3,
    )
    return dataclasses.replace(args, **changes)


def trials_of(out: Path) -> list[FrozenTrial]:
    storage = open_storage(str(out / "study.log"))
    return optuna.load_study(study_name=None, storage=storage).trials


def complete_of(out: Path) -> list[FrozenTrial]:
    """Without the starting points that wait: a search may have fewer trials."""
    return [trial for trial in trials_of(out) if trial.state == TrialState.COMPLETE]


def stored_trials(out: Path) -> list[tuple[dict[str, Any], float | None, TrialState]]:
    return [(trial.params, trial.value, trial.state) for trial in trials_of(out)]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_weights(out)["head"]


def require_equal_models(first: Path, second: Path) -> None:
    """The same members, with the same heads and calibration."""
    assert weights_of(first).keys() == weights_of(second).keys()
    for name, tensor in weights_of(first).items():
        assert torch.equal(tensor, weights_of(second)[name]), name
    one, other = load_card(first), load_card(second)
    assert (one.members, one.member_scores, one.calibration) == (
        other.members,
        other.member_scores,
        other.calibration,
    )


@pytest.fixture(scope="module")
def searched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search of six trials in one process."""
    out = tmp_path_factory.mktemp("runs") / "첫째"
    summary, code = tune(args_for(store, out, trials=6))
    assert code == 0
    return out, summary


@pytest.fixture(scope="module")
def started(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search, after its starting points."""
    out = tmp_path_factory.mktemp("started") / "run"
    tune(args_for(store, out, trials=NUM_STARTS))
    return out


def test_search_writes_a_self_contained_run(searched: tuple[Path, dict[str, Any]]) -> None:
    out, summary = searched
    card = load_card(out)
    assert card.labelling.names == ("distracted", "engaged")
    assert card.metric == "auroc"
    assert card.num_folds == summary["folds"] == 5
    assert card.stages[0]["val_score"] == summary["val_score"]
    assert {name.split(".")[1] for name in weights_of(out)} == set(map(str, range(len(card.members))))
    assert (out / "study.log").is_file()
    split, folds = load_split(out), load_folds(out)
    assert {subset for _, subset in split.values()} == {"train", "val"}, "15 people"
    assert {clip for clip, (_, subset) in split.items() if subset == "val"} == {
        clip for clip, fold in folds.items() if fold == 0
    }
    assert folds.keys() == split.keys()
    starts = tuple(member_config_of(point, SPACE) for point in starting_points(SPACE))
    assert load_settings(out, card) == starts, "folds choose from the starting points"
    assert set(summary["baselines"]) == {"majority", "logistic_embeddings"}
    reference = read_training_stats(out)
    assert reference is not None
    assert reference.min_filled is None, "only live needs it, and live does not read imported features"
    json.dumps(summary)


def test_run_has_the_heads_that_the_search_scored(searched: tuple[Path, dict[str, Any]]) -> None:
    """Each member is fitted again, to the same out-of-fold score."""
    out, summary = searched
    card, members = load_card(out), [each for each in summary["finalists"] if each["member"]]
    assert {each["family"] for each in members} == {"embeddings recurrent", "embeddings trees"}
    assert card.members == tuple(member_config_of(each["params"], SPACE) for each in members)
    assert card.member_scores == pytest.approx([each["value"] for each in members], abs=1e-6)
    for each in members:
        trial = trials_of(out)[each["trial"]]
        assert (trial.value, trial.params) == (each["value"], each["params"])


def test_kept_heads_of_trials_equal_fitted_ones(
    started: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finalists' heads come from the trials' files, and are fitted again where these are missing, damaged
    or of another study."""
    assert not (started / "oof").exists(), "deleted with the run written"
    fitted, cross_fit = list[int](), finalists.cross_fit
    monkeypatch.setattr(
        finalists, "cross_fit", lambda *given, **named: fitted.append(1) or cross_fit(*given, **named)
    )

    def spoiled(args: TuneArgs, *rest: Any) -> Any:
        files = {file: file.read_bytes() for file in (args.out / "oof").iterdir()}
        assert len(files) == NUM_STARTS
        found = finalists.fit_finalists(args, *rest)
        assert not fitted
        for change in (
            lambda content: content[: len(content) // 2],
            lambda content: content.replace(b'\\"seed\\": 0', b'\\"seed\\": 7'),
            None,
        ):
            for file, content in files.items():
                file.write_bytes(change(content)) if change else file.unlink()
            _, model = finalists.fit_finalists(args, *rest)
            assert len(fitted) == len(model.members) == 2
            fitted.clear()
            for one, other in zip(model.members, found[1].members, strict=True):
                np.testing.assert_array_equal(one.logits, other.logits)
                histories = [
                    [[dataclasses.replace(e, seconds=0) for e in h] for h in m.histories]
                    for m in (one, other)
                ]
                assert str(histories[0]) == str(histories[1])
        return found

    monkeypatch.setattr(run, "fit_finalists", spoiled)
    tune(args_for(store, tmp_path / "run", trials=NUM_STARTS))
    require_equal_models(tmp_path / "run", started)


def test_resumed_search_equals_an_uninterrupted_one(
    searched: tuple[Path, dict[str, Any]], started: Path, store: Path, tmp_path: Path
) -> None:
    """One seed gives one study and one run, in any folder."""
    assert stored_trials(started) == stored_trials(searched[0])[:NUM_STARTS]
    parts = Path(shutil.copytree(started, tmp_path / "parts"))
    summary, _ = tune(args_for(store, parts, trials=6))
    assert stored_trials(parts) == stored_trials(searched[0])
    assert summary["finalists"] == searched[1]["finalists"]
    require_equal_models(parts, searched[0])


def test_workers_give_the_same_run_as_one_process(started: Path, store: Path, tmp_path: Path) -> None:
    """Later points depend on which trials are finished; starting points do not."""
    two = tmp_path / "two"
    summary, _ = tune(args_for(store, two, trials=NUM_STARTS, workers=2))
    assert stored_trials(two)[:NUM_STARTS] == stored_trials(started)
    if summary["trials"] == {"complete": NUM_STARTS}:  # not if both workers took a last trial
        require_equal_models(two, started)


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


def test_starting_points_come_first_and_are_never_stopped(searched: tuple[Path, dict[str, Any]]) -> None:
    trials = trials_of(searched[0])
    assert [trial.params for trial in trials[:NUM_STARTS]] == list(starting_points(SPACE))
    assert {trial.state for trial in trials[:NUM_STARTS]} == {TrialState.COMPLETE}
    assert {trial.params["kind"] for trial in trials[NUM_STARTS:]} == {"lstm"}


def test_three_people_are_not_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A choice by the scores of three people is luck: an LSTM and trees are fixed; the threshold is .5."""
    made = make_store(tmp_path / "s.zarr", num_subjects=3, clips_each=12)
    tune(args_for(Path(made.path), tmp_path / "run", trials=9))
    assert [trial.params["kind"] for trial in trials_of(tmp_path / "run")] == ["lstm", "trees"]
    assert "3 people to learn from: no search" in capsys.readouterr().err
    card = load_card(tmp_path / "run")
    assert (card.num_folds, card.calibration.threshold) == (3, 0.5)
    assert len(load_settings(tmp_path / "run", card)) == 2


def test_single_writes_the_best_member_alone(started: Path, store: Path, tmp_path: Path) -> None:
    """Also if the folder has the run of several members."""
    assert len(load_card(started).members) == 2
    out = Path(shutil.copytree(started, tmp_path / "run"))
    summary, _ = tune(args_for(store, out, trials=NUM_STARTS, single=True))
    card = load_card(out)
    assert card.members == load_card(started).members[:1]
    assert [each["member"] for each in summary["finalists"]] == [True, False]
    assert summary["val_score"] == pytest.approx(card.member_scores[0])
    assert {name.split(".")[1] for name in weights_of(out)} == {"0"}


def test_same_command_again_changes_nothing(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, summary = searched
    before = (out / "weights.safetensors").stat().st_mtime_ns
    again, code = tune(args_for(store, out, trials=6))
    assert code == 0
    assert again["finalists"] == summary["finalists"]
    assert (out / "weights.safetensors").stat().st_mtime_ns == before


def test_same_command_goes_on_after_a_power_cut_and_names_other_damage(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a line at the end of the journal is removed; a line that is no record is an error in one line."""
    shutil.copytree(searched[0], out := tmp_path / "run")
    journal, options = out / "study.log", ["--labels", "distracted,engaged", "--epochs", "3"]
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


def test_trials_validate_all_subjects_except_test(store: Path, tmp_path: Path) -> None:
    """The value is the mean score of the folds. No clip of test is read."""
    args = args_for(store, tmp_path / "run", design="holdout")
    tune(args)
    context = set_up(args)
    rows, split = context.inputs.samples.rows, context.learning_task.split
    assert len(split.test)
    assert rows.tolist() == [*split.train.tolist(), *split.val.tolist()]
    assert set(context.inputs.folds.tolist()) == set(range(5))
    for trial in complete_of(args.out):
        assert len(trial.user_attrs["val_curve"]) == 5
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["val_curve"]), abs=1e-4)
    known = load_folds(args.out)
    assert len(known) == len(rows)
    assert not {subset for clip, (_, subset) in load_split(args.out).items() if clip in known} & {"test"}


def write_subjects(
    folder: Path,
    subjects: dict[str, tuple[str, list[int]]],
    names: tuple[str, ...] = ("distracted", "engaged"),
) -> Path:
    """A store of noise, with eight clips per subject. subjects: name -> (subset, classes of the clips in
    turn)."""
    y = np.array([labels[k % len(labels)] for _, labels in subjects.values() for k in range(8)])
    np.savez(
        folder / "features.npz",
        x=np.random.default_rng(0).normal(size=(len(y), 4, 3)).astype(np.float32),
        y=y,
        subject=np.repeat(list(subjects), 8),
        split=np.repeat([subset for subset, _ in subjects.values()], 8),
        label_names=np.array(names),
    )
    write_external(folder / "clips.zarr", read_sequences(folder / "features.npz"), "people")
    return folder / "clips.zarr"


def test_fold_with_one_class_has_no_score(tmp_path: Path) -> None:
    """Its clips are predicted, but the metric is not defined on them."""
    subsets = {"a": ("train", [0, 1]), "b": ("val", [0, 1]), "c": ("train", [0]), "d": ("test", [0, 1])}
    args = args_for(write_subjects(tmp_path, subsets), tmp_path / "run", trials=5)
    summary, code = tune(args)
    assert (code, summary["folds"]) == (0, 3)
    for trial in complete_of(args.out):
        curve = trial.user_attrs["val_curve"]
        assert np.isnan(curve).sum() == 1
        assert trial.value == pytest.approx(np.nanmean(curve), abs=1e-4)
    assert np.isfinite(summary["val_score"])
    assert summary["baselines"]["majority"] == 0.5
    assert np.isfinite(summary["baselines"]["logistic_embeddings"])


def test_fold_without_which_a_class_has_no_clip_is_left_out(tmp_path: Path) -> None:
    """No head may be trained without that class. Its clips train all heads."""
    names = ("distracted", "engaged", "absorbed")
    subsets = {"a": ("train", [0, 1]), "b": ("val", [0, 1]), "c": ("train", [0, 2]), "d": ("test", [0, 1])}
    store = write_subjects(tmp_path, subsets, names)
    args = args_for(store, tmp_path / "run", label=LabelArgs(labels=",".join(names)))
    summary, code = tune(args)
    assert (code, summary["folds"]) == (0, 2)
    folds, split = load_folds(args.out), load_split(args.out)
    assert {split[clip][0] for clip in folds} == {"a", "b"}
    assert {len(trial.user_attrs["val_curve"]) for trial in complete_of(args.out)} == {2}
    assert {name.split(".")[3] for name in weights_of(args.out)} == {"0", "1"}


def test_folds_over_the_encoders_subjects_give_a_warning(tmp_path: Path) -> None:
    """The warning is in the summary and the card. Subjects keep the subsets of the encoder's training, for
    any seed."""
    path = write_toy_store(tmp_path)
    subsets = {f"subject 사람{k}": "train" if k < 9 else "val" if k < 12 else "test" for k in range(15)}
    FeatureStore.open(path, "r+").carry_over([], subsets)
    args = args_for(path, tmp_path / "run", trials=1, epochs=1, seed=5)
    summary, code = tune(args)
    assert code == 0
    warning = "metrics of folds are too optimistic here"
    for texts in (summary["warnings"], load_card(args.out).warnings):
        (text,) = [text for text in texts if warning in text]
        assert "12 of the 12 held-out subjects" in text
    kept = {f"subject {subject}": subset for subject, subset in load_split(args.out).values()}
    assert kept == subsets


def test_folds_keep_windows_of_one_video_together_without_subjects(tmp_path: Path) -> None:
    made = make_store(tmp_path / "s.zarr", num_subjects=20, known_subjects=False, one_video_each=True)
    inputs = set_up(args_for(Path(made.path), tmp_path / "run", label=LabelArgs())).inputs
    videos = np.array([clip.partition("#")[0] for clip in inputs.samples.clip_ids.tolist()])
    held_out = [set(videos[inputs.folds == fold].tolist()) for fold in inputs.numbers]
    assert len(held_out) == 5
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 20
    assert len(videos) > 5 * 20


def test_folds_keep_nearly_equal_clips_together(tmp_path: Path) -> None:
    """Of other subjects. A study with other folds is not continued."""
    x = np.random.default_rng(0).normal(size=(80, 10, 12)).astype(np.float32)
    x[8], x[17] = x[0], x[9]  # subjects 0, 1 and 2
    subsets = np.repeat(["train"] * 7 + ["val"] * 2 + ["test"], 8)
    np.savez(tmp_path / "f.npz", x=x, y=np.arange(80) % 2, subject=np.arange(80) // 8, split=subsets)
    write_external(tmp_path / "clips.zarr", read_sequences(tmp_path / "f.npz"), "copies")
    args = args_for(tmp_path / "clips.zarr", tmp_path / "run", label=LabelArgs())
    hashes = set()
    for seed in range(4):
        context = set_up(dataclasses.replace(args, seed=seed))
        subjects, folds = context.inputs.samples.subjects, context.inputs.folds
        held = [set(subjects[folds == k].tolist()) & {"0", "1", "2"} for k in context.inputs.numbers]
        assert sorted(map(len, held)) == [0] * (len(held) - 1) + [3]
        assert set(subjects[folds == 0].tolist()) == {"7", "8"}, "validation"
        hashes.add(run.settings_of(args, context, "auroc")["folds"])
    assert len(hashes) > 1


def test_nearly_equal_clips_are_looked_for_once_per_search(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again by every worker."""
    found: list[list[tuple[int, int]]] = []

    def looked_for(*args: Any) -> list[tuple[int, int]]:
        found.append(near_duplicates(*args))
        return found[-1]

    def run_here(study: Any, spec: Any, target: Any, args: Any, num_workers: int) -> Iterator[Any]:
        target(*args, 0)
        yield study.trials

    monkeypatch.setattr("seqmodel.training.task.near_duplicates", looked_for)
    monkeypatch.setattr(run, "run_workers", run_here)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    summary, code = tune(args_for(store, tmp_path / "run", epochs=1, workers=2))
    assert (code, summary["trials"]) == (0, {"complete": 2, "waiting": NUM_STARTS - 2})
    assert found == [[]]


def test_baselines_are_scored_on_the_folds_of_the_trials(
    searched: tuple[Path, dict[str, Any]], store: Path
) -> None:
    out, summary = searched
    context = set_up(args_for(store, out))
    labelling, clips = context.learning_task.labelling, context.clips
    found = baseline_scores(context.inputs, clips.groups, labelling, context.objective)
    assert summary["baselines"] == rounded(found)


def test_running_trial_stores_signs_of_life(searched: tuple[Path, dict[str, Any]]) -> None:
    trials = trials_of(searched[0])
    assert len(trials) == 6
    for trial in trials:
        assert trial.datetime_start is not None
        assert abs(trial.user_attrs["seen"] - trial.datetime_start.timestamp()) < 60


# Command line and errors


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
    [
        ("--folds", "3"),
        ("--reseed", "1"),
        ("--epochs", "-1"),
        ("--trials", "0"),
        ("--seed", "-1"),
        ("--storage", "None"),
    ],
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


def test_a_run_that_reads_no_embeddings_is_not_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error before the search if the user chose geometry; if the search chose it: no fine-tuning."""
    store = Path(write_store(tmp_path / "s.zarr", 64, crops=True).path)
    with pytest.raises(ValueError, match="--inputs geometry does not read it"):
        tune(args_for(store, tmp_path / "a", inputs="geometry", finetune=True))
    of_geometry = point_of(Space("binary", ("embeddings", "geometry"), 3), "geometry", hidden=16)
    monkeypatch.setattr(run, "starting_points", lambda space: [of_geometry])
    summary, code = tune(args_for(store, tmp_path / "b", trials=1, finetune=True))
    assert code == 0
    assert "finetune" not in summary
    assert set(load_card(tmp_path / "b").dims) == {"geometry"}
    assert "no encoder to fine-tune" in capsys.readouterr().err


# Output of a search


def test_trials_record_folds_and_seconds(searched: tuple[Path, dict[str, Any]]) -> None:
    """The report has them from the journal."""
    trials = trials_of(searched[0])
    assert len(trials) == 6
    for trial in trials:
        attributes, reported = trial.user_attrs, list(trial.intermediate_values.values())
        assert attributes["seconds"] > 0
        assert attributes["val_curve"][: len(reported)] == pytest.approx(reported, abs=1e-4)
        assert attributes["family"].startswith("embeddings ")
        if trial.state == TrialState.COMPLETE:
            assert len(attributes["val_curve"]) == 5
            assert attributes["val_loss"] > 0
    history = history_of(searched[0])
    assert [list(trial.curve) for trial in history] == [trial.user_attrs["val_curve"] for trial in trials]
    assert all(trial.by_fold for trial in history)


def test_printed_text_has_no_password(tmp_path: Path) -> None:
    args = TuneArgs(Path("s"), tmp_path)

    def printed(storage: str) -> str:
        return run.dashboard_command(args, StudySpec(storage, "study", 6, 0))

    assert printed("postgresql+psycopg://me:secret@host/db") == (
        "optuna-dashboard 'postgresql+psycopg://me:…@host/db'"
    )
    assert printed("postgresql://host:5432/db?user=me&password=secret").endswith(
        "'postgresql://host:5432/db?user=me&password=…'"
    )
    assert "grpc" not in printed("grpc://host:13000")
    assert "database behind the proxy" in printed("grpc://host:13000")
    assert printed("a b.log") == "optuna-dashboard 'a b.log'"


def test_card_keeps_the_command_without_its_password(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_storage(str(tmp_path / "journal.log"))
    monkeypatch.setattr("tune.study.study.open_storage", lambda url: journal)
    out = tmp_path / "내 실행"
    argv = ["--store", str(store), "--out", str(out), "--labels", "distracted,engaged", "--workers", "1"]
    argv += ["--trials", "1", "--epochs", "1"]
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
    argv = ["--store", str(store), "--out", str(run), "--trials", "2", "--workers", "1"]
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
    """The same command again, then with more trials, then with other members."""
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
    before, kept = state(), card.stages[0]["trials"]
    for trials in (2, 3):
        tune(dataclasses.replace(args, trials=trials))
        card = load_card(run)
        if card.stages[0]["trials"] == kept:
            assert state() == before, "the same finalists: the fine-tuned weights are kept"
            continue
        assert [stage["stage"] for stage in card.stages] == ["head", "finetune"]
        assert card.stages[1]["started_from"] == "stage 1"
        assert card.test_evaluations == ("2026-01-01T00:00:00",)
        assert not (run / "metrics.json").exists()
        before, kept = state(), card.stages[0]["trials"]
    assert len(kept) == 2, "the second trial is the first of another family"


def test_other_settings_write_another_head_with_the_same_trial_number(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(searched[0], tmp_path / "run"))
    tune(args_for(store, run, trials=1, label=LabelArgs(labels="engaged,distracted")))
    assert load_card(run).labelling.names == ("engaged", "distracted")
    number = load_card(run).stages[0]["trials"]
    tune(args_for(store, run, trials=1, study="other"))
    assert load_card(run).stages[0]["trials"] == number == [0]
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
