"""python -m seqmodel export: write encoder and head as OpenVINO or ONNX files, verified against torch.

A bundle (see bundle.py) is written to a temporary folder and compared with torch on crops of the store. It is
moved to its place only if both agree.

F frames, T frames of a window, D embedding, O outputs.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import UserError, echo, log_warning
from features.datasets import CropClips
from features.recipe import require_equal
from features.store.store import FeatureStore
from seqmodel.config import ExportArgs
from seqmodel.encoders.backbone import Encoder, encoder_of
from seqmodel.encoders.model_files import sha256_of
from seqmodel.export.bundle import (
    MANIFEST,
    SUFFIX,
    bundle_folder,
    find_bundle,
    head_inputs,
    open_bundle,
    read_manifest,
)
from seqmodel.export.convert import FlatHead, metadata_of, to_onnx, to_openvino
from seqmodel.heads.ensemble import Ensemble
from seqmodel.runs.card import Card, load_card, save_card
from seqmodel.runs.files import WEIGHTS, load_weights, write_text
from seqmodel.runs.predict import load_ensemble
from seqmodel.runs.training_stats import FILE as TRAINING_STATS
from seqmodel.runs.training_stats import STATISTICS, load_statistics, rows_of, write_training_stats

MIN_COSINE = 0.9999
"""Lowest cosine similarity allowed between the embeddings of torch and of the export. float32 engines differ
in the last bits only (1.0000 measured)."""
MAX_LOGIT_DIFFERENCE = 1e-3
"""Largest difference allowed between the logits of torch and of the export for equal inputs; 1e-7 is usual.
"""
NUM_CHECKED, NUM_WINDOWS = 64, 40


@dataclass(frozen=True)
class VerificationInput:
    """Input on which an export is verified."""

    crops: np.ndarray
    """uint8 (F, H, W, 3), RGB."""
    description: str
    """What the crops are, for messages."""


def export(args: ExportArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: write and verify a bundle; returns the summary and exit code 0.

    Raises UserError if the run is unfinished, a package is missing, --out exists and is no export, or the
    export differs from torch.
    """
    card = load_card(args.run)
    if card.recipe.pixels is None:
        raise UserError(f"{args.run} was trained on imported features: it has no encoder to export")
    reads_embeddings = "embeddings" in card.dims
    target = (args.out or bundle_folder(args.run, args.format)).resolve()
    _require_free(target, args.run)
    weights = load_weights(args.run)
    encoder = encoder_of(card.recipe.encoder, weights.get("encoder")) if reads_embeddings else None
    head = load_ensemble(card, weights["head"])
    verification_input = (
        make_verification_input(args, card)
        if reads_embeddings
        else VerificationInput(np.zeros((0,)), "random input")
    )
    if not (args.run / TRAINING_STATS).is_file():
        with contextlib.suppress(UserError):  # without the store, the bundle has no training statistics
            write_training_stats(args.run, args.store)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        _write_networks(partial, encoder, head, card, args)
        _write_card_and_files(partial, args.run, card)
        found = check(partial, encoder, head, card, verification_input, args)
        _put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    max_difference = found["max_difference"]
    echo(f"verified on {verification_input.description}")
    differs = f"embeddings {max_difference['embedding']:.2g}, " if reads_embeddings else ""
    echo(f"largest differences from torch: {differs}logits {max_difference['logit']:.2g}")
    echo(f"wrote {target}; to use it without torch, copy it and run python -m live --run {target.name}")
    return {"run": str(args.run), "bundle": str(target), "format": args.format, **found}, 0


def export_for_live(run: Path) -> None:
    """Export a run to OpenVINO unless it has a current bundle: live then starts in a second, without torch.

    A run on imported features is not exported. If the export fails, a warning says why.
    """
    if load_card(run).recipe.pixels is None or find_bundle(run) is not None:
        return
    echo("exporting to OpenVINO for live")
    try:
        export(ExportArgs(run))
    except UserError as error:
        log_warning(f"no export; live will use torch and start more slowly: {error}")


def renew_exports(run: Path, dropped: Sequence[str]) -> None:
    """Export a run again after its old exports (formats in `dropped`) were deleted, because its calibration
    changed."""
    if dropped:
        echo(
            f"copies of its exports ({', '.join(dropped)}) keep the old threshold: export and copy them again"
        )
        export_for_live(run)


def make_verification_input(args: ExportArgs, card: Card) -> VerificationInput:
    """Crops of the run's store for verification; random input, with a warning, if it has none.

    Raises UserError if the store that --store names cannot be used.
    """
    path = args.store or card.store
    try:
        store = FeatureStore.open(path)
        found = _stored_crops(args.run, card, store) if store.has_crops else None
    except UserError:
        if args.store is not None:
            raise
        found = None
    if found is not None and len(found.crops):
        return found
    log_warning(f"{path} has no crops: the export is verified on random input instead of faces")
    assert card.recipe.pixels is not None
    crop_px = card.recipe.pixels.crop_px
    coarse = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    noise = coarse.repeat(crop_px // 8 + 1, axis=1).repeat(crop_px // 8 + 1, axis=2)[:, :crop_px, :crop_px]
    return VerificationInput(np.ascontiguousarray(noise), "random input")


def check(
    folder: Path,
    encoder: Encoder | None,
    head: Ensemble,
    card: Card,
    verification_input: VerificationInput,
    args: ExportArgs,
) -> dict[str, Any]:
    """Compare a bundle with torch; writes the differences into its manifest and returns the manifest.

    encoder: None if the head reads no embeddings.
    Raises UserError if it differs by more than is allowed.
    """
    manifest: dict[str, Any] = {
        "schema": 1,
        "format": args.format,
        "precision": "f32",
        "run_weights_sha256": sha256_of(args.run / WEIGHTS),
        "encoder_sha256": card.recipe.encoder.weights_sha256,
        "verified_on": verification_input.description,
        "max_difference": {},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    engine, run_head = open_bundle(read_manifest(folder), card, precision="f32")
    torch_embeddings, cosine = np.zeros((1, 1), np.float32), 1.0
    max_difference = manifest["max_difference"]
    if encoder is not None and engine is not None:
        torch_embeddings = encoder.embed(verification_input.crops).astype(np.float32)
        exported_embeddings = engine.embed(verification_input.crops).astype(np.float32)
        norms = np.linalg.norm(torch_embeddings, axis=1) * np.linalg.norm(exported_embeddings, axis=1)
        cosine = float(((torch_embeddings * exported_embeddings).sum(1) / norms).min())
        max_difference |= {
            "embedding": float(np.abs(torch_embeddings - exported_embeddings).max()),
            "cosine": cosine,
        }
    logit = max_difference["logit"] = max(_logit_differences(head, run_head, card, torch_embeddings))
    if not cosine >= MIN_COSINE or not logit <= MAX_LOGIT_DIFFERENCE:
        raise UserError(
            f"the export differs from torch: lowest cosine similarity of embeddings {cosine:.5f} (must be at "
            f"least {MIN_COSINE}), largest difference of logits {logit:.2g} (must be at most "
            f"{MAX_LOGIT_DIFFERENCE}). Nothing was written"
        )
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _require_free(target: Path, run: Path) -> None:
    """Raises UserError if `target` exists and is not an export, or contains the run."""
    if run.resolve().is_relative_to(target):
        raise UserError(f"--out {target} is the run itself or contains it: give another folder")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise UserError(f"--out {target} already exists and is not an export: give another folder")
    if (target / MANIFEST).is_file():
        read_manifest(target)


def _put_in_place(partial: Path, target: Path) -> None:
    """Move a finished bundle to `target`; the old one is deleted after the new one is in place."""
    old = partial.with_name(partial.name + ".old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(partial, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_networks(
    folder: Path, encoder: Encoder | None, head: Ensemble, card: Card, args: ExportArgs
) -> None:
    """Write encoder.* and head.* of a bundle."""
    assert card.recipe.pixels is not None
    crop_px, frames = card.recipe.pixels.crop_px, card.recipe.pixels.num_frames
    crop = torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8)
    inputs: list[Tensor] = []
    for dim in card.dims.values():
        inputs += [torch.zeros(1, frames, dim), torch.ones(1, frames, dtype=torch.bool)]
    networks: list[tuple[str, nn.Module | None, tuple[Tensor, ...], list[str], str]] = [
        ("encoder", encoder, (crop,), ["crop"], "embedding"),
        ("head", FlatHead(head), tuple(inputs), head_inputs(card), "logits"),
    ]
    for name, network, example, input_names, output_name in networks:
        path = folder / f"{name}{SUFFIX[args.format]}"
        if network is None:
            continue  # the head reads no embeddings
        if args.format == "onnx":
            to_onnx(network, example, input_names, [output_name], path, metadata_of(card))
        else:
            to_openvino(network, example, path, metadata_of(card))


def _write_card_and_files(folder: Path, run: Path, card: Card) -> None:
    """Write card, feature statistics, training statistics and detector files; no data about subjects."""
    from safetensors.numpy import save_file

    save_card(folder, replace(card, store="", stages=(), metrics={}, warnings=(), test_evaluations=()))
    found = load_statistics(run, card)
    statistics = {name: dict(zip(("mean", "std"), each, strict=True)) for name, each in found.items()}
    flat = {f"{name}.{key}": array for name, each in statistics.items() for key, array in each.items()}
    save_file(flat, folder / STATISTICS)
    if (run / TRAINING_STATS).is_file():
        shutil.copyfile(run / TRAINING_STATS, folder / TRAINING_STATS)
    if (run / "detector").is_dir():
        shutil.copytree(run / "detector", folder / "detector")


def _stored_crops(run: Path, card: Card, store: FeatureStore) -> VerificationInput:
    """Crops of validation clips, evenly spaced over the store, because its clips are often ordered by
    subject."""
    require_equal(card.recipe, store.recipe, ["pixels"], where=f"run {run} with store {store.path}")
    rows = rows_of(run, store, "val")
    rows = rows if len(rows) else rows_of(run, store, "train")
    rows = rows[np.linspace(0, len(rows) - 1, min(NUM_WINDOWS, len(rows))).astype(int)]
    clips = CropClips(store, card.labelling, rows)
    faces = [np.zeros((0,), np.uint8)]
    for index in range(len(rows)):
        x, valid, _ = clips.batch(np.array([index]))
        faces.append(x["crops"][0][valid["crops"][0]])
    crops = np.concatenate(faces[1:] or faces)
    chosen = np.linspace(0, len(crops) - 1, min(NUM_CHECKED, len(crops))).astype(int)
    return VerificationInput(crops[chosen], f"{len(chosen)} stored crops")


def _logit_differences(
    head: Ensemble, run_head: Callable[..., np.ndarray], card: Card, embeddings: np.ndarray
) -> list[float]:
    """Differences of the two heads' logits on a full window, a half-full one, one with gaps, and an empty
    one."""
    assert card.recipe.pixels is not None
    frames, rng = card.recipe.pixels.num_frames, np.random.default_rng(0)
    values = {
        name: (
            np.resize(embeddings, (frames, dim)) if name == "embeddings" else rng.normal(size=(frames, dim))
        ).astype(np.float32)
        for name, dim in card.dims.items()
    }
    masks = [np.ones(frames, bool), np.arange(frames) < frames // 2, rng.random(frames) < 0.5]
    found = []
    for mask in (*masks, np.zeros(frames, bool)):
        x, valid = {name: v * mask[:, None] for name, v in values.items()}, dict.fromkeys(values, mask)
        with torch.inference_mode():
            batches = (
                {name: torch.from_numpy(v)[None] for name, v in arrays.items()} for arrays in (x, valid)
            )
            torch_logits = head(*batches)[0].numpy()
        found.append(float(np.abs(torch_logits - run_head(x, valid)).max()))
    return found
