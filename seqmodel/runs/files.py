"""The run directory: all that a trained model needs. It can be moved and has no pickle files.

    card.json            Card: training, calibration and metrics of the model
    weights.safetensors  head.member.M.fold.K.* and, after fine-tuning, encoder.*
    split.csv            clip_id, subject, split of every clip, failed ones included; fold: whose head has not
                         seen its person ('' = no head)
    detector/            the face detector files (and landmarker) by name
    settings.json        the settings that folds choose from (see settings.py)
    calibrated_on.csv    clip_id, subject of the clips that `calibrate` fitted on
    cross/STORE/         results on another data set; store.txt has the path of its store
    log.jsonl, study.log, predictions.csv, metrics.json, report.html, plots/, MODEL_CARD.md
                         written by train, tune, evaluate and compare

The card itself is in seqmodel/runs/card.py. Reading the files, weights apart, imports neither torch nor zarr.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.cli import UserError
from features.files import atomic_write

if TYPE_CHECKING:
    import torch

CARD, WEIGHTS, SPLIT = "card.json", "weights.safetensors", "split.csv"
CARD_LOCK = ".card.lock"
"""Empty file that is locked while the card, metrics.json or predictions.csv is changed."""
RUN_LOCK = ".run.lock"
"""Empty file that is locked while `train` or `tune` writes the run, or `evaluate --folds` its folds."""
CALIBRATION_CLIPS = "calibrated_on.csv"
SETTINGS = "settings.json"
LOG = "log.jsonl"
STUDY = "study.log"
OUT_OF_FOLD = "oof"
"""Folder of the heads of a search's trials, until the search is finished."""


def require_free(run: Path) -> None:
    """Check that a run may be written here: the folder is new, empty, or has a run (also an unfinished one),
    whose results will be replaced.

    Raises UserError otherwise.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise UserError(f"{run} is a file, but a run is a folder: give another path")
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    if "zarr.json" in there:
        raise UserError(f"{run} is a store: give another folder for the run")
    if there and not there & {CARD, WEIGHTS, SPLIT, LOG, STUDY, OUT_OF_FOLD}:
        some = ", ".join(sorted(there)[:3])
        raise UserError(f"{run} has other files ({some}, …) and no run: give another folder for the run")


def save_weights(
    run: Path, head: "Mapping[str, torch.Tensor]", encoder: "Mapping[str, torch.Tensor] | None" = None
) -> None:
    """Write weights.safetensors, atomically: state dicts of the head and, after fine-tuning, the encoder."""
    from safetensors.torch import save_file

    tensors = {f"head.{k}": v.detach().cpu().contiguous() for k, v in head.items()}
    tensors |= {f"encoder.{k}": v.detach().cpu().contiguous() for k, v in (encoder or {}).items()}
    with atomic_write(run / WEIGHTS) as partial:
        save_file(tensors, partial)


def load_weights(run: Path) -> "dict[str, dict[str, torch.Tensor]]":
    """State dicts by part: `head` always, `encoder` when the run was fine-tuned.

    Raises UserError when the run has no weights.
    """
    from safetensors.torch import load

    path = run / WEIGHTS
    if not path.is_file():
        raise UserError(f"{run} has no checkpoint: {WEIGHTS} is missing")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load(path.read_bytes()).items():  # from bytes: any letters in the path
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensor
    return parts


def save_split(
    run: Path,
    clip_ids: Sequence[str],
    subjects: Sequence[str],
    splits: Sequence[str],
    folds: Mapping[str, int],
) -> None:
    """Write split.csv, atomically. folds: clip_id -> fold in which the clip is held out; others have none."""
    found = [str(folds.get(clip, "")) for clip in clip_ids]
    header = ("clip_id", "subject", "split", "fold")
    write_csv(run / SPLIT, [header, *zip(clip_ids, subjects, splits, found, strict=True)])


def load_split(run: Path) -> dict[str, tuple[str, str]]:
    """split.csv as clip_id -> (subject, split). Raises UserError when it is missing."""
    path = run / SPLIT
    if not path.is_file():
        raise UserError(
            f"{run} has no {SPLIT}: the train/val/test split of its clips is not known; train the run again"
        )
    return {row["clip_id"]: (row["subject"], row["split"]) for row in read_csv(path)}


def load_folds(run: Path) -> dict[str, int]:
    """clip_id -> fold in which the clip is held out, from split.csv; clips that no fold holds out are not in
    it."""
    rows = read_csv(run / SPLIT) if (run / SPLIT).is_file() else []
    return {row["clip_id"]: int(row["fold"]) for row in rows if row.get("fold")}


def keep_first_fold(run: Path) -> None:
    """Remove all folds but the first from split.csv: a tuned encoder has seen the people of the others."""
    rows = read_csv(run / SPLIT)
    kept = {row["clip_id"]: 0 for row in rows if row["fold"] == "0"}
    clips, subjects, splits = ([row[name] for row in rows] for name in ("clip_id", "subject", "split"))
    save_split(run, clips, subjects, splits, kept)


def keep_model_file(run: Path, source: Path, name: str) -> None:
    """Copy a model file (detector, landmarker) into the run, so that the run can be moved."""
    target = run / "detector" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as partial:
        shutil.copyfile(source, partial)


def append_log(run: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to log.jsonl."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; empty when there is none. A line cut off by a crash is left out."""
    path = run / LOG
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: temporary name, then rename."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, plain: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write an indented JSON file, atomically."""
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path} cannot be read ({error}): run the command that wrote it again") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, each as column -> value. Raises UserError if it is damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): run the command that wrote it again") from error


def write_csv(path: Path, rows: Iterable[Sequence[Any]], *, durable: bool = False) -> None:
    """Write a CSV file atomically; the first row is the header."""
    with atomic_write(path, durable=durable) as partial:
        with partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
