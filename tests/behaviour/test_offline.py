"""Law 11: no network, ever."""

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
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.org", 80))
    assert len(calls_out) == 1


def test_submit_reaches_for_no_network_and_sets_the_offline_switches(
    trained: Trained, clips: Path, tmp_path: Path, calls_out: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for switch in OFFLINE_SWITCHES:
        monkeypatch.delenv(switch, raising=False)
    submit(trained.all, clips, tmp_path / "out.csv", progress=False)
    predict_clips(trained.windows, clips)
    assert not calls_out and len(read_scores(tmp_path / "out.csv")[1]) == 14
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} <= set(OFFLINE_SWITCHES)
    assert all(os.environ[switch] == "1" for switch in OFFLINE_SWITCHES)


def test_a_switch_that_the_user_set_stays_as_it_is(
    trained: Trained, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "YES")
    predict_clips(trained.mel[0], clips)
    assert os.environ["HF_HUB_OFFLINE"] == "YES"
