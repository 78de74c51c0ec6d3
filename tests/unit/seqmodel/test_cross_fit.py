"""Cross-fitting: no head knows the people of its fold, and each learning clip is predicted by such heads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.datasets import Samples, select_samples
from features.labels import Task
from features.maintenance.import_external import read_sequences, write_external
from features.store.store import FeatureStore
from seqmodel.commands.train import train
from seqmodel.config import HeadConfig, LabelArgs, MemberConfig, TrainArgs, TrainConfig
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.recurrent import num_outputs
from seqmodel.runs.card import load_card
from seqmodel.runs.files import load_folds, load_split
from seqmodel.runs.predict import held_out_folds, open_inputs, predict_rows, prefix_logits
from seqmodel.training.cross_fit import (
    MAX_COMPONENTS,
    NUM_FOLDS,
    ONE_FOLD_CLIPS,
    ONE_FOLD_PEOPLE,
    CrossFit,
    FoldInputs,
    Objective,
    assign_folds,
    average_logits,
    cross_fit,
    fold_score,
    scores_by_fold,
)
from seqmodel.training.loop import predict_logits
from seqmodel.training.select import MAX_MEMBERS, MIN_SHARE, chance_of, fit_ensemble, select_members
from seqmodel.training.task import build_task, learning_clips, load_learning
from tests.support.toy_sequences import write_toy_store
from tests.support.trained_run import WITH_GEOMETRY, make_run, make_store

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, WIDTH = 5, 9
BINARY = Objective("binary", 2)
LSTM = MemberConfig("embeddings", HeadConfig(hidden=4, components=4), TrainConfig(epochs=2, noise=0.1))
CONFIGS = {
    "lstm": LSTM,
    "gru on all features": replace(LSTM, head=HeadConfig("gru", 0, hidden=4, pooling="attention")),
    "trees": replace(LSTM, head=HeadConfig("trees", 4)),
}


def people(num_people: int = 15, clips_each: int = 6, classes: int = 2, width: int = WIDTH) -> Samples:
    """Clips of people, some without a face; the first feature grows with the class."""
    rng = np.random.default_rng(0)
    count = num_people * clips_each
    subjects = np.repeat([f"p{number:02d}" for number in range(num_people)], clips_each)
    labels = np.arange(count) % classes
    x = rng.normal(size=(count, STEPS, width)).astype(np.float16)
    x[:, :, 0] += 2 * labels[:, None].astype(np.float16)
    valid = rng.random((count, STEPS)) > 0.2
    valid[::19] = False
    ids = np.array([f"{number}.mp4#0" for number in range(count)])
    return Samples({"embeddings": x}, {"embeddings": valid}, labels, ids, subjects, np.arange(count))


def inputs_of(samples: Samples) -> FoldInputs:
    return FoldInputs(samples, assign_folds(samples.labels, samples.subjects, 0))


def weights(fit: CrossFit, fold: int) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in fit.heads[fold].state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_head_of_a_fold_reads_nothing_of_its_people(config: MemberConfig) -> None:
    """Garbage in their features, faces and labels changes no byte of it, and every other head."""
    samples, fold = people(), 2
    folds = assign_folds(samples.labels, samples.subjects, 0)
    held_out, rng = folds == fold, np.random.default_rng(1)
    x, valid = samples.x["embeddings"].copy(), samples.valid["embeddings"].copy()
    x[held_out] = 50 * rng.normal(size=x[held_out].shape) ** 3
    valid[held_out] = rng.random(valid[held_out].shape) > 0.5
    labels = np.where(held_out, 1 - samples.labels, samples.labels)
    garbage = replace(samples, x={"embeddings": x}, valid={"embeddings": valid}, labels=labels)
    first, second = (
        cross_fit(FoldInputs(each, folds), config, BINARY, seed=0) for each in (samples, garbage)
    )
    assert len(first.heads) == NUM_FOLDS
    for number in range(NUM_FOLDS):
        assert (weights(first, number) == weights(second, number)) == (number == fold)
    losses = [[[epoch.train_loss for epoch in each.histories[k]] for each in (first, second)] for k in (1, 2)]
    assert (losses[0][0] == losses[0][1]) == (config.head.kind == "trees")
    assert losses[1][0] == losses[1][1]
    both = ~np.isnan(first.logits[:, 0]) & ~np.isnan(second.logits[:, 0]) & held_out
    assert both.any()
    assert (first.logits[both] != second.logits[both]).all(), "the garbage was predicted"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equal_seeds_give_equal_heads_also_after_other_configurations(config: MemberConfig) -> None:
    inputs = inputs_of(people())
    first = cross_fit(inputs, config, BINARY, seed=3)
    again = inputs_of(people())
    for other in CONFIGS.values():
        cross_fit(again, other, BINARY, seed=0)
    torch.manual_seed(99)
    second, third = (cross_fit(again, config, BINARY, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(first.logits, second.logits)
    for fold in range(NUM_FOLDS):
        assert weights(first, fold) == weights(second, fold)
        assert weights(first, fold) != weights(third, fold)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 3), ("ordinal", 3)])
def test_every_clip_with_a_face_is_predicted_by_the_head_of_its_fold(
    config: MemberConfig, task: Task, classes: int
) -> None:
    samples = people(classes=classes)
    inputs = inputs_of(samples)
    fit = cross_fit(inputs, config, Objective(task, classes), seed=0)
    seen = samples.valid["embeddings"].any(axis=1)
    assert not seen.all()
    np.testing.assert_array_equal(~np.isnan(fit.logits), np.tile(seen[:, None], num_outputs(task, classes)))
    for fold in range(NUM_FOLDS):
        inside = np.flatnonzero((inputs.folds == fold) & seen)
        alone = Ensemble([[fit.heads[fold]]], task)
        expected = predict_logits(alone, select_samples(samples, inside))
        found = average_logits([fit.logits], task)[inside]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_people_of_five_folds_are_disjoint_and_validation_is_the_first() -> None:
    samples = people(20)
    in_val = np.isin(samples.subjects, ["p03", "p07", "p11"])
    for is_first in (in_val, None):
        folds = assign_folds(samples.labels, samples.subjects, 0, is_first)
        assert set(folds.tolist()) == set(range(NUM_FOLDS)), "no clip is without a fold"
        of_people = {person: set(folds[samples.subjects == person]) for person in samples.subjects.tolist()}
        assert all(len(found) == 1 for found in of_people.values())
        if is_first is not None:
            np.testing.assert_array_equal(folds == 0, in_val)
    assert not np.array_equal(
        assign_folds(samples.labels, samples.subjects, 0), assign_folds(samples.labels, samples.subjects, 1)
    )


@pytest.mark.parametrize("num_people", [2, 3, 4])
def test_few_people_have_a_fold_each(num_people: int) -> None:
    samples = people(num_people)
    in_val = samples.subjects == "p00"
    for is_first in (in_val, None):
        folds = assign_folds(samples.labels, samples.subjects, 0, is_first)
        assert len(set(folds.tolist())) == num_people
        assert len(set(zip(folds.tolist(), samples.subjects.tolist(), strict=True))) == num_people


@pytest.mark.parametrize(
    ("clips", "num_people", "is_large"),
    [
        (ONE_FOLD_CLIPS + 10, ONE_FOLD_PEOPLE + 1, True),
        (ONE_FOLD_CLIPS, ONE_FOLD_PEOPLE + 10, False),
        (ONE_FOLD_CLIPS + 10, ONE_FOLD_PEOPLE, False),
    ],
)
def test_large_data_set_holds_out_one_fold(clips: int, num_people: int, is_large: bool) -> None:
    labels = np.arange(clips) // num_people % 2
    groups = np.array([f"p{number}" for number in np.arange(clips) % num_people])
    in_val = np.isin(groups, ["p0", "p5", "p9"])
    folds = assign_folds(labels, groups, 0, in_val)
    np.testing.assert_array_equal(folds == 0, in_val)
    assert set(folds[~in_val].tolist()) == ({-1} if is_large else set(range(1, NUM_FOLDS)))
    without = assign_folds(labels, groups, 0)
    assert set(without.tolist()) == ({-1, 0} if is_large else set(range(NUM_FOLDS)))
    assert not set(groups[without == 0]) & set(groups[without != 0])
    assert np.mean(without == 0) == pytest.approx(1 / NUM_FOLDS, abs=0.05)


def test_one_fold_gives_one_head_that_has_seen_all_others() -> None:
    samples = people()
    folds = np.where(np.isin(samples.subjects, ["p01", "p02"]), 0, -1)
    fit = cross_fit(FoldInputs(samples, folds), LSTM, BINARY, seed=0)
    assert len(fit.heads) == len(fit.histories) == 1
    np.testing.assert_array_equal(
        ~np.isnan(fit.logits[:, 0]), (folds == 0) & samples.valid["embeddings"].any(axis=1)
    )


def test_fold_without_which_a_class_is_missing_is_left_out() -> None:
    """One person alone has the third class: without that fold there would be nothing to learn it from."""
    samples = people(classes=2)
    labels = np.where(samples.subjects == "p04", 2, samples.labels)
    samples = replace(samples, labels=labels)
    folds = np.repeat(np.arange(5), 18)
    assert folds[labels == 2][0] == 1
    inputs = FoldInputs(samples, folds)
    np.testing.assert_array_equal(inputs.folds, np.choose(folds, [0, -1, 1, 2, 3]))
    assert inputs.numbers == [0, 1, 2, 3]
    fit = cross_fit(inputs, LSTM, Objective("multiclass", 3), seed=0)
    assert len(fit.heads) == 4
    assert np.isnan(fit.logits[folds == 1]).all()
    with pytest.raises(ValueError, match="without the people of any one fold, a class has no clip"):
        FoldInputs(samples, np.where(folds == 1, 0, -1))
    with pytest.raises(ValueError, match="a class has no clip"):
        FoldInputs(replace(samples, labels=np.zeros(90, int)), folds)


@pytest.mark.parametrize("components", [3, MAX_COMPONENTS, MAX_COMPONENTS + 6])
def test_windows_of_a_fold_are_what_the_input_of_the_head_gives(components: int) -> None:
    """Whatever other heads of the fold have read before."""
    samples = people(width=MAX_COMPONENTS + 20)
    inputs = inputs_of(samples)
    config = replace(LSTM, head=HeadConfig(hidden=4, components=components), train=TrainConfig(epochs=1))
    for number in (5, 0, components):
        fit = cross_fit(inputs, replace(config, head=HeadConfig(hidden=4, components=number)), BINARY, seed=0)
    head = fit.heads[1]
    train_windows, held_out = inputs.windows(1, head.input)
    assert held_out.z.shape[2] == components
    seen = samples.valid["embeddings"].any(axis=1)
    for part, inside in ((train_windows, (inputs.folds != 1) & seen), (held_out, inputs.folds == 1)):
        x, valid = (torch.from_numpy(a["embeddings"][inside]) for a in (samples.x, samples.valid))
        np.testing.assert_allclose(part.z, head.input(x, valid).numpy(), atol=1e-5)
        np.testing.assert_array_equal(part.labels, samples.labels[inside])
    fresh = cross_fit(inputs_of(samples), config, BINARY, seed=0)
    assert weights(fresh, 1) == weights(fit, 1)


# Scores and members


def test_fold_score_compares_no_clips_of_two_folds() -> None:
    """Heads of two folds may have other levels of probability."""
    labels = np.tile([0, 1], 6)
    folds = np.repeat([0, 1, 2], 4)
    positive = 0.1 * labels + 0.3 * folds
    p = np.stack([1 - positive, positive], axis=1)
    assert fold_score(p, labels, folds, "auroc") == 1.0
    turned = np.where(folds == 1, 0.1 * (1 - labels), positive)
    p_turned = np.stack([1 - turned, turned], axis=1)
    assert fold_score(p_turned, labels, folds, "auroc") == pytest.approx(2 / 3)
    never = np.where(folds == 1, -1, folds)
    assert fold_score(p_turned, labels, never, "auroc") == 1.0
    p_turned[folds == 1] = np.nan
    assert fold_score(p_turned, labels, folds, "auroc") == 1.0
    one_class = np.repeat([0, 1, 1], 4)
    assert fold_score(p, one_class, folds, "auroc") == 1.0, "all clips together"
    assert np.isnan(fold_score(np.full_like(p, np.nan), labels, folds, "auroc"))
    assert np.isnan(scores_by_fold(p, one_class, folds, "macro_f1")).tolist() == [True, True, True]
    two_classes = np.where(folds == 1, labels, 0)
    assert np.isnan(scores_by_fold(p, two_classes, folds, "macro_f1")).tolist() == [True, False, True]


def test_average_of_members_leaves_out_those_without_a_prediction() -> None:
    first = np.array([[0.0], [2.0], [np.nan], [np.nan]], np.float32)
    second = np.array([[2.0], [np.nan], [-1.0], [np.nan]], np.float32)
    found = average_logits([first, second], "binary")[:, 0]
    mean = (0.5 + 1 / (1 + np.exp(-2))) / 2
    np.testing.assert_allclose(found, [np.log(mean / (1 - mean)), 2, -1, np.nan], rtol=1e-5)


def candidate(share_right: float, labels: np.ndarray, seed: int) -> CrossFit:
    """A candidate whose out-of-fold logits are right for a share of the clips, which sets its AUROC."""
    wrong = np.random.default_rng(seed).permutation(len(labels)) >= share_right * len(labels)
    logits = np.where((labels == 1) != wrong, 1.0, -1.0)[:, None].astype(np.float32)
    return CrossFit(LSTM, (), logits, ())


def test_members_are_all_candidates_near_the_best_one() -> None:
    labels, folds = np.tile([0, 1], 1000), np.repeat(np.arange(5), 400)
    shares = [0.5 + 0.3 * (MIN_SHARE - 0.06), 0.8, 0.5, 0.5 + 0.3 * (MIN_SHARE + 0.06), 0.79]
    candidates = [candidate(share, labels, number) for number, share in enumerate(shares)]
    assert select_members(candidates, labels, folds, BINARY) == [1, 4, 3]
    assert select_members(candidates[2:3], labels, folds, BINARY) == [0], "one member at least"
    many = [candidate(0.8, labels, number) for number in range(MAX_MEMBERS + 2)]
    assert len(select_members(many, labels, folds, BINARY)) == MAX_MEMBERS
    undefined = replace(candidates[1], logits=np.full((2000, 1), np.nan, np.float32))
    assert select_members([undefined, candidates[1]], labels, folds, BINARY) == [1]


def test_members_below_chance_are_left_out() -> None:
    """If even the best candidate is below chance, it is the only member."""
    labels, folds = np.tile([0, 1], 1000), np.repeat(np.arange(5), 400)
    poor = [candidate(share, labels, number) for number, share in enumerate((0.3, 0.44, 0.4))]
    assert select_members(poor, labels, folds, BINARY) == [1]
    assert select_members([*poor, candidate(0.7, labels, 9)], labels, folds, BINARY) == [3]


def test_chance_is_that_of_the_metric() -> None:
    assert [chance_of(metric, 4) for metric in ("auroc", "qwk", "macro_f1")] == [0.5, 0.0, 0.25]


def test_ensemble_has_the_best_configuration_of_each_family() -> None:
    samples, calls = people(), []
    none = replace(LSTM, train=TrainConfig(epochs=1, lr=0.0))
    configs = [none, replace(LSTM, train=TrainConfig(epochs=8, lr=2e-2)), CONFIGS["trees"], none]
    inputs = inputs_of(samples)
    members = fit_ensemble(inputs, configs, BINARY, seed=0, on_fit=lambda: calls.append(1))
    assert len(calls) == 4
    assert [member.config for member in members] in ([configs[1], configs[2]], [configs[2], configs[1]])


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureStore]:
    """A run with members on both streams and five folds, and its store."""
    root = tmp_path_factory.mktemp("cross-fit")
    store = make_store(root / "s.zarr", recipe=WITH_GEOMETRY)
    make_run(root / "run", store, epochs=2, inputs="both")
    return root / "run", store


def test_learning_clips_are_predicted_by_the_heads_of_their_fold(trained: tuple[Path, FeatureStore]) -> None:
    """Test clips, and all clips without `folds`, by all heads."""
    run, store = trained
    card, subsets = load_card(run), load_split(run)
    rows = np.flatnonzero(store.table().state == 1)
    folds = held_out_folds(run, store, rows)
    subset = np.array([subsets[clip][1] for clip in store.table().clip_id[rows].tolist()])
    np.testing.assert_array_equal(folds == 0, subset == "val")
    np.testing.assert_array_equal(folds < 0, subset == "test")
    assert set(folds.tolist()) == {-1, *range(NUM_FOLDS)}
    logits, measured = predict_rows(run, card, store, card.labelling, rows, folds=folds)
    every, _ = predict_rows(run, card, store, card.labelling, rows)
    assert not measured.all()
    model, samples = open_inputs(run, card, store, card.labelling, rows)
    for fold in range(-1, NUM_FOLDS):
        inside = np.flatnonzero((folds == fold) & measured)
        part = model if fold < 0 else model.of_fold(fold)
        expected = predict_logits(part, select_samples(samples, inside))
        np.testing.assert_allclose(logits[inside], expected, atol=1e-5)
        assert np.allclose(every[inside], expected, atol=1e-5) == (fold < 0)


def test_prefixes_of_learning_clips_are_predicted_by_the_heads_of_their_fold(
    trained: tuple[Path, FeatureStore],
) -> None:
    run, store = trained
    card, rows = load_card(run), np.flatnonzero(store.table().state == 1)[::9]
    folds = held_out_folds(run, store, rows)
    assert len(set(folds.tolist())) > 3
    expected, measured = predict_rows(run, card, store, card.labelling, rows, folds=folds)
    found, _ = prefix_logits(run, card, store, card.labelling, rows)
    np.testing.assert_allclose(found[measured, -1], expected[measured], atol=1e-4)


def test_validation_of_a_trained_run_is_fold_0_and_other_folds_are_people(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path)
    learning_task = build_task(store, LabelArgs(), design="holdout")
    clips = learning_clips(learning_task, 4)
    assert clips.rows.tolist() == [*learning_task.split.train, *learning_task.split.val]
    np.testing.assert_array_equal(clips.folds == 0, np.isin(clips.rows, learning_task.split.val))
    assert len(set(zip(clips.folds.tolist(), clips.groups.tolist(), strict=True))) == len(set(clips.groups))
    assert load_learning(learning_task).rows.tolist() == clips.rows.tolist()
    small = TrainConfig(epochs=1)
    train(TrainArgs(store, tmp_path / "run", head=LSTM.head, train=small, seed=4, design="holdout"))
    ids = FeatureStore.open(store).table().clip_id[clips.rows].tolist()
    assert load_folds(tmp_path / "run") != dict(zip(ids, clips.folds.tolist(), strict=True)), "another seed"
    task_of_run = build_task(store, LabelArgs(), seed=4, design="holdout")
    clips = learning_clips(task_of_run, 4)
    ids = FeatureStore.open(store).table().clip_id[clips.rows].tolist()
    assert load_folds(tmp_path / "run") == dict(zip(ids, clips.folds.tolist(), strict=True))
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["fold"] for entry in log] == list(range(NUM_FOLDS))


def test_run_numbers_its_folds_as_its_heads_if_one_is_left_out(tmp_path: Path) -> None:
    """One person alone has the third class: its fold is left out, and the later ones move up. Otherwise the
    clips of a fold would be predicted by the head that has learned from them."""
    rng = np.random.default_rng(0)
    y, subject = np.arange(120) % 2, np.array([f"p{number // 8:02d}" for number in range(120)])
    y[subject == "p00"] = [0, 1, 2, 0, 1, 2, 0, 1]
    x = rng.normal(size=(120, 5, 6)).astype(np.float32) + y[:, None, None]
    np.savez(tmp_path / "x.npz", x=x, y=y, subject=subject)
    write_external(tmp_path / "s.zarr", read_sequences(tmp_path / "x.npz"), "x")
    run, store = tmp_path / "run", FeatureStore.open(tmp_path / "s.zarr")
    given = learning_clips(build_task(store.path, LabelArgs(), design="holdout"), 0)
    left_out = int(given.folds[store.table().subject[given.rows] == "p00"][0])
    assert 0 < left_out < NUM_FOLDS - 1, "a later fold moves up"
    small = TrainConfig(epochs=1)
    train(TrainArgs(tmp_path / "s.zarr", run, head=HeadConfig(hidden=4), train=small, design="holdout"))
    card, folds = load_card(run), held_out_folds(run, store, given.rows)
    assert card.num_folds == NUM_FOLDS - 1
    expected = np.where(given.folds > left_out, given.folds - 1, given.folds)
    np.testing.assert_array_equal(folds, np.where(given.folds == left_out, -1, expected))
