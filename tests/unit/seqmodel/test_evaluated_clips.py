"""Which clips an evaluation counts: they stay the same when the store is moved, grows or renames subjects."""

import html
import re
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from filelock import FileLock, Timeout

from features.cli import UserError
from features.maintenance.import_external import read_sequences, write_external
from seqmodel.__main__ import main
from seqmodel.commands.evaluate import evaluate_split, open_split, renew_threshold, write_result
from seqmodel.commands.evaluation_log import log_test_evaluation
from seqmodel.config import EvaluateArgs
from seqmodel.evaluation.context import (
    EvalContext,
    folder_of,
    open_context,
    training_class_frequencies,
    training_clips,
)
from seqmodel.metrics.calibration import fit_calibration
from seqmodel.reporting.content import commands
from seqmodel.reporting.text import headline
from seqmodel.runs import card as card_file
from seqmodel.runs import predict as predict_file
from seqmodel.runs.card import Card, calibration_clips, load_card, save_card
from seqmodel.runs.files import load_split
from seqmodel.runs.predict import held_out_folds, predict_rows, read_predictions
from tests.support.trained_run import WITH_GEOMETRY, make_run, make_store

pytestmark = pytest.mark.usefixtures("no_figures")


def evaluate(run: Path, *argv: str) -> list[dict[str, str]]:
    assert main(["evaluate", "--run", str(run), "--bootstrap-rounds", "20", *argv]) == 0
    return read_predictions(run / "predictions.csv")


def rename(store: Path, name_of: dict[str, str]) -> None:
    """As `python -m features label` does."""
    group = zarr.open_group(store, mode="r+")
    group["subject"][:] = np.array([name_of.get(str(name), str(name)) for name in group["subject"][:]])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", make_store(tmp_path / "s.zarr", signal=0.5), epochs=1)
    return tmp_path / "run"


def test_renamed_subjects_are_not_another_data_set(run: Path, tmp_path: Path) -> None:
    """As after pseudonyms were given: training clips are not evaluated as a new data set."""
    before = evaluate(run)
    subjects = {subject for subject, _ in load_split(run).values()}
    rename(
        tmp_path / "s.zarr", {subject: f"pseudonym {place}" for place, subject in enumerate(sorted(subjects))}
    )
    assert [row["clip_id"] for row in evaluate(run)] == [row["clip_id"] for row in before]
    assert main(["calibrate", "--run", str(run), "--store", str(tmp_path / "s.zarr")]) == 2
    # A copy in another folder could be a data set of other subjects: a warning says that it may be the run's.
    shutil.copytree(tmp_path / "s.zarr", tmp_path / "copy.zarr")
    context = open_split(EvaluateArgs(run, store=tmp_path / "copy.zarr"))
    assert context.is_other_data
    assert "if this is the run's own data with renamed subjects" in " ".join(
        evaluate_split(context, EvaluateArgs(run, bootstrap_rounds=5)).warnings
    )


def test_test_subjects_renamed_to_training_subjects_are_not_unseen(run: Path, tmp_path: Path) -> None:
    args = EvaluateArgs(run, bootstrap_rounds=20)
    honest = evaluate_split(open_split(args), args)
    assert "not seen in training" in headline(honest)
    subsets = {subject: subset for subject, subset in load_split(run).values()}
    learned, evaluated = (
        next(subject for subject, on in subsets.items() if on == subset) for subset in ("train", "test")
    )
    rename(tmp_path / "s.zarr", {evaluated: learned})
    found = evaluate_split(open_split(args), args)
    assert "not seen in training" not in headline(found)
    assert f"both test and training: 1 (as named in the store: {learned})" in " ".join(found.warnings)


@pytest.mark.parametrize(
    ("split", "predicted"), [("train", "was trained on these clips"), ("val", "were chosen on these clips")]
)
def test_evaluation_on_train_or_val_gives_a_warning(run: Path, split: str, predicted: str) -> None:
    args = EvaluateArgs(run, split=split, bootstrap_rounds=20)
    found = evaluate_split(open_split(args), args)
    assert predicted in " ".join(found.warnings)
    assert "not seen" not in headline(found)


@pytest.mark.parametrize("known", [True, False], ids=["known subjects", "unknown subjects"])
def test_failed_clip_counts_with_and_without_subjects(tmp_path: Path, known: bool) -> None:
    store = make_store(
        tmp_path / "s.zarr", signal=0.5, known_subjects=known, one_video_each=not known, clips_each=8
    )
    make_run(tmp_path / "run", store, epochs=1)
    table = store.table()
    subset = {clip: subset for clip, (_, subset) in load_split(tmp_path / "run").items()}
    videos = {v for v, clip in zip(table.source, table.clip_id, strict=True) if subset.get(clip) == "test"}
    subjects = {w for w, clip in zip(table.subject, table.clip_id, strict=True) if subset.get(clip) == "test"}
    expected = np.isin(table.subject, list(subjects)) if known else np.isin(table.source, list(videos))
    rows = evaluate(tmp_path / "run")
    assert {row["clip_id"] for row in rows} == set(table.clip_id[expected])
    assert any(row["state"].startswith("failed") for row in rows)


def test_evaluation_uses_the_same_clips_after_the_store_has_grown(tmp_path: Path) -> None:
    """New windows of its test subjects were not in the split when the run was made."""
    make_run(tmp_path / "run", make_store(tmp_path / "s.zarr", signal=0.5, num_subjects=12), epochs=1)
    before = evaluate(tmp_path / "run")
    shutil.rmtree(tmp_path / "s.zarr")
    make_store(tmp_path / "s.zarr", signal=0.5, num_subjects=12, clips_each=9)
    after = evaluate(tmp_path / "run")
    assert {row["clip_id"] for row in after} == {row["clip_id"] for row in before}


def test_run_without_its_store_keeps_the_majority_class(tmp_path: Path) -> None:
    x, subject = np.random.default_rng(0).normal(size=(60, 4, 3)), np.array([f"p{i % 15}" for i in range(60)])
    y = (np.arange(60) % 4 > 0).astype(int)
    np.savez(tmp_path / "a.npz", x=x, y=y, subject=subject)
    np.savez(tmp_path / "b.npz", x=x[:20], y=y[:20], subject=np.array([f"q{i % 5}" for i in range(20)]))
    for name in "ab":
        write_external(tmp_path / f"{name}.zarr", read_sequences(tmp_path / f"{name}.npz"), "x")
    argv = ["train", "--store", str(tmp_path / "a.zarr"), "--run", str(tmp_path / "run"), "--epochs", "1"]
    assert main(argv) == 0
    args = EvaluateArgs(tmp_path / "run", store=tmp_path / "b.zarr", bootstrap_rounds=5)
    context = open_split(args)
    here = training_class_frequencies(context, training_clips(context))
    shutil.rmtree(tmp_path / "a.zarr")
    gone = training_class_frequencies(context, training_clips(context))
    np.testing.assert_allclose(gone, here)
    assert here[1] > 0.6


def test_later_clips_of_calibration_subjects_are_left_out(run: Path, tmp_path: Path) -> None:
    """A month later the new domain has more clips of every subject."""
    place = {"signal": 0.5, "seed": 3, "clip_prefix": "n", "num_subjects": 12}
    make_store(tmp_path / "new.zarr", **place)
    assert main(["calibrate", "--run", str(run), "--store", str(tmp_path / "new.zarr")]) == 0
    fit_subjects = set(calibration_clips(run, load_card(run)).values())
    assert fit_subjects
    shutil.rmtree(tmp_path / "new.zarr")
    make_store(tmp_path / "new.zarr", **place, clips_each=9)
    evaluate(run, "--store", str(tmp_path / "new.zarr"))
    rows = read_predictions(run / "cross" / "new" / "predictions.csv")
    assert rows
    assert not fit_subjects & {row["subject"] for row in rows}


def test_two_stores_of_one_name_have_a_folder_each(run: Path, tmp_path: Path) -> None:
    (run / "cross" / "features").mkdir(
        parents=True
    )  # left by a command that was killed before it wrote the file
    for place, subjects in (("a", 8), ("b", 6)):
        (tmp_path / place).mkdir()
        make_store(tmp_path / place / "features.zarr", clip_prefix=place, num_subjects=subjects)
        for _ in range(2):
            evaluate(run, "--store", str(tmp_path / place / "features.zarr"))
    folders = sorted((run / "cross").iterdir())
    assert [folder.name for folder in folders] == ["features", "features-2"]
    assert [len(read_predictions(folder / "predictions.csv")) for folder in folders] == [48, 36]


def test_threshold_is_chosen_on_a_moved_store(run: Path, tmp_path: Path) -> None:
    (tmp_path / "s.zarr").rename(tmp_path / "moved.zarr")
    evaluate(run, "--store", str(tmp_path / "moved.zarr"), "--threshold-metric", "recall:distracted=0.95")
    assert load_card(run).calibration.threshold_metric == "recall:distracted=0.95"
    assert (run / "training_stats.json").is_file(), "the training statistics were measured on that store too"


@pytest.mark.usefixtures("not_exported")
def test_report_shows_the_commands_unchanged(tmp_path: Path) -> None:
    """The commands of the run and of the evaluation; a command that does both is listed once."""
    run, new = str(tmp_path / "내 실행" / "it's <b>one"), str(tmp_path / "새 곳.zarr")
    make_store(tmp_path / "s.zarr", signal=0.5)
    make_store(Path(new), signal=0.4, clip_prefix="n", shift=1.2)
    evaluate_predictions = ("evaluate", "--bootstrap-rounds=20", "--run", run)
    given = [
        ("train", "--store", str(tmp_path / "s.zarr"), "--run", run, "--epochs", "1", "--design", "holdout"),
        (*evaluate_predictions, "--threshold-metric", "f1", "--abstain", "0.2"),
        ("calibrate", "--run", run, "--store", new),
    ]

    def shown() -> list[list[str]]:
        page = (Path(run) / "report.html").read_text(encoding="utf-8")
        section = page[page.index('<section id="reproduce">') :]
        lines = html.unescape(section.partition("<pre>")[2].partition("</pre>")[0]).splitlines()
        return [shlex.split(line) for line in lines]

    def whole(*commands: tuple[str, ...]) -> list[list[str]]:
        return [["python", "-m", "seqmodel", *argv] for argv in commands]

    for argv in given[:2]:
        assert main(argv) == 0
    assert shown() == whole(*given[:2])
    for argv in (given[2], evaluate_predictions):
        assert main(argv) == 0
    assert shown() == whole(*given, evaluate_predictions)
    assert [shlex.split(stage["command"]) for stage in load_card(Path(run)).stages] == shown()[:3]


def test_report_of_a_run_without_commands_shows_none(run: Path) -> None:
    card = load_card(run)
    assert commands(card, "") == []
    assert commands(card, "judged so") == ["judged so"]


def test_clips_without_a_face_do_not_affect_the_threshold(tmp_path: Path) -> None:
    """They have no prediction; here nearly all are of one class."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    x = rng.normal(size=(300, 6, 4)).astype(np.float32) + 0.4 * y[:, None, None]
    x[(y == 0) & (np.arange(300) % 3 > 0)] = np.nan
    np.savez(tmp_path / "x.npz", x=x, y=y, subject=np.array([f"p{i % 30}" for i in range(300)]))
    store = write_external(tmp_path / "s.zarr", read_sequences(tmp_path / "x.npz"), "x")
    run = tmp_path / "run"
    assert main(["train", "--store", str(store.path), "--run", str(run), "--epochs", "2"]) == 0
    card = load_card(run)
    parts = [open_context(run, card, None, subset).eval_subset for subset in ("train", "val")]
    rows, labels = np.concatenate([p.rows for p in parts]), np.concatenate([p.labels for p in parts])
    folds = held_out_folds(run, store, rows)
    assert (folds >= 0).all()
    logits, measured = predict_rows(run, card, store, card.labelling, rows, folds=folds)
    assert not measured.all()
    given, names = (logits[measured], labels[measured], "binary"), card.labelling.names
    wanted = fit_calibration(*given, label_names=names, groups=store.table().subject[rows][measured])
    assert card.calibration.threshold == pytest.approx(wanted.threshold, abs=1e-4)
    assert card.calibration.bias == pytest.approx(wanted.bias, abs=1e-3)


def test_changes_to_a_run_during_evaluation_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another command has logged a test evaluation, and another has chosen a threshold."""
    args = EvaluateArgs(run, bootstrap_rounds=20)
    context = open_split(args)
    result = evaluate_split(context, args)
    other = log_test_evaluation(context, load_card(run))
    counted = log_test_evaluation(context, context.card)
    assert len(counted.test_evaluations) == len(other.test_evaluations) + 1
    assert len(load_card(run).test_evaluations) == len(counted.test_evaluations)
    write_result(folder_of(context), result, context, args, None)
    now = load_card(run)
    assert len(now.test_evaluations) == 3
    assert "test" in now.metrics
    save_card(run, replace(now, metrics={}, calibration=replace(now.calibration, threshold=0.9)))
    write_result(folder_of(context), result, context, args, None)
    assert load_card(run).calibration.threshold == 0.9
    assert not load_card(run).metrics
    assert "was changed during the evaluation" in " ".join(capsys.readouterr().err.split())


def keep_metrics(context: EvalContext) -> None:
    args = EvaluateArgs(context.run, bootstrap_rounds=20)
    write_result(folder_of(context), evaluate_split(context, args), context, args, None)


@pytest.mark.usefixtures("not_exported")
def test_evaluate_and_calibrate_show_their_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr only; the last number is that of all steps."""
    store = make_store(tmp_path / "s.zarr", recipe=WITH_GEOMETRY, num_subjects=12, clips_each=3)
    make_run(tmp_path / "run", store, inputs="geometry", epochs=1)
    make_store(
        tmp_path / "new.zarr",
        signal=0.5,
        recipe=WITH_GEOMETRY,
        num_subjects=12,
        clips_each=3,
        clip_prefix="n",
    )
    evaluate(tmp_path / "run", "--store", str(tmp_path / "new.zarr"))
    assert main(["calibrate", "--run", str(tmp_path / "run"), "--store", str(tmp_path / "new.zarr")]) == 0
    out, err = capsys.readouterr()
    assert not out
    for name in ("confidence intervals", "permutation importance", "plots", "training statistics"):
        ((done, total),) = re.findall(rf"^{name} .*?(\d+)/(\d+)", err, re.MULTILINE)
        assert done == total != "0"


@pytest.mark.usefixtures("not_exported")
@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (lambda context: log_test_evaluation(context, context.card), lambda card: card.test_evaluations[2:]),
        (keep_metrics, lambda card: "test" in card.metrics),
        (
            lambda context: renew_threshold(EvaluateArgs(context.run, threshold_metric="f1")),
            lambda card: card.calibration.threshold_metric == "f1",
        ),
    ],
    ids=["evaluation log", "metrics", "threshold"],
)
def test_two_commands_that_change_a_card_at_a_time_lose_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., None], kept: Callable[[Card], object]
) -> None:
    """Each time that one command writes the card, another one logs an evaluation between its read and its
    write, or waits for the lock."""
    context = open_split(EvaluateArgs(run, bootstrap_rounds=20))
    others: dict[threading.Thread, threading.Event] = {}
    write_json = card_file.write_json

    def lock(path: Path) -> FileLock:
        if threading.current_thread() in others:
            others[threading.current_thread()].set()
        return FileLock(path)

    def log_another() -> None:
        log_test_evaluation(context, context.card)
        others[threading.current_thread()].set()

    def write(path: Path, plain: dict[str, object]) -> None:
        if threading.current_thread() not in others and path.name == "card.json":
            other, is_there = threading.Thread(target=log_another), threading.Event()
            others[other] = is_there
            other.start()
            assert is_there.wait(60)
        write_json(path, plain)

    monkeypatch.setattr("seqmodel.runs.writer.FileLock", lock, raising=False)
    monkeypatch.setattr(card_file, "write_json", write)
    command(context)
    for other in others:
        other.join()
    card = load_card(run)
    assert len(others) == 1
    assert len(card.test_evaluations) >= 2
    assert kept(card)


def test_two_evaluations_at_a_time_keep_the_predictions_of_both_splits(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first has read the earlier predictions, the second writes its own, or waits for the lock."""
    others: dict[threading.Thread, threading.Event] = {}
    write_csv = predict_file.write_csv

    def lock(path: Path) -> FileLock:
        if threading.current_thread() in others:
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                others[threading.current_thread()].set()
        return FileLock(path)

    def evaluate_another() -> None:
        evaluate(run, "--split", "val")
        others[threading.current_thread()].set()

    def write(path: Path, rows: list[list[str]]) -> None:
        if not others:
            other = threading.Thread(target=evaluate_another)
            others[other] = threading.Event()
            other.start()
            assert others[other].wait(60)
        write_csv(path, rows)

    monkeypatch.setattr("seqmodel.runs.writer.FileLock", lock)
    monkeypatch.setattr(predict_file, "write_csv", write)
    evaluate(run)
    for other in others:
        other.join()
    assert {row["split"] for row in read_predictions(run / "predictions.csv")} == {"test", "val"}


def test_export_with_the_process_id_of_another_machine_has_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids are unique on one machine only, but a run may be on a shared disk."""
    make_run(
        tmp_path / "run", make_store(tmp_path / "s.zarr", recipe=WITH_GEOMETRY), inputs="geometry", epochs=1
    )
    seen = []
    monkeypatch.setattr("os.getpid", lambda: 7)

    def fail(folder: Path, *_: object) -> None:
        seen.append(folder.name)
        raise UserError("stopped here")

    monkeypatch.setattr("seqmodel.commands.export._write_networks", fail)
    for _ in range(2):
        assert main(["export", "--run", str(tmp_path / "run")]) == 2
    assert len(set(seen)) == 2


@pytest.mark.parametrize(
    "argv", [("evaluate", "--threshold-metric", "f1"), ("calibrate", "--threshold-metric", "f1")]
)
def test_threshold_metric_is_rejected_for_more_than_two_classes(
    tmp_path: Path, argv: tuple[str, ...]
) -> None:
    store = make_store(tmp_path / "s.zarr", names=("low", "mid", "high"))
    make_run(tmp_path / "run", store, task="multiclass", epochs=1)
    make_store(tmp_path / "new.zarr", names=("low", "mid", "high"), clip_prefix="n")
    place = "new" if argv[0] == "calibrate" else "s"
    cli = [argv[0], "--run", str(tmp_path / "run"), "--store", str(tmp_path / f"{place}.zarr")]
    before = load_card(tmp_path / "run")
    assert main([*cli, *argv[1:]]) == 2
    assert load_card(tmp_path / "run") == before


def test_calibration_with_one_class_is_rejected(run: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "new.zarr", clip_prefix="n")
    group = zarr.open_group(store.path, mode="r+")
    group["labels/label"][:] = 1
    before = load_card(run)
    assert main(["calibrate", "--run", str(run), "--store", str(store.path)]) == 2
    assert load_card(run) == before
