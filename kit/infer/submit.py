"""`submit`: write a competition's CSV before the deadline."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kit.audio.decode import Decoder
from kit.core.clock import Deadline, parse_duration, set_deadline
from kit.core.errors import KitError
from kit.core.files import write_json
from kit.core.runtime import in_notebook, in_worker
from kit.core.worker import ERROR_MARK, as_arguments, end_with_parent, exit_after, run_supervised
from kit.infer.job import (
    SubmitInputs,
    SubmitJob,
    SubmitOptions,
    finish_submission,
    run_submission,
    start_submission,
)
from kit.infer.template import read_report, report_path
from kit.models.checkpoint import NetworkBuilder
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class Submission:
    """A submission's CSV and its report."""

    csv: Path
    report: dict[str, Any]

    def __str__(self) -> str:
        report = self.report
        if "rows" not in report:
            return f"{self.csv}: no model was done by the deadline; the CSV is whole"
        models = len(report["models"])
        lines = [
            f"{self.csv}: {report['rows']} rows, {report['rows_all_models']} predicted by all of {models} models, "
            f"{report['rows_some_models']} by some, {report['rows_with_prior']} with the prior; {report['state']}",
            f"{report['audio_s']:.0f} s of audio in {report['seconds_total']:.1f} s on {report['device']}",
        ]
        for name, reason in list(report["files_failed"].items())[:5]:
            lines.append(f"could not read {name}: {reason}")
        audio_notes = report.get("audio_notes")
        if audio_notes:
            name, notes = next(iter(audio_notes.items()))
            lines.append(
                f"sound is lost or was changed in {len(audio_notes)} files, e.g. {name}: {'; '.join(notes)}"
            )
        if report["rows_with_prior"] == report["rows"]:
            lines.append("NOTHING WAS PREDICTED: every row has the class frequencies; see the notes above.")
        return "\n".join(lines)

    __repr__ = __str__


def submit(
    checkpoints: str | Path | Tagger | Sequence[str | Path | Tagger],
    audio: str | Path,
    out: str | Path = "submission.csv",
    template: str | Path | None = None,
    deadline: str | float | None = None,
    started_at: float | None = None,
    blend: str = "mean",
    weights: Sequence[float] | None = None,
    mode: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    pool: str | None = None,
    prior_shift: bool = False,
    smooth: float | None = None,
    top_mean: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_frames: int | None = None,
    precision: str = "float32",
    progress: bool = True,
    networks: Mapping[str, NetworkBuilder] | None = None,
    decoders: Sequence[Decoder] | None = None,
) -> Submission:
    """Write a submission for every clip in a folder with an ensemble of checkpoints.

    `networks` builds your own networks by the name they were saved under; `decoders` replaces the ways to read files.
    The result's `report` holds what was predicted, what failed and why, and where the time went.
    With a deadline the work runs in a child process, which ends in time whatever files, models and devices do.
    The CSV is whole at every moment; the same call continues where the last one was cut.

    Options:
        checkpoints: files or patterns of checkpoints, e.g. 'run/fold_*.pt'; in Python, taggers too
        audio: the folder that holds the clips
        out: the CSV to write; beside it lie its report (.json) and its predictions (.state)
        template: the sample submission; without it, all files and the checkpoint's classes
        deadline: time limit like 55m, 1h30m or 90s
        started_at: Unix seconds when the deadline began; the process's start unless given
        blend: mean, geometric, power, rank, scaled, differences, or column_rank, which looks at all rows at once
        weights: one positive number per model, in the order of checkpoints, a pattern's sorted by name
        mode: full or windows, to override the checkpoints' setting
        window_s: seconds of a window, to override
        hop_s: seconds between windows, to override
        pool: max, mean, top_k, power, geometric or snr, to override
        prior_shift: scale odds to the class prevalences estimated from all rows
        smooth: weight of both neighbours in a window row's mean, e.g. 0.5
        top_mean: multiply window rows by the mean of their recording's best rows, e.g. 2
        device: cpu or cuda:0; by default the first GPU that works, else the CPU
        threads: decoding threads; by default one per core
        batch_frames: frames per batch; 4,000 on the CPU and 32,000 on a GPU unless given
        precision: float32, bfloat16 or float16
        progress: show a bar

    Errors: KitError, with the cure, for what cannot be read, matched or written
    """
    many = [checkpoints] if isinstance(checkpoints, str | Path | nn.Module) else list(checkpoints)
    if not Path(out).name or Path(out).suffix == ".json":
        raise KitError(f"out is a CSV's path, got {str(out)!r}: e.g. submission.csv.")
    options = SubmitOptions(
        checkpoints=many,
        audio=Path(audio),
        out=Path(out),
        template=None if template is None else Path(template),
        blend=blend,
        weights=weights,
        mode=mode,
        window_s=window_s,
        hop_s=hop_s,
        pool=pool,
        prior_shift=prior_shift,
        smooth=smooth,
        top_mean=top_mean,
        device=device,
        threads=threads,
        batch_frames=batch_frames,
        precision=precision,
        progress=progress,
        networks=networks,
        decoders=decoders,
    )
    if deadline is None:
        return Submission(options.out, run_submission(options, Deadline()))
    return submit_before(options, deadline, started_at)


def submit_before(options: SubmitOptions, deadline: str | float, started_at: float | None) -> Submission:
    """Submit so that the call returns in time: in a child process, or in a thread for what only this process holds.

    The work should stop two margins before the deadline, and is killed one margin before it. Taggers, networks and
    decoders cannot be passed to a child.
    """
    duration_s = parse_duration(deadline)
    end = set_deadline(deadline, started_at).at
    margin = min(1.5, 0.05 * duration_s)
    kill_at = Deadline(end - margin)
    job = SubmitJob(options, Deadline(end - 2 * margin), kill_at)
    inputs = start_submission(job)
    if job.deadline.left_s() <= 0:
        since = f"{deadline} after {time.ctime(end - duration_s)}"
        print(f"WARNING: the deadline has passed, {since}: in an old session give started_at=time.time().")
        return Submission(options.out, read_report(options.out))
    if in_worker():
        end_with_parent()
        return Submission(options.out, finish_submission(job, inputs))
    has_taggers = any(isinstance(item, Tagger) for item in options.checkpoints)
    if has_taggers or options.networks or options.decoders:
        return submit_in_thread(job, inputs, kill_at, Deadline(end - 0.75 * margin))
    words = vars(options) | {"networks": None, "progress": None, "no_progress": not options.progress}
    words |= {"deadline": deadline, "started_at": repr(end - duration_s)}
    return submit_in_child(options.out, ["submit", *as_arguments(words)], kill_at)


def submit_in_child(out: Path, words: list[str], kill_at: Deadline) -> Submission:
    """Submit by a command line in a child process, and pass on what it prints."""
    errors: list[str] = []

    def echo(text: str) -> None:
        if errors:
            errors.append(text)
            return
        output, mark, error = text.partition(ERROR_MARK)
        print(output, end="", flush=True)
        if mark:
            errors.append(error)

    code = run_supervised(words, kill_at, echo)
    if errors:
        raise KitError("".join(errors).strip())
    if code == 0:
        return Submission(out, read_report(out))
    killed = "was stopped at the deadline"
    ending = killed if code is None else f"ended with code {code} (below 0: signal)"
    report = warn_of_cut(out, ending).report
    if report:
        report["state"] = ending
        write_json(report_path(out), report)
    return Submission(out, report)


def warn_of_cut(out: Path, ending: str) -> Submission:
    """Warn that work was cut short, and return what exists of it."""
    print(f"WARNING: the work {ending}; {out} holds what was done by then", flush=True)
    return Submission(out, read_report(out))


def submit_in_thread(job: SubmitJob, inputs: SubmitInputs, kill_at: Deadline, last: Deadline) -> Submission:
    """Submit with networks that only this process holds; return in time even where they hang.

    A network that never returns keeps its thread. Code that holds the interpreter lock cannot be left: a script
    ends at `last` with exit code 0, its CSV whole, and a notebook waits; to be sure, submit checkpoints of the
    kit's own families.
    """
    out = job.options.out
    done = Future[dict[str, Any]]()

    def work() -> None:
        try:
            done.set_result(finish_submission(job, inputs))
        except BaseException as error:
            done.set_exception(error)

    cancel_exit = (lambda: None) if in_notebook() else exit_after(max(0.01, last.left_s()))
    threading.Thread(target=work, daemon=True).start()
    wait([done], max(0.0, kill_at.left_s()))
    cancel_exit()
    if done.done():
        return Submission(out, done.result())
    return warn_of_cut(out, "was left at the deadline")
