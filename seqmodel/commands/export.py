"""python -m seqmodel export: encoder and head as files that need no torch, checked on real crops.

A bundle (see bundle.py) is written beside, compared with torch on crops of the store, and put in its place
only where it agrees.

F frames, T frames of a window, D embedding, O outputs.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import echo, log_warning
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
from seqmodel.heads.recurrent import LstmHead
from seqmodel.runs.card import WEIGHTS, Card, load_card, load_weights, save_card, write_text
from seqmodel.runs.training_stats import FILE as REFERENCE
from seqmodel.runs.training_stats import STATISTICS, rows_of, write_training_stats

MIN_COSINE = 0.9999
"""Worst cosine allowed between torch's embedding of a crop and the export's. float32 engines differ in the
last bits only (1.0000 measured)."""
MAX_LOGIT_DIFFERENCE = 1e-3
"""Largest difference allowed between torch's logits and the export's on the same numbers; 1e-7 is usual."""
NUM_CHECKED, NUM_WINDOWS = 64, 40


@dataclass(frozen=True)
class Evidence:
    """What an export is checked on."""

    crops: np.ndarray
    """uint8 (F, H, W, 3), RGB."""
    description: str
    """Where the crops come from, in words."""


def export(args: ExportArgs) -> tuple[dict[str, Any], int]:
    """Write and check a bundle; gives the summary and exit code 0.

    Raises ValueError when the run is unfinished, a package is missing, something else stands at --out or the
    export differs from torch.
    """
    card = load_card(args.run)
    if card.recipe.pixels is None:
        raise ValueError(f"{args.run} was trained on imported features: it has no encoder to export")
    reads_embeddings = "embeddings" in card.dims
    target = (args.out or bundle_folder(args.run, args.format)).resolve()
    _require_free(target, args.run)
    weights = load_weights(args.run)
    encoder = encoder_of(card.recipe.encoder, weights.get("encoder")) if reads_embeddings else None
    head = LstmHead(card.head, card.dims, card.num_outputs)
    head.load_state_dict(weights["head"])
    head.eval()
    evidence = gather(args, card) if reads_embeddings else Evidence(np.zeros((0,)), "seeded numbers")
    if not (args.run / REFERENCE).is_file():
        with contextlib.suppress(ValueError):  # a store that is far away: the bundle goes without the figures
            write_training_stats(args.run, args.store)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write_networks(partial, encoder, head, card, args)
        _write_rest(partial, args.run, card, weights["head"])
        found = check(partial, encoder, head, card, evidence, args)
        _put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    most = found["max_difference"]
    echo(f"checked on {evidence.description}")
    differs = f"embeddings {most['embedding']:.2g}, " if reads_embeddings else ""
    echo(f"largest differences from torch: {differs}logits {most['logit']:.2g}")
    echo(f"wrote {target}: copy it to a machine without torch, and python -m live --run {target.name}")
    return {"run": str(args.run), "bundle": str(target), "format": args.format, **found}, 0


def export_for_live(run: Path) -> None:
    """Give a run its own bundle unless it has one that fits: live then starts in a second, without torch.

    A run of imported features gets none; where it cannot be made, a warning says why.
    """
    if load_card(run).recipe.pixels is None or find_bundle(run) is not None:
        return
    echo("making the run ready for live")
    try:
        export(ExportArgs(run))
    except ValueError as error:
        log_warning(f"live will start more slowly, with torch: {error}")


def renew_exports(run: Path, dropped: Sequence[str]) -> None:
    """Make a run ready for live again whose exports were dropped, because it decides otherwise now."""
    if dropped:
        echo(f"copies of its exports ({', '.join(dropped)}) decide as before until they are made again")
        export_for_live(run)


def gather(args: ExportArgs, card: Card) -> Evidence:
    """Crops of the run's store to check on; seeded noise, said aloud, where it keeps none.

    Raises ValueError where the store that --store names cannot be used.
    """
    place = args.store or card.store
    try:
        store = FeatureStore.open(place)
        found = _stored(args.run, card, store) if store.has_crops else None
    except ValueError:
        if args.store is not None:
            raise
        found = None
    if found is not None and len(found.crops):
        return found
    log_warning(f"{place} has no crops: the export is checked on noise instead of faces")
    assert card.recipe.pixels is not None
    subset = card.recipe.pixels.crop_px
    coarse = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    noise = coarse.repeat(subset // 8 + 1, axis=1).repeat(subset // 8 + 1, axis=2)[:, :subset, :subset]
    return Evidence(np.ascontiguousarray(noise), "noise")


def check(
    folder: Path, encoder: Encoder | None, head: LstmHead, card: Card, evidence: Evidence, args: ExportArgs
) -> dict[str, Any]:
    """Compare a bundle with torch, write what was found into its manifest, and give it.

    encoder: None where the head reads no embeddings.
    Raises ValueError when it differs by more than is allowed.
    """
    plain: dict[str, Any] = {
        "schema": 1,
        "format": args.format,
        "precision": "f32",
        "run_weights_sha256": sha256_of(args.run / WEIGHTS),
        "encoder_sha256": card.recipe.encoder.weights_sha256,
        "checked_on": evidence.description,
        "max_difference": {},
    }
    write_text(folder / MANIFEST, json.dumps(plain, indent=1) + "\n")
    engine, run_head = open_bundle(read_manifest(folder), card, precision="f32")
    ours, cosine = np.zeros((1, 1), np.float32), 1.0
    most = plain["max_difference"]
    if encoder is not None and engine is not None:
        ours = encoder.embed(evidence.crops).astype(np.float32)
        theirs = engine.embed(evidence.crops).astype(np.float32)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine = float(((ours * theirs).sum(1) / norms).min())
        most |= {"embedding": float(np.abs(ours - theirs).max()), "cosine": cosine}
    logit = most["logit"] = max(_logit_differences(head, run_head, card, ours))
    if not cosine >= MIN_COSINE or not logit <= MAX_LOGIT_DIFFERENCE:
        raise ValueError(
            f"the export differs from torch: worst cosine of an embedding {cosine:.5f} (at least "
            f"{MIN_COSINE} wanted), logits by {logit:.2g} (at most {MAX_LOGIT_DIFFERENCE}): "
            "nothing was written"
        )
    write_text(folder / MANIFEST, json.dumps(plain, indent=1) + "\n")
    return plain


def _require_free(target: Path, run: Path) -> None:
    """Raises ValueError when something stands at `target` that is no bundle of ours."""
    if run.resolve().is_relative_to(target):
        raise ValueError(f"--out {target} is the run itself, or holds it: name another folder")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise ValueError(f"--out {target} is there already and is no export: name another folder")
    if (target / MANIFEST).is_file():
        read_manifest(target)


def _put_in_place(partial: Path, target: Path) -> None:
    """Move a finished bundle to `target`; what stood there goes only when the new one is in its place."""
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
    folder: Path, encoder: Encoder | None, head: LstmHead, card: Card, args: ExportArgs
) -> None:
    """encoder.* and head.* of a bundle."""
    assert card.recipe.pixels is not None
    subset, frames = card.recipe.pixels.crop_px, card.recipe.pixels.num_frames
    crop = torch.zeros(1, subset, subset, 3, dtype=torch.uint8)
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


def _write_rest(folder: Path, run: Path, card: Card, head: Mapping[str, Tensor]) -> None:
    """Card, statistics, reference and model files; nothing about people."""
    from safetensors.torch import save_file

    save_card(folder, replace(card, store="", stages=(), metrics={}, warnings=(), test_openings=()))
    kept = {name: tensor for name, tensor in head.items() if name.startswith(("mean_", "std_"))}
    save_file({f"head.{name}": tensor.contiguous() for name, tensor in kept.items()}, folder / STATISTICS)
    if (run / REFERENCE).is_file():
        shutil.copyfile(run / REFERENCE, folder / REFERENCE)
    if (run / "detector").is_dir():
        shutil.copytree(run / "detector", folder / "detector")


def _stored(run: Path, card: Card, store: FeatureStore) -> Evidence:
    """Crops of validation clips, evenly over the store, whose clips often lie person by person."""
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
    return Evidence(crops[chosen], f"{len(chosen)} stored crops")


def _logit_differences(
    head: LstmHead, run_head: Callable[..., np.ndarray], card: Card, embeddings: np.ndarray
) -> list[float]:
    """Differences of the two heads on full, half-empty, gappy and empty windows of the same numbers."""
    assert card.recipe.pixels is not None
    frames, chance = card.recipe.pixels.num_frames, np.random.default_rng(0)
    values = {
        name: (
            np.resize(embeddings, (frames, dim))
            if name == "embeddings"
            else chance.normal(size=(frames, dim))
        ).astype(np.float32)
        for name, dim in card.dims.items()
    }
    masks = [np.ones(frames, bool), np.arange(frames) < frames // 2, chance.random(frames) < 0.5]
    found = []
    for mask in (*masks, np.zeros(frames, bool)):
        x, valid = {name: v * mask[:, None] for name, v in values.items()}, dict.fromkeys(values, mask)
        with torch.inference_mode():
            batches = (
                {name: torch.from_numpy(v)[None] for name, v in subset.items()} for subset in (x, valid)
            )
            ours = head(*batches)[0].numpy()
        found.append(float(np.abs(ours - run_head(x, valid)).max()))
    return found
