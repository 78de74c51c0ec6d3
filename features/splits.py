"""Train, validation and test subsets, grouped by subject.

Official splits of the manifest are kept. Otherwise subjects are distributed so that each subset has the
classes in the same proportions (stratified). No subject is ever in two subsets: `require_disjoint` checks
every split. Clips without a subject are grouped by video.

N rows of a store.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from features.cli import UserError
from features.manifest import SUBSETS
from features.store.table import ClipTable, group_names, groups_of, only_value, values_by_source

Masks = dict[str, np.ndarray]
"""(n,) bool by subset: which of n clips it contains."""
VAL_SHARE, TEST_SHARE = 0.2, 0.2
"""Shares of the clips."""
_RESTARTS = 20
"""Number of random orders in which groups are assigned; the most even result is kept."""
_FEW_GROUPS = 400
"""Above this number of groups, one order is as even as the best of many."""

OVERLAP_S = 0.001
"""Windows that share less time than this do not overlap: times in tables are rounded."""


@dataclass(frozen=True)
class Split:
    """Rows of a store in each subset."""

    train: np.ndarray
    """Row indices, ascending; val and test likewise."""
    val: np.ndarray
    test: np.ndarray
    description: str
    """One line that says how this split was made."""
    warnings: tuple[str, ...] = ()

    def subsets(self) -> dict[str, np.ndarray]:
        """The rows of the three subsets by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def make_split(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    val_share: float = VAL_SHARE,
    test_share: float = TEST_SHARE,
    near_duplicates: Sequence[tuple[int, int]] = (),
    groups: np.ndarray | None = None,
) -> Split:
    """The split of these rows: the official one, or one by subject, stratified by class.

    rows: row indices. labels: (len(rows),) class index of each. near_duplicates: pairs of rows that must be
    in one subset. groups: (len(rows),) str, what stays in one subset if that is not the subject.

    With a test share of 0 there is no test subset: an official split without one is kept.

    If only train and validation are official, validation becomes test, and a new validation subset is taken
    from train by subject. Clips without a split are left out if train and another subset are official;
    otherwise they fill the subsets that no clip is assigned to. A clip without a subject takes the split of
    the other clips of its video. If all clips are marked train, they are distributed to three subsets. A
    warning counts videos that are in two subsets.

    Raises UserError when a subject or a part of a video is in two subsets, or there are too few subjects for
    three subsets.
    """
    apart = table.subject if groups is None else np.full(len(table.subject), "", groups.dtype)
    if groups is not None:
        apart[rows] = groups
    groups = joined_groups(groups_of(table, rows) if groups is None else groups, rows, near_duplicates)
    marks = _marks(table, rows)
    left_out: tuple[str, ...] = ()
    masks = {subset: marks == subset for subset in SUBSETS}
    marked = [subset for subset in SUBSETS if masks[subset].any()]
    if test_share == 0:
        masks, description = _without_test(masks, marked, labels, groups, val_share, seed)
    elif "train" in marked and len(marked) > 1:
        masks, description = _official(masks, labels, groups, val_share, seed)
        if unnamed := int((marks == "").sum()):
            left_out = (f"{unnamed} clips without a split are left out, because other clips have one",)
    elif not marked or masks["train"].all():
        shares = (1 - val_share - test_share, val_share, test_share)
        masks = _assigned(np.ones(len(rows), bool), SUBSETS, labels, groups, shares, seed)
        description = f"by subject, stratified by class, seed {seed}"
        description += ", because every clip is marked train" if marked else ""
    else:
        masks, description = _filled(masks, labels, groups, val_share, test_share, seed)
    return _checked(table, rows, labels, groups, masks, description, left_out, apart=apart)


def has_official_subsets(table: ClipTable, rows: np.ndarray) -> bool:
    """Whether the manifest says what is held out: some clips are marked val or test."""
    return bool(np.isin(_marks(table, rows), ("val", "test")).any())


def joined_groups(groups: np.ndarray, rows: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The groups (n,) with one name for all groups that pairs of rows connect; other rows are ignored."""
    if not pairs:
        return groups
    names, index = np.unique(groups, return_inverse=True)
    group_of = dict(zip(rows.tolist(), index.tolist(), strict=True))
    linked = [(group_of[a], group_of[b]) for a, b in pairs if a in group_of and b in group_of]
    first, second = np.array(linked, np.int64).reshape(-1, 2).T
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(len(names), len(names)))
    _, component = connected_components(edges, directed=False)
    representative = dict(zip(component.tolist(), names.tolist(), strict=True))
    return np.array([representative[part] for part in component[index].tolist()], dtype=str)


def extend_split(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    earlier: Path,
    *,
    val_share: float = VAL_SHARE,
    test_share: float = TEST_SHARE,
) -> Split:
    """The split of an earlier run, extended to new subjects.

    Subjects of the earlier run keep their subset. A new subject gets the split of the manifest, or else a
    subset by the hash of its name. Subjects with a new name are recognised by their clip ids.

    earlier: the `split.csv` of the earlier run (columns clip_id, subject, split), or the run's folder. The
    subset of a new subject depends only on its own split or name, so it is the same in every store. A warning
    counts subjects whose manifest split is held out (val, test), but that the earlier run trained on or used
    for validation.

    Raises UserError when the file cannot be used or has a subject's clips in two subsets.
    """
    file = Path(earlier) / "split.csv" if Path(earlier).is_dir() else Path(earlier)
    known, clips = _earlier_subsets(file)
    same = known_rows(table, clips)
    known |= _subsets_of_renamed(table, same, known, clips, file)
    test_share = test_share if "test" in known.values() else 0.0
    groups = groups_of(table, rows)
    marked = list(zip(groups.tolist(), _marks(table, rows).tolist(), strict=True))
    subsets = np.array(
        [known.get(group) or mark or _hashed_subset(group, val_share, test_share) for group, mark in marked],
        str,
    )
    placed = {group for group, mark in marked if mark and group not in known}
    hashed = {group for group, mark in marked if not mark and group not in known}
    seen = {
        group
        for group, mark in marked
        if mark and SUBSETS.index(known.get(group, mark)) < SUBSETS.index(mark)
    }
    description = f"the split of {file.parent.name}, and {len(hashed)} new subjects by the hash of their name"
    description += f", {len(placed)} new subjects by the manifest's split" if placed else ""
    others = 0 if same.any() else sum(clip in clips for clip in table.clip_id.tolist())
    masks = {subset: subsets == subset for subset in SUBSETS}
    kept = _earlier_warnings(file.parent.name, len(seen), others)
    return _checked(table, rows, labels, groups, masks, description, kept=kept)


def grouped_folds(
    labels: np.ndarray, subjects: np.ndarray, k: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """K pairs (train, held out) of indices into `labels`, int64; each subject is held out once.

    labels: (N,) class indices. subjects: (N,) str; a clip with '' is a group of its own.

    Raises UserError for k below 2 or above the number of subjects.
    """
    groups = np.array([name or f"clip {index}" for index, name in enumerate(subjects.tolist())], str)
    num_groups = len(np.unique(groups))
    if not 2 <= k <= num_groups:
        raise UserError(f"--folds must be 2 to {num_groups}, the number of subjects; got {k}")
    fold = _assign(labels, groups, (1 / k,) * k, seed)
    return [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(k)]


def leave_one_subject_out(subjects: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each subject, in order of name, (indices of the others' clips, indices of this subject's clips).

    Raises UserError when clips have no subject or there are fewer than two subjects.
    """
    names = np.unique(subjects)
    if "" in names.tolist() or len(names) < 2:
        raise UserError(
            "leave-one-subject-out needs a subject for every clip, and at least two subjects; got "
            f"{len(set(names.tolist()) - {''})} subjects and {int((subjects == '').sum())} clips without one"
        )
    return [(np.flatnonzero(subjects != name), np.flatnonzero(subjects == name)) for name in names]


def require_disjoint(split: Split, subjects: np.ndarray) -> None:
    """Check that no subject is in two subsets.

    subjects: (N,) of the whole table, '' = unknown.

    Raises UserError naming up to five subjects and their subsets.
    """
    subsets_of: dict[str, list[str]] = {}
    for subset, rows in split.subsets().items():
        for name in np.unique(subjects[rows]).tolist():
            subsets_of.setdefault(name, []).append(subset)
    shared = [
        f"{name!r} in {' and '.join(found)}" for name, found in subsets_of.items() if name and len(found) > 1
    ]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise UserError(
            f"subjects in two subsets of the split ({split.description}): {', '.join(shared[:5])}{more}"
        )
    rows = np.concatenate(list(split.subsets().values()))
    assert len(np.unique(rows)) == len(rows)


def require_no_overlap(split: Split, table: ClipTable) -> None:
    """Check that windows of one video in two subsets do not overlap in time; such frames would be in both.

    Raises UserError naming up to five pairs with their times in seconds.
    """
    clips = [(int(row), subset) for subset, rows in split.subsets().items() for row in rows]
    latest: dict[str, dict[str, tuple[float, str]]] = {}  # by video and subset: (end, window)
    found = []
    for row, subset in sorted(clips, key=lambda clip: table.start_s[clip[0]]):
        start_s, end_s = float(table.start_s[row]), float(table.end_s[row])
        end_s = end_s if end_s == end_s else np.inf  # NaN: up to the end of the video
        to = f"{end_s:.1f} s" if end_s < np.inf else "the end"
        window = f"{start_s:.1f} s to {to} in {subset}"
        ends = latest.setdefault(str(table.source[row]), {})
        found += [
            f"{table.source[row]}: {other} and {window}"
            for name, (other_end_s, other) in ends.items()
            if name != subset and other_end_s > start_s + OVERLAP_S
        ]
        ends[subset] = max(ends.get(subset, (end_s, window)), (end_s, window))
    if found:
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"windows of one video in two subsets overlap in time ({'; '.join(found[:5])}{more}): give them "
            "the same split, or windows that do not overlap"
        )


def known_rows(
    table: ClipTable, subsets: Mapping[str, tuple[str, str]], *, is_training_store: bool = False
) -> np.ndarray:
    """(N,) bool: rows of a store that are clips of a run. subsets: (subject, subset) by clip, from split.csv.

    Two data sets may use the same clip ids. So if most of the shared ids have another subject in the store
    than in the run, none of them counts as the run's. Exception: the store that the run was trained on
    (`is_training_store`), if each of its subjects has exactly one new name.
    """
    known = np.array([clip in subsets for clip in table.clip_id.tolist()], bool)
    pairs = [
        (subject, subsets[clip][0])
        for clip, subject in zip(table.clip_id[known].tolist(), table.subject[known].tolist(), strict=True)
    ]
    num_differing = sum(bool(in_store and in_run and in_store != in_run) for in_store, in_run in pairs)
    names = {pair for pair in pairs if all(pair)}
    is_one_to_one = all(len({pair[index] for pair in names}) == len(names) for index in (0, 1))
    is_renamed = is_training_store and is_one_to_one
    return known & (is_renamed or num_differing <= len(pairs) / 2)


def split_hash(split: Split, clip_ids: np.ndarray) -> str:
    """Twelve hex digits: a hash of the clips in each subset. clip_ids: (N,) of the whole table."""
    digest = hashlib.sha256()
    for subset, rows in split.subsets().items():
        digest.update("\n".join([subset, *sorted(np.asarray(clip_ids)[rows].tolist())]).encode() + b"\0")
    return digest.hexdigest()[:12]


def _checked(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    masks: Masks,
    description: str,
    left_out: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    apart: np.ndarray | None = None,
) -> Split:
    """The split of these masks with all its warnings; `left_out` and `kept` are warnings to include.

    Raises UserError when a subject (a name in `apart`, of the whole table) is in two subsets.
    """
    warnings = _subject_warnings(table, rows) + left_out + _shared_video_warnings(groups, masks)
    warnings += _class_warnings(labels, masks) + kept
    split = Split(
        **{subset: rows[masks[subset]] for subset in SUBSETS}, description=description, warnings=warnings
    )
    require_disjoint(split, table.subject if apart is None else apart)
    require_no_overlap(split, table)
    return split


def _marks(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) str: the manifest's split of each row, '' = none. A row without a split and a subject gets
    the split of the other rows of its video, if they agree."""
    marks, sources = table.split[rows].tolist(), table.source[rows].tolist()
    marked = values_by_source(marks, sources)
    clips = zip(table.subject[rows].tolist(), marks, sources, strict=True)
    return np.array(
        [mark or ("" if subject else only_value(marked.get(source, ()))) for subject, mark, source in clips],
        str,
    )


def _official(
    masks: Masks, labels: np.ndarray, groups: np.ndarray, val_share: float, seed: int
) -> tuple[Masks, str]:
    """(subsets, description) if train and at least one other subset are official."""
    if masks["val"].any() and masks["test"].any():
        return masks, "official"
    if masks["val"].any():
        description = (
            "official train; official validation is used as test; validation is taken from train by subject"
        )
    else:
        description = "official train and test; validation is taken from train by subject"
    divided = _assigned(masks["train"], ("train", "val"), labels, groups, (1 - val_share, val_share), seed)
    return divided | {"test": masks["val"] | masks["test"]}, description


def _without_test(
    masks: Masks, marked: Sequence[str], labels: np.ndarray, groups: np.ndarray, val_share: float, seed: int
) -> tuple[Masks, str]:
    """(subsets, description) without a test subset; train takes clips without a split if the others have
    one."""
    if list(marked) == ["train", "val"]:
        return masks | {"train": ~masks["val"]}, "the given train and validation, no test"
    everyone = np.ones(len(labels), bool)
    divided = _assigned(everyone, ("train", "val"), labels, groups, (1 - val_share, val_share), seed)
    return divided | {"test": ~everyone}, f"train and validation, stratified by class, no test, seed {seed}"


def _filled(
    masks: Masks, labels: np.ndarray, groups: np.ndarray, val_share: float, test_share: float, seed: int
) -> tuple[Masks, str]:
    """(subsets, description): official subsets are kept, clips without a split fill the missing subsets.

    Raises UserError when too few subjects are without a split.
    """
    marked = [subset for subset in SUBSETS if masks[subset].any()]
    missing = [subset for subset in SUBSETS if subset not in marked]
    unmarked = ~np.any(list(masks.values()), axis=0)
    count = len(np.unique(groups[unmarked]))
    if count < len(missing):
        raise UserError(
            f"the manifest has {' and '.join(marked)} but not {' and '.join(missing)}, and only {count} "
            "subjects (or videos) have no split: set split for clips of all three subsets, or for none"
        )
    held = {"val": val_share, "test": test_share}
    shares = [held[subset] for subset in missing if subset in held]
    shares = [1 - sum(shares), *shares] if "train" in missing else [share / sum(shares) for share in shares]
    description = (
        f"official {' and '.join(marked)}; clips without a split are {' and '.join(missing)}, by subject"
    )
    return masks | _assigned(unmarked, missing, labels, groups, shares, seed), description


def _assigned(
    chosen: np.ndarray,
    subsets: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
    shares: Sequence[float],
    seed: int,
) -> Masks:
    """Masks that assign the chosen clips, (n,) bool, to these subsets, whole groups at a time."""
    subset = np.full(len(chosen), -1)
    subset[chosen] = _assign(labels[chosen], groups[chosen], shares, seed)
    return {name: subset == index for index, name in enumerate(subsets)}


def _assign(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """(n,) subset index of each clip: groups stay whole, and each subset gets its share of each class.

    Greedy: large groups first, each to the subset that comes nearest to its target. Equal groups are tried in
    several random orders, and the most even result is kept. Same idea as scikit-learn's
    StratifiedGroupKFold, with unequal shares.

    Raises UserError when there are fewer groups than subsets.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise UserError(
            f"{len(names)} subjects (or videos) are too few for {len(shares)} separate subsets: "
            "add recordings of other subjects, or use --design folds"
        )
    _, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    weight = 1 / counts.sum(axis=0)
    target = np.asarray(shares)[:, None] * np.ones_like(weight)
    counts = counts * weight
    generator = np.random.default_rng(seed)
    best, best_cost = np.zeros(len(names), np.int64), np.inf
    for _ in range(_RESTARTS if len(names) <= _FEW_GROUPS else 1):
        order = generator.permutation(len(names))
        order = order[np.argsort(-counts[order].max(axis=1), kind="stable")]
        subset_of, cost = _assign_in_order(counts, target, order)
        if cost < best_cost - 1e-12:
            best, best_cost = subset_of, cost
    return best[group_of]


def _assign_in_order(counts: np.ndarray, target: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, float]:
    """(subset index of each group, cost of the assignment); groups are assigned one by one in this order."""
    have = np.zeros_like(target)
    members = np.zeros(len(target), np.int64)
    subset_of = np.zeros(len(order), np.int64)
    for position, group in enumerate(order):
        # Squared distance of each subset from its target in each class, relative to the target.
        before = (((have - target) ** 2) / target).sum(axis=1)
        after = (((have + counts[group] - target) ** 2) / target).sum(axis=1)
        increase = after - before
        if len(order) - position <= int((members == 0).sum()):  # the last groups go to empty subsets
            increase[members > 0] = np.inf
        subset = int(np.argmin(increase))
        have[subset] += counts[group]
        members[subset] += 1
        subset_of[group] = subset
    return subset_of, float((((have - target) ** 2) / target).sum())


def _earlier_subsets(file: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """(subset by group, (subject, subset) by clip) of an earlier run's split.csv.

    Raises UserError when the file is missing or damaged, or has a group in two subsets.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} is not a run with a split: it has no {file.name}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    subsets: dict[str, str] = {}
    clips: dict[str, tuple[str, str]] = {}
    subjects = [line.get("subject") or "" for line in lines]
    groups = group_names(subjects, [(line.get("clip_id") or "").rpartition("#")[0] for line in lines])
    for number, (line, subject, group) in enumerate(zip(lines, subjects, groups, strict=True), start=2):
        clip, subset = line.get("clip_id") or "", line.get("split") or ""
        if subset not in SUBSETS or not clip:
            raise UserError(
                f"{file} line {number}: expected clip_id,subject,split with one of {', '.join(SUBSETS)}"
            )
        if subsets.setdefault(group, subset) != subset:
            raise UserError(f"{file} line {number}: {group} is in {subsets[group]} and {subset}")
        clips[clip] = subject, subset
    return subsets, clips


def _subsets_of_renamed(
    table: ClipTable,
    same: np.ndarray,
    known: Mapping[str, str],
    clips: Mapping[str, tuple[str, str]],
    file: Path,
) -> dict[str, str]:
    """Subset by group, for groups that the earlier split does not name but whose clips it has.

    same: (N,) bool, rows that are clips of the earlier run.

    Raises UserError naming up to five groups whose clips were in two subsets.
    """
    groups = groups_of(table, np.flatnonzero(same)).tolist()
    subsets_of: dict[str, set[str]] = {}
    for group, clip in zip(groups, table.clip_id[same].tolist(), strict=True):
        if group not in known:
            subsets_of.setdefault(group, set()).add(clips[clip][1])
    shared = [
        f"{group} in {' and '.join(subset for subset in SUBSETS if subset in found)}"
        for group, found in subsets_of.items()
        if len(found) > 1
    ]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise UserError(
            f"the split {file} cannot be kept: it has clips of one subject in two subsets: "
            f"{', '.join(shared[:5])}{more}"
        )
    return {group: found.pop() for group, found in subsets_of.items()}


def _hashed_subset(group: str, val_share: float, test_share: float) -> str:
    """The subset of a new group, from the hash of its name alone."""
    fraction = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    return "test" if fraction < test_share else "val" if fraction < test_share + val_share else "train"


def _subject_warnings(table: ClipTable, rows: np.ndarray) -> tuple[str, ...]:
    unknown = int((table.subject[rows] == "").sum())
    if not unknown:
        return ()
    share = "no clip" if unknown == len(rows) else f"{unknown} of {len(rows)} clips do not"
    verb = "has a subject" if unknown == len(rows) else "have a subject"
    return (
        f"{share} {verb}: the same person may be in train and test, and the metrics may measure identity "
        "instead of engagement",
    )


def _shared_video_warnings(groups: np.ndarray, masks: Masks) -> tuple[str, ...]:
    """A warning for videos in two subsets. (A subject in two subsets is an error of `require_disjoint`.)"""
    times = Counter(name for mask in masks.values() for name in np.unique(groups[mask]).tolist())
    num_shared = sum(count > 1 for count in times.values())
    if not num_shared:
        return ()
    return (
        f"{num_shared} videos without a subject have clips in two subsets: the metrics may measure identity "
        "instead of engagement",
    )


def _class_warnings(labels: np.ndarray, masks: Masks) -> tuple[str, ...]:
    classes = np.unique(labels)
    present = [subset for subset in SUBSETS if masks[subset].any()]
    absent = {subset: len(np.setdiff1d(classes, labels[masks[subset]])) for subset in present}
    return tuple(
        f"{subset} has no clip of {count} of the {len(classes)} classes"
        for subset, count in absent.items()
        if count
    )


def _earlier_warnings(run: str, seen: int, others: int) -> tuple[str, ...]:
    """Warnings about held-out subjects that the earlier run used, and about clips of other subjects with ids
    that the earlier run has too."""
    warnings: tuple[str, ...] = ()
    if seen:
        warnings += (
            f"{seen} subjects (or videos) are held out in the manifest, but {run} used them for training or "
            "validation: they keep the subset of that run",
        )
    if others:
        warnings += (
            f"{others} clips have ids that {run} has too, but most have other subjects: they count as new",
        )
    return warnings


def subset_by_clip(split: Split, clip_ids: np.ndarray) -> dict[str, str]:
    """Subset of each clip, for `split.csv`. clip_ids: (N,) of the whole table."""
    return {str(clip_ids[row]): subset for subset, rows in split.subsets().items() for row in rows}
