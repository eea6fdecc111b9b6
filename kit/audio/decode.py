"""Decode audio files to mono waveforms, or return the reason why a file cannot be used.

Decoders are tried in the order of `DECODERS` until one can read the file. soundfile (libsndfile) comes first: it is
the fastest, and lets other threads run while it decodes. TorchCodec comes next: it reads AAC, M4A and WMA, which
libsndfile does not, but is often not installed. Python's own `wave` module comes last: it is always installed, but
reads integer PCM WAV only. A decoder that is not installed is skipped.

A path is opened only if it is a regular file: opening a named pipe blocks until something writes to it, and a
device such as /dev/zero never ends.
"""

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
MAX_HOURS = 6
BLOCK_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Sound:
    """A decoded mono clip.

    Shape:  wave (T,) float32
    Units:  samples in [-1, 1], sample_rate in Hz
    """

    wave: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class Undecodable:
    """The reason why a file cannot be used, as the end of a sentence that begins with the file's name."""

    reason: str


@dataclass(frozen=True)
class Decoder:
    """One way to read audio files. `duration_s` reads the header only."""

    name: str
    read: Callable[[Path], Sound]
    duration_s: Callable[[Path], float]


def libsndfile_name(path: Path) -> str | bytes:
    """Return the path as libsndfile takes it: text on Windows, bytes elsewhere, where a name may be no UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def read_soundfile(path: Path) -> Sound:
    """Decode with libsndfile, block by block: many channels never fill the memory all at once."""
    import soundfile

    with soundfile.SoundFile(libsndfile_name(path)) as handle:
        check_duration(handle.frames / handle.samplerate)
        wave = np.empty(handle.frames, dtype=np.float32)
        filled = 0
        while filled < len(wave):
            block = handle.read(min(BLOCK_SAMPLES, len(wave) - filled), dtype="float32", always_2d=True)
            if not len(block):
                break
            np.mean(block, axis=1, out=wave[filled : filled + len(block)])
            filled += len(block)
        return Sound(wave[:filled], handle.samplerate)


def soundfile_duration_s(path: Path) -> float:
    """Return the duration that the header states. Units: seconds"""
    import soundfile

    return float(soundfile.info(libsndfile_name(path)).duration)


def read_torchcodec(path: Path) -> Sound:
    """Decode with TorchCodec, which uses FFmpeg."""
    from torchcodec.decoders import AudioDecoder

    decoder = AudioDecoder(str(path))
    check_duration(float(decoder.metadata.duration_seconds or 0.0))
    samples = decoder.get_all_samples()
    return Sound(samples.data.mean(dim=0).float().numpy(), int(samples.sample_rate))


def torchcodec_duration_s(path: Path) -> float:
    """Return the duration that the header states. Units: seconds"""
    from torchcodec.decoders import AudioDecoder

    return float(AudioDecoder(str(path)).metadata.duration_seconds)


def read_wave(path: Path) -> Sound:
    """Decode integer PCM WAV with Python's standard library."""
    with wave_file.open(str(path), "rb") as handle:
        check_duration(handle.getnframes() / handle.getframerate())
        sample_rate = handle.getframerate()
        width = handle.getsampwidth()
        channels = handle.getnchannels()
        raw = np.frombuffer(handle.readframes(handle.getnframes()), dtype=np.uint8)
    # A truncated file may end within a frame.
    whole = len(raw) - len(raw) % (width * channels)
    samples: np.ndarray = raw[:whole].reshape(-1, width)
    if width == 1:
        # Samples of one byte are unsigned; flipping the highest bit makes them signed.
        samples = samples ^ 128
    # Each sample becomes the highest bytes of a little-endian 32-bit integer.
    padded = np.zeros((len(samples), 4), dtype=np.uint8)
    padded[:, 4 - width :] = samples
    values = (padded.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return Sound(values.reshape(-1, channels).mean(axis=1), sample_rate)


def wave_duration_s(path: Path) -> float:
    """Return the duration that the header states. Units: seconds"""
    with wave_file.open(str(path), "rb") as handle:
        return handle.getnframes() / handle.getframerate()


DECODERS = (
    Decoder("soundfile", read_soundfile, soundfile_duration_s),
    Decoder("torchcodec", read_torchcodec, torchcodec_duration_s),
    Decoder("wave", read_wave, wave_duration_s),
)


def check_duration(seconds: float) -> None:
    """Raise ValueError for a header that states more than MAX_HOURS, before memory is allocated for it."""
    if seconds > MAX_HOURS * 3600:
        raise ValueError(f"the header states {seconds / 3600:.1f} hours, more than the limit of {MAX_HOURS}")


def decode_file(path: Path, decoders: Sequence[Decoder] = DECODERS) -> Sound | Undecodable:
    """Decode a file at its own sample rate, its channels averaged, with the first decoder that can read it.

    Errors: none are raised; a file that is missing, empty, unreadable or not finite becomes an Undecodable
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
    if not reasons:
        return Undecodable("cannot be decoded, because no decoder is installed: pip install soundfile")
    return Undecodable(f"cannot be decoded ({'; '.join(reasons)})")


def header_duration_s(source: Path | Sound, decoders: Sequence[Decoder] = DECODERS) -> float | None:
    """Return the duration of a sound, or of a file by its header; None where no decoder can read it.

    Units:  seconds
    """
    if isinstance(source, Sound):
        return source.seconds if usable(source) is source else None
    if file_problem(source):
        return None
    for decoder in decoders:
        with contextlib.suppress(Exception):
            return decoder.duration_s(source)
    return None


def file_problem(path: Path) -> str | None:
    """Return why a path must not be opened, or None. This does not open it, since opening a pipe blocks."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        return f"cannot be opened: {reason}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size == 0:
        return "is empty (0 bytes)"
    return None


def usable(sound: Sound) -> Sound | Undecodable:
    """Return a sound, or the reason why it cannot be used."""
    wave = sound.wave
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        return Undecodable(f"decodes to {wave.dtype} of shape {wave.shape}, not to mono floats (T,)")
    if len(wave) == 0:
        return Undecodable("holds no samples")
    if not 0 < sound.sample_rate < np.inf:
        return Undecodable(f"states a sample rate of {sound.sample_rate} Hz")
    peak = float(max(-wave.min(), wave.max()))
    # The comparison is false for NaN too.
    if not peak <= MAX_SAMPLE:
        return Undecodable(f"holds samples up to {peak:.3g}: not finite, or no sound")
    return sound


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def list_audio(folder: Path) -> list[Path]:
    """List the audio files under a folder, sorted, without hidden files and folders.

    Links are followed. A folder that can be reached in several ways is listed once.
    Errors: KitError where there is no such folder
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise KitError(f"the audio folder {folder} {problem}: give the folder of the clips.")
    suffixes = AUDIO_SUFFIXES.split()
    found: list[Path] = []
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        # os.walk enters the folders that are left in this list, in its order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(root, name) for name in names if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in suffixes]
    return sorted(found)
