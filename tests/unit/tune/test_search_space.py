"""The search space, the rule that stops a trial, and the choice of finalists and members."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from features.datasets import Samples
from seqmodel.training.cross_fit import FoldInputs, Objective
from tests.support.small_store import write_store
from tune.config import TuneArgs
from tune.finalists import best_trials, fit_finalists, warnings_about_model
from tune.objective import falls_behind, objective
from tune.search_space import (
    Space,
    member_config_of,
    point_of,
    space_hash,
    starting_points,
    suggest,
    turn_of,
)
from tune.study.study import StudySpec, create_study, enqueue_again, work
from tune.study.worker import SearchContext, set_up

STREAMS = ("embeddings", "geometry")
SPACE = Space("binary", ("embeddings",), 4)
BOTH = Space("binary", STREAMS, 4)


def new_study() -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


# The space and its starting points


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("streams", [("embeddings",), ("geometry",), STREAMS])
@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal"])
def test_starting_points_are_in_the_search_space(task: Any, streams: tuple[str, ...], many: bool) -> None:
    space, study = Space(task, streams, 20, many), new_study()
    for point in starting_points(space):
        study.enqueue_trial(point)
        trial = study.ask()
        config = suggest(trial, space)
        assert trial.params == point
        assert config.head.shared_thresholds == (task == "ordinal")
        assert config.train.epochs == 20


@pytest.mark.parametrize("streams", [("embeddings",), ("geometry",), STREAMS])
def test_starting_points_have_each_family_and_no_two_are_equal(streams: tuple[str, ...]) -> None:
    space = Space("binary", streams, 20)
    points = starting_points(space)
    families = {member_config_of(point, space).family for point in points}
    assert families == {f"{stream} {kind}" for stream in streams for kind in ("recurrent", "trees")}
    assert all(a != b for a, b in itertools.combinations(points, 2))


def test_the_last_starting_point_has_the_seed_projects_settings() -> None:
    """It read only embeddings."""
    seed = member_config_of(starting_points(BOTH)[-1], BOTH)
    assert (seed.stream, seed.head.kind, seed.head.hidden, seed.head.pooling) == (
        "embeddings",
        "lstm",
        64,
        "mean",
    )
    assert (seed.train.lr, seed.train.batch_size, seed.head.statistics) == (1e-3, 16, False)
    assert starting_points(Space("binary", ("geometry",), 4))[-1]["stream"] == "geometry"


def test_many_clips_leave_out_small_batches() -> None:
    space, study = dataclasses.replace(SPACE, many=True), new_study()
    for point in starting_points(space):
        study.enqueue_trial(point)
    drawn = [suggest(study.ask(), space) for _ in range(20)]
    assert min(each.train.batch_size for each in drawn) == 32
    assert {point["batch_size"] for point in starting_points(SPACE)} == {16}


def test_studies_of_another_space_have_another_hash() -> None:
    """The number of epochs is another setting of a study."""
    spaces = [SPACE, BOTH, dataclasses.replace(SPACE, many=True), dataclasses.replace(SPACE, task="ordinal")]
    assert len({space_hash(space) for space in spaces}) == len(spaces)
    assert space_hash(SPACE) == space_hash(dataclasses.replace(SPACE, epochs=5))


def test_streams_take_turns_after_the_starting_points(tmp_path: Path) -> None:
    """A trial that is run again keeps its own stream, whatever its number."""
    turns = tuple(turn_of(number, BOTH) for number in range(len(STREAMS)))
    assert [(turn["stream"], turn["kind"]) for turn in turns] == [(stream, "lstm") for stream in STREAMS]
    spec = StudySpec(str(tmp_path / "study.log"), "study", trials=2, seed=0, turns=turns)
    start = point_of(BOTH, "geometry", kind="trees")
    study = create_study(spec, [start], {})

    def value(trial: optuna.Trial) -> float:
        suggest(trial, BOTH)
        return 0.5

    work(spec, value)
    enqueue_again(study, study.trials[1])
    work(dataclasses.replace(spec, trials=9), value)
    found = [trial.params["stream"] for trial in study.trials]
    assert study.trials[0].params == start
    assert found[2] == found[1] != turns[2 % len(turns)]["stream"]
    for number in (1, *range(3, 9)):
        assert found[number] == turn_of(number, BOTH)["stream"]
    assert len({trial.params["lr"] for trial in study.trials[3:]}) == 6, "only stream and kind are fixed"


# The rule that stops trials


GOOD = [0.9, 0.8, 0.85, 0.9, 0.8]


def test_trial_worse_than_the_best_of_its_family_in_three_folds_is_stopped() -> None:
    rivals, worse = [GOOD, [0.5] * 5], [score - 0.1 - 0.01 * k for k, score in enumerate(GOOD)]
    stopped = [n for n in range(1, 6) if falls_behind(worse[:n], rivals, by_epoch=False)]
    assert stopped == [3, 4, 5]
    better_once = [0.7, 0.85, 0.7]
    assert not falls_behind(better_once, rivals, by_epoch=False)
    assert not falls_behind(GOOD, rivals, by_epoch=False), "an equal one is not worse"
    assert not falls_behind([score + 0.01 for score in GOOD], rivals, by_epoch=False)


def test_with_one_fold_a_trial_below_the_median_is_stopped_at_three_epochs() -> None:
    rivals = [[0.9] * 30, [0.7] * 30, [0.5] * 30]
    stopped = [n for n in range(1, 31) if falls_behind([0.69] * n, rivals, by_epoch=True)]
    assert stopped == [4, 8, 16]
    assert not falls_behind([0.1, 0.1, 0.1, 0.71], rivals, by_epoch=True), "only the last epoch counts"
    assert not falls_behind([0.7] * 4, rivals, by_epoch=True)
    rising = [[0.5, 0.5, 0.5, 0.6, 0.9]] * 3
    assert not falls_behind([0.65] * 4, rising, by_epoch=True), "compared at the same epoch"
    assert not falls_behind([0.1] * 8, rising, by_epoch=True), "no rival has so many epochs"


@pytest.mark.parametrize("by_epoch", [False, True])
def test_the_first_two_trials_of_a_family_are_never_stopped(by_epoch: bool) -> None:
    bad = [0.3, 0.2, 0.1, 0.15]
    assert not falls_behind(bad, [], by_epoch=by_epoch)
    assert not falls_behind(bad, [[0.9, 0.91, 0.92, 0.93]], by_epoch=by_epoch)
    assert falls_behind(bad, [[0.9, 0.91, 0.92, 0.93]] * 2, by_epoch=by_epoch)
    undefined = [*bad[:2], float("nan"), bad[3]]
    assert not falls_behind(undefined, [[0.9, 0.91, 0.92, 0.93]] * 2, by_epoch=by_epoch)


def small_inputs(num_folds: int) -> FoldInputs:
    """Forty clips of noise; with one fold, a quarter of them is held out."""
    rng, numbers = np.random.default_rng(0), np.arange(40)
    x, valid = {"embeddings": rng.normal(size=(40, 4, 3)).astype(np.float32)}, np.ones((40, 4), bool)
    clips = Samples(
        x,
        {"embeddings": valid},
        numbers % 2,
        numbers.astype(str),
        numbers.astype(str).astype(object),
        numbers,
    )
    folds = numbers // 2 % num_folds if num_folds > 1 else np.where(numbers < 10, 0, -1)
    return FoldInputs(clips, folds)


def tried(
    family: str = "embeddings recurrent",
    *,
    num_folds: int = 5,
    num_rivals: int = 2,
    attributes: dict[str, Any] | None = None,
    **options: Any,
) -> FrozenTrial:
    """A recurrent trial of four epochs, after rivals of a family with scores that no head reaches."""
    study, point = new_study(), point_of(SPACE, "embeddings", hidden=16)
    for _ in range(num_rivals):
        add_complete(study, family, 1.5, [1.5] * 5, point=point)
    study.enqueue_trial(point, user_attrs=attributes)
    goal, inputs = Objective("binary", 2), small_inputs(num_folds)
    study.optimize(
        lambda trial: objective(trial, inputs, SPACE, goal, seed=0, device="cpu", **options), n_trials=1
    )
    return study.trials[-1]


def add_complete(
    study: optuna.Study,
    family: str,
    value: float,
    curve: list[float],
    *,
    loss: float = 0.5,
    curve_of: str = "folds",
    point: dict[str, Any] | None = None,
) -> None:
    """Add a complete trial as `objective` leaves it."""
    attributes = {"family": family, "val_curve": curve, "val_loss": loss, "curve_of": curve_of}
    point = point or {}
    kinds: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution([each]) for name, each in point.items()
    }
    study.add_trial(
        optuna.trial.create_trial(value=value, params=point, distributions=kinds, user_attrs=attributes)
    )


@pytest.mark.parametrize(("num_folds", "first", "length"), [(5, 0, 3), (1, 1, 4)], ids=["folds", "epochs"])
def test_stopped_trial_keeps_its_scores(num_folds: int, first: int, length: int) -> None:
    """Folds are counted from 0, epochs from 1; the report draws them in another way."""
    trial = tried(num_folds=num_folds)
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == list(range(first, first + length))
    assert trial.user_attrs["val_curve"] == pytest.approx(list(trial.intermediate_values.values()), abs=1e-4)
    assert trial.user_attrs["curve_of"] == ("folds" if num_folds > 1 else "epochs")


@pytest.mark.parametrize("num_folds", [5, 1], ids=["folds", "epochs"])
def test_starting_points_and_trials_of_another_family_are_not_stopped(num_folds: int) -> None:
    for trial in (
        tried(num_folds=num_folds, attributes={"start": 0}),
        tried("embeddings trees", num_folds=num_folds),
        tried(num_folds=num_folds, num_rivals=1),
        tried(num_folds=num_folds, prunes=False),
    ):
        assert trial.state == TrialState.COMPLETE
        assert trial.user_attrs["family"] == "embeddings recurrent"


def test_trial_ends_with_its_parent_process() -> None:
    with pytest.raises(KeyboardInterrupt):
        tried(is_alive=lambda: False)


# Finalists


def test_the_best_trial_of_each_family_is_a_finalist() -> None:
    """Best first; of equal scores the lower loss, then the earlier trial."""
    study = new_study()
    for family, value, loss in (
        ("embeddings recurrent", 0.7, 0.5),
        ("geometry trees", 0.9, 0.6),
        ("geometry trees", 0.9, 0.4),
        ("geometry trees", 0.9, 0.4),
        ("embeddings recurrent", 0.8, 0.9),
    ):
        add_complete(study, family, value, [value] * 5, loss=loss, curve_of="epochs")
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED))
    assert [trial.number for trial in best_trials(study)] == [2, 4]


def test_study_without_a_complete_trial_has_no_finalist() -> None:
    study = new_study()
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED))
    with pytest.raises(ValueError, match="has no complete trial; increase --trials"):
        best_trials(study)


def chosen_of(*trials: tuple[float, list[float]], curve_of: str = "folds") -> int:
    """Number of the finalist of these trials of one family."""
    study = new_study()
    for value, curve in trials:
        add_complete(study, "geometry recurrent", value, curve, curve_of=curve_of)
    (best,) = best_trials(study)
    return best.number


def changed(difference: list[float]) -> list[float]:
    return [score - lost for score, lost in zip(GOOD, difference, strict=True)]


def test_the_earliest_trial_that_is_as_good_as_the_best_is_the_finalist() -> None:
    """As good: the mean difference over folds is at most its standard error."""
    as_good = changed([0.02, -0.01, 0.03, -0.02, 0.01])
    clearly_worse = changed([0.05, 0.04, 0.06, 0.05, 0.05])
    assert chosen_of((0.84, as_good), (0.85, GOOD)) == 0
    assert chosen_of((0.80, clearly_worse), (0.85, GOOD)) == 1
    assert chosen_of((0.80, clearly_worse), (0.84, as_good), (0.85, GOOD), (0.84, as_good)) == 1
    without = [[*curve[:4], float("nan")] for curve in (as_good, GOOD)]
    assert chosen_of((0.84, without[0]), (0.85, without[1])) == 0, "a fold may have no score"


def test_scores_of_epochs_or_two_folds_do_not_replace_the_best_trial() -> None:
    as_good = changed([0.02, -0.01, 0.03, -0.02, 0.01])
    assert chosen_of((0.84, as_good), (0.85, GOOD), curve_of="epochs") == 1
    assert chosen_of((0.84, [0.9, 0.78]), (0.85, [0.88, 0.82])) == 1
    assert chosen_of((0.84, [0.9, 0.78, 0.8]), (0.85, GOOD)) == 1, "of another number of folds"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SearchContext:
    """Clips whose label depends on the geometry alone."""
    folder = tmp_path_factory.mktemp("geometry")
    store = Path(write_store(folder / "s.zarr", 64).path)
    found = set_up(TuneArgs(store, folder / "run", workers=1, epochs=5))
    samples, rng = found.inputs.samples, np.random.default_rng(0)
    x = {name: rng.normal(size=values.shape).astype(np.float32) for name, values in samples.x.items()}
    x["geometry"] += 3 * samples.labels[:, None, None]
    valid = {name: np.ones(values.shape[:2], bool) for name, values in x.items()}
    samples = dataclasses.replace(samples, x=x, valid=valid)
    return dataclasses.replace(found, inputs=FoldInputs(samples, found.inputs.folds))


def members_of(context: SearchContext, **options: Any) -> tuple[list[str], list[str]]:
    """Families of the members, and of the other finalists, of a study with one trial of each family."""
    study = new_study()
    for value, (stream, kind) in enumerate(itertools.product(STREAMS, ("trees", "lstm"))):
        family = f"{stream} {'trees' if kind == 'trees' else 'recurrent'}"
        add_complete(study, family, value, [], point=point_of(BOTH, stream, kind=kind, hidden=16))
    args = dataclasses.replace(context.args, **options)
    finalists, model = fit_finalists(args, study, context)
    members = [each.trial.user_attrs["family"] for each in finalists if each.is_member]
    configs = [each.config for each in model.members]
    assert members == [f"{c.stream} {'trees' if c.head.kind == 'trees' else 'recurrent'}" for c in configs]
    assert all(each.is_member for each in finalists[: len(members)]), "members come first"
    return members, [each.trial.user_attrs["family"] for each in finalists[len(members) :]]


def test_families_that_know_little_are_finalists_but_no_members(context: SearchContext) -> None:
    members, others = members_of(context)
    assert sorted(members) == ["geometry recurrent", "geometry trees"]
    assert sorted(others) == ["embeddings recurrent", "embeddings trees"]


def test_single_keeps_the_best_member_alone(context: SearchContext) -> None:
    several, _ = members_of(context)
    members, others = members_of(context, single=True)
    assert members == several[:1]
    assert len(others) == 3


@pytest.mark.parametrize("single", [False, True])
def test_fine_tuning_adds_a_recurrent_member_that_reads_embeddings(
    context: SearchContext, capsys: pytest.CaptureFixture[str], single: bool
) -> None:
    plain, _ = members_of(context, single=single)
    members, others = members_of(context, single=single, finetune=True)
    assert members == (["embeddings recurrent"] if single else [*plain, "embeddings recurrent"])
    assert "embeddings trees" in others
    assert "is a member too: --finetune tunes the encoder" in " ".join(capsys.readouterr().err.split())


def test_model_that_does_not_beat_a_baseline_gives_a_warning() -> None:
    assert warnings_about_model(0.9, {"majority": 0.5, "logistic_embeddings": 0.89}, "auroc") == []
    (note,) = warnings_about_model(0.905, {"majority": 0.5, "logistic_embeddings": 0.95}, "auroc")
    assert "out of fold, the model is not better than the baseline logistic_embeddings" in note
    assert "auroc 0.9050, baseline 0.9500" in note
