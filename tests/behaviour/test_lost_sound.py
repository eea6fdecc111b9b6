'''Sound that is there is used, whatever a header states or damage does, and what is lost is noted.'''

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import DECODERS, Decoder, Sound, decode_file, header_duration_s, import_problem
from kit.infer.loader import SpectrogramLoader
from kit.infer.submit import submit
from tests.behaviour.trained import loud_tagger, noise, read_scores, write_folder, write_template, write_wav

RATE = 16000
BY_NAME = {decoder.name: decoder for decoder in DECODERS}
CASES = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'cases'
FORMATS = [
    ('WAV', 'PCM_16'),
    ('AIFF', 'PCM_16'),
    ('AU', 'PCM_16'),
    ('FLAC', 'PCM_16'),
    ('OGG', 'VORBIS'),
    ('OGG', 'OPUS'),
    ('MP3', 'MPEG_LAYER_III'),
]
COMPRESSED = FORMATS[3:]


def stairs(seconds=20):
    '''Return a tone that is louder in every second, so that a second is recognised by its peak. Shape: -> (T,)'''
    t = np.arange(seconds * RATE) / RATE
    level = 0.1 + 0.04 * np.floor(t)
    noise = 0.002 * np.random.default_rng(0).standard_normal(len(t))
    return (level * np.sin(2 * np.pi * 440 * t) + noise).astype(np.float32)


def encoded(values, kind, subtype, rate=RATE):
    '''Return an encoded sound; the test is skipped where this libsndfile lacks the format.'''
    soundfile = pytest.importorskip('soundfile')
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f'this libsndfile does not write {kind} {subtype}')
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decode_bytes(folder, raw, decoders=DECODERS):
    '''Decode a file that holds these bytes.'''
    path = folder / 'clip.bin'
    path.write_bytes(raw)
    return decode_file(path, decoders)


def seconds_that_match(sound, values):
    '''Return which seconds of a decoded sound have the level of the same seconds of the original.'''
    matches = []
    for second in range(int(sound.seconds)):
        part = slice(second * RATE, (second + 1) * RATE)
        level = np.sqrt(np.mean(sound.wave[part] ** 2))
        if abs(level / np.sqrt(np.mean(values[part] ** 2)) - 1) < 0.03:
            matches.append(second)
    return matches


CASE_SECONDS = {
    'six.wav': 6,
    'unknown_length.flac': 6,
    'vbr_loud_start.mp3': 30.1,
    'half.wav': 15,
    'damaged.mp3': 30.1,
    'unclosed.wav': 6,
    'gtzan.au': 6,
    'antiphase.wav': 6,
}
CASE_NOTES = {
    'half.wav': 'last 15.0 s are missing',
    'damaged.mp3': 'are damaged and became silence',
    'unclosed.wav': 'never closed',
    'antiphase.wav': 'channels cancel',
}


@pytest.mark.parametrize('name', sorted(CASE_SECONDS))
def test_an_input_that_failed_gives_the_sound_that_it_holds(name):
    if not CASES.is_dir():
        pytest.skip('the inputs that failed are not here: ../shared/data/cases is missing')
    sound = decode_file(CASES / name)
    assert isinstance(sound, Sound) and sound.seconds == pytest.approx(CASE_SECONDS[name], abs=0.05)
    assert np.abs(sound.wave).max() > 0.1
    if name in CASE_NOTES:
        assert len(sound.notes) == 1 and CASE_NOTES[name] in sound.notes[0]
    else:
        assert sound.notes == ()
    header_s = header_duration_s(CASES / name)
    assert header_s is None or header_s == pytest.approx(sound.seconds, abs=0.6)


@pytest.mark.parametrize('places, size', [((0.5,), 3000), ((0.4, 0.7), 300)])
@pytest.mark.parametrize('kind, subtype', COMPRESSED)
def test_sound_before_and_behind_damage_is_used_at_its_time(tmp_path, kind, subtype, places, size):
    values = stairs()
    raw = bytearray(encoded(values, kind, subtype))
    assert decode_bytes(tmp_path, raw).notes == ()
    for filler in (bytes(size), np.random.default_rng(1).bytes(size)):
        for place in places:
            start = int(place * len(raw))
            raw[start : start + size] = filler
        sound = decode_bytes(tmp_path, raw)
        assert isinstance(sound, Sound) and sound.seconds == pytest.approx(20, abs=0.1)
        kept = {*range(8), *range(13, 19)} if len(places) == 1 else {*range(5), 11, 17, 18}
        assert set(seconds_that_match(sound, values)) >= kept
        assert len(sound.notes) == len(places) and 'damaged' in sound.notes[0]


@pytest.mark.parametrize('kind, subtype', FORMATS)
def test_a_file_that_ends_early_is_used_and_noted(tmp_path, kind, subtype):
    values = stairs()
    raw = encoded(values, kind, subtype)
    sound = decode_bytes(tmp_path, raw[: 2 * len(raw) // 3])
    assert isinstance(sound, Sound) and 12 < sound.seconds < 13.5
    assert set(seconds_that_match(sound, values)) >= set(range(12))
    assert len(sound.notes) == 1 and 'ends early' in sound.notes[0]
    # An Ogg file does not state its length.
    assert ('last 6.7 s' in sound.notes[0]) == (kind != 'OGG')


def unclosed(kind, size):
    '''Return a file whose header states this size of the sound.'''
    raw = bytearray(encoded(stairs(6), kind, 'PCM_16'))
    if kind == 'AU':
        raw[8:12] = struct.pack('>I', size)
    else:
        place = raw.find(b'data') + 4
        raw[place : place + 4] = struct.pack('<I', size)
        raw[4:8] = bytes(4)
    return raw


@pytest.mark.parametrize('kind, size', [('WAV', 0), ('WAV', 2**32 - 1), ('AU', 0), ('AU', 2**32 - 1)])
def test_a_recording_that_was_never_closed_has_its_sound(tmp_path, kind, size):
    sound = decode_bytes(tmp_path, unclosed(kind, size))
    assert isinstance(sound, Sound) and sound.seconds == pytest.approx(6, abs=0.01)
    np.testing.assert_allclose(sound.wave[: 6 * RATE], stairs(6)[: len(sound.wave)], atol=1e-4)


def test_a_flac_of_unknown_length_is_read_to_its_end_also_behind_damage(tmp_path):
    values = stairs()
    raw = bytearray(encoded(values, 'FLAC', 'PCM_16'))
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    assert decode_bytes(tmp_path, raw).seconds == 20
    assert header_duration_s(tmp_path / 'clip.bin') is None
    middle = len(raw) // 2
    raw[middle : middle + 3000] = bytes(3000)
    sound = decode_bytes(tmp_path, raw)
    assert sound.seconds == 20 and set(seconds_that_match(sound, values)) >= {*range(8), *range(12, 20)}


def without_table(raw):
    '''Return an MP3 without its first frame, which states the number of frames.'''
    return raw[raw.find(b'\xff\xf3', 4) :]


def test_an_mp3_is_read_to_its_end_whatever_its_table_or_the_estimate_says(tmp_path):
    values = stairs()
    values[: 3 * RATE] = np.random.default_rng(0).uniform(-0.9, 0.9, 3 * RATE)
    values[3 * RATE :] *= 0.001
    raw = encoded(values, 'MP3', 'MPEG_LAYER_III')
    short = bytearray(raw)
    place = raw.find(b'Xing') + 8
    short[place : place + 4] = struct.pack('>I', 50)
    long = bytearray(raw)
    long[place : place + 4] = struct.pack('>I', 10**6)
    for changed in (without_table(raw), short, long):
        sound = decode_bytes(tmp_path, changed)
        assert isinstance(sound, Sound) and sound.seconds == pytest.approx(20, abs=0.15)
        assert header_duration_s(tmp_path / 'clip.bin') == pytest.approx(20, abs=0.15)
    assert 'ends early' in sound.notes[0]


def test_an_mp3_whose_beginning_is_damaged_is_used_from_its_first_frame_on(tmp_path):
    values = stairs()
    raw = encoded(values, 'MP3', 'MPEG_LAYER_III')
    (tmp_path / 'a.mp3').write_bytes(bytes(range(1, 201)) * 15 + raw[3000:])
    sound = decode_file(tmp_path / 'a.mp3')
    assert isinstance(sound, Sound) and 19 < sound.seconds < 20 and 'before the first frame' in sound.notes[0]
    assert header_duration_s(tmp_path / 'a.mp3') == pytest.approx(sound.seconds, abs=0.1)
    (tmp_path / 'a.mp3').write_bytes(b'ID3\x04\0\0\0\0\0\x0a' + bytes(500) + raw)
    assert decode_file(tmp_path / 'a.mp3').notes == ()


def test_of_streams_that_follow_one_another_in_an_ogg_file_the_first_is_used(tmp_path):
    raw = encoded(stairs(6), 'OGG', 'VORBIS')
    sound = decode_bytes(tmp_path, raw + raw)
    assert sound.seconds == 6 and len(sound.notes) == 1 and 'another stream follows' in sound.notes[0]


@pytest.mark.parametrize('kind, subtype', COMPRESSED)
def test_other_bytes_behind_the_sound_lose_nothing(tmp_path, kind, subtype):
    raw = encoded(stairs(6), kind, subtype)
    for tail in (b'1', b'junk' * 1000, b'TAG' + bytes(125)):
        assert decode_bytes(tmp_path, raw + tail).seconds == pytest.approx(6, abs=0.1)


@pytest.fixture
def fresh_imports():
    '''Forget which modules can be imported, before and after a test.'''
    import_problem.cache_clear()
    yield
    import_problem.cache_clear()


@pytest.mark.parametrize('module', ['torchcodec', 'soundfile'])
def test_an_import_that_failed_is_tried_once_and_reasons_are_short(tmp_path, monkeypatch, fresh_imports, module):
    attempts = []

    class Broken:
        '''Finds modules that raise when they are imported.'''

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition('.')[0] == module:
                attempts.append(name)
                raise OSError(f'Could not load lib{module}. ' + 'Likely causes: ... \n' * 500)

    for name in [name for name in sys.modules if name.partition('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [Broken, *sys.meta_path])
    adts = b'\xff\xf1\x50\x80' + bytes(500)
    reasons = [decode_bytes(tmp_path, raw).reason for raw in [b'text' * 50, adts] * 10]
    assert len(attempts) == 1
    assert max(map(len, reasons)) <= 220 and not any('\n' in reason for reason in reasons)
    assert 'no decoder here reads AAC: pip install torchcodec' in reasons[1]
    assert f'Could not load lib{module}' in reasons[1 if module == 'torchcodec' else 0]


def absent(path):
    '''What a decoder that is not installed does.'''
    raise ImportError('not installed')


def test_a_missing_decoder_is_named_with_its_cure(tmp_path):
    missing = [Decoder(name, absent, absent) for name in ('soundfile', 'torchcodec')]
    for raw in (encoded(stairs(1), kind, 'PCM_16') for kind in ('FLAC', 'WAV')):
        reason = decode_bytes(tmp_path, raw, missing).reason
        assert 'soundfile is missing: pip install soundfile (it is not installed)' in reason
    m4a = b'\0\0\0\x20ftypM4A ' + bytes(300)
    without_torchcodec = [BY_NAME['soundfile'], Decoder('torchcodec', absent, absent)]
    assert 'no decoder here reads AAC: pip install torchcodec' in decode_bytes(tmp_path, m4a, without_torchcodec).reason
    (tmp_path / 'a.mp3').write_bytes(b'\xff\xfb\x90\x00' + bytes(40))
    for content in (b'\xff\xfb\x90\x00' + bytes(40), b'ID3\x04\0\0\0\0\0\x0a' + bytes(400)):
        (tmp_path / 'a.mp3').write_bytes(content)
        reason = decode_file(tmp_path / 'a.mp3', without_torchcodec).reason
        assert 'no whole MP3 frame' in reason and 'exist' not in reason


@pytest.mark.parametrize('channels', [[1.0, -1.0], [0.0, 0.0, 0.5, -0.5]])
def test_channels_that_cancel_give_one_of_them_and_a_note(tmp_path, channels):
    tone = stairs(6) * 0.8
    tone[:RATE] = 0
    values = tone[:, None] * np.array(channels, np.float32)
    sound = decode_bytes(tmp_path, encoded(values, 'WAV', 'PCM_24'))
    np.testing.assert_allclose(np.abs(sound.wave), np.abs(tone) * max(channels), atol=1e-4)
    assert len(sound.notes) == 1 and 'cancel' in sound.notes[0]
    values[3 * RATE :, -1] = 0.3
    assert decode_bytes(tmp_path, encoded(values, 'WAV', 'PCM_24')).notes == ()


def test_floats_far_beyond_full_scale_are_noted(tmp_path):
    sound = decode_bytes(tmp_path, encoded(stairs(1) * 30000, 'WAV', 'FLOAT'))
    assert isinstance(sound, Sound) and 'far beyond full scale' in sound.notes[0]
    assert decode_bytes(tmp_path, encoded(stairs(1) * 8, 'WAV', 'FLOAT')).notes == ()


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -1e30])
def test_a_few_samples_that_are_no_sound_become_silence_and_a_note(tmp_path, wrong):
    wave = stairs(1) * 0.5
    wave[100:103] = wrong
    sound = decode_bytes(tmp_path, encoded(wave, 'WAV', 'FLOAT'))
    assert sound.notes == ('3 samples that are not finite, or beyond 1e+09, became silence',)
    wave[100:103] = 0
    np.testing.assert_array_equal(sound.wave, wave)


@pytest.fixture
def lossy_folder(tmp_path):
    '''A folder of a whole file, one of unknown length, one that ends early, and one that is no audio.'''
    folder = tmp_path / 'in'
    write_folder(folder, ['whole.wav'], samples=RATE)
    flac = bytearray(encoded(stairs(6), 'FLAC', 'PCM_16'))
    (folder / 'cut.flac').write_bytes(flac[: len(flac) // 2])
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (folder / 'unknown.flac').write_bytes(flac)
    (folder / 'notes.txt').write_text('no audio')
    return folder


def test_a_submission_tells_what_sound_is_lost_and_its_seconds_are_true(lossy_folder, tmp_path, capsys):
    checkpoint = loud_tagger()
    submission = submit(checkpoint, lossy_folder, tmp_path / 'out.csv', progress=False)
    report = submission.report
    assert list(report['audio_notes']) == ['cut.flac'] and report['files_failed'] == {}
    assert 'ends early' in report['audio_notes']['cut.flac'][0]
    assert 'lost or was changed in 1 files, e.g. cut.flac: the file ends early' in str(submission)
    durations = [decode_file(path).seconds for path in lossy_folder.iterdir() if path.suffix != '.txt']
    assert report['audio_s'] == pytest.approx(sum(durations), abs=0.002) and report['rows_all_models'] == 3
    assert "1 files are passed over, as they are no audio, e.g. 'notes.txt'" in report['notes']
    assert "'notes.txt'" in capsys.readouterr().out


def test_a_submission_that_goes_on_keeps_the_notes_of_clips_that_it_does_not_decode_again(
    lossy_folder, tmp_path, trained
):
    first = submit(trained.mel[0], lossy_folder, tmp_path / 'out.csv', progress=False).report
    again = submit(trained.mel[0], lossy_folder, tmp_path / 'out.csv', progress=False).report
    assert again['audio_notes'] == first['audio_notes'] and len(first['audio_notes']) == 1


def test_a_file_with_two_paths_is_found_by_each_and_by_its_name(tmp_path):
    write_folder(tmp_path / 'in' / 'real', ['a.wav', 'b.wav'], samples=RATE)
    (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'in' / 'real')
    ids = ['real/a.wav', 'link/a.wav', 'b.wav']
    template = write_template(tmp_path / 'template.csv', ids, ('a', 'b', 'c'))
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_all_models'] == 3 and report['files_without_row'] == []
    _, rows = read_scores(tmp_path / 'out.csv')
    np.testing.assert_array_equal(rows['real/a.wav'], rows['link/a.wav'])


def test_a_loader_prints_what_sound_its_clips_lost(lossy_folder, capsys):
    paths = sorted(lossy_folder.glob('*.*a*'))
    loader = SpectrogramLoader(paths, {'': loud_tagger().frontend}, torch.device('cpu'))
    for chunk in loader.load_chunks('load', progress=False):
        loader.specs(chunk, '')
    loader.print_failures([path.name for path in paths])
    assert capsys.readouterr().out.startswith('note: cut.flac: the file ends early: its last ')
    assert loader.audio_s == pytest.approx(sum(decode_file(path).seconds for path in paths))


def test_an_ogg_file_whose_page_before_the_last_is_lost_notes_its_end(tmp_path):
    raw = encoded(stairs(8), 'OGG', 'OPUS')
    last = raw.rfind(b'OggS')
    before = raw.rfind(b'OggS', 0, last)
    sound = decode_bytes(tmp_path, raw[:before] + raw[last:])
    assert isinstance(sound, Sound) and sound.seconds > 5 and len(sound.notes) == 1


def joined_mp3(path: Path, *parts: tuple[int, bytes]) -> Path:
    '''MP3s of two seconds, each with a sample rate and what stands before it, one behind the other.'''
    import soundfile

    content = b''
    for rate, before in parts:
        one = io.BytesIO()
        wave = 0.1 * np.random.default_rng(rate).standard_normal(2 * rate)
        soundfile.write(one, wave, rate, format='MP3', subtype='MPEG_LAYER_III')
        content += before + one.getvalue()
    path.write_bytes(content)
    return path


def test_tags_between_joined_mp3s_are_no_lost_sound(tmp_path: Path) -> None:
    cover = b'ID3\3\0\0\0\0\x7f\x7f' + b'\x55' * (127 * 128 + 127)
    path = joined_mp3(tmp_path / 'a.mp3', (16000, cover), (16000, cover), (16000, cover))
    sound = decode_file(path)
    assert isinstance(sound, Sound) and abs(sound.seconds - 6.0) < 0.5 and not sound.notes
    assert abs((header_duration_s(path) or 0.0) - 6.0) < 0.5


def test_joined_mp3s_of_other_kinds_are_noted(tmp_path: Path) -> None:
    sound = decode_file(joined_mp3(tmp_path / 'a.mp3', (16000, b''), (24000, b'')))
    assert isinstance(sound, Sound) and abs(sound.seconds - 2.0) < 0.5
    assert 'frames of another sample rate or number of channels are not read' in ' '.join(sound.notes)


def test_a_data_size_that_is_there_is_believed_where_the_size_of_the_file_is_not(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav', noise(8000))
    content = bytearray(path.read_bytes())
    content[4:8] = bytes(4)
    path.write_bytes(content + b'id3 \0\x40\0\0' + b'\x55' * 0x4000)
    sound = decode_file(path)
    assert isinstance(sound, Sound) and sound.seconds == 1.0
