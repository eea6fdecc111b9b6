"""The max-pyramid: its size, its maps over spans, any length, every frame."""

import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.models.families import build_network, complete_network
from kit.models.network import InputShape, receptive_field
from kit.models.pyramid import PyramidConfig, TrainedPReLU

CONFIGS = {
    "2-D": (PyramidConfig(blocks=3, width=6), 2, 20),
    "1-D": (PyramidConfig(dims=1, blocks=3, width=6), 1, 33),
    "all blocks pooled": (PyramidConfig(blocks=3, width=6, pooled_from=0), 2, 20),
    "last block pooled": (PyramidConfig(blocks=3, width=6, pooled_from=2), 2, 20),
}


def network_of(settings, channels, bins, classes):
    """A pyramid under its head."""
    return build_network({"family": "max-pyramid", **settings.to_dict()}, InputShape(channels, bins), classes)


def pyramid(name="2-D", classes=5, seed=0):
    """A small network whose batch norms have seen something, in evaluation mode."""
    settings, channels, bins = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_of(settings, channels, bins, classes).train()
        with torch.no_grad():
            for _ in range(3):
                network(torch.randn(8, channels, bins, 40))
    return network.eval()


def spec_of(name="2-D", clips=2, frames=41, seed=0):
    """Noise in the shape a network wants. Shape: -> (clips, C, M, frames)"""
    _, channels, bins = CONFIGS[name]
    return torch.randn(clips, channels, bins, frames, generator=torch.Generator().manual_seed(seed))


def count_by_hand(dims, channels, bins, classes, blocks, width, growth, pooled_from=1):
    """Slow definition: weights of every layer of the published network, added up."""
    total, kernel = 0, {1: 3, 2: 9}[dims]
    last = channels if dims == 2 else channels * bins
    widths = [round(width * growth**k) for k in range(blocks)]
    for w in widths:
        total += 2 * last + kernel * last * w + 2 * w + 1
        total += (w * w + 2 * w + 1) + (kernel * w * w + 2 * w + 1) + (w * w + 2 * w + 1)
        last = w
    features = sum(widths[pooled_from:])
    return total + 2 * features + features * (features + 1) + 2 * features + 1 + (features + 1) * classes


def test_the_published_size_is_9_25_million():
    settings = PyramidConfig(dims=2, blocks=5, width=100, growth=1.5)
    with torch.device("meta"):
        network = network_of(settings, channels=2, bins=128, classes=80)
    count = sum(p.numel() for p in network.parameters())
    assert count == count_by_hand(2, 2, 128, 80, 5, 100, 1.5)
    assert round(count / 1e6, 2) == 9.25
    assert PyramidConfig() == settings


@pytest.mark.parametrize("name", CONFIGS)
def test_the_size_agrees_with_a_count_by_hand(name):
    settings, channels, bins = CONFIGS[name]
    count = sum(p.numel() for p in pyramid(name).parameters())
    by_hand = count_by_hand(settings.dims, channels, bins, 5, settings.blocks, settings.width, settings.growth,
                            settings.pooled_from)  # fmt: skip
    assert count == by_hand


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clip_of_any_length_gets_finite_logits(name):
    network = pyramid(name)
    with torch.inference_mode():
        for frames in (*range(1, 20), 97, 500):
            logits = network(spec_of(name, 2, frames))
            assert logits.shape == (2, 5) and bool(logits.isfinite().all()), frames


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_have_half_the_frames_each_rounded_up(name):
    network = pyramid(name)
    settings, _, bins = CONFIGS[name]
    for frames in (1, 2, 7, 8, 9, 63, 64, 65):
        with torch.inference_mode():
            maps = network.backbone(spec_of(name, 1, frames)).main
        assert len(maps) == settings.blocks - settings.pooled_from
        for k, m in enumerate(maps):
            step = network.backbone.strides[k]
            assert step == 2 ** (settings.pooled_from + k + 1)
            assert m.shape[-1] == -(-frames // step)
            assert m.ndim == 2 + settings.dims
            if settings.dims == 2:
                assert m.shape[2] == -(-bins // step)
    assert network.stride == network.min_frames == 2**settings.blocks


def slow_logits(network, maps, spans):
    """Slow definition: for every span, block and channel, the greatest cell that overlaps the span, classified."""
    clips = []
    for b in range(len(maps[0])):
        rows = []
        for first, last in spans:
            values = []
            for k, m in enumerate(maps):
                step = 2 ** (network.backbone.settings.pooled_from + k + 1)
                cells = [j for j in range(m.shape[-1]) if j * step < last and (j + 1) * step > first]
                values += [max(float(m[b, c, ..., j].max()) for j in cells) for c in range(m.shape[1])]
            rows.append(values)
        clips.append(rows)
    return torch.stack([network.head.classifier(torch.tensor(rows)) for rows in clips])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_spans_agree_with_slicing_the_maps(name):
    network = pyramid(name)
    with torch.inference_mode():
        maps = network.backbone(spec_of(name, 2, 41))
        spans = [(0, 41), (0, 1), (0, 8), (1, 9), (7, 8), (8, 16), (15, 33), (33, 41), (40, 41)]
        logits = network.span_logits(maps, spans)
        assert logits.shape == (2, len(spans), 5)
        torch.testing.assert_close(logits, slow_logits(network, maps.main, spans), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_span_of_the_whole_clip_is_the_clip(name):
    network = pyramid(name)
    for frames in (1, 5, 8, 41):
        spec = spec_of(name, 2, frames)
        with torch.inference_mode():
            logits = network.span_logits(network.backbone(spec), [(0, frames)])
            assert torch.equal(logits[:, 0], network(spec))


@pytest.mark.parametrize("name", CONFIGS)
def test_spans_that_cover_a_clip_hold_its_maximum(name):
    network = pyramid(name)
    network.head.classifier = torch.nn.Identity()
    with torch.inference_mode():
        maps = network.backbone(spec_of(name, 1, 41))
        parts = network.span_logits(maps, [(0, 13), (13, 14), (14, 30), (30, 41)])
        assert torch.equal(parts.amax(dim=1), network.head.features(maps.main))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 9, 33, 41])
def test_the_odd_last_frame_is_heard(name, frames):
    network = pyramid(name)
    spec = spec_of(name, 1, frames)
    louder = spec.clone()
    louder[..., -1] += 30.0
    with torch.inference_mode():
        moved = (network(louder) - network(spec)).abs().max()
        alone = [
            (a - b).abs().max()
            for a, b in zip(network.backbone(louder).main, network.backbone(spec).main, strict=True)
        ]
    assert float(moved) > 1e-3
    assert all(float(m) > 1e-3 for m in alone)


def frames_that_matter(backbone, spec):
    """Slow definition: the frames of a picture that move the middle step of the deepest map when they are loud."""
    with torch.inference_mode():
        quiet = backbone(spec).main[-1]
        middle = quiet.shape[-1] // 2
        moved = []
        for frame in range(spec.shape[-1]):
            louder = spec.clone()
            louder[..., frame] += 50.0
            if not torch.equal(backbone(louder).main[-1][..., middle], quiet[..., middle]):
                moved.append(frame)
    return moved


@pytest.mark.parametrize("name", ["2-D", "1-D"])
def test_the_receptive_field_is_what_moves_a_step(name):
    settings, channels, bins = CONFIGS[name]
    backbone = pyramid(name).backbone
    moved = frames_that_matter(backbone, 0.1 * spec_of(name, 1, 128))
    field = receptive_field(backbone, InputShape(channels, bins))
    by_hand = 1 + sum(2 * 2**k + 2**k + 2 * 2 ** (k + 1) for k in range(settings.blocks))
    assert field == moved[-1] - moved[0] + 1 == by_hand == 50
    assert next(backbone.parameters()).requires_grad and bool(pyramid(name)(spec_of(name)).isfinite().all())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clip_does_not_hear_its_batchmates(name):
    network = pyramid(name)
    specs = spec_of(name, 16, 41)
    with torch.inference_mode():
        together = network(specs)
        for size in (1, 2, 5):
            parts = torch.cat([network(specs[i : i + size]) for i in range(0, 16, size)])
            torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(network(specs[order]), together[order], rtol=1e-5, atol=1e-5)
        others = specs.clone()
        others[1:] = 100.0
        torch.testing.assert_close(network(others)[0], together[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["2-D", "1-D"])
def test_a_forward_in_bfloat16_runs_and_stays_near(name):
    network, spec = pyramid(name), spec_of(name, 3, 41)
    with torch.inference_mode():
        exact = network(spec)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(spec.contiguous(memory_format=torch.channels_last))
    assert bool(rough.isfinite().all())
    assert float((torch.sigmoid(rough.float()) - torch.sigmoid(exact)).abs().max()) < 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_trains_every_weight(name):
    network = pyramid(name).train()
    network(spec_of(name, 4, 41)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_channels_last_changes_nothing_but_speed():
    network, spec = pyramid(), spec_of(clips=3)
    with torch.inference_mode():
        plain = network(spec)
        network.to(memory_format=torch.channels_last)
        fast = network(spec.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_settings_that_make_no_network_say_the_cure():
    with pytest.raises(KitError, match=r"max-pyramid needs at least 32 frequency bins.*got 20: raise n_mels"):
        build_network({"family": "max-pyramid", "blocks": 5}, InputShape(1, 20), 3)
    with pytest.raises(KitError, match=r"max-pyramid reads 0 side rows, got 13: set frontend\.extra_rows"):
        build_network({"family": "max-pyramid"}, InputShape(1, 128, n_extra_rows=13), 3)
    with pytest.raises(KitError, match=r"pooled_from must be below blocks \(3\), got 3"):
        PyramidConfig(blocks=3, pooled_from=3)
    with pytest.raises(KitError, match=r"dims is 3.*1, 2"):
        PyramidConfig(dims=3)
    with pytest.raises(KitError, match=r"no setting 'widht': did you mean 'width'"):
        complete_network({"family": "max-pyramid", "widht": 3})
    with pytest.raises(KitError, match=r"unknown network family 'max_pyramid': did you mean 'max-pyramid'"):
        build_network({"family": "max_pyramid"}, InputShape(1, 128), 3)
    with pytest.raises(KitError, match=r"unknown network family 'none given'"):
        complete_network({})


def test_complete_network_fills_every_default_in():
    full = complete_network({"family": "max-pyramid", "width": 7})
    assert full == {"family": "max-pyramid", **PyramidConfig(width=7).to_dict()}
    assert complete_network(full) == full
    same = [
        sum(p.numel() for p in build_network(s, InputShape(1, 32), 2).parameters())
        for s in (full, {"family": "max-pyramid", "width": 7})
    ]
    assert same[0] == same[1]


def test_the_pyramid_s_prelu_is_torch_s_own_in_training_and_after():
    own, wanted = TrainedPReLU(init=0.3), nn.PReLU(init=0.3)
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        pairs = []
        for layer in (own.train(training), wanted.train(training)):
            layer.zero_grad()
            given = x.clone().requires_grad_()
            said = layer(given)
            said.square().sum().backward()
            pairs.append((said.detach(), given.grad, layer.weight.grad.clone()))
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other)
