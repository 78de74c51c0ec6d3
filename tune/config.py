"""What `python -m tune` can be told. Light: `--help` reads this file and seqmodel.config alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seqmodel.config import Inputs, LabelArgs, Metric

BASELINE_ROLE = "the seed project's settings"
"""Of the trial that a study begins with."""


@dataclass(frozen=True)
class TuneArgs:
    """Search LSTM and GRU heads on the cached features of a store, and keep the best as a run.

    The same command goes on where a search stopped, and joins it from other machines when --storage is
    shared.
    """

    store: Path
    """The store that `python -m extract` wrote."""
    out: Path
    """The run directory to write, as runs/NAME."""
    label: LabelArgs = LabelArgs()
    inputs: Inputs | None = None
    """Streams to use; by default what the store holds, and with two the search decides."""
    trials: int = 50
    """Heads to try, all workers and earlier calls of the same study together."""
    workers: int = 2
    """Worker processes on this machine; they share its cores."""
    metric: Metric = "auto"
    """What is maximised on validation: auroc (binary), macro_f1 (multi-class) or qwk (ordinal) by default."""
    folds: int = 0
    """Score each trial by K folds of people over train and validation; 0 = the validation split alone. With
    folds no checkpoints of trials are kept."""
    reseed: int = 3
    """Fresh seeds with which the best few, and the seed project's settings, are trained again: their mean
    chooses, as the search's own score is the best of many tries. 0 or 1 = off."""
    epochs: int = 20
    """Most epochs of a trial."""
    pruning: Literal["on", "off"] = "on"
    """Stop trials early that fall behind: Hyperband over epochs (of 1,000 training clips and more its most
    eager bracket), or with --folds 3 and more Wilcoxon's test over folds."""
    center: Literal["none", "window", "subject"] = "none"
    """Subtract from the geometry stream its mean over the window, or over everything known of that person."""
    storage: str = ""
    """Optuna storage: postgresql+psycopg://…, grpc://HOST:PORT …; by default a journal file in the run."""
    study: str = ""
    """Name of the study within the storage."""
    splits_from: Path | None = None
    """A run whose people keep their side."""
    finetune: bool = False
    """Afterwards train encoder and head together on the stored crops."""
    seed: int = 0
    """Seed of the split, the sampler and every head."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, the summary, on stdout."""
    command: str = field(default="", init=False, compare=False)
    """The command line as it was given, which `features.cli.parse` puts here; no option."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("workers", 1), ("epochs", 1), ("reseed", 0), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        if self.storage and "://" not in self.storage and not self.storage.endswith(".log"):
            raise ValueError(f"--storage {self.storage} is no URL, and no journal file (NAME.log)")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"--folds takes 0 (the validation split) or 2 and more, got {self.folds}")
