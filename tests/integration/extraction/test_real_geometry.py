"""Geometry predicts engagement on real subjects that were not in training. The set has 22 students and 4,421
single frames with three levels of engagement, measured with MediaPipe's landmarker. It must not be
redistributed, so it is next to the checkout or at the path in BRAINBUDDY_REAL_GEOMETRY."""

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
    """The set in the format of `features import`: each frame is a clip of one frame, x (N,1,G)."""
    with np.load(FILE, allow_pickle=False) as real:
        arrays = {name: real[name] for name in ("y", "subject", "grey", "feature_names", "label_names")}
        np.savez(folder / "frames.npz", x=real["x"][:, None], **arrays)
    return folder / "frames.npz"


def test_lowest_level_is_recognised_in_unseen_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folds: each head learns from half of the subjects and predicts the other half. AUROC is .89 on the
    clips with a face, in float32; the limits of this test allow for rounding. It is above that of a logistic
    regression on the same folds, but not clearly. Over all clips it is lower: 63 of the 84 clips without a
    face have the lowest level and count as predicted to be the majority class."""
    store, run = str(tmp_path / "s.zarr"), tmp_path / "run"
    assert features(["import", str(one_frame_clips(tmp_path)), "--out", store, "--name", "mediapipe"]) == 0
    argv = ["--binarize-at", "1", "--batch-size", "64", "--noise", "0.3", "--components", "64"]
    assert seqmodel(["train", "--store", store, "--run", str(run), *argv]) == 0
    assert seqmodel(["evaluate", "--run", str(run), "--folds", "2", "--bootstrap-rounds", "100"]) == 0
    found = json.loads((run / "folds-2/metrics.json").read_text(encoding="utf-8"))
    all_clips, seen = found["folds-2"], found["folds-2/measured"]
    assert all_clips["num_clips"]["value"] == 4421
    assert "AUROC on the 4337 clips with a prediction:" in " ".join(capsys.readouterr().err.split())
    assert seen["auroc"]["value"] >= 0.885
    assert seen["auroc"]["low"] > 0.80
    assert found["folds-2 minus logistic_geometry"]["auroc"]["value"] > 0
    assert found["folds-2 minus logistic_geometry"]["auroc"]["low"] > -0.01
    assert 0.80 < all_clips["auroc"]["value"] < seen["auroc"]["value"]
