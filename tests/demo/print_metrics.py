"""Prints the demo's metrics: the test split, and the live log against the known labels."""

import csv
import json
import sys
from pathlib import Path

WINDOW_S = 10.0


def live_agreement(log: Path, truth: Path) -> dict[str, float]:
    """Count the rows of a live log that are ok and correct.

    Only an ok row that lies more than one window after a change of label is compared with `truth`. Returns
    `rows`, `ok_share` (of all rows), `compared`, and `correct_share` (of the compared rows).
    """
    with truth.open(encoding="utf-8-sig", newline="") as file:
        spans = [(float(row["start_s"]), float(row["end_s"]), row["label"]) for row in csv.DictReader(file)]
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    compared = correct = 0
    for row in rows:
        t_s = float(row["t_s"])
        label = next((name for start, end, name in spans if start + WINDOW_S < t_s < end), None)
        if row["state"] == "ok" and label is not None:
            compared += 1
            correct += row["label"] == label
    return {
        "rows": len(rows),
        "ok_share": sum(row["state"] == "ok" for row in rows) / max(1, len(rows)),
        "compared": compared,
        "correct_share": correct / max(1, compared),
    }


def main() -> None:
    """Print the metrics of the arguments RUN, LOG and TRUTH."""
    run, log, truth = map(Path, sys.argv[1:4])
    test = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    for name in ("auroc", "balanced_accuracy", "macro_f1", "accuracy"):
        estimate = test[name]
        interval = f"95 % confidence interval {estimate['low']:.3f} to {estimate['high']:.3f}"
        print(f"test {name:18} {estimate['value']:.3f}  ({interval})")
    live = live_agreement(log, truth)
    print(
        f"live: {live['ok_share']:.0%} of {live['rows']} rows ok; "
        f"of {live['compared']} ok rows over one window after a label change, "
        f"{live['correct_share']:.0%} correct"
    )
    print(f"report: {run / 'report.html'}")


if __name__ == "__main__":
    main()
