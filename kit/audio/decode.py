'''Decode audio files to mono waveforms, or return the reason why a file cannot be used.

Decoders are tried in the order of `DECODERS`. soundfile (libsndfile) is the fastest, and lets other threads run while
it decodes. TorchCodec also reads AAC, M4A and WMA, but is often not installed.

Files are read to their end, whatever their header states. What decodes before and behind damage is used, and
`Sound.notes` names what is lost. Only regular files are opened: a named pipe blocks until something writes to it, and a
device such as /dev/zero never ends.
'''

import contextlib
import functools
import importlib
import os
import stat
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.containers import FFMPEG_FORMATS, audio_kind
from kit.audio.libsndfile import MAX_HOURS, MonoMix, libsndfile_duration_s, read_libsndfile
from kit.core.errors import KitError, one_line
from kit.core.files import AUDIO_SUFFIXES

MAX_SAMPLE = 1e9
# Integers that were stored as floats reach 32768; music that was mastered too loud stays far below this.
LOUD_SAMPLE = 16.0


@dataclass(frozen=True)
class Sound:
    '''A decoded mono clip. `notes` name what was lost or changed, a sentence each.

    Shape:  wave (T,) float32
    Units:  samples in [-1, 1], sample_rate in Hz
    '''

    wave: np.ndarray
    sample_rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        '''The duration in seconds.'''
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class Undecodable:
    '''The reason why a file cannot be used, as the end of a sentence that begins with the file's name.'''

    reason: str


@dataclass(frozen=True)
class Decoder:
    '''One way to read audio files. `duration_s` reads the header only; None: not credible.'''

    name: str
    read: Callable[[Path], Sound]
    duration_s: Callable[[Path], float | None]


@functools.cache
def import_problem(module: str) -> str | None:
    '''Why a module cannot be imported, or None. It is tried once, as a broken one takes long to fail.'''
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return 'not installed'
    except (Exception, SystemExit) as error:
        return f'broken: {one_line(error)}'
    return None


def require_module(module: str) -> None:
    '''Raise ImportError where a module is missing or broken.'''
    if problem := import_problem(module):
        raise ImportError(problem)


def read_soundfile(path: Path) -> Sound:
    '''Decode with soundfile. Errors: ImportError where it is missing or broken'''
    require_module('soundfile')
    return as_sound(read_libsndfile(path))


def as_sound(mix: MonoMix) -> Sound:
    '''The mix as a sound.'''
    return Sound(mix.wave(), mix.sample_rate, tuple(mix.notes))


def soundfile_duration_s(path: Path) -> float | None:
    '''The duration by libsndfile_duration_s.'''
    require_module('soundfile')
    return libsndfile_duration_s(path)


def open_torchcodec(path: Path) -> Any:
    '''Open a file with TorchCodec, which uses FFmpeg. Errors: ImportError where it is missing or broken'''
    require_module('torchcodec.decoders')
    from torchcodec.decoders import AudioDecoder

    return AudioDecoder(str(path))


def read_torchcodec(path: Path) -> Sound:
    '''Decode with TorchCodec.'''
    # A header may state too short a time or none: this reads to the end.
    samples = open_torchcodec(path).get_samples_played_in_range(0.0, MAX_HOURS * 3600 + 1.0)
    mix = MonoMix(int(samples.sample_rate))
    mix.add(samples.data.float().numpy().T)
    return as_sound(mix)


def torchcodec_duration_s(path: Path) -> float | None:
    '''The duration that the header states. Units: seconds'''
    return float(open_torchcodec(path).metadata.duration_seconds)


DECODERS = (
    Decoder('soundfile', read_soundfile, soundfile_duration_s),
    Decoder('torchcodec', read_torchcodec, torchcodec_duration_s),
)


def decode_file(path: Path, decoders: Sequence[Decoder] = DECODERS) -> Sound | Undecodable:
    '''Decode a file at its own sample rate, its channels averaged, with the first decoder that can read it.

    Errors: none; a file that is missing, empty, unreadable or not finite becomes an Undecodable
    '''
    if problem := file_problem(path):
        return Undecodable(problem)
    reasons = []
    missing = {}
    for decoder in decoders:
        try:
            result = usable(decoder.read(path))
        except ImportError as error:
            missing[decoder.name] = shorten(one_line(error))
            continue
        except (Exception, SystemExit) as error:
            result = Undecodable(one_line(error))
        if isinstance(result, Sound):
            return result
        reasons.append(f'{decoder.name}: {shorten(result.reason)}')
    return Undecodable(failure_reason(path, reasons, missing))


def failure_reason(path: Path, reasons: Sequence[str], missing: Mapping[str, str]) -> str:
    '''Why no decoder could read a file, and the cure where a decoder is missing.'''
    try:
        kind = audio_kind(path)
    except OSError as error:
        return f'cannot be read: {one_line(error)}'
    if kind in FFMPEG_FORMATS and 'torchcodec' in missing:
        cure = f'no decoder here reads {kind}: pip install torchcodec (it is {missing["torchcodec"]})'
    elif 'soundfile' in missing or not reasons:
        cure = f'soundfile is missing: pip install soundfile (it is {missing.get("soundfile", "not installed")})'
    else:
        return f'cannot be decoded ({"; ".join(reasons)})'
    return f'cannot be decoded: {cure}'


def header_duration_s(source: Path | Sound, decoders: Sequence[Decoder] = DECODERS) -> float | None:
    '''Return the seconds of a sound, or of a file by its header; None where no header states credible ones.'''
    if isinstance(source, Sound):
        return source.seconds if isinstance(usable(source), Sound) else None
    if file_problem(source):
        return None
    for decoder in decoders:
        with contextlib.suppress(Exception, SystemExit):
            seconds = decoder.duration_s(source)
            if seconds and 0 < seconds <= MAX_HOURS * 3600:
                return seconds
    return None


def file_problem(path: Path) -> str | None:
    '''Why a path must not be opened, or None.'''
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return f'cannot be opened: {getattr(error, "strerror", None) or one_line(error)}'
    if not stat.S_ISREG(status.st_mode):
        return 'is not a regular file'
    return None if status.st_size else 'is empty (0 bytes)'


def usable(sound: Sound) -> Sound | Undecodable:
    '''A sound, or the reason why it cannot be used.'''
    wave = sound.wave
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        return Undecodable(f'decodes to {wave.dtype} of shape {wave.shape}, not to mono floats (T,)')
    if len(wave) == 0:
        return Undecodable('holds no samples')
    if not 0 < sound.sample_rate < np.inf:
        return Undecodable(f'states a sample rate of {sound.sample_rate} Hz')
    peak = float(max(-wave.min(), wave.max()))
    # The comparison is false for NaN too.
    if not peak <= MAX_SAMPLE:
        is_sound = np.abs(wave) <= MAX_SAMPLE
        count = len(wave) - int(is_sound.sum())
        if 2 * count > len(wave):
            return Undecodable(f'holds {count} samples of {len(wave)} that are not finite, or no sound')
        note = f'{count} samples that are not finite, or beyond {MAX_SAMPLE:g}, became silence'
        return usable(replace(sound, wave=np.where(is_sound, wave, 0), notes=(*sound.notes, note)))
    if peak > LOUD_SAMPLE:
        note = f'samples reach {peak:.3g}, far beyond full scale (1.0): were they integers?'
        return replace(sound, notes=(*sound.notes, note))
    return sound


def shorten(text: str) -> str:
    '''A text's first words.'''
    return textwrap.shorten(text, 90, placeholder=' ...')


def list_audio(folder: Path) -> list[Path]:
    '''List the audio files under a folder, sorted, without hidden files and folders.

    Links are followed: a file reached in several ways is listed under each path. Errors: KitError without such a folder
    '''
    return scan_folder(folder)[0]


def scan_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    '''List the audio files under a folder, and the others.'''
    if not folder.is_dir():
        problem = 'is a file, not a folder' if folder.exists() else 'does not exist'
        raise KitError(f'the audio folder {folder} {problem}: give the folder of the clips.')
    audio: list[Path] = []
    others: list[Path] = []
    # The real folders on the way to each folder, itself included: entering one again is a circle of links.
    way_to = {str(folder): {os.path.realpath(folder)}}
    for root, folders, names in os.walk(folder, followlinks=True):
        way = way_to.pop(root)
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders if not name.startswith('.')}
        # os.walk enters the folders left in this list, in its order.
        folders[:] = sorted(name for name in real if real[name] not in way)
        way_to |= {os.path.join(root, name): way | {real[name]} for name in folders}
        for name in names:
            if not name.startswith('.'):
                path = Path(root, name)
                (audio if is_audio_name(path) else others).append(path)
    return sorted(audio), sorted(others)


def is_audio_name(path: Path) -> bool:
    '''Whether a file is audio by its suffix or, where it has none, by its first bytes.'''
    if path.suffix:
        return path.suffix.lower() in AUDIO_SUFFIXES.split()
    with contextlib.suppress(OSError):
        return file_problem(path) is None and audio_kind(path) != ''
    return False
