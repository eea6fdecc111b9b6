'''Copies and excerpts of a clip are found by their sound; other clips of its class, noise and silence are not.'''

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from kit.audio.fingerprint import are_copies, fingerprint_frontend, fingerprint_of_spec, likely_shifts, near_duplicates
from kit.audio.waveform import resample, small_ratio
from kit.cli import run_command
from kit.commands import COMMANDS
from kit.demo import TOY_CLASSES, TOY_RATE, toy_clip

RATE = 22050


def sweeping_noise(seed, seconds=4.0):
    '''Noise whose loudness and colour wander. Shape: -> (T,) float32'''
    rng = np.random.default_rng(seed)
    knots = int(seconds * 20) + 2
    at = np.arange(int(seconds * RATE)) / RATE * 20
    wave = np.zeros(len(at))
    for low in (200, 500, 1000, 2000, 3500):
        spectrum = np.fft.rfft(rng.standard_normal(len(at)))
        hz = np.fft.rfftfreq(len(at), 1 / RATE)
        band = np.fft.irfft(spectrum * ((hz > low) & (hz < 2 * low)), len(at))
        wave += band * np.interp(at, np.arange(knots), rng.uniform(0.05, 1, knots))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def fingerprint(wave, rate=RATE):
    '''The fingerprint of an array, empty without samples.'''
    if len(wave) == 0:
        return np.zeros(0, np.int64)
    samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    resampled = resample(samples, *small_ratio(rate, 11025))
    return fingerprint_of_spec(fingerprint_frontend().spectrograms([resampled])[0])


def encoded(wave, container, codec):
    '''The wave encoded at a medium bit rate and decoded.'''
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=container, subtype=codec, compression_level=0.6)
    file.seek(0)
    return soundfile.read(file, dtype='float32')[0]


def at_rate(wave, rate):
    '''The wave at another rate.'''
    return resample(torch.from_numpy(wave), *small_ratio(RATE, rate)).numpy()


CHANGES = {
    'the same': lambda wave: (wave, RATE),
    'MP3': lambda wave: (encoded(wave, 'MP3', 'MPEG_LAYER_III'), RATE),
    '8 kHz': lambda wave: (at_rate(wave, 8000), 8000),
    '44.1 kHz': lambda wave: (at_rate(wave, 44100), 44100),
    'quieter, inverted': lambda wave: (-0.03 * wave, RATE),
    'padded': lambda wave: (np.pad(wave, (12345, 5000)), RATE),
    'an excerpt of 1 s': lambda wave: (wave[30001 : 30001 + RATE], RATE),
    'an excerpt in silence': lambda wave: (np.pad(wave[20000:55000], (RATE, RATE)), RATE),
    'trimmed, quieter, Vorbis': lambda wave: (encoded(0.2 * wave[7777:], 'OGG', 'VORBIS'), RATE),
}


@pytest.fixture(scope='module')
def waves():
    return [sweeping_noise(seed) for seed in range(6)]


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(waves, change):
    copies = [fingerprint(*CHANGES[change](wave)) for wave in waves[:3]]
    groups = near_duplicates([fingerprint(wave) for wave in waves] + copies)
    assert groups == [f'copies of {i}' for i in range(3)] + [''] * 3 + [f'copies of {i}' for i in range(3)]


def test_other_clips_of_a_class_noise_and_silence_are_no_copies(waves):
    rng = np.random.default_rng(1)
    toys = [fingerprint(toy_clip(3.0, [label], rng), TOY_RATE) for label in TOY_CLASSES for _ in range(6)]
    noise = [fingerprint(0.1 * rng.standard_normal(4 * RATE)) for _ in range(20)]
    faint = [fingerprint(1e-6 * rng.standard_normal(3 * RATE)) for _ in range(2)]
    silence = [fingerprint(np.full(samples, 0.0)) for samples in (3 * RATE, 3 * RATE, 0, 0)]
    constant = [fingerprint(np.full(2 * RATE, 0.1))]
    short = [fingerprint(wave[: int(0.3 * RATE)]) for wave in waves]
    assert not any(near_duplicates([*toys, *noise, *faint, *silence, *constant, *short]))


def test_a_group_holds_all_clips_that_copies_link_whatever_their_order(waves):
    whole = np.concatenate([waves[0], waves[1]])
    prints = [fingerprint(wave) for wave in (waves[0], waves[2], waves[1], whole)]
    assert near_duplicates(prints) == ['copies of 0', '', 'copies of 0', 'copies of 0']
    assert near_duplicates(prints[::-1]) == ['copies of 0', 'copies of 0', '', 'copies of 0']
    assert near_duplicates([]) == [] and near_duplicates(prints[:1]) == ['']


def test_many_copies_cost_no_more_than_few_neighbours_each(waves):
    prints = [fingerprint(waves[0])] * 200 + [fingerprint(wave) for wave in waves[1:]]
    assert len(likely_shifts(prints)) < 200 * 40
    assert near_duplicates(prints) == ['copies of 0'] * 200 + [''] * 5


def test_a_shorter_overlap_must_agree_more():
    rng = np.random.default_rng(3)
    one = rng.integers(0, 2**32, 300)
    cases = [(300, 0.2, True), (128, 0.2, True), (64, 0.2, False), (64, 0.09, True), (300, 0.3, False)]
    for frames, wrong_share, copied in cases:
        flips = (rng.random((frames, 32)) < wrong_share).astype(np.int64) @ (1 << np.arange(32))
        assert are_copies(one, one[:frames] ^ flips, 0) == copied, (frames, wrong_share)
    assert not are_copies(one, np.full(300, -1), 0)
    assert are_copies(np.concatenate([np.full(50, 7), one]), one, 50)


def test_real_clips_that_are_cut_from_one_recording_under_two_names_are_found(esc10: Path):
    names = ['2-28314-A', '2-30322-A', '3-151080-A', '5-151085-A', '1-100032-A', '1-110389-A', '2-28314-B']
    sounds = [soundfile.read(esc10 / 'audio' / f'{name}.ogg', dtype='float32') for name in names]
    groups = near_duplicates([fingerprint(*sound) for sound in sounds])
    assert groups == ['copies of 0'] * 2 + ['copies of 2'] * 2 + [''] * 3


def run_folds(*words):
    '''The exit code of the command `folds`.'''
    return run_command(COMMANDS, ['folds', *map(str, words), '--no-progress'])


def test_folds_keep_near_duplicates_and_a_columns_groups_together(waves, tmp_path, capsys):
    a, b, d, f = waves[:4]
    (tmp_path / 'audio').mkdir()
    clips = {'a': a, 'b': b, 'c': a[8000:] * 0.5, 'd': d, 'e': a[:60000], 'f': f}
    for name, wave in clips.items():
        soundfile.write(tmp_path / 'audio' / f'{name}.ogg', wave, RATE)
    table = 'fname,labels,by\na.ogg,x,\nb.ogg,y,u\nc.ogg,x,\nd.ogg,y,v\ne.ogg,x,\nf.ogg,y,u\n'
    (tmp_path / 'table.csv').write_text(table)
    options = '--table', tmp_path / 'table.csv', '--audio', tmp_path / 'audio', '--n-folds', 2
    assert run_folds(*options, '--out', tmp_path / 'out.csv') == 0
    assert '1 groups of 3 near-duplicates, the first: a.ogg, c.ogg, e.ogg' in capsys.readouterr().out
    out = pd.read_csv(tmp_path / 'out.csv', keep_default_na=False)
    assert out['group'].tolist() == ['a.ogg', '', 'a.ogg', '', 'a.ogg', '']
    assert out.groupby('group')['fold'].nunique()['a.ogg'] == 1
    assert run_folds(*options, '--out', tmp_path / 'both.csv', '--group-column', 'by') == 0
    out = pd.read_csv(tmp_path / 'both.csv', keep_default_na=False)
    assert out['group'].tolist() == ['a.ogg', 'b.ogg', 'a.ogg', '', 'a.ogg', 'b.ogg']
    assert (out.groupby('group')['fold'].nunique()[['a.ogg', 'b.ogg']] == 1).all()


def test_folds_of_boxes_hold_each_recording_once(tmp_path):
    head = 'recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max'
    true = [f'r{i:02d},{i % 3},1,{i},100,{i + 1},200' for i in range(30) for _ in range(2)]
    false = [f'r{i:02d},{(i + 1) % 3},1,1,100,2,200' for i in range(36)]
    for name, rows in (('tp.csv', true), ('fp.csv', false)):
        (tmp_path / name).write_text('\n'.join([head, *rows, '']))
    boxes = '--boxes', tmp_path / 'tp.csv', tmp_path / 'fp.csv'
    out = tmp_path / 'out.csv'
    assert run_folds(*boxes, '--out', out, '--n-folds', 3) == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert table['fname'].tolist() == [f'r{i:02d}' for i in range(36)]
    assert table['labels'].tolist()[:3] == ['s0', 's1', 's2'] and table['labels'].tolist()[30:] == [''] * 6
    counts = table[table['labels'] != ''].groupby(['fold', 'labels']).size()
    assert counts.min() >= 3 and counts.max() <= 4 and table['fold'].value_counts().tolist() == [12] * 3
    assert run_folds('--out', out) == 2, 'neither a table nor boxes'
    assert run_folds(*boxes, '--table', 't.csv', '--out', out) == 2, 'both'
