"""`python -m features`: commands to show, verify, pack, relabel or delete a store, and to import features."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from features import config
from features.cli import (
    Answer,
    UserError,
    console,
    dispatch,
    echo,
    echo_failures,
    echo_near_duplicates,
    echo_notes,
    log_warning,
    print_counts,
)

if TYPE_CHECKING:
    from features.maintenance.verify import Problem

COMMANDS = {
    "info": config.InfoArgs,
    "verify": config.VerifyArgs,
    "pack": config.PackArgs,
    "label": config.LabelArgs,
    "delete": config.DeleteArgs,
    "import": config.ImportArgs,
}
"""Command name -> its options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m features` and return its exit code."""
    handlers: dict[str, Callable[[Any], Answer]] = {
        "info": _info,
        "verify": _verify,
        "pack": _pack,
        "label": _label,
        "delete": _delete,
        "import": _import,
    }
    return dispatch("features", COMMANDS, argv, lambda name, args: handlers[name](args), width=8)


def _info(args: config.InfoArgs) -> Answer:
    from features.maintenance.describe import describe
    from features.store.store import FeatureStore

    with console().status("counting"):
        summary = describe(FeatureStore.open(args.store))
    _print_info(summary)
    return summary, 0


def _verify(args: config.VerifyArgs) -> Answer:
    from features.maintenance.near_duplicates import duplicate_lines
    from features.maintenance.verify import repair_store, verify_store
    from features.store.store import FeatureStore

    store = FeatureStore.open(args.store)
    with console().status(f"reading {store.num_clips} clips"):
        broken = verify_store(store)
    echo_failures((item.clip_id, item.reason) for item in broken)
    echo(f"{store.num_clips} clips read, {len(broken)} problems found")
    left = repair_store(store, broken) if args.repair else broken
    _print_next_step(args.store, broken, repaired=args.repair, imported=store.recipe.pixels is None)
    problems = [{"clip_id": item.clip_id, "reason": item.reason} for item in broken]
    duplicates = [] if broken else duplicate_lines(store)
    echo_near_duplicates(duplicates)
    summary = {
        "store": args.store,
        "clips": store.num_clips,
        "problems": problems,
        "repaired": len(broken) - len(left),
        "near_duplicates": duplicates,
    }
    return summary, 1 if left else 0


def _print_next_step(path: str, problems: Sequence["Problem"], *, repaired: bool, imported: bool) -> None:
    """Print what was repaired, or how to repair it, and what to do about the other problems."""
    store = shlex.quote(path)
    repairable = [item for item in problems if item.chunks is not None]
    if repairable and repaired:
        echo(f"{len(repairable)} problems repaired; run the same extract command again for these clips")
    elif repairable:
        echo(f"to repair: python -m features verify {store} --repair, then the same extract command again")
    if len(repairable) < len(problems):
        again = "import these clips again" if imported else "extract again"
        echo(f"not repairable: python -m features delete {store} --all, then {again}")


def _pack(args: config.PackArgs) -> Answer:
    from features.store.store import FeatureStore

    store = FeatureStore.open(args.store)
    with console().status(f"packing {store.num_clips} clips"):
        packed = store.pack()
    echo("packed" if packed else "the packed copy is up to date")
    return {"store": args.store, "clips": store.num_clips, "packed": packed}, 0


def _label(args: config.LabelArgs) -> Answer:
    from features.maintenance.relabel import read_corrections, relabel

    manifest = read_corrections(args.data)
    for text in manifest.notes:
        log_warning(text)
    done = relabel(args.store, manifest.clips)
    problems = [(item.clip_id, item.reason) for item in manifest.problems]
    problems += [(name, "is not in the store: extract it") for name in done.unknown]
    echo_failures(problems)
    echo(f"{len(done.corrected)} clips corrected")
    if done.unnamed:
        log_warning(f"{len(done.unnamed)} clips of the store are not in {args.data}: they are unchanged")
    summary = {
        "store": args.store,
        "corrected": list(done.corrected),
        "unnamed": list(done.unnamed),
        "problems": [{"clip_id": name, "reason": reason} for name, reason in problems],
    }
    return summary, 1 if problems else 0


def _delete(args: config.DeleteArgs) -> Answer:
    from features.store.store import delete

    subject = None if args.subject == config.ALL_SUBJECTS else args.subject
    if subject is None and not args.all and not _is_deletion_confirmed(args.store):
        echo("nothing was deleted")
        return {"store": args.store, "subject": None, "deleted": 0}, 1
    count = delete(args.store, subject)
    what = "the store" if subject is None else f"subject {subject}"
    echo(f"deleted {what}: {count} clips")
    return {"store": args.store, "subject": subject, "deleted": count}, 0


def _is_deletion_confirmed(path: str) -> bool:
    """Ask whether to delete a whole store; no answer means no.

    Raises UserError when there is no terminal to ask on.
    """
    from rich.prompt import Confirm

    from features.store.store import FeatureStore

    count = FeatureStore.open(path).num_clips
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            f"{path} has {count} clips: --all deletes the whole store, --subject ID only one subject's clips"
        )
    try:
        return Confirm.ask(f"delete {path} with all {count} clips?", console=console(), default=False)
    except EOFError:
        return False


def _import(args: config.ImportArgs) -> Answer:
    from rich.text import Text

    from features.maintenance.import_external import read_sequences, write_external
    from features.maintenance.near_duplicates import duplicate_lines

    with console().status(Text(f"importing {args.file}")):
        sequences = read_sequences(args.file)
        store = write_external(args.out, sequences, args.name, args.stream)
    valid = store.read_frames()[..., 5] > 0
    lengths = [len(values) for values in sequences.values]
    echo_failures((item.clip_id, item.reason) for item in sequences.problems)
    for note in sequences.notes:
        log_warning(note)
    duplicates = duplicate_lines(store)
    echo_near_duplicates(duplicates)
    echo(
        f"{store.num_clips} clips of {min(lengths)} to {max(lengths)} frames of "
        f"{sequences.values[0].shape[1]} features, as {store.streams[0]}; "
        f"{sum(lengths) - int(valid.sum())} of {sum(lengths)} frames have missing features and are masked"
    )
    echo(f"next: python -m tune --store {shlex.quote(args.out)} --out runs/NAME")
    summary = {
        "store": args.out,
        "clips": store.num_clips,
        "frames": sum(lengths),
        "masked_frames": sum(lengths) - int(valid.sum()),
        "recipe": store.recipe.encoder.name,
        "notes": list(sequences.notes),
        "near_duplicates": duplicates,
        "problems": [{"clip_id": item.clip_id, "reason": item.reason} for item in sequences.problems],
    }
    return summary, 1 if sequences.problems else 0


def _print_info(summary: dict[str, Any]) -> None:
    from features.labels import by_value

    rate = summary["face_rate"]
    echo(
        f"{summary['store']}: {summary['clips']} clips of {summary['videos']} videos and "
        f"{summary['subjects']} subjects; {summary['done']} done, {summary['pending']} pending, "
        f"{summary['failed']} failed, {summary['not_in_manifest']} no longer in the manifest"
    )
    echo(f"face detected in {rate:.1%} of sampled frames" if rate is not None else "no frames yet")
    echo("parts: " + ", ".join(f"{name} {count}" for name, count in summary["parts"].items()))
    for column, splits in summary["labels"].items():
        order = [*sorted(summary["label_names"][column], key=by_value), "none"]
        names = [name for name in order if any(name in counts for counts in splits.values())]
        print_counts(column, splits, names)
    echo_failures((item["clip_id"], item["reason"]) for item in summary["failures"])
    echo_notes(summary["notes"])
    echo(f"encoder {summary['recipe']['encoder']}; fingerprint {summary['fingerprint']}")
    first, *others = summary["numerics"]
    echo(f"computed with: {_format_numerics(first)}")
    for numerics in others:
        differing = {key: value for key, value in numerics.items() if first.get(key) != value}
        echo(f"some rows were computed with: {_format_numerics(differing)}")
    if others:
        store = shlex.quote(summary["store"])
        echo(f"to compare embeddings: python -m extract --data DATA --out {store} --verify-sample 20")


def _format_numerics(numerics: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in numerics.items())


if __name__ == "__main__":
    sys.exit(main())
