"""Simple methods that a model is compared with: what they read, and that they rank clips as well as the
frozen methods of tests/bench/reference.py."""

import numpy as np
import pytest

from features.datasets import Samples
from features.labels import Labelling
from seqmodel.evaluation.simple_methods import (
    METHODS,
    baseline_scores,
    predict_simple,
    principal_components,
    stream_statistics,
)
from seqmodel.metrics.classification import score
from seqmodel.training.cross_fit import FoldInputs, Objective, assign_folds
from tests.bench import reference

NAMES = ("falls", "rises")
LABELLING = Labelling("label", NAMES, (("falls",), ("rises",)), "binary")


def _samples(num_people: int, seed: int, width: int = 3) -> Samples:
    """Ten windows a person of a stream that rises or falls, one in four rises: mean and spread are the same.
    Each person has another level."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"p{seed}-{k}" for k in range(num_people)], 10)
    labels = (rng.random(len(subjects)) < 0.25).astype(np.int64)
    slope = np.where(labels == 1, 1, -1)[:, None] * np.linspace(-1, 1, 8)
    x = (
        rng.normal(0, 2.5, (len(labels), 8, width))
        + np.repeat(rng.normal(0, 3, num_people), 10)[:, None, None]
    )
    x += slope[:, :, None]
    valid = rng.random((len(labels), 8)) < 0.9
    ids = np.array([f"{k}#0" for k in range(len(labels))])
    return Samples({"geometry": x}, {"geometry": valid}, labels, ids, subjects, np.arange(len(labels)))


@pytest.mark.parametrize("method", METHODS)
def test_methods_read_the_order_of_frames_and_rank_like_the_frozen_ones(method):
    train, test = _samples(20, 0), _samples(20, 1)
    x, target = (stream_statistics(samples, {})["geometry"] for samples in (train, test))
    found = predict_simple(method, x, train.labels, train.subjects, target, task="binary", label_names=NAMES)
    assert found is not None
    frozen = reference.predict(method, x, train.labels, train.subjects, target)
    auroc, wanted = (score("auroc", test.labels, p) for p in (found.probabilities, frozen))
    assert auroc > 0.75
    assert auroc > wanted - 0.04
    # Calibrated and with a threshold from training people, as a model: not the majority class for every clip.
    assert score("balanced_accuracy", test.labels, found.probabilities, found.label) > 0.65
    assert found.probabilities[:, 1].mean() == pytest.approx(test.labels.mean(), abs=0.06)


def _quick(samples: Samples) -> dict[str, float]:
    """Scores of the quick baselines on five folds of people."""
    inputs = FoldInputs(samples, assign_folds(samples.labels, samples.subjects, 0))
    return baseline_scores(inputs, samples.subjects, LABELLING, Objective("binary", 2))


def test_quick_baselines_of_a_search_read_the_order_of_frames():
    found = _quick(_samples(20, 0))
    assert set(found) == {"majority", "logistic_geometry"}
    assert found["majority"] == 0.5
    assert found["logistic_geometry"] > 0.8


def test_one_person_or_one_class_gives_no_simple_method():
    x, labels = np.zeros((20, 3), np.float32), np.tile([0, 1], 10)
    people = np.repeat(["a", "b"], 10)
    for given in ((labels, np.full(20, "a")), (np.zeros(20, np.int64), people)):
        assert predict_simple("logistic", x, *given, x, task="binary", label_names=NAMES) is None


def test_wide_streams_are_reduced_to_principal_components_and_keep_the_signal():
    train = _samples(20, 0, width=100)
    components = principal_components(train, seed=0)
    assert components["geometry"].shape == (100, 64)
    assert stream_statistics(train, components)["geometry"].shape == (200, 9 * 64 + 1)
    assert principal_components(_samples(3, 0), seed=0) == {}
    assert _quick(train)["logistic_geometry"] > 0.75
