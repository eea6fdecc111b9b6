'''OpenVINO predicts windows with the logits of torch where it was asked for; else torch stays, and a text says why.'''

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, TimeBudget
from kit.core.errors import KitError
from kit.doctor import bench
from kit.infer.backend import STATIC_ROWS, CompiledNetwork, check_backend, compile_network, compile_openvino
from kit.infer.planner import measure_cost
from kit.infer.predictor import Predictor
from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger
from kit.models.families import build_network
from kit.models.network import InputShape
from tests.behaviour.trained import HandClock, LoudBands, Trained, loud_tagger, read_scores

CPU = torch.device('cpu')
WINDOWS = InferenceConfig(mode='windows', window_s=1.0, hop_s=1.0)
FRAMES = 40  # of a window


class FakeOpenVino:
    '''Stands in for the package: `change` is applied to the logits of torch that a compiled network returns.'''

    def __init__(self) -> None:
        self.change: Callable[[Tensor], Tensor] = lambda logits: logits
        self.shapes: list[tuple[int, ...]] = []
        self.settings: list[dict[str, Any]] = []
        self.n_compiled = 0

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
        self.n_compiled += 1
        self.settings.append(settings)

        def infer(inputs: list[np.ndarray]) -> list[np.ndarray]:
            (batch,) = inputs
            assert batch.dtype == np.float32 and list(batch.shape) == model.shape
            self.shapes.append(batch.shape)
            return [self.change(model.network(torch.from_numpy(batch))).numpy()]

        return SimpleNamespace(create_infer_request=lambda: SimpleNamespace(infer=infer))


class FakeModel:
    '''A network and the shape that it is compiled for.'''

    def __init__(self, network: nn.Module, example_input: Tensor, shared_memory: bool) -> None:
        assert not shared_memory
        self.network = network
        self.shape = [-1]

    def reshape(self, shape: list[int]) -> None:
        self.shape = shape


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOpenVino:
    '''Put the fake in the package's place.'''
    fake = FakeOpenVino()
    frontend = SimpleNamespace(load=lambda model: model, convert=lambda model: model)
    names: dict[str, dict[str, Any]] = {
        'openvino': {'compile_model': fake.compile_model},
        'openvino.frontend': {'FrontEndManager': lambda: SimpleNamespace(load_by_framework=lambda _: frontend)},
        'openvino.frontend.pytorch': {},
        'openvino.frontend.pytorch.ts_decoder': {'TorchScriptPythonDecoder': FakeModel},
    }
    for name, contents in names.items():
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    '''Hide the package, where it is installed.'''
    monkeypatch.setitem(sys.modules, 'openvino', None)


def make_predictor(backend: str = 'openvino', network: nn.Module | None = None, **settings: Any) -> Predictor:
    settings = {'inference': WINDOWS, 'fuse': True, 'backend': backend} | settings
    return Predictor(loud_tagger(network), CPU, **settings)


def make_specs(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(30, length, generator=generator) for length in lengths]


def all_logits(predictor: Predictor, specs: list[Tensor]) -> np.ndarray:
    return np.concatenate([output.logits for output in predictor.predict(specs) if output])


def test_a_prediction_of_openvino_depends_on_no_batchmate(fake: FakeOpenVino) -> None:
    fake.change = lambda logits: logits + 1e-6 * len(logits)  # as a kernel that depends on the batch size
    specs = make_specs(FRAMES, 20 * FRAMES, 30, 2 * FRAMES)
    together = make_predictor().predict(specs)
    alone = [make_predictor().predict([spec])[0] for spec in specs]
    assert set(fake.shapes) == {(STATIC_ROWS, 1, 30, FRAMES)}, 'every batch has the one compiled shape'
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.logits, b.logits) and a.spans == b.spans
    assert np.abs(together[1].logits - make_predictor('torch').predict(specs)[1].logits).max() < 2e-5


def test_the_logits_of_padding_are_dropped_and_rows_keep_their_order() -> None:
    shapes = []

    def first_value(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return batch[:, 0, 0, :1].copy()

    network = CompiledNetwork(first_value, 4)
    for count in (1, 2, 3, 4):
        spec = torch.arange(count).float()[:, None, None, None].expand(count, 2, 3, 5)
        assert network(spec)[:, 0].tolist() == list(range(count))
    assert set(shapes) == {(4, 2, 3, 5)}


def test_long_windows_are_compiled_in_batches_that_batch_frames_allows(fake: FakeOpenVino) -> None:
    all_logits(make_predictor(batch_frames=2 * FRAMES), make_specs(5 * FRAMES))
    all_logits(make_predictor(batch_frames=1), make_specs(5 * FRAMES))
    assert [shape[0] for shape in fake.shapes] == [2] * 4 + [1] * 6  # the first call of each is the check


def test_openvino_computes_in_float32_with_as_many_threads_as_torch(fake: FakeOpenVino) -> None:
    all_logits(make_predictor(), make_specs(FRAMES))
    (settings,) = fake.settings
    assert settings['INFERENCE_PRECISION_HINT'] == 'f32'
    assert settings['INFERENCE_NUM_THREADS'] == torch.get_num_threads()
    assert settings['ENABLE_CPU_PINNING'] is False


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda logits: logits + 0.01, 'torch: the logits of OpenVINO differed by 0.01'),
        (lambda logits: logits * torch.nan, 'torch: the logits of OpenVINO differed by nan'),
        (lambda logits: logits[:, :2], 'torch: OpenVINO cannot compile the network: '),
        (lambda logits: 1 / 0, 'torch: OpenVINO cannot compile the network: division by zero'),
        (lambda logits: logits + 1e-6, 'openvino: logits differ by 1e-06 or less'),
    ],
    ids=['other', 'nan', 'shape', 'error', 'equal'],
)
def test_where_logits_differ_or_compiling_fails_torch_stays_and_the_text_says_why(
    fake: FakeOpenVino, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    fake.change = change
    predictor = make_predictor()
    specs = make_specs(3 * FRAMES)
    logits = all_logits(predictor, specs)
    assert predictor.compilation.startswith(reason)
    stays = reason.startswith('torch')
    assert (predictor.network is predictor.tagger.network) == stays
    assert np.array_equal(logits, all_logits(make_predictor('torch'), specs)) == stays
    assert fake.n_compiled == 1
    all_logits(predictor, specs)
    assert fake.n_compiled == 1, 'it is compiled once, whatever came of it'


def test_probabilities_are_compared_as_the_logits_that_they_become(fake: FakeOpenVino) -> None:
    '''A probability of 1e-5 that becomes 6e-5 is another answer.'''
    fake.change = lambda probs: probs + 5e-5
    tagger = loud_tagger(nn.Sequential(LoudBands(3), nn.Sigmoid()), returns='probabilities')
    with torch.no_grad():
        tagger.network[0].scale.fill_(-5.0)
    predictor = Predictor(tagger, CPU, inference=WINDOWS, backend='openvino')
    all_logits(predictor, make_specs(FRAMES))
    assert predictor.compilation.startswith('torch: the logits of OpenVINO differed by ')


class Slow(LoudBands):
    '''A network that takes some seconds of a clock that the test holds.'''

    def __init__(self, clock: HandClock, seconds: float) -> None:
        super().__init__(3)
        self.clock, self.seconds = clock, seconds

    def forward(self, spec: Tensor) -> Tensor:
        self.clock.time += self.seconds
        return super().forward(spec)


@pytest.mark.parametrize(('openvino_s', 'winner'), [(0.5, 'openvino'), (1.0, 'torch'), (2.0, 'torch')])
def test_auto_keeps_the_faster_one_on_the_first_batch(openvino_s: float, winner: str) -> None:
    clock = HandClock()
    network = Slow(clock, 1.0)
    compiled_call = Slow(clock, openvino_s)

    def compiler(network: nn.Module, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
        clock.time += 100.0  # time to compile does not count
        return lambda batch: compiled_call(torch.from_numpy(batch)).detach().numpy()

    spec = torch.randn(2, 1, 30, FRAMES)
    with torch.inference_mode():
        chosen, text = compile_network(network, spec, 4, 'auto', lambda logits: logits, compiler, clock)
    assert text.startswith(f'{winner}: ') and (chosen is network) == (winner == 'torch')
    assert f'4 windows take 1.000 s with torch, {openvino_s:.3f} s with OpenVINO' in text
    assert clock.time == 100.0 + 3 * (1.0 + openvino_s), 'the check and two turns each'


def test_openvino_that_was_asked_for_stays_where_it_is_slower() -> None:
    def compiler(network: nn.Module, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda batch: network(torch.from_numpy(batch)).numpy()

    def now() -> float:
        raise AssertionError('nothing is timed')

    spec = torch.randn(2, 1, 30, FRAMES)
    with torch.inference_mode():
        chosen, _ = compile_network(LoudBands(3), spec, 4, 'openvino', lambda x: x, compiler, now)
    assert isinstance(chosen, CompiledNetwork)


def test_a_cost_is_that_of_full_batches_without_the_time_to_compile(fake: FakeOpenVino) -> None:
    clock = HandClock()

    def spend(logits: Tensor) -> Tensor:
        clock.time += 0.1 * STATIC_ROWS  # of a batch
        return logits

    fake.change = spend
    compile_model = fake.compile_model

    def compile_slowly(*given: Any) -> Any:
        clock.time += 100.0
        return compile_model(*given)

    sys.modules['openvino'].compile_model = compile_slowly  # type: ignore[attr-defined]
    budget = TimeBudget(Deadline(now=clock))
    assert measure_cost(make_predictor(), budget) == pytest.approx(0.1), 'six windows of a second'
    long = replace(WINDOWS, window_s=5.0, hop_s=5.0)
    assert measure_cost(make_predictor(inference=long), budget) == pytest.approx(0.02), 'two of five'


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        ({'inference': InferenceConfig()}, 'torch: mode full reads inputs of many lengths'),
        ({'precision': 'bfloat16'}, 'torch: OpenVINO computes on the CPU in float32, not on cpu in bfloat16'),
    ],
)
def test_other_modes_and_precisions_stay_with_torch(fake: FakeOpenVino, settings: dict[str, Any], reason: str) -> None:
    predictor = make_predictor(**settings)
    all_logits(predictor, make_specs(2 * FRAMES))
    assert predictor.compilation.startswith(reason) and not fake.n_compiled


def test_mode_frames_and_a_gpu_stay_with_torch(fake: FakeOpenVino, trained: Trained) -> None:
    tagger = load_tagger(trained.windows)
    frames = replace(tagger.card.inference, mode='frames')
    predictor = Predictor(tagger, CPU, inference=frames, fuse=True, backend='auto')
    assert predictor.compilation.startswith('torch: mode frames reads') and 'torch' in predictor.compilation
    on_meta = Predictor(loud_tagger(), torch.device('meta'), inference=WINDOWS, backend='openvino')
    assert on_meta.compilation == 'torch: OpenVINO computes on the CPU in float32, not on meta in float32'
    assert not fake.n_compiled


def test_the_taggers_network_keeps_its_tensors_and_its_training_mode(fake: FakeOpenVino, trained: Trained) -> None:
    tagger = load_tagger(trained.windows)
    tagger.train()
    before = {key: value.clone() for key, value in tagger.network.state_dict().items()}
    network = tagger.network
    predictor = Predictor(tagger, CPU, fuse=True, backend='openvino')
    predictor.predict([torch.randn(tagger.card.frontend.rows, 100)])
    assert isinstance(predictor.network, CompiledNetwork) and 'batch norms fused' in predictor.fusion
    assert tagger.network is network and all(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_submit_says_which_backend_predicted_and_predicts_anew_with_another(
    fake: FakeOpenVino, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'out.csv'
    rows = {}
    for backend in ('torch', 'openvino', 'auto'):
        result = submit(trained.windows, clips, out, backend=backend, progress=False)
        (model,) = result.report['models']
        assert model['backend'].startswith('openvino: ' if backend == 'openvino' else ('torch', 'openvino'))
        assert model['network_s'] > 0, 'nothing is taken from the cache of another backend'
        rows[backend] = read_scores(out)[1]
    assert len(list((tmp_path / 'out.csv.state').glob('windows_*.npz'))) == 3
    for name, scores in rows['torch'].items():
        assert np.abs(scores - rows['openvino'][name]).max() < 1e-4
    again = submit(trained.windows, clips, out, backend='openvino', progress=False)
    assert again.report['models'][0]['network_s'] == 0


def test_submit_notes_why_torch_predicted(fake: FakeOpenVino, trained: Trained, clips: Path, tmp_path: Path) -> None:
    result = submit(trained.mel, clips, tmp_path / 'out.csv', mode='full', backend='openvino', progress=False)
    (note,) = [note for note in result.report['notes'] if note.startswith('--backend')]
    assert note.startswith('--backend openvino: torch: mode full reads inputs of many lengths')
    plain = submit(trained.mel, clips, tmp_path / 'plain.csv', progress=False)
    assert not any('backend' in note for note in plain.report['notes'])
    assert {model['backend'] for model in plain.report['models']} == {'torch'}


def test_without_the_package_openvino_is_refused_with_the_cure_and_auto_is_torch(
    missing: None, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    message = 'backend openvino needs the package openvino, which is not installed here: attach a dataset'
    with pytest.raises(KitError, match=message):
        submit(trained.windows, clips, tmp_path / 'out.csv', backend='openvino', progress=False)
    assert not list(tmp_path.iterdir()), 'a call with a mistake leaves nothing'
    result = submit(trained.windows, clips, tmp_path / 'out.csv', backend='auto', progress=False)
    assert result.report['models'][0]['backend'] == 'torch: OpenVINO is not installed'
    assert '--backend auto: torch: OpenVINO is not installed' in result.report['notes']


def test_an_unknown_backend_gets_the_nearest_name() -> None:
    with pytest.raises(KitError, match="unknown backend 'openvin': did you mean 'openvino'"):
        check_backend('openvin')


def test_bench_reckons_with_each_backend_that_is_installed(fake: FakeOpenVino, trained: Trained, clips: Path) -> None:
    lines = bench([trained.windows], str(clips), deadline='9m').splitlines()
    assert [line.partition(':')[0] for line in lines if line[0] != ' '] == [str(clips), 'torch', 'openvino']
    assert fake.n_compiled == 1


NETWORKS = {
    'max-pyramid': {'family': 'max-pyramid', 'width': 8, 'blocks': 3},
    'max-pyramid-stft': {'family': 'max-pyramid', 'dims': 1, 'width': 8, 'blocks': 3},
    'skip-attention': {'family': 'skip-attention', 'width': 4},
    'axis-pool': {'family': 'axis-pool', 'width': 16},
    'timm': {'family': 'timm', 'name': 'test_efficientnet'},
    'sed': {'family': 'timm', 'name': 'test_efficientnet', 'head': {'pool': 'attention'}},
}


@pytest.mark.parametrize('name', NETWORKS)
def test_openvino_computes_the_logits_of_every_family(name: str) -> None:
    pytest.importorskip('openvino')
    network = build_network(NETWORKS[name], InputShape(2, 32), 5).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    spec = torch.randn(3, 2, 32, 77, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(spec)
        compiled, text = compile_network(network, spec, 4, 'openvino', lambda logits: logits)
        assert isinstance(compiled, CompiledNetwork), text
        output = compiled(spec)
        assert torch.equal(compiled(spec[2:]), output[2:]), 'a row depends on no other'
    assert float((output - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert torch.equal(compiled(spec), output), 'a later training changes no compiled network'


class Baked(LoudBands):
    '''A network that turns a value of its input into a number of Python, which tracing makes a constant.'''

    def forward(self, spec: Tensor) -> Tensor:
        return super().forward(spec) + float(spec[0].mean())


class Foreign(LoudBands):
    '''A network with numpy inside, which no tracing sees.'''

    def forward(self, spec: Tensor) -> Tensor:
        return super().forward(spec) + torch.from_numpy(spec.numpy().std(axis=(1, 2, 3), keepdims=False)[:, None])


@pytest.mark.parametrize('network', [Baked(3), Foreign(3)], ids=['baked', 'numpy'])
def test_a_network_that_tracing_does_not_see_whole_predicts_with_torch(network: nn.Module) -> None:
    pytest.importorskip('openvino')
    predictor = make_predictor(network=network)
    specs = make_specs(3 * FRAMES)
    assert np.array_equal(all_logits(predictor, specs), all_logits(make_predictor('torch', network), specs))
    assert predictor.compilation.startswith('torch: ')


def test_openvino_reports_nothing_over_the_network(calls_out: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('openvino')
    telemetry = pytest.importorskip('openvino_telemetry')
    reports: list[Any] = []
    monkeypatch.setattr(telemetry.Telemetry, 'init', lambda *given, **named: reports.append(given))
    monkeypatch.setattr(telemetry.Telemetry, 'send_event', lambda *given, **named: reports.append(given))
    with torch.inference_mode():
        call = compile_openvino(LoudBands(3).eval(), (4, 1, 30, FRAMES))
    assert call(np.zeros((4, 1, 30, FRAMES), np.float32)).shape == (4, 3)
    assert not reports and not calls_out
