'''One submission: its options, clocks and notes, what may end its process, and the writer of its CSV.'''

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.decode import Decoder
from kit.core.clock import Deadline, Stopwatch, TimeBudget
from kit.core.errors import KitError
from kit.core.files import file_identity, write_json
from kit.core.runtime import get_rank, in_worker
from kit.core.worker import Ending
from kit.infer.blend import BLENDS
from kit.infer.planner import Plan
from kit.infer.postprocess import PostprocessConfig, postprocess_config
from kit.infer.rows import RowScores
from kit.infer.template import Template, report_path, write_submission
from kit.labels.table import values_of_classes
from kit.models.tagger import NetworkBuilder, Tagger

MAX_BLIND_DEATHS = 3
MAX_DEATHS_OF_MODEL = 2


@dataclass
class Suspects:
    '''Files and models that may have ended a process, or did.

    The files in `isolated` were open together when a worker died. The next one reads them last and one by one: so the
    next death has one culprit, which goes to `files_out`. Files are known by their identity: a replaced one is tried.
    '''

    path: Path
    isolated: list[str] = field(default_factory=list)
    files_out: dict[str, str] = field(default_factory=dict)
    deaths_of_model: dict[str, int] = field(default_factory=dict)
    models_out: dict[str, str] = field(default_factory=dict)
    blind_deaths: int = 0

    @classmethod
    def read(cls, path: Path) -> 'Suspects':
        '''Read what earlier deaths left; nothing, where there were none.'''
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(path, **json.loads(path.read_bytes()))
        return cls(path)

    def blame(self, ending: Ending, reason: str) -> str | None:
        '''Note a worker's death; return what the next one changes, or None where it would die as well.'''
        files = sorted({name for kind, names in ending.opened if kind == 'file' for name in names})
        computing = [names for kind, names in ending.opened if kind == 'model']
        if not files and computing:
            # The first name is the model's, the others are its clips.
            model, *files = computing[0]
            self.deaths_of_model[model] = self.deaths_of_model.get(model, 0) + 1
            if self.deaths_of_model[model] >= MAX_DEATHS_OF_MODEL or not files:
                self.models_out[model] = reason
                self.save()
                return f'{model} is left out'
        if not files:
            self.blind_deaths += 1
            return None if self.blind_deaths >= MAX_BLIND_DEATHS else 'nothing was open'
        identities = [file_identity(Path(name)) for name in files]
        if len(files) == 1:
            self.files_out[identities[0]] = reason
        else:
            self.isolated += [identity for identity in identities if identity not in self.isolated]
        self.save()
        return f'{files[0]} is left out' if len(files) == 1 else f'{len(files)} files are read last, one by one'

    def save(self) -> None:
        '''Write all this for the next worker, maybe of a later call. A full disk is no reason to stop.'''
        values = {name: value for name, value in asdict(self).items() if name not in ('path', 'blind_deaths')}
        with contextlib.suppress(KitError):
            write_json(self.path, values)

    def among(self, files: Iterable[Path]) -> tuple[list[int], dict[int, str]]:
        '''The positions of files to read last, one by one; why others are left out, by their positions.'''
        names = [file_identity(path) for path in files] if self.isolated or self.files_out else []
        isolated = [clip for clip, name in enumerate(names) if name in self.isolated]
        return isolated, {clip: self.files_out[name] for clip, name in enumerate(names) if name in self.files_out}


@dataclass(frozen=True)
class SubmitOptions:
    '''The options of `submit`.'''

    checkpoints: Sequence[str | Path | Tagger]
    audio: Path
    out: Path
    template: Path | None = None
    blend: str = 'mean'
    weights: Sequence[float] | None = None
    mode: str | None = None
    window_s: float | None = None
    hop_s: float | None = None
    pool: str | None = None
    rows: str = 'auto'
    prior_shift: bool = False
    prevalences: str | Path | None = None
    site_prior: float | None = None
    smooth: float | Sequence[float] | None = None
    top_mean: int | None = None
    top_power: float | None = None
    thresholds: str | Path | None = None
    device: str | None = None
    threads: int | None = None
    batch_frames: int | None = None
    precision: str = 'float32'
    backend: str = 'torch'
    progress: bool = True
    networks: Mapping[str, NetworkBuilder] | None = None
    decoders: Sequence[Decoder] | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        '''The inference settings that replace those of every checkpoint.'''
        settings = {'mode': self.mode, 'window_s': self.window_s, 'hop_s': self.hop_s, 'pool': self.pool}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def postprocess(self) -> PostprocessConfig:
        '''What is done to the blended rows.'''
        return postprocess_config(**{item.name: getattr(self, item.name) for item in fields(PostprocessConfig)})


class SubmitJob:
    '''The options, clocks and notes of one submission. Nothing is read or written when it is created.

    `mute_after` is the moment at which the caller stops waiting: nothing is written after it, or once
    `is_abandoned` is set. `end_s` is the user's deadline, in Unix seconds; `deadline` is earlier.
    '''

    def __init__(
        self, options: SubmitOptions, deadline: Deadline, mute_after: Deadline | None = None, end_s: float | None = None
    ) -> None:
        now_s = deadline.now()
        self.is_abandoned = False
        self.options = options
        self.deadline = deadline
        self.end_s = deadline.at if end_s is None else end_s
        self.budget = TimeBudget(deadline)
        self.plan = Plan(self.budget)
        self.mute_after = mute_after or Deadline()
        self.deadline_s = None if self.end_s == math.inf else round(self.end_s - now_s, 3)
        self.began = time.time()
        self.watch = Stopwatch()
        self.notes: list[str] = []
        # A starting worker prints no note: its supervisor has printed the same ones.
        self.is_quiet = in_worker()

    def note(self, text: str) -> None:
        '''Print a note and add it to the report.'''
        self.notes.append(text)
        if not self.is_quiet:
            print(f'note: {text}', flush=True)

    @property
    def is_mute(self) -> bool:
        '''Whether the caller has stopped waiting, or another process writes the CSV.'''
        return get_rank() > 0 or self.is_abandoned or self.mute_after.left_s() <= 0

    @property
    def state_folder(self) -> Path:
        '''The folder beside the CSV for what a later call continues with.'''
        return self.options.out.with_name(self.options.out.name + '.state')

    @functools.cached_property
    def suspects(self) -> Suspects:
        '''What may have ended an earlier process of this submission.'''
        return Suspects.read(self.state_folder / 'suspects.json')

    def note_names(self, names: Sequence[str], what: str) -> None:
        '''Note how many names there are, if any, and the first.'''
        if names:
            self.note(f'{len(names)} {what}, e.g. {names[0]!r}')


def check_steps(options: SubmitOptions, template: Template, is_stack: bool) -> None:
    '''Refuse options that the blend, the stack or the template cannot have.'''
    kind = BLENDS[options.blend]
    blend = 'a stack' if is_stack else options.blend
    steps = options.postprocess
    for name in ('prior_shift', 'prevalences', 'thresholds'):
        values = getattr(steps, name)
        if values and (is_stack or kind.new_scale):
            raise KitError(f'{name} needs probabilities, which {blend} does not give: use --blend mean.')
        if isinstance(values, dict) and values:
            values_of_classes(values, template.classes, np.zeros(len(template.classes)))
    if steps.thresholds and template.answer not in ('birds', 'target'):
        raise KitError('thresholds are for a template of decisions (birds, target): this one wants scores.')


class SubmissionWriter:
    '''Writes the CSV and the report, and measures how long the CSV takes, blending included.

    On a full disk, predictions kept for a later call make way for the CSV. `problem`: why the last CSV was not written.
    '''

    def __init__(self, job: SubmitJob) -> None:
        self.job = job
        self.written_at = job.deadline.now()
        self.problem: KitError | None = None

    def write(self, rows: RowScores) -> None:
        '''Blend the rows and write the CSV, unless the caller has stopped waiting.'''
        job = self.job
        if job.is_mute:
            return
        began = job.deadline.now()
        with job.watch.measure('write'):
            scores = rows.result()
            try:
                write_submission(job.options.out, rows.template, scores)
                self.problem = None
            except KitError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                for member in rows.members:
                    member.cache.stop('the disk has no space for both them and the CSV')
                self.problem = error
                with contextlib.suppress(KitError):
                    write_submission(job.options.out, rows.template, scores)
                    self.problem = None
        self.written_at = job.deadline.now()
        job.budget.write_s = self.written_at - began

    def is_due(self) -> bool:
        '''Whether to write the CSV: every five seconds, or so rarely that it takes a twentieth of the time.'''
        return self.job.deadline.now() - self.written_at > max(5.0, 20 * self.job.budget.write_s)

    def write_report(self, report: dict[str, Any]) -> None:
        '''Write the report, unless the caller has stopped waiting.'''
        if not self.job.is_mute:
            with contextlib.suppress(KitError):  # the CSV counts, and it is there
                write_json(report_path(self.job.options.out), report)
