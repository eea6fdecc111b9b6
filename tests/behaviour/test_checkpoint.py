"""A checkpoint is tensors and JSON: it comes back whole, and a file from elsewhere runs nothing."""

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
    find_checkpoints,
    load_tagger,
    read_checkpoint,
    save_tagger,
    wrap_network,
)
from kit.models.tagger import Tagger, TaggerCard, build_tagger

FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16)
CLASSES = ("Bark", "Größe, tief", "音")


def tiny_card(**facts):
    """A card with every fact set away from its default."""
    known = {
        "classes": CLASSES,
        "prevalences": (0.1, 0.25, 1 / 3),
        "frontend": FRONTEND,
        "inference": InferenceConfig(mode="windows", window_s=1.0, hop_s=0.25, pool="snr", pool_k=2),
        "network": {"family": "max-pyramid", "blocks": 2, "width": 4},
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
    return TaggerCard(**{**known, **facts})


def tiny_tagger(seed=0, **facts):
    """A small tagger whose batch norms are not the fresh ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = build_tagger(tiny_card(**facts))
        with torch.no_grad():
            for tensor in tagger.network.state_dict().values():
                tensor.add_(torch.rand(tensor.shape).to(tensor.dtype))
    return tagger.eval()


def waves(clips=3, samples=4000):
    """Noise. Shape: -> (clips, samples)"""
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(1))


def content_of(tagger, **changes):
    """What a checkpoint file holds, with parts replaced."""
    whole = {
        "format": FORMAT,
        "card": json.dumps(tagger.card.to_dict()),
        "tensors": tagger.network.state_dict(),
    }
    return {**whole, **changes}


def refusal(path, networks=None):
    """The one line that refuses a file."""
    with pytest.raises(KitError) as caught:
        load_tagger(path, networks)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


class OwnNetwork(nn.Module):
    """A network that the kit does not know."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(16, classes)

    def forward(self, spec):
        return self.head(spec.mean(dim=(1, 3)))


def test_a_tagger_comes_back_with_every_weight_and_every_fact(tmp_path):
    tagger = tiny_tagger()
    save_tagger(tmp_path / "a.pt", tagger)
    again = load_tagger(tmp_path / "a.pt")
    assert again.card == tagger.card and again.min_frames == tagger.min_frames == 4
    assert not again.network.training
    ours, theirs = tagger.network.state_dict(), again.network.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
    with torch.inference_mode():
        logits = tagger(waves())
        assert torch.equal(again(waves()), logits)
    torch.testing.assert_close(again.probabilities(logits), torch.sigmoid(1.7 * logits - 0.3))


def test_saving_twice_gives_the_same_card_and_tensors_and_leaves_no_other_file(tmp_path):
    tagger = tiny_tagger()
    for _ in range(2):
        save_tagger(tmp_path / "deep" / "a.pt", tagger)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.pt"]
    save_tagger(tmp_path / "b.pt", load_tagger(tmp_path / "deep" / "a.pt"))
    one, other = read_checkpoint(tmp_path / "deep" / "a.pt"), read_checkpoint(tmp_path / "b.pt")
    assert one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_a_checkpoint_holds_tensors_and_json_and_nothing_else(tmp_path):
    save_tagger(tmp_path / "a.pt", tiny_tagger())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"format", "card", "tensors"} and content["format"] == FORMAT
    card = json.loads(content["card"])
    assert card["classes"] == list(CLASSES) and card["version"] and card["frontend"]["n_fft"] == 256
    assert all(isinstance(tensor, torch.Tensor) for tensor in content["tensors"].values())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    assert b"kit." not in code and b"audiotag" not in code


def test_a_tagger_in_channels_last_is_the_same_file(tmp_path):
    tagger = tiny_tagger()
    save_tagger(tmp_path / "a.pt", tagger)
    tagger.network.to(memory_format=torch.channels_last)
    save_tagger(tmp_path / "b.pt", tagger)
    assert (tmp_path / "a.pt").read_bytes()[:4] == b"PK\x03\x04"
    one, other = read_checkpoint(tmp_path / "a.pt")[1], read_checkpoint(tmp_path / "b.pt")[1]
    assert all(torch.equal(one[name], other[name]) and other[name].is_contiguous() for name in one)


def test_a_failed_save_leaves_the_last_good_file(tmp_path):
    tagger = tiny_tagger()
    save_tagger(tmp_path / "a.pt", tagger)
    good = (tmp_path / "a.pt").read_bytes()
    tagger.network.register_buffer("odd", torch.zeros(2, device="meta"))
    with pytest.raises(NotImplementedError):
        save_tagger(tmp_path / "a.pt", tagger)
    assert (tmp_path / "a.pt").read_bytes() == good


def test_a_place_that_cannot_be_written_is_an_error_with_the_cure(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match="Choose a folder you may write to"):
        save_tagger(tmp_path / "file" / "a.pt", tiny_tagger())


def test_a_file_that_cannot_be_opened_for_writing_is_an_error_with_the_cure(tmp_path):
    with pytest.raises(KitError, match="Choose a folder you may write to"):
        save_tagger(tmp_path / ("x" * 300 + ".pt"), tiny_tagger())


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "card", "tensors", "inner"])
def test_a_file_that_holds_code_is_refused_and_runs_nothing(tmp_path, form):
    path, marker = tmp_path / "a.pt", tmp_path / "executed"
    evil = Evil(marker)
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif form in ("zip", "legacy"):
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    else:
        hidden = {"inner": {"tensors": {"a": torch.zeros(2), "b": evil}}}
        torch.save(content_of(tiny_tagger(), **hidden.get(form, {form: evil})), path)
    text = refusal(path)
    assert "nothing executable" in text and "save_tagger" in text
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the trap itself must work"


def test_a_pickled_network_is_refused_with_the_cure(tmp_path):
    torch.save(OwnNetwork(), tmp_path / "a.pt")
    text = refusal(tmp_path / "a.pt")
    assert "state_dict" in text and "save_tagger" in text


@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_state_dict_is_told_how_to_become_a_checkpoint(tmp_path, legacy):
    path = tmp_path / "a.pt"
    torch.save(tiny_tagger().network.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    text = refusal(path)
    assert "save_tagger" in text
    if not legacy:
        assert "blocks.0" in text and "wrap_network(network, frontend, classes)" in text


@pytest.mark.parametrize("content", [{"model": {}, "epoch": 3}, [1, 2], torch.zeros(3), {}, 5, None, {1: 2}],
                         ids=lambda c: type(c).__name__)  # fmt: skip
def test_other_contents_are_told_what_they_are(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "no checkpoint of this kit" in refusal(tmp_path / "a.pt")


def test_what_is_no_archive_is_refused(tmp_path):
    save_tagger(tmp_path / "whole.pt", tiny_tagger())
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"fname,labels\n", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / "a.pt").write_bytes(content)
        assert "cannot be read as tensors and JSON" in refusal(tmp_path / "a.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("folder.pt", "missing.pt"):
        assert "no checkpoint" in refusal(tmp_path / name)


@pytest.mark.parametrize("number", [FORMAT + 1, 0, 99, "2"])
def test_another_format_says_which_kit_to_use(tmp_path, number):
    torch.save(content_of(tiny_tagger(), format=number), tmp_path / "a.pt")
    text = refusal(tmp_path / "a.pt")
    assert f"format {number}" in text and f"reads {FORMAT}" in text and "use the kit that wrote it" in text


def test_tensors_that_do_not_fit_say_which(tmp_path):
    tagger = tiny_tagger()
    tensors = tagger.network.state_dict()
    name = next(iter(tensors))
    wrong = [
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "stranger": torch.zeros(2)},
        {**tensors, name: torch.zeros(99)},
        {},
        tiny_tagger(network={"family": "max-pyramid", "blocks": 2, "width": 5}).network.state_dict(),
    ]
    for wrong_tensors in wrong:
        torch.save(content_of(tagger, tensors=wrong_tensors), tmp_path / "a.pt")
        assert "its tensors do not fit its network" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("tensors", [[1, 2], torch.zeros(2), None], ids=["list", "tensor", "none"])
def test_tensors_that_are_no_table_are_refused(tmp_path, tensors):
    torch.save(content_of(tiny_tagger(), tensors=tensors), tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("card", ["{cut", "3", "null", "[]", 7, torch.zeros(2)], ids=lambda c: str(c)[:6])
def test_a_card_that_cannot_be_read_is_refused(tmp_path, card):
    torch.save(content_of(tiny_tagger(), card=card), tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


def test_a_card_with_wrong_facts_names_them(tmp_path):
    card = tiny_card().to_dict()
    wrong = {
        "prevalences": ([0.5], "3 classes need as many prevalences, got 1"),
        "classes": (["a", "a", "b"], "each once"),
        "output": ("scores", "choices are: probability, ranking"),
        "from_the_future": (1, "no setting 'from_the_future'"),
        "network": ({"family": "max-pyramyd"}, "did you mean 'max-pyramid'"),
    }
    for name, (value, words) in wrong.items():
        torch.save(content_of(tiny_tagger(), card=json.dumps({**card, name: value})), tmp_path / "a.pt")
        with pytest.raises(KitError) as caught:
            load_tagger(tmp_path / "a.pt")
        assert words in str(caught.value), name


def test_a_card_with_wrong_facts_names_its_file(tmp_path):
    card = {**tiny_card().to_dict(), "output": "scores"}
    torch.save(content_of(tiny_tagger(), card=json.dumps(card)), tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


def test_a_network_of_ones_own_is_saved_and_loaded_by_name(tmp_path):
    network = OwnNetwork().eval()
    tagger = wrap_network(network, FRONTEND, CLASSES, name="mine", prevalences=(0.1, 0.2, 0.3), min_frames=7)
    assert tagger.card.network == {"family": "custom:mine"} and tagger.card.prevalences == (0.1, 0.2, 0.3)
    save_tagger(tmp_path / "a.pt", tagger)
    text = refusal(tmp_path / "a.pt")
    assert "networks={'mine': build}" in text and "known: none" in text
    assert "known: other" in refusal(tmp_path / "a.pt", {"other": OwnNetwork})
    again = load_tagger(tmp_path / "a.pt", {"other": nn.Identity, "mine": OwnNetwork})
    assert again.min_frames == 7 and isinstance(again, Tagger)
    with torch.inference_mode():
        assert torch.equal(again(waves()), tagger(waves()))
    assert "do not fit" in refusal(tmp_path / "a.pt", {"mine": lambda: OwnNetwork(classes=4)})


def test_without_prevalences_every_class_is_alike():
    tagger = wrap_network(OwnNetwork(), FRONTEND, CLASSES)
    assert tagger.card.prevalences == (1 / 3,) * 3 and tagger.card.calibrated
    assert tagger.card.network == {"family": "custom:own"} and tagger.min_frames == 1
    assert not wrap_network(OwnNetwork(), FRONTEND, CLASSES, output="ranking").card.calibrated


@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_prevalences_may_be_an_array(tmp_path, kind):
    prevalences = torch.tensor([0.5, 0.25, 0.0])
    prevalences = {"tensor": prevalences, "array": prevalences.numpy(), "list": [0.5, 0.25, 0]}[kind]
    save_tagger(
        tmp_path / "a.pt", wrap_network(OwnNetwork(), FRONTEND, CLASSES, name="mine", prevalences=prevalences)
    )
    assert load_tagger(tmp_path / "a.pt", {"mine": OwnNetwork}).card.prevalences == (0.5, 0.25, 0.0)


def test_a_plain_state_dict_of_a_known_family_becomes_a_checkpoint(tmp_path):
    tagger = tiny_tagger()
    torch.save(tagger.network.state_dict(), tmp_path / "plain.pt")
    settings = {"family": "max-pyramid", "blocks": 2, "width": 4}
    fresh = build_tagger(tiny_card())
    fresh.network.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    save_tagger(tmp_path / "a.pt", wrap_network(fresh.network.eval(), FRONTEND, CLASSES, settings=settings))
    with torch.inference_mode():
        assert torch.equal(load_tagger(tmp_path / "a.pt")(waves()), tagger(waves()))


def test_checkpoints_are_found_once_each_and_sorted(tmp_path):
    for name in ("fold_1.pt", "fold_0.pt", "other.pt", "odd[1].pt"):
        save_tagger(tmp_path / name, tiny_tagger())
    (tmp_path / "fold_2.pt").mkdir()

    def names(patterns):
        return [path.name for path in find_checkpoints(patterns)]

    assert names([f"{tmp_path}/fold_*.pt"]) == ["fold_0.pt", "fold_1.pt"]
    assert names([tmp_path / "other.pt", f"{tmp_path}/*.pt"]) == [
        "other.pt",
        "fold_0.pt",
        "fold_1.pt",
        "odd[1].pt",
    ]
    assert names([tmp_path / "odd[1].pt"]) == ["odd[1].pt"]
    with pytest.raises(KitError, match=r"no checkpoint matches .*fold_\*\.pth"):
        find_checkpoints([f"{tmp_path}/fold_*.pth"])
    with pytest.raises(KitError, match=r"no checkpoints given: e\.g\. --checkpoints"):
        find_checkpoints([])


def test_a_plain_state_dict_of_a_known_family_becomes_a_tagger(tmp_path):
    tagger = tiny_tagger()
    settings, frontend, classes = tagger.card.network, tagger.card.frontend, tagger.card.classes
    again = wrap_network(tagger.network.state_dict(), frontend, classes, settings=settings)
    save_tagger(tmp_path / "a.pt", again)
    wave = torch.randn(1, 8000)
    assert torch.equal(load_tagger(tmp_path / "a.pt")(wave), tagger.eval()(wave))
    with pytest.raises(KitError, match="do not fit"):
        wrap_network({"odd": torch.zeros(1)}, frontend, classes, settings=settings)
    with pytest.raises(KitError, match="needs settings"):
        wrap_network(tagger.network.state_dict(), frontend, classes)
