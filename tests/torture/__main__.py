'''Try to break the kit: `python -m tests.torture [--short] [FAULT ...]` prints a table, and what did not hold.'''

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture import inputs, processes
from tests.torture.room import Fault

CASES = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'cases'
# Each fault with its tries: of the long form, and of the short one, whose limits are 20 s in place of 1 s. The short
# one leaves out what loads the machine.
FAULTS: dict[str, tuple[Callable[..., Fault], int, int]] = {
    'files': (lambda folder, tries: inputs.mutated_files(folder, CASES, tries), 10_000, 400),
    'hostile': (inputs.hostile_checkpoints, 100, 24),
    'flips': (inputs.flipped_checkpoints, 60, 20),
    'tables': (lambda folder, tries: inputs.odd_tables(folder), 1, 1),
    'kills': (processes.kills, 200, 8),
    'poison': (processes.poison_files, 10, 2),
    'orphans': (processes.orphans, 20, 1),
    'writers': (lambda folder, tries: processes.two_writers(folder), 1, 0),
    'disks': (lambda folder, tries: processes.full_disks(folder), 1, 0),
    'environments': (lambda folder, tries: processes.environments(folder), 1, 0),
    'deadlines': (processes.deadlines, 30, 0),
}


def main(words: list[str]) -> int:
    '''Run the faults that are asked for, or all; return 1 where something did not hold.'''
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('faults', nargs='*', metavar='FAULT', help=', '.join(FAULTS))
    parser.add_argument('--short', action='store_true', help='a few tries of each, in a few minutes')
    options = parser.parse_args(words)
    print('| fault | tried | held | |\n|---|---|---|---|')
    broken = 0
    for name in options.faults or FAULTS:
        run, tries, short_tries = FAULTS[name]
        if options.short:
            tries = short_tries
        if not tries:
            continue
        began = time.time()
        with tempfile.TemporaryDirectory(prefix='torture_') as folder:
            limits = [20.0 if options.short else 1.0] if name in ('hostile', 'orphans') else []
            fault = run(Path(folder), tries, *limits)
        print(f'{fault.row()} <!-- {time.time() - began:.0f} s -->', flush=True)
        for what in fault.broken:
            print(f'NOT HELD: {name}: {what}', file=sys.stderr, flush=True)
        broken += len(fault.broken)
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
