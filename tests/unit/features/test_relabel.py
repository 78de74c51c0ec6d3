"""Relabelling: a row gets the labels of the clip that it is a window of, also if clips overlap."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.__main__ import main
from features.maintenance.relabel import relabel
from features.manifest import Clip, windows
from features.store.store import FeatureStore, plan
from tests.support.small_store import RECIPE

WINDOW_S = 2.0
"""Of the small store's recipe."""


def clip(start_s: float, end_s: float | None, label: str) -> Clip:
    return Clip(f"a.mp4#{round(start_s * 1000)}", Path("a.mp4"), start_s, end_s, labels={"label": label})


def planned(path: Path, clips: list[Clip], duration_s: float) -> FeatureStore:
    cut = [window for one in clips for window in windows(one, duration_s, WINDOW_S)]
    return plan(path, cut, RECIPE, numerics={})


def labels(path: Path) -> list[str]:
    table = FeatureStore.open(path).table()
    return [table.label_names["label"][code] for code in table.labels["label"]]


def test_sliding_segments_keep_their_own_labels(tmp_path: Path) -> None:
    """With the command line, and one corrected label."""
    path = tmp_path / "s.zarr"
    planned(path, [clip(start, start + 2, "01"[start % 2]) for start in range(5)], 6)
    lines = "".join(f"a.mp4,{label},{start},{start + 2}\n" for start, label in enumerate("01110"))
    (tmp_path / "labels.csv").write_text("path,label,start_s,end_s\n" + lines, encoding="utf-8")
    assert main(["label", str(path), str(tmp_path / "labels.csv")]) == 0
    assert labels(path) == ["0", "1", "1", "1", "0"]


def test_row_gets_the_label_of_the_clip_with_a_window_at_its_start(tmp_path: Path) -> None:
    """Clips of several windows, in any order; a clip's start has priority over another clip's dropped
    segment."""
    path = tmp_path / "s.zarr"
    clips = [clip(0, 6, "long"), clip(1, 5, "odd"), clip(6, 8.9, "ends"), clip(8, 10, "starts")]
    planned(path, clips, 10)
    wanted = ["long", "long", "long", "odd", "odd", "ends", "starts"]
    assert labels(path) == wanted
    for order in (clips, clips[::-1]):
        done = relabel(path, order)
        assert (done.corrected, done.unnamed, done.unknown) == ((), (), ())
    relabel(path, [replace(one, labels={"label": one.labels["label"].upper()}) for one in clips[::-1]])
    assert labels(path) == [label.upper() for label in wanted]


def test_row_without_a_matching_clip_does_not_change(tmp_path: Path) -> None:
    """With one or two clips around it: it must not get the label of a neighbour."""
    path = tmp_path / "s.zarr"
    planned(path, [clip(0, None, "whole")], 8)
    done = relabel(path, [clip(0.5, 3, "first"), clip(1, 5.5, "second"), clip(6.0004, 7, "rounded")])
    assert labels(path) == ["whole", "whole", "whole", "rounded"]
    assert done.unnamed == ("a.mp4#0", "a.mp4#2000", "a.mp4#4000")
    sliding = tmp_path / "t.zarr"
    planned(sliding, [clip(start, start + 2, "old") for start in (0, 1, 3)], 6)
    assert relabel(sliding, [clip(0, 2, "new")]).unnamed == ("a.mp4#1000", "a.mp4#3000")
    assert labels(sliding) == ["new", "old", "old"]


def test_clip_that_is_not_listed_stays_so(tmp_path: Path) -> None:
    """Its features may be of a replaced video; its label is corrected in case it returns."""
    path = tmp_path / "s.zarr"
    planned(path, [clip(0, None, "old")], 6)
    planned(path, [clip(0, None, "old")], 4)
    relabel(path, [clip(0, None, "new")])
    assert FeatureStore.open(path).listed().tolist() == [True, True, False]
    planned(path, [clip(0, None, "new")], 6)
    assert labels(path) == ["new"] * 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40).map(lambda k: k / 4), st.none() | st.integers(1, 30).map(lambda k: k / 4)
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_the_manifest_that_a_store_was_made_from_changes_nothing(spans, random) -> None:
    """For any overlaps and any order of the clips."""
    clips: list[Clip] = []
    taken: set[str] = set()
    for start_s, length_s in spans:
        one = clip(start_s, None if length_s is None else start_s + length_s, f"{len(clips)}")
        names = {window.clip_id for window in windows(one, 12, WINDOW_S)}
        if not names & taken:  # clips that share a window are refused by the store
            taken |= names
            clips.append(one)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zarr"
        before = planned(path, clips, 12).table().labels["label"]
        done = relabel(path, random.sample(clips, len(clips)))
        assert (done.corrected, done.unnamed, done.unknown) == ((), (), ())
        np.testing.assert_array_equal(FeatureStore.open(path).table().labels["label"], before)
