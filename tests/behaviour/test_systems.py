"""Every system of the winners, composed from settings: built, heard, saved, submitted, and taught by its own losses."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies, mix_labels
from kit.infer.ensemble import clip_probabilities
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, compute_spectrograms, cut_window
from kit.infer.submit import submit
from kit.labels.boxes import Boxes, window_targets
from kit.labels.calibration import Calibration
from kit.models.checkpoint import load_tagger, save_tagger, wrap_network
from kit.models.families import complete_network
from kit.models.stackers import ImageStacker, ImageStackerConfig, prediction_image
from kit.models.tagger import TaggerCard, build_tagger
from kit.train.losses import average_loss, bce_loss, lsep_loss, soft_bootstrap_loss, sum_by_source
from kit.train.recipes import RFCX_BANDS_HZ, SYSTEMS
from tests.behaviour.trained import read_scores, write_template, write_wav

CLASSES = ("a", "b", "c", "d")
TIMM = "test_efficientnet.r160_in1k"
RANKED = ("max-pyramid-mel", "max-pyramid-stft", "freq-crop")
WINDOWS = ["inference.window_s=1.0", "inference.hop_s=0.5"]
# What a system's own settings shrink to; its front end stays but for its rows, its listening but for its lengths.
SMALL = {
    "skip-attention": ["frontend.n_mels=32", "network.width=4", "network.head.hidden=8", *WINDOWS],
    "axis-pool": [
        "frontend.n_mels=16", "network.width=4", "network.stat_width=3", "network.stat_steps=16", *WINDOWS
    ],
    "max-pyramid-mel": ["frontend.n_mels=32", "network.blocks=3", "network.width=4", "inference.max_frames=64"],
    "max-pyramid-stft": ["network.blocks=4", "network.width=4", "inference.max_frames=512"],
    "window-snr": ["frontend.n_mels=32", "network.blocks=3", "network.width=4", *WINDOWS],
    "two-stage": ["frontend.n_mels=32", "frontend.image_size=[32,32]", f"network.name={TIMM}", *WINDOWS],
    "freq-coord": ["frontend.n_mels=48", f"network.name={TIMM}", *WINDOWS],
    "freq-crop": [
        "frontend.n_mels=16", "frontend.bands_hz=[[0,1500],[463,3381],[2994,4694],[4681,11350]]",
        f"network.backbone.name={TIMM}", "inference.max_frames=96",
    ],
}  # fmt: skip
# Parameters as published, or as the published backbone has them, with the front end's channels and an output layer:
# EfficientNet-B3 of 2 channels and 24 classes, -B0 of 1 and 24, ResNet-18 of 3 and 80.
KNOWN_SIZES = {
    "skip-attention": (80, 17_326_950),
    "max-pyramid-mel": (80, 9_253_566),
    "two-stage": (80, 11_176_512 + 80 * 513),
    "freq-coord": (24, 10_696_232 - 9 * 40 + 24 * 1537),
    "freq-crop": (24, 4_007_548 - 2 * 9 * 32 + 24 * 1281),
}
SECONDS = (0.0, 0.1, 0.7, 0.7, 1.0, 6.0)
every_system = pytest.mark.parametrize("name", SYSTEMS)


def small_system(name):
    """A system made small by overrides alone."""
    system = SYSTEMS[name]
    return replace(system, network=complete_network(system.network)).override(SMALL[name])


def card_of(name, system, classes=CLASSES, **settings):
    """What is known of a system's tagger before it is trained."""
    return TaggerCard(
        classes=tuple(classes), prevalences=(1 / len(classes),) * len(classes), frontend=system.frontend,
        network=system.network, inference=system.inference, output="ranking" if name in RANKED else "probability",
        **settings,
    )  # fmt: skip


def sound(seconds, rate, seed):
    """A sweep over noise that fades in; at least one sample. Units: rate in Hz"""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate))) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(300, 5000) * t * (1 + t)) * np.exp(-rng.uniform(0, 2) * t)
    return Sound((wave + rng.normal(0, rng.uniform(0.001, 0.1), len(t))).astype(np.float32), rate)


def crops(tagger, clips=6, seconds=1.0):
    """Raw training crops, cut as listening cuts them. Shape: -> (clips, R, N)"""
    c = tagger.card.frontend
    frames = round(seconds * c.frames_per_s)
    waves = [torch.from_numpy(sound(seconds, c.sample_rate, seed).wave) for seed in range(clips)]
    specs = compute_spectrograms(tagger.frontend, waves)
    return torch.stack([cut_window(tagger.frontend, spec, (0, frames), frames, "wrap") for spec in specs])


@functools.cache
def tagger_of(name):
    """A small system whose norms have heard crops, in evaluation mode; rank scores have a calibration."""
    calibration = Calibration(scale=1.5, offset=-0.5) if name in RANKED else None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        tagger = build_tagger(card_of(name, small_system(name), calibration=calibration))
        network = without_dropout(tagger.network).train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network(tagger.frontend.stack(crops(tagger)))
        # Random networks say ±17 of a few samples, where float32's own rounding moves probabilities by 1e-5.
        rate = tagger.card.frontend.sample_rate
        waves = [torch.from_numpy(sound(seconds, rate, seed).wave) for seed, seconds in enumerate(SECONDS)]
        said = Predictor(tagger, torch.device("cpu")).predict(compute_spectrograms(tagger.frontend, waves))
        peak = max(float(np.abs(of_clip.logits).max()) for of_clip in said)
        outputs = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d)]
        for values in outputs[-1].parameters() if peak > 8 else ():
            values.mul_(4 / peak)
    return tagger.eval()


@functools.cache
def sounds_of(name):
    """Clips of one sample to several windows, at the system's own rate."""
    rate = tagger_of(name).card.frontend.sample_rate
    return [sound(seconds, rate, seed) for seed, seconds in enumerate(SECONDS)]


@functools.cache
def heard(name):
    """What a system says of all its sounds in one call. Shape: -> (clips, K)"""
    return predict_clips(tagger_of(name), sounds_of(name)).probabilities


def test_every_system_is_composed_here():
    assert set(SMALL) == set(SYSTEMS)


@every_system
def test_a_system_answers_for_one_sample_and_for_many_windows(name):
    tagger, said = tagger_of(name), heard(name)
    frames = [tagger.frontend.spectrograms([torch.from_numpy(s.wave)])[0].shape[-1] for s in sounds_of(name)]
    pieces = [len(tagger.card.inference.spans(n, tagger.card.frontend.frames_per_s)) for n in frames]
    assert pieces[:2] == [1, 1] and pieces[-1] >= 4
    assert said.shape == (len(SECONDS), 4) and ((said >= 0) & (said <= 1)).all()
    assert np.ptp(said[2:], axis=0).min() > 0.01, "a network that hears nothing would prove nothing"


@every_system
def test_a_clip_does_not_hear_its_batchmates(name):
    tagger, sounds, together = tagger_of(name), sounds_of(name), heard(name)
    alone = np.concatenate([predict_clips(tagger, [clip]).probabilities for clip in sounds])
    assert np.abs(alone - together).max() <= 1e-5
    order = [5, 3, 0, 4, 1, 2]
    shuffled = predict_clips(tagger, [sounds[i] for i in order], batch_frames=300).probabilities
    assert np.abs(shuffled - together[order]).max() <= 1e-5


@every_system
def test_a_system_comes_back_from_its_checkpoint_and_from_a_state_dict(name, tmp_path):
    tagger = tagger_of(name)
    save_tagger(tmp_path / "a.pt", tagger)
    again, card = load_tagger(tmp_path / "a.pt"), tagger.card
    assert again.card == card
    own = wrap_network(
        tagger.network.state_dict(), card.frontend, CLASSES, settings=card.network, inference=card.inference
    )
    waves = [torch.from_numpy(clip.wave) for clip in sounds_of(name)]
    logits = [
        said.logits
        for said in Predictor(own, torch.device("cpu")).predict(compute_spectrograms(own.frontend, waves))
    ]
    assert np.array_equal(predict_clips(again, sounds_of(name)).probabilities, heard(name))
    pooled = [clip_probabilities(tagger, card.inference, clip) for clip in logits]
    assert np.array_equal(np.stack(pooled).astype(np.float32), heard(name))


@every_system
def test_a_system_submits_by_the_template(name, tmp_path):
    save_tagger(tmp_path / "a.pt", tagger_of(name))
    sounds = sounds_of(name)
    for i, clip in enumerate(sounds):
        write_wav(tmp_path / "clips" / f"{i}.wav", clip.wave, clip.sample_rate)
    ids = [str(i) for i in reversed(range(len(sounds)))]
    template = write_template(tmp_path / "template.csv", ids, CLASSES)
    done = submit(
        tmp_path / "a.pt", tmp_path / "clips", tmp_path / "b.csv", template, progress=False, device="cpu"
    )
    header, rows = read_scores(tmp_path / "b.csv")
    assert header[1:] == list(CLASSES) and list(rows) == ids and done.report["rows_all_models"] == len(ids)
    assert np.abs(np.stack([rows[str(i)] for i in range(len(sounds))]) - heard(name)).max() <= 1e-5


def test_all_systems_hear_real_clips_in_one_ensemble(esc10):
    clips = sorted((esc10 / "audio").iterdir())[:3]
    taggers = [tagger_of(name) for name in SYSTEMS]
    together = predict_clips(taggers, clips)
    assert not together.failures and together.probabilities.shape == (3, 4)
    single = [predict_clips(tagger, clips).probabilities for tagger in taggers]
    assert np.abs(together.probabilities - np.mean(single, axis=0)).max() <= 1e-5


def hard_targets(clips=6):
    """Complete labels, one or two a clip. Shape: -> (clips, 4)"""
    targets = torch.eye(4).repeat(2, 1)[:clips]
    targets[0, 2] = 1.0
    return targets


def curated_and_noisy(logits, targets):
    """Curated clips first, then noisy ones: cross-entropy, and half as much trust in noisy labels' own prediction."""
    sources = torch.arange(len(logits)) // 3
    return sum_by_source(logits, targets, sources, [(bce_loss, 0.5), (soft_bootstrap_loss, 0.5)])


def skip_attention_loss(network, spec):
    """The clip, then the skips, deepest first."""
    outputs = network.outputs(spec)
    said = [outputs.clip, *outputs.auxiliary]
    pairs = zip((1.0, 0.4, 0.2, 0.1), said, strict=True)
    return sum(weight * curated_and_noisy(logits, hard_targets()) for weight, logits in pairs)


def window_snr_loss(network, spec):
    """Curated clips and two sets of pseudo labels, one loss each, combined linearly."""
    sources = torch.arange(6) % 3
    parts = [(bce_loss, 1.0), (bce_loss, 0.5), (bce_loss, 0.5)]
    return sum_by_source(network(spec), hard_targets(), sources, parts, weight_by_share=False)


def box_targets():
    """A window of each of six recordings, three with a true box and three with a false one. Shape: -> (6, 4)"""
    edges = [np.full(6, edge) for edge in (0.2, 0.9, 500.0, 1500.0)]
    boxes = Boxes(CLASSES, np.array([f"r{i}" for i in range(6)]), np.arange(6) % 4, np.arange(6) < 3, *edges)
    return torch.from_numpy(np.stack([window_targets(boxes, f"r{i}", 0.0, 1.0) for i in range(6)]))


def masked_loss(network, spec):
    """Cross-entropy on what the boxes say, all known labels alike."""
    return average_loss(bce_loss(network(spec), box_targets()), over="labels")


def own_belief_loss(network, spec):
    """What no box tells of is taken for false, softened by the network's own prediction; then ranks of soft labels."""
    logits, targets = network(spec), box_targets()
    first = average_loss(soft_bootstrap_loss(logits, targets, trust=0.1, on="unknown", detach=False))
    soft = torch.where(targets.isnan(), torch.linspace(0.05, 0.4, 4).expand_as(targets), targets)
    return first + average_loss(lsep_loss(logits, soft))


LESSONS = {
    "skip-attention": skip_attention_loss,
    "axis-pool": lambda network, spec: average_loss(bce_loss(network(spec), hard_targets(), smoothing=0.01)),
    "window-snr": window_snr_loss,
    "two-stage": lambda network, spec: average_loss(bce_loss(network(spec), hard_targets())),
    "freq-coord": masked_loss,
    "freq-crop": own_belief_loss,
}


def fresh_tagger(name, **overrides):
    """A small system in training mode, before any step."""
    system = small_system(name)
    torch.manual_seed(1)
    return build_tagger(card_of(name, replace(system, network={**system.network, **overrides}))).train()


def taught(network, loss):
    """A step with the gradient of a loss of the network, which it must lower: the same pictures cost less after it."""
    network.zero_grad()
    before = loss()
    before.backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert bool(before.isfinite()) and float(before.detach()) > 0
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert sum(float(g.abs().sum()) > 0 for g in gradients.values()) >= 0.9 * len(gradients)
    size = sum(float(g.square().sum()) for g in gradients.values())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 * float(before.detach()) / size * parameter.grad
    assert float(loss().detach()) < float(before.detach())
    return set(gradients)


def without_dropout(network):
    """The network in training mode, every weight heard, so that a step's loss can be compared with the next."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


@pytest.mark.parametrize("name", LESSONS)
def test_a_step_on_its_own_losses_teaches_a_system(name):
    tagger = fresh_tagger(name)
    spec, network = tagger.frontend.stack(crops(tagger)), without_dropout(tagger.network)
    assert taught(network, lambda: LESSONS[name](network, spec)) == {n for n, _ in network.named_parameters()}


@pytest.mark.parametrize("name", ["max-pyramid-mel", "max-pyramid-stft"])
def test_a_step_on_ranks_of_mixed_clips_with_united_labels_teaches_a_pyramid(name):
    tagger = fresh_tagger(name)
    draw = draw_mixup(MixupConfig(p=0.5), 6, torch.Generator().manual_seed(0))
    assert 0 < int(draw.mixed.sum()) < 6
    spec = tagger.frontend.stack(mix_energies(crops(tagger), draw, MixupConfig(), tagger.card.frontend))
    network, targets = without_dropout(tagger.network), mix_labels(hard_targets(), draw, MixupConfig())
    assert float(targets.sum()) > float(hard_targets().sum())
    taught(network, lambda: average_loss(lsep_loss(network(spec), targets)))


def test_a_head_of_its_own_learns_noisy_labels_and_leaves_the_clips_head_alone():
    tagger = fresh_tagger("skip-attention", noisy_head=True)
    spec, network = tagger.frontend.stack(crops(tagger)), without_dropout(tagger.network)
    targets = hard_targets()
    network.zero_grad()
    average_loss(soft_bootstrap_loss(network.outputs(spec).noisy, targets)).backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None}
    assert any(n.startswith("noisy_head") for n in reached) and any(n.startswith("backbone") for n in reached)
    assert not any(n.startswith("head") for n in reached)

    def both():
        outputs = network.outputs(spec)
        noisy = average_loss(soft_bootstrap_loss(outputs.noisy[3:], targets[3:]))
        return average_loss(bce_loss(outputs.clip[:3], targets[:3])) + noisy

    assert any(n.startswith("head") for n in taught(network, both))


def test_pictures_that_grow_over_training_teach_one_network():
    tagger = fresh_tagger("two-stage")
    raw, network = crops(tagger), without_dropout(tagger.network)
    for size in ((16, 24), (32, 32), (64, 64)):
        spec = tagger.frontend.stack(raw, image_size=size)
        assert spec.shape == (6, 3, *size)
        taught(network, functools.partial(LESSONS["two-stage"], network, spec))


def test_the_second_stage_reads_the_windows_of_a_clip_as_a_picture():
    tagger = tagger_of("two-stage")
    scores = predict_clips(tagger, [sound(1.0, 44100, seed) for seed in range(24)]).probabilities
    images = torch.stack([prediction_image(torch.from_numpy(clip), 8) for clip in scores.reshape(6, 4, 4)])
    assert images.shape == (6, 4, 8) and not bool(images[..., 4:].any())
    torch.manual_seed(2)
    stacker = without_dropout(ImageStacker(ImageStackerConfig(widths=(4, 8)), 1, 4).train())
    taught(stacker, lambda: average_loss(bce_loss(stacker(images[:, None]), hard_targets())))


@pytest.mark.parametrize("name", KNOWN_SIZES)
def test_a_system_has_its_published_size(name):
    classes, size = KNOWN_SIZES[name]
    with torch.device("meta"):
        tagger = build_tagger(card_of(name, SYSTEMS[name], [f"s{i}" for i in range(classes)]))
    assert sum(p.numel() for p in tagger.network.parameters()) == size


def test_the_bands_of_a_system_are_one_for_each_species():
    assert len(RFCX_BANDS_HZ) == 24 and all(low < high for low, high in RFCX_BANDS_HZ)
