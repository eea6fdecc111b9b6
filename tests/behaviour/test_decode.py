'''Audio files become the waveform they hold, and every other file becomes a reason.'''

import os
import struct
import threading

import numpy as np
import pytest

from kit.audio.decode import (
    DECODERS,
    Decoder,
    Sound,
    Undecodable,
    decode_file,
    header_duration_s,
    list_audio,
    scan_folder,
)
from kit.core.errors import KitError

RATE = 16000
LOSSLESS = [
    ('WAV', 'PCM_U8', 2**-7),
    ('WAV', 'PCM_16', 2**-15),
    ('WAV', 'PCM_24', 2**-23),
    ('WAV', 'PCM_32', 2**-31),
    ('WAV', 'FLOAT', 0.0),
    ('WAV', 'DOUBLE', 0.0),
    ('FLAC', 'PCM_16', 2**-15),
    ('FLAC', 'PCM_24', 2**-23),
]
LOSSY = [('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', 'MPEG_LAYER_III')]


def noise(samples=4001, channels=1, seed=0):
    '''Uniform noise that no format clips. Shape: -> (samples, channels)'''
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (samples, channels)).astype(np.float32)


def write_sound(path, values, rate=RATE, kind='WAV', subtype='PCM_16'):
    '''Write through soundfile; where this libsndfile lacks the format the test is skipped.'''
    soundfile = pytest.importorskip('soundfile')
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f'this libsndfile ({soundfile.__libsndfile_version__}) does not write {kind} {subtype}')
    soundfile.write(path, values, rate, format=kind, subtype=subtype)
    return path


def not_installed(path):
    '''What a decoder that is not installed does.'''
    raise ImportError('not installed')


def must_not_read(path):
    '''A reader that must not be called.'''
    raise AssertionError(f'{path} was decoded')


def reason_of(path, decoders=DECODERS):
    '''The reason of a file that must not decode.'''
    result = decode_file(path, decoders)
    assert isinstance(result, Undecodable), result
    assert result.reason and '\n' not in result.reason
    return result.reason


@pytest.mark.parametrize('channels', [1, 2, 5])
@pytest.mark.parametrize('kind, subtype, step', LOSSLESS)
def test_a_lossless_file_is_the_mean_of_its_channels(tmp_path, kind, subtype, step, channels):
    values = noise(channels=channels)
    sound = decode_file(write_sound(tmp_path / 'a.bin', values, kind=kind, subtype=subtype))
    assert isinstance(sound, Sound) and sound.sample_rate == RATE and sound.seconds == 4001 / RATE
    assert sound.wave.dtype == np.float32 and sound.wave.shape == (4001,) and sound.wave.flags.c_contiguous
    slow = [sum(float(v) for v in frame) / channels for frame in values]
    np.testing.assert_allclose(sound.wave, slow, atol=step + 1e-6)


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('kind, subtype', LOSSY)
def test_a_lossy_file_keeps_its_sines_and_a_part_of_it_is_shorter_or_a_reason(tmp_path, kind, subtype, channels):
    rate = 48000
    t = np.arange(rate) / rate
    values = np.stack([0.4 * np.sin(2 * np.pi * 1000 * (c + 1) * t) for c in range(channels)], axis=1)
    path = write_sound(tmp_path / 'a.bin', values, rate, kind, subtype)
    sound = decode_file(path)
    assert isinstance(sound, Sound) and sound.sample_rate == rate
    assert abs(len(sound.wave) - rate) <= 2304
    middle = sound.wave[rate // 4 : 3 * rate // 4]
    spectrum = np.abs(np.fft.rfft(middle)) / (len(middle) / 2)
    for c in range(channels):
        assert spectrum[500 * (c + 1)] == pytest.approx(0.4 / channels, rel=0.05)
    assert header_duration_s(path) == pytest.approx(sound.seconds, abs=0.06)
    raw = path.read_bytes()
    for size in (2 * len(raw) // 3, 100, 3):
        path.write_bytes(raw[:size])
        part = decode_file(path)
        assert isinstance(part, Undecodable) or 0 < len(part.wave) < rate


def test_decoders_are_tried_in_order_until_one_reads_the_file(tmp_path):
    path = write_sound(tmp_path / 'a.wav', noise())

    def fails(path):
        raise RuntimeError('a line\nand another')

    failing = Decoder('first', fails, fails)
    absent = Decoder('absent', not_installed, not_installed)
    unused = Decoder('unused', must_not_read, must_not_read)
    assert isinstance(decode_file(path, [failing, absent, DECODERS[0], unused]), Sound)
    assert header_duration_s(path, [failing, absent, DECODERS[0], unused]) == 4001 / RATE
    assert '(first: a line and another)' in reason_of(path, [failing, absent])
    assert header_duration_s(path, [failing]) is None
    assert 'pip install soundfile' in reason_of(path, [absent])


def test_a_file_longer_than_one_block_is_whole(tmp_path):
    values = noise((1 << 20) + 4321, 2)
    sound = decode_file(write_sound(tmp_path / 'a.wav', values))
    assert isinstance(sound, Sound)
    np.testing.assert_allclose(sound.wave, values.mean(axis=1), atol=2**-14)


def test_a_path_that_is_no_audio_file_is_a_reason(tmp_path):
    (tmp_path / 'empty.wav').touch()
    (tmp_path / 'text.wav').write_text('fname,labels\n')
    (tmp_path / 'folder.wav').mkdir()
    (tmp_path / 'dangling.wav').symlink_to(tmp_path / 'gone.wav')
    words = {
        'missing.wav': 'No such file',
        'dangling.wav': 'No such file',
        'folder.wav': 'not a regular',
        'empty.wav': 'empty',
        'text.wav': 'soundfile',
        'a\0b.wav': 'cannot be opened',
        'x' * 5000 + '.wav': 'cannot be opened',
    }
    for name, word in words.items():
        assert word in reason_of(tmp_path / name), name
        assert header_duration_s(tmp_path / name) is None


def test_a_truncated_wav_is_what_is_left_of_it_or_a_reason(tmp_path):
    path = write_sound(tmp_path / 'a.wav', noise(5000, 2), subtype='PCM_24')
    whole, raw = decode_file(path), path.read_bytes()
    for size in (len(raw) - 1, len(raw) // 2 + 1, 61, 44, 43, 5, 1):
        path.write_bytes(raw[:size])
        part = decode_file(path)
        if size > 60:
            np.testing.assert_array_equal(part.wave, whole.wave[: max(1, len(part.wave))])
        else:
            assert part.reason


@pytest.mark.parametrize('wrong', [np.nan, -np.inf, 3e38])
def test_more_than_half_of_no_sound_makes_a_file_undecodable(tmp_path, wrong):
    values = noise()
    values[1234:] = wrong
    path = write_sound(tmp_path / 'a.wav', values, subtype='FLOAT')
    assert 'samples' in reason_of(path)
    # The duration is read from the header alone.
    readers = [Decoder(d.name, must_not_read, d.duration_s) for d in DECODERS]
    assert header_duration_s(path, readers) == 4001 / RATE


def test_a_file_of_no_samples_or_a_rate_of_zero_is_a_reason_and_one_sample_is_a_sound(tmp_path):
    path = tmp_path / 'a.wav'
    for raw in (wav_header(0, rate=RATE), wav_header(2000, rate=0) + bytes(2000)):
        path.write_bytes(raw)
        reason_of(path)
        assert not header_duration_s(path)
    write_sound(path, np.array([0.5], np.float32))
    assert decode_file(path).wave.tolist() == [0.5]


def wav_header(data_bytes, rate):
    '''The 44 bytes that promise so many bytes of mono 16-bit PCM.'''
    size = min(data_bytes + 36, 2**32 - 1)
    form = struct.pack('<4sI4s4sIHHIIHH', b'RIFF', size, b'WAVE', b'fmt ', 16, 1, 1, rate, 2 * rate, 2, 16)
    return form + struct.pack('<4sI', b'data', data_bytes)


def test_a_file_of_days_is_refused_and_a_header_that_only_promises_days_is_not(tmp_path):
    path = tmp_path / 'a.wav'
    path.write_bytes(wav_header(2**32 - 40, rate=100) + bytes(2000))
    assert decode_file(path).seconds == 10
    with open(tmp_path / 'sparse.wav', 'wb') as handle:
        handle.write(wav_header(2**31, rate=100))
        handle.truncate(2**31 + 44)
    assert 'hours' in reason_of(tmp_path / 'sparse.wav')
    assert header_duration_s(tmp_path / 'sparse.wav') is None


WRONG_RESULTS = [
    None,
    Undecodable('odd'),
    Sound(np.zeros(0, np.float32), RATE),
    *(Sound(np.zeros(3, np.float32), rate) for rate in (0, -1, float('inf'), float('nan'))),
    *(Sound(wave, RATE) for wave in (np.float32(0.5), np.array(0.5), np.zeros((2, 3)), np.zeros(3, int))),
]


@pytest.mark.parametrize('result', WRONG_RESULTS, ids=str)
def test_a_decoder_that_returns_no_mono_waveform_is_a_reason_and_the_next_one_reads(tmp_path, result):
    path = write_sound(tmp_path / 'a.wav', noise())
    odd = Decoder('odd', lambda path: result, lambda path: 0.0)
    assert 'odd' in reason_of(path, [odd])
    assert decode_file(path, [odd, *DECODERS]).seconds == header_duration_s(path, [odd, *DECODERS]) == 4001 / RATE


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_a_named_pipe_does_not_block(tmp_path):
    pipe = tmp_path / 'pipe.wav'
    os.mkfifo(pipe)
    link = tmp_path / 'link.wav'
    link.symlink_to(pipe)
    results = []

    def read_all():
        results.extend([decode_file(pipe), decode_file(link), header_duration_s(pipe)])

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert len(results) == 3, 'opening a pipe blocked'
    assert 'regular' in results[0].reason and 'regular' in results[1].reason and results[2] is None


NAMES = ['ünïcödé 音 🐦.wav', "with space, comma 'quote'.WAV", '-dash.Ogg', 'a.b.c.wav', os.fsdecode(b'caf\xe9.flac')]


@pytest.mark.parametrize('name', NAMES, ids=ascii)
def test_any_name_can_be_read_and_is_listed(tmp_path, name):
    source = write_sound(tmp_path / 'plain', noise())
    path = tmp_path / name
    try:
        os.rename(source, path)
    except (OSError, UnicodeError):
        pytest.skip('this file system wants names in UTF-8')
    assert list_audio(tmp_path) == [path]
    assert isinstance(decode_file(path), Sound)
    assert header_duration_s(path) == 4001 / RATE


def test_list_audio_finds_nested_files_in_order_and_no_hidden_ones(tmp_path):
    audio = ['A.wav', 'a.mp3', 'b.wav', 'looks.wav/g.wav', 'y/deep/er/d.Opus', 'z/c.FLAC']
    others = ['.hidden.wav', '.cache/e.wav', 'notes.txt', 'wav', 'y/f.wav.txt', 'z/.part.wav']
    for place in audio + others:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert list_audio(tmp_path) == sorted(tmp_path / place for place in audio)


def test_list_audio_follows_links_and_lists_a_hidden_folder_that_is_named(tmp_path):
    (tmp_path / '.data' / 'inner').mkdir(parents=True)
    (tmp_path / '.data' / 'inner' / 'a.wav').touch()
    (tmp_path / 'clips').symlink_to(tmp_path / '.data')
    assert list_audio(tmp_path / 'clips') == [tmp_path / 'clips' / 'inner' / 'a.wav']
    assert list_audio(tmp_path) == [tmp_path / 'clips' / 'inner' / 'a.wav']
    assert list_audio(tmp_path / '.data') == [tmp_path / '.data' / 'inner' / 'a.wav']


def test_a_folder_with_two_names_is_listed_under_each_and_a_circle_of_links_once(tmp_path):
    for name in 'hgfedcb':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.wav').touch()
        (tmp_path / name / 'up').symlink_to(tmp_path)
        (tmp_path / f'a{name}').symlink_to(tmp_path / name)
    folders = sorted([*'bcdefgh', *(f'a{name}' for name in 'bcdefgh')])
    assert list_audio(tmp_path) == [tmp_path / name / 'a.wav' for name in folders]


def test_audio_is_known_by_any_suffix_of_the_decoders_and_without_one_by_its_first_bytes(tmp_path):
    audio = ['a.AU', 'b.wave', 'c.aifc', 'd.caf', 'e.snd', 'f.rf64', 'g.mp4', 'h.w64']
    others = ['labels.csv', 'notes', 'empty']
    for name in audio + others:
        (tmp_path / name).write_text('x' if name != 'empty' else '')
    kinds = [('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'), ('MP3', 'MPEG_LAYER_III'), ('AU', 'PCM_16')]
    for kind, subtype in kinds:
        audio.append(f'clip-{kind}')
        write_sound(tmp_path / audio[-1], noise(), kind=kind, subtype=subtype)
    assert scan_folder(tmp_path) == (
        sorted(tmp_path / name for name in audio),
        sorted(tmp_path / name for name in others),
    )


def test_list_audio_of_an_empty_folder_is_empty_and_of_no_folder_an_error(tmp_path):
    assert list_audio(tmp_path) == []
    with pytest.raises(KitError, match=r'nowhere does not exist: give the folder'):
        list_audio(tmp_path / 'nowhere')
    (tmp_path / 'a.wav').touch()
    with pytest.raises(KitError, match=r'is a file, not a folder'):
        list_audio(tmp_path / 'a.wav')
