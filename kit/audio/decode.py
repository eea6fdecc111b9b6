"""Decode audio files to mono waveforms, or say why that failed."""

import contextlib
import os
import stat
import wave as wave_file
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.core.errors import KitError

AUDIO_SUFFIXES = ".wav .flac .ogg .oga .opus .mp3 .m4a .aif .aiff .aac .wma .w64"
MAX_SAMPLE = 1e9


@dataclass(frozen=True)
class Sound:
    """A decoded clip. Shape: wave (T,) float32, mono. Units: samples in [-1, 1], rate in Hz"""

    wave: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class Undecodable:
    """Why a file could not be heard."""

    reason: str


@dataclass(frozen=True)
class Decoder:
    """One way to read audio; `duration_s` reads the header alone."""

    name: str
    read: Callable[[Path], Sound]
    duration_s: Callable[[Path], float]


def libsndfile_name(path: Path) -> str | bytes:
    """A path as libsndfile takes it: text on Windows, bytes elsewhere."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def read_soundfile(path: Path) -> Sound:
    """Decode through libsndfile, block by block."""
    import soundfile

    with soundfile.SoundFile(libsndfile_name(path)) as handle:
        check_duration(handle.frames / handle.samplerate)
        wave, heard = np.empty(handle.frames, dtype=np.float32), 0
        while len(block := handle.read(min(1 << 20, handle.frames), dtype="float32", always_2d=True)):
            room = wave[heard : heard + len(block)]
            np.mean(block[: len(room)], axis=1, out=room)
            heard += len(room)
        return Sound(wave[:heard], handle.samplerate)


def soundfile_duration_s(path: Path) -> float:
    """Seconds as the header states them."""
    import soundfile

    return float(soundfile.info(libsndfile_name(path)).duration)


def read_torchcodec(path: Path) -> Sound:
    """Decode through TorchCodec: AAC, M4A, WMA too."""
    from torchcodec.decoders import AudioDecoder

    decoder = AudioDecoder(str(path))
    check_duration(float(decoder.metadata.duration_seconds or 0.0))
    samples = decoder.get_all_samples()
    return Sound(samples.data.mean(dim=0).float().numpy(), int(samples.sample_rate))


def torchcodec_duration_s(path: Path) -> float:
    """Seconds as the header states them."""
    from torchcodec.decoders import AudioDecoder

    return float(AudioDecoder(str(path)).metadata.duration_seconds)


def read_wave(path: Path) -> Sound:
    """Decode integer PCM WAV with the standard library. Samples of one byte are stored without a sign."""
    with wave_file.open(str(path), "rb") as handle:
        check_duration(handle.getnframes() / handle.getframerate())
        width, channels = handle.getsampwidth(), handle.getnchannels()
        raw = np.frombuffer(handle.readframes(handle.getnframes()), dtype=np.uint8)
        raw = raw[: len(raw) - len(raw) % (width * channels)].reshape(-1, width)
        padded = np.zeros((len(raw), 4), dtype=np.uint8)
        padded[:, 4 - width :] = raw if width > 1 else raw ^ 128
        values = (padded.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
        return Sound(values.reshape(-1, channels).mean(axis=1), handle.getframerate())


def wave_duration_s(path: Path) -> float:
    """Seconds as the header states them."""
    with wave_file.open(str(path), "rb") as handle:
        return handle.getnframes() / handle.getframerate()


DECODERS = (
    Decoder("soundfile", read_soundfile, soundfile_duration_s),
    Decoder("torchcodec", read_torchcodec, torchcodec_duration_s),
    Decoder("wave", read_wave, wave_duration_s),
)


def check_duration(seconds: float) -> None:
    """Refuse a header that promises too much for the memory."""
    if seconds > 6 * 3600:
        raise ValueError(f"claims to last {seconds / 3600:.1f} hours, the limit is 6")


def decode_file(path: Path, decoders: Sequence[Decoder] = DECODERS) -> Sound | Undecodable:
    """The file's channels averaged, at its own rate, by the first decoder that can read it.

    Errors: none; a file that is missing, empty, unreadable or not finite becomes an Undecodable
    """
    if problem := file_problem(path):
        return Undecodable(problem)
    reasons = []
    for decoder in decoders:
        try:
            return usable(decoder.read(path))
        except ImportError:
            continue
        except (Exception, SystemExit) as error:
            reasons.append(f"{decoder.name}: {one_line(error)}")
    return Undecodable("; ".join(reasons) or "no decoder is installed: pip install soundfile")


def header_duration_s(path: Path | Sound, decoders: Sequence[Decoder] = DECODERS) -> float | None:
    """Seconds of a sound, or of a file by its header; None where none can tell."""
    if isinstance(path, Sound):
        return path.seconds if usable(path) is path else None
    if file_problem(path):
        return None
    for decoder in decoders:
        with contextlib.suppress(Exception):
            return decoder.duration_s(path)
    return None


def file_problem(path: Path) -> str | None:
    """Why a path is no file to read, without opening it: a pipe blocks."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        return f"cannot be opened: {getattr(error, 'strerror', None) or one_line(error)}"
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    return None if facts.st_size else "the file is empty (0 bytes)"


def usable(sound: Sound) -> Sound | Undecodable:
    """A decoded sound, or why it cannot be used."""
    wave, rate = sound.wave, sound.sample_rate
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        return Undecodable(f"is {wave.dtype} of shape {wave.shape}, not mono floats (T,)")
    if len(wave) == 0:
        return Undecodable("holds no samples")
    if not 0 < rate < np.inf:
        return Undecodable(f"states a sample rate of {rate} Hz")
    peak = float(max(-wave.min(), wave.max()))
    if peak <= MAX_SAMPLE:
        return sound
    return Undecodable(f"holds samples up to {peak:.3g}: not finite, or no sound")


def one_line(error: BaseException) -> str:
    """An exception's message on one line, or its type."""
    return " ".join(str(error).split()) or type(error).__name__


def list_audio(folder: Path) -> list[Path]:
    """The audio files under a folder, without hidden ones, sorted. Errors: KitError for no folder"""
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise KitError(f"the audio folder {folder} {fault}: give the folder of the clips.")
    found: list[Path] = []
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [Path(root, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.suffix.lower() in AUDIO_SUFFIXES.split())
