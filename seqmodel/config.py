"""Options of `python -m seqmodel`, as frozen dataclasses: heads, training, evaluation and export.

The docstrings are the texts of `--help`, which imports this file alone: keep its imports light.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Inputs = Literal["embeddings", "geometry", "both"]
Design = Literal["auto", "holdout", "folds"]
Scheduler = Literal["cosine", "plateau", "none"]
Metric = Literal["auto", "auroc", "macro_f1", "balanced_accuracy", "qwk"]

METRIC_OF_TASK: dict[str, Literal["auroc", "macro_f1", "qwk"]] = {
    "binary": "auroc",
    "multiclass": "macro_f1",
    "ordinal": "qwk",
}
"""Task -> metric that `--metric auto` stands for; never plain accuracy."""


@dataclass(frozen=True)
class HeadConfig:
    """Architecture of a head, which reads one stream."""

    kind: Literal["lstm", "gru", "trees"] = "lstm"
    """Recurrent cell; or extremely randomised trees on window statistics, which use `components` alone."""
    components: int = 32
    """Principal components of the stream that the head reads, if it is wider; 0 = all features."""
    hidden: int = 32
    """Hidden size H of each direction."""
    layers: int = 1
    """Stacked recurrent layers."""
    bidirectional: bool = True
    """Read the window forwards and backwards."""
    dropout: float = 0.3
    """Dropout before the recurrent layers and before the logits."""
    pooling: Literal["mean", "stats", "attention"] = "stats"
    """How the states of valid steps become one vector: their mean; mean, standard deviation and maximum; or a
    weighted mean."""
    statistics: bool = True
    """Also read statistics of the window: mean, spread, quantiles, slope and change of each component."""
    shared_thresholds: bool = False
    """Ordinal tasks: one score, and one threshold between each two levels. The task sets this."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of a head: a fixed number of epochs with a learning rate that falls to 0."""

    epochs: int = 30
    """Number of epochs."""
    lr: float = 3e-3
    """Learning rate of AdamW: a short warm-up, then half a cosine down to 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    batch_size: int = 16
    """Clips per optimizer step."""
    class_weighting: bool = False
    """Weight each class in the loss by its inverse frequency (binary: positive weight). Trees always do."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise that training adds to standardised features."""
    frame_dropout: float = 0.0
    """Probability that training masks a frame."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient; 0 = no clipping."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format in training: auto is bf16 if the processor supports it. Validation uses f32."""


@dataclass(frozen=True)
class MemberConfig:
    """One member of an ensemble: the stream that it reads, its head and its training."""

    stream: Literal["embeddings", "geometry"]
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()

    @property
    def family(self) -> str:
        """Stream and kind of head; an ensemble has at most one member of each family."""
        return f"{self.stream} {'trees' if self.head.kind == 'trees' else 'recurrent'}"


@dataclass(frozen=True)
class FinetuneConfig:
    """Training of encoder and head together, end to end."""

    epochs: int = 6
    """Maximum number of epochs with the encoder unfrozen."""
    head_only_epochs: int = 1
    """Epochs before these, in which only the head is trained."""
    patience: int = 3
    """Early stopping: epochs without a better validation score."""
    head_lr: float = 3e-4
    """Learning rate of the head."""
    encoder_lr: float = 3e-5
    """Learning rate of the encoder's last block; earlier blocks have lower ones (--layer-decay)."""
    layer_decay: float = 0.8
    """Factor from a block's learning rate to that of the block before it."""
    scheduler: Scheduler = "cosine"
    """Schedule of the learning rates: cosine with warm-up, halved on a plateau, or none (constant)."""
    weight_decay: float = 0.01
    """Weight decay; norms and biases have none."""
    effective_batch: int = 8
    """Effective batch size in clips (gradient accumulation, one clip at a time)."""
    augmented_copies: int = 4
    """Versions of each training clip in the activation cache: the original and augmented copies; 1 = the
    original alone."""
    save_every_s: float = 60.0
    """Seconds between checkpoints within an epoch. Each epoch also ends with one."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format in training: auto is bf16 if the processor or GPU supports it. Validation on a processor
    uses f32."""


@dataclass(frozen=True)
class LabelArgs:
    """How labels map to classes."""

    label: str = "label"
    """Label column of the store."""
    labels: str = ""
    """Classes in order, as distracted,engaged. The last one is the positive class. Clips with another label
    are left out. With --binarize-at: two names name the two classes, more names list the levels."""
    binarize_at: int | None = None
    """Make two classes: levels below K, and levels K and above."""
    merge: tuple[str, ...] = ()
    """Merge labels into one class, as a+b or new=a+b."""
    task: Literal["auto", "binary", "multiclass", "ordinal"] = "auto"
    """Type of task. auto is binary or multiclass; ordinal must be requested."""


@dataclass(frozen=True)
class TrainArgs:
    """Train one head on the cached features of a store, without a search."""

    store: Path
    """The store that `python -m extract` wrote."""
    run: Path
    """The run directory to write, as runs/NAME."""
    label: LabelArgs = LabelArgs()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    inputs: Inputs | None = None
    """Streams to use; default: all streams of the store."""
    metric: Metric = "auto"
    """Metric of the out-of-fold score. auto: auroc (binary), macro_f1 (multiclass), qwk (ordinal)."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of clips and augmentation."""
    device: str = "auto"
    """cpu, cuda or auto."""
    splits_from: Path | None = None
    """Reuse this run's train/val/test split. New subjects are added to it."""
    design: Design = "auto"
    """Study design. holdout: a test subset; folds: no test subset, evaluate holds every person out in folds;
    auto: holdout with an official split or 40 people, else folds."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line, set by `features.cli.parse`; not an option."""


@dataclass(frozen=True)
class FinetuneArgs:
    """Fine-tune the encoder and head of a run together, end to end, on stored crops."""

    run: Path
    """The run directory, with a trained head. It is updated."""
    store: Path | None = None
    """The store with crops; default: the store that the run was trained on."""
    finetune: FinetuneConfig = FinetuneConfig()
    preset: Literal["brainbuddy", "seed"] = "brainbuddy"
    """Training settings: brainbuddy (the options here) or those of the seed project (batch 8, accumulation
    32, AdamW)."""
    unfreeze_from: int | None = None
    """First encoder block to train; blocks before it stay frozen. Default: the best one for this encoder in
    our measurements."""
    activation_cache: Literal["on", "off"] = "on"
    """Compute the output of the frozen blocks once and cache it on disk."""
    augment: bool = True
    """Augment crops, in the same way for all frames of a clip."""
    re_extract: Path | None = None
    """Then write a new store with the embeddings of the fine-tuned encoder."""
    seed: int = 0
    """Seed of the order of clips and of augmentation."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line, set by `features.cli.parse`; not an option."""


@dataclass(frozen=True)
class EvaluateArgs:
    """Evaluate a run on a split: metrics with confidence intervals, baselines, and a report."""

    run: Path
    """The run directory."""
    store: Path | None = None
    """The store to evaluate on; default: the store that the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Split to evaluate on. Every evaluation on test is logged in the run's card and in the store."""
    bootstrap_rounds: int = 1000
    """Number of bootstrap samples of the subjects, for confidence intervals."""
    umap: bool = False
    """Plot the embeddings with UMAP (some seconds more)."""
    thumbnails: bool = False
    """Show face crops of the clips with the largest errors, if the store has crops."""
    threshold_metric: str = ""
    """Choose a new threshold on validation that maximises balanced_accuracy, f1 or accuracy, or that reaches
    recall:CLASS=0.8. Saved in the run."""
    abstain: float = 0.0
    """Selective prediction: fraction of validation clips, nearest to the threshold, without a prediction.
    Saved in the run."""
    folds: str = ""
    """Cross-validation by subject instead of a split: K folds, loso (leave one subject out), or column (the
    folds that the manifest names, such as published ones). Heads are trained again in each fold."""
    label_map: tuple[str, ...] = ()
    """Map label names of another store to those of the run, as STORE_LABEL=RUN_LABEL."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line, set by `features.cli.parse`; not an option."""


@dataclass(frozen=True)
class CalibrateArgs:
    """Fit temperature and threshold for a new domain on some of its subjects, and test on the others."""

    run: Path
    """The run directory."""
    store: Path
    """A store of the new domain, with none of the run's clips."""
    threshold_metric: str = "balanced_accuracy"
    """Choose the threshold that maximises balanced_accuracy, f1 or accuracy, or that reaches
    recall:CLASS=0.8."""
    fit_fraction: float = 0.5
    """Fraction of the subjects to fit on; the others are for testing."""
    seed: int = 0
    """Seed of the random choice of subjects, and of the bootstrap."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line, set by `features.cli.parse`; not an option."""


@dataclass(frozen=True)
class CompareArgs:
    """Compare runs on the test clips that they share."""

    runs: tuple[Path, ...]
    """Two or more run directories. The others are compared with the first."""
    gate: bool = False
    """Exit with code 1 if the last run is worse than the first."""
    metric: Metric = "auto"
    """Metric for --gate. auto: auroc (binary), macro_f1 (multiclass), qwk (ordinal)."""
    bootstrap_rounds: int = 1000
    """Number of bootstrap samples of the subjects, for confidence intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""


@dataclass(frozen=True)
class ExportArgs:
    """Export encoder and head for machines without torch."""

    run: Path
    """The run directory."""
    format: Literal["onnx", "openvino"] = "openvino"
    """File format of the networks."""
    out: Path | None = None
    """Folder to write; default: a folder in the run."""
    store: Path | None = None
    """The store whose crops verify the export; default: the store that the run was trained on."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
