'''No network, ever.'''

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from kit.core.runtime import OFFLINE_SWITCHES
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from tests.behaviour.trained import Trained, read_scores


def test_the_block_blocks(calls_out: list[Any]) -> None:
    with pytest.raises(OSError, match='no network'):
        socket.create_connection(('example.org', 80))
    assert len(calls_out) == 1


def test_submit_uses_no_network_and_sets_the_offline_switches_that_the_user_did_not_set(
    trained: Trained, clips: Path, tmp_path: Path, calls_out: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for switch in OFFLINE_SWITCHES:
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setenv('HF_HUB_OFFLINE', 'YES')
    submit(trained.all, clips, tmp_path / 'out.csv', progress=False)
    predict_clips(trained.windows, clips)
    assert not calls_out and len(read_scores(tmp_path / 'out.csv')[1]) == 14
    assert {'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'} <= set(OFFLINE_SWITCHES)
    values = {switch: os.environ[switch] for switch in OFFLINE_SWITCHES}
    assert values.pop('HF_HUB_OFFLINE') == 'YES' and set(values.values()) == {'1'}
