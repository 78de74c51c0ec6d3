"""Saved personal calibrations: a small local file named after the subject, with a calibration for each run.

A calibration is valid only for the run it was made with.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from features.cli import UserError
from features.files import atomic_write
from seqmodel.metrics.calibration import Calibration


def load_personal(name: str, run_key: str) -> Calibration | None:
    """A subject's calibration for a run, or None.

    Raises UserError, with the file name, when the file cannot be read.
    """
    return _read(personal_file(name)).get(run_key)


def is_outdated(personal: Calibration, base: Calibration) -> bool:
    """Whether the run's calibration has changed since the personal calibration was made.

    A personal calibration copies threshold, abstain band and threshold metric and replaces temperature and
    bias. So only a change of the copied values makes it outdated.
    """
    return (personal.threshold, personal.abstain, personal.threshold_metric) != (
        base.threshold,
        base.abstain,
        base.threshold_metric,
    )


def save_personal(name: str, run_key: str, calibration: Calibration) -> Path:
    """Save a subject's calibration for a run; returns the file.

    Raises UserError when an existing file cannot be read, OSError when the file cannot be written.
    """
    path = personal_file(name)
    _write(path, _read(path) | {run_key: calibration})
    return path


def forget_personal(name: str, run_key: str | None = None) -> bool:
    """Remove a subject's calibration for one run, or for all runs; False when there was none.

    Raises UserError when one run is given and the file cannot be read.
    """
    path = personal_file(name)
    if not path.is_file():
        return False
    known = _read(path) if run_key else {}
    if run_key and known.pop(run_key, None) is None:
        return False
    if known:
        _write(path, known)
    else:
        path.unlink()
    return True


def personal_dir() -> Path:
    """Folder of the files, in BRAINBUDDY_HOME or in `.brainbuddy` in the user's home."""
    home = os.environ.get("BRAINBUDDY_HOME")
    return (Path(home) if home else Path.home() / ".brainbuddy") / "personal"


def personal_file(name: str) -> Path:
    """The calibration file of a subject. Raises UserError for a name that cannot be a file name."""
    # Letters of any script; no path separators.
    if not re.fullmatch(r"[\w][\w .-]{0,63}", name):
        raise UserError(
            f"--subject may contain letters, digits, spaces, '.', '-' and '_' (at most 64), got {name!r}"
        )
    return personal_dir() / f"{name}.json"


def _read(path: Path) -> dict[str, Calibration]:
    """A subject's calibrations by run key; empty where there is no file."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {key: _calibration(**fields) for key, fields in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it with --forget") from error


def _calibration(
    *, temperature: float, bias: float, threshold: float, abstain: list[float] | None, threshold_metric: str
) -> Calibration:
    """A calibration from the fields in the file; a missing or further field raises TypeError."""
    return Calibration(
        temperature,
        bias,
        threshold,
        (float(abstain[0]), float(abstain[1])) if abstain else None,
        threshold_metric,
    )


def _write(path: Path, known: Mapping[str, Calibration]) -> None:
    """Write the file atomically; the data is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(calibration) for key, calibration in known.items()}, indent=1)
    with atomic_write(path, durable=True) as partial:
        partial.write_text(text, encoding="utf-8")
