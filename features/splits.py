"""Who is learned from, who is chosen by, and who judges: train, validation and test, by person.

Official marks are kept. Otherwise people are dealt out so that every side sees the classes in their
proportions. Nobody is ever on two sides: whatever made a split, `require_disjoint` is asked at its end.
Clips without a subject stand for themselves, all windows of one video together.

N rows of a store.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.manifest import SUBSETS
from features.store.table import ClipTable, group_names, groups_of, only_value, values_by_source

Masks = dict[str, np.ndarray]
"""(n,) bool by side: which of n clips stand on it."""
_RESTARTS = 20
"""Orders in which people are dealt out; the most even result stays."""
_FEW_GROUPS = 400
"""Above this many people one order is as even as the best of many."""


@dataclass(frozen=True)
class Split:
    """Rows of a store on each side."""

    train: np.ndarray
    """Row indices, ascending; val and test likewise."""
    val: np.ndarray
    test: np.ndarray
    description: str
    """One line for people: where this split comes from."""
    warnings: tuple[str, ...] = ()

    def subsets(self) -> dict[str, np.ndarray]:
        """The three sides by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def make_split(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    val_share: float = 0.2,
    test_share: float = 0.2,
) -> Split:
    """The split of these rows: the official one, or one by person with the classes in proportion.

    rows: row indices. labels: (len(rows),) class index of each. With official train and validation only,
    validation becomes test, and a new validation part is carved from train by person. Clips without a mark
    are left out where train and another side are marked; else they make up the sides that nobody is marked
    for; but without a subject they follow the mark of their video's other clips. Clips that are all marked
    train are dealt to three sides as if none was. A warning counts videos that are marked for two sides.

    Raises ValueError when a person is on two sides, or there are too few people to have three sides.
    """
    groups, marks = groups_of(table, rows), _marks(table, rows)
    left_out: tuple[str, ...] = ()
    on = {subset: marks == subset for subset in SUBSETS}
    marked = [subset for subset in SUBSETS if on[subset].any()]
    if "train" in marked and len(marked) > 1:
        on, description = _official(on, labels, groups, val_share, seed)
        if unnamed := int((marks == "").sum()):
            left_out = (f"{unnamed} clips without a split are left out, since others have one",)
    elif not marked or on["train"].all():
        shares = (1 - val_share - test_share, val_share, test_share)
        on = _dealt(np.ones(len(rows), bool), SUBSETS, labels, groups, shares, seed)
        description = f"by person, classes in proportion, seed {seed}"
        description += ", since every clip is marked train" if marked else ""
    else:
        on, description = _filled(on, labels, groups, val_share, test_share, seed)
    return _checked(table, rows, labels, groups, on, description, left_out)


def extend_split(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    earlier: Path,
    *,
    val_share: float = 0.2,
    test_share: float = 0.2,
) -> Split:
    """A later month's split: who was in the earlier run keeps their side, and new people stand where they are
    marked or else are hashed in. Who is named now and was not then is known by their clips.

    earlier: the `split.csv` of the earlier run (columns clip_id, subject, split), or the run's folder. The
    side of a new person depends on their mark or name alone, so it is the same whoever else comes. A warning
    counts those of the earlier run who are marked to be held out, but were learned from or chosen by.

    Raises ValueError when the file cannot be used or has a person's clips on two sides.
    """
    file = Path(earlier) / "split.csv" if Path(earlier).is_dir() else Path(earlier)
    known, clips = _earlier_subsets(file)
    same = known_rows(table, clips)
    known |= _subsets_of_renamed(table, same, known, clips, file)
    groups = groups_of(table, rows)
    marked = list(zip(groups.tolist(), _marks(table, rows).tolist(), strict=True))
    subsets = np.array(
        [known.get(who) or mark or _hashed_subset(who, val_share, test_share) for who, mark in marked], str
    )
    placed = {who for who, mark in marked if mark and who not in known}
    hashed = {who for who, mark in marked if not mark and who not in known}
    seen = {who for who, mark in marked if mark and SUBSETS.index(known.get(who, mark)) < SUBSETS.index(mark)}
    description = (
        f"everybody of {file.parent.name} on their side, {len(hashed)} new by the hash of their name"
    )
    description += f", {len(placed)} new as marked" if placed else ""
    others = 0 if same.any() else sum(clip in clips for clip in table.clip_id.tolist())
    on = {subset: subsets == subset for subset in SUBSETS}
    kept = _earlier_warnings(file.parent.name, len(seen), others)
    return _checked(table, rows, labels, groups, on, description, kept=kept)


def grouped_folds(
    labels: np.ndarray, subjects: np.ndarray, k: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """K pairs (learned from, held out) of positions into `labels`; each person is held out once.

    labels: (N,) class indices. subjects: (N,) str; '' stands for itself.

    Raises ValueError for k below 2 or above the number of people.
    """
    groups = np.array([who or f"clip {location}" for location, who in enumerate(subjects.tolist())], str)
    num_groups = len(np.unique(groups))
    if not 2 <= k <= num_groups:
        raise ValueError(f"--folds {k} needs 2 to {num_groups} folds: there are {num_groups} people")
    fold = _deal(labels, groups, (1 / k,) * k, seed)
    return [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(k)]


def leave_one_subject_out(subjects: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each person, in the order of their names, (everybody else, that person) as positions.

    Raises ValueError when clips have no subject or there is one person only.
    """
    names = np.unique(subjects)
    if "" in names.tolist() or len(names) < 2:
        raise ValueError(
            f"leave-one-subject-out needs every clip's subject, and two people; got {len(names)}"
        )
    return [(np.flatnonzero(subjects != name), np.flatnonzero(subjects == name)) for name in names]


def require_disjoint(split: Split, subjects: np.ndarray) -> None:
    """Pass only when nobody is on two sides.

    subjects: (N,) of the whole table, '' = unknown.

    Raises ValueError naming up to five people and their sides.
    """
    subsets_of: dict[str, list[str]] = {}
    for subset, rows in split.subsets().items():
        for who in np.unique(subjects[rows]).tolist():
            subsets_of.setdefault(who, []).append(subset)
    twice = [f"{who!r} in {' and '.join(on)}" for who, on in subsets_of.items() if who and len(on) > 1]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(
            f"people on two sides of the split ({split.description}): {', '.join(twice[:5])}{more}"
        )
    rows = np.concatenate(list(split.subsets().values()))
    assert len(np.unique(rows)) == len(rows)


def known_rows(
    table: ClipTable, subsets: Mapping[str, tuple[str, str]], *, is_home: bool = False
) -> np.ndarray:
    """(N,) bool: which rows of a store are clips of a run, by its split.csv: (subject, side) by clip.

    Clips of two data sets may go by the same name, so where most of the shared names belong to other people
    in the store than in the run, none of them is the run's; unless it is the store that the run was trained
    on (`is_home`), and each of its people has one new name.
    """
    known = np.array([clip in subsets for clip in table.clip_id.tolist()], bool)
    pairs = [
        (who, subsets[clip][0])
        for clip, who in zip(table.clip_id[known].tolist(), table.subject[known].tolist(), strict=True)
    ]
    strangers = sum(bool(here and there and here != there) for here, there in pairs)
    names = {pair for pair in pairs if all(pair)}
    is_renamed = is_home and all(len({pair[subset] for pair in names}) == len(names) for subset in (0, 1))
    return known & (is_renamed or strangers <= len(pairs) / 2)


def split_hash(split: Split, clip_ids: np.ndarray) -> str:
    """Twelve hex digits of which clips are on which side. clip_ids: (N,) of the whole table."""
    digest = hashlib.sha256()
    for subset, rows in split.subsets().items():
        digest.update("\n".join([subset, *sorted(np.asarray(clip_ids)[rows].tolist())]).encode() + b"\0")
    return digest.hexdigest()[:12]


def _checked(
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    on: Masks,
    description: str,
    left_out: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
) -> Split:
    """The split of these sides with all its warnings, of which two kinds are given.

    Raises ValueError when a person is on two sides.
    """
    warnings = _subject_warnings(table, rows) + left_out + _parted_warnings(groups, on)
    warnings += _class_warnings(labels, on) + kept
    split = Split(
        **{subset: rows[on[subset]] for subset in SUBSETS}, description=description, warnings=warnings
    )
    require_disjoint(split, table.subject)
    return split


def _marks(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) str: the side that each row is marked for, '' = none. Without a mark and a subject it is
    the one side that other rows of its video are marked for, where they agree."""
    marks, sources = table.split[rows].tolist(), table.source[rows].tolist()
    marked = values_by_source(marks, sources)
    clips = zip(table.subject[rows].tolist(), marks, sources, strict=True)
    return np.array([mark or ("" if who else only_value(marked.get(of, ()))) for who, mark, of in clips], str)


def _official(
    on: Masks, labels: np.ndarray, groups: np.ndarray, val_share: float, seed: int
) -> tuple[Masks, str]:
    """The sides where train and another are marked, and where they come from."""
    if on["val"].any() and on["test"].any():
        return on, "official"
    if on["val"].any():
        description = (
            "official train; official validation is test, and validation was carved from train by person"
        )
    else:
        description = "official train and test; validation carved from train by person"
    carved = _dealt(on["train"], ("train", "val"), labels, groups, (1 - val_share, val_share), seed)
    return carved | {"test": on["val"] | on["test"]}, description


def _filled(
    on: Masks, labels: np.ndarray, groups: np.ndarray, val_share: float, test_share: float, seed: int
) -> tuple[Masks, str]:
    """The marked sides as they are, and the others of clips without a mark; and where they come from.

    Raises ValueError where too few are without a mark.
    """
    marked = [subset for subset in SUBSETS if on[subset].any()]
    lacking = [subset for subset in SUBSETS if subset not in marked]
    unmarked = ~np.any(list(on.values()), axis=0)
    count = len(np.unique(groups[unmarked]))
    if count < len(lacking):
        raise ValueError(
            f"clips are marked {' and '.join(marked)}, and {count} people (or videos) without a split cannot "
            f"be {' and '.join(lacking)}: give clips of each side their split, or none"
        )
    held = {"val": val_share, "test": test_share}
    shares = [held[subset] for subset in lacking if subset in held]
    shares = [1 - sum(shares), *shares] if "train" in lacking else [share / sum(shares) for share in shares]
    description = (
        f"official {' and '.join(marked)}; clips without a split are {' and '.join(lacking)}, by person"
    )
    return on | _dealt(unmarked, lacking, labels, groups, shares, seed), description


def _dealt(
    chosen: np.ndarray,
    subsets: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
    shares: Sequence[float],
    seed: int,
) -> Masks:
    """The chosen clips, (n,) bool, dealt by person to these sides."""
    subset = np.full(len(chosen), -1)
    subset[chosen] = _deal(labels[chosen], groups[chosen], shares, seed)
    return {name: subset == index for index, name in enumerate(subsets)}


def _deal(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """(n,) side of each clip: whole groups dealt out, so that each side has its share of each class.

    Large groups first, each to the side that it brings nearest to its due; of several random orders among
    equals the most even result stays. Same idea as scikit-learn's StratifiedGroupKFold, with unequal shares.

    Raises ValueError when there are fewer groups than sides.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise ValueError(
            f"{len(names)} people (or videos) cannot be {len(shares)} separate sides; "
            "add recordings of others, or use --folds"
        )
    _, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    weight = 1 / counts.sum(axis=0)
    due = np.asarray(shares)[:, None] * np.ones_like(weight)
    counts = counts * weight
    generator = np.random.default_rng(seed)
    best, best_cost = np.zeros(len(names), np.int64), np.inf
    for _ in range(_RESTARTS if len(names) <= _FEW_GROUPS else 1):
        order = generator.permutation(len(names))
        order = order[np.argsort(-counts[order].max(axis=1), kind="stable")]
        subset_of, cost = _deal_in_order(counts, due, order)
        if cost < best_cost - 1e-12:
            best, best_cost = subset_of, cost
    return best[group_of]


def _deal_in_order(counts: np.ndarray, due: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, float]:
    have = np.zeros_like(due)
    members = np.zeros(len(due), np.int64)
    subset_of = np.zeros(len(order), np.int64)
    for location, group in enumerate(order):
        # What a side would be short of or over, in each class, relative to its due.
        now = (((have - due) ** 2) / due).sum(axis=1)
        then = (((have + counts[group] - due) ** 2) / due).sum(axis=1)
        gain = then - now
        if len(order) - location <= int((members == 0).sum()):  # the last ones go where nobody is yet
            gain[members > 0] = np.inf
        subset = int(np.argmin(gain))
        have[subset] += counts[group]
        members[subset] += 1
        subset_of[group] = subset
    return subset_of, float((((have - due) ** 2) / due).sum())


def _earlier_subsets(file: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Of an earlier run's split.csv: side by group, and (subject, side) by clip."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise ValueError(f"no split in {file.parent}: {file.name} is not there") from error
    subsets: dict[str, str] = {}
    clips: dict[str, tuple[str, str]] = {}
    subjects = [line.get("subject") or "" for line in lines]
    groups = group_names(subjects, [(line.get("clip_id") or "").rpartition("#")[0] for line in lines])
    for number, (line, who, group) in enumerate(zip(lines, subjects, groups, strict=True), start=2):
        clip, subset = line.get("clip_id") or "", line.get("split") or ""
        if subset not in SUBSETS or not clip:
            raise ValueError(
                f"{file} line {number}: wanted clip_id,subject,split with one of {', '.join(SUBSETS)}"
            )
        if subsets.setdefault(group, subset) != subset:
            raise ValueError(f"{file} line {number}: {group} is in {subsets[group]} and {subset}")
        clips[clip] = who, subset
    return subsets, clips


def _subsets_of_renamed(
    table: ClipTable,
    same: np.ndarray,
    known: Mapping[str, str],
    clips: Mapping[str, tuple[str, str]],
    file: Path,
) -> dict[str, str]:
    """Side by group of those whom the earlier split does not name, but has clips of: (N,) bool `same`.

    Raises ValueError naming up to five whose clips stood on two sides.
    """
    groups = groups_of(table, np.flatnonzero(same)).tolist()
    subsets_of: dict[str, set[str]] = {}
    for who, clip in zip(groups, table.clip_id[same].tolist(), strict=True):
        if who not in known:
            subsets_of.setdefault(who, set()).add(clips[clip][1])
    twice = [
        f"{who} in {' and '.join(subset for subset in SUBSETS if subset in on)}"
        for who, on in subsets_of.items()
        if len(on) > 1
    ]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(
            f"people's clips on two sides of {file}, which cannot be kept: {', '.join(twice[:5])}{more}"
        )
    return {who: on.pop() for who, on in subsets_of.items()}


def _hashed_subset(group: str, val_share: float, test_share: float) -> str:
    """The side of a new person, from their name alone."""
    location = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    return "test" if location < test_share else "val" if location < test_share + val_share else "train"


def _subject_warnings(table: ClipTable, rows: np.ndarray) -> tuple[str, ...]:
    unknown = int((table.subject[rows] == "").sum())
    if not unknown:
        return ()
    share = "no clip" if unknown == len(rows) else f"{unknown} of {len(rows)} clips do not"
    verb = "has a subject" if unknown == len(rows) else "have a subject"
    return (
        f"{share} {verb}: the same person may be in train and test, and the figures may measure faces "
        "rather than engagement",
    )


def _parted_warnings(groups: np.ndarray, on: Masks) -> tuple[str, ...]:
    """Of those without a subject, for whoever has one is refused on two sides."""
    times = Counter(name for mask in on.values() for name in np.unique(groups[mask]).tolist())
    parted = sum(count > 1 for count in times.values())
    if not parted:
        return ()
    return (
        f"clips without a subject of {parted} videos are marked for two sides: the figures may measure faces "
        "rather than engagement",
    )


def _class_warnings(labels: np.ndarray, on: Masks) -> tuple[str, ...]:
    classes = np.unique(labels)
    absent = {subset: len(np.setdiff1d(classes, labels[on[subset]])) for subset in SUBSETS}
    return tuple(
        f"{subset} has no clip of {count} of the {len(classes)} classes"
        for subset, count in absent.items()
        if count
    )


def _earlier_warnings(run: str, seen: int, others: int) -> tuple[str, ...]:
    """Of people who were learned from too early, and of clips that only go by the earlier run's names."""
    warnings: tuple[str, ...] = ()
    if seen:
        warnings += (
            f"{seen} people (or videos) are marked to be held out, but {run} learned from "
            "them or chose by them: they keep their side",
        )
    if others:
        warnings += (
            f"{others} clips go by names that {run} has, but most belong to other people: they count as new",
        )
    return warnings


def subset_by_clip(split: Split, clip_ids: np.ndarray) -> dict[str, str]:
    """Side of each clip, for `split.csv`. clip_ids: (N,) of the whole table."""
    return {str(clip_ids[row]): subset for subset, rows in split.subsets().items() for row in rows}
