"""What a GPU must do as the CPU does; skipped, saying so, where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kit.core.runtime import device_problem
from kit.infer.engine import Listener
from kit.infer.predict import predict_clips
from kit.learn.train import train_run
from kit.recipes import find_recipe
from kit.sound.decode import Sound
from kit.toydata import make_toy_set
from tests.behaviour.trained import Trained, loud_tagger, noise

NO_GPU = not torch.cuda.is_available() or device_problem(torch.device("cuda")) is not None
pytestmark = pytest.mark.skipif(NO_GPU, reason="no GPU that computes")


def test_a_gpu_says_what_the_cpu_says(trained: Trained, clips: Path) -> None:
    on_cpu = predict_clips(list(trained.mel), clips, device="cpu").probabilities
    on_gpu = predict_clips(list(trained.mel), clips, device="cuda").probabilities
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3)


def test_on_a_gpu_a_clip_does_not_hear_its_batchmates(trained: Trained) -> None:
    sounds = [Sound(noise(8000 + 997 * i, seed=i), 8000) for i in range(9)]
    together = predict_clips(list(trained.mel), sounds, device="cuda").probabilities
    alone = [predict_clips(list(trained.mel), [s], device="cuda").probabilities[0] for s in sounds]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_half_precision_on_a_gpu_stays_near(trained: Trained, clips: Path) -> None:
    exact = predict_clips(list(trained.mel), clips, device="cuda").probabilities
    half = predict_clips(list(trained.mel), clips, device="cuda", precision="float16").probabilities
    np.testing.assert_allclose(half, exact, atol=0.05)


def test_a_batch_beyond_a_gpus_memory_is_halved_until_it_fits() -> None:
    listener = Listener(loud_tagger(), torch.device("cuda"), batch_frames=10**7)
    answer, refused = listener.answer, []

    def lack(batch: torch.Tensor) -> np.ndarray:
        if len(batch) > 2:
            refused.append(len(batch))
            raise torch.OutOfMemoryError("as if")
        return answer(batch)

    listener.answer = lack  # type: ignore[method-assign]
    specs = [torch.randn(loud_tagger().card.frontend.n_bins, 50) for _ in range(8)]
    heard = listener.listen(specs)
    assert refused and all(said is not None for said in heard)


def test_training_runs_on_a_gpu_in_half_precision(tmp_path: Path) -> None:
    make_toy_set(tmp_path, clips=24, test=1)
    small = [
        "frontend.sample_rate=8000",
        "frontend.n_mels=32",
        "network.blocks=2",
        "network.width=4",
        "epochs=2",
    ]
    recipe = find_recipe("max-pyramid-mel", small=True, overrides=[*small, "n_folds=2"])
    out = tmp_path / "run"
    run = train_run(recipe, tmp_path / "train.csv", tmp_path / "train", out, device="cuda", progress=False)
    assert 0.0 < run.oof.lwlrap <= 1.0 and (out / "fold_1.pt").is_file()
