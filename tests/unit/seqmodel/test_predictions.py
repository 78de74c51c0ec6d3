"""Prediction of rows of a store: from cached features, or from crops with the run's own encoder."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from features.labels import Labelling
from features.manifest import Clip
from features.recipe import EncoderId, Pixels, Recipe
from features.store.store import FeatureStore, plan
from seqmodel.commands.train import train
from seqmodel.config import HeadConfig, MemberConfig, TrainArgs, TrainConfig
from seqmodel.encoders.backbone import build_encoder
from seqmodel.finetuning.network import CnnLstm
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.recurrent import build_head
from seqmodel.runs import predict, training_stats
from seqmodel.runs.card import Card, load_card, save_card
from seqmodel.runs.files import save_weights
from seqmodel.runs.predict import predict_rows, prefix_logits
from tests.support.small_store import G, T, write_store
from tests.support.toy_sequences import write_toy_store
from tests.support.trained_run import NUM_FRAMES, WITH_GEOMETRY, make_run, make_store

SIDE, FRAMES, CLIPS = 64, 3, 5
HEAD = HeadConfig(hidden=8, components=0)
LABELLING = Labelling("label", ("distracted", "engaged"), (("distracted",), ("engaged",)), "binary")


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> tuple[Path, Card, FeatureStore, CnnLstm]:
    """A store with crops, and a run whose encoder is another one than that of the store's embeddings."""
    root = tmp_path_factory.mktemp("finetuned")
    encoder, encoder_id = build_encoder("mobilenet_v3_large", "random", 0)
    recipe = Recipe(
        Pixels(("d" * 64,), crop_px=SIDE, fps=1.0, window_s=float(FRAMES)),
        EncoderId("mobilenet_v3_large", "random:1", "b" * 64, encoder_id.dim),
    )
    clips = [
        Clip(
            f"{k}.mp4#0",
            root / f"{k}.mp4",
            end_s=3.0,
            subject=str(k),
            labels={"label": LABELLING.names[k % 2]},
        )
        for k in range(CLIPS)
    ]
    store = plan(root / "s.zarr", clips, recipe, numerics={}, crops=True, versions={})
    rng = np.random.default_rng(0)
    for row in range(CLIPS):
        frames = np.zeros((FRAMES, 6), np.float32)
        frames[:, 5] = 0.9
        pictures = [_jpeg(rng) for _ in range(FRAMES)]
        if row >= 3:  # one clip with a face in its first frame only, one without any
            hidden = slice(1 if row == 3 else 0, None)
            frames[hidden, 1:5], frames[hidden, 5] = np.nan, 0
            pictures[hidden] = [b""] * len(pictures[hidden])
        embeddings = np.zeros((FRAMES, encoder_id.dim), np.float16)
        store.write_row(row, embeddings=embeddings, frames=frames, crops=pictures)
    head = Ensemble([[build_head(HEAD, "embeddings", encoder_id.dim, 1, seed=0)]], "binary")
    card = Card(
        recipe=replace(recipe, encoder=replace(encoder_id, weights="finetuned:run")),
        labelling=LABELLING,
        members=(MemberConfig("embeddings", HEAD),),
        num_folds=1,
        dims={"embeddings": encoder_id.dim},
        store=str(store.path),
        store_fingerprint="",
        split_description="none",
        split_hash="",
        seed=0,
        metric="auroc",
        training_class_frequencies=(0.5, 0.5),
    )
    (root / "run").mkdir()
    save_weights(root / "run", head.state_dict(), encoder.state_dict())
    save_card(root / "run", card)
    return root / "run", card, FeatureStore.open(store.path), CnnLstm(encoder, head).eval()


def _jpeg(rng: np.random.Generator) -> bytes:
    picture = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (SIDE, SIDE))
    return cv2.imencode(".jpg", picture)[1].tobytes()


def test_finetuned_run_predicts_from_crops_with_its_own_encoder(finetuned):
    run, card, store, network = finetuned
    logits, measured = predict_rows(run, card, store, LABELLING, np.arange(CLIPS))
    assert measured.tolist() == [True, True, True, True, False]
    assert np.isnan(logits[4]).all()
    from features.datasets import CropClips

    x, valid, _ = CropClips(store, LABELLING, np.arange(CLIPS)).batch(np.arange(4))
    with torch.inference_mode():
        direct = network(
            {name: torch.from_numpy(v) for name, v in x.items()},
            {name: torch.from_numpy(v) for name, v in valid.items()},
        )
    np.testing.assert_allclose(logits[:4], direct.numpy(), atol=2e-3)
    assert np.ptp(logits[:4]) > 1e-4


def test_last_prefix_logit_equals_the_full_window(finetuned):
    run, card, store, _ = finetuned
    logits, _ = predict_rows(run, card, store, LABELLING, np.arange(4))
    growing, seen = prefix_logits(run, card, store, LABELLING, np.arange(4))
    assert growing.shape == (4, FRAMES, 1)
    np.testing.assert_allclose(growing[:, -1], logits, atol=2e-3)
    assert seen[3].tolist() == [True, False, False]


def test_prefix_logit_does_not_depend_on_later_frames(tmp_path: Path) -> None:
    """Each logit equals that of a window that ends there, as with a camera."""
    store = write_store(tmp_path / "s.zarr")
    head = Ensemble([[build_head(HEAD, "geometry", G, 1, seed=0)]], "binary")
    card = Card(
        recipe=store.recipe,
        labelling=LABELLING,
        members=(MemberConfig("geometry", HEAD),),
        num_folds=1,
        dims={"geometry": G},
        store=str(store.path),
        store_fingerprint="",
        split_description="none",
        split_hash="",
        seed=0,
        metric="auroc",
        training_class_frequencies=(0.5, 0.5),
    )
    save_weights(tmp_path, head.state_dict(), None)
    save_card(tmp_path, card)
    rows = np.arange(4)
    growing, _ = prefix_logits(tmp_path, card, store, LABELLING, rows)
    x, valid = store.read_stream("geometry", rows)
    for row in rows:
        for t in range(T):
            seen = valid[row] & (np.arange(T) <= t)
            values = np.where(seen[:, None], x[row], 0)
            with torch.inference_mode():
                logits = head.eval()(
                    {"geometry": torch.from_numpy(values[None])}, {"geometry": torch.from_numpy(seen[None])}
                )
            np.testing.assert_allclose(growing[row, t], logits[0].numpy(), atol=1e-5)


def test_prefix_logits_in_chunks_are_the_same(tmp_path, monkeypatch):
    """Memory then grows with the length of the window and not with its square."""
    store = make_store(tmp_path / "s.zarr", num_subjects=8, recipe=WITH_GEOMETRY)
    card = make_run(tmp_path / "run", store, epochs=1, inputs="both")
    sizes, forward = [], Ensemble.forward

    def counted(self, x, valid):
        sizes.append(len(valid["geometry"]))
        return forward(self, x, valid)

    monkeypatch.setattr(Ensemble, "forward", counted)
    rows = np.flatnonzero(store.table().state == 1)[:12]
    whole, seen = prefix_logits(tmp_path / "run", card, store, card.labelling, rows)
    assert set(sizes) == {NUM_FRAMES}
    monkeypatch.setattr(predict, "PREFIXES_AT_ONCE", 4)
    sizes.clear()
    pieces, seen_again = prefix_logits(tmp_path / "run", card, store, card.labelling, rows)
    assert max(sizes) == 4
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    np.testing.assert_array_equal(seen_again, seen)


def test_without_crops_the_differing_fields_are_named(finetuned, tmp_path):
    run, card, store, _ = finetuned
    clip = Clip("a.mp4#0", tmp_path / "a.mp4", end_s=3.0, subject="a", labels={"label": "engaged"})
    bare = plan(tmp_path / "bare.zarr", [clip], store.recipe, numerics={}, crops=False, versions={})
    with pytest.raises(ValueError, match=r"encoder\.weights_sha256: .* keeps no crops"):
        predict_rows(run, card, bare, LABELLING, np.arange(1))


def test_training_stats_use_clips_of_all_subjects(tmp_path, monkeypatch):
    """Not only of the first rows: clips are often ordered by subject."""
    store = make_store(tmp_path / "s.zarr", broken=False)
    card = make_run(tmp_path / "run", store, epochs=1)
    monkeypatch.setattr(training_stats, "MAX_CLIPS", 20)
    context, really = [], predict.predict_rows

    def noted(*args, folds):
        context.append(args[-1])
        return really(*args, folds=folds)

    monkeypatch.setattr(predict, "predict_rows", noted)
    found = training_stats.measure(tmp_path / "run", card, store)
    assert found.num_clips == len(context[0]) == 20
    train = training_stats.rows_of(tmp_path / "run", store, "train")
    subjects = store.table().subject
    assert len(set(subjects[context[0]])) > 0.9 * len(set(subjects[train]))


def test_imported_features_have_no_min_filled(tmp_path, monkeypatch):
    """Live does not accept such runs, and their windows may be long."""
    path, run = write_toy_store(tmp_path), tmp_path / "run"
    monkeypatch.setattr(predict, "prefix_logits", lambda *_: pytest.fail("asked"))
    train(TrainArgs(path, run, head=HEAD, train=TrainConfig(epochs=1)))
    found = training_stats.measure(run, load_card(run), FeatureStore.open(path))
    assert found.num_clips > 0
    assert found.min_filled is None


def test_validation_without_faces_of_one_class_gives_no_min_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise live would predict after one frame: an undefined metric is never below the limit."""
    store = make_store(tmp_path / "s.zarr")
    run = tmp_path / "run"
    make_run(run, store, epochs=1)
    assert training_stats.measure(run, load_card(run), store).min_filled is not None

    def blind(
        run: Path, card: Card, store: FeatureStore, labelling: Labelling, rows: np.ndarray, *_: object
    ) -> tuple:
        logits, seen = prefix_logits(run, card, store, labelling, rows)
        table = store.table()
        is_engaged = table.labels["label"][rows] == table.label_names["label"].index("engaged")
        return logits, seen & ~is_engaged[:, None]

    monkeypatch.setattr("seqmodel.runs.predict.prefix_logits", blind)
    assert training_stats.measure(run, load_card(run), store).min_filled is None
