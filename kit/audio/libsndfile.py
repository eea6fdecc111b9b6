"""Decode with libsndfile to the end of the sound: the length in a header is a promise, not a measurement.

What decodes before and behind damage is read. Silence takes the place of what is lost where its length is known, so
that times stay right. Notes on the mix name what is lost.
"""

import contextlib
import io
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.containers import (
    MAX_SCAN_BYTES,
    OggPage,
    SplicedFile,
    audio_format,
    flac_frames,
    flac_head_of_unknown_length,
    is_broken_ogg,
    ogg_links,
    ogg_pages,
    ogg_stretches,
    open_unclosed,
    unended_notes,
)
from kit.audio.mono import MonoMix, early_end_note
from kit.audio.mp3 import Mp3Scan, repair_mp3, scan_mp3, skip_id3

MAX_HOURS = 6
BLOCK_SAMPLES = 1 << 20
# The most that a format can pack into a byte is silence: 65535 samples in a FLAC frame of 14 bytes.
MAX_SAMPLES_PER_BYTE = 8192
# How often reading goes on behind damage, and the first step over it.
MAX_RESUMES = 100
RESUME_SAMPLES = 1024
MAX_FLAC_BLOCK = 65535
# Programs that write to a pipe state this size of the sound or a larger one.
STREAM_BYTES = 0x7FFF0000
UNCLOSED_NOTE = "the recording was never closed: its header states no length"


def libsndfile_name(path: Path) -> str | bytes:
    """Return the path as libsndfile takes it: text on Windows, bytes elsewhere, where a name may be no UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def audio_kind(path: Path) -> str:
    """Return the format that a file's first bytes belong to, behind ID3 tags; "" where they are of no known format."""
    with open(path, "rb") as file:
        head = file.read(16)
        has_id3 = head[:3] == b"ID3"
        if has_id3:
            file.seek(skip_id3(head, 0))
            head = file.read(16)
    # Other bytes may stand before the first frame of an MP3.
    may_be_mp3 = has_id3 or path.suffix.lower() == ".mp3"
    return audio_format(head) or ("MP3" if may_be_mp3 else "")


def is_credible(frames: int, path: Path) -> bool:
    """Whether a file's bytes can hold so many frames. libsndfile states 2^63 - 1 where the length is unknown."""
    return 0 < frames <= MAX_SAMPLES_PER_BYTE * path.stat().st_size


def new_mix(sample_rate: int) -> MonoMix:
    """Return an empty mix with the limit of MAX_HOURS."""
    return MonoMix(sample_rate, MAX_HOURS * 3600)


def check_duration(seconds: float) -> None:
    """Raise ValueError for more than MAX_HOURS, before memory is allocated for it."""
    if seconds > MAX_HOURS * 3600:
        raise ValueError(f"it holds {seconds / 3600:.1f} hours, more than the limit of {MAX_HOURS}")


def read_libsndfile(path: Path) -> MonoMix:
    """Decode a file of any format that libsndfile reads.

    Errors: libsndfile's, and ValueError, where there is no sound or too much of it
    """
    kind = audio_kind(path)
    if path.stat().st_size <= MAX_SCAN_BYTES:
        if kind == "MP3":
            return read_mp3(path)
        if kind == "Ogg":
            return read_ogg(path)
    return read_plain(path, kind)


def read_plain(path: Path, kind: str) -> MonoMix:
    """Decode a file of any format that libsndfile reads, and go on behind damage."""
    import soundfile

    unclosed = open_unclosed(path) if kind in ("WAV", "AU", "CAF") else None
    with (
        unclosed or contextlib.nullcontext(),
        soundfile.SoundFile(unclosed or libsndfile_name(path)) as handle,
    ):
        stated = handle.frames if is_credible(handle.frames, path) else None
        # With a byte per frame or more the header needs no trust: libsndfile checked it against the file's size.
        if stated and stated <= path.stat().st_size:
            check_duration(stated / handle.samplerate)
        mix = new_mix(handle.samplerate)
        error = add_blocks(handle, mix)
        if unclosed:
            mix.notes.append(UNCLOSED_NOTE)
        elif kind != "FLAC":
            mix.notes += early_end_notes(handle, mix.samples)
    # Bytes of another kind may stand behind the sound: an error there loses nothing.
    if error and mix.samples != stated:
        if kind == "FLAC" and path.stat().st_size <= MAX_SCAN_BYTES:
            resume_flac(path, mix, stated)
        elif stated:
            resume_by_seeking(path, mix, stated)
        if not mix.samples:
            raise error
        if stated is None:
            mix.notes.append(f"reading ended at damage at {mix.seconds:.1f} s; how much is lost is not known")
    if stated and 0 < mix.samples < stated:
        mix.notes.append(early_end_note((stated - mix.samples) / mix.sample_rate))
    return mix


def add_blocks(handle: Any, mix: MonoMix) -> Exception | None:
    """Read from a soundfile.SoundFile to its end. Return the error that ended it, or None.

    Blocks that were read before an error stay, and so does what the last block got.
    """
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
            count = len(handle.read(dtype="float32", always_2d=True, out=block))
        except Exception as problem:
            error = problem
            # What the block got before the error is no longer NaN. MP3 goes on behind the damage.
            is_empty = np.isnan(block[:, 0])
            count = int(is_empty.argmax()) if is_empty.any() else len(block)
        if not count:
            break
        mix.add(block[:count])
        left -= count
    return error


def early_end_notes(handle: Any, samples: int) -> list[str]:
    """Return a note where libsndfile's log of a header states more bytes of sound than there are."""
    sizes = re.search(r"(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", handle.extra_info)
    if not sizes:
        return []
    stated = int(sizes[1])
    present = int(sizes[2])
    if not 0 < present < stated < STREAM_BYTES:
        return []
    lost_s = samples * (stated / present - 1) / handle.samplerate
    return [early_end_note(lost_s)] if lost_s > 0.01 else []


def resume_flac(path: Path, mix: MonoMix, stated: int | None) -> None:
    """Go on behind damage of a FLAC file; silence takes the place of lost frames, as frames are numbered."""
    import soundfile

    raw = path.read_bytes()
    metadata_end, frames = flac_frames(raw)
    head = flac_head_of_unknown_length(raw[:metadata_end])
    tries = 0
    for (offset, first), (_, following) in pairwise([*frames, (len(raw), stated or 0)]):
        # Damaged bytes may look like a frame's header. After a true one the next follows within a block.
        is_true = first < following <= first + MAX_FLAC_BLOCK
        if first < mix.samples or not is_true or tries >= MAX_RESUMES:
            continue
        tries += 1
        mix.resume_at = first
        with contextlib.suppress(soundfile.SoundFileError), SplicedFile(path, head, offset) as part:
            add_blocks(soundfile.SoundFile(part), mix)


def resume_by_seeking(path: Path, mix: MonoMix, stated: int) -> None:
    """Go on behind damage by seeking on in growing steps; silence takes the place of what is lost."""
    import soundfile

    step = RESUME_SAMPLES
    for _ in range(MAX_RESUMES):
        first = mix.samples + step
        if first >= stated:
            break
        before = mix.samples
        mix.resume_at = first
        with (
            contextlib.suppress(soundfile.SoundFileError),
            soundfile.SoundFile(libsndfile_name(path)) as handle,
        ):
            handle.seek(first)
            add_blocks(handle, mix)
        step = RESUME_SAMPLES if mix.samples > before else 2 * step


def read_mp3(path: Path) -> MonoMix:
    """Decode an MP3 file by its frames: libsndfile's estimate of the length is wrong both ways, and damage stops it.

    Errors: ValueError for a file without a whole frame
    """
    import soundfile

    raw = path.read_bytes()
    scan = scan_mp3(raw)
    if scan is None:
        # Layers I and II, a free bit rate, or no MP3 at all.
        try:
            return read_plain(path, "")
        except soundfile.SoundFileError as problem:
            raise ValueError("the file holds no whole MP3 frame") from problem
    check_duration(scan.frames_s(scan.frames))
    if is_whole_mp3(path, scan):
        mix = read_plain(path, "MP3")
    else:
        stream, notes = repair_mp3(raw, scan)
        with soundfile.SoundFile(io.BytesIO(stream)) as handle:
            mix = new_mix(handle.samplerate)
            error = add_blocks(handle, mix)
        if error and not mix.samples:
            raise error
        mix.notes += notes
    if scan.skipped:
        mix.notes.append(f"{scan.skipped} bytes before the first frame are damaged, or no sound")
    if scan.is_cut and scan.stated is None:
        mix.notes.append("the file ends early, within a frame; how much is lost is not known")
    return mix


def is_whole_mp3(path: Path, scan: Mp3Scan) -> bool:
    """Whether an MP3's frames follow one another, and are as many as libsndfile takes from its table or estimate."""
    import soundfile

    if len(scan.runs) > 1:
        return False
    with contextlib.suppress(soundfile.SoundFileError):
        lost = scan.frames * scan.frame_samples - int(soundfile.info(libsndfile_name(path)).frames)
        # An encoder's delay and padding are up to three frames, and taken off.
        return 0 <= lost <= 3 * scan.frame_samples
    return False


def read_ogg(path: Path) -> MonoMix:
    """Decode an Ogg file. Silence takes the place of damaged pages; streams that follow one another are joined.

    Errors: ValueError for a file without an undamaged stream
    """
    raw = path.read_bytes()
    links = ogg_links(ogg_pages(raw))
    if len(links) == 1 and not is_broken_ogg(links[0]):
        mix = read_plain(path, "Ogg")
        mix.notes += unended_notes(links[0])
        return mix
    parts = [part for part in (read_ogg_stream(raw, pages) for pages in links) if part is not None]
    if not parts:
        raise ValueError("the file holds no undamaged Ogg stream")
    mix = parts[0]
    for part in parts[1:]:
        if part.sample_rate == mix.sample_rate:
            mix.notes += part.notes
            mix.add(part.wave()[:, None])
        else:
            mix.notes.append(
                f"a second stream at {part.sample_rate} Hz, {part.seconds:.1f} s long, is left out"
            )
    return mix


def read_ogg_stream(raw: bytes, pages: list[OggPage]) -> MonoMix | None:
    """Decode one stream, stretch by stretch between its damaged pages; None where nothing of it decodes."""
    import soundfile

    mix: MonoMix | None = None
    stream_start = 0
    for stretch in ogg_stretches(raw, pages):
        try:
            with soundfile.SoundFile(io.BytesIO(stretch.data)) as handle:
                rest = new_mix(handle.samplerate)
                add_blocks(handle, rest)
                granules_per_s = 48000 if handle.subtype == "OPUS" else handle.samplerate
        except soundfile.SoundFileError:
            continue
        # Granules are counted at the end of pages: a stretch is placed by its end.
        start = stretch.granule * rest.sample_rate // granules_per_s - rest.samples
        if mix is None:
            mix = rest
            # Opus counts the samples that it skips, and a part of a broadcast those before it.
            stream_start = start if stretch.is_first else 0
        else:
            mix.resume_at = start - stream_start
            mix.add(rest.wave()[:, None])
    if mix is not None:
        mix.notes += unended_notes(pages)
    return mix


def libsndfile_duration_s(path: Path) -> float | None:
    """Return the duration by the header; that of an MP3 by its frames. Units: seconds"""
    import soundfile

    if audio_kind(path) == "MP3" and path.stat().st_size <= MAX_SCAN_BYTES:
        scan = scan_mp3(path.read_bytes())
        if scan and not is_whole_mp3(path, scan):
            return scan.frames_s(scan.frames)
    info = soundfile.info(libsndfile_name(path))
    return info.frames / info.samplerate if is_credible(info.frames, path) else None
