"""Options of `python -m tune`. `--help` imports this file and seqmodel.config alone: keep their imports
light."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from features.cli import UserError
from seqmodel.config import Design, Inputs, LabelArgs, Metric

BASELINE_ROLE = "the seed project's settings"
"""Role of a study's first trial."""


@dataclass(frozen=True)
class TuneArgs:
    """Search the hyperparameters of recurrent heads and trees on the cached features of a store, and write
    the mean of the best ones as a run.

    The same command resumes a stopped search. With a shared --storage, it joins the search from other
    machines.
    """

    store: Path
    """The store that `python -m extract` wrote."""
    out: Path
    """The run directory to write, as runs/NAME."""
    label: LabelArgs = LabelArgs()
    inputs: Inputs | None = None
    """Streams to use; default: the search chooses among the streams of the store."""
    trials: int = 12
    """Number of trials of the study in total, over all workers and earlier calls."""
    workers: int = 2
    """Number of worker processes on this machine; they share its cores."""
    metric: Metric = "auto"
    """Metric to maximise out of fold. auto: auroc (binary), macro_f1 (multiclass), qwk (ordinal)."""
    single: bool = False
    """Write the best member alone, instead of the mean of several."""
    epochs: int = 0
    """Number of epochs of each head; 0 = 30, or 10 with 1,000 clips or more."""
    pruning: Literal["on", "off"] = "on"
    """Stop a trial that falls behind the best one of its stream: after three folds, or with one fold at
    epochs 4, 8 and 16."""
    storage: str = ""
    """Optuna storage: postgresql+psycopg://…, grpc://HOST:PORT …; default: a journal file in the run."""
    study: str = ""
    """Name of the study in the storage."""
    splits_from: Path | None = None
    """Reuse this run's train/val/test split. New subjects are added to it."""
    design: Design = "auto"
    """Study design. holdout: a test subset; folds: no test subset, evaluate holds every person out in folds;
    auto: holdout with an official split or 40 people, else folds."""
    finetune: bool = False
    """Then fine-tune encoder and head of the best run together on the stored crops."""
    seed: int = 0
    """Seed of the split, the sampler and the heads."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line, set by `features.cli.parse`; not an option."""

    def __post_init__(self) -> None:
        for name, minimum in (("trials", 1), ("workers", 1), ("epochs", 0), ("seed", 0)):
            if (value := getattr(self, name)) < minimum:
                raise UserError(f"--{name} must be at least {minimum}, got {value}")
        if self.storage and "://" not in self.storage and not self.storage.endswith(".log"):
            raise UserError(f"--storage {self.storage} must be a URL or a journal file (NAME.log)")
