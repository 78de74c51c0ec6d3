"""Labellings: order, merging, binarizing, unlabelled clips."""

import itertools

import numpy as np
import pytest

from features.labels import class_indices, make_labelling

LEVELS = ("0", "1", "2", "3")


def test_labels_fix_the_order_and_leave_others_out() -> None:
    """The last of --labels is the positive class; names not listed count as unlabelled."""
    stored = ("engaged", "distracted", "absent")
    labelling = make_labelling(stored, labels=("distracted", "engaged"))
    assert labelling.names == ("distracted", "engaged")
    assert labelling.task == "binary"
    assert class_indices(labelling, np.array([0, 1, 2, -1]), stored).tolist() == [1, 0, -1, -1]


def test_binarize_at_splits_levels_by_value() -> None:
    """--binarize-at 2 puts levels 0 and 1 below and levels 2 and 3 above, in any stored order."""
    stored = ("2", "0", "3", "1")
    labelling = make_labelling(stored, binarize_at=2)
    assert class_indices(labelling, np.array([0, 1, 2, 3]), stored).tolist() == [1, 0, 1, 0]


def test_merge_makes_one_class_of_several() -> None:
    """--merge not=a+b gives the new name the position of its first member."""
    stored = ("concentrating", "not", "drowsy")
    labelling = make_labelling(stored, merge=("not+drowsy",), labels=("not+drowsy", "concentrating"))
    assert class_indices(labelling, np.array([0, 1, 2]), stored).tolist() == [1, 0, 0]
    named = make_labelling(stored, merge=("away=not+drowsy",))
    assert named.names == ("concentrating", "away")


def test_merging_into_an_existing_name_adds_to_it() -> None:
    """In any order of names; no class is lost."""
    for stored in itertools.permutations(("distracted", "off", "away", "engaged")):
        for merge in ("distracted = off+away", "distracted=distracted+off+away"):
            labelling = make_labelling(stored, merge=(merge,), labels=("distracted", "engaged"))
            assert labelling.sources == (("distracted", "off", "away"), ("engaged",))
        assert set(make_labelling(stored, merge=("distracted=off+away",)).names) == {"distracted", "engaged"}


def test_levels_are_ordered_by_value() -> None:
    """A store appends names, so a rare level may come last. Codes still follow the stored order."""
    stored = ("1", "2", "10", "0.5")
    labelling = make_labelling(stored, task="ordinal")
    assert labelling.names == ("0.5", "1", "2", "10")
    assert class_indices(labelling, np.array([0, 1, 2, 3]), stored).tolist() == [1, 2, 3, 0]
    assert make_labelling(stored, merge=("1+2",)).names == ("0.5", "1+2", "10")
    assert make_labelling(stored, labels=stored).names == stored
    assert make_labelling(("some", "none", "lots")).names == ("some", "none", "lots")


def test_levels_with_decimals_are_binarized_by_value() -> None:
    """By value and not by position; names that are not numbers are binarized by position."""
    stored = ("3.0", "1.0", "4.0", "-2", "2.0")
    labelling = make_labelling(stored, binarize_at=3)
    assert class_indices(labelling, np.arange(5), stored).tolist() == [1, 0, 1, 0, 0]
    labelling = make_labelling(("none", "some", "lots", "nan"), binarize_at=2, labels=("few", "many"))
    assert labelling.names == ("few", "many")
    assert labelling.sources == (("none", "some"), ("lots", "nan"))


def test_binarize_refuses_names_among_numbers() -> None:
    """The error names the label. With --labels, levels are listed, or two names name the classes."""
    stored = (*LEVELS, "unclear")
    for labels in ((), ("low", "high")):
        with pytest.raises(ValueError, match=r"not numbers: unclear; .* --labels 0,1,2,3$"):
            make_labelling(stored, binarize_at=2, labels=labels)
    labelling = make_labelling(stored, binarize_at=2, labels=LEVELS)
    assert labelling.names == ("below_2", "at_least_2")
    assert class_indices(labelling, np.arange(5), stored).tolist() == [0, 0, 1, 1, -1]
    with pytest.raises(ValueError, match="--labels 0,1 without --binarize-at"):
        make_labelling(("0", "1", "unclear"), binarize_at=1)
    with pytest.raises(ValueError, match="no label '9'"):
        make_labelling(LEVELS, binarize_at=2, labels=("0", "1", "9"))


def test_merged_levels_must_be_in_one_class() -> None:
    """For any name of the group; otherwise an error."""
    for merge in ("2+3", "high=2+3"):
        labelling = make_labelling(LEVELS, binarize_at=2, merge=(merge,))
        assert labelling.sources == (("0", "1"), ("2", "3"))
    both = make_labelling(LEVELS, binarize_at=2, merge=("0+1", "2+3"), labels=("low", "high"))
    assert (both.names, both.sources) == (("low", "high"), (("0", "1"), ("2", "3")))
    with pytest.raises(
        ValueError, match=r"--binarize-at 2 separates .* \(1\+2: 1, 2\): merge only labels below 2"
    ):
        make_labelling(LEVELS, binarize_at=2, merge=("1+2",))
    with pytest.raises(ValueError, match=r"not numbers: 3\+unclear; .* --labels 0,1,2$"):
        make_labelling((*LEVELS, "unclear"), binarize_at=2, merge=("3+unclear",))


def test_names_that_no_clip_has_make_no_class() -> None:
    """For example a corrected typo, unless --labels lists it. Merged names may be unused; positions are
    counted as before."""
    stored = ("distracted", "enagged", "engaged")
    assert make_labelling(stored, unused=["enagged"]).names == ("distracted", "engaged")
    requested = make_labelling(stored, unused=["enagged"], labels=("enagged", "engaged"))
    assert requested.names == ("enagged", "engaged")
    merged = make_labelling(stored, unused=["enagged"], merge=("engaged+enagged",))
    assert merged.sources == (("distracted",), ("engaged", "enagged"))
    assert make_labelling((*LEVELS, "2?"), unused=["2?"], binarize_at=2).sources == (("0", "1"), ("2", "3"))
    placed = make_labelling(("none", "some", "lots"), unused=["none"], binarize_at=1)
    assert placed.sources == (("none",), ("some", "lots"))


def test_tasks_follow_the_number_of_classes_unless_requested() -> None:
    """Ordinal only if requested."""
    assert make_labelling(LEVELS).task == "multiclass"
    assert make_labelling(LEVELS, task="ordinal").task == "ordinal"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("bored", "0")}, "bored"),
        ({"merge": ("0+9",)}, "'9'"),
        ({"binarize_at": 7}, "one class empty"),
        ({"task": "binary"}, "binary task needs two"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    """The error names a label or level that does not exist."""
    with pytest.raises(ValueError, match=message):
        make_labelling(LEVELS, **options)


def test_same_labelling_fits_another_stores_codes() -> None:
    """Codes differ between stores; names decide."""
    labelling = make_labelling(("a", "b"))
    assert class_indices(labelling, np.array([0, 1]), ("b", "a")).tolist() == [1, 0]
