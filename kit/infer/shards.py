'''Share a submission over processes: each predicts some chunks into files of its own, and the first merges them.'''

import contextlib
import json
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from kit.core.files import file_identity, write_json
from kit.core.ranks import rank_is_running
from kit.core.runtime import get_rank, get_world_size
from kit.infer.ensemble import EnsembleMember
from kit.infer.job import SubmitJob
from kit.infer.loader import SpectrogramLoader
from kit.infer.rows import RowScores


def share_path(job: SubmitJob, rank: int) -> Path:
    '''The file by which a process says that its share is done, with what the report needs of it.'''
    return job.state_folder / str(rank) / 'share.json'


def write_share(job: SubmitJob, key: str, loader: SpectrogramLoader) -> None:
    '''Say that this process's share is done: the job's key, failures and notes of clips, by their positions.'''
    write_json(share_path(job, get_rank()), [key, loader.failures, loader.notes])


def wait_for_shares(job: SubmitJob, key: str, loader: SpectrogramLoader) -> None:
    '''Wait until the other processes have done their shares or have ended, or time is up; read their failures.'''
    job.budget.start_step()
    waiting = [*range(1, get_world_size())]
    while waiting and not job.budget.should_stop():
        for rank in list(waiting):
            found = ''
            with contextlib.suppress(OSError, ValueError):
                found, failures, notes = json.loads(share_path(job, rank).read_bytes())
            if found == key:
                loader.failures |= {int(clip): reason for clip, reason in failures.items()}
                loader.notes |= {int(clip): tuple(texts) for clip, texts in notes.items()}
            if found == key or not rank_is_running(rank):
                waiting.remove(rank)
        threading.Event().wait(0.1 if waiting else 0.0)


def add_cached(
    rows: RowScores, members: Sequence[EnsembleMember], files: Sequence[Path]
) -> list[tuple[EnsembleMember, int]]:
    '''Add what earlier calls and other processes predicted for files that are still the same; return what was new.'''
    found = []
    if any(member.cache.digests for member in members):
        for clip in rows.plan.rows_of:
            lacking = [member for member in members if clip not in member.predicted]
            identity = file_identity(files[clip]) if lacking else ''
            for member in lacking:
                logits = member.cache.find(identity)
                if logits is not None:
                    rows.add(member, clip, logits)
                    found.append((member, clip))
    return found


def merge_shares(
    rows: RowScores, members: Sequence[EnsembleMember], files: Sequence[Path], failures: Collection[int]
) -> bool:
    '''Add what the other processes have predicted by now; return whether a model that works still lacks clips.'''
    for member in members:
        if member.cache.path is not None:
            member.cache.read_files(member.cache.path)
    for member, clip in add_cached(rows, members, files):
        member.predicted.add(clip)
    for member in members:
        done = {*member.predicted, *member.failed_clips, *failures}
        member.finished = rows.plan.rows_of.keys() <= done
    return not all(member.finished or member.failure for member in members)
