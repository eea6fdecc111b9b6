'''Decode files chunk by chunk, on threads that a file cannot stop, and compute each spectrogram once.'''

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import DECODERS, Decoder, Sound, Undecodable, decode_file, header_duration_s, usable
from kit.audio.frontend import Frontend
from kit.audio.waveform import resample, small_ratio
from kit.core.clock import Stopwatch, advance, progress_bar
from kit.core.errors import one_line
from kit.core.files import bytes_digest, file_digest, file_identity
from kit.core.runtime import cpu_count, free_memory_bytes
from kit.core.worker import opened
from kit.infer.cache import SpectrogramCache
from kit.infer.predictor import compute_spectrograms

Job = TypeVar('Job')
Result = TypeVar('Result')


@dataclass
class Task(Generic[Job, Result]):
    '''A job, queued while `started_at` is None. `result` or `error` is valid once `done` is set.'''

    job: Job
    done: threading.Event = field(default_factory=threading.Event)
    started_at: float | None = None
    result: Result | None = None
    error: Exception | None = None


class TimeoutPool(Generic[Job, Result]):
    '''A pool of daemon threads with a time limit for each job.

    Python cannot stop a thread. So a job that runs longer than `timeout_s` keeps its thread, a new one takes its place,
    and the job's result becomes `timed_out`. Each such job halves the limit, down to an eighth: a folder full of
    hanging files must not use up all the time.

    concurrent.futures does not fit: it joins its threads at exit, and one that hangs keeps Python alive.
    '''

    def __init__(
        self,
        work: Callable[[Job], Result],
        timed_out: Result,
        threads: int,
        timeout_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work = work
        self.timed_out = timed_out
        self.now = now
        self.timeout_s = timeout_s
        self.min_timeout_s = timeout_s / 8
        self.max_threads = max(1, threads)
        self.threads = 0
        self.queue: queue.SimpleQueue[Task[Job, Result] | None] = queue.SimpleQueue()

    def start_thread(self) -> None:
        '''Start one more thread.'''
        self.threads += 1
        threading.Thread(target=self.run_tasks, daemon=True).start()

    def run_tasks(self) -> None:
        '''Run tasks from the queue until it returns None.'''
        for task in iter(self.queue.get, None):
            task.started_at = self.now()
            try:
                task.result = self.work(task.job)
            except Exception as error:
                task.error = error
            task.done.set()

    def submit(self, job: Job) -> Task[Job, Result]:
        '''Queue a job; the queue has no limit.'''
        task = Task[Job, Result](job)
        self.queue.put(task)
        if self.threads < self.max_threads:
            self.start_thread()
        return task

    def result(self, task: Task[Job, Result]) -> Result:
        '''Wait for a task's result, or raise its exception. The time limit counts from the job's start.'''
        while not task.done.wait(timeout=min(0.1, self.timeout_s)):
            if task.started_at is not None and self.now() - task.started_at > self.timeout_s:
                self.max_threads += 1
                self.start_thread()
                self.timeout_s = max(self.timeout_s / 2, self.min_timeout_s)
                return self.timed_out
        if task.error:
            raise task.error
        return cast(Result, task.result)

    def shutdown(self) -> None:
        '''Let every thread end when the queue is empty.'''
        for _ in range(self.threads):
            self.queue.put(None)


TIMED_OUT = Undecodable('took too long to read; given up')
Source = Path | Sound
IsCached = Callable[[str], bool]
DecodeResult = tuple[str, Sound | Undecodable | None]
CHUNK_CLIPS = 24
CHUNK_SECONDS = 600.0
HeaderResult = float | Undecodable | None


@dataclass(eq=False)
class Chunk:
    '''Clips, as positions in the loader's sources, that are decoded together. `tasks` is None until submitted.'''

    clips: list[int]
    seconds: float = 0.0
    tasks: list[Task[Any, DecodeResult]] | None = field(default=None, repr=False)


def plan_chunks(durations_s: Mapping[int, float | None], isolated: Collection[int] = ()) -> list[Chunk]:
    '''Group clips into chunks of at most 24 and 600 s, short first. Unknown lengths, then isolated, are last, alone.'''
    chunks: list[Chunk] = []
    left_s = 0.0
    ordered = sorted((math.inf if s is None else s, clip) for clip, s in durations_s.items())
    ordered.sort(key=lambda pair: pair[1] in isolated)
    for seconds, clip in ordered:
        if not chunks or len(chunks[-1].clips) >= CHUNK_CLIPS or seconds > left_s:
            chunks.append(Chunk([]))
            left_s = CHUNK_SECONDS
        chunks[-1].clips.append(clip)
        chunks[-1].seconds += durations_s[clip] or 0.0
        left_s -= seconds
    return chunks


class SpectrogramLoader:
    '''Loads the clips of one job in chunks, and computes each frontend's spectrogram of a clip once.

    Call `read_headers` first. On a GPU the next chunk is decoded while the device computes. On the CPU all cores
    decode, then compute. A clip is identified by its position in `sources`. `notes` name what sound of it is lost or
    was changed. Durations are the headers' `durations_s`, and `seconds` as decoded.
    '''

    def __init__(
        self,
        sources: Sequence[Source],
        frontends: Mapping[str, Frontend],
        device: torch.device,
        *,
        threads: int | None = None,
        decoders: Sequence[Decoder] | None = None,
        clips: Sequence[int] | None = None,
        is_cached: IsCached = lambda _: False,
        timeout_s: float = 60.0,
        watch: Stopwatch | None = None,
    ) -> None:
        self.sources = sources
        self.clips = range(len(sources)) if clips is None else clips
        self.frontends = dict(frontends)
        self.device = device
        self.threads = threads or cpu_count()
        self.decoders = decoders or DECODERS
        self.is_cached = is_cached
        self.timeout_s = timeout_s
        self.watch = watch or Stopwatch()
        self.cache = SpectrogramCache(free_memory_bytes() // 2)
        self.durations_s: dict[int, float | None] = {}
        self.chunks: list[Chunk] = []
        self.pool: TimeoutPool[tuple[int, IsCached], DecodeResult] | None = None
        self.digests: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        self.failures: dict[int, str] = {}
        self.notes: dict[int, tuple[str, ...]] = {}
        self.identities: dict[int, str] = {}
        self.isolated: Collection[int] = ()

    def isolate(self, clips: Collection[int], reasons: Mapping[int, str]) -> None:
        '''Load some clips last and one by one; others, which ended a process, not at all.'''
        self.isolated = clips
        self.failures |= reasons

    def paths(self, clips: Iterable[int]) -> list[str]:
        '''The paths of those clips that are files.'''
        return [str(self.sources[clip]) for clip in clips if not isinstance(self.sources[clip], Sound)]

    @property
    def audio_s(self) -> float:
        '''Seconds of audio: as decoded, else as the headers state.'''
        return sum(self.seconds.get(clip, header_s or 0.0) for clip, header_s in self.durations_s.items())

    @property
    def total_s(self) -> float:
        '''Seconds of audio in all chunks.'''
        return sum(chunk.seconds for chunk in self.chunks)

    def read_headers(self) -> None:
        '''Read every clip's duration, plan the chunks, and start the decoding threads.'''
        pool = TimeoutPool[int, HeaderResult](self.read_header, TIMED_OUT, self.threads, self.timeout_s)
        with self.watch.measure('headers'):
            clips = [clip for clip in self.clips if clip not in self.failures]
            tasks = [pool.submit(clip) for clip in clips]
            headers = [pool.result(task) for task in tasks]
        pool.shutdown()
        for clip, header in zip(clips, headers, strict=True):
            if isinstance(header, Undecodable):
                self.failures[clip] = header.reason
            else:
                self.durations_s[clip] = header
        self.chunks = plan_chunks(self.durations_s, self.isolated)
        self.pool = TimeoutPool(self.decode_clip, ('', TIMED_OUT), self.threads, self.timeout_s)

    def read_header(self, clip: int) -> HeaderResult:
        '''Read a clip's duration; an isolated one's is unknown: it is opened once, and alone.'''
        if clip in self.isolated:
            return None
        with opened('file', self.paths([clip])):
            return header_duration_s(self.sources[clip], self.decoders)

    def decode_clip(self, job: tuple[int, IsCached]) -> DecodeResult:
        '''Return the hash of a clip's content, and its sound, why it is unusable, or None if predictions are cached.'''
        clip, is_cached = job
        source = self.sources[clip]
        if isinstance(source, Sound):
            return f'{bytes_digest(source.wave.tobytes())}-{source.sample_rate}', usable(source)
        self.identities[clip] = file_identity(source)
        with opened('file', self.paths([clip])):
            try:
                digest = file_digest(source) if source.is_file() else ''
            except OSError as error:
                return '', Undecodable(f'cannot be read: {one_line(error)}')
            if digest and is_cached(digest):
                return digest, None
            return digest, decode_file(source, self.decoders)

    def submit_clips(self, clips: Sequence[int], is_cached: IsCached) -> list[Task[Any, DecodeResult]]:
        '''Queue clips for decoding.'''
        assert self.pool is not None, 'call read_headers() first'
        return [self.pool.submit((clip, is_cached)) for clip in clips]

    def prefetch(self, chunk: Chunk) -> None:
        '''Queue a chunk for decoding, once.'''
        if chunk.tasks is None:
            chunk.tasks = self.submit_clips(chunk.clips, self.is_cached)

    def load(self, chunk: Chunk) -> list[int]:
        '''Hash a chunk's clips and decode those that are needed; return those that did not fail.'''
        self.prefetch(chunk)
        if chunk.tasks:
            tasks = chunk.tasks
            chunk.tasks = []
            following = self.chunks[self.chunks.index(chunk) + 1 :]
            if self.device.type != 'cpu' and following and following[0].clips[0] not in self.isolated:
                self.prefetch(following[0])
            self.compute(chunk.clips, tasks)
        return [clip for clip in chunk.clips if clip not in self.failures]

    def specs(self, chunk: Chunk, key: str) -> tuple[list[int], list[Tensor]]:
        '''The clips of a chunk that did not fail, and their spectrograms (M, N_i) by one frontend.'''
        clips = self.load(chunk)
        if missing := [clip for clip in clips if (clip, key) not in self.cache]:
            self.compute(missing, self.submit_clips(missing, lambda _: False))
            clips = [clip for clip in clips if clip not in self.failures]
        return clips, [self.cache.get((clip, key)) for clip in clips]

    def compute(self, clips: Sequence[int], tasks: Sequence[Task[Any, DecodeResult]]) -> None:
        '''Wait until clips are decoded, cache their spectrograms by every frontend, note failures.'''
        assert self.pool is not None
        self.cache.drop_unmapped()
        with self.watch.measure('decode'):
            results = [self.pool.result(task) for task in tasks]
        sounds: dict[int, Sound] = {}
        for clip, (digest, sound) in zip(clips, results, strict=True):
            self.digests[clip] = digest
            if isinstance(sound, Undecodable):
                self.failures[clip] = sound.reason
            elif sound is not None:
                sounds[clip] = sound
                self.seconds[clip] = sound.seconds
                if sound.notes:
                    self.notes[clip] = sound.notes
        with self.watch.measure('frontend'), opened('file', self.paths(sounds)):
            rates = sorted({frontend.config.sample_rate for frontend in self.frontends.values()})
            waves_at = {rate: self.resampled(sounds, rate) for rate in rates}
            for key, frontend in self.frontends.items():
                waves = waves_at[frontend.config.sample_rate]
                for clip, spec in zip(waves, compute_spectrograms(frontend, list(waves.values())), strict=True):
                    self.cache.put((clip, key), spec)

    def resampled(self, sounds: Mapping[int, Sound], rate: int) -> dict[int, Tensor]:
        '''Move waveforms to the device at one sample rate; clips whose rate cannot be converted fail.'''
        waves = {}
        for clip, sound in sounds.items():
            if ratio := small_ratio(sound.sample_rate, rate):
                wave = torch.from_numpy(np.ascontiguousarray(sound.wave, np.float32))
                waves[clip] = resample(wave.to(self.device), *ratio)
            else:
                self.failures[clip] = f'{sound.sample_rate} Hz to {rate} Hz is no ratio of small integers'
        return waves

    def load_chunks(self, task: str, progress: bool) -> Iterator[Chunk]:
        '''Read the headers, then yield every chunk under a progress bar; stop the threads at the end.'''
        self.read_headers()
        with contextlib.closing(self), progress_bar(self.total_s, task, 's of audio', progress) as bar:
            for chunk in self.chunks:
                yield chunk
                advance(bar, chunk.seconds)

    def print_failures(self, names: Sequence[str]) -> None:
        '''Print why the first five clips failed, and what sound the first five clips lost.'''
        for clip, reason in list(self.failures.items())[:5]:
            print(f'note: could not read {names[clip]}: {reason}', flush=True)
        if len(self.notes) > 5:
            print(f'note: sound is lost or was changed in {len(self.notes)} clips, e.g.:', flush=True)
        for clip, notes in list(self.notes.items())[:5]:
            print(f'note: {names[clip]}: {"; ".join(notes)}', flush=True)

    def notes_by_name(self, names: Sequence[str], earlier: Mapping[str, list[str]]) -> dict[str, list[str]]:
        '''The notes on each clip by its name; an earlier call's for clips that were not decoded.'''
        notes = {}
        for clip, name in enumerate(names):
            if clip in self.notes:
                notes[name] = list(self.notes[clip])
            elif name in earlier and clip not in self.seconds:
                notes[name] = earlier[name]
        return notes

    def drop(self, chunk: Chunk, key: str) -> None:
        '''Delete a chunk's spectrograms by one frontend.'''
        for clip in chunk.clips:
            self.cache.drop((clip, key))

    def close(self) -> None:
        '''Let the decoding threads end.'''
        if self.pool is not None:
            self.pool.shutdown()
