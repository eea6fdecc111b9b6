"""A clip under every augmentation on one page: whole, repeatable, and every panel another picture."""

import sys

import numpy as np
import pytest
import torch

from kit.audio.augment import WAVE_AUGMENTS
from kit.audio.frontend import Frontend, FrontendConfig
from kit.core.errors import KitError
from kit.plots.clips import MIX_PANELS, SPEC_PANELS, draw_contact_sheet, sheet_panels
from tests.behaviour.trained import write_wav

FRONTEND = Frontend(FrontendConfig(sample_rate=8000, n_mels=40))


def two_clips(samples=12_000):
    """A sweep, and clicks."""
    t = torch.arange(samples) / 8000
    clicks = torch.zeros(samples)
    clicks[::1000] = 0.5
    return torch.stack([0.5 * torch.sin(2 * np.pi * (300 + 400 * t) * t), clicks])


def test_every_augmentation_has_a_panel_of_its_own_that_says_what_was_drawn():
    panels = list(sheet_panels(two_clips(), FRONTEND, torch.Generator().manual_seed(3)))
    titles = [title for title, _ in panels]
    names = [*WAVE_AUGMENTS, "shift into silence", *SPEC_PANELS, *(f"mixed {name}" for name in MIX_PANELS)]
    assert [title.partition(":")[0] for title in titles] == ["as it is", *names]
    assert all(any(c.isdigit() for c in title) for title in titles[1:])
    pictures = [picture for _, picture in panels]
    assert all(picture.shape == pictures[0].shape and bool(picture.isfinite().all()) for picture in pictures)
    same = [
        (titles[i], title) for i, a in enumerate(pictures) for title, b in panels[:i] if torch.equal(a, b)
    ]
    assert not same
    silent = [
        name
        for name, picture in zip(names, pictures[1:], strict=True)
        if (picture == picture.min()).all(0).any()
    ]
    assert "shift into silence" in silent and "shift" not in silent


def test_the_same_seed_draws_the_same_panels():
    one, again, other = (
        list(sheet_panels(two_clips(), FRONTEND, torch.Generator().manual_seed(seed))) for seed in (4, 4, 5)
    )
    assert [title for title, _ in one] == [title for title, _ in again] != [title for title, _ in other]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, again, strict=True))


def test_even_the_shortest_clip_has_a_sheet(tmp_path):
    write_wav(tmp_path / "short.wav", np.array([0.1, -0.2, 0.3], np.float32), 8000)
    sheet = draw_contact_sheet(str(tmp_path / "short.wav"), str(tmp_path / "sheet.png"))
    assert str(sheet) == str(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes()[:8] == sheet._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_drawn_is_refused_in_a_sentence(tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", two_clips()[0].numpy(), 8000)
    with pytest.raises(KitError, match=r"none\.wav"):
        draw_contact_sheet(tmp_path / "none.wav", tmp_path / "out.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(KitError, match="pip install matplotlib"):
        draw_contact_sheet(tmp_path / "a.wav", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
