"""Skip-attention: its published size, its skips in their order, attention by definition, nothing lost at odd ends."""

import math

import pytest
import torch

from kit.core.errors import KitError
from kit.models.families import build_network, read_network
from kit.models.network import InputShape, receptive_field
from kit.models.skip_attention import ChannelAttention, SpatialAttention, mean_pool

SMALL = InputShape(3, 20)


def network_of(picture=SMALL, classes=5, **settings):
    """A network in evaluation mode whose norms have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network({"family": "skip-attention", "width": 4, **settings}, picture, classes)
        with torch.no_grad():
            for seed in range(2):
                network.train().outputs(picture_noise(8, 40, seed))
    return network.eval()


def picture_noise(clips=2, frames=41, seed=0):
    """Noise in the shape of the small picture. Shape: -> (clips, 3, 20, frames)"""
    return torch.randn(clips, 3, 20, frames, generator=torch.Generator().manual_seed(seed))


def count_of(**head):
    """Weights of the network at its published width, for three channels and 80 classes."""
    with torch.device("meta"):
        network = build_network({"family": "skip-attention", "head": head}, InputShape(3, 128), 80)
    return sum(p.numel() for p in network.parameters())


def count_by_hand(hidden, width=64, channels=3, classes=80):
    """Slow definition: weights of every layer of the published network, added up."""
    total, last, deep = 0, channels, 8 * width
    for k in range(4):
        w = width * 2**k
        total += 9 * last * w + 2 * w + 9 * w * w + 2 * w
        total += 9 * w * deep + 2 * deep if k < 3 else 0
        last = w
    total += 2 * (4 * deep) * (4 * deep // 16) + 2 * 7 * 7
    total += 9 * 4 * deep * deep + 2 * deep
    head = deep * hidden + hidden + 1 + 2 * hidden + hidden * classes + classes
    return total + 4 * head


def test_the_published_size_is_17_02_million():
    assert count_of() == count_by_hand(128) == 17_022_310
    assert count_of(hidden=256) == count_by_hand(256)
    assert round(count_of(hidden=256) / 1e6, 2) == 17.33


def test_the_recurrent_variant_adds_its_recurrence_to_the_clips_head_alone():
    added = count_of(recurrent="lstm", recurrent_width=512, embedding=512) - count_of()
    assert added == 2 * 4 * (512 * 512 + 512 * 512 + 512 + 512) + 1024 * 512 + 512


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 31, 33, 47, 48, 100])
def test_maps_of_any_length_fit_together(frames):
    main, skips = network_of().backbone(picture_noise(2, frames))
    assert [m.shape for m in (*main, *skips)] == [(2, 32, 2, math.ceil(frames / 16))] * 4


def test_skips_come_from_the_deepest_to_the_first():
    backbone, spec = network_of().backbone, picture_noise()
    with torch.inference_mode():
        x, by_hand = spec, []
        for block, skip in zip(backbone.blocks, backbone.skips, strict=False):
            x = block(x)
            by_hand.append(skip(x))
        auxiliary = backbone(spec).auxiliary
        merged = backbone.merge(torch.cat([backbone.blocks[3](x), *by_hand], dim=1))
        assert torch.equal(backbone(spec).main[0], merged)
    assert all(torch.equal(a, b) for a, b in zip(auxiliary, by_hand[::-1], strict=True))


def test_each_skip_has_a_classifier_of_the_heads_form():
    network, spec = network_of(head={"pool": "attention", "hidden": 6}), picture_noise()
    with torch.inference_mode():
        said, maps = network.outputs(spec), network.backbone(spec)
        assert len(said.auxiliary) == 3
        for logits, head, skip in zip(said.auxiliary, network.auxiliary_heads, maps.auxiliary, strict=True):
            torch.testing.assert_close(logits, head.classifier(skip.mean((2, 3))))


def test_channel_attention_agrees_with_its_definition():
    torch.manual_seed(0)
    attention, x = ChannelAttention(8, 2), torch.randn(2, 8, 3, 5)
    first, last = (attention.look[i].weight.detach() for i in (0, 2))
    assert first.shape == (4, 8) and last.shape == (8, 4)
    slow = torch.empty_like(x)
    for b in range(2):
        heard = torch.zeros(8)
        for pooled in (x[b].flatten(1).mean(1), x[b].flatten(1).max(1).values):
            heard += last @ (first @ pooled).clamp(min=0)
        for d in range(8):
            slow[b, d] = x[b, d] / (1 + math.exp(-heard[d]))
    torch.testing.assert_close(attention(x), slow)


def test_place_attention_agrees_with_its_definition():
    torch.manual_seed(0)
    attention, x = SpatialAttention(), torch.randn(1, 6, 4, 9)
    kernel, slow = attention.look.weight.detach()[0], torch.empty_like(x)
    for m in range(4):
        for n in range(9):
            heard = 0.0
            for i in range(4):
                for j in range(9):
                    if abs(i - m) <= 3 and abs(j - n) <= 3:
                        cell = kernel[:, i - m + 3, j - n + 3]
                        heard += float(cell[0] * x[0, :, i, j].mean() + cell[1] * x[0, :, i, j].max())
            slow[0, :, m, n] = x[0, :, m, n] / (1 + math.exp(-heard))
    torch.testing.assert_close(attention(x), slow)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cells_cut_short_by_an_end_are_means_of_what_they_hold(layout, dtype):
    x = torch.randn(1, 2, 5, 11).to(dtype).contiguous(memory_format=layout)
    pooled = mean_pool(4)(x)
    assert pooled.shape == (1, 2, 2, 3)
    for m in range(2):
        for n in range(3):
            cell = x[:, :, 4 * m : 4 * m + 4, 4 * n : 4 * n + 4].float().mean((2, 3))
            torch.testing.assert_close(pooled[:, :, m, n].float(), cell, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("frames", [17, 31, 33, 41])
def test_the_odd_last_frame_is_heard_by_every_map(frames):
    backbone, spec = network_of().backbone, picture_noise(1, frames)
    louder = spec.clone()
    louder[..., -1] += 30.0
    with torch.inference_mode():
        main, skips = (zip(a, b, strict=True) for a, b in zip(backbone(louder), backbone(spec), strict=True))
    assert all(float((a[..., -1] - b[..., -1]).abs().max()) > 1e-3 for a, b in (*main, *skips))


def test_every_step_hears_all_of_the_input():
    backbone, spec = network_of().backbone, picture_noise(1, 640)
    louder = spec.clone()
    louder[..., 0] += 30.0
    with torch.inference_mode():
        moved = backbone(louder).main[0][..., -1] - backbone(spec).main[0][..., -1]
    assert float(moved.abs().max()) > 1e-6
    assert receptive_field(backbone, SMALL) is None


def test_convolutions_start_as_the_winner_had_them():
    backbone = build_network({"family": "skip-attention", "width": 32}, InputShape(3, 64), 5).backbone
    for convolution in (m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)):
        fan_in = convolution.weight[0].numel()
        assert float(convolution.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.2)


def test_part_of_the_heads_settings_leaves_the_others():
    _, config = read_network({"family": "skip-attention", "head": {"hidden": 256}})
    assert (config.head.hidden, config.head.pool, config.head.dropout) == (256, "mean", 0.2)


def test_a_picture_that_is_too_low_or_has_side_rows_is_refused():
    with pytest.raises(KitError, match=r"skip-attention needs at least 16 frequency bins.*got 15"):
        network_of(InputShape(3, 15))
    with pytest.raises(
        KitError, match=r"skip-attention reads 0 side rows, got 13: set frontend\.extra_rows to \[\]"
    ):
        network_of(InputShape(3, 32, n_extra_rows=13))
