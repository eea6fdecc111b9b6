"""Do one submission, step by step: read, write priors, build models, predict, write the CSV and its report."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.decode import Decoder, scan_folder
from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, Stopwatch, TimeBudget, advance, progress_bar
from kit.core.errors import KitError, choose
from kit.core.files import file_digest, text_digest, write_json
from kit.core.runtime import VERSION, Runtime, cpu_count, in_worker, pick_device, tune_process
from kit.infer.blend import BLENDS
from kit.infer.cache import PredictionCache
from kit.infer.ensemble import (
    EnsembleMember,
    collect_frontends,
    member_report,
    members_with_probabilities,
    order_members,
    predict_ensemble,
    reasons_by_name,
    rounded_spans,
)
from kit.infer.loader import SpectrogramLoader
from kit.infer.postprocess import NO_WINDOWS, PostprocessConfig
from kit.infer.predictor import Predictor
from kit.infer.rows import RowScores, blend_priors, check_members, common_classes
from kit.infer.stack import ModelSpec, Stack, make_rows, models_with_classes, open_models
from kit.infer.template import (
    RowPlan,
    Template,
    file_identities,
    plan_notes,
    plan_rows,
    read_report,
    read_template,
    report_path,
    write_submission,
)
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
    prior_shift: bool = False
    smooth: float | None = None
    top_mean: int | None = None
    device: str | None = None
    threads: int | None = None
    batch_frames: int | None = None
    precision: str = "float32"
    progress: bool = True
    networks: Mapping[str, NetworkBuilder] | None = None
    decoders: Sequence[Decoder] | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The inference settings that replace those of every checkpoint."""
        settings = {"mode": self.mode, "window_s": self.window_s, "hop_s": self.hop_s, "pool": self.pool}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def postprocess(self) -> PostprocessConfig:
        """What is done to the blended rows."""
        return PostprocessConfig(self.prior_shift, self.smooth or 0.0, self.top_mean or 0)


class SubmitJob:
    """The options, clocks and notes of one submission. Nothing is read or written when it is created.

    `mute_after` is the moment at which the caller stops waiting: nothing is written after it.
    """

    def __init__(
        self, options: SubmitOptions, deadline: Deadline, mute_after: Deadline | None = None
    ) -> None:
        now_s = deadline.now()
        # `mute_after` lies midway between the internal deadline and the user's.
        end_s = deadline.at if mute_after is None else 2 * mute_after.at - deadline.at
        self.options = options
        self.deadline = deadline
        self.budget = TimeBudget(deadline)
        self.mute_after = mute_after or Deadline()
        self.deadline_s = None if end_s == math.inf else round(end_s - now_s, 3)
        self.began = time.time()
        self.watch = Stopwatch()
        self.notes: list[str] = []
        # A worker prints no note while it starts: its supervisor has printed the same notes already.
        self.is_quiet = in_worker()

    def note(self, text: str) -> None:
        """Print a note and add it to the report."""
        self.notes.append(text)
        if not self.is_quiet:
            print(f"note: {text}", flush=True)

    def note_names(self, names: Sequence[str], what: str) -> None:
        """Note how many names there are, if any, and the first."""
        if names:
            self.note(f"{len(names)} {what}, e.g. {names[0]!r}")


class SubmissionWriter:
    """Writes the CSV and the report, and measures how long the CSV takes, blending included."""

    def __init__(self, job: SubmitJob, template: Template) -> None:
        self.job = job
        self.template = template
        self.written_at = job.deadline.now()

    def write(self, rows: RowScores) -> None:
        """Blend the rows and write the CSV, unless the caller has stopped waiting."""
        if self.job.mute_after.left_s() <= 0:
            return
        began = self.job.deadline.now()
        with self.job.watch.measure("write"):
            write_submission(self.job.options.out, self.template, rows.result())
        self.written_at = self.job.deadline.now()
        self.job.budget.write_s = self.written_at - began

    def write_if_due(self, rows: RowScores) -> None:
        """Write the CSV every five seconds, or less often so that it takes a twentieth of the time at most."""
        if self.job.deadline.now() - self.written_at > max(5.0, 20 * self.job.budget.write_s):
            self.write(rows)

    def write_report(self, report: dict[str, Any]) -> None:
        """Write the report, unless the caller has stopped waiting."""
        if self.job.mute_after.left_s() > 0:
            write_json(report_path(self.job.options.out), report)


@dataclass(frozen=True)
class SubmitInputs:
    """All that a submission reads before it predicts.

    `names` are the files' paths below the audio folder. `key` is equal for jobs that compute the same submission.
    """

    files: list[Path]
    names: list[str]
    models: list[ModelSpec]
    stack: Stack | None
    template: Template
    plan: RowPlan
    key: str


def run_submission(options: SubmitOptions, deadline: Deadline) -> dict[str, Any]:
    """Do a whole submission in this process; return its report."""
    job = SubmitJob(options, deadline)
    return finish_submission(job, start_submission(job))


def start_submission(job: SubmitJob) -> SubmitInputs:
    """Read all inputs and write a CSV of priors, unless an earlier call of the same job left a better one."""
    inputs = read_inputs(job)
    out = job.options.out
    if not holds_job(out, inputs):
        cards = [model.card for model in inputs.models]
        weights = [model.weight for model in inputs.models]
        priors = blend_priors(cards, weights, inputs.template.classes)
        began = job.deadline.now()
        with job.watch.measure("write"):
            write_submission(out, inputs.template, np.tile(priors, (len(inputs.template.ids), 1)))
        job.budget.write_s = job.deadline.now() - began
        write_json(report_path(out), {"job": inputs.key, "state": "priors", "notes": job.notes})
    return inputs


def read_inputs(job: SubmitJob) -> SubmitInputs:
    """List the files, open the checkpoints, and read the template."""
    options = job.options
    choose("blend", options.blend, BLENDS)
    files, others = scan_folder(options.audio)
    names = [path.relative_to(options.audio).as_posix() for path in files]
    skipped: dict[str, str] = {}
    models, stack = open_models(options.checkpoints, options.blend, options.weights, skipped)
    if options.template:
        template = read_template(options.template)
    else:
        template = Template("fname", tuple(names), common_classes([model.card for model in models]))
    if stack is None:
        models = models_with_classes(models, template, skipped)
    for name, reason in skipped.items():
        job.note(f"{name} IS LEFT OUT: {reason}")
    plan = plan_rows(template.ids, names, file_identities(files))
    blend = stack.card.kind if stack else options.blend
    if options.postprocess.needs_windows and plan.form != "window":
        raise KitError(NO_WINDOWS)
    if options.prior_shift and (stack is not None or BLENDS[options.blend].new_scale):
        raise KitError(f"prior_shift needs probabilities, which {blend} does not give: use --blend mean.")
    n_rows = len(template.ids)
    without_file = plan.rows_without_file(template.ids)
    job.note_names(without_file, f"of {n_rows} rows have no file and get the prior")
    if names and n_rows and len(without_file) == n_rows:
        folder = f"{options.audio}, which holds {names[0]!r}"
        job.note(f"WARNING: NO ROW of the template has a file in {folder}: is it the right folder?")
    job.note_names([names[i] for i in plan.idle_files], "files have no row and are left out")
    job.note_names([path.name for path in others], "files are passed over, as they are no audio")
    for text in plan_notes(plan):
        job.note(text)
    weights = [model.weight for model in models]
    settings = (blend, options.overrides, options.postprocess, weights, template)
    key = text_digest(str(settings), *names, "", *(model.card.canonical_json() for model in models))
    return SubmitInputs(files, names, models, stack, template, plan, key)


def holds_job(out: Path, inputs: SubmitInputs) -> bool:
    """Decide whether an earlier call of the same job left its CSV."""
    try:
        return read_report(out).get("job") == inputs.key and read_template(out) == inputs.template
    except KitError:
        return False


def finish_submission(job: SubmitJob, inputs: SubmitInputs) -> dict[str, Any]:
    """Predict all that the time allows, write the CSV and the report, and return the report.

    Errors: KitError where all models failed without a deadline
    """
    options = job.options
    job.is_quiet = False
    tune_process()
    device, remark = pick_device(options.device)
    if remark:
        job.note(remark)
    runtime = Runtime(device, options.threads or cpu_count(), options.progress)
    if not inputs.files:
        job.note(f"NO AUDIO FILES in {options.audio}: all is prior")
    if BLENDS[options.blend].whole_set:
        job.note(f"--blend {options.blend} lets a row's answer depend on the other rows")
    if options.prior_shift:
        job.note("--prior-shift lets a row's answer depend on the other rows")
    with job.watch.measure("models"):
        members = build_members(job, inputs, runtime)
    ordered = order_members(members)
    check_members(ordered, options.blend, inputs.plan)
    rows = make_rows(inputs.stack, inputs.template, inputs.plan, ordered, options.blend, options.postprocess)
    writer = SubmissionWriter(job, inputs.template)
    loader = SpectrogramLoader(
        inputs.files,
        collect_frontends(ordered, device),
        device,
        threads=runtime.threads,
        decoders=options.decoders,
        clips=sorted(inputs.plan.rows_of),
        is_cached=lambda digest: all(digest in member.cache for member in ordered),
        timeout_s=max(1.0, min(60.0, job.deadline.left_s() / 4)),
        watch=job.watch,
    )
    loader.read_headers()
    bar = progress_bar(len(ordered) * loader.total_s, "submit", "s of audio", runtime.progress)
    with contextlib.closing(loader), bar:
        job.budget.start_step()
        for member, clip, logits in predict_ensemble(ordered, loader, job.budget):
            rows.add(member, clip, logits)
            advance(bar, loader.durations_s[clip] or 0.0)
            if member.finished:
                writer.write(rows)
                writer.write_report(build_report(job, inputs, members, rows, loader, "at work"))
            else:
                writer.write_if_due(rows)
    for member in ordered:
        name = Path(member.name).name
        if member.cache.problem:
            job.note(f"the predictions of {name} cannot be kept: {member.cache.problem}")
        if member.failure:
            job.note(f"{name} FAILED after {len(member.predicted)} clips: {member.failure}")
    late_rows = [inputs.template.ids[row] for row in sorted(rows.rows_after_end)]
    job.note_names(late_rows, "rows are windows after the end of their file and get the prior")
    for name in members_with_probabilities(ordered):
        job.note(f"{name}: all outputs lie in [0, 1], as probabilities do: a network must return logits")
    split_files = [inputs.names[clip] for clip in sorted(rows.split_clips)]
    job.note_names(split_files, "clips beyond max_frames were predicted in overlapping pieces")
    state = "stopped by the deadline" if job.budget.stopped else "finished"
    writer.write(rows)
    report = build_report(job, inputs, members, rows, loader, state)
    writer.write_report(report)
    failures = [member.failure for member in members]
    # With a deadline, the CSV that exists is the result.
    if all(failures) and job.deadline.at == math.inf:
        holds = "priors" if report["rows_with_prior"] == report["rows"] else "earlier predictions"
        raise KitError(f"every model failed, {options.out} holds {holds}: {failures[0]}")
    return report


def build_members(job: SubmitJob, inputs: SubmitInputs, runtime: Runtime) -> list[EnsembleMember]:
    """Build every model, with the predictions that an earlier call cached beside the CSV."""
    options = job.options
    digests = {path: file_digest(path) for path in {model.path for model in inputs.models} if path}
    folder = options.out.with_name(options.out.name + ".state")
    members = []
    failures: list[str] = []
    changed: dict[str, list[str]] = {}
    for model in inputs.models:
        own = model.card.inference
        inference = inference_of(job, inputs.plan, own)
        if inference != own:
            scored = own.to_dict()
            changes = {key: value for key, value in inference.to_dict().items() if value != scored[key]}
            changed.setdefault(str(changes), []).append(Path(model.name).name)
        cache_path = None
        if model.path:
            settings = (inference.canonical_json(), options.precision, runtime.device.type, str(model.place))
            digest = text_digest(digests[model.path], *settings)[:16]
            cache_path = folder / f"{model.path.stem}_{digest}.npz"
        try:
            tagger = model.build(options.networks)
        except KitError as error:
            if inputs.stack or len(inputs.models) == 1:
                raise
            failures.append(str(error))
            job.note(f"{model.name} IS LEFT OUT: {error}")
            continue
        predictor = Predictor(tagger, runtime.device, options.batch_frames, options.precision, inference)
        cache = PredictionCache.open(cache_path, job.deadline.now)
        watch = Stopwatch(job.watch.began)
        member = EnsembleMember(model.name, predictor, cache, weight=model.weight, run=model.run, watch=watch)
        members.append(member)
    if not members:
        raise KitError(failures[0])
    for changes_text, names in changed.items():
        which = names[0] if len(names) == 1 else f"{len(names)} models, e.g. {names[0]},"
        job.note(f"{which} use other inference settings than they were scored with: {changes_text}")
    return members


def inference_of(job: SubmitJob, plan: RowPlan, own: InferenceConfig) -> InferenceConfig:
    """Return a model's inference settings, with what the options or window rows change."""
    changes = job.options.overrides
    if plan.form == "window" and own.mode == "full" and "mode" not in changes:
        period_s = float(plan.period_s or own.window_s)
        changes = {"mode": "windows", "window_s": period_s, "hop_s": period_s} | changes
    inference = dataclasses.replace(own, **changes)
    idle = {"window_s", "hop_s"} & changes.keys()
    if inference.mode == "full" and idle:
        raise KitError(f"{min(idle)} has no effect on whole clips: add --mode windows, or leave it out.")
    return inference


def build_report(
    job: SubmitJob,
    inputs: SubmitInputs,
    members: Sequence[EnsembleMember],
    rows: RowScores,
    loader: SpectrogramLoader,
    state: str,
) -> dict[str, Any]:
    """Describe a submission: what was predicted, what failed and why, and where the time went."""
    # Clips whose predictions are cached are not decoded again: the last report has the notes on them.
    earlier = read_report(job.options.out).get("audio_notes", {})
    return {
        "kit": VERSION,
        "job": inputs.key,
        "csv": str(job.options.out),
        "state": state,
        **rows.counts(),
        "id_form": inputs.plan.form,
        "files": len(inputs.files),
        "files_failed": reasons_by_name(loader.failures, inputs.names),
        "audio_notes": loader.notes_by_name(inputs.names, earlier),
        "files_split": [inputs.names[clip] for clip in sorted(rows.split_clips)],
        "files_without_row": [inputs.names[i] for i in inputs.plan.idle_files],
        "rows_after_end": [inputs.template.ids[row] for row in sorted(rows.rows_after_end)],
        "rows_without_file": inputs.plan.rows_without_file(inputs.template.ids),
        "audio_s": round(loader.audio_s, 3),
        "device": str(loader.device),
        "blend": inputs.stack.card.kind if inputs.stack else job.options.blend,
        "postprocess": job.options.postprocess.to_dict(),
        "models": [member_report(member, inputs.names) for member in members],
        "seconds": {name: round(s, 3) for name, s in job.watch.seconds.items()},
        "seconds_total": round(time.time() - job.began, 3),
        "spans": rounded_spans(job.watch),
        "deadline_s": job.deadline_s,
        "notes": job.notes,
    }
