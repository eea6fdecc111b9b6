"""Files in, the spectrograms of every frontend out: each file decoded once, each spectrogram computed once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kit.core.files import bytes_digest, file_digest
from kit.core.progress import Stopwatch
from kit.core.runtime import cpu_count, free_memory_bytes
from kit.infer.engine import hear_waves
from kit.infer.memory import SpecStore
from kit.sound.crew import Crew, Slot
from kit.sound.decode import (
    DECODERS,
    Decoder,
    Sound,
    Undecodable,
    decode_file,
    header_duration_s,
    one_line,
    sound_problem,
)
from kit.sound.frontend import Frontend
from kit.sound.resampling import resample, small_ratio

BURST_CLIPS = 24
BURST_S = 600.0
Source = Path | Sound
Known = Callable[[str], bool]
STUCK = Undecodable("took too long to read; given up")


@dataclass(frozen=True)
class Opened:
    """A source's content hash, and its sound unless it was not asked for."""

    digest: str
    sound: Sound | Undecodable | None


def plan_bursts(durations_s: Sequence[float | None]) -> list[list[int]]:
    """Sources in groups that are decoded together, the shortest first, those of unknown length last.

    Shape: -> lists of indices; at most 24 clips or 600 s of sound each, or one clip
    """
    known = [math.inf if d is None else d for d in durations_s]
    bursts: list[list[int]] = []
    room_s = 0.0
    for index in sorted(range(len(known)), key=lambda i: (known[i], i)):
        if not bursts or len(bursts[-1]) >= BURST_CLIPS or known[index] > room_s:
            bursts.append([])
            room_s = BURST_S
        bursts[-1].append(index)
        room_s -= known[index]
    return bursts


def source_duration_s(source: Source, decoders: Sequence[Decoder]) -> float | None:
    """Seconds of a source as its header states them."""
    if isinstance(source, Sound):
        return None if sound_problem(source) else source.seconds
    return header_duration_s(source, decoders)


def open_source(source: Source, decoders: Sequence[Decoder], known: Known) -> Opened:
    """Hash a source, and decode it unless everything about that hash is known."""
    if isinstance(source, Sound):
        problem = sound_problem(source)
        digest = f"{bytes_digest(source.wave.tobytes())}-{source.sample_rate}"
        return Opened(digest, Undecodable(problem) if problem else source)
    try:
        digest = file_digest(source) if source.is_file() else ""
    except OSError as error:
        return Opened("", Undecodable(f"cannot be read: {one_line(error)}"))
    if digest and known(digest):
        return Opened(digest, None)
    return Opened(digest, decode_file(source, decoders))


class Hearing:
    """All sources of one job, opened in bursts as models ask for them.

    On a GPU the next burst is decoded while the device computes; on the CPU all cores decode, then all compute.
    Units: durations in seconds
    """

    def __init__(
        self,
        sources: Sequence[Source],
        frontends: Mapping[str, Frontend],
        device: torch.device,
        *,
        threads: int | None = None,
        decoders: Sequence[Decoder] = DECODERS,
        known: Known = lambda digest: False,
        patience_s: float = 60.0,
        watch: Stopwatch | None = None,
    ) -> None:
        self.sources, self.frontends, self.device = sources, dict(frontends), device
        self.watch = watch or Stopwatch()
        self.store = SpecStore(free_memory_bytes() // 2)
        self.failures: dict[int, str] = {}
        self.digests: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        threads = threads or cpu_count()
        with self.watch.measure("headers"):
            self.durations_s = self.read_headers(decoders, threads, patience_s)
        bursts = ([i for i in burst if i not in self.failures] for burst in plan_bursts(self.durations_s))
        self.bursts = [burst for burst in bursts if burst]
        self.known = known
        self.crew: Crew[tuple[Source, Known], Opened] = Crew(
            lambda job: open_source(job[0], decoders, job[1]),
            lambda job: Opened("", STUCK),
            threads,
            patience_s,
        )
        self.on_their_way: dict[int, list[Slot[tuple[Source, Known], Opened]]] = {}
        self.opened: set[int] = set()

    def read_headers(
        self, decoders: Sequence[Decoder], threads: int, patience_s: float
    ) -> list[float | None]:
        """Seconds of every source where its header tells; a source that hangs is failed at once."""
        headers: Crew[Source, float | Undecodable | None] = Crew(
            lambda source: source_duration_s(source, decoders), lambda source: STUCK, threads, patience_s
        )
        slots = [headers.begin(source) for source in self.sources]
        told = [headers.finish(slot) for slot in slots]
        headers.dismiss()
        self.failures |= {i: t.reason for i, t in enumerate(told) if isinstance(t, Undecodable)}
        return [None if isinstance(t, Undecodable) else t for t in told]

    def burst_s(self, number: int) -> float:
        """Seconds of sound in a burst, as far as headers tell."""
        return sum(self.durations_s[i] or 0.0 for i in self.bursts[number])

    @property
    def total_s(self) -> float:
        """Seconds of sound in all, as far as headers tell."""
        return sum(d or 0.0 for d in self.durations_s)

    def begin_burst(self, number: int) -> None:
        """Send a burst to the threads, once."""
        if number < len(self.bursts) and number not in self.opened and number not in self.on_their_way:
            jobs = [(self.sources[i], self.known) for i in self.bursts[number]]
            self.on_their_way[number] = [self.crew.begin(job) for job in jobs]

    def open_burst(self, number: int) -> list[int]:
        """Hash and, where needed, decode a burst; the sources of it that can be heard."""
        if number not in self.opened:
            self.begin_burst(number)
            with self.watch.measure("decode"):
                heard = [self.crew.finish(slot) for slot in self.on_their_way.pop(number)]
            self.opened.add(number)
            if self.device.type != "cpu":
                self.begin_burst(number + 1)
            self.keep(dict(zip(self.bursts[number], heard, strict=True)))
        return [i for i in self.bursts[number] if i not in self.failures]

    def specs(self, number: int, key: str) -> tuple[list[int], list[Tensor]]:
        """The sources of a burst that can be heard, and their spectrograms by one frontend.

        Shape: -> indices, and one (M, N_i) for each
        """
        sources = self.open_burst(number)
        missing = [i for i in sources if (i, key) not in self.store]
        if missing:
            with self.watch.measure("decode"):
                slots = [self.crew.begin((self.sources[i], lambda digest: False)) for i in missing]
                heard = [self.crew.finish(slot) for slot in slots]
            self.keep(dict(zip(missing, heard, strict=True)))
            sources = [i for i in sources if i not in self.failures]
        return sources, [self.store.get((i, key)) for i in sources]

    def keep(self, heard: Mapping[int, Opened]) -> None:
        """Compute and keep every frontend's spectrograms of some sources; note those that failed."""
        sounds: dict[int, Sound] = {}
        for i, opened in heard.items():
            self.digests[i] = opened.digest
            if isinstance(opened.sound, Undecodable):
                self.failures[i] = opened.sound.reason
            elif opened.sound is not None:
                sounds[i] = opened.sound
                self.seconds[i] = opened.sound.seconds
        with self.watch.measure("frontend"):
            for rate in sorted({f.config.sample_rate for f in self.frontends.values()}):
                waves = self.waves_at(sounds, rate)
                for key, frontend in self.frontends.items():
                    if frontend.config.sample_rate == rate and waves:
                        for i, spec in zip(waves, hear_waves(frontend, list(waves.values())), strict=True):
                            self.store.put((i, key), spec)

    def waves_at(self, sounds: Mapping[int, Sound], rate: int) -> dict[int, Tensor]:
        """Waveforms on the device at one rate; sources that cannot have it are noted as failed."""
        waves = {}
        for i, sound in sounds.items():
            ratio = small_ratio(sound.sample_rate, rate)
            if ratio is None:
                self.failures[i] = (
                    f"no ratio of small integers leads from {sound.sample_rate} Hz to {rate} Hz within 0.01 %"
                )
            else:
                wave = np.ascontiguousarray(sound.wave, dtype=np.float32)
                waves[i] = resample(torch.from_numpy(wave).to(self.device), *ratio)
        return waves

    def drop(self, number: int, key: str) -> None:
        """Forget a burst's spectrograms when the last model has heard them."""
        for i in self.bursts[number]:
            self.store.drop((i, key))

    def retire(self, key: str) -> None:
        """Compute a frontend no more, and forget what is left of it: its last model is done."""
        self.frontends.pop(key, None)
        for number in range(len(self.bursts)):
            self.drop(number, key)

    def close(self) -> None:
        """Let the threads go."""
        self.crew.dismiss()
