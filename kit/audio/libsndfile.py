'''Decode with libsndfile to the end of the sound: the length in a header is a promise, not a measurement.

What decodes before and behind damage is read. Silence replaces what is lost where its length is known, so that times
stay right. Notes on the mix name what is lost.
'''

import contextlib
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.containers import Mp3Scan, audio_kind, close_recording, mp3_parts, scan_mp3, scan_ogg, without_inner_tags

MAX_HOURS = 6
BLOCK_SAMPLES = 1 << 20
# The most that a format can pack into a byte is silence: 65535 samples in a FLAC frame of 14 bytes.
MAX_SAMPLES_PER_BYTE = 8192
# How often reading goes on behind damage, and the first step over it.
MAX_RESUMES = 100
RESUME_SAMPLES = 1024
# Larger files are not searched for frames or pages: six hours of MP3 at 320 kbit/s take 864 MB.
MAX_SCAN_BYTES = 1 << 30
# Programs that write to a pipe state this size of the sound or a larger one.
STREAM_BYTES = 0x7FFF0000
# Channels whose mean has less than this share of their energy cancel each other: -40 dB.
CANCELLED_SHARE = 1e-4
CANCELLED_NOTE = 'the channels cancel each other: one of them is used instead of their mean'


class MonoMix:
    '''The mean over channels of the added blocks; one channel where they cancel each other.'''

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.samples = 0
        # Where the next block begins, if it is behind sound that is lost.
        self.resume_at = 0
        self.notes: list[str] = []
        self.blocks: list[np.ndarray] = []

    def add(self, block: np.ndarray) -> None:
        '''Add a block. Shape: (n, channels). Errors: ValueError for a sound longer than MAX_HOURS'''
        if not len(block):
            return
        lost = max(0, self.resume_at - self.samples)
        check_duration((self.samples + lost + len(block)) / self.sample_rate)
        if lost:
            at_s = self.samples / self.sample_rate
            self.notes.append(f'{lost / self.sample_rate:.2f} s at {at_s:.1f} s are damaged and became silence')
            self.blocks.append(np.zeros(lost, np.float32))
        self.blocks.append(self.mono(block))
        self.samples += lost + len(block)

    def mono(self, block: np.ndarray) -> np.ndarray:
        '''The mean over channels, or the loudest one where they cancel. Shape: (n, channels) -> (n,)'''
        channels = block.shape[1]
        # Adding columns gives np.mean's digits, several times as fast.
        mean = block[:, 0].astype(np.float32)
        if channels == 1:
            return mean
        for i in range(1, channels):
            mean += block[:, i]
        mean /= channels
        # Some 16,000 samples of a block are enough.
        step = max(1, len(block) // 16384)
        energies = np.square(block[::step], dtype=np.float64).mean(axis=0)
        mean_energy = np.square(mean[::step], dtype=np.float64).mean()
        if energies.any() and mean_energy <= CANCELLED_SHARE * energies.mean():
            if CANCELLED_NOTE not in self.notes:
                self.notes.append(CANCELLED_NOTE)
            mean = block[:, energies.argmax()].astype(np.float32)
        return mean

    def wave(self) -> np.ndarray:
        '''The mono sound. Shape: -> (samples,) float32'''
        if len(self.blocks) == 1:
            return self.blocks[0]
        return np.concatenate([np.zeros(0, np.float32), *self.blocks])

    def note_early_end(self, lost: float) -> None:
        '''Note that a file ends before the end that its header states. Units: samples'''
        lost_s = lost / self.sample_rate
        length = f'{lost_s:.1f}' if lost_s >= 0.1 else f'{lost_s:.3f}'
        self.notes.append(f'the file ends early: its last {length} s are missing')


def libsndfile_name(path: Path) -> str | bytes:
    '''The path for libsndfile: text on Windows, bytes elsewhere, where a name may be no UTF-8.'''
    return str(path) if os.name == 'nt' else os.fsencode(path)


def credible_frames(frames: int, path: Path) -> int | None:
    '''A header's length if the file can hold it. libsndfile states 2^63 - 1 where the length is unknown.'''
    return frames if 0 < frames <= MAX_SAMPLES_PER_BYTE * path.stat().st_size else None


def check_duration(seconds: float) -> None:
    '''Raise ValueError for more than MAX_HOURS, before memory is allocated for it.'''
    if not seconds <= MAX_HOURS * 3600:
        raise ValueError(f'it holds {seconds / 3600:.1f} hours, more than the limit of {MAX_HOURS}')


def read_libsndfile(path: Path) -> MonoMix:
    '''Decode a file. Errors: libsndfile's, and ValueError, where there is no sound or too much of it'''
    import soundfile

    kind = audio_kind(path)
    raw = path.read_bytes() if kind in ('MP3', 'Ogg') and path.stat().st_size <= MAX_SCAN_BYTES else b''
    if kind == 'MP3':
        raw = without_inner_tags(raw)
    scan = scan_mp3(raw) if kind == 'MP3' else None
    if scan:
        check_duration(scan.seconds)
        notes = scan.notes
        mix = read_by_seeking(path) if is_whole_mp3(path, scan) else read_parts(mp3_parts(raw, scan))
    elif kind == 'Ogg' and raw:
        parts, is_whole, notes = scan_ogg(raw)
        mix = read_by_seeking(path) if is_whole else read_parts(parts)
    else:
        notes = []
        try:
            mix = read_by_seeking(path)
        except soundfile.SoundFileError as problem:
            if kind != 'MP3':
                raise
            # libsndfile's own words are that the file does not exist.
            raise ValueError('the file holds no whole MP3 frame') from problem
    mix.notes += notes
    return mix


def read_by_seeking(path: Path) -> MonoMix:
    '''Decode a file; behind damage, seek on in growing steps.'''
    import soundfile

    closed = close_recording(path)
    with soundfile.SoundFile(io.BytesIO(closed) if closed else libsndfile_name(path)) as handle:
        stated = credible_frames(handle.frames, path)
        # With a byte per frame or more the header needs no trust: libsndfile checked it against the file's size.
        if stated and stated <= path.stat().st_size:
            check_duration(stated / handle.samplerate)
        mix = MonoMix(handle.samplerate)
        error = add_blocks(handle, mix)
        if closed:
            mix.notes.append('the recording was never closed: its header states no length')
        # libsndfile logs a header that states more bytes of sound than there are, and corrects its length.
        sizes = re.search(r'(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)', handle.extra_info)
        if sizes and not closed and 0 < int(sizes[2]) < int(sizes[1]) < STREAM_BYTES:
            lost = mix.samples * (int(sizes[1]) / int(sizes[2]) - 1)
            if lost > 0.01 * mix.sample_rate:
                mix.note_early_end(lost)
    # Bytes of another kind may stand behind the sound: an error there loses nothing.
    step = RESUME_SAMPLES
    end = stated or MAX_HOURS * 3600 * mix.sample_rate
    for _ in range(MAX_RESUMES):
        before = mix.samples
        if error is None or before + step >= end:
            break
        with contextlib.suppress(soundfile.SoundFileError), soundfile.SoundFile(libsndfile_name(path)) as handle:
            handle.seek(before + step)
            mix.resume_at = before + step
            error = add_blocks(handle, mix)
        step = RESUME_SAMPLES if mix.samples > before else 2 * step
    if error and not mix.samples:
        raise error
    if error and stated is None:
        at_s = mix.samples / mix.sample_rate
        mix.notes.append(f'reading ended at damage at {at_s:.1f} s; how much is lost is not known')
    if stated and 0 < mix.samples < stated:
        mix.note_early_end(stated - mix.samples)
    return mix


def add_blocks(handle: Any, mix: MonoMix) -> Exception | None:
    '''Read a soundfile.SoundFile to its end, or to an error, which is returned; what was read before it stays.'''
    # Reading a handle that cannot seek skips soundfile's own seeks, which fail where the length is unknown.
    handle.seekable = lambda: False
    channels = handle.channels
    rows = max(1, min(BLOCK_SAMPLES // channels, handle.frames))
    buffer = np.empty((rows, channels), dtype=np.float32)
    error = None
    left = handle.frames
    while left > 0:
        block = buffer[: min(rows, left)]
        block.fill(np.nan)
        try:
            count = len(handle.read(dtype='float32', always_2d=True, out=block))
        except Exception as problem:
            error = problem
            # What the block got before the error is no longer NaN.
            is_empty = np.isnan(block[:, 0])
            count = int(is_empty.argmax()) if is_empty.any() else len(block)
        if not count:
            break
        mix.add(block[:count])
        left -= count
    return error


def read_parts(parts: list[tuple[bytes, int]]) -> MonoMix:
    '''Decode the undamaged parts of a file, each a stream that ends at a known place.

    Shape:  parts of the stream's bytes and its end, in samples; for Opus in samples at 48 kHz
    Errors: ValueError where no part decodes
    '''
    import soundfile

    mix: MonoMix | None = None
    end = end_rate = 1
    for data, end in parts:
        with contextlib.suppress(soundfile.SoundFileError), soundfile.SoundFile(io.BytesIO(data)) as handle:
            part = MonoMix(handle.samplerate)
            add_blocks(handle, part)
            end_rate = 48000 if handle.subtype == 'OPUS' else handle.samplerate
            start = end * part.sample_rate // end_rate - part.samples
            if mix is None:
                mix = MonoMix(part.sample_rate)
                # Opus counts some samples before the first one.
                start = start if start > 0.1 * part.sample_rate else 0
            mix.resume_at = start
            mix.add(part.wave()[:, None])
            mix.notes += [note for note in part.notes if note not in mix.notes]
    if mix is None:
        raise ValueError('no part of the file can be decoded')
    lost = end * mix.sample_rate // end_rate - mix.samples
    if lost > 0.1 * mix.sample_rate:
        mix.note_early_end(lost)
    return mix


def is_whole_mp3(path: Path, scan: Mp3Scan) -> bool:
    '''Whether an MP3's frames follow one another, and are as many as libsndfile expects.'''
    import soundfile

    lost = math.inf
    with contextlib.suppress(soundfile.SoundFileError):
        lost = scan.frames - soundfile.info(libsndfile_name(path)).frames / scan.frame_samples
    # An encoder's delay and padding are up to three frames, and taken off. Bytes behind the last frame hide it.
    return len(scan.runs) == 1 and -1 <= lost <= 3


def libsndfile_duration_s(path: Path) -> float | None:
    '''The duration by the header; that of an MP3 by its frames. Units: seconds'''
    import soundfile

    if audio_kind(path) == 'MP3' and path.stat().st_size <= MAX_SCAN_BYTES:
        scan = scan_mp3(without_inner_tags(path.read_bytes()))
        if scan and not is_whole_mp3(path, scan):
            return scan.seconds
    info = soundfile.info(libsndfile_name(path))
    frames = credible_frames(info.frames, path)
    return frames / info.samplerate if frames else None
