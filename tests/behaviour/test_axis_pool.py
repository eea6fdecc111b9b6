"""Axis-pool: its size, what its pooling takes on which axis, wave statistics and length beside the picture."""

import pytest
import torch

from kit.core.errors import KitError
from kit.models.families import build_network
from kit.models.network import InputShape, receptive_field

BINS = 17
PLAIN, WITH_SIDE = InputShape(2, BINS), InputShape(2, BINS, n_extra_rows=13)
SETTINGS = {"family": "axis-pool", "width": 4, "stat_steps": 6, "stat_width": 3}


def network_of(picture=WITH_SIDE, classes=5, **settings):
    """A network in evaluation mode whose norms have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network({**SETTINGS, **settings}, picture, classes)
        with torch.no_grad():
            for seed in range(2):
                network.train()(picture_noise(picture, 8, 40, seed))
    return network.eval()


def picture_noise(picture=WITH_SIDE, clips=2, frames=41, seed=0):
    """Noise in the shape of a picture and its side rows, which stand in every channel."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.randn(clips, 1, picture.n_extra_rows, frames, generator=generator)
    side[:, :, 12:] = side[:, :, 12:, :1]
    rows = torch.randn(clips, picture.channels, picture.bins, frames, generator=generator)
    return torch.cat([rows, side.expand(-1, picture.channels, -1, -1)], dim=2)


def count_by_hand(channels, side, width=64, stat_width=64, classes=80):
    """Slow definition: weights of every layer, added up."""
    total, last = 0, channels
    for k in range(4):
        w = width * 2**k
        total += 9 * last * w + 2 * w + 9 * w * w + 2 * w
        last = w
    if side:
        total += 2 * 12 + 2 * 3 * stat_width * (12 + stat_width + 2)
        last += 2 * stat_width + 1
    return total + (last + 1) * classes


@pytest.mark.parametrize("side", [0, 13])
def test_the_size_agrees_with_a_count_by_hand(side):
    with torch.device("meta"):
        network = build_network({"family": "axis-pool"}, InputShape(1, 64, n_extra_rows=side), 80)
    assert sum(p.numel() for p in network.parameters()) == count_by_hand(1, side)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 9 and layers[0].out_channels == 64 and layers[7].out_channels == 512


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 63, 431])
def test_maps_of_any_length_come_with_the_deepest_last(frames):
    network = network_of()
    stats, length, deepest = network.backbone(picture_noise(frames=frames)).main
    assert stats.shape == (2, 6, 1, 6) and length.shape == (2, 1, 1, 1)
    assert deepest.shape == (2, 32, 3, -(-frames // 8))
    assert list(network.backbone.strides) == [0, 0, 8] and network.stride == network.min_frames == 8
    assert [m.shape[1] for m in (stats, length, deepest)] == list(network.backbone.widths)


def test_without_side_rows_there_is_the_picture_alone():
    network = network_of(PLAIN)
    (deepest,) = network.backbone(picture_noise(PLAIN)).main
    full = network_of(WITH_SIDE)
    full.backbone.load_state_dict(network.backbone.state_dict(), strict=False)
    spec = picture_noise()
    alone = network.backbone(spec[:, :, :BINS]).main[0]
    torch.testing.assert_close(full.backbone(spec).main[-1], alone)
    assert deepest.shape == alone.shape == (2, 32, 3, 6)


def test_pooling_takes_the_mean_over_frequency_and_the_maximum_over_time():
    blocks = network_of(PLAIN).backbone.blocks
    kinds = [type(m).__name__ for m in blocks]
    place = kinds.index("AvgPool2d")
    assert kinds.count("AvgPool2d") == kinds.count("MaxPool2d") == 3
    x = torch.randn(1, 2, 5, 7)
    pooled = blocks[place + 1](blocks[place](x))
    for m in range(3):
        for n in range(4):
            cell = x[0, :, 2 * m : 2 * m + 2, 2 * n : 2 * n + 2]
            torch.testing.assert_close(pooled[0, :, m, n], cell.mean(1).amax(1))


def test_the_head_takes_the_maximum_over_time_of_means_over_frequency():
    network, spec = network_of(), picture_noise()
    stats, length, deepest = network.backbone(spec).main
    read = torch.cat([stats[:, :, 0].amax(2), length[:, :, 0, 0], deepest.mean(2).amax(2)], dim=1)
    torch.testing.assert_close(network.head.classifier(read), network(spec))


def test_statistics_are_averaged_to_steps_normalised_and_heard_both_ways():
    backbone, spec = network_of().backbone, picture_noise(frames=20)
    steps = []
    for n in range(6):
        first, last = n * 20 // 6, -(-(n + 1) * 20 // 6)
        steps.append(spec[:, 0, BINS : BINS + 12, first:last].mean(2))
    norm = backbone.stat_norm
    slow = (torch.stack(steps, 1) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    slow = slow * norm.weight + norm.bias
    heard = backbone.stat_gru(slow)[0]
    torch.testing.assert_close(backbone(spec).main[0][:, :, 0], heard.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_picture_statistics_and_length_are_heard_apart():
    backbone, spec = network_of().backbone, picture_noise()
    plain = backbone(spec).main
    for rows, which in (
        (slice(0, BINS), 2),
        (slice(BINS - 1, BINS), 2),
        (slice(BINS, BINS + 12), 0),
        (slice(BINS + 11, BINS + 12), 0),
        (slice(BINS + 12, None), 1),
    ):
        other = spec.clone()
        other[:, :, rows] += 2.0
        same = [torch.equal(a, b) for a, b in zip(backbone(other).main, plain, strict=True)]
        assert same == [k != which for k in range(3)]
    assert torch.equal(plain[1][:, 0, 0, 0], spec[:, 0, -1, 0])


def test_length_survives_a_filling_of_the_floor():
    backbone, spec = network_of().backbone, picture_noise()
    spec[..., 30:] = -80.0
    assert torch.equal(backbone(spec).main[1][:, 0, 0, 0], spec[:, 0, -1, 0])


def test_every_span_is_told_the_statistics_of_the_whole():
    network, spec = network_of(), picture_noise(frames=80)
    network.head.classifier = torch.nn.Identity()
    told = network.span_logits(network.backbone(spec), [(0, 80), (0, 8), (35, 61)])
    whole = network(spec)
    assert torch.equal(told[:, 0], whole)
    for w in (1, 2):
        assert torch.equal(told[:, w, :7], whole[:, :7]) and not torch.equal(told[:, w, 7:], whole[:, 7:])


@pytest.mark.parametrize("picture", [PLAIN, WITH_SIDE])
def test_the_receptive_field_is_the_sum_of_its_layers(picture):
    by_hand = 1 + sum(4 * 2**k for k in range(4)) + sum(2**k for k in range(3))
    assert receptive_field(network_of(picture).backbone, picture) == by_hand == 68


def test_other_side_rows_and_pictures_too_low_are_refused():
    with pytest.raises(
        KitError, match=r"axis-pool reads 0 or 13 side rows, got 12: set frontend\.extra_rows"
    ):
        network_of(InputShape(1, 64, n_extra_rows=12))
    with pytest.raises(KitError, match=r"axis-pool needs at least 8 frequency bins"):
        network_of(InputShape(1, 7, n_extra_rows=13))
