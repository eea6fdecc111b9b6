"""Make rows of windows from the files, where a template is only a stub of the hidden one."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.infer.job import SubmitJob
from kit.infer.loader import SpectrogramLoader
from kit.infer.suspects import Suspects
from kit.infer.template import RowPlan, Template, file_identities, plan_rows, split_window

# A rest of a file shorter than this share of a row has no row of its own.
NO_ROW_SHARE = 0.1
# Stubs have three rows. A long template without a file is the right one for another folder.
MAX_STUB_ROWS = 10


def choose_rows(
    job: SubmitJob, template: Template, files: Sequence[Path], names: Sequence[str]
) -> tuple[Template, RowPlan]:
    """Plan the template's rows, or a row per window of every file: where asked for, or where the template is a stub.

    A template is a stub where it is short, all its ids are windows, and none of them has a file.
    """
    rows = job.options.rows
    identities = file_identities(files)
    plan = plan_rows(template.ids, names, identities)
    stems, ends_s = zip(*map(split_window, template.ids), strict=True) if template.ids else ((), ())
    is_stub = 0 < len(template.ids) <= MAX_STUB_ROWS and None not in ends_s and not template.cells
    is_stub = is_stub and bool(files) and not plan.rows_of
    if rows == 'template' or (rows == 'auto' and not is_stub):
        return template, plan
    if rows == 'auto':
        row_s = RowPlan('window', tuple(map(stems.index, stems)), ends_s, ()).period_s or 0.0
        if not row_s > 0:
            cure = 'give rows, e.g. --rows 5s'
            raise KitError(f'the id {template.ids[0]!r} does not tell how long a row is: {cure}.')
    else:
        row_s = parse_duration(rows)
    first_s = 0.0 if 0 in ends_s else row_s
    counts = count_windows(job, files, row_s)
    new_stems = [Path(name).stem for name in names]
    if len(set(new_stems)) < len(new_stems):
        new_stems = [name.rpartition('.')[0] or name for name in names]
    ids = []
    for stem, count in zip(new_stems, counts, strict=True):
        ids += [f'{stem}_{first_s + window * row_s:g}' for window in range(count)]
    if is_stub:
        job.note(
            f'THE TEMPLATE IS A STUB: none of its {len(template.ids)} ids, e.g. {template.ids[0]!r}, names one of the '
            f'{len(files)} files in {job.options.audio}. The CSV has a row for every {row_s:g} s of each file; '
            "--rows template keeps the template's."
        )
    template = replace(template, ids=tuple(ids))
    return template, plan_rows(template.ids, names, identities)


def count_windows(job: SubmitJob, files: Sequence[Path], row_s: float) -> list[int]:
    """Count the windows of each file by its header; a file that cannot be read has as many as most others."""
    suspects = Suspects.read(job.state_folder / 'suspects.json')
    loader = SpectrogramLoader(
        files,
        {},
        torch.device('cpu'),
        threads=job.options.threads,
        decoders=job.options.decoders,
        timeout_s=max(1.0, min(10.0, job.deadline.left_s() / 8)),
    )
    loader.isolate(suspects.isolated_clips(files), suspects.reasons(files))
    loader.read_headers()
    loader.close()
    counts = {
        clip: max(1, math.ceil(seconds / row_s - NO_ROW_SHARE))
        for clip, seconds in loader.durations_s.items()
        if seconds is not None
    }
    usual = Counter(counts.values()).most_common(1)
    return [counts.get(clip, usual[0][0] if usual else 1) for clip in range(len(files))]
