"""Labellings: order, merging, binarizing, unlabelled clips."""

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
    """--binarize-at 2 puts levels 0 and 1 below, 2 and 3 above, whatever order they were met in."""
    stored = ("2", "0", "3", "1")
    labelling = make_labelling(stored, binarize_at=2)
    assert class_indices(labelling, np.array([0, 1, 2, 3]), stored).tolist() == [1, 0, 1, 0]


def test_merge_makes_one_class_of_several() -> None:
    """--merge not=a+b gives the new name the place of its first member."""
    stored = ("concentrating", "not", "drowsy")
    labelling = make_labelling(stored, merge=("not+drowsy",), labels=("not+drowsy", "concentrating"))
    assert class_indices(labelling, np.array([0, 1, 2]), stored).tolist() == [1, 0, 0]
    named = make_labelling(stored, merge=("away=not+drowsy",))
    assert named.names == ("concentrating", "away")


def test_tasks_follow_the_number_of_classes_unless_asked() -> None:
    """Ordinal only when asked for."""
    assert make_labelling(LEVELS).task == "multiclass"
    assert make_labelling(LEVELS, task="ordinal").task == "ordinal"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ("bored", "0")}, "bored"),
        ({"merge": ("0+9",)}, "'9'"),
        ({"binarize_at": 7}, "one side empty"),
        ({"task": "binary"}, "binary task needs two"),
    ],
)
def test_wrong_options_are_named(options: dict, said: str) -> None:
    """A name or level that does not exist is said in the error."""
    with pytest.raises(ValueError, match=said):
        make_labelling(LEVELS, **options)


def test_same_labelling_fits_another_stores_codes() -> None:
    """Codes differ between stores; names decide."""
    labelling = make_labelling(("a", "b"))
    assert class_indices(labelling, np.array([0, 1]), ("b", "a")).tolist() == [1, 0]
