'''`submit`: write a competition's CSV before the deadline.'''

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from kit.audio.decode import Decoder, scan_folder
from kit.core.clock import Deadline, parse_duration, process_start, set_deadline
from kit.core.errors import KitError, check_kind
from kit.core.files import locked, write_json
from kit.core.runtime import in_notebook, in_worker, worker_margin_s
from kit.core.worker import ERROR_MARK, as_arguments, can_fork, exit_after, fork_worker, spawn_worker, supervise
from kit.infer.backend import check_backend
from kit.infer.job import SubmitJob, SubmitOptions
from kit.infer.submission import run_job, run_submission, write_priors
from kit.infer.submit_inputs import read_inputs
from kit.infer.template import read_report, report_path
from kit.labels.layouts import ROW_S, find_competition
from kit.models.tagger import NetworkBuilder, Tagger

TEST_FILES = 600  # as many soundscapes of a minute as BirdCLEF 2026 has in its test


@dataclass(frozen=True)
class Submission:
    '''A submission's CSV and its report.'''

    csv: Path
    report: dict[str, Any]

    def __str__(self) -> str:
        report = self.report
        if 'rows' not in report:
            return f'{self.csv}: no model was done by the deadline; the CSV is whole'
        models = len(report['models'])
        lines = [
            f'{self.csv}: {report["rows"]} rows, {report["rows_all_models"]} predicted by all of {models} models, '
            f'{report["rows_some_models"]} by some, {report["rows_with_prior"]} with the prior; {report["state"]}',
            f'{report["audio_s"]:.0f} s of audio in {report["seconds_total"]:.1f} s on {report["device"]}',
        ]
        for name, reason in list(report['files_failed'].items())[:5]:
            lines.append(f'could not read {name}: {reason}')
        if audio_notes := report.get('audio_notes'):
            name, notes = next(iter(audio_notes.items()))
            lines.append(f'sound is lost or was changed in {len(audio_notes)} files, e.g. {name}: {"; ".join(notes)}')
        if report['rows_with_prior'] == report['rows']:
            lines.append('NOTHING WAS PREDICTED: every row has the class frequencies; see the notes above.')
        return '\n'.join(lines)

    __repr__ = __str__


def submit(
    checkpoints: str | Path | Tagger | Sequence[str | Path | Tagger],
    audio: str | Path | None = None,
    out: str | Path = 'submission.csv',
    template: str | Path | None = None,
    deadline: str | float | None = None,
    started_at: float | None = None,
    competition: str | Path | None = None,
    rows: str = 'auto',
    rehearse: int = 0,
    blend: str = 'mean',
    weights: Sequence[float] | None = None,
    mode: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    pool: str | None = None,
    prior_shift: bool = False,
    prevalences: str | Path | None = None,
    site_prior: float | None = None,
    smooth: float | Sequence[float] | None = None,
    top_mean: int | None = None,
    top_power: float | None = None,
    thresholds: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_frames: int | None = None,
    precision: str = 'float32',
    backend: str = 'torch',
    progress: bool = True,
    networks: Mapping[str, NetworkBuilder] | None = None,
    decoders: Sequence[Decoder] | None = None,
) -> Submission:
    '''Write a submission for every clip in a folder with an ensemble of checkpoints.

    `networks` builds your own networks by the name they were saved under; `decoders` replaces the ways to read files.
    The result's `report` holds what was predicted, what failed and why, and where the time went.
    With a deadline the work runs in a child process, which ends in time whatever files, models and devices do.
    The CSV is whole at every moment; the same call continues where the last one was cut.

    Options:
        checkpoints: files or patterns of checkpoints, e.g. 'run/fold_*.pt'; in Python, taggers too
        out: the CSV to write; beside it lie its report (.json) and its predictions (.state)
        template: the sample submission; without it, all files and the checkpoint's classes
        deadline: time limit like 55m, 1h30m or 90s
        started_at: Unix seconds when the deadline began; the process's start unless given
        competition: a competition's folder, instead of audio and template
        rows: template, or a row per window of every file, e.g. 5s; auto: template, unless its ids name no file
        rehearse: predict so many training soundscapes where the test holds no audio, and reckon the test's time
        blend: mean, geometric, power, rank, scaled, differences, or column_rank, which looks at all rows at once
        weights: one positive number per model, in the order of checkpoints; of a pattern, sorted by name
        mode: full, windows or frames, to override the checkpoints' setting
        window_s: seconds of a window, to override
        hop_s: seconds between windows, to override
        pool: max, mean, top_k, power, geometric, snr or snr_top, to override
        prior_shift: scale odds to the class prevalences estimated from all rows
        prevalences: CSV of class,prevalence to scale odds to, e.g. known of the test; other classes keep their own
        site_prior: weight by which window rows' log odds are shifted to those of their site and hour, e.g. 0.3
        smooth: weights of neighbours at distance 1, 2, ... in a window row's mean, e.g. 0.5
        top_mean: multiply window rows by the mean of their recording's best rows, e.g. 2
        top_power: exponent of that mean; 1 unless given
        thresholds: CSV of class,threshold as `oof` writes for F1; for a template of decisions, which are at 0.5 else
        batch_frames: frames per batch; 4,000 on the CPU and 32,000 on a GPU unless given
        precision: float32, bfloat16 or float16
        backend: torch; openvino, for mode windows on the CPU; or auto, the faster of both

    Errors: KitError, with the cure, for what cannot be read, matched or written
    '''
    chosen = dict(locals())  # the arguments, as there is nothing else yet
    soundscapes = None
    if competition is not None:
        if audio is not None or template is not None:
            raise KitError('competition names the audio and the template: leave these out.')
        data = find_competition(competition)
        audio = data.test
        soundscapes = data.soundscapes
        template = data.template if data.template.is_file() else None
    elif audio is None:
        raise KitError("give audio, a folder of clips, or competition, the folder of a competition's data.")
    many = [checkpoints] if isinstance(checkpoints, str | Path | nn.Module) else checkpoints
    out = check_output(out, template)
    for name, number in (('threads', threads), ('batch_frames', batch_frames)):
        if number is not None and not (type(number) is int and number > 0):
            raise KitError(f'{name} is a whole number above 0, got {number!r}.')
    check_backend(backend)
    check_kind('decoders', decoders or [], Decoder, 'give Decoder(name, read, duration_s), or none')
    if started_at is not None and deadline is None:
        raise KitError('started_at has no effect without a deadline: give one, or leave it out.')
    check_kind('audio', [audio], str | Path, 'give the path of a folder')
    chosen |= {'checkpoints': many, 'audio': Path(audio), 'out': out}
    chosen['template'] = None if template is None else Path(template)
    options = SubmitOptions(**{field.name: chosen[field.name] for field in fields(SubmitOptions)})
    if rehearse and (competition is None or soundscapes is None):
        raise KitError("rehearse predicts a competition's training soundscapes: give competition, or leave it out.")
    if deadline is None:
        submission = Submission(options.out, run_submission(options, Deadline()))
    else:
        submission = submit_before(options, deadline, started_at)
    if rehearse and soundscapes and submission.report.get('files') == 0:
        submission.report['rehearsal'] = rehearse_test(options, soundscapes, rehearse)
    return submission


def rehearse_test(options: SubmitOptions, soundscapes: Path, count: int) -> str:
    '''Predict some training soundscapes as the test, to <out>_rehearsal.csv, and reckon the time of 600 test files.'''
    files = scan_folder(soundscapes)[0]
    chosen = files[:: max(1, len(files) // count)][:count]
    out = options.out.with_name(f'{options.out.stem}_rehearsal.csv')
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen:
            (Path(folder) / path.name).symlink_to(path.resolve())
        rows = options.rows if options.rows not in ('auto', 'template') else f'{ROW_S:g}s'
        report = run_submission(replace(options, audio=Path(folder), out=out, rows=rows), Deadline())
    total_s = report['seconds_total']
    fixed_s = report['seconds'].get('models', 0.0)
    per_file_s = (total_s - fixed_s) / max(1, len(chosen))
    minutes = (fixed_s + TEST_FILES * per_file_s) / 60
    text = (
        f'rehearsal: {len(chosen)} soundscapes, {report["audio_s"]:.0f} s of audio, took {total_s:.1f} s ({out.name})'
    )
    text += f'; {TEST_FILES} such files would take {minutes:.1f} min here'
    print(text, flush=True)
    return text


def check_output(out: str | Path, template: str | Path | None) -> Path:
    '''The path of the CSV to write.'''
    check_kind('out', [out], str | Path, 'give the path of a CSV')
    check_kind('template', [template], str | Path | None, 'give the path of a CSV')
    path = Path(out).expanduser()
    if path.suffix.lower() != '.csv':
        raise KitError(f"out is a CSV's path, got {str(out)!r}: e.g. submission.csv.")
    if path.exists() and not path.is_file():
        raise KitError(f'{path} is no file: choose another --out.')
    if template is not None and path.exists() and Path(template).exists() and path.samefile(template):
        raise KitError(f'{path} is the template itself: choose another --out.')
    report = report_path(path)
    if report.exists() and 'job' not in read_report(path):
        raise KitError(f"{report} would be replaced, and is no report of the kit's: choose another --out.")
    return path


def submit_before(options: SubmitOptions, deadline: str | float, started_at: float | None) -> Submission:
    '''Submit so that the call returns in time: in a child process, or in a thread for what only this process holds.

    Work should stop a little before it is killed, a margin before the deadline. A child gets no taggers, networks or
    decoders.
    '''
    duration_s = parse_duration(deadline)
    end = set_deadline(deadline, started_at).at
    margin_s = worker_margin_s() if in_worker() else exit_margin_s(duration_s)
    kill_at = Deadline(end - margin_s)
    job = SubmitJob(options, Deadline(kill_at.at - kill_margin_s(duration_s)), kill_at, end)
    if in_worker():
        return Submission(options.out, run_job(job))
    if job.deadline.left_s() <= 0:
        job.mute_after = Deadline()
        write_priors(job, read_inputs(job))
        since = f'{deadline} after {time.ctime(end - duration_s)}'
        print(f'WARNING: the deadline has passed, {since}: in an old session give started_at=time.time().')
        return Submission(options.out, read_report(options.out))
    if any(isinstance(item, Tagger) for item in options.checkpoints) or options.networks or options.decoders:
        return submit_in_thread(job, Deadline(end - 0.75 * margin_s))
    words = vars(options) | {'networks': None, 'progress': None, 'no_progress': not options.progress}
    words |= {'deadline': deadline, 'started_at': repr(end - duration_s)}
    return submit_in_children(job, ['submit', *as_arguments(words)], margin_s)


def kill_margin_s(duration_s: float) -> float:
    '''The seconds from when work should stop to when it is killed.'''
    return min(1.5, 0.05 * duration_s)


def exit_margin_s(duration_s: float) -> float:
    '''The seconds before the deadline at which work is killed.'''
    # A script's interpreter must end then, which takes a part of the time that its start took here.
    end_s = 0.0 if in_notebook() else min(0.4 * (time.time() - process_start()), 0.08 * duration_s, 5.0)
    return kill_margin_s(duration_s) + end_s


def submit_in_children(job: SubmitJob, words: list[str], margin_s: float) -> Submission:
    '''Submit in a child process, and pass on what it prints.

    While there is time, a child that dies is followed by another, without the file or model that was open.
    '''
    out = job.options.out
    can_start_at_once = can_fork()
    if not can_start_at_once:
        write_priors_soon(job)
    errors: list[str] = []
    deaths: list[str] = []

    def echo(text: str) -> None:
        if errors:
            errors.append(text)
            return
        output, mark, error = text.partition(ERROR_MARK)
        print(output, end='', flush=True)
        if mark:
            errors.append(error)

    def work() -> None:
        job_of_child = SubmitJob(job.options, job.deadline, job.mute_after, job.end_s)
        job_of_child.is_quiet = bool(deaths)
        run_job(job_of_child)

    while True:
        worker = None
        if can_start_at_once:
            worker = fork_worker(work, patience_s=max(0.5, min(10.0, job.mute_after.left_s() / 4)))
            can_start_at_once = worker is not None
        ending = supervise(worker or spawn_worker(words, repr(margin_s)), job.mute_after, echo)
        if errors:
            raise KitError(''.join(errors).strip())
        if ending.code == 0:
            return Submission(out, read_report(out))
        if ending.code is None:
            return warn_of_cut(job, 'was stopped at the deadline')
        reason = f'the process ended with code {ending.code} (below 0: signal)'
        deaths.append(reason)
        change = job.suspects.blame(ending, reason)
        if change is None or job.deadline.left_s() <= 0:
            return warn_of_cut(job, f'stopped after {len(deaths)} tries, as {reason}')
        print(f'WARNING: {reason}; {change}, and the work goes on', flush=True)


def start_thread(work: Callable[[], Any]) -> Future[Any]:
    '''Start work in a thread that does not keep the process alive.'''
    done = Future[Any]()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def write_priors_soon(job: SubmitJob) -> None:
    '''Read the inputs and write priors before a new interpreter has started, unless this takes long here.

    Errors: KitError for unusable inputs
    '''
    first = SubmitJob(job.options, job.deadline, job.mute_after, job.end_s)

    def work() -> None:
        inputs = read_inputs(first)
        with locked(job.state_folder, job.options.out):
            pass  # the lock is only tried, as the child needs it
        write_priors(first, inputs)

    done = start_thread(work)
    wait([done], max(0.1, min(5.0, job.deadline.left_s() / 5)))
    first.is_abandoned = True
    if done.done():
        done.result()


def warn_of_cut(job: SubmitJob, ending: str) -> Submission:
    '''Warn that work was cut short; return what exists.'''
    out = job.options.out
    report = read_report(out)
    print(f'WARNING: the work {ending}; {out} holds what was done by then', flush=True)
    if report and not job.is_mute:
        report['state'] = ending
        with contextlib.suppress(KitError):
            write_json(report_path(out), report)
    return Submission(out, report)


def submit_in_thread(job: SubmitJob, last: Deadline) -> Submission:
    '''Submit with networks that only this process holds; return in time even where they hang.

    A network that never returns keeps its thread. Code that holds the interpreter lock cannot be left: a script ends at
    `last` with exit code 0, its CSV whole, and a notebook waits; to be sure, submit checkpoints of the kit's families.
    '''
    cancel_exit = (lambda: None) if in_notebook() else exit_after(max(0.01, last.left_s()))
    done = start_thread(lambda: run_job(job))
    wait([done], max(0.0, job.mute_after.left_s()))
    cancel_exit()
    if done.done():
        return Submission(job.options.out, done.result())
    job.is_abandoned = True
    return warn_of_cut(job, 'was left at the deadline')
