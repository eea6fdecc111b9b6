'''The trainer's steps: batches, augmentation, losses and fine-tuning.'''

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import Frontend
from kit.audio.specaugment import SpecAugmentConfig
from kit.audio.windows import pad_frames
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels
from kit.models.checkpoint import load_tagger
from kit.train.fold_training import new_tagger
from kit.train.losses import LOSSES
from kit.train.recipe import CLASS_LOSSES
from kit.train.run import check_labels
from kit.train.sampler import draw_batches, prepare_batch
from tests.behaviour.training import (
    CPU,
    TINY,
    Killed,
    clips_of,
    copy_weights,
    load_table,
    new_trainer,
    planted_data,
    same_bits,
    same_checkpoints,
    seeded,
    train_all,
    train_quietly,
)

pytestmark = pytest.mark.usefixtures('one_core')

PLAIN = TINY.override(['mixup.p=0', 'network.head.dropout=0', 'no_augment_epochs=0'])


def first_batch(trainer, seed=0):
    '''A batch as it is drawn.'''
    return next(draw_batches(trainer.clips, trainer.recipe, trainer.tagger.frontend, seeded(seed)))


def with_windows(data):
    '''The data, with soft labels of one window of each clip; every third clip has no other label.'''
    n = len(data)
    targets = np.where(np.arange(n)[:, None] % 3 == 2, np.float32(np.nan), data.targets)
    probs = np.random.default_rng(0).random((n, 3))
    soft = SoftLabels(data.names, data.classes, probs, np.zeros(n), np.full(n, 0.4))
    return replace(data, targets=targets, soft_labels=soft)


# Batches


def test_a_planted_clip_is_drawn_by_every_fold_but_its_own():
    '''Law 4.'''
    folds = [0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2]
    data = planted_data(folds, failed=(3,))
    for fold in (0, 1, 2):
        drawn = set()
        for seed in range(8):
            for batch in draw_batches(data.train_split(fold), TINY, Frontend(TINY.frontend), seeded(seed)):
                for crop, targets in zip(batch.crops, batch.targets, strict=True):
                    assert crop.min() == crop.max()
                    drawn.add((int(crop.min()), int(targets.argmax())))
        assert drawn == {(i, i % 3) for i, home in enumerate(folds) if home != fold and i != 3}
        assert data.held_out(fold).tolist() == [i for i, home in enumerate(folds) if home == fold]


def test_every_clip_is_drawn_once_an_epoch_and_mixed_unless_plain():
    clips = planted_data([1] * 12).train_split(0)
    recipe = TINY.override(['mixup.p=1.0'])
    frontend = Frontend(recipe.frontend)
    batches = list(draw_batches(clips, recipe, frontend, seeded()))
    plain, mixed = (
        [prepare_batch(batch, recipe, frontend, CPU, seeded(), is_plain) for batch in batches]
        for is_plain in (True, False)
    )
    assert [specs.shape for specs, _, _ in plain] == [(4, 16, recipe.crop_frames)] * 3
    assert sorted(torch.cat([specs[:, 0, 0] for specs, *_ in plain]).tolist()) == list(range(12))
    # In decibels a sum of energies lies above both, and at most 3 dB above the louder.
    values = torch.cat([specs[:, 0, 0] for specs, *_ in mixed])
    assert not set(values.tolist()) & set(range(12))
    assert float(values.max()) <= 11 + 10 * math.log10(2)
    n_labels = torch.cat([targets for _, targets, _ in mixed]).sum(dim=1)
    assert set(n_labels.tolist()) <= {1, 2}


def test_crops_of_waveforms_on_the_frame_grid_equal_the_spectrogram_inside(toy):
    '''Not at the edges: there the first and last windows reach beyond the crop.'''
    recipe = replace(PLAIN, wave_augment=WaveAugmentConfig(gain_p=0.5), batch_size=7)
    data = load_table(recipe, *toy)
    hop = TINY.frontend.hop_length
    frontend = Frontend(recipe.frontend)
    row = max(data.waveforms, key=lambda i: data.waveforms[i].shape[-1])
    wave = data.waveforms[row][:, 10 * hop : 10 * hop + (recipe.crop_frames - 1) * hop]
    batch = first_batch(new_trainer(data, recipe))._replace(crops=wave[None].repeat(7, 1, 1))
    specs, targets, _ = prepare_batch(batch, recipe, frontend, CPU, seeded(), plain=True)
    assert torch.equal(targets, batch.targets)
    inside = slice(1, recipe.crop_frames - 1)
    expected = data.spectrograms[row][:, 10 : 10 + recipe.crop_frames]
    torch.testing.assert_close(specs[0][:, inside], expected[:, inside], rtol=0, atol=1e-3)
    by_crop = recipe.override(['mixup.domain=spec', 'frontend.normalize=clip', 'frontend.reference=window'])
    normal, *_ = prepare_batch(batch, by_crop, Frontend(by_crop.frontend), CPU, seeded(), plain=True)
    standard = (specs[0] - specs[0].mean()) / specs[0].std(correction=0)
    torch.testing.assert_close(normal[0], standard, rtol=1e-3, atol=1e-3)
    augmented, *_ = prepare_batch(batch, recipe, frontend, CPU, seeded(), plain=False)
    assert float((augmented - specs).abs().amax((1, 2)).max()) > 1


@pytest.mark.parametrize('setting', ['mixup.pseudo_p=0.5', 'distill_weight=0.5'])
def test_pseudo_labels_train_to_the_same_weights_again_and_after_a_kill(data, tmp_path, setting):
    '''Laws 7 and 14.'''
    data = with_windows(data)
    recipe = TINY.override(['loss=bce', 'epochs=3', setting])
    whole, again, plain = (new_trainer(data, r) for r in (recipe, recipe, TINY.override(['loss=bce', 'epochs=3'])))
    train_all(whole, tmp_path / 'whole.pt')
    with pytest.raises(Killed):
        train_all(again, tmp_path / 'killed.pt', killed_after=1)
    again.restore(tmp_path / 'killed.pt')
    train_all(again, tmp_path / 'killed.pt')
    train_all(plain, tmp_path / 'plain.pt')
    assert same_bits(whole.network.state_dict(), again.network.state_dict())
    assert not same_bits(whole.network.state_dict(), plain.network.state_dict())


def test_distillation_adds_the_weighted_cross_entropy_with_the_soft_labels_of_labelled_clips(data):
    clips = with_windows(data)
    recipe = PLAIN.override(['loss=bce', 'distill_weight=0.25', 'batch_size=7'])
    trainer = new_trainer(clips, recipe)
    batch = first_batch(trainer)
    inputs, targets, soft = trainer.make_inputs(batch, seeded(), plain=True)
    output = trainer.forward(inputs)
    is_labelled = ~soft.isnan().any(dim=1)
    assert is_labelled.tolist() == batch.has_label.tolist() and 0 < int(is_labelled.sum()) < 7
    of_labels = F.binary_cross_entropy_with_logits(output.clip, targets)
    of_soft = F.binary_cross_entropy_with_logits(output.clip[is_labelled], batch.soft[is_labelled])
    loss = trainer.loss(output, targets, soft, batch)
    torch.testing.assert_close(loss, of_labels + 0.25 * of_soft)


def test_soft_labels_of_whole_clips_are_not_distilled(data):
    soft = SoftLabels(data.names, data.classes, np.full((len(data), 3), 0.5))
    recipe = TINY.override(['distill_weight=1'])
    with pytest.raises(KitError, match=r'distill_weight wants soft labels of windows.*methods'):
        check_labels(recipe, replace(data, soft_labels=soft))
    check_labels(recipe, replace(data, soft_labels=SoftLabels((), data.classes, np.zeros((0, 3)))))


@pytest.mark.parametrize('domain', ['energy', 'spec', 'wave'])
def test_a_recipe_with_wave_augmentation_trains_repeats_itself_and_submits(toy, tmp_path, domain):
    augment = WaveAugmentConfig(shift_p=0.5, noise_p=0.5)
    recipe = replace(TINY, wave_augment=augment, epochs=2).override([f'mixup.domain={domain}'])
    one = train_quietly(recipe, *toy, tmp_path / 'one', only_folds=[0])
    two = train_quietly(recipe, *toy, tmp_path / 'two', only_folds=[0])
    path = one.folder / 'fold_0.pt'
    assert same_checkpoints(path, two.folder / 'fold_0.pt')
    submitted = predict_clips(path, [toy[1] / name for name in one.oof.names], device='cpu', threads=1)
    np.testing.assert_allclose(one.oof.probabilities, submitted.probabilities, atol=1e-5)


def test_waveforms_are_mixed_before_they_become_spectrograms(toy):
    recipe = PLAIN.override(['mixup.p=1', 'mixup.domain=wave'])
    trainer = new_trainer(load_table(recipe, *toy), recipe)
    batch = first_batch(trainer)
    frontend = Frontend(recipe.frontend)
    specs, targets, _ = prepare_batch(batch, recipe, frontend, CPU, seeded(1))
    waves = batch.crops[:, 0]
    for i in range(4):
        sums = {j: frontend.spectrograms([waves[i] + waves[j]])[0] for j in range(4) if j != i}
        partner = min(sums, key=lambda j: (sums[j] - specs[i]).abs().max())
        torch.testing.assert_close(specs[i], sums[partner], rtol=0, atol=1e-3)
        assert torch.equal(targets[i], torch.maximum(batch.targets[i], batch.targets[partner]))


@pytest.mark.parametrize('setting', ['normalize=clip', 'normalize=minmax', 'top_db=80', 'trim_db=60'])
def test_augmented_waveforms_cannot_be_normalised_by_their_clip(setting):
    changes = ['wave_augment.gain_p=0.5', 'mixup.domain=spec', f'frontend.{setting}']
    with pytest.raises(KitError, match=r'have no level of their clip: frontend\.reference=window'):
        TINY.override(changes)
    TINY.override(changes[1:])
    if 'trim' not in setting:
        TINY.override([*changes, 'frontend.reference=window'])
    with pytest.raises(KitError, match=r'energies of normalised crops cannot be mixed'):
        TINY.override(['frontend.normalize=peak'])


def test_crops_are_mixed_until_mixup_until_and_neither_mixed_nor_augmented_at_the_end(data):
    augment = SpecAugmentConfig(mask_p=1.0)
    recipe = replace(TINY, epochs=10, mixup_until=0.4, no_augment_epochs=3, spec_augment=augment)
    trainer = new_trainer(data, recipe.override(['mixup.p=1']))
    batch = first_batch(trainer)
    plain_inputs = trainer.tagger.frontend.stack(batch.crops)
    inputs_of_step = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: inputs_of_step.append(inputs[0]))
    states = []
    for epoch in range(10):
        trainer.epoch = epoch
        _, targets, _ = trainer.make_inputs(batch, seeded(5), epoch >= 7)
        trainer.train_step(batch, seeded(5))
        is_augmented = not torch.equal(inputs_of_step[-1][:, :1], plain_inputs[:, :1])
        states.append((not torch.equal(targets, batch.targets), is_augmented))
    assert states == [(True, True)] * 4 + [(False, True)] * 3 + [(False, False)] * 3


def test_images_grow_over_the_epochs_to_the_size_of_inference(data):
    growing = ['frontend.image_size=[32,32]', 'image_sizes=[[8,8],[16,16],[32,32]]', 'epochs=6']
    recipe = PLAIN.override(growing)
    trainer = new_trainer(data, recipe)
    sizes = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    for _ in range(6):
        trainer.run_epoch()
    assert sizes == [(8, 8)] * 2 + [(16, 16)] * 2 + [(32, 32)] * 2
    with pytest.raises(KitError, match=r'image_sizes end at \(16, 16\), frontend.image_size is \(32, 32\)'):
        recipe.override(['image_sizes=[[8,8],[16,16]]'])


# Losses


def with_sources(data, sources):
    '''The dataset with these sources in turn.'''
    return replace(data, sources=np.array([sources[i % len(sources)] for i in range(len(data))]))


def slow_mean(name, logits, targets, weights, average_over='clips', **settings):
    '''The weighted mean of a loss over clips, or over labels.'''
    rows = LOSSES[name](logits, targets, **settings)
    counts = rows.known if average_over == 'labels' else (rows.known > 0).float()
    return float((rows.loss * counts * weights).sum() / (counts * weights).sum())


@pytest.mark.parametrize('weight_by_share', [True, False])
@pytest.mark.parametrize('average_over', ['clips', 'labels'])
def test_a_step_minimises_each_source_s_own_loss_by_weight_and_share(data, weight_by_share, average_over):
    losses = (('bce', 0.5, {'smoothing': 0.1}), ('bootstrap', 2.0, {'trust': 0.6}))
    sources = {
        'abc'[k]: {'loss': name, 'weight': weight, 'loss_settings': settings}
        for k, (name, weight, settings) in enumerate(losses)
    }
    recipe = PLAIN.override([f'weight_by_share={weight_by_share}', f'average_over={average_over}'])
    recipe = replace(recipe, batch_size=7, sources={**sources, 'c': {}})
    trainer = new_trainer(with_sources(data, 'aabb'), recipe)
    batch = first_batch(trainer)
    targets = batch.targets.clone()
    targets[0, 1:] = targets[3, 0] = math.nan
    batch = batch._replace(targets=targets, weights=torch.linspace(0.5, 2, 7))
    logits = copy.deepcopy(trainer.network).train()(trainer.tagger.frontend.stack(batch.crops)).detach()
    expected = 0.0
    for source, (name, weight, settings) in enumerate(losses):
        rows = batch.sources == source
        share = float(rows.float().mean()) if weight_by_share else 1.0
        mean = slow_mean(name, logits[rows], targets[rows], batch.weights[rows], average_over, **settings)
        expected += weight * share * mean
    before = copy_weights(trainer.network)
    trainer.network.train()
    assert trainer.train_step(batch, seeded()) == pytest.approx(expected, rel=1e-5)
    assert not same_bits(before, copy_weights(trainer.network))


def test_skips_add_their_weighted_losses_and_more_weights_than_skips_are_refused(toy, data):
    network = {'family': 'skip-attention', 'width': 4, 'ratio': 2, 'head': {'hidden': 8, 'dropout': 0.0}}
    recipe = replace(PLAIN, network=network, auxiliary=(0.4, 0.2, 0.1), loss='bce')
    trainer = new_trainer(load_table(recipe, *toy), recipe)
    batch = first_batch(trainer)
    twin = copy.deepcopy(trainer.network).train()
    torch.manual_seed(0)
    output = twin.outputs(trainer.tagger.frontend.stack(batch.crops))
    logits = [output.clip, *output.auxiliary]
    means = [slow_mean('bce', of_one.detach(), batch.targets, batch.weights) for of_one in logits]
    expected = np.dot([1, 0.4, 0.2, 0.1], means)
    trainer.network.train()
    torch.manual_seed(0)
    assert trainer.train_step(batch, seeded()) == pytest.approx(expected, rel=1e-5)
    trainer = new_trainer(data, replace(PLAIN, auxiliary=(0.4, 0.2)))
    with pytest.raises(KitError, match='auxiliary has 2 weights, the network 0 skips'):
        trainer.train_step(first_batch(trainer), seeded())


ATTENTION = {'pool': 'attention', 'norm_first': False, 'dropout': 0.0}


def test_the_loss_is_the_weighted_sum_of_those_at_clips_at_the_frames_mean_and_at_their_maximum(data):
    network = {**PLAIN.network, 'head': ATTENTION}
    for weights in ((0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5)):
        clip, mean, highest = weights
        recipe = replace(
            PLAIN, network=network, loss='bce', clip_weight=clip, frame_mean_weight=mean, frame_max_weight=highest
        )
        trainer = new_trainer(data, recipe)
        batch = first_batch(trainer)
        output = copy.deepcopy(trainer.network).train().outputs(trainer.tagger.frontend.stack(batch.crops))
        frames = output.frames.detach()
        assert frames.shape[1] > 1
        parts = [output.clip.detach(), frames.sum(1) / frames.shape[1], frames.max(1).values]
        means = [slow_mean('bce', logits, batch.targets, batch.weights) for logits in parts]
        trainer.network.train()
        assert trainer.train_step(batch, seeded()) == pytest.approx(np.dot(weights, means), rel=1e-5)


def test_validation_predicts_with_the_logits_of_clips_whatever_outputs_are_trained(data):
    network = {**PLAIN.network, 'head': ATTENTION}
    trainer = new_trainer(data, replace(PLAIN, network=network, clip_weight=0.0, frame_max_weight=1.0))
    assert trainer.recipe.output == 'ranking', 'only the logits of frames are log odds'
    trainer.run_epoch()
    spec = next(iter(trainer.clips.spectrograms.values()))
    windows = Predictor(trainer.tagger, CPU).predict([spec])[0]
    first, end = windows.spans[0]
    assert end == spec.shape[-1]
    bucket = trainer.tagger.card.inference.input_frames((first, end), trainer.tagger.min_frames)
    inputs = trainer.tagger.frontend.stack(pad_frames(spec, bucket, 'wrap')[None])
    with torch.no_grad():
        output = trainer.network.eval().outputs(inputs)
    np.testing.assert_allclose(windows.logits, output.clip, rtol=1e-5, atol=1e-5)
    assert float((output.clip - output.frames.amax(1)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'frame_mean_weight': 1.0}, r'network\.head\.pool=max gives no logits of frames: set network\.head\.pool=att'),
        ({'frame_max_weight': 0.5}, r'network\.head\.pool=max gives no logits of frames'),
        ({'clip_weight': 0.0}, r'all 0: set clip_weight=1'),
    ],
)
def test_weights_of_outputs_that_are_not_there_are_refused_before_the_training(changes, message):
    with pytest.raises(KitError, match=message):
        replace(TINY, **changes)


def test_a_single_class_can_be_ranked_over_clips_but_not_against_other_classes():
    clips = clips_of([[1.0], [0.0]], classes=('high',))
    check_labels(replace(TINY, loss='soft-auc'), clips)
    for loss in CLASS_LOSSES:
        with pytest.raises(KitError, match=f"loss={loss} ranks classes, and 'high' is the only one"):
            check_labels(replace(TINY, loss=loss), clips)


def test_a_loss_that_is_not_finite_names_the_clips_of_its_batch():
    data = planted_data([1] * 12)
    data.spectrograms[5][:] = math.nan
    trainer = new_trainer(data, replace(PLAIN, batch_size=4))
    with pytest.raises(KitError, match=r'fold 0, epoch 0, step \d is nan.*lower optim\.lr_peak') as error:
        trainer.run_epoch()
    named = str(error.value).partition('(clips ')[2].partition(')')[0].split(', ')
    assert len(named) == 4 and '5.wav' in named


def test_a_small_training_fits_its_clips(data):
    settings = ['epochs=30', 'crop_s=1.2', 'optim.lr_peak=0.02', 'batch_size=7', 'no_augment_epochs=1']
    trainer = new_trainer(data, PLAIN.override(settings))
    losses = [trainer.run_epoch()['loss'] for _ in range(30)]
    assert losses[-1] < 0.25 * losses[0]
    windows = Predictor(trainer.tagger, CPU).predict(list(trainer.clips.spectrograms.values()))
    scores = np.stack([of_clip.logits.max(axis=0) for of_clip in windows])
    assert lwlrap(trainer.clips.targets, scores) > 0.9


# Fine-tuning


def test_the_output_is_of_the_loss_s_kind(data):
    '''Law 12.'''
    assert TINY.output == 'ranking' and TINY.override(['loss=bce']).output == 'probability'
    assert new_tagger(TINY, data, 0).card.output == 'ranking'


# The loss that reads the frequency coordinate


def test_the_coordinate_is_read_from_the_deepest_map_and_resumes_like_the_rest(toy, tmp_path):
    recipe = PLAIN.override(['coordinate_weight=0.5', 'loss=bce'])
    data = load_table(recipe, *toy)
    plain = new_trainer(data, recipe.override(['coordinate_weight=0']))
    trainer = new_trainer(data, recipe)
    batch = first_batch(trainer)
    with torch.no_grad():
        inputs, targets, soft = trainer.make_inputs(batch, seeded(0), plain=True)
        trainer.network.eval(), plain.network.eval()
        loss = trainer.loss(trainer.forward(inputs), targets, soft, batch)
        without = plain.loss(plain.forward(inputs), targets, soft, batch)
        deepest = trainer.network.backbone(inputs).main[-1]
    # At the start the middle is read everywhere.
    place = torch.linspace(0, 1, deepest.shape[2])
    assert loss - without == pytest.approx(0.5 * float((place - 0.5).square().mean()), rel=1e-4)

    train_quietly(recipe, *toy, tmp_path / 'run')
    assert 'coordinate' not in ''.join(load_tagger(tmp_path / 'run' / 'fold_0.pt').network.state_dict())
    state = torch.load(tmp_path / 'run' / 'state' / 'fold_0.resume.pt', weights_only=True)
    assert state['coordinate']['weight'].abs().max() > 0
    with pytest.raises(KitError, match='set coordinate_weight=0'):
        trainer.coordinate(deepest[:, :, 0])
