"""A card keeps the options that were given, and a report prints commands that give them again."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from extract.config import ExtractConfig
from features.door import parse
from features.store import plan
from seqmodel.asked import Asked
from seqmodel.config import (
    CalibrateArgs,
    EvaluateArgs,
    FinetuneArgs,
    FinetuneConfig,
    HeadConfig,
    LabelArgs,
    TrainArgs,
    TrainConfig,
)
from seqmodel.evaluate import open_split
from seqmodel.options import options_of
from seqmodel.story import commands
from tests.judged import RECIPE, WITH_GEOMETRY, make_run, make_store
from tune.config import TuneArgs

STORE, RUN = Path("내 저장소.zarr"), Path("runs/it's one")
LABELS = LabelArgs("level", "a b,c", binarize_at=2, merge=("x=a b+c", "y=d"), task="ordinal")
ASKED: list[Any] = [
    TuneArgs(STORE, RUN),
    TuneArgs(
        STORE, RUN, LABELS, "geometry", folds=3, reseed=0, pruning="off", splits_from=RUN, finetune=True
    ),
    TrainArgs(
        STORE, RUN, LABELS, HeadConfig(hidden=8, centre=True), TrainConfig(class_weighting=False), seed=2
    ),
    FinetuneArgs(RUN, STORE, FinetuneConfig(epochs=2, head_lr=0.0), unfreeze_from=0, augment=False),
    FinetuneArgs(RUN, None, recipe="seed", re_extract=Path("new one.zarr"), cut_cache="off"),
    CalibrateArgs(RUN, STORE, "recall:a b=0.8", share=0.25),
]
WHERE = {"store": str(STORE), "run": str(RUN), "out": str(RUN)}


@pytest.mark.parametrize("args", ASKED, ids=lambda args: type(args).__name__)
def test_options_give_the_same_again(args: Any) -> None:
    """Beside where it is read and written, which must be given; and none is there that is a default."""
    required = [f.name for f in dataclasses.fields(args) if f.default is dataclasses.MISSING]
    must = [word for name in required for word in (f"--{name}", WHERE[name])]
    words = shlex.split(options_of(dataclasses.replace(args, json=True)))
    assert parse(type(args), [*must, *words], prog="p", description="") == args
    assert options_of(type(args)(**{name: Path(WHERE[name]) for name in required})) == ""


def asked_of(
    folder: Path, *stages: dict[str, Any], recipe: Any = WITH_GEOMETRY
) -> tuple[Asked, EvaluateArgs]:
    """A judged run whose card tells these stages."""
    store = make_store(folder / "s.zarr", recipe=recipe)
    card = make_run(folder / "run", store, epochs=1)
    args = EvaluateArgs(run=folder / "run")
    return dataclasses.replace(open_split(args), card=dataclasses.replace(card, stages=stages)), args


def test_a_report_prints_what_was_asked_for(tmp_path: Path) -> None:
    searched = {"stage": "head", "trial": 3, "options": options_of(ASKED[1])}
    tuned = {"stage": "finetune", "options": "--epochs 2 --unfreeze-from 0"}
    moved = {"stage": "calibrate", "store": "new place.zarr", "options": "--share 0.25"}
    asked, args = asked_of(tmp_path, searched, {"stage": "finetune", "options": ""}, tuned, moved)
    lines = commands(asked, args)
    assert not [line for line in lines if line.startswith("#")]
    doors = {"prog": "p", "description": ""}
    extracted, search, tune_again, calibrated, _ = (shlex.split(line)[3:] for line in lines)
    made = parse(ExtractConfig, extracted, **doors)
    assert (made.weights, made.detector, made.crops) == ("random", "YOUR_DETECTOR", "none")
    wanted = dataclasses.replace(ASKED[1], store=Path(asked.card.store), out=args.run)
    assert parse(TuneArgs, search, **doors) == wanted, "with its own fine-tune, which is not told twice"
    fine = parse(FinetuneArgs, tune_again[1:], **doors)
    assert fine == FinetuneArgs(args.run, finetune=FinetuneConfig(epochs=2), unfreeze_from=0)
    assert parse(CalibrateArgs, calibrated[1:], **doors) == CalibrateArgs(
        args.run, Path("new place.zarr"), share=0.25
    )


@pytest.mark.parametrize(
    ("searched", "unknown"),
    [(True, "--splits-from, --folds, --reseed, --epochs, --pruning"), (False, "--splits-from")],
)
def test_of_a_run_from_before_a_report_says_what_it_does_not_know(
    tmp_path: Path, searched: bool, unknown: str
) -> None:
    head = {"stage": "head"} | ({"trial": 3} if searched else {})
    asked, args = asked_of(tmp_path, head, {"stage": "finetune"})
    _, doubt, _, of_tuning, tuned, _ = commands(asked, args)
    assert doubt.startswith(f"# {unknown}: not known")
    assert asked.card.split_how in doubt
    assert of_tuning.startswith("# with which options: not known")
    assert tuned == f"python -m seqmodel finetune --run {args.run}"


def test_a_store_of_stored_crops_is_not_said_to_be_extracted(tmp_path: Path) -> None:
    """Its report names the run whose own report says how; of a store that is gone nothing is made up."""
    asked, args = asked_of(tmp_path, {"stage": "head", "options": ""}, recipe=RECIPE)
    encoder = dataclasses.replace(RECIPE.encoder, weights="finetuned:first")
    numerics = {"pixels": "stored crops"}
    tuned = plan(tmp_path / "t.zarr", [], dataclasses.replace(RECIPE, encoder=encoder), numerics=numerics)
    on_tuned = dataclasses.replace(asked, card=dataclasses.replace(asked.card, store=str(tuned.path)))
    first = commands(on_tuned, args)[0]
    assert first.startswith("#")
    assert "(finetuned:first)" in first
    assert "--re-extract" in first
    gone = dataclasses.replace(asked, card=dataclasses.replace(asked.card, store="gone.zarr"))
    assert commands(gone, args)[0].startswith("# gone.zarr, on which this run was trained, is not here")
    assert commands(asked, args)[0].startswith("python -m extract --data YOUR_DATA")
