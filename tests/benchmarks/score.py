'''Score a submission: `python -m tests.benchmarks.score submission.csv test_truth.csv`.'''

import sys
from pathlib import Path

from kit.demo import score_csv

if __name__ == '__main__':
    score, prior_score = score_csv(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f'lwlrap {score:.4f}; class frequencies alone {prior_score:.4f}')
