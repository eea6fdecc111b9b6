"""One submission: options, CSV and report."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.decode import Decoder, list_audio
from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, Stopwatch, advance, progress_bar
from kit.core.errors import KitError, choose
from kit.core.files import file_digest, text_digest, write_json
from kit.core.runtime import VERSION, in_worker, pick_device, tune_process
from kit.infer.blend import BLENDS
from kit.infer.cache import PredictionCache
from kit.infer.ensemble import (
    EnsembleMember,
    by_source,
    collect_frontends,
    member_report,
    predict_ensemble,
    rounded_spans,
)
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import Predictor, WindowLogits
from kit.infer.rows import RowScores, blend_priors, common_classes
from kit.infer.stack import StackRows, open_models
from kit.infer.template import RowPlan, Template, plan_rows, read_template, write_submission
from kit.models.checkpoint import NetworkBuilder
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `submit`."""

    checkpoints: Sequence[str | Path | Tagger]
    audio: Path
    out: Path
    template: Path | None = None
    blend: str = "mean"
    weights: Sequence[float] | None = None
    mode: str | None = None
    window_s: float | None = None
    hop_s: float | None = None
    pool: str | None = None
    device: str | None = None
    threads: int | None = None
    batch_frames: int | None = None
    precision: str = "float32"
    progress: bool = True
    networks: Mapping[str, NetworkBuilder] | None = None
    decoders: Sequence[Decoder] | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """What it changes in how every checkpoint listens."""
        words = ("mode", "window_s", "hop_s", "pool")
        return {word: told for word in words if (told := getattr(self, word)) is not None}


def report_path(out: Path) -> Path:
    """Where a report lies: submission.json beside submission.csv."""
    return out.with_suffix(".json")


def read_report(out: Path) -> dict[str, Any]:
    """A submission's last report; empty where none can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(report_path(out).read_bytes()))
    return {}


class TimeBudget:
    """Tells when to stop: one more step and the CSV's writing must fit. Units: seconds"""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.longest_s = self.write_s = 0.0
        self.last = deadline.now()
        self.stopped = False

    def begin(self) -> None:
        """Count a step from here: what came before was none."""
        self.last = self.deadline.now()

    def __call__(self) -> bool:
        now = self.deadline.now()
        self.longest_s, self.last = max(self.longest_s, now - self.last), now
        self.stopped |= self.deadline.left_s() < self.longest_s + 2 * self.write_s + 0.2
        return self.stopped


class SubmitJob:
    """One submission: making it writes the CSV of priors; `run` hears.

    A worker is quiet at first: its supervisor has said the first notes already.
    """

    def __init__(
        self, options: SubmitOptions, deadline: Deadline, mute_after: Deadline | None = None
    ) -> None:
        choose("blend", options.blend, BLENDS)
        self.options, self.pace, self.mute_after = options, TimeBudget(deadline), Deadline()
        self.watch, self.began, self.now = Stopwatch(), time.time(), deadline.now
        self.written_at = self.now()
        end = deadline.at if mute_after is None else 2 * mute_after.at - deadline.at  # it lies midway
        self.deadline_s = None if end == math.inf else round(end - self.written_at, 3)
        self.notes: list[str] = []
        self.split_files: set[str] = set()
        self.quiet = in_worker()
        self.files = list_audio(options.audio)
        self.names = [path.relative_to(options.audio).as_posix() for path in self.files]
        self.models, self.stack = open_models(options.checkpoints, options.blend, options.weights)
        self.cards, self.weights = [m.card for m in self.models], [m.weight for m in self.models]
        self.template, self.plan = self.read_rows()
        self.blend = self.stack.card.kind if self.stack else options.blend
        asked = (self.blend, options.overrides, self.weights, self.template)
        self.job = text_digest(str(asked), *self.names, "", *(card.digest_text() for card in self.cards))
        if not self.holds_this_job():
            priors = blend_priors(self.cards, self.weights, self.template.classes)
            self.write(lambda: np.tile(priors, (len(self.template.ids), 1)))
            self.write_report({"job": self.job, "state": "priors", "notes": self.notes})
        self.quiet, self.mute_after = False, mute_after or Deadline()

    def holds_this_job(self) -> bool:
        """Whether an earlier run of this job left its CSV."""
        try:
            same = read_report(self.options.out).get("job") == self.job
            return same and read_template(self.options.out) == self.template
        except KitError:
            return False

    def read_rows(self) -> tuple[Template, RowPlan]:
        """The template, or one of all files and classes; each row's file."""
        if self.options.template:
            template = read_template(self.options.template)
        else:
            template = Template("fname", tuple(self.names), common_classes(self.cards))
        plan, rows = plan_rows(template.ids, self.names), len(template.ids)
        unheard = plan.unheard(template.ids)
        self.note_names(unheard, f"of {rows} rows have no file and get the prior")
        if self.names and rows and len(unheard) == rows:
            held = f"{self.options.audio}, which holds {self.names[0]!r}"
            self.note(f"WARNING: NO ROW of the template has a file in {held}: is it the right folder?")
        self.note_names([self.names[i] for i in plan.idle_files], "files have no row and are left out")
        return template, plan

    def note(self, text: str) -> None:
        """Say something on the screen and in the report."""
        self.notes.append(text)
        if not self.quiet:
            print(f"note: {text}", flush=True)

    def note_names(self, names: Sequence[str], what: str) -> None:
        """Note how many there are, if any, and the first."""
        if names:
            self.note(f"{len(names)} {what}, e.g. {names[0]!r}")

    def inference_of(self, name: str, own: InferenceConfig) -> InferenceConfig:
        """How a model will listen: as saved, but for what the call overrides."""
        changes = self.options.overrides
        if self.plan.form == "window" and own.mode == "full" and "mode" not in changes:
            period = float(self.plan.period_s or own.window_s)
            changes = {"mode": "windows", "window_s": period, "hop_s": period} | changes
        inference = dataclasses.replace(own, **changes)
        if inference != own:
            self.note(f"{Path(name).name} listens in another way than it was scored: {changes}")
        return inference

    def make_members(self, device: torch.device) -> Iterator[EnsembleMember]:
        """The models, each with what it said of these files before."""
        options = self.options
        digests = {path: file_digest(path) for path in {m.path for m in self.models} if path}
        for model in self.models:
            inference, path = self.inference_of(model.name, model.card.inference), None
            if model.path:
                way = (inference.digest_text(), options.precision, device.type, str(model.place))
                state = f"{model.path.stem}_{text_digest(digests[model.path], *way)[:16]}.npz"
                path = options.out.with_name(options.out.name + ".state") / state
            tagger = model.build(options.networks)
            predictor = Predictor(tagger, device, options.batch_frames, options.precision, inference)
            watch = Stopwatch(self.watch.began)
            yield EnsembleMember(
                model.name, predictor, PredictionCache(path, self.now), model.weight, model.run, watch
            )

    def write(self, blend: Callable[[], np.ndarray]) -> None:
        """Write the CSV, learning how long it takes; not once the caller was answered."""
        if self.mute_after.left_s() <= 0:
            return
        began = self.now()
        with self.watch.measure("write"):
            write_submission(self.options.out, self.template, blend())
        self.written_at = self.now()
        self.pace.write_s = self.written_at - began

    def write_report(self, report: dict[str, Any]) -> None:
        """Write the report; not once the caller was answered."""
        if self.mute_after.left_s() > 0:
            write_json(report_path(self.options.out), report)

    def prepare(self) -> None:
        """Build the models, cheap ones first, then good ones; open the files.

        A stack answers once each run was heard: the first members of all come first.
        """
        device, remark = pick_device(self.options.device)
        if remark:
            self.note(remark)
        if not self.files:
            self.note(f"NO AUDIO FILES in {self.options.audio}: all is prior")
        with self.watch.measure("models"):
            self.given = list(self.make_members(device))
        if BLENDS[self.options.blend].whole_set:
            self.note(f"--blend {self.options.blend} lets a row's answer depend on the other rows")
        self.team = sorted(self.given, key=lambda m: (m.card.cost or 0.0, -(m.card.oof_score or 0.0)))
        turn = [sum(other.run == m.run for other in self.team[:i]) for i, m in enumerate(self.team)]
        self.team = [self.team[i] for i in np.argsort(turn, kind="stable")]
        plain = (self.template, self.plan, self.team)
        self.rows = StackRows(self.stack, *plain) if self.stack else RowScores(*plain, self.options.blend)
        self.used = sorted(self.rows.rows_of)
        self.loader = SpectrogramLoader(
            [self.files[i] for i in self.used],
            collect_frontends(self.team, device),
            device,
            threads=self.options.threads,
            decoders=self.options.decoders,
            known=lambda digest: all(digest in m.ledger for m in self.team),
            timeout_s=max(1.0, min(60.0, self.pace.deadline.left_s() / 4)),
            watch=self.watch,
        )

    def run(self) -> dict[str, Any]:
        """Hear all that the clock allows; the report, also written."""
        self.prepare()
        total_s = len(self.team) * self.loader.total_s
        bar = progress_bar(total_s, "submit", "s of audio", self.options.progress)
        with contextlib.closing(self.loader), bar as self.bar:
            self.pace.begin()
            predict_ensemble(
                self.team,
                self.loader,
                self.add,
                stop=self.pace,
                before_batches=self.pace.begin,
                after_chunk=self.after_chunk,
                after_member=lambda member: self.save("at work"),
            )
        for member in self.team:
            member.ledger.flush()
            name = Path(member.name).name
            if member.ledger.problem:
                self.note(f"what {name} said cannot be kept: {member.ledger.problem}")
            if member.failure:
                self.note(f"{name} FAILED after {len(member.heard)} clips: {member.failure}")
        self.note_names(sorted(self.split_files), "clips beyond max_frames were heard in overlapping pieces")
        return self.save("stopped by the deadline" if self.pace.stopped else "finished")

    def add(self, member: EnsembleMember, source: int, said: WindowLogits) -> None:
        """Fill in what a model said of a clip."""
        self.rows.add(member, self.used[source], said)
        if member.predictor.inference.mode == "full" and len(said.spans) > 1:
            self.split_files.add(self.names[self.used[source]])

    def after_chunk(self, member: EnsembleMember, seconds: float) -> None:
        """Now and then the CSV as it stands, in a twentieth of the time at most."""
        advance(self.bar, seconds)
        if self.now() - self.written_at > max(5.0, 20 * self.pace.write_s):
            self.write(self.rows.blend)

    def save(self, state: str) -> dict[str, Any]:
        """Write the CSV and its report; the report."""
        self.write(self.rows.blend)
        names, plan, loader = [self.names[i] for i in self.used], self.plan, self.loader
        report = {
            "kit": VERSION,
            "job": self.job,
            "csv": str(self.options.out),
            "state": state,
            **self.rows.counts(),
            "id_form": plan.form,
            "files": len(self.files),
            "files_failed": by_source(loader.failures, names),
            "files_split": sorted(self.split_files),
            "files_without_row": [self.names[i] for i in plan.idle_files],
            "rows_without_file": plan.unheard(self.template.ids),
            "audio_s": round(loader.total_s, 3),
            "device": str(loader.device),
            "blend": self.blend,
            "models": [member_report(m, names) for m in self.given],
            "seconds": {name: round(s, 3) for name, s in self.watch.seconds.items()},
            "seconds_total": round(time.time() - self.began, 3),
            "spans": rounded_spans(self.watch),
            "deadline_s": self.deadline_s,
            "notes": self.notes,
        }
        self.write_report(report)
        return report


def run_job(work: SubmitJob) -> dict[str, Any]:
    """Do a submission here; its report. Errors: KitError where all models failed without a deadline"""
    tune_process()
    report = work.run()
    failures = [model["failure"] for model in report["models"]]
    if all(failures) and work.pace.deadline.at == math.inf:
        holds = "priors" if report["rows_with_prior"] == report["rows"] else "what was heard before"
        raise KitError(f"every model failed, {work.options.out} holds {holds}: {failures[0]}")
    return report
