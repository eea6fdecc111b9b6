"""Load files chunk by chunk and compute their spectrograms once."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import (
    DECODERS,
    Decoder,
    Sound,
    Undecodable,
    decode_file,
    header_duration_s,
    one_line,
    usable,
)
from kit.audio.frontend import Frontend
from kit.audio.resample import resample, small_ratio
from kit.audio.timeout_pool import Task, TimeoutPool
from kit.core.clock import Stopwatch, advance, progress_bar
from kit.core.files import bytes_digest, file_digest
from kit.core.runtime import cpu_count, free_memory_bytes
from kit.infer.cache import SpectrogramCache
from kit.infer.predictor import compute_spectrograms

STUCK = Undecodable("took too long to read; given up")
Source = Path | Sound
Known = Callable[[str], bool]
Opened = tuple[str, Sound | Undecodable | None]


def plan_chunks(durations_s: Sequence[float | None]) -> list[list[int]]:
    """Sources in groups to decode together, short ones first, unknown ones last.

    Shape: -> lists of indices; at most 24 clips or 600 s of sound each, or one clip
    """
    chunks: list[list[int]] = []
    room_s = 0.0
    for seconds, i in sorted((math.inf if told is None else told, i) for i, told in enumerate(durations_s)):
        if not chunks or len(chunks[-1]) >= 24 or seconds > room_s:
            chunks.append([])
            room_s = 600.0
        chunks[-1].append(i)
        room_s -= seconds
    return chunks


def open_source(source: Source, decoders: Sequence[Decoder], known: Known) -> Opened:
    """Hash a source, and decode it unless that hash is known. The content's hash, and the sound where it was wanted."""
    if isinstance(source, Sound):
        digest = f"{bytes_digest(source.wave.tobytes())}-{source.sample_rate}"
        return digest, usable(source)
    try:
        digest = file_digest(source) if source.is_file() else ""
    except OSError as error:
        return "", Undecodable(f"cannot be read: {one_line(error)}")
    return digest, None if digest and known(digest) else decode_file(source, decoders)


class SpectrogramLoader:
    """All sources of one job, opened in bursts as models ask for them.

    On a GPU the next burst is decoded while the device computes; on the CPU all cores decode, then all compute.
    `begun` holds a burst's jobs, and none once it was opened.
    Units: durations in seconds, as far as headers tell
    """

    def __init__(
        self,
        sources: Sequence[Source],
        frontends: Mapping[str, Frontend],
        device: torch.device,
        *,
        threads: int | None = None,
        decoders: Sequence[Decoder] | None = None,
        known: Known = lambda _: False,
        timeout_s: float = 60.0,
        watch: Stopwatch | None = None,
    ) -> None:
        self.sources, self.frontends, self.device = sources, dict(frontends), device
        self.known, self.watch = known, watch or Stopwatch()
        self.store = SpectrogramCache(free_memory_bytes() // 2)
        self.digests: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        threads, decoders = threads or cpu_count(), decoders or DECODERS
        headers: TimeoutPool[Source, float | Undecodable | None] = TimeoutPool(
            lambda source: header_duration_s(source, decoders), lambda _: STUCK, threads, timeout_s
        )
        with self.watch.measure("headers"):
            told = [headers.result(slot) for slot in [headers.submit(source) for source in sources]]
        headers.shutdown()
        self.failures = {i: STUCK.reason for i, seconds in enumerate(told) if seconds is STUCK}
        self.durations_s = [None if isinstance(seconds, Undecodable) else seconds for seconds in told]
        self.total_s = sum(filter(None, self.durations_s))
        chunks = ([i for i in chunk if i not in self.failures] for chunk in plan_chunks(self.durations_s))
        self.chunks = [chunk for chunk in chunks if chunk]
        self.crew: TimeoutPool[tuple[Source, Known], Opened] = TimeoutPool(
            lambda job: open_source(job[0], decoders, job[1]), lambda _: ("", STUCK), threads, timeout_s
        )
        self.pending: dict[int, list[Task[Any, Opened]]] = {}

    def print_failures(self, names: Sequence[str]) -> None:
        """Say of the first five sources that failed why they did."""
        for i, reason in list(self.failures.items())[:5]:
            print(f"note: could not hear {names[i]}: {reason}", flush=True)

    def chunk_seconds(self, number: int) -> float:
        """Seconds of sound in a burst."""
        return sum(self.durations_s[i] or 0.0 for i in self.chunks[number])

    def begin(self, sources: Sequence[int], known: Known) -> list[Task[Any, Opened]]:
        """Send sources to the threads."""
        return [self.crew.submit((self.sources[i], known)) for i in sources]

    def prefetch_chunk(self, number: int) -> None:
        """Send a burst to the threads, once."""
        if number < len(self.chunks) and number not in self.pending:
            self.pending[number] = self.begin(self.chunks[number], self.known)

    def load_chunk(self, number: int) -> list[int]:
        """Hash and, where needed, decode a burst; its sources that can be heard."""
        self.prefetch_chunk(number)
        if slots := self.pending[number]:
            self.pending[number] = []
            if self.device.type != "cpu":
                self.prefetch_chunk(number + 1)
            self.keep(self.chunks[number], slots)
        return [i for i in self.chunks[number] if i not in self.failures]

    def specs(self, number: int, key: str) -> tuple[list[int], list[Tensor]]:
        """A burst's sources that can be heard, and their spectrograms by one frontend. Shape: (M, N_i) each"""
        sources = self.load_chunk(number)
        missing = [i for i in sources if (i, key) not in self.store]
        if missing:
            self.keep(missing, self.begin(missing, lambda _: False))
            sources = [i for i in sources if i not in self.failures]
        return sources, [self.store.get((i, key)) for i in sources]

    def keep(self, sources: Sequence[int], slots: Sequence[Task[Any, Opened]]) -> None:
        """Wait for sources, keep their spectrograms, note those that failed."""
        sounds: dict[int, Sound] = {}
        with self.watch.measure("decode"):
            opened = [self.crew.result(slot) for slot in slots]
        for i, (digest, sound) in zip(sources, opened, strict=True):
            self.digests[i] = digest
            if isinstance(sound, Undecodable):
                self.failures[i] = sound.reason
            elif sound:
                sounds[i], self.seconds[i] = sound, sound.seconds
        with self.watch.measure("frontend"):
            rates = sorted({frontend.config.sample_rate for frontend in self.frontends.values()})
            waves_at = {rate: self.waves_at(sounds, rate) for rate in rates}
            for key, frontend in self.frontends.items():
                waves = waves_at[frontend.config.sample_rate]
                for i, spec in zip(waves, compute_spectrograms(frontend, list(waves.values())), strict=True):
                    self.store.put((i, key), spec)

    def waves_at(self, sounds: Mapping[int, Sound], rate: int) -> dict[int, Tensor]:
        """Waveforms on the device at one rate; sources that cannot have it fail."""
        waves = {}
        for i, sound in sounds.items():
            if ratio := small_ratio(sound.sample_rate, rate):
                wave = torch.from_numpy(np.ascontiguousarray(sound.wave, np.float32))
                waves[i] = resample(wave.to(self.device), *ratio)
            else:
                self.failures[i] = f"{sound.sample_rate} Hz to {rate} Hz is no ratio of small integers"
        return waves

    def walk(self, task: str, progress: bool) -> Iterator[int]:
        """The number of each burst, under a bar with the time left; then the threads are let go."""
        with contextlib.closing(self), progress_bar(self.total_s, task, "s of audio", progress) as bar:
            for number in range(len(self.chunks)):
                yield number
                advance(bar, self.chunk_seconds(number))

    def drop(self, number: int, key: str) -> None:
        """Forget a burst's spectrograms."""
        for i in self.chunks[number]:
            self.store.drop((i, key))

    def retire(self, key: str) -> None:
        """Forget a frontend and its spectrograms: its last model is done."""
        self.frontends.pop(key, None)
        for number in range(len(self.chunks)):
            self.drop(number, key)

    def close(self) -> None:
        """Let the threads go."""
        self.crew.shutdown()
