"""A submission and its truth in, lwlrap beside that of the class priors out.

python -m tests.benchmarks.score submission.csv test_truth.csv
"""

import csv
import sys
from pathlib import Path

import numpy as np

from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table


def main(submission: str, truth: str) -> None:
    """Print both scores; the truth's labels are its `true_labels` where it has them."""
    table = read_clip_table(Path(truth))
    with open(submission, encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    scores = {row[0]: [float(x) for x in row[1:]] for row in rows}
    labels = list(table["true_labels" if "true_labels" in table else "labels"])
    targets = label_targets(labels, header[1:])
    predicted = np.array([scores[name] for name in table["fname"]])
    priors = np.tile(targets.mean(axis=0), (len(targets), 1))
    alone = lwlrap(targets, priors)
    print(f"lwlrap {lwlrap(targets, predicted):.4f} on {len(targets)} clips; the priors alone {alone:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
