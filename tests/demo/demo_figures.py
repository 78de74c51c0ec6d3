"""The demo's figures in a few lines: the test split, the live log against the known truth, the report."""

import csv
import json
import sys
from pathlib import Path

WINDOW_S = 10.0


def live_agreement(log: Path, truth: Path) -> dict[str, float]:
    """Shares over the live log: rows in state ok, and of those a window past a switch, how many are right."""
    with truth.open(encoding="utf-8-sig", newline="") as file:
        spans = [(float(row["start_s"]), float(row["end_s"]), row["label"]) for row in csv.DictReader(file)]
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    judged = right = 0
    for row in rows:
        t_s = float(row["t_s"])
        label = next((name for start, end, name in spans if start + WINDOW_S < t_s < end), None)
        if row["state"] == "ok" and label is not None:
            judged += 1
            right += row["label"] == label
    return {
        "rows": len(rows),
        "ok_share": sum(row["state"] == "ok" for row in rows) / max(1, len(rows)),
        "judged": judged,
        "right_share": right / max(1, judged),
    }


def main() -> None:
    """Print the figures of RUN, LOG and TRUTH, given as arguments."""
    run, log, truth = map(Path, sys.argv[1:4])
    test = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    for name in ("auroc", "balanced_accuracy", "macro_f1", "accuracy"):
        figure = test[name]
        interval = f"95 % interval {figure['low']:.3f} to {figure['high']:.3f}"
        print(f"test {name:18} {figure['value']:.3f}  ({interval})")
    live = live_agreement(log, truth)
    print(
        f"live: {live['ok_share']:.0%} of {live['rows']} rows ok; "
        f"of {live['judged']} ok rows more than a window past a switch, {live['right_share']:.0%} right"
    )
    print(f"report: {run / 'report.html'}")


if __name__ == "__main__":
    main()
