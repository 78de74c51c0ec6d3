"""Trees as tensors predict what scikit-learn's forest predicts, and tensors give the same window statistics
as arrays."""

from typing import Any

import numpy as np
import pytest
import torch

from features.labels import Task
from seqmodel.config import HeadConfig
from seqmodel.heads.ensemble import to_probabilities
from seqmodel.heads.inputs import fit_input
from seqmodel.heads.recurrent import num_outputs
from seqmodel.heads.trees import SMOOTHING, TreesHead, fit_trees, put_forest
from seqmodel.heads.window_statistics import num_statistics, window_statistics
from seqmodel.training.loop import Windows, read_logits

STEPS, DIM = 8, 6
CONFIG = HeadConfig(kind="trees", components=4)
TASKS: list[tuple[Task, int]] = [("binary", 2), ("multiclass", 3), ("ordinal", 4)]


def clips(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, valid, labels) of clips that show their class only in part; some have no valid frame."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    x = rng.normal(size=(count, STEPS, DIM)) + 0.5 * labels[:, None, None] * rng.random((count, STEPS, 1))
    valid = rng.random((count, STEPS)) > 0.3
    valid[::17] = False
    return x.astype(np.float16), valid, labels


def empty_head(task: Task, classes: int) -> TreesHead:
    return TreesHead(CONFIG, "embeddings", DIM, num_outputs(task, classes), task)


def fitted(
    task: Task, classes: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[TreesHead, Any, Windows, tuple[torch.Tensor, torch.Tensor]]:
    """A head, scikit-learn's forest that it was made of, clips to predict as its input gives them, and as the
    store has them."""
    forests: list[Any] = []

    def noted(head: TreesHead, forest: Any, num_classes: int) -> None:
        forests.append(forest)
        put_forest(head, forest, num_classes)

    monkeypatch.setattr("seqmodel.heads.trees.put_forest", noted)
    head = empty_head(task, classes)
    x, valid, labels = clips(200, classes)
    head.input.put(fit_input("embeddings", x, valid, 4))
    with torch.inference_mode():
        z = head.input(torch.from_numpy(x), torch.from_numpy(valid)).numpy()
        fit_trees(head, z, valid, labels, classes, seed=1)
        x, valid, labels = clips(120, classes, seed=5)
        given = torch.from_numpy(x), torch.from_numpy(valid)
        other = Windows(head.input(*given).numpy(), valid, labels)
    return head, forests[0], other, given


def expected_outputs(forest: Any, windows: Windows, task: Task) -> np.ndarray:
    """(N, O) of the classes, or of reaching each level, by scikit-learn, smoothed."""
    with torch.inference_mode():
        found = window_statistics(torch.from_numpy(windows.z), torch.from_numpy(windows.valid)).numpy()
    p = forest.predict_proba(found) + SMOOTHING
    p /= p.sum(axis=1, keepdims=True)
    return p if task == "multiclass" else np.cumsum(p[:, ::-1], axis=1)[:, ::-1][:, 1:]


@pytest.mark.parametrize(("task", "classes"), TASKS)
def test_tensors_predict_what_the_forest_of_scikit_learn_predicts(
    task: Task, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after its weights were loaded into an empty head."""
    head, forest, windows, given = fitted(task, classes, monkeypatch)
    expected = expected_outputs(forest, windows, task)
    assert expected.shape == (120, num_outputs(task, classes))
    assert np.ptp(expected[:, 0]) > 0.3
    logits = read_logits(head, windows)
    np.testing.assert_allclose(to_probabilities(torch.from_numpy(logits), task), expected, atol=2e-6)
    loaded = empty_head(task, classes)
    loaded.load_state_dict(head.state_dict())
    for one in (head.eval(), loaded.eval()):
        with torch.inference_mode():
            np.testing.assert_array_equal(one(*given).numpy(), logits)


def test_values_at_a_threshold_go_left_as_in_scikit_learn() -> None:
    """scikit-learn compares float32 values with float64 thresholds; the head has float32 thresholds."""
    from sklearn.ensemble import ExtraTreesClassifier

    rng = np.random.default_rng(0)
    columns = num_statistics(4)
    x = rng.normal(size=(80, columns)).astype(np.float32)
    forest = ExtraTreesClassifier(20, random_state=0).fit(x, rng.integers(0, 2, 80))
    head = empty_head("binary", 2)
    put_forest(head, forest, 2)
    near: list[np.ndarray] = []
    for tree in (each.tree_ for each in forest.estimators_):
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            if feature >= 0:
                row = x[rng.integers(80)].copy()
                row[feature] = np.float32(threshold)
                near += [row]
                for side in (-np.inf, np.inf):
                    near += [row.copy()]
                    near[-1][feature] = np.nextafter(np.float32(threshold), np.float32(side))
    probes = np.stack(near)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("seqmodel.heads.trees.window_statistics", lambda z, valid: z)
        found = torch.sigmoid(head.read(torch.from_numpy(probes), torch.ones(1)))
    expected = (forest.predict_proba(probes)[:, 1:] + SMOOTHING) / (1 + 2 * SMOOTHING)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_a_class_without_training_clips_keeps_a_small_probability() -> None:
    """In a fold, all clips of a class may be without a face."""
    head = empty_head("multiclass", 3)
    x, valid, labels = clips(100, 2)
    z = x[..., :4].astype(np.float32)
    fit_trees(head, z, valid, np.where(labels == 1, 2, 0), 3, seed=0)
    p = torch.softmax(torch.from_numpy(read_logits(head, Windows(z, valid, labels))), dim=1)
    np.testing.assert_allclose(p[:, 1], SMOOTHING / (1 + 3 * SMOOTHING), rtol=1e-5)
    assert p[labels == 1, 2].mean() > p[labels == 0, 2].mean() + 0.2


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_equal_seeds_give_equal_trees(seeds: tuple[int, int]) -> None:
    states = []
    for seed in seeds:
        head = empty_head("binary", 2)
        x, valid, labels = clips(100, 2)
        fit_trees(head, x[..., :4].astype(np.float32), valid, labels, 2, seed)
        states.append(head.state_dict())
    same = [torch.equal(states[0][name], states[1][name]) for name in ("threshold", "shares", "feature")]
    assert same == [seeds[0] == seeds[1]] * 3


def test_statistics_have_finite_gradients() -> None:
    """For constant channels and windows without a valid frame: the root has no finite slope at 0."""
    z = torch.zeros(3, 6, 2, requires_grad=True)
    valid = torch.tensor([[True] * 6, [False] * 6, [True] + [False] * 5])
    window_statistics(z, valid).sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
