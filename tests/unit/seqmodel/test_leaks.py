"""No fitted number depends on the people that are held out.

Each test writes two stores that are equal, except that all features and labels of the held-out people are
garbage in the second: random frames and faces, flipped labels. Everything that is fitted must be equal byte
by byte: split, feature statistics, weights, baselines, calibration, thresholds, training statistics.

Three things of held-out people are read before anything is fitted, and are no leak:

- `build_task` and `fold_groups` compare the embeddings of all clips to find copies. A copy moves to the side
  where its original is, which only keeps copies of training clips out of the evaluation.
- `evaluate --folds` divides people into K folds by their labels, so that classes are balanced, as every
  stratified cross-validation does; with `loso` labels are not used. The division is fixed before the fits.
- The majority baseline of the folds, and a clip that no fold can predict, use the class frequencies of all
  clips. Those of a fold's training clips would be biased against its held-out clips.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from extract.face.geometry import FEATURES
from features.manifest import Clip
from features.recipe import EncoderId, GeometryId, Pixels, Recipe
from features.store.store import FeatureStore, plan
from seqmodel.__main__ import main
from seqmodel.commands.evaluate import find_clips
from seqmodel.config import EvaluateArgs, HeadConfig, MemberConfig
from seqmodel.evaluation import folds
from seqmodel.evaluation.fold_result import load_fold
from seqmodel.evaluation.simple_methods import WIDEST
from seqmodel.runs.card import card_to_json, load_card
from seqmodel.runs.files import SPLIT, WEIGHTS, read_log
from seqmodel.runs.settings import save_settings
from seqmodel.runs.training_stats import FILE as TRAINING_STATS
from tests.support.trained_run import make_run
from tune.__main__ import main as tune

NAMES = ("distracted", "engaged")
NUM_FRAMES, DIM, CLIPS_EACH = 4, WIDEST + 6, 6
RECIPE = Recipe(
    Pixels(detectors=("d" * 64,), fps=1.0, window_s=float(NUM_FRAMES)),
    EncoderId("mobilenet_v3_large", "random:0", "a" * 64, DIM),
    GeometryId("e" * 64, FEATURES),
)
SUBSETS = dict.fromkeys("abcdef", "train") | dict.fromkeys("gh", "val") | dict.fromkeys("ij", "test")
"""Person -> subset, as the manifest says."""
TEST_CLIPS = [f"{person}/{number}.mp4#0" for person in "ij" for number in range(CLIPS_EACH)]

pytestmark = pytest.mark.usefixtures("no_drawing")


def write_people(path: Path, subsets: dict[str, str], garbage: Collection[str] = ()) -> Path:
    """Write a store of these people with both streams; `garbage`: ids of clips with other features and
    labels."""
    clips = [
        Clip(
            f"{person}/{number}.mp4#0",
            path.parent / f"{person}/{number}.mp4",
            end_s=float(NUM_FRAMES),
            subject=person,
            split=subset,
            labels={"label": NAMES[(number % 3 == 0) != (f"{person}/{number}.mp4#0" in garbage)]},
        )
        for person, subset in subsets.items()
        for number in range(CLIPS_EACH)
    ]
    store = plan(path, clips, RECIPE, numerics={"backend": "none"}, crops=False)
    for row, clip in enumerate(clips):
        is_garbage = clip.clip_id in garbage
        rng = np.random.default_rng([row, is_garbage])
        x, geometry = rng.normal(0, 1, (NUM_FRAMES, DIM)), rng.normal(0, 1, (NUM_FRAMES, len(FEATURES)))
        x[:, 0] += row % CLIPS_EACH % 3 == 0
        geometry[:, 0] += row % CLIPS_EACH % 3 == 0
        x, geometry = (40 * x**3, 40 * geometry**3) if is_garbage else (x, geometry)
        frames = np.array([[t, 10, 10, 50, 50, 0.9] for t in range(NUM_FRAMES)], np.float32)
        if is_garbage or row % 5 == 0:
            no_face = int(rng.integers(NUM_FRAMES))
            x[no_face], geometry[no_face], frames[no_face, 1:5], frames[no_face, 5] = 0, np.nan, np.nan, 0
        store.write_row(
            row, embeddings=x.astype(np.float16), frames=frames, geometry=geometry.astype(np.float32)
        )
    return path


def fitted(run: Path) -> dict[str, Any]:
    """All that a run directory has from training, without times, paths and the fingerprint of its store."""
    card = card_to_json(load_card(run))
    del card["store"], card["store_fingerprint"]
    card["stages"] = [{k: v for k, v in stage.items() if k != "command"} for stage in card["stages"]]
    return {
        "weights": {k: v.numpy().tobytes() for k, v in load_file(run / WEIGHTS).items()},
        "split": (run / SPLIT).read_bytes(),
        "card": json.dumps(card, sort_keys=True),
        "epochs": [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(run)],
        "training statistics": (run / TRAINING_STATS).read_bytes(),
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores that differ in the test people."""
    folder = tmp_path_factory.mktemp("people")
    found = (
        write_people(folder / "a.zarr", SUBSETS),
        write_people(folder / "b.zarr", SUBSETS, garbage=TEST_CLIPS),
    )
    tables = [FeatureStore.open(path).table() for path in found]
    assert (tables[0].labels["label"] != tables[1].labels["label"]).sum() == len(TEST_CLIPS)
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order would change the last bits."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


def test_training_reads_nothing_of_test_people(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "a", tmp_path / "b"
    summaries = []
    for store, run in zip(stores, runs, strict=True):
        assert main(["train", "--store", str(store), "--run", str(run), "--epochs", "3", "--json"]) == 0
        summaries.append(json.loads(capsys.readouterr().out) | {"run": ""})
    assert summaries[0] == summaries[1]
    assert fitted(runs[0]) == fitted(runs[1])


@pytest.mark.parametrize("how", [[], ["--single"]])
def test_a_search_reads_nothing_of_test_people(
    stores: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: list[str],
) -> None:
    """The best trial of each family is a member here, however far it is from the best one."""
    monkeypatch.setattr("seqmodel.training.select.MIN_SHARE", -99)
    runs = tmp_path / "a", tmp_path / "b"
    summaries = []
    for store, run in zip(stores, runs, strict=True):
        argv = ["--store", str(store), "--out", str(run), "--trials", "4", "--workers", "1", "--epochs", "2"]
        assert tune([*argv, "--json", *how]) == 0
        summaries.append(json.loads(capsys.readouterr().out) | {"run": "", "seconds": 0})
    assert summaries[0] == summaries[1], "trials, finalists, baselines or warnings"
    assert fitted(runs[0]) == fitted(runs[1])
    kinds = {member.head.kind == "trees" for member in load_card(runs[0]).members}
    assert kinds == {False, True} or "--single" in how


def test_evaluation_on_validation_reads_nothing_of_test_people(
    stores: tuple[Path, Path], tmp_path: Path
) -> None:
    found = []
    for store in stores:
        run = tmp_path / store.stem
        make_run(run, FeatureStore.open(stores[0]), epochs=2, inputs="both")
        argv = ["evaluate", "--run", str(run), "--store", str(store), "--split", "val"]
        assert main([*argv, "--threshold-metric", "f1", "--bootstrap-rounds", "50"]) == 0
        files = "metrics.json", "predictions.csv", TRAINING_STATS
        found.append([load_card(run).calibration, *((run / name).read_bytes() for name in files)])
    assert found[0] == found[1]


def test_a_fold_fits_nothing_on_its_held_out_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clips of person b but one are garbage; that one is the probe. In the fold that holds b out, the
    heads, the chosen members, calibration and threshold are equal, and so are the predictions for the probe,
    of the head and of the simple methods."""
    people, held_out = dict.fromkeys("abcde", ""), [f"b/{number}.mp4#0" for number in range(CLIPS_EACH)]
    *garbage, probe = held_out
    stores = write_people(tmp_path / "a.zarr", people), write_people(tmp_path / "b.zarr", people, garbage)
    card = make_run(tmp_path / "run", FeatureStore.open(stores[0]), epochs=1, inputs="both")
    wider = [replace(member, head=replace(member.head, hidden=12)) for member in card.members]
    trees = MemberConfig("geometry", HeadConfig("trees"))
    save_settings(tmp_path / "run", [*card.members, *wider, trees])
    split_folds = folds.split_folds  # for speed, the fold of b alone
    monkeypatch.setattr(folds, "split_folds", lambda *args: split_folds(*args)[1:2])
    fits, probes, others = [], [], []
    for store in stores:
        args = EvaluateArgs(run=tmp_path / "run", store=store, folds="loso")
        finished = tmp_path / f"{store.stem} finished"
        predictions, baselines, *_ = folds.run_folds(find_clips(args), args, finished)
        clips = predictions.clip_ids.tolist()
        (saved,) = finished.glob("*.safetensors")
        fold = load_fold(saved, card.dims, card.labelling.task, len(NAMES))
        assert fold is not None
        assert [clips[index] for index in fold.indices] == held_out
        assert fold.head is not None
        weights = {name: tensor.numpy().tobytes() for name, tensor in fold.head.state_dict().items()}
        fits.append((fold.members, fold.calibration, weights))
        at, other = clips.index(probe), [clips.index(clip) for clip in garbage]
        simple = {b.name: b for b in baselines if b.name not in ("majority", "identity")}
        assert {"logistic_embeddings", "logistic_geometry"} <= simple.keys()
        probes.append(
            {name: (b.probabilities[at].tolist(), b.predicted[at]) for name, b in simple.items()}
            | {"heads": (predictions.logits[at].tolist(), predictions.probabilities[at].tolist())}
        )
        others.append(predictions.logits[other])
    assert fits[0] == fits[1]
    assert probes[0] == probes[1]
    assert (others[0] != others[1]).all(), "the garbage was predicted"
