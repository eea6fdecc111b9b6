"""freq-crop: each class hears its own band and nothing else, in both forms, as a slow loop over classes says."""

import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import build_backbone, build_network, complete_network, read_network
from kit.models.freq_crop import FreqCropConfig
from kit.models.heads import POOLS
from kit.models.network import InputShape
from kit.models.tagger import TaggerCard, build_tagger, input_shape

PYRAMID = {"family": "max-pyramid", "blocks": 3, "width": 6, "growth": 1.5}
BANDS = ((0.0, 350.0), (400.0, 850.0), (400.0, 850.0), (1210.0, 1245.0), (880.0, 4000.0))
CLASSES, BINS = len(BANDS), 40
HZ = tuple(50.0 * (i + 1) for i in range(BINS))


def freq_crop(form="crops", pool="positive-mean", bins=BINS, warm=True, backbone=PYRAMID, **settings):
    """A small network in evaluation mode whose batch norms have seen something; five classes."""
    full = {"family": "freq-crop", "form": form, "backbone": backbone, "head": {"pool": pool}, **settings}
    if form == "pooled":
        full.setdefault("bands_hz", BANDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shown = InputShape(2, bins, bin_hz=HZ[:bins], bands=CLASSES if form == "crops" else 1)
        network = build_network(full, shown, CLASSES)
        with torch.no_grad():
            for _ in range(3 * warm):
                network(torch.randn(6, 2, bins, 40))
    return network.eval()


def noise(*shape, seed=0):
    """Gaussian noise of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_pool(name, rows):
    """Slow definition: what a pool says of the rows (D, M', N') of one clip and class."""
    flat = rows.flatten(1)
    positive = torch.stack([r[r > 0].mean() if bool((r > 0).any()) else torch.tensor(0.0) for r in flat])
    powers = flat.double().clamp(min=1e-6).pow(3).mean(1).pow(1 / 3).float()
    return {
        "mean": flat.mean(1), "max": flat.amax(1), "mean-max": torch.cat([flat.mean(1), flat.amax(1)]),
        "time-max": rows.mean(1).amax(1), "positive-mean": positive, "gem": powers,
    }[name]  # fmt: skip


def own_layer(head, k, pooled):
    """Class k's own output layer."""
    weight, bias = head.classifier.parameters()
    return float((weight[k] * pooled).sum() + bias[k])


def slow_rows(band, bins, rows):
    """Slow definition: the rows of the map whose share of the picture touches a row inside the band."""
    centres = HZ[:bins]
    inside = [i for i in range(bins) if band[0] <= centres[i] <= band[1]]
    if not inside:
        inside = [min(range(bins), key=lambda i: abs(centres[i] - sum(band) / 2))]
    # Row i of the picture is [i, i + 1) / bins of the height, row j of the map [j, j + 1) / rows.
    return [
        j for j in range(rows) if any((i + 1) * rows > j * bins and i * rows < (j + 1) * bins for i in inside)
    ]


@pytest.mark.parametrize("bins", [40, 37])
@pytest.mark.parametrize("pool", [*POOLS, "gem"])
def test_the_pooled_form_is_a_slow_loop_over_classes(pool, bins):
    network, spec = freq_crop("pooled", pool, bins), noise(3, 2, bins, 50)
    with torch.inference_mode():
        deepest = network.backbone(spec).main[-1]
        logits = network(spec)
        for b in range(3):
            for k, band in enumerate(BANDS):
                rows = slow_rows(band, bins, deepest.shape[2])
                pooled = slow_pool(pool, deepest[b][:, rows])
                assert float(logits[b, k]) == pytest.approx(own_layer(network.head, k, pooled), abs=2e-5)


@pytest.mark.parametrize("backbone", [PYRAMID, {**PYRAMID, "dims": 1}], ids=["2-D", "1-D"])
@pytest.mark.parametrize("pool", ["positive-mean", "max", "time-max"])
def test_the_crops_form_is_a_pass_per_class(pool, backbone):
    network, spec = freq_crop("crops", pool, backbone=backbone), noise(3, 2, BINS, 50)
    with torch.inference_mode():
        logits = network(spec)
        for k in range(CLASSES):
            deepest = network.backbone.inner(spec[:, :, k * 8 : (k + 1) * 8]).main[-1]
            deepest = deepest if deepest.ndim == 4 else deepest.unsqueeze(2)
            said = [own_layer(network.head, k, slow_pool(pool, clip)) for clip in deepest]
            torch.testing.assert_close(logits[:, k], torch.tensor(said), rtol=1e-4, atol=2e-5)


def test_a_class_does_not_hear_outside_its_band_in_the_crops_form():
    network, spec = freq_crop("crops"), noise(2, 2, BINS, 50)
    with torch.inference_mode():
        before = network(spec)
        for k in range(CLASSES):
            others = noise(2, 2, BINS, 50, seed=5) * 9
            others[:, :, k * 8 : (k + 1) * 8] = spec[:, :, k * 8 : (k + 1) * 8]
            after = network(others)
            assert torch.equal(after[:, k], before[:, k])
            assert bool((after != before).any(dim=0)[[c for c in range(CLASSES) if c != k]].all())


def test_a_class_trains_its_own_layer_and_rows_only_in_the_pooled_form():
    network = freq_crop("pooled", "mean", noisy_head=True)
    network.backbone.register_forward_hook(
        lambda _, __, maps: maps.main[-1].retain_grad() or found.append(maps)
    )
    found = []
    network(noise(1, 2, BINS, 50))[0, 1].backward()
    slope = found[0].main[-1].grad.abs().sum((0, 1, 3))
    assert slope.nonzero().flatten().tolist() == slow_rows(BANDS[1], BINS, 5) == [0, 1, 2]
    weight, bias = network.head.classifier.parameters()
    assert (
        weight.grad.abs().sum(1).nonzero().flatten().tolist() == bias.grad.nonzero().flatten().tolist() == [1]
    )
    assert all(p.grad is None for p in network.noisy_head.parameters())


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_a_clip_does_not_hear_its_batchmates(form):
    network, specs = freq_crop(form), noise(7, 2, BINS, 45)
    with torch.inference_mode():
        together = network(specs)
        for size in (1, 2, 3):
            parts = torch.cat([network(part) for part in specs.split(size)])
            torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
        others = specs.clone()
        others[1:] = 50.0
        torch.testing.assert_close(network(others)[0], together[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_any_length_from_the_shortest_to_ten_times_it_is_heard(form):
    network = freq_crop(form)
    assert (network.stride, network.min_frames, network.channels_last) == (8, 8, True)
    with torch.inference_mode():
        for frames in (8, 9, 15, 16, 33, 64, 79, 80):
            logits = network(noise(2, 2, BINS, frames))
            assert logits.shape == (2, CLASSES) and bool(logits.isfinite().all())


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_bfloat16_and_channels_last_stay_near(form):
    network, spec = freq_crop(form), noise(3, 2, BINS, 50)
    with torch.inference_mode():
        exact = network(spec)
        network.to(memory_format=torch.channels_last)
        fast = network(spec.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(spec.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-5)
    assert bool(rough.isfinite().all()) and float((rough.float() - exact).abs().max()) < 0.1


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_a_batch_trains_every_weight_of_both_heads_and_the_noisy_head_is_another(form):
    network = freq_crop(form, noisy_head=True).train()
    said = network.outputs(noise(4, 2, BINS, 40))
    assert said.frames is None and said.auxiliary == () and said.noisy.shape == said.clip.shape
    assert not torch.allclose(said.noisy, said.clip)
    (said.clip + said.noisy).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    network.eval().noisy_head.load_state_dict(network.head.state_dict())
    said = network.outputs(noise(4, 2, BINS, 40))
    assert torch.equal(said.noisy, said.clip)


def test_dropout_acts_in_training_only():
    spec = noise(4, 2, BINS, 40)
    network = freq_crop("pooled", head={"pool": "mean", "dropout": 0.9})
    with torch.no_grad():
        assert torch.equal(network(spec), network(spec))
        network.head.train()
        assert not torch.allclose(network(spec), network(spec))
        network.head.config = FreqCropConfig(head={"pool": "mean", "dropout": 0.0}).head
        assert torch.equal(network(spec), network(spec))


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_spans_of_one_pass_are_pooled_by_the_same_head(form):
    network, spec = freq_crop(form), noise(2, 2, BINS, 50)
    with torch.inference_mode():
        maps = network.backbone(spec)
        logits = network.span_logits(maps, [(0, 50), (8, 24)])
        torch.testing.assert_close(logits[:, 0], network(spec))
        torch.testing.assert_close(logits[:, 1], network.head([maps.main[-1][..., 1:3]]).clip)


def test_the_size_is_the_shared_backbone_and_a_layer_per_class():
    for form, shown in (("crops", InputShape(2, 8)), ("pooled", InputShape(2, BINS))):
        shared = build_backbone(*read_network(PYRAMID), shown, False)
        count = sum(p.numel() for p in shared.parameters()) + CLASSES * (shared.widths[-1] + 1)
        network = freq_crop(form, warm=False)
        assert sum(p.numel() for p in network.parameters()) == count
        twice = freq_crop(form, "mean-max", warm=False)
        assert sum(p.numel() for p in twice.parameters()) == count + CLASSES * shared.widths[-1]


@pytest.mark.parametrize("form", ["crops", "pooled"])
def test_building_draws_the_shared_backbone_then_the_layers_and_nothing_else(form):
    torch.manual_seed(0)
    shared = build_backbone(*read_network(PYRAMID), InputShape(2, 8 if form == "crops" else BINS), False)
    layers = [torch.nn.Linear(shared.widths[-1], CLASSES).weight for _ in range(2)]
    network = freq_crop(form, warm=False, noisy_head=True)
    for layer, head in zip(layers, (network.head, network.noisy_head), strict=True):
        assert torch.equal(layer, head.classifier[1].weight)


def test_the_published_network_is_efficientnet_b0_under_24_layers():
    with torch.device("meta"):
        network = build_network({"family": "freq-crop"}, InputShape(1, 24 * 32, bands=24), 24)
    backbone = 4007548 - 2 * 9 * 32
    assert sum(p.numel() for p in network.parameters()) == backbone + 24 * (1280 + 1)
    assert (network.stride, network.min_frames) == (32, 32)


def test_settings_are_completed_and_checked_with_those_of_the_backbone():
    full = complete_network({"family": "freq-crop", "backbone": {"family": "max-pyramid", "width": 7}})
    assert complete_network(full) == full
    assert full["head"]["pool"] == "positive-mean" and full["form"] == "crops"
    shared = complete_network({"family": "max-pyramid", "width": 7})
    assert full["backbone"] == {name: shared[name] for name in shared if name not in ("head", "noisy_head")}
    assert complete_network({"family": "freq-crop"})["backbone"]["name"] == "tf_efficientnet_b0.ns_jft_in1k"
    pooled = complete_network({"family": "freq-crop", "form": "pooled", "bands_hz": [[1, 2], [3.5, 9]]})
    assert pooled["bands_hz"] == [[1.0, 2.0], [3.5, 9.0]] and complete_network(pooled) == pooled
    with pytest.raises(KitError, match=r"no setting 'widht': did you mean 'width'"):
        complete_network({"family": "freq-crop", "backbone": {"family": "max-pyramid", "widht": 7}})
    with pytest.raises(KitError, match="unknown network family 'max_pyramid'"):
        complete_network({"family": "freq-crop", "backbone": {"family": "max_pyramid"}})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bands_hz": ((1.0, 2.0),)}, "bands_hz is of form=pooled"),
        ({"form": "pooled", "bands_hz": ((2.0, 2.0),)}, r"pairs of low < high in hertz, got \(2\.0, 2\.0\)"),
        ({"form": "pooled", "bands_hz": ((2.0,),)}, r"pairs of low < high in hertz, got \(2\.0,\)"),
        ({"head": {"pool": "attention"}}, "no attention"),
        ({"head": {"hidden": 3}}, r"head\.hidden=0"),
        ({"head": {"hidden": None}}, r"head\.hidden=0"),
        ({"head": {"recurrent": "gru"}}, r"head\.recurrent=None"),
        ({"backbone": {"family": "freq-crop"}}, "another family without head"),
        ({"backbone": {"family": "timm", "head": {"pool": "max"}}}, "another family without head"),
        ({"form": "croped"}, "did you mean 'crops'"),
    ],
)
def test_settings_that_contradict_each_other_say_the_cure(settings, says):
    with pytest.raises(KitError, match=says):
        FreqCropConfig(**settings)


@pytest.mark.parametrize(
    ("form", "picture", "says"),
    [
        ("crops", InputShape(1, 40), r"frontend\.bands_hz with a band for each of 5 classes, got 1"),
        ("crops", InputShape(1, 40, bands=10), r"a band for each of 5 classes, got 10"),
        (
            "crops",
            InputShape(1, 20, bands=5),
            "max-pyramid needs at least 8 frequency bins with these settings, got 4",
        ),
        ("crops", InputShape(1, 40, n_extra_rows=13), "freq-crop reads 0 side rows, got 13"),
        ("pooled", InputShape(1, 40), r"rising frequencies of all rows: no frontend\.bands_hz"),
        ("pooled", InputShape(1, 40, bin_hz=HZ[:39]), "rising frequencies of all rows"),
        ("pooled", InputShape(1, 40, bin_hz=HZ[:20] * 2), "rising frequencies of all rows"),
    ],
)
def test_pictures_that_hold_no_bands_are_refused(form, picture, says):
    bands = BANDS if form == "pooled" else ()
    with pytest.raises(KitError, match=says):
        build_network(
            {"family": "freq-crop", "form": form, "backbone": PYRAMID, "bands_hz": bands}, picture, 5
        )


def test_bands_and_classes_must_be_as_many_and_the_map_must_have_rows():
    pooled = {"family": "freq-crop", "form": "pooled", "bands_hz": BANDS, "backbone": PYRAMID}
    with pytest.raises(KitError, match="a band for each of 4 classes, got 5"):
        build_network(pooled, InputShape(1, BINS, bin_hz=HZ), 4)
    flat = {**pooled, "backbone": {**PYRAMID, "dims": 1}}
    with pytest.raises(KitError, match="a backbone whose map has rows of frequency"):
        build_network(flat, InputShape(1, BINS, bin_hz=HZ), 5)


FRONTENDS = {
    "crops": FrontendConfig(sample_rate=8000, n_fft=512, hop_length=128, n_mels=8, bands_hz=BANDS[:3]),
    "pooled": FrontendConfig(sample_rate=8000, n_fft=512, hop_length=128, n_mels=32),
}


@pytest.mark.parametrize("form", FRONTENDS)
def test_a_checkpoint_comes_back_as_it_was(form, tmp_path):
    bands = {"bands_hz": BANDS[:3]} if form == "pooled" else {}
    settings = complete_network({"family": "freq-crop", "form": form, "backbone": PYRAMID, **bands})
    card = TaggerCard(
        classes=("a", "b", "c"), prevalences=(0.5,) * 3, frontend=FRONTENDS[form], network=settings
    )
    tagger = build_tagger(card).eval()
    save_tagger(tmp_path / "tagger.pt", tagger)
    loaded = load_tagger(tmp_path / "tagger.pt")
    wave = 0.1 * noise(2, 16000)
    with torch.inference_mode():
        assert torch.equal(loaded(wave), tagger(wave))
    assert loaded.card == card


@pytest.mark.parametrize("form", FRONTENDS)
def test_a_tone_lies_in_the_rows_of_the_class_whose_band_holds_it(form):
    bands = ((200.0, 700.0), (1500.0, 3000.0), (0.0, 4000.0))
    values = {**FRONTENDS[form].to_dict(), "bands_hz": bands if form == "crops" else ()}
    settings = {"family": "freq-crop", "form": form, "backbone": PYRAMID}
    card = TaggerCard(
        classes=("low", "high", "both"), prevalences=(0.5,) * 3, frontend=FrontendConfig(**values),
        network=settings | ({"bands_hz": bands} if form == "pooled" else {}),
    )  # fmt: skip
    tagger = build_tagger(card)
    seconds = torch.arange(8000) / 8000
    for k, hz in enumerate((400.0, 2500.0)):
        spec = tagger.frontend(torch.sin(2 * torch.pi * hz * seconds)[None])[0, 0].mean(1)
        peaks = [float(spec[first:end].amax()) for first, end in tagger.network.head.bands]
        assert peaks[k] > peaks[1 - k] + 20 and peaks[2] > peaks[1 - k] + 20


def test_a_resized_picture_tells_no_frequencies():
    assert input_shape(FrontendConfig(image_size=(64, 64))).bin_hz == ()
    side = input_shape(FrontendConfig(extra_rows=("wave_stats", "clip_length")))
    assert side == InputShape(1, 128, 13, tuple(FrontendConfig().bin_hz))


def test_the_pretrained_file_of_the_backbone_is_read_where_training_starts(tmp_path):
    import timm

    name = "test_efficientnet.r160_in1k"
    tensors = timm.create_model(name, pretrained=False).state_dict()
    torch.save(tensors, tmp_path / "small.pth")
    settings = {"family": "freq-crop", "backbone": {"family": "timm", "name": name}}
    settings["backbone"]["weights"] = str(tmp_path / "small.pth")
    heads = [
        build_network(settings, InputShape(1, 64, bands=2), 2, start).backbone.inner.model.conv_head.weight
        for start in (True, False)
    ]
    assert torch.equal(heads[0], tensors["conv_head.weight"]) and not torch.equal(heads[1], heads[0])
