'''Every system of the winners, composed from settings: its size, its predictions, its submission.'''

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, compute_spectrograms
from kit.infer.submit import submit
from kit.labels.calibration import Calibration
from kit.models.checkpoint import save_tagger
from kit.models.families import complete_network
from kit.models.tagger import TaggerCard, build_tagger
from kit.train.recipes import RECIPES
from tests.behaviour.trained import read_scores, write_template, write_wav

CLASSES = ('a', 'b', 'c', 'd')
TIMM = 'test_efficientnet.r160_in1k'
RANKING = ('max-pyramid-mel', 'max-pyramid-stft', 'freq-crop')
WINDOWS = ['inference.window_s=1.0', 'inference.hop_s=0.5']
# Overrides that make each system small; its frontend keeps all but its rows.
SMALL = {
    'skip-attention': ['frontend.n_mels=32', 'network.width=4', 'network.head.hidden=8', *WINDOWS],
    'axis-pool': ['frontend.n_mels=16', 'network.width=16', 'network.stat_width=3', 'network.stat_steps=16', *WINDOWS],
    'max-pyramid-mel': ['frontend.n_mels=32', 'network.blocks=3', 'network.width=4', 'inference.max_frames=64'],
    'max-pyramid-stft': ['network.blocks=4', 'network.width=4', 'inference.max_frames=512'],
    'window-snr': ['frontend.n_mels=32', 'network.blocks=3', 'network.width=4', *WINDOWS],
    'two-stage': [
        'frontend.n_mels=32',
        'frontend.image_size=[32,32]',
        'image_sizes=[]',
        f'network.name={TIMM}',
        *WINDOWS,
    ],
    'freq-coord': ['frontend.n_mels=48', f'network.name={TIMM}', *WINDOWS],
    'freq-crop': [
        'frontend.n_mels=16',
        'frontend.bands_hz=[[0,1500],[463,3381],[2994,4694],[4681,11350]]',
        f'network.backbone.name={TIMM}',
        'inference.max_frames=96',
    ],
    'sed': [
        'frontend.n_mels=32',
        f'network.name={TIMM}',
        'network.head.hidden=8',
        'inference.window_s=1',
        'inference.hop_s=1',
    ],
}
# Classes and weights as published, or as the published backbone has them with the system's channels and output
# layer: EfficientNet-B3 of 2 channels and 24 classes, -B0 of 1 and 24, ResNet-18 of 3 and 80.
PUBLISHED_SIZES = {
    'skip-attention': (80, 17_326_950),
    'max-pyramid-mel': (80, 9_253_566),
    'two-stage': (80, 11_176_512 + 80 * 513),
    'freq-coord': (24, 10_696_232 - 9 * 40 + 24 * 1537),
    'freq-crop': (24, 4_007_548 - 2 * 9 * 32 + 24 * 1281),
}
SECONDS = (0.0, 0.1, 0.7, 0.7, 1.0, 6.0)
every_system = pytest.mark.parametrize('name', RECIPES)


def small_system(name):
    '''A system made small by overrides alone.'''
    system = RECIPES[name]
    return replace(system, network=complete_network(system.network)).override(SMALL[name])


def card_of(name, system, classes=CLASSES, calibration=None):
    '''The card of a system's tagger.'''
    return TaggerCard(
        classes=tuple(classes),
        frontend=system.frontend,
        network=system.network,
        inference=system.inference,
        output='ranking' if name in RANKING else 'probability',
        calibration=calibration,
    )


def make_sound(seconds, rate, seed):
    '''A sweep in noise that decays, of at least one sample. Units: rate in Hz'''
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate))) / rate
    sweep = np.sin(2 * np.pi * rng.uniform(300, 5000) * t * (1 + t)) * np.exp(-rng.uniform(0, 2) * t)
    noise = rng.normal(0, rng.uniform(0.001, 0.1), len(t))
    return Sound((0.3 * sweep + noise).astype(np.float32), rate)


@functools.cache
def sounds_of(name):
    '''Clips of one sample to several windows, at the system's own rate.'''
    rate = small_system(name).frontend.sample_rate
    return [make_sound(seconds, rate, seed) for seed, seconds in enumerate(SECONDS)]


@functools.cache
def small_tagger(name):
    '''A small system in evaluation mode whose batch norms have run; rankings have a calibration.'''
    calibration = Calibration(scale=1.5, offset=-0.5) if name in RANKING else None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        tagger = build_tagger(card_of(name, small_system(name), calibration=calibration))
        network = tagger.network.train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.momentum = 1.0
        rate = tagger.card.frontend.sample_rate
        waves = [torch.from_numpy(make_sound(1.0, rate, seed).wave) for seed in range(6)]
        network(torch.cat([tagger.frontend(wave[None]) for wave in waves]))
        # Random networks give logits of ±17, where float32's own rounding moves probabilities by 1e-5.
        specs = compute_spectrograms(tagger.frontend, [torch.from_numpy(s.wave) for s in sounds_of(name)])
        outputs = Predictor(tagger, torch.device('cpu')).predict(specs)
        peak = max(float(np.abs(output.logits).max()) for output in outputs)
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d)]
        if peak > 8:
            for parameter in layers[-1].parameters():
                parameter.mul_(4 / peak)
    return tagger.eval()


@functools.cache
def probabilities(name):
    '''A system's probabilities for all its sounds, predicted in one call. Shape: -> (clips, K)'''
    return predict_clips(small_tagger(name), sounds_of(name)).probabilities


def test_every_system_is_tested_here():
    assert set(SMALL) == set(RECIPES)


@every_system
def test_a_system_predicts_one_sample_and_many_windows(name):
    tagger, probs = small_tagger(name), probabilities(name)
    specs = [tagger.frontend.spectrograms([torch.from_numpy(s.wave)])[0] for s in sounds_of(name)]
    rate = tagger.card.frontend.frames_per_s
    windows = [len(tagger.card.inference.spans(spec.shape[-1], rate)) for spec in specs]
    assert windows[:2] == [1, 1] and windows[-1] >= 4
    assert probs.shape == (len(SECONDS), 4) and ((probs >= 0) & (probs <= 1)).all()
    assert np.ptp(probs[2:], axis=0).min() > 0.01, 'a constant output would prove nothing'


@every_system
def test_a_clips_prediction_does_not_depend_on_its_batchmates_or_their_order(name):
    tagger, sounds, together = small_tagger(name), sounds_of(name), probabilities(name)
    alone = np.concatenate([predict_clips(tagger, [sound]).probabilities for sound in sounds])
    assert np.abs(alone - together).max() <= 1e-5
    order = [5, 3, 0, 4, 1, 2]
    shuffled = predict_clips(tagger, [sounds[i] for i in order], batch_frames=300).probabilities
    assert np.abs(shuffled - together[order]).max() <= 1e-5


@every_system
def test_a_saved_system_submits_the_same_predictions_by_the_template(name, tmp_path):
    save_tagger(tmp_path / 'a.pt', small_tagger(name))
    sounds = sounds_of(name)
    for i, sound in enumerate(sounds):
        write_wav(tmp_path / 'clips' / f'{i}.wav', sound.wave, sound.sample_rate)
    ids = [str(i) for i in reversed(range(len(sounds)))]
    template = write_template(tmp_path / 'template.csv', ids, CLASSES)
    result = submit(tmp_path / 'a.pt', tmp_path / 'clips', tmp_path / 'b.csv', template, progress=False, device='cpu')
    header, rows = read_scores(tmp_path / 'b.csv')
    assert header[1:] == list(CLASSES) and list(rows) == ids
    assert result.report['rows_all_models'] == len(ids)
    assert np.abs(np.stack([rows[i] for i in ids]) - probabilities(name)[::-1]).max() <= 1e-5


@pytest.mark.parametrize('name', PUBLISHED_SIZES)
def test_a_system_has_its_published_size(name):
    n_classes, size = PUBLISHED_SIZES[name]
    bands = [[200 * k, 200 * k + 3000] for k in range(n_classes)]
    system = RECIPES[name].override([f'frontend.bands_hz={bands}'] if name == 'freq-crop' else [])
    with torch.device('meta'):
        tagger = build_tagger(card_of(name, system, [f's{i}' for i in range(n_classes)]))
    assert sum(p.numel() for p in tagger.network.parameters()) == size
