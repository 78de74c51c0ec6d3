"""The members of a run on a fine-tuned encoder, and their comparison with the old ones.

The encoder was trained on the people of all folds but the first. So only the first fold, the run's validation
subset, says how the new model does on people that it has not seen; it decides, and it calibrates.

N clips, T frames, D embedding, O outputs.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch

from features.datasets import Samples, load_samples
from features.store.table import groups_of
from seqmodel.finetuning.network import CnnLstm
from seqmodel.finetuning.setup import FinetuneSetup, member_to_tune
from seqmodel.heads.ensemble import Ensemble
from seqmodel.metrics.calibration import fit_scaling, probabilities
from seqmodel.runs.files import load_weights
from seqmodel.runs.predict import (
    held_out_folds,
    inputs_of,
    load_ensemble,
    parts_by_fold,
    predict_rows,
)
from seqmodel.runs.writer import TrainedModel
from seqmodel.training.cross_fit import CrossFit, FoldInputs, Objective, cross_fit
from seqmodel.training.task import LearningClips

ROUNDS, MIN_SHARE = 1000, 0.9
"""Bootstrap samples of the people, and the share of them in which the new model must have the lower log
loss."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The model before and after fine-tuning, on the clips of the first fold."""

    share: float
    """Share of bootstrap samples of the people in which the new model has the lower log loss."""
    before: np.ndarray
    """(n, O) logits of the old model."""
    after: np.ndarray

    @property
    def is_better(self) -> bool:
        """Whether the new model is kept."""
        return self.share >= MIN_SHARE


def refit(setup: FinetuneSetup, model: CnnLstm, clips: tuple[Any, Any], device: str) -> TrainedModel:
    """The run's members on the tuned encoder: the head that was tuned with it stands for all heads of its
    member (heads fitted anew on embeddings of people whom the encoder has seen do worse on others); other
    members that read embeddings are fitted anew; the rest stays.

    clips: the training and validation clips, as crops or cached activations. Only the first fold is held out.
    """
    card = setup.card
    rows = np.concatenate([setup.train.rows, setup.val.rows])
    samples = load_samples(setup.store, card.labelling, rows, inputs_of(card))
    found = [embed_clips(model, each, device) for each in clips]
    embeddings, valid = (np.concatenate(parts) for parts in zip(*found, strict=True))
    samples = dataclasses.replace(
        samples, x=samples.x | {"embeddings": embeddings}, valid=samples.valid | {"embeddings": valid}
    )
    folds = held_out_folds(setup.run, setup.store, rows)
    inputs = FoldInputs(samples, folds)
    objective = Objective(card.labelling.task, len(card.labelling.names), card.metric)  # type: ignore[arg-type]
    old = load_ensemble(card, load_weights(setup.run)["head"])
    tuned, members = member_to_tune(card), list[CrossFit]()
    for index, config in enumerate(card.members):
        if config.stream == "embeddings" and index != tuned:
            found_anew = cross_fit(inputs, config, objective, seed=card.seed, device=device)
            # After an earlier fine-tuning there is one fold, but as many heads as before are shipped.
            heads = found_anew.heads + (found_anew.heads[0],) * (card.num_folds - len(found_anew.heads))
            members.append(dataclasses.replace(found_anew, heads=tuple(copy.deepcopy(h) for h in heads)))
            continue
        kept = old.heads(index)
        if index == tuned:
            model.to("cpu")
            kept = [copy.deepcopy(model.head.heads(0)[0]) for _ in kept]
        alone = Ensemble([kept], card.labelling.task)
        members.append(CrossFit(config, tuple(kept), logits_of(alone, samples, inputs.folds), ()))
    groups = groups_of(setup.store.table(), rows)
    return TrainedModel(tuple(members), LearningClips(rows, groups, np.where(folds == 0, 0, -1)), objective)


def logits_of(alone: Ensemble, samples: Samples, folds: np.ndarray) -> np.ndarray:
    """(N, O) out-of-fold logits of a member alone; NaN for clips that no fold holds out, or without a
    frame."""
    (stream,) = alone.dims
    seen = np.asarray(samples.valid[stream]).any(axis=1)
    found = np.full((len(samples), alone.num_outputs), np.nan, np.float32)
    x, valid, _ = samples.batch(np.arange(len(samples)))
    for part, indices in parts_by_fold(alone, folds):
        if folds[indices[0]] >= 0:
            arrays = ({stream: torch.from_numpy(np.asarray(a[stream][indices]))} for a in (x, valid))
            with torch.inference_mode():
                found[indices] = part(*arrays).numpy()
    found[~seen] = np.nan
    return found


def embed_clips(model: CnnLstm, clips: Any, device: str) -> tuple[np.ndarray, np.ndarray]:
    """((N, T, D) float16, (N, T) bool): embeddings of clips by the tuned encoder, 0 without a face."""
    model.eval()
    found, masks = [], []
    with torch.inference_mode():
        for index in range(len(clips)):
            x, valid, _ = clips.batch(np.array([index]))
            (name,) = {"crops", "activations"} & set(x)
            mask = np.asarray(valid[name][0])
            embeddings = np.zeros((len(mask), model.encoder.dim), np.float16)
            if mask.any():
                frames = torch.from_numpy(np.ascontiguousarray(x[name][0][mask])).to(device)
                embeddings[mask] = model.embed(frames, name).cpu().numpy()
            found.append(embeddings)
            masks.append(mask)
    return np.stack(found), np.stack(masks)


def compare(setup: FinetuneSetup, new: TrainedModel) -> Comparison:
    """The old and the new model on the clips of the first fold."""
    card, rows = setup.card, setup.val.rows
    folds = np.zeros(len(rows), np.int64)
    before, _ = predict_rows(setup.run, card, setup.store, card.labelling, rows, folds=folds)
    after = new.logits[len(setup.train.rows) :]
    labels, task = np.asarray(setup.val.labels), card.labelling.task
    known = ~np.isnan(before[:, 0]) & ~np.isnan(after[:, 0])
    groups = groups_of(setup.store.table(), rows)[known]
    names, index = np.unique(groups, return_inverse=True)
    losses = [_losses(z[known], labels[known], task) for z in (before, after)]
    gains = np.bincount(index, losses[0] - losses[1], len(names))
    rng = np.random.default_rng(0)
    draws = rng.integers(len(names), size=(ROUNDS, len(names)))
    return Comparison(float((gains[draws].sum(axis=1) > 0).mean()), before, after)


def _losses(logits: np.ndarray, labels: np.ndarray, task: Any) -> np.ndarray:
    """(n,) negative log-likelihood of each clip, after a temperature and bias fitted on all of them."""
    p = probabilities(logits, task, fit_scaling(logits.astype(np.float64), labels, task, always=True))
    return -np.log(np.clip(p[np.arange(len(labels)), labels], 1e-6, 1.0))
