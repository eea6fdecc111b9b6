'''What a GPU must do as the CPU does; skipped, saying so, where there is none.'''

from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.frontend import Frontend
from kit.core.runtime import device_problem
from kit.demo import make_toy_set
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.models.families import build_network
from kit.models.network import InputShape
from kit.train.losses import LOSSES, average_loss
from kit.train.recipes import RECIPES, find_recipe
from kit.train.run import train_run
from tests.behaviour.trained import Trained, loud_tagger, noise

DEVICE = 'cuda'
NO_GPU = not torch.cuda.is_available() or device_problem(torch.device(DEVICE)) is not None
pytestmark = pytest.mark.skipif(NO_GPU, reason='no GPU that computes')


def test_a_gpu_says_what_the_cpu_says(trained: Trained, clips: Path) -> None:
    on_cpu = predict_clips(list(trained.mel), clips, device='cpu').probabilities
    on_gpu = predict_clips(list(trained.mel), clips, device=DEVICE).probabilities
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3)


def test_on_a_gpu_a_clip_does_not_hear_its_batchmates(trained: Trained) -> None:
    sounds = [Sound(noise(8000 + 997 * i, seed=i), 8000) for i in range(9)]
    together = predict_clips(list(trained.mel), sounds, device=DEVICE).probabilities
    alone = [predict_clips(list(trained.mel), [s], device=DEVICE).probabilities[0] for s in sounds]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_half_precision_on_a_gpu_stays_near(trained: Trained, clips: Path) -> None:
    exact = predict_clips(list(trained.mel), clips, device=DEVICE).probabilities
    half = predict_clips(list(trained.mel), clips, device=DEVICE, precision='float16').probabilities
    np.testing.assert_allclose(half, exact, atol=0.05)


def test_a_batch_beyond_a_gpus_memory_is_halved_until_it_fits() -> None:
    predictor = Predictor(loud_tagger(), torch.device(DEVICE), batch_frames=10**7)
    answer, refused = predictor.answer, []

    def lack(batch: torch.Tensor) -> np.ndarray:
        if len(batch) > 2:
            refused.append(len(batch))
            raise torch.OutOfMemoryError('as if')
        return answer(batch)

    predictor.answer = lack  # type: ignore[method-assign]
    specs = [torch.randn(loud_tagger().card.frontend.n_bins, 50) for _ in range(8)]
    heard = predictor.predict(specs)
    assert refused and all(said is not None for said in heard)


def test_training_runs_on_a_gpu_in_half_precision(tmp_path: Path) -> None:
    make_toy_set(tmp_path, clips=24, test=1)
    small = ['frontend.sample_rate=8000', 'frontend.n_mels=32', 'network.blocks=2', 'network.width=4', 'epochs=2']
    recipe = find_recipe('max-pyramid-mel', small=True, overrides=[*small, 'n_folds=2'])
    out = tmp_path / 'run'
    run = train_run(recipe, tmp_path / 'train.csv', tmp_path / 'train', out, device=DEVICE, progress=False)
    assert 0.0 < run.oof.score <= 1.0 and (out / 'fold_1.pt').is_file()


@pytest.mark.parametrize('name', RECIPES)
def test_every_systems_front_end_hears_the_same_on_a_gpu(name: str) -> None:
    frontend = Frontend(RECIPES[name].frontend)
    waves = [torch.from_numpy(noise(samples, seed=samples, level=0.3)) for samples in (90000, 30011)]
    on_cpu = [frontend.network_input(raw) for raw in frontend.spectrograms(waves)]
    on_gpu = [frontend.network_input(raw) for raw in frontend.spectrograms([wave.to(DEVICE) for wave in waves])]
    for here, there in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=0.05, rtol=1e-3)


@pytest.mark.parametrize('family', ['max-pyramid', 'skip-attention', 'axis-pool'])
@pytest.mark.parametrize('pool', ['max', 'mean', 'gem', 'attention'])
def test_every_family_says_the_same_on_a_gpu_and_learns_there(family: str, pool: str) -> None:
    torch.manual_seed(0)
    settings = {'family': family, 'width': 8, 'head': {'pool': pool, 'recurrent': 'gru'}}
    network = build_network(settings, InputShape(2, 64), 5)
    spec = torch.randn(3, 2, 64, 100)
    on_cpu = network.eval()(spec)
    network.to(DEVICE)
    torch.testing.assert_close(network(spec.to(DEVICE)).cpu(), on_cpu, atol=1e-3, rtol=1e-3)
    targets = torch.rand(3, 5, device=DEVICE).round()
    with torch.autocast(DEVICE, torch.float16):
        said = network.train().outputs(spec.to(DEVICE))
    logits = [said.clip, *said.auxiliary]
    loss = torch.stack([average_loss(LOSSES[kind](x, targets)) for kind in LOSSES for x in logits]).sum()
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
