'''The contact sheet: a panel for each augmentation, all different, and repeatable.'''

import numpy as np
import pytest
import torch

from kit.audio.augment import WAVE_AUGMENTS
from kit.audio.frontend import Frontend, FrontendConfig
from kit.core.errors import KitError
from kit.plots.clips import MIX_PANELS, SPEC_PANELS, draw_contact_sheet, sheet_panels
from tests.behaviour.trained import write_wav

pytest.importorskip('matplotlib')

FRONTEND = Frontend(FrontendConfig(sample_rate=8000, n_mels=40))


def two_clips(samples=12_000):
    '''A sweep, and clicks.'''
    t = torch.arange(samples) / 8000
    clicks = torch.zeros(samples)
    clicks[::1000] = 0.5
    return torch.stack([0.5 * torch.sin(2 * np.pi * (300 + 400 * t) * t), clicks])


def panels_of(seed):
    return list(sheet_panels(two_clips(), FRONTEND, torch.Generator().manual_seed(seed)))


def test_every_augmentation_has_its_own_panel_and_those_of_waves_show_the_amount():
    titles, specs = zip(*panels_of(seed=3), strict=True)
    names = [*WAVE_AUGMENTS, *SPEC_PANELS, *(f'mixup of {name}' for name in MIX_PANELS)]
    assert [title.partition(':')[0] for title in titles] == ['original', *names]
    assert all(any(c.isdigit() for c in title) for title in titles[1 : 1 + len(WAVE_AUGMENTS)])
    for i, spec in enumerate(specs):
        assert spec.shape == specs[0].shape and bool(spec.isfinite().all())
        assert not any(torch.equal(spec, other) for other in specs[:i]), titles[i]


def test_the_same_seed_draws_the_same_panels():
    one, again, other = panels_of(4), panels_of(4), panels_of(5)
    assert [title for title, _ in one] == [title for title, _ in again] != [title for title, _ in other]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, again, strict=True))


def test_the_shortest_clip_has_a_sheet_and_its_name_is_no_formula(tmp_path):
    write_wav(tmp_path / '$x_$.wav', np.array([0.1, -0.2, 0.3], np.float32), 8000)
    sheet = draw_contact_sheet(str(tmp_path / '$x_$.wav'), str(tmp_path / 'sheet.png'))
    assert str(sheet) == str(tmp_path / 'sheet.png')
    assert (tmp_path / 'sheet.png').read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
    assert r'\$x_\$.wav' in sheet.figure.get_suptitle()


def test_a_file_that_cannot_be_decoded_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(KitError, match=r'none\.wav'):
        draw_contact_sheet(tmp_path / 'none.wav', tmp_path / 'out.png')
    assert not (tmp_path / 'out.png').exists()
