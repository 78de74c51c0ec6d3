"""What the face does tells attention, on real people never seen: the claim that the second stream stands on.

22 students, 4,421 single frames with three levels of engagement, as MediaPipe's landmarker saw them. The set
may not be passed on, so it lies beside the checkout or where BRAINBUDDY_REAL_GEOMETRY says.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from features.__main__ import main as features
from seqmodel.__main__ import main as seqmodel

FILE = Path(
    os.environ.get("BRAINBUDDY_REAL_GEOMETRY")
    or Path(__file__).parents[4] / "shared" / "data" / "real_geometry.npz"
)
pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason=f"{FILE.name} is not here and may not be passed on"
)


def one_frame_clips(folder: Path) -> Path:
    """The set as `features import` wants it: each frame a clip of one, x (N,1,G)."""
    with np.load(FILE, allow_pickle=False) as real:
        arrays = {name: real[name] for name in ("y", "subject", "grey", "feature_names", "label_names")}
        np.savez(folder / "frames.npz", x=real["x"][:, None], **arrays)
    return folder / "frames.npz"


def test_lowest_level_is_recognised_in_unseen_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better than a logistic regression (.87) on the clips with a face: .91 where heads train in bfloat16;
    what is asked leaves room for rounding. All clips, 63 of whose 84 without a face are of the lowest level
    and count as the majority, beside it (.90)."""
    store, run = str(tmp_path / "s.zarr"), tmp_path / "run"
    assert features(["import", str(one_frame_clips(tmp_path)), "--out", store, "--name", "mediapipe"]) == 0
    # The folds take the question from the run, and no head.
    argv = ["--binarize-at", "1", "--batch-size", "64", "--epochs", "1"]
    assert seqmodel(["train", "--store", store, "--run", str(run), *argv]) == 0
    assert seqmodel(["evaluate", "--run", str(run), "--folds", "5", "--bootstrap-rounds", "200"]) == 0
    found = json.loads((run / "folds-5/metrics.json").read_text(encoding="utf-8"))
    all_clips, seen = found["folds-5"], found["folds-5/measured"]
    assert all_clips["num_clips"]["value"] == 4421
    assert "AUROC on the 4337 clips with a prediction:" in " ".join(capsys.readouterr().err.split())
    assert seen["auroc"]["value"] >= 0.895
    assert seen["auroc"]["low"] > 0.80
    assert 0.80 < all_clips["auroc"]["value"] < seen["auroc"]["value"]
