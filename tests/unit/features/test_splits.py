"""Splits: no subject is in two subsets, classes keep their proportions, official splits are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.splits import (
    Split,
    extend_split,
    grouped_folds,
    leave_one_subject_out,
    make_split,
    require_disjoint,
    split_hash,
    subset_by_clip,
)
from features.store.table import ClipTable


def table_of(subjects: list[str], splits: list[str] | None = None) -> ClipTable:
    """A table with these subjects."""
    count = len(subjects)
    ids = [f"{index}.mp4#0" for index in range(count)]
    return ClipTable(
        clip_id=np.array(ids),
        source=np.array([name.split("#")[0] for name in ids]),
        subject=np.array(subjects, dtype=str),
        split=np.array(splits or [""] * count),
        fold=np.array([""] * count),
        labels={},
        label_names={},
        slices={},
        start_s=np.zeros(count),
        end_s=np.full(count, np.nan),
        state=np.ones(count, np.uint8),
        failure=np.array([""] * count),
    )


def subject_ids(num_subjects: int, clips_each: int) -> list[str]:
    """Subject names, one per clip."""
    return [f"p{index // clips_each}" for index in range(num_subjects * clips_each)]


def test_split_by_subject_keeps_class_proportions() -> None:
    """60/20/20; each subject is in one subset; classes have the proportions of the whole set."""
    subjects = subject_ids(25, 20)
    labels = (np.arange(500) % 5 == 0).astype(int)
    split = make_split(table_of(subjects), np.arange(500), labels, seed=0)
    require_disjoint(split, np.array(subjects))
    for rows, share in ((split.train, 0.6), (split.val, 0.2), (split.test, 0.2)):
        assert len(rows) / 500 == pytest.approx(share, abs=0.01)
        assert labels[rows].mean() == pytest.approx(0.2, abs=0.02)
    assert split.warnings == ()


def test_split_depends_on_the_seed() -> None:
    """Same seed, same split; another seed, another split."""
    table, labels = table_of(subject_ids(25, 4)), np.arange(100) % 2
    first, again, other = (make_split(table, np.arange(100), labels, seed=seed) for seed in (1, 1, 2))
    assert split_hash(first, table.clip_id) == split_hash(again, table.clip_id)
    assert split_hash(first, table.clip_id) != split_hash(other, table.clip_id)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=80), st.integers(0, 3))
def test_no_subject_is_in_two_subsets(subject: list[int], seed: int) -> None:
    """For any number of clips per subject; too few subjects are refused."""
    subjects = [f"p{index}" for index in subject]
    labels = np.arange(len(subject)) % 2
    if len(set(subject)) < 3:
        with pytest.raises(ValueError, match="too few for 3 separate subsets"):
            make_split(table_of(subjects), np.arange(len(subject)), labels, seed=seed)
        return
    split = make_split(table_of(subjects), np.arange(len(subject)), labels, seed=seed)
    subsets = [set(np.array(subjects)[rows]) for rows in split.subsets().values()]
    assert len(set().union(*subsets)) == sum(map(len, subsets))
    assert all(subsets)
    assert sorted(np.concatenate(list(split.subsets().values()))) == list(range(len(subject)))


def test_official_split_is_kept() -> None:
    """All three subsets are official."""
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    split = make_split(table_of(subject_ids(10, 1), splits), np.arange(10), np.arange(10) % 2, seed=0)
    assert split.description == "official"
    assert split.val.tolist() == [6, 7]
    assert split.test.tolist() == [8, 9]


def test_official_validation_becomes_test_where_there_is_no_test() -> None:
    """A new validation subset is taken from train by subject; the description says so."""
    splits = ["train"] * 20 + ["val"] * 5
    subjects = subject_ids(10, 2) + ["v1"] * 5
    split = make_split(table_of(subjects, splits), np.arange(25), np.arange(25) % 2, seed=0)
    assert split.test.tolist() == [20, 21, 22, 23, 24]
    assert len(split.val) == 4
    assert len(split.train) == 16
    assert "validation is used as test" in split.description
    assert "taken from train" in split.description


def test_clips_without_a_split_are_left_out_and_counted() -> None:
    """Their subject may be in any subset."""
    splits = ["train"] * 4 + ["val", "test", ""]
    split = make_split(table_of(subject_ids(7, 1), splits), np.arange(7), np.zeros(7, int), seed=0)
    assert 6 not in np.concatenate(list(split.subsets().values()))
    assert split.warnings == ("1 clips without a split are left out, because other clips have one",)


def test_subjects_without_a_split_are_train_if_val_and_test_are_official() -> None:
    """The same split as if they were marked train."""
    subjects, labels = subject_ids(12, 2), np.arange(24) // 2 % 2
    for held in (["test"] * 4, ["val"] * 2 + ["test"] * 2):
        left_open = make_split(table_of(subjects, [*held, *[""] * 20]), np.arange(24), labels, seed=0)
        marked = make_split(table_of(subjects, [*held, *["train"] * 20]), np.arange(24), labels, seed=0)
        for subset, rows in marked.subsets().items():
            assert left_open.subsets()[subset].tolist() == rows.tolist()
    assert left_open.description == "official val and test; clips without a split are train, by subject"


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_single_official_subset_is_kept(subset: str) -> None:
    """Clips without a split fill the other two, and the description says so."""
    splits = [subset] * 10 + [""] * 40
    split = make_split(table_of(subject_ids(25, 2), splits), np.arange(50), np.arange(50) // 2 % 2, seed=0)
    subsets = split.subsets()
    assert subsets.pop(subset).tolist() == list(range(10))
    assert all(len(rows) for rows in subsets.values())
    assert (
        split.description
        == f"official {subset}; clips without a split are {' and '.join(subsets)}, by subject"
    )


def test_clips_all_marked_train_are_split_by_subject() -> None:
    """As in a data set of which only the training part is published."""
    subjects, labels = subject_ids(10, 2), np.arange(20) // 2 % 2
    split = make_split(table_of(subjects, ["train"] * 20), np.arange(20), labels, seed=0)
    free = make_split(table_of(subjects), np.arange(20), labels, seed=0)
    assert split_hash(split, np.arange(20).astype(str)) == split_hash(free, np.arange(20).astype(str))
    assert split.description == f"{free.description}, because every clip is marked train"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"] * 6, "has test but not train and val, and only 0 subjects"),
        (["val"] * 3 + ["test"] * 3, "has val and test but not train, and only 0 subjects"),
        (["train"] * 5 + [""], "has train but not val and test, and only 1 subjects"),
        (["test"] * 3 + [""] * 3, "'p1' in .* and test"),
    ],
)
def test_official_splits_that_leave_a_subset_empty_are_refused(splits: list[str], message: str) -> None:
    """Also a subject with clips in test and clips without a split."""
    with pytest.raises(ValueError, match=message):
        make_split(table_of(["p0", "p0", "p1", "p1", "p2", "p3"], splits), np.arange(6), np.arange(6), seed=0)


def test_subject_in_two_official_subsets_is_an_error() -> None:
    """The error names the subject and the subsets."""
    table = table_of(["a", "b", "a", "c"], ["train", "val", "test", "test"])
    with pytest.raises(ValueError, match="'a' in train and test"):
        make_split(table, np.arange(4), np.zeros(4, int), seed=0)


def test_no_subjects_gives_a_warning_and_videos_stay_in_one_subset() -> None:
    """Windows of one video stay in one subset."""
    table = table_of([""] * 40)
    table.source[:] = [f"v{index // 4}.mp4" for index in range(40)]
    split = make_split(table, np.arange(40), np.arange(40) % 2, seed=0)
    (warning,) = split.warnings
    assert "no clip has a subject" in warning
    subsets = [set(table.source[rows]) for rows in split.subsets().values()]
    assert sum(map(len, subsets)) == 10


def videos_of(table: ClipTable, windows_each: int) -> ClipTable:
    """The same clips, as windows of longer videos."""
    sources = [f"v{row // windows_each}.mp4" for row in range(len(table.source))]
    ids = [f"{source}#{row}" for row, source in enumerate(sources)]
    start_s = 10.0 * np.arange(len(sources))
    times = {"start_s": start_s, "end_s": start_s + 10}
    return replace(table, source=np.array(sources), clip_id=np.array(ids), **times)


def num_shared(split: Split, table: ClipTable) -> int:
    """Number of videos in more than one subset."""
    subsets = [set(table.source[rows].tolist()) for rows in split.subsets().values()]
    return sum(map(len, subsets)) - len(set().union(*subsets))


def test_window_without_a_subject_stays_with_the_subject_of_its_video(tmp_path: Path) -> None:
    """Also in an extended split, and for subjects with several videos."""
    table = videos_of(table_of([f"p{row // 4}" if row % 2 == 0 else "" for row in range(80)]), 2)
    labels = np.arange(80) // 4 % 2
    split = make_split(table, np.arange(80), labels, seed=0)
    assert num_shared(split, table) == 0
    for rows in split.subsets().values():
        assert len(np.unique(rows // 4)) * 4 == len(rows)
    earlier_split(tmp_path, split, table)
    later = extend_split(table, np.arange(1, 80, 2), labels[1::2], tmp_path)
    for subset, rows in later.subsets().items():
        assert rows.tolist() == [row for row in split.subsets()[subset].tolist() if row % 2]


def test_windows_without_a_split_follow_their_video(tmp_path: Path) -> None:
    """If the other windows agree and have no subject; also in an extended split."""
    marks = ["test" if row % 2 == 0 and row < 20 else "" for row in range(40)]
    table, labels = videos_of(table_of([""] * 40, marks), 2), np.arange(40) // 2 % 2
    split = make_split(table, np.arange(40), labels, seed=0)
    assert split.test.tolist() == list(range(20))
    assert num_shared(split, table) == 0
    (tmp_path / "split.csv").write_text("clip_id,subject,split\nx#0,a,train\n", encoding="utf-8")
    later = extend_split(table, np.arange(40), labels, tmp_path)
    assert set(range(20)) <= set(later.test.tolist())
    assert num_shared(later, table) == 0
    assert not any("two subsets" in text for text in split.warnings + later.warnings)


def test_videos_in_two_official_subsets_are_kept_and_counted() -> None:
    marks = ["train", "train", "train", "test", "", "val", "val", "test"] + ["train"] * 4
    table = videos_of(table_of([""] * 12, marks), 4)
    split = make_split(table, np.arange(12), np.arange(12) % 2, seed=0)
    assert split.description == "official"
    assert (split.test.tolist(), split.val.tolist()) == ([3, 7], [5, 6])
    assert "1 clips without a split are left out, because other clips have one" in split.warnings
    assert any(
        text.startswith("2 videos without a subject have clips in two subsets") for text in split.warnings
    )
    named = replace(table, subject=np.array(["a", "", "", ""] + ["b"] * 8))
    with pytest.raises(ValueError, match="'b' in"):
        make_split(named, np.arange(12), np.arange(12) % 2, seed=0)


@pytest.mark.parametrize(
    ("end_s", "is_refused"), [(60.0, False), (60.0005, False), (61.0, True), (np.nan, True)]
)
def test_overlapping_windows_in_two_subsets_are_refused(end_s: float, is_refused: bool) -> None:
    """The error names the windows with their times; a window in between may be in the first one's subset."""
    marks = ["train", "train", "train", "train", "val", "val", "test", "test"]
    table = videos_of(table_of([""] * 8, marks), 8)
    table.end_s[2] = end_s  # 20 s to end_s in train; the first window of test starts at 60 s
    table.source[4:6] = "w.mp4"
    labels = np.arange(8) % 2
    if not is_refused:
        assert len(make_split(table, np.arange(8), labels, seed=0).train) == 4
        return
    end = "the end" if np.isnan(end_s) else "61.0 s"
    with pytest.raises(ValueError, match=rf"v0.mp4: 20.0 s to {end} in train and 60.0 s to 70.0 s in test"):
        make_split(table, np.arange(8), labels, seed=0)


def test_missing_class_is_a_warning() -> None:
    """The warning names the subset."""
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    split = make_split(
        table_of(subject_ids(8, 1), splits), np.arange(8), np.array([0, 1, 0, 1, 0, 1, 0, 0]), seed=0
    )
    assert split.warnings == ("test has no clip of 1 of the 2 classes",)


def test_a_part_of_the_rows_can_be_split() -> None:
    """A labelling that uses some clips splits those."""
    rows = np.arange(1, 60, 2)
    split = make_split(table_of(subject_ids(15, 4)), rows, np.arange(30) % 2, seed=0)
    assert set(np.concatenate(list(split.subsets().values())).tolist()) == set(rows.tolist())


def test_folds_hold_each_subject_out_once() -> None:
    """Grouped and stratified."""
    subjects = np.array(subject_ids(12, 10))
    labels = (np.arange(120) % 4 == 0).astype(int)
    folds = grouped_folds(labels, subjects, 4, seed=0)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(120))
    for train, held_out in folds:
        assert not set(subjects[train]) & set(subjects[held_out])
        assert labels[held_out].mean() == pytest.approx(0.25, abs=0.05)


def test_more_folds_than_subjects_are_refused() -> None:
    """The error has the number of subjects."""
    with pytest.raises(ValueError, match="must be 2 to 3, the number of subjects"):
        grouped_folds(np.zeros(6, int), np.array(subject_ids(3, 2)), 4, seed=0)


def test_leave_one_subject_out() -> None:
    """One fold per subject; clips without a subject are refused."""
    folds = leave_one_subject_out(np.array(["b", "a", "b"]))
    assert [held.tolist() for _, held in folds] == [[1], [0, 2]]
    with pytest.raises(ValueError, match="needs a subject for every clip"):
        leave_one_subject_out(np.array(["a", ""]))


def test_extended_split_keeps_known_subjects(tmp_path: Path) -> None:
    """New subjects are assigned by their own name, independent of the other subjects."""
    first = table_of(subject_ids(20, 5))
    split = make_split(first, np.arange(100), np.arange(100) % 2, seed=0)
    subsets = subset_by_clip(split, first.clip_id)
    lines = [f"{name},{first.subject[row]},{subsets[name]}" for row, name in enumerate(first.clip_id)]
    (tmp_path / "split.csv").write_text("clip_id,subject,split\n" + "\n".join(lines), encoding="utf-8")

    month = table_of([f"p{index // 5}" for index in range(300)])  # 20 known subjects, 40 new ones
    later = extend_split(month, np.arange(300), np.arange(300) % 2, tmp_path)
    for subset, rows in split.subsets().items():
        assert set(rows.tolist()) <= set(later.subsets()[subset].tolist())
    require_disjoint(later, month.subject)
    assert "40 new" in later.description
    assert len(later.test) / 300 == pytest.approx(0.2, abs=0.1)

    few = np.arange(250, 300)
    alone = extend_split(month, few, np.arange(50) % 2, tmp_path)
    for subset, rows in alone.subsets().items():
        assert set(rows.tolist()) <= set(later.subsets()[subset].tolist())


def test_extended_split_uses_the_manifest_split_for_new_subjects(tmp_path: Path) -> None:
    """Known subjects keep their subset, with a warning if the manifest holds them out."""
    (tmp_path / "split.csv").write_text(
        "clip_id,subject,split\n1#0,a,train\n2#0,b,val\n3#0,c,test\n4#0,d,train\n", encoding="utf-8"
    )
    subjects = ["a", "b", "c", "d", "e", "f", "g"]
    month = table_of(subjects, ["test", "train", "val", "", "test", "val", "train"])
    split = extend_split(month, np.arange(7), np.zeros(7), tmp_path)
    wanted = {"train": ["a", "d", "g"], "val": ["b", "f"], "test": ["c", "e"]}
    assert {subset: month.subject[rows].tolist() for subset, rows in split.subsets().items()} == wanted
    assert (
        "0 new subjects by the hash of their name, 3 new subjects by the manifest's split"
        in split.description
    )
    (warning,) = split.warnings
    assert warning.startswith("1 subjects (or videos) are held out in the manifest, but")


def earlier_split(folder: Path, split: Split, table: ClipTable) -> Path:
    subsets = subset_by_clip(split, table.clip_id)
    lines = [
        f"{clip},{subject},{subsets[clip]}\n"
        for clip, subject in zip(table.clip_id, table.subject, strict=True)
    ]
    (folder / "split.csv").write_text("clip_id,subject,split\n" + "".join(lines), encoding="utf-8")
    return folder


def test_extended_split_knows_renamed_subjects_by_their_clips(tmp_path: Path) -> None:
    """Also subjects whose names were removed; some of their clips may have lost their label."""
    labels = np.arange(60) % 2
    for before, after in (([""] * 60, subject_ids(60, 1)), (subject_ids(60, 1), [""] * 60)):
        first = table_of(before)
        split = make_split(first, np.arange(60), labels, seed=0)
        earlier_split(tmp_path, split, first)
        later = extend_split(table_of(after), np.arange(60), labels, tmp_path)
        assert split_hash(later, first.clip_id) == split_hash(split, first.clip_id)
        assert "0 new subjects by the hash of their name" in later.description
    table = table_of(["", "a", "a"])
    (tmp_path / "split.csv").write_text("clip_id,subject,split\n1.mp4#0,,val\n", encoding="utf-8")
    assert extend_split(table, np.array([0, 2]), np.zeros(2), tmp_path).val.tolist() == [2]


def test_extended_split_refuses_subjects_with_clips_in_two_subsets(tmp_path: Path) -> None:
    """The error names up to five."""
    first = table_of([""] * 14)
    split = Split(np.arange(0, 14, 2), np.array([1, 3]), np.arange(5, 14, 2), "")
    earlier_split(tmp_path, split, first)
    message = (
        "subject p0 in train and val, subject p1 in train and val, .*subject p4 in train and test and 2 more"
    )
    with pytest.raises(ValueError, match=message):
        extend_split(table_of(subject_ids(7, 2)), np.arange(14), np.zeros(14), tmp_path)


def test_same_clip_ids_with_other_subjects_count_as_new(tmp_path: Path) -> None:
    """If most have other subjects, with a warning; a single one may be a correction."""
    first = table_of(subject_ids(12, 1))
    split = make_split(first, np.arange(12), np.arange(12) % 2, seed=0)
    earlier_split(tmp_path, split, first)
    others = table_of([f"q{index}" for index in range(12)])
    later = extend_split(others, np.arange(12), np.arange(12) % 2, tmp_path)
    assert "12 new subjects by the hash of their name" in later.description
    assert any(text.startswith("12 clips have ids that") for text in later.warnings)
    corrected = table_of(["q0", *subject_ids(12, 1)[1:]])
    later = extend_split(corrected, np.arange(12), np.arange(12) % 2, tmp_path)
    assert split_hash(later, first.clip_id) == split_hash(split, first.clip_id)


def test_unusable_earlier_split_is_refused(tmp_path: Path) -> None:
    """A subject in two subsets, an unknown subset, no file."""
    table = table_of(["a", "b"])
    with pytest.raises(ValueError, match=r"it has no split\.csv"):
        extend_split(table, np.arange(2), np.zeros(2), tmp_path)
    file = tmp_path / "split.csv"
    file.write_text("clip_id,subject,split\n1#0,a,train\n2#0,a,test\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3: subject a is in train and test"):
        extend_split(table, np.arange(2), np.zeros(2), tmp_path)
    file.write_text("clip_id,subject,split\n1#0,a,middle\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: expected"):
        extend_split(table, np.arange(2), np.zeros(2), tmp_path)


def test_split_hash_depends_on_the_subsets() -> None:
    """The same clips in other subsets give another hash; order does not matter."""
    ids = np.array(["a", "b", "c"])
    one = Split(np.array([0]), np.array([1]), np.array([2]), "")
    other = Split(np.array([1]), np.array([0]), np.array([2]), "")
    assert split_hash(one, ids) != split_hash(other, ids)
    assert split_hash(one, ids) == split_hash(Split(*one.subsets().values(), "x"), ids)
