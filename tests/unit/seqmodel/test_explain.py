"""Permutation importance finds the inputs that a head was made to read; signals have the stated signs."""

import numpy as np
import pytest

from extract.face.geometry import FEATURES
from features.face_signals import strongest_signals
from seqmodel.config import HeadConfig
from seqmodel.evaluation.permutation_importance import Arrays, feature_groups, head_logits, importance
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.recurrent import build_head
from seqmodel.metrics.calibration import Calibration, Decision, decide, decide_probabilities

N, T, D = 60, 4, 5
DIMS = {"embeddings": D, "geometry": len(FEATURES)}


def reads_yaw(x: Arrays, valid: Arrays) -> Decision:
    """Probabilities and classes from the mean yaw."""
    yaw = x["geometry"][..., FEATURES.index("yaw_rad")]
    p = 1 / (1 + np.exp(-10 * (yaw * valid["geometry"]).mean(1)))
    return decide_probabilities(np.stack([1 - p, p], axis=1), "binary", Calibration())


@pytest.fixture
def clips() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=N)
    x = {name: rng.normal(size=(N, T, dim)).astype(np.float32) for name, dim in DIMS.items()}
    x["geometry"][..., FEATURES.index("yaw_rad")] += 3 * (labels[:, None] - 0.5)
    valid = {name: rng.random((N, T)) > 0.1 for name in DIMS}
    return x, valid, labels, np.repeat(np.arange(6), N // 6).astype(str)


def test_only_the_decisive_group_has_importance(clips) -> None:  # type: ignore[no-untyped-def]
    x, valid, labels, subjects = clips
    groups = feature_groups(DIMS, FEATURES)
    importance_scores = importance(reads_yaw, x, valid, labels, subjects, groups, metric="auroc")
    assert importance_scores[0].group == "head pose"
    assert importance_scores[0].value > 0.3
    assert 0 < importance_scores[0].low <= importance_scores[0].value <= importance_scores[0].high
    assert all(item.value == item.low == item.high == 0 for item in importance_scores[1:])


def test_importance_uses_the_decisions_of_the_run(clips) -> None:  # type: ignore[no-untyped-def]
    """With a threshold above every probability, all clips are of one class, whatever is shuffled."""
    x, valid, labels, subjects = clips
    groups = feature_groups(DIMS, FEATURES)

    def never(x: Arrays, valid: Arrays) -> Decision:
        p = np.minimum(reads_yaw(x, valid).probabilities, 0.99)
        return decide_probabilities(p, "binary", Calibration(threshold=1.0))

    found = importance(never, x, valid, labels, subjects, groups, metric="balanced_accuracy")
    assert {item.value for item in found} == {0.0}


def test_clips_without_a_subject_are_units_of_their_own(clips) -> None:  # type: ignore[no-untyped-def]
    """One unit would give no confidence interval."""
    x, valid, labels, subjects = clips
    groups = feature_groups(DIMS, FEATURES)
    unknown, own = (
        importance(reads_yaw, x, valid, labels, units, groups, metric="auroc")[0]
        for units in (np.where(subjects == "0", subjects, ""), np.arange(N).astype(str))
    )
    assert unknown.high - unknown.low == pytest.approx(own.high - own.low, rel=0.5)


def test_importance_of_a_real_head_is_reproducible(clips) -> None:  # type: ignore[no-untyped-def]
    x, valid, labels, subjects = clips
    members = [[build_head(HeadConfig(hidden=4), name, dim, 1, seed=0)] for name, dim in DIMS.items()]
    head = Ensemble(members, "binary")
    groups = feature_groups(DIMS, FEATURES)

    def predict(x: Arrays, valid: Arrays) -> Decision:
        return decide(head_logits(head, x, valid), "binary")

    one, two = (
        importance(predict, x, valid, labels, subjects, groups, metric="auroc", seed=1) for _ in range(2)
    )
    assert one == two


def test_every_column_has_one_group() -> None:
    groups = feature_groups(DIMS, FEATURES)
    assert set(groups) == {
        "embedding", "eyes", "brows", "mouth", "head pose", "face position", "other face features",
    }  # fmt: skip
    columns = sorted(c for stream, cs in groups.values() if stream == "geometry" for c in cs)
    assert columns == list(range(len(FEATURES)))
    others = feature_groups({"geometry": 3}, ("abs_yaw", "depth_cm", "eyeBlinkLeft"))
    assert {group: columns for group, (_, columns) in others.items()} == {
        "head pose": [0], "face position": [1], "eyes": [2],
    }  # fmt: skip
    with pytest.raises(ValueError, match="61 geometry columns and 2 names"):
        feature_groups(DIMS, ("a", "b"))


def test_signals_have_the_documented_signs() -> None:
    geometry = np.zeros((2, len(FEATURES)), np.float32)
    geometry[1, [FEATURES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]] = 0.8
    geometry[1, [FEATURES.index(name) for name in ("eyeLookOutLeft", "eyeLookInRight")]] = 0.5
    geometry[1, FEATURES.index("yaw_rad")] = -np.pi / 8
    signals = strongest_signals(geometry, FEATURES)
    np.testing.assert_allclose(signals["eyes open"], (1, 0.2), atol=1e-6)
    np.testing.assert_allclose(signals["gaze"], (0, 0.5), atol=1e-6)
    np.testing.assert_allclose(signals["yaw"], (0, -0.5), atol=1e-6)
    assert strongest_signals(geometry[:, :2], ("a", "b")) == {}
