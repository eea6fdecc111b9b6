'''Skip-attention: published size, order of the skips, attention by definition, no frame lost at odd ends.'''

import math

import pytest
import torch

from kit.core.errors import KitError
from kit.models.backbones import ChannelAttention, SpatialAttention
from kit.models.families import build_network, read_network
from kit.models.network import InputShape

SMALL = InputShape(3, 20)


def build_small(shape=SMALL, **settings):
    '''A small network of five classes in evaluation mode whose batch norms have run.'''
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network({'family': 'skip-attention', 'width': 4, **settings}, shape, 5)
        with torch.no_grad():
            for seed in range(2):
                network.train().outputs(noise(8, 40, seed))
    return network.eval()


def noise(clips=2, frames=41, seed=0):
    '''Noise in the small shape. Shape: -> (clips, 3, 20, frames)'''
    return torch.randn(clips, 3, 20, frames, generator=torch.Generator().manual_seed(seed))


def count_weights(**head):
    '''Weights of the network at its published width, for three channels and 80 classes.'''
    with torch.device('meta'):
        network = build_network({'family': 'skip-attention', 'head': head}, InputShape(3, 128), 80)
    return sum(p.numel() for p in network.parameters())


def slow_count(hidden, width=64, channels=3, classes=80):
    '''Slow definition: the weights of every layer, added up.'''
    total, before, deep = 0, channels, 8 * width
    for k in range(4):
        w = width * 2**k
        total += 9 * before * w + 2 * w + 9 * w * w + 2 * w
        total += 9 * w * deep + 2 * deep if k < 3 else 0
        before = w
    total += 2 * (4 * deep) * (4 * deep // 16) + 2 * 7 * 7
    total += 9 * 4 * deep * deep + 2 * deep
    head = deep * hidden + hidden + 1 + 2 * hidden + hidden * classes + classes
    return total + 4 * head


def test_the_network_has_its_published_size():
    assert count_weights() == slow_count(128) == 17_022_310
    assert count_weights(hidden=256) == slow_count(256) == 17_326_950
    recurrence = 2 * 4 * (512 * 512 + 512 * 512 + 512 + 512) + 1024 * 512 + 512
    assert count_weights(recurrent='lstm', recurrent_width=512, embedding=512) - count_weights() == recurrence


@pytest.mark.parametrize('frames', [1, 15, 16, 17, 31, 33, 48, 100])
def test_maps_of_any_length_fit_together(frames):
    main, skips = build_small().backbone(noise(2, frames))
    assert [x.shape for x in (*main, *skips)] == [(2, 32, 2, math.ceil(frames / 16))] * 4


def test_auxiliary_maps_are_the_skips_from_the_deepest_to_the_first():
    backbone = build_small().backbone
    x = noise()
    skips = []
    with torch.inference_mode():
        for k in range(3):
            x = backbone.blocks[k](x)
            skips.append(backbone.skips[k](x))
        merged = backbone.merge(torch.cat([backbone.blocks[3](x), *skips], dim=1))
        main, auxiliary = backbone(noise())
    assert torch.equal(main[0], merged)
    assert all(torch.equal(a, b) for a, b in zip(auxiliary, skips[::-1], strict=True))


def test_each_skip_has_a_plain_mean_head_of_its_own():
    network = build_small(head={'pool': 'attention', 'hidden': 6})
    with torch.inference_mode():
        auxiliary = network.outputs(noise()).auxiliary
        maps = network.backbone(noise()).auxiliary
        for logits, head, x in zip(auxiliary, network.auxiliary_heads, maps, strict=True):
            torch.testing.assert_close(logits, head.classifier(x.mean((2, 3))))
    assert len(auxiliary) == 3


def test_channel_attention_agrees_with_its_definition():
    torch.manual_seed(0)
    attention, x = ChannelAttention(8, 2), torch.randn(2, 8, 3, 5)
    narrow, widen = (attention.mlp[i].weight.detach() for i in (0, 2))
    assert narrow.shape == (4, 8) and widen.shape == (8, 4)
    slow = torch.empty_like(x)
    for b in range(2):
        score = torch.zeros(8)
        for pooled in (x[b].flatten(1).mean(1), x[b].flatten(1).max(1).values):
            score += widen @ (narrow @ pooled).clamp(min=0)
        for d in range(8):
            slow[b, d] = x[b, d] / (1 + math.exp(-score[d]))
    torch.testing.assert_close(attention(x), slow)


def test_spatial_attention_agrees_with_its_definition():
    torch.manual_seed(0)
    attention, x = SpatialAttention(), torch.randn(1, 6, 4, 9)
    kernel = attention.conv.weight.detach()[0]
    slow = torch.empty_like(x)
    for m in range(4):
        for n in range(9):
            score = 0.0
            for i in range(max(0, m - 3), min(4, m + 4)):
                for j in range(max(0, n - 3), min(9, n + 4)):
                    of_mean, of_max = kernel[:, i - m + 3, j - n + 3]
                    score += float(of_mean * x[0, :, i, j].mean() + of_max * x[0, :, i, j].max())
            slow[0, :, m, n] = x[0, :, m, n] / (1 + math.exp(-score))
    torch.testing.assert_close(attention(x), slow)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cells_cut_short_by_an_edge_average_what_they_hold(layout, dtype):
    x = torch.randn(1, 2, 5, 11).to(dtype).contiguous(memory_format=layout)
    pooled = build_small().backbone.skips[1][0](x)
    assert pooled.shape == (1, 2, 2, 3)
    for m in range(2):
        for n in range(3):
            cell = x[:, :, 4 * m : 4 * m + 4, 4 * n : 4 * n + 4].float().mean((2, 3))
            torch.testing.assert_close(pooled[:, :, m, n].float(), cell, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('frames', [17, 31, 33, 41])
def test_an_odd_last_frame_changes_every_map(frames):
    backbone, spec = build_small().backbone, noise(1, frames)
    louder = spec.clone()
    louder[..., -1] += 30.0
    with torch.inference_mode():
        before, after = backbone(spec), backbone(louder)
    for a, b in zip((*before.main, *before.auxiliary), (*after.main, *after.auxiliary), strict=True):
        assert float((a[..., -1] - b[..., -1]).abs().max()) > 1e-3


def test_convolutions_start_from_the_published_initialisation():
    backbone = build_network({'family': 'skip-attention', 'width': 32}, InputShape(3, 64), 5).backbone
    for conv in (layer for layer in backbone.modules() if isinstance(layer, torch.nn.Conv2d)):
        fan_in = conv.weight[0].numel()
        assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.2)


def test_a_part_of_the_heads_settings_leaves_the_others():
    _, config = read_network({'family': 'skip-attention', 'head': {'hidden': 256}})
    assert (config.head.hidden, config.head.pool, config.head.dropout) == (256, 'mean', 0.2)


def test_too_few_bins_and_extra_rows_are_refused():
    with pytest.raises(KitError, match=r'skip-attention needs at least 16 frequency bins.*got 15: raise n_mels'):
        build_small(InputShape(3, 15))
    with pytest.raises(KitError, match=r'reads 0 extra rows, got 13: set frontend\.extra_rows to \[\]'):
        build_small(InputShape(3, 32, n_extra_rows=13))
