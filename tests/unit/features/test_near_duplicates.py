"""Nearly equal clips under other names are found, named, and kept in one subset."""

import json
from pathlib import Path

import numpy as np
import pytest

from features.__main__ import main as features
from features.maintenance.near_duplicates import near_duplicates
from features.splits import Split, make_split
from features.store.store import FeatureStore
from seqmodel.config import LabelArgs
from seqmodel.training.task import build_task

NUM_SUBJECTS, EACH, T, D = 10, 4, 20, 12


def import_clips(folder: Path, copies: dict[int, int], splits: dict[int, str] | None = None) -> FeatureStore:
    """A store of random clips, in which clip `copies[k]` is nearly a copy of clip k."""
    rng = np.random.default_rng(0)
    count = NUM_SUBJECTS * EACH
    x = rng.normal(size=(count, T, D)).astype(np.float32) * np.arange(1, D + 1)
    for source, copy in copies.items():
        x[copy] = x[source] + rng.normal(0, 0.01, (T, D))
    arrays = {"y": np.arange(count) % 2, "subject": np.arange(count) // EACH}
    if splits:
        arrays["split"] = np.array([splits[subject] for subject in arrays["subject"].tolist()])
    np.savez(folder / "f.npz", x=x, **arrays)
    argv = ["import", str(folder / "f.npz"), "--out", str(folder / "s.zarr"), "--name", "n"]
    assert features(argv) == 0
    return FeatureStore.open(folder / "s.zarr")


def num_subsets(split: Split, rows: set[int]) -> int:
    """Number of subsets that these rows are in."""
    return sum(bool(rows & set(members.tolist())) for members in split.subsets().values())


def test_copies_of_other_subjects_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy within one subject is no leak."""
    store = import_clips(tmp_path, {0: 39, 4: 5})
    assert near_duplicates(store, np.arange(40)) == [(0, 39)]
    assert near_duplicates(store, np.arange(1, 40)) == []
    assert "subjects or videos: 1. If they are copies" in " ".join(capsys.readouterr().err.split())
    assert features(["verify", str(store.path), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["near_duplicates"]
    ids = store.table().clip_id
    assert line == f"{ids[0]} (0) and {ids[39]} (9)"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_pairs_do_not_depend_on_scale_or_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    store = import_clips(tmp_path, {0: 39, 7: 20, 20: 36})
    monkeypatch.setattr("features.maintenance.near_duplicates._BLOCK", 7)
    read = store.read_stream

    def scaled(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, valid = read(name, rows)
        return x * np.float32(scale), valid

    monkeypatch.setattr(store, "read_stream", scaled)
    assert near_duplicates(store, np.arange(40)) == [(0, 39), (7, 20), (7, 36), (20, 36)]


def test_subjects_with_copies_are_in_one_subset(tmp_path: Path) -> None:
    """Also through a third subject."""
    store = import_clips(tmp_path, {0: 39, 38: 20})
    table, rows = store.table(), np.arange(40)
    pairs = near_duplicates(store, rows)
    seen_apart = False
    for seed in range(10):
        split = make_split(table, rows, rows % 2, seed=seed, near_duplicates=pairs)
        subset_of = {row: name for name, members in split.subsets().items() for row in members.tolist()}
        assert len({subset_of[row] for row in (0, 20, 36, 39)}) == 1
        plain = make_split(table, rows, rows % 2, seed=seed)
        seen_apart |= (
            len({name for name, members in plain.subsets().items() if {0, 20, 39} & set(members)}) > 1
        )
    assert seen_apart
    split = build_task(store.path, LabelArgs()).split
    assert (
        len({name for name, members in split.subsets().items() if {0, 20, 39} & set(members.tolist())}) == 1
    )


def test_marks_that_put_copies_into_two_subsets_are_refused(tmp_path: Path) -> None:
    splits = dict.fromkeys(range(6), "train") | dict.fromkeys((6, 7), "val") | dict.fromkeys((8, 9), "test")
    store = import_clips(tmp_path, {0: 39}, splits)
    with pytest.raises(
        ValueError, match=r"nearly equal clips are in two subsets \(official\): 000000-\w+#0 \(0, tr"
    ):
        build_task(store.path, LabelArgs())


def test_short_clips_may_be_alike_by_chance(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones((20, 2, 3)), y=np.arange(20) % 2, subject=np.arange(20))
    argv = ["import", str(tmp_path / "f.npz"), "--out", str(tmp_path / "s.zarr"), "--name", "n", "--json"]
    assert features(argv) == 0
    assert near_duplicates(FeatureStore.open(tmp_path / "s.zarr"), np.arange(20)) == []
