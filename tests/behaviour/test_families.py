"""Every family under every head: no batchmates, any length, saved and loaded, autocast, gradients, receptive field."""

import functools

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import FAMILIES, build_network, complete_network, memory_format_of
from kit.models.heads import POOLS, RECURRENCES
from kit.models.network import Backbone, InputShape, Maps, receptive_field
from kit.models.tagger import Tagger, TaggerCard, build_tagger, input_shape

CLASSES = ("a", "b", "c", "d")
BANDS_HZ = ((0.0, 1000.0), (500.0, 1500.0), (1000.0, 4000.0), (0.0, 4000.0))
SMALL_PYRAMID = {"family": "max-pyramid", "blocks": 2, "width": 4}
# Network settings and what the frontend has beside the common settings.
NETWORKS = {
    "max-pyramid 2-D": ({"family": "max-pyramid", "blocks": 3, "width": 6}, {"channels": ("log", "coordinate")}),
    "max-pyramid 1-D": ({"family": "max-pyramid", "blocks": 3, "width": 6, "dims": 1}, {}),
    "skip-attention": (
        {"family": "skip-attention", "width": 4},
        {"n_mels": 20, "channels": ("log", "delta", "delta2")},
    ),
    "axis-pool": ({"family": "axis-pool", "width": 8}, {}),
    "axis-pool with side rows": (
        {"family": "axis-pool", "width": 8, "stat_width": 3, "stat_steps": 16},
        {"extra_rows": ("wave_stats", "clip_length")},
    ),
    "timm": ({"family": "timm", "name": "test_efficientnet.r160_in1k"}, {"n_mels": 32}),
    "freq-crop crops": (
        {"family": "freq-crop", "form": "crops", "backbone": SMALL_PYRAMID},
        {"n_mels": 8, "bands_hz": BANDS_HZ},
    ),
    "freq-crop pooled": (
        {"family": "freq-crop", "form": "pooled", "bands_hz": BANDS_HZ, "backbone": SMALL_PYRAMID},
        {"n_mels": 32},
    ),
}  # fmt: skip
POOLING_HEADS = {name: {"pool": name} for name in (*POOLS, "gem")}
HEADS = {
    **POOLING_HEADS,
    "attention": {"pool": "attention", "norm_first": False},
    **{name: {"recurrent": name, "recurrent_width": 4} for name in RECURRENCES},
    "embedded lstm, attention": {
        "pool": "attention",
        "norm_first": False,
        "recurrent": "lstm",
        "recurrent_width": 4,
        "embedding": 6,
    },
    "hidden": {"hidden": 6},
    "hidden, normalised first": {"hidden": None, "norm_first": True},
}
HEADS_OF = {name: POOLING_HEADS if name.startswith("freq-crop") else HEADS for name in NETWORKS}
PAIRS = [(name, head) for name in NETWORKS for head in HEADS_OF[name]]
every_pair = pytest.mark.parametrize(("name", "head"), PAIRS)
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def tagger_of(name, head=None):
    """A small tagger whose norms have seen something, in evaluation mode; head None is the family's own."""
    settings, heard = NETWORKS[name]
    given = {**settings, "head": {} if head is None else HEADS[head], "noisy_head": head is not None}
    frontend = FrontendConfig(
        **({"sample_rate": 8000, "n_fft": 256, "hop_length": 128, "n_mels": 16} | heard)
    )
    card = TaggerCard(
        classes=CLASSES, prevalences=(0.2,) * 4, frontend=frontend, network=complete_network(given)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tagger = build_tagger(card)
        with torch.no_grad():
            for seed in range(2):
                tagger.network.train().outputs(noise(tagger, 6, 48, seed))
    return tagger.eval()


def noise(tagger, clips, frames, seed=0):
    """Noise in the shape that a tagger's network is shown."""
    picture = input_shape(tagger.card.frontend)
    shape = (clips, picture.channels, picture.bins + picture.n_extra_rows, frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def said(output):
    """Every tensor of a network's output, by its place."""
    clip, frames, auxiliary, noisy = output
    named = {
        "clip": clip,
        "frames": frames,
        "noisy": noisy,
        **{f"skip {k}": a for k, a in enumerate(auxiliary)},
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def furthest(a, b):
    """The greatest difference between two outputs, by the scale of the first."""
    assert a.keys() == b.keys()
    scale = max(1.0, *(float(x.abs().max()) for x in a.values()))
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a) / scale


def test_every_family_and_head_is_tested_here():
    assert {settings["family"] for settings, _ in NETWORKS.values()} == set(FAMILIES)


@every_pair
def test_a_clip_does_not_hear_its_batchmates(name, head):
    tagger = tagger_of(name, head)
    network, specs = tagger.network, noise(tagger, 5, 41)
    specs[1] *= 50.0
    with torch.inference_mode():
        together = said(network.outputs(specs))
        assert float((together["clip"][0] - together["clip"][2]).abs().max()) > 1e-4
        order = torch.tensor([2, 4, 0])
        some = said(network.outputs(specs[order]))
        assert furthest({k: x[order] for k, x in together.items()}, some) <= 1e-5
        for i in (0, 1, 4):
            alone = said(network.outputs(specs[i : i + 1]))
            assert furthest({k: x[i : i + 1] for k, x in together.items()}, alone) <= 1e-5


@every_pair
def test_any_length_from_the_least_to_ten_times_it_gets_an_answer(name, head):
    tagger = tagger_of(name, head)
    least = tagger.min_frames
    for frames in (least, least + 1, 3 * least - 1, 10 * least - 1, 10 * least):
        spec = noise(tagger, 2, frames)
        with torch.inference_mode():
            output = tagger.network.outputs(spec)
            steps = tagger.network.backbone(spec).main[-1].shape[-1]
        assert output.clip.shape == (2, 4)
        assert (output.frames is None) == ("attention" not in head)
        assert output.frames is None or output.frames.shape == (2, steps, 4)
        assert all(bool(x.isfinite().all()) for x in said(output).values())
        assert -(-frames // tagger.network.stride) == steps


@every_pair
def test_a_network_comes_back_from_its_checkpoint(name, head, tmp_path):
    tagger = tagger_of(name, head)
    save_tagger(tmp_path / "a.pt", tagger)
    again, spec = load_tagger(tmp_path / "a.pt"), noise(tagger, 2, 41)
    with torch.inference_mode():
        ours, theirs = said(tagger.network.outputs(spec)), said(again.network.outputs(spec))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        assert torch.equal(again.network(spec), ours["clip"])
    assert again.min_frames == tagger.min_frames and again.card == tagger.card


@every_pair
def test_a_forward_under_autocast_is_near(name, head):
    tagger = tagger_of(name, head)
    spec = noise(tagger, 2, 41)
    with torch.inference_mode():
        exact = {k: x.sigmoid() for k, x in said(tagger.network.outputs(spec)).items()}
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                rough = said(tagger.network.outputs(spec))
            assert all(bool(x.isfinite().all()) for x in rough.values())
            assert furthest(exact, {k: x.float().sigmoid() for k, x in rough.items()}) < 0.1


@every_pair
def test_silence_and_extremes_get_finite_logits(name, head):
    tagger = tagger_of(name, head)
    spec = noise(tagger, 6, 33)
    for i, level in enumerate((0.0, -100.0, 1e4, -1e4)):
        spec[i] = level
    spec[4:] *= 1e4
    with torch.inference_mode():
        assert all(bool(x.isfinite().all()) for x in said(tagger.network.outputs(spec)).values())


@every_pair
def test_a_batch_trains_every_weight(name, head):
    tagger = build_tagger(tagger_of(name, head).card)
    torch.manual_seed(0)
    network = tagger.network.train()
    outputs = said(network.outputs(noise(tagger, 6, 48)))
    assert ("frames" in outputs) == ("attention" in head) and "noisy" in outputs
    sum(x.square().sum() for x in outputs.values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not idle
    moved = sum(bool(p.grad.abs().max() > 0) for p in network.parameters())
    assert moved >= 0.95 * len(list(network.parameters()))


@every_network
def test_the_clip_alone_is_what_all_outputs_say_of_it(name):
    tagger, plain = tagger_of(name, "mean"), tagger_of(name)
    spec = noise(tagger, 2, 41)
    with torch.inference_mode():
        output = tagger.network.outputs(spec)
        assert torch.equal(tagger.network(spec), output.clip) and not torch.equal(output.clip, output.noisy)
        own = plain.network.outputs(spec)
    assert own.noisy is None and len(own.auxiliary) == (3 if name == "skip-attention" else 0)


@every_network
def test_clips_below_the_least_length_are_filled(name):
    tagger = tagger_of(name)
    frames = []
    hook = tagger.network.register_forward_pre_hook(lambda _, given: frames.append(given[0].shape[-1]))
    sounds = [
        Sound(np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32), 8000) for n in (1, 300, 9000)
    ]
    probabilities = predict_clips(tagger, sounds).probabilities
    hook.remove()
    assert min(frames) == tagger.min_frames and np.isfinite(probabilities).all()
    assert probabilities.shape == (3, 4)


def test_pictures_resized_to_fewer_frames_than_the_network_takes_are_refused():
    network = complete_network({"family": "timm", "name": "inception_v3"})
    config = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, image_size=(128, 64))
    card = TaggerCard(classes=("a",), prevalences=(0.5,), frontend=config, network=network)
    with torch.device("meta"), pytest.raises(KitError, match=r"image_size .* has 64 frames.* 96 or more"):
        Tagger(card, build_network(network, InputShape(1, 128), 1))


@every_network
def test_the_layout_that_a_network_asks_for_changes_no_answer(name):
    tagger = tagger_of(name)
    network, spec = tagger.network, noise(tagger, 3, 41)
    layout = memory_format_of(network)
    with torch.inference_mode():
        plain = said(network.outputs(spec))
    Predictor(tagger, torch.device("cpu"))
    with torch.inference_mode():
        fast = said(network.outputs(spec.contiguous(memory_format=layout)))
    network.to(memory_format=torch.contiguous_format)
    assert furthest(plain, fast) <= 1e-5


@every_network
def test_spans_of_one_pass_are_read_by_the_head(name):
    tagger = tagger_of(name)
    network, spec = tagger.network, noise(tagger, 2, 61)
    with torch.inference_mode():
        logits = network.span_logits(network.backbone(spec), [(0, 61), (0, 1), (13, 40), (60, 61)])
        assert logits.shape == (2, 4, 4) and bool(logits.isfinite().all())
        torch.testing.assert_close(logits[:, 0], network(spec))


@every_network
def test_the_receptive_field_is_what_moves_a_step(name):
    """Slow definition: every frame in turn made loud, and quiet, in several pictures."""
    tagger = tagger_of(name)
    backbone, frames = tagger.network.backbone, 128
    field = receptive_field(backbone, input_shape(tagger.card.frontend))
    specs, moved = 0.1 * noise(tagger, 4, frames), []
    with torch.inference_mode():
        quiet = backbone(specs).main[-1]
        middle = quiet.shape[-1] // 2
        for frame in range(frames):
            other = specs.clone()
            other[..., frame] += torch.tensor([50.0, -50.0, 20.0, -20.0])[:, None, None]
            if not torch.equal(backbone(other).main[-1][..., middle], quiet[..., middle]):
                moved.append(frame)
    heard = moved[-1] - moved[0] + 1
    assert heard == (frames if field is None else field)
    assert (field is None) == (name in ("skip-attention", "timm"))


class Memory(Backbone):
    """One convolution that hears a frame and so many before it, nothing after."""

    def __init__(self, before):
        super().__init__()
        self.widths, self.strides, self.before = (2,), (1,), before
        self.convolution = torch.nn.Conv1d(3, 2, before + 1, padding=before)

    def forward(self, spec):
        return Maps([self.convolution(spec[:, 0])[..., : spec.shape[-1]]])


@pytest.mark.parametrize(
    ("before", "field"), [(0, 1), (7, 8), (9, 10), (20, 21), (62, 63), (63, 64), (64, None)]
)
def test_a_field_that_lies_on_one_side_is_measured_too(before, field):
    assert receptive_field(Memory(before), InputShape(1, 3)) == field
