"""What a user can set about heads, training and judging: frozen dataclasses whose docstrings are the help.

Light on purpose: `--help` reads this file alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Inputs = Literal["embeddings", "geometry", "both"]
Metric = Literal["auto", "auroc", "macro_f1", "balanced_accuracy", "qwk"]

METRIC_OF_TASK: dict[str, Literal["auroc", "macro_f1", "qwk"]] = {
    "binary": "auroc",
    "multiclass": "macro_f1",
    "ordinal": "qwk",
}
"""What `--metric auto` means; never plain accuracy."""


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head."""

    kind: Literal["lstm", "gru"] = "lstm"
    """Recurrent cell."""
    hidden: int = 128
    """Hidden size H of each direction."""
    layers: int = 1
    """Stacked recurrent layers."""
    bidirectional: bool = True
    """Read the window both ways."""
    projection: int = 128
    """Width that each stream is projected to before the recurrent layers; 0 = no projection."""
    dropout: float = 0.3
    """Dropout before the recurrent layers and before the logits."""
    pooling: Literal["last", "mean", "max", "attention"] = "mean"
    """How valid steps become one vector."""
    stream_dropout: float = 0.0
    """Chance that training hides a whole stream of a clip, so that a head survives losing one."""
    centred_copy: bool = False
    """Add each feature minus its mean over the window, as extra channels."""
    dynamics: bool = False
    """Add differences between neighbouring frames and rates of rises, as extra channels."""
    shared_thresholds: bool = False
    """Ordinal tasks: one score and a threshold for each step between levels (set by the task itself)."""


@dataclass(frozen=True)
class TrainConfig:
    """How a head is trained. The defaults are the seed project's settings."""

    epochs: int = 15
    """Most passes over the training clips."""
    patience: int = 4
    """Epochs without a better validation score before stopping."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    batch_size: int = 8
    """Clips a step."""
    scheduler: Literal["cosine", "plateau", "none"] = "cosine"
    """Learning rate over time: cosine with a warm-up, lower on a plateau, or constant."""
    label_smoothing: float = 0.0
    """Share of each target spread over the classes."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Loss of binary and multi-class tasks."""
    class_weighting: bool = True
    """Weigh classes by inverse frequency (binary: positive weight)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on standardised features in training."""
    frame_dropout: float = 0.0
    """Chance that training hides a frame."""
    subsample: float = 0.0
    """Chance that training sees only a random stretch of a window."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format of training's products; auto is bf16 where the processor has it. Validation is f32."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How encoder and head are trained together, end to end."""

    epochs: int = 6
    """Most epochs with the encoder unfrozen."""
    head_only_epochs: int = 1
    """Epochs of the head alone, first."""
    patience: int = 3
    """Epochs without a better validation score before stopping."""
    head_lr: float = 3e-4
    """Learning rate of the head."""
    encoder_lr: float = 3e-5
    """Learning rate of the encoder at its last block; lower ones learn more slowly."""
    layer_decay: float = 0.8
    """Each block's learning rate, as a share of the next one's."""
    scheduler: Literal["cosine", "plateau", "none"] = "cosine"
    """Learning rates over time: cosine with a warm-up, lower on a plateau, or constant."""
    weight_decay: float = 0.01
    """Weight decay, off for norms and biases."""
    effective_batch: int = 8
    """Clips a step, gathered one clip at a time."""
    augmented_copies: int = 4
    """Of a training clip, to cache the activations of: its crops as they are, and augmented draws of them."""
    save_every_s: float = 60.0
    """Seconds between checkpoints within an epoch; there is one after each epoch in any case."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format of training's products; auto is bf16 where the processor or GPU has it. Validation on a
    processor is f32."""
    compile: bool = False
    """On CUDA, compile the blocks that learn (torch.compile): minutes at first, faster steps after."""


@dataclass(frozen=True)
class LabelArgs:
    """Which question is put to the labels; shared by train and tune."""

    label: str = "label"
    """Label column of the store."""
    labels: str = ""
    """Order of the classes, as distracted,engaged: the last is the positive one. Others are left out. With
    --binarize-at, two names are those of the two classes, others list the levels."""
    binarize_at: int | None = None
    """Make two classes: levels below K, and K or above."""
    merge: tuple[str, ...] = ()
    """Merge label names, as a+b or new=a+b."""
    task: Literal["auto", "binary", "multiclass", "ordinal"] = "auto"
    """What the labels are; ordinal only when asked for."""


@dataclass(frozen=True)
class TrainArgs:
    """Train one head on cached features, without a search."""

    store: Path
    """The store that `python -m extract` wrote."""
    run: Path
    """The run directory to write, as runs/NAME."""
    label: LabelArgs = LabelArgs()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    inputs: Inputs | None = None
    """Streams to use; by default every stream that the store holds."""
    metric: Metric = "auto"
    """What early stopping looks at on validation."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: str = "auto"
    """cpu, cuda or auto."""
    splits_from: Path | None = None
    """A run whose people keep their side."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line as it was given, which `features.cli.parse` puts here; no option."""


@dataclass(frozen=True)
class FinetuneArgs:
    """Train encoder and best head together, end to end, from stored crops."""

    run: Path
    """The run directory, with a trained head."""
    store: Path | None = None
    """The store with crops; by default the one that the run was trained on."""
    finetune: FinetuneConfig = FinetuneConfig()
    preset: Literal["brainbuddy", "seed"] = "brainbuddy"
    """Training recipe: ours, or the seed project's (batch 8, accumulation 32, AdamW)."""
    unfreeze_from: int | None = None
    """First encoder block that is trained; by default the measured best."""
    activation_cache: Literal["on", "off"] = "on"
    """Keep the frozen blocks' activations at the cut, so that they are computed once."""
    augment: bool = True
    """Clip-consistent augmentation."""
    re_extract: Path | None = None
    """Afterwards write a new store with the fine-tuned encoder's embeddings."""
    seed: int = 0
    """Seed of order and augmentation."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line as it was given, which `features.cli.parse` puts here; no option."""


@dataclass(frozen=True)
class EvaluateArgs:
    """Judge a run on a split, with baselines and intervals, and write its report."""

    run: Path
    """The run directory."""
    store: Path | None = None
    """The store to judge on; by default the one that the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Which clips. Opening test is counted in the card and the store."""
    bootstrap_rounds: int = 1000
    """Bootstrap rounds, by subject."""
    umap: bool = False
    """Draw the embeddings with UMAP (takes some seconds more)."""
    thumbnails: bool = False
    """Show faces of the hardest clips, when the store keeps crops."""
    threshold_metric: str = ""
    """Goal of the threshold, chosen on validation: balanced_accuracy, f1, accuracy or recall:CLASS=0.8."""
    abstain: float = 0.0
    """Share of validation clips nearest to the threshold on which the model says nothing."""
    folds: str = ""
    """K or loso: refit for each fold and pool the out-of-fold predictions."""
    label_map: tuple[str, ...] = ()
    """Label names of another store, as theirs=ours."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line as it was given, which `features.cli.parse` puts here; no option."""


@dataclass(frozen=True)
class CalibrateArgs:
    """Refit temperature and threshold on some people of a new place; test on the others."""

    run: Path
    """The run directory."""
    store: Path
    """A store of the new place."""
    threshold_metric: str = "balanced_accuracy"
    """Goal of the threshold: balanced_accuracy, f1, accuracy or recall:CLASS=0.8."""
    fit_fraction: float = 0.5
    """Share of the people that calibrate; the rest test."""
    seed: int = 0
    """Seed of that split."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line as it was given, which `features.cli.parse` puts here; no option."""


@dataclass(frozen=True)
class CompareArgs:
    """Put runs side by side on the test clips that they share."""

    runs: tuple[Path, ...]
    """Two or more run directories; the first is the one that the others are compared with."""
    gate: bool = False
    """Exit 1 unless the last run is no worse than the first."""
    metric: Metric = "auto"
    """What is compared."""
    bootstrap_rounds: int = 1000
    """Bootstrap rounds, by subject."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""


@dataclass(frozen=True)
class ExportArgs:
    """Write encoder and head as one model for machines without torch."""

    run: Path
    """The run directory."""
    format: Literal["onnx", "openvino"] = "openvino"
    """Format."""
    out: Path | None = None
    """Where to; by default into the run."""
    store: Path | None = None
    """The store whose crops check the export."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
