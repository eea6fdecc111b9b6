"""timm backbones: measured strides, local weights or a clear refusal, stems of any channels, never the network."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import build_network, complete_network
from kit.models.network import InputShape
from kit.models.tagger import TaggerCard, build_tagger
from kit.models.timm_backbone import TimmBackbone, TimmConfig, load_pretrained
from kit.train.dataset import Dataset
from kit.train.recipes import find_recipe
from kit.train.run import new_tagger

SMALL = "test_efficientnet.r160_in1k"
FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=32)


def timm_network(channels=1, bins=32, classes=5, warm=True, **settings):
    """A small network whose batch norms have seen something, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(
            {"family": "timm", "name": SMALL, **settings}, InputShape(channels, bins), classes
        )
        with torch.no_grad():
            for _ in range(2 * warm):
                network(torch.randn(8, channels, bins, 64))
    return network.eval()


def noise(*shape, seed=0):
    """Gaussian noise of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weigh_nothing(name, channels=1, bins=128, **settings):
    """A backbone on the meta device: its shapes, and no memory."""
    with torch.device("meta"):
        return TimmBackbone(TimmConfig(name=name, **settings), InputShape(channels, bins))


def millions(module):
    """Parameters in millions, to two digits."""
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file as timm's authors give them: a state dict of three channels and 1000 classes, and its tensors."""
    import timm

    torch.manual_seed(7)
    tensors = timm.create_model(SMALL, pretrained=False).state_dict()
    path = tmp_path_factory.mktemp("pretrained") / "small.pth"
    torch.save(tensors, path)
    return path, tensors


def test_sizes_are_the_published_ones_without_their_classifiers():
    assert millions(weigh_nothing("tf_efficientnet_b0.ns_jft_in1k", 3)) == 4.01
    assert millions(weigh_nothing("rexnet_150.nav_in1k", 3)) == 7.81
    small = [sum(p.numel() for p in weigh_nothing(SMALL, c).parameters()) for c in (1, 2, 3)]
    assert small[1] - small[0] == small[2] - small[1] == 9 * 24
    network = timm_network(classes=5, warm=False)
    assert sum(p.numel() for p in network.parameters()) == small[0] + 5 * 256 + 5


@pytest.mark.parametrize(
    ("name", "width", "stride", "least"),
    [
        ("tf_efficientnet_b0.ns_jft_in1k", 1280, 32, 32),
        ("test_resnet.r160_in1k", 96, 32, 32),
        ("selecsls42", 1280, 64, 64),
        ("inception_v3", 2048, 32, 96),
    ],
)
def test_stride_and_shortest_input_are_what_the_model_shows(name, width, stride, least):
    backbone = weigh_nothing(name)
    assert (*backbone.widths, *backbone.strides, backbone.min_frames) == (width, stride, least)
    assert backbone.channels_last and backbone.training and backbone.model.training


def test_any_length_from_the_shortest_to_ten_times_it_makes_a_map_at_its_stride():
    network = timm_network(2)
    assert (network.stride, network.min_frames) == (32, 32)
    with torch.inference_mode():
        for frames in (32, 33, 63, 64, 97, 150, 255, 320):
            (deepest,) = network.backbone(noise(2, 2, 32, frames)).main
            assert deepest.shape == (2, 256, 1, math.ceil(frames / 32))
            assert bool(network(noise(2, 2, 32, frames)).isfinite().all())


@pytest.mark.parametrize("bins", [32, 50])
def test_stem_stride_1_makes_maps_twice_as_fine_in_frequency_and_time(bins):
    built, fine = timm_network(bins=bins, warm=False), timm_network(bins=bins, warm=False, stem_stride=1)
    fine.load_state_dict(built.state_dict())
    assert (fine.stride, fine.min_frames, built.stride) == (16, 16, 32)
    for frames in (64, 100, 320):
        maps = [network.backbone(noise(1, 1, bins, frames)).main[-1] for network in (built, fine)]
        assert maps[0].shape == (1, 256, math.ceil(bins / 32), math.ceil(frames / 32))
        assert maps[1].shape == (1, 256, math.ceil(bins / 16), math.ceil(frames / 16))
    with pytest.raises(KitError, match="test_convnext has another stem: use None"):
        weigh_nothing("test_convnext", stem_stride=1)


def test_a_clip_does_not_hear_its_batchmates():
    network, specs = timm_network(), noise(9, 1, 32, 90)
    with torch.inference_mode():
        together = network(specs)
        for size in (1, 2, 4):
            parts = torch.cat([network(part) for part in specs.split(size)])
            torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
        others = specs.clone()
        others[1:] = 50.0
        torch.testing.assert_close(network(others)[0], together[0], rtol=1e-5, atol=1e-5)


def test_a_forward_in_bfloat16_and_channels_last_stays_near():
    network, spec = timm_network(), noise(3, 1, 32, 90)
    with torch.inference_mode():
        exact = network(spec)
        network.to(memory_format=torch.channels_last)
        fast = network(spec.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(spec.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-5)
    assert bool(rough.isfinite().all()) and float((rough.float() - exact).abs().max()) < 0.1


def test_a_batch_trains_every_weight():
    network = timm_network().train()
    network(noise(4, 1, 32, 64)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_dropped_paths_differ_in_training_only():
    spec = noise(8, 1, 32, 64)
    kept, dropping = (timm_network(warm=False, name="test_resnet", drop_path=p) for p in (0.0, 0.9))
    for name, parameter in kept.named_parameters():
        if "bn" in name and "weight" in name:
            torch.nn.init.ones_(parameter)  # the last norm of a branch begins at zero
    dropping.load_state_dict(kept.state_dict())
    with torch.no_grad():
        assert torch.equal(dropping(spec), kept(spec))
        kept.backbone.train()
        dropping.backbone.train()
        maps = [network.backbone(spec).main[-1] for network in (kept, kept, dropping)]
    assert torch.equal(maps[0], maps[1]) and not torch.allclose(maps[0], maps[2], atol=1e-3)
    with pytest.raises(KitError, match=r"cannot build 'inception_v3'.*drop_path 0\.5: .*drop_path_rate"):
        weigh_nothing("inception_v3", drop_path=0.5)


def slow_stem(weight, channels):
    """Slow definition: one channel hears the sum; of many, channel c copies c mod 3, scaled to keep the sum's size."""
    out = torch.zeros(weight.shape[0], channels, *weight.shape[2:])
    for c in range(channels):
        sources = range(3) if channels == 1 else [c % 3]
        for source in sources:
            out[:, c] += weight[:, source] * (1 if channels == 1 else 3 / channels)
    return out


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_file_fills_every_tensor_and_its_stem_follows_the_channels(pretrained, channels):
    from timm.models import adapt_input_conv

    path, tensors = pretrained
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(channels, 32))
    load_pretrained(backbone, path)
    state = backbone.model.state_dict()
    stem = state.pop("conv_stem.weight")
    torch.testing.assert_close(stem, slow_stem(tensors["conv_stem.weight"], channels))
    torch.testing.assert_close(stem, adapt_input_conv(channels, tensors["conv_stem.weight"]))
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    assert set(tensors) - set(state) == {"conv_stem.weight", "classifier.weight", "classifier.bias"}


def test_other_kinds_of_files_fill_the_same(pretrained, tmp_path):
    from safetensors.torch import save_file

    path, tensors = pretrained
    one = TimmBackbone(TimmConfig(name=SMALL), InputShape(3, 32))
    load_pretrained(one, path)
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}, tmp_path / "b.pth")
    headless = {n: t for n, t in tensors.items() if "classifier" not in n and "num_batches" not in n}
    torch.save(headless, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pth", "c.pt"):
        other = TimmBackbone(TimmConfig(name=SMALL), InputShape(3, 32))
        load_pretrained(other, tmp_path / name)
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_a_file_of_another_model_is_refused_with_both_names_and_the_share(pretrained, tmp_path):
    import timm

    _, tensors = pretrained
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    needed = [name for name in backbone.model.state_dict() if "num_batches" not in name]
    wide = {n: torch.cat([t, t]) if n == "conv_head.weight" else t for n, t in tensors.items()}
    files = {
        "resnet.pth": (timm.create_model("test_resnet", pretrained=False).state_dict(), r"e\.g\. conv1"),
        "deeper.pth": ({**tensors, "blocks.9.0.conv_pw.weight": torch.ones(3)}, "1 others, e.g. blocks.9.0"),
        "wide.pth": (wide, r"0 others, e\.g\. conv_head\.weight"),
        "half.pth": ({n: t for n, t in tensors.items() if "bn" not in n}, "0 others"),
    }
    for name, (content, says) in files.items():
        torch.save(content, tmp_path / name)
        fits = sum(
            n in content and (content[n].shape == tensors[n].shape or n == "conv_stem.weight") for n in needed
        )
        share = rf"fills {fits} of its {len(needed)} tensors \({fits / len(needed):.0%}\)"
        with pytest.raises(KitError, match=share) as caught:
            load_pretrained(backbone, tmp_path / name)
        assert caught.match(rf"{name} is no file of {SMALL}") and caught.match(says)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


class Executable:
    """An object whose unpickling would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_that_is_none_of_tensors_is_refused_and_never_executed(tmp_path):
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32))
    torch.save({"conv_stem.weight": Executable(tmp_path / "written")}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "text.pth", "text.safetensors", "list.pth"):
        with pytest.raises(KitError, match=rf"{name} cannot be read as tensors"):
            load_pretrained(backbone, tmp_path / name)
    assert not (tmp_path / "written").exists()
    with pytest.raises(KitError, match=r"no pretrained file .*none\.pth: attach it"):
        load_pretrained(backbone, tmp_path / "none.pth")


def timm_card(**settings):
    """A card of a small timm tagger of two classes."""
    network = complete_network({"family": "timm", "name": SMALL, **settings})
    return TaggerCard(classes=("a", "b"), prevalences=(0.5, 0.5), frontend=FRONTEND, network=network)


def test_a_checkpoint_loads_where_its_pretrained_file_is_not(pretrained, tmp_path):
    path, tensors = pretrained
    copy = tmp_path / "copy.pth"
    copy.write_bytes(path.read_bytes())
    tagger = build_tagger(timm_card(weights=str(copy), stem_stride=1), start=True).eval()
    own = tagger.network.backbone.model.state_dict()
    assert torch.equal(own["conv_head.weight"], tensors["conv_head.weight"])
    save_tagger(tmp_path / "tagger.pt", tagger)
    copy.unlink()
    loaded = load_tagger(tmp_path / "tagger.pt")
    wave = 0.1 * noise(2, 16000)
    with torch.inference_mode():
        assert torch.equal(loaded(wave), tagger(wave))
    assert loaded.network.stride == 16 and loaded.min_frames == 16
    with pytest.raises(KitError, match=r"copy\.pth: attach it"):
        build_tagger(timm_card(weights=str(copy)), start=True)


def test_training_starts_from_the_file(pretrained):
    path, tensors = pretrained
    settings = {"family": "timm", "name": SMALL, "weights": str(path)}
    recipe = replace(find_recipe("max-pyramid-mel"), network=complete_network(settings), frontend=FRONTEND)
    truth = np.float32([[0, 1], [1, 0]])
    data = Dataset(("x", "y"), ("a", "b"), truth, np.ones(2), np.full(2, ""), truth, np.arange(2), {}, {}, {})
    one, two = (new_tagger(recipe, data, fold).network for fold in (0, 1))
    for network in (one, two):
        assert torch.equal(network.backbone.model.conv_head.weight, tensors["conv_head.weight"])
    assert not torch.equal(one.head.classifier[1].weight, two.head.classifier[1].weight)


def test_nothing_reaches_for_the_network(pretrained, calls_out):
    settings = {"family": "timm", "name": SMALL, "weights": str(pretrained[0])}
    build_network(settings, InputShape(1, 32), 2, start=True)
    for name in ("hf-hub:timm/test_efficientnet.r160_in1k", "hf_hub:a/b", "local-dir:/x", "timm/resnet18"):
        with pytest.raises(KitError, match="timm has no model"):
            weigh_nothing(name)
    assert not calls_out


def test_names_that_timm_does_not_know_bring_the_near_ones():
    with pytest.raises(KitError, match=r"no model 'rexnet_15O'; near are: .*rexnet_150"):
        weigh_nothing("rexnet_15O")
    with pytest.raises(KitError, match=r"'rexnet_150\.nav'.*Its pretrained forms: rexnet_150\.nav_in1k"):
        weigh_nothing("rexnet_150.nav")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_tiny_patch16_224", "refuses a picture of 128 x 4096"),
        ("test_vit", r"makes \(1, 2049, 64\) of"),
        ("test_mambaout", r"makes \(1, 4, 128, \d+\) of"),
    ],
)
def test_models_of_one_size_of_tokens_or_channels_last_are_refused(name, says):
    with pytest.raises(KitError, match=f"{name} {says}.*take a convolutional model"):
        weigh_nothing(name)


def test_too_few_bins_and_side_rows_are_refused():
    with pytest.raises(KitError, match=r"inception_v3 refuses a picture of 20 x 4096.*or more bins"):
        weigh_nothing("inception_v3", bins=20)
    with pytest.raises(KitError, match="timm reads 0 side rows, got 13"):
        TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32, n_extra_rows=13))


def test_without_timm_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(KitError, match=r"timm cannot be imported.*pip install timm"):
        weigh_nothing(SMALL)


def test_settings_are_complete_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert complete_network({"family": "timm"}) == {"family": "timm", **TimmConfig().to_dict()}
    with pytest.raises(KitError, match="stem_stride is 2"):
        TimmConfig(stem_stride=2)
