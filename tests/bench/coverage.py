"""Coverage of the 95 % intervals by number of people, simulated: the table in seqmodel/metrics/bootstrap.py.

    python -m tests.bench.coverage

Clips of a person are alike: each person has an offset of the scores. The true values come from 20,000 people.
"""

import numpy as np

from seqmodel.metrics.bootstrap import bootstrap_metrics, interval, resample_subjects
from seqmodel.metrics.classification import macro_auroc

TRIALS, ROUNDS, CLIPS_EACH = 1000, 400, 10
PEOPLE = (6, 8, 10, 12, 15, 20, 40)


def draw(num_people: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, p(positive), predicted) of num_people x CLIPS_EACH clips."""
    own = np.repeat(rng.normal(0, 0.8, num_people), CLIPS_EACH)
    labels = rng.integers(0, 2, len(own))
    score = rng.normal(1.2 * (labels - 0.5) + own * 0.5, 1.0)
    return labels, 1 / (1 + np.exp(-score)), (score > 0).astype(np.int64)


def main() -> None:
    """Print the share of intervals that hold the true value, for accuracy and AUROC."""
    labels, p, predicted = draw(20_000, np.random.default_rng(0))
    truth = {
        "accuracy": float((labels == predicted).mean()),
        "auroc": float(macro_auroc(labels, np.stack([1 - p, p], axis=1))),
    }
    print(f"true values: {truth}")
    for num_people in PEOPLE:
        inside = dict.fromkeys(truth, 0)
        for trial in range(TRIALS):
            labels, p, predicted = draw(num_people, np.random.default_rng([num_people, trial]))
            subjects = np.repeat(np.arange(num_people).astype(str), CLIPS_EACH)
            resamples = resample_subjects(subjects, ROUNDS, trial)
            found = bootstrap_metrics(labels, np.stack([1 - p, p], axis=1), predicted, resamples, 1)
            for name, value in truth.items():
                low, high = interval(found[name], num_people)
                inside[name] += low <= value <= high
        print(num_people, {name: count / TRIALS for name, count in inside.items()}, flush=True)


if __name__ == "__main__":
    main()
