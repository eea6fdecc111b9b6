"""A checkpoint is tensors and JSON: it comes back whole, and a file from elsewhere runs nothing."""

import contextlib
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.labels.calibration import Calibration
from kit.models.checkpoint import (
    FORMAT,
    content_digest,
    find_checkpoints,
    load_tagger,
    open_checkpoint,
    save_tagger,
    wrap_network,
)
from kit.models.tagger import Tagger, TaggerCard, build_tagger

FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16)
CLASSES = ("Bark", "Größe, tief", "音")
PYRAMID = {"family": "max-pyramid", "blocks": 2, "width": 4}


def small_card(**changes):
    """A card whose every setting differs from its default."""
    settings = {
        "classes": CLASSES,
        "prevalences": (0.1, 0.25, 1 / 3),
        "frontend": FRONTEND,
        "inference": InferenceConfig(mode="windows", window_s=1.0, hop_s=0.25, pool="snr", pool_k=2),
        "network": PYRAMID,
        "min_frames": 3,
        "output": "ranking",
        "calibration": Calibration(scale=1.7, offset=-0.3),
        "fold": 2,
        "held_out": "abc",
        "seed": 5,
        "oof_score": 0.8125,
        "cost": 0.0017,
        "cost_device": "cpu",
        "recipe": {"name": "own", "epochs": 3},
    }
    return TaggerCard(**(settings | changes))


def small_tagger(**changes):
    """A small tagger in evaluation mode whose batch norms are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tagger = build_tagger(small_card(**changes))
        with torch.no_grad():
            for tensor in tagger.network.state_dict().values():
                tensor.add_(torch.rand(tensor.shape).to(tensor.dtype))
    return tagger.eval()


def waves():
    """Noise. Shape: -> (3, 4000)"""
    return 0.1 * torch.randn(3, 4000, generator=torch.Generator().manual_seed(1))


def content_of(tagger, **changes):
    """What a checkpoint file holds, with parts replaced and the digest of what it then holds."""
    card = json.dumps(tagger.card.to_dict())
    content = {"format": FORMAT, "card": card, "tensors": tagger.network.state_dict()} | changes
    with contextlib.suppress(AttributeError):  # what holds no tensors has no digest
        content["digest"] = content_digest(content["card"], content["tensors"])
    return content


def error_of(path, networks=None):
    """The one line that refuses a file; it names the file."""
    with pytest.raises(KitError) as caught:
        load_tagger(path, networks)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


class CustomNetwork(nn.Module):
    """A network that is not of the kit's families."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(16, classes)

    def forward(self, spec):
        return self.head(spec.mean(dim=(1, 3)))


def test_a_tagger_comes_back_with_every_weight_and_its_whole_card(tmp_path):
    tagger = small_tagger()
    save_tagger(tmp_path / "a.pt", tagger)
    loaded = load_tagger(tmp_path / "a.pt")
    assert loaded.card == tagger.card and loaded.min_frames == tagger.min_frames == 4
    assert not loaded.network.training
    state, loaded_state = tagger.network.state_dict(), loaded.network.state_dict()
    assert list(state) == list(loaded_state)
    for name, tensor in state.items():
        assert torch.equal(tensor, loaded_state[name]) and tensor.dtype == loaded_state[name].dtype, name
    with torch.inference_mode():
        logits = tagger(waves())
        assert torch.equal(loaded(waves()), logits)
    torch.testing.assert_close(loaded.probabilities(logits), torch.sigmoid(1.7 * logits - 0.3))


def test_a_checkpoint_is_read_once_and_built_as_often_as_needed(tmp_path, monkeypatch):
    save_tagger(tmp_path / "a.pt", small_tagger())
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    monkeypatch.setattr(TaggerCard, "from_dict", None)
    first, second = checkpoint.build(), checkpoint.build()
    assert first.card is second.card is checkpoint.card and checkpoint.path == tmp_path / "a.pt"
    with torch.inference_mode():
        assert torch.equal(first(waves()), second(waves()))


def test_saving_twice_gives_the_same_card_and_tensors_and_leaves_no_other_file(tmp_path):
    for _ in range(2):
        save_tagger(tmp_path / "deep" / "a.pt", small_tagger())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.pt"]
    save_tagger(tmp_path / "b.pt", load_tagger(tmp_path / "deep" / "a.pt"))
    one = open_checkpoint(tmp_path / "deep" / "a.pt")
    card, tensors = one.card, one.tensors
    other = open_checkpoint(tmp_path / "b.pt")
    other_card, other_tensors = other.card, other.tensors
    assert card == other_card
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


def test_a_checkpoint_holds_tensors_and_json_and_nothing_else(tmp_path):
    save_tagger(tmp_path / "a.pt", small_tagger())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"format", "card", "tensors", "digest"} and content["format"] == FORMAT
    card = json.loads(content["card"])
    assert card["classes"] == list(CLASSES) and card["version"] and card["frontend"]["n_fft"] == 256
    assert all(isinstance(tensor, torch.Tensor) for tensor in content["tensors"].values())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    assert b"kit." not in code and b"audiotag" not in code


def test_a_tagger_in_channels_last_is_saved_contiguous(tmp_path):
    tagger = small_tagger()
    tagger.network.to(memory_format=torch.channels_last)
    save_tagger(tmp_path / "a.pt", tagger)
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    state = tagger.network.state_dict()
    assert all(torch.equal(state[name], x) and x.is_contiguous() for name, x in tensors.items())


def test_a_failed_save_leaves_the_last_good_file(tmp_path):
    tagger = small_tagger()
    save_tagger(tmp_path / "a.pt", tagger)
    good = (tmp_path / "a.pt").read_bytes()
    tagger.network.register_buffer("odd", torch.zeros(2, device="meta"))
    with pytest.raises(NotImplementedError):
        save_tagger(tmp_path / "a.pt", tagger)
    assert (tmp_path / "a.pt").read_bytes() == good


@pytest.mark.parametrize("name", ["file/a.pt", "x" * 300 + ".pt"])
def test_a_place_that_cannot_be_written_is_an_error_with_the_cure(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match="cannot write"):
        save_tagger(tmp_path / name, small_tagger())


class Executable:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "card", "tensors", "one tensor", "network"])
def test_a_file_that_holds_code_is_refused_with_the_cure_and_runs_nothing(tmp_path, form):
    path, marker = tmp_path / "a.pt", tmp_path / "executed"
    code = Executable(marker)
    contents = {
        "card": content_of(small_tagger(), card=code),
        "tensors": content_of(small_tagger(), tensors=code),
        "one tensor": content_of(small_tagger(), tensors={"a": torch.zeros(2), "b": code}),
        "network": [CustomNetwork(), code],
    }
    if form == "pickle":
        path.write_bytes(pickle.dumps(code))
    else:
        torch.save(contents.get(form, code), path, _use_new_zipfile_serialization=form != "legacy")
    message = error_of(path)
    assert "nothing executable" in message and "state_dict" in message and "save_tagger" in message
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the trap itself must work"


def test_a_plain_state_dict_is_refused_with_what_it_holds_and_how_to_wrap_it(tmp_path):
    path = tmp_path / "a.pt"
    state = small_tagger().network.state_dict()
    torch.save(state, path)
    message = error_of(path)
    assert "blocks.0" in message and "returns logits" in message
    assert "save_tagger(path, wrap_network(network, frontend, classes))" in message
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "save_tagger" in error_of(path)


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3), {}, 5, None, {1: 2}], ids=repr)
def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "no checkpoint of this kit" in error_of(tmp_path / "a.pt")


def test_a_file_that_is_no_whole_archive_is_refused(tmp_path):
    save_tagger(tmp_path / "whole.pt", small_tagger())
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"fname,labels\n", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / "a.pt").write_bytes(content)
        assert "cannot be read as tensors and JSON" in error_of(tmp_path / "a.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("folder.pt", "missing.pt"):
        assert "no checkpoint" in error_of(tmp_path / name)


@pytest.mark.parametrize("number", [FORMAT + 1, 0, 99, "2"])
def test_another_format_is_refused_with_the_kit_that_reads_it(tmp_path, number):
    torch.save(content_of(small_tagger(), format=number), tmp_path / "a.pt")
    message = f"has checkpoint format {number}, this kit reads {FORMAT}: use the kit that wrote it"
    assert message in error_of(tmp_path / "a.pt")


def test_format_2_is_refused_with_its_cure(tmp_path):
    torch.save(content_of(small_tagger(), format=2), tmp_path / "a.pt")
    cure = "checkpoint format 2 was never published: train again with this version"
    assert cure in error_of(tmp_path / "a.pt")


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    tagger = small_tagger()
    tensors = tagger.network.state_dict()
    name = next(iter(tensors))
    wrong_tensors = [
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "stranger": torch.zeros(2)},
        {**tensors, name: torch.zeros(99)},
        {},
        small_tagger(network={**PYRAMID, "width": 5}).network.state_dict(),
    ]
    for wrong in wrong_tensors:
        torch.save(content_of(tagger, tensors=wrong), tmp_path / "a.pt")
        assert "its tensors do not fit its network" in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize("tensors", [[1, 2], torch.zeros(2), None], ids=["list", "tensor", "none"])
def test_tensors_that_are_no_table_are_refused(tmp_path, tensors):
    torch.save(content_of(small_tagger(), tensors=tensors), tmp_path / "a.pt")
    assert "is damaged" in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize("card", ["{cut", "3", "null", "[]", 7, torch.zeros(2)], ids=lambda c: str(c)[:6])
def test_a_card_that_cannot_be_read_is_refused(tmp_path, card):
    torch.save(content_of(small_tagger(), card=card), tmp_path / "a.pt")
    error_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("prevalences", [0.5], "3 classes need as many prevalences, got 1"),
        ("classes", ["a", "a", "b"], "each once"),
        ("output", "scores", "choices are: probability, ranking"),
        ("from_the_future", 1, "no setting 'from_the_future'"),
    ],
)
def test_a_card_with_a_wrong_setting_is_refused_with_its_name(tmp_path, setting, value, message):
    card = {**small_card().to_dict(), setting: value}
    torch.save(content_of(small_tagger(), card=json.dumps(card)), tmp_path / "a.pt")
    assert message in error_of(tmp_path / "a.pt")


def test_a_custom_network_is_loaded_with_the_function_that_builds_it(tmp_path):
    network = CustomNetwork().eval()
    tagger = wrap_network(network, FRONTEND, CLASSES, name="mine", prevalences=(0.1, 0.2, 0.3), min_frames=7)
    assert tagger.card.network == {"family": "custom:mine"} and tagger.card.prevalences == (0.1, 0.2, 0.3)
    path = tmp_path / "a.pt"
    save_tagger(path, tagger)
    message = error_of(path)
    assert "networks={'mine': build}" in message and "passed: none" in message
    assert "passed: other" in error_of(path, {"other": CustomNetwork})
    loaded = load_tagger(path, {"other": nn.Identity, "mine": CustomNetwork})
    assert loaded.min_frames == 7 and isinstance(loaded, Tagger)
    with torch.inference_mode():
        assert torch.equal(loaded(waves()), tagger(waves()))
    assert "do not fit" in error_of(path, {"mine": lambda: CustomNetwork(classes=4)})
    with pytest.raises(KitError, match="networks must map names to functions"):
        load_tagger(path, CustomNetwork)


def test_a_wrapped_network_has_equal_prevalences_and_probabilities_unless_it_ranks():
    tagger = wrap_network(CustomNetwork(), FRONTEND, CLASSES)
    assert tagger.card.prevalences == (1 / 3,) * 3 and tagger.card.is_calibrated
    assert tagger.card.network == {"family": "custom:own"} and tagger.min_frames == 1
    assert not wrap_network(CustomNetwork(), FRONTEND, CLASSES, output="ranking").card.is_calibrated


@pytest.mark.parametrize("convert", [torch.tensor, lambda x: torch.tensor(x).numpy(), list])
def test_prevalences_may_be_a_tensor_an_array_or_a_list(convert):
    prevalences = convert([0.5, 0.25, 0.0])
    tagger = wrap_network(CustomNetwork(), FRONTEND, CLASSES, prevalences=prevalences)
    assert tagger.card.prevalences == (0.5, 0.25, 0.0)


def test_a_network_of_the_kits_families_needs_its_settings_and_may_be_a_state_dict(tmp_path):
    tagger = small_tagger()
    for network in (tagger.network, tagger.network.state_dict()):
        save_tagger(tmp_path / "a.pt", wrap_network(network, FRONTEND, CLASSES, settings=PYRAMID))
        with torch.inference_mode():
            assert torch.equal(load_tagger(tmp_path / "a.pt")(waves()), tagger(waves()))
    with pytest.raises(KitError, match="do not fit"):
        wrap_network({"odd": torch.zeros(1)}, FRONTEND, CLASSES, settings=PYRAMID)
    with pytest.raises(KitError, match="did you mean 'max-pyramid'"):
        wrap_network({}, FRONTEND, CLASSES, settings={"family": "max-pyramyd"})
    with pytest.raises(KitError, match=r"a plain state dict needs settings=\{'family'"):
        wrap_network(tagger.network.state_dict(), FRONTEND, CLASSES)


def test_checkpoints_are_found_once_each_and_sorted(tmp_path):
    for name in ("fold_1.pt", "fold_0.pt", "other.pt", "odd[1].pt"):
        (tmp_path / name).touch()
    (tmp_path / "fold_2.pt").mkdir()

    def names(*patterns):
        return [path.name for path in find_checkpoints(patterns)]

    assert names(f"{tmp_path}/fold_*.pt") == ["fold_0.pt", "fold_1.pt"]
    every = ["other.pt", "fold_0.pt", "fold_1.pt", "odd[1].pt"]
    assert names(tmp_path / "other.pt", f"{tmp_path}/*.pt") == every
    assert names(tmp_path / "odd[1].pt") == ["odd[1].pt"]
    with pytest.raises(KitError, match=r"no checkpoint matches .*fold_\*\.pth"):
        names(f"{tmp_path}/fold_*.pth")
    with pytest.raises(KitError, match=r"no checkpoints given: e\.g\. --checkpoints"):
        names()
