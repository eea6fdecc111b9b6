'''Make a network faster to run: fuse its batch norms, or compile it with OpenVINO, where its logits stay equal.'''

import copy
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from kit.core.errors import KitError, choose, one_line
from kit.models.network import Network

BACKENDS = {'torch': 'compile nothing', 'openvino': 'compile', 'auto': 'keep the faster'}

# How much fused or compiled logits may differ, relative to the greatest or to 1.
LOGITS_TOLERANCE = 1e-4

# Windows that a compiled network computes at once. More need more padding.
STATIC_ROWS = 4

CompiledCall = Callable[[np.ndarray], np.ndarray]
Compiler = Callable[[nn.Module, tuple[int, ...]], CompiledCall]


def is_tolerable(difference: float, expected: Tensor) -> bool:
    '''Decide whether logits differ by rounding alone; NaN never does.'''
    return difference <= LOGITS_TOLERANCE * max(1.0, float(expected.abs().max()))


class CompiledNetwork(nn.Module):
    '''A network compiled for `rows` inputs of one shape. A smaller batch is padded, and the logits of padding dropped.

    So every batch has one size, and an input's logits do not depend on its batchmates.

    Shape:  spec (B, C, M, N) -> logits (B, K), B <= rows
    '''

    def __init__(self, call: CompiledCall, rows: int) -> None:
        super().__init__()
        self.call = call
        self.rows = rows

    def forward(self, spec: Tensor) -> Tensor:
        return torch.from_numpy(self.call(pad_rows(spec, self.rows).contiguous().numpy()))[: len(spec)]


def pad_rows(batch: Tensor, rows: int) -> Tensor:
    '''Repeat the last input of a batch. Shape: (B, ...) -> (rows, ...), B <= rows'''
    return torch.cat([batch, batch[-1:].expand(rows - len(batch), *batch.shape[1:])])


def check_backend(backend: str) -> None:
    '''Raise KitError for a backend that is unknown or not installed.'''
    choose('backend', backend, BACKENDS)
    if backend == 'openvino' and not has_openvino():
        cure = 'attach a dataset with its wheels and pip install them, or use --backend torch'
        raise KitError(f'backend openvino needs the package openvino, which is not installed here: {cure}.')


def has_openvino() -> bool:
    '''Whether OpenVINO is installed; it is not imported.'''
    return find_spec('openvino') is not None


def why_torch(backend: str, mode: str, device: str, precision: str) -> str:
    '''Return why a model is not compiled, or an empty text.'''
    if backend == 'torch':
        return 'torch'
    if mode != 'windows':
        return f'torch: mode {mode} reads inputs of many lengths, and compiling needs mode windows'
    if device != 'cpu' or precision != 'float32':
        return f'torch: OpenVINO computes on the CPU in float32, not on {device} in {precision}'
    return '' if has_openvino() else 'torch: OpenVINO is not installed'


def compile_openvino(network: nn.Module, shape: tuple[int, ...]) -> CompiledCall:
    '''Compile a network in evaluation mode for inputs of one shape, with as many threads as torch has.'''
    # openvino.convert_model would be shorter, but it reports its use over the network.
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        # Zeros: what tracing makes a constant of them is wrong for the check's batch, which then fails. Without shared
        # memory, a later training changes no compiled weight.
        decoder = TorchScriptPythonDecoder(network, example_input=torch.zeros(shape), shared_memory=False)
    frontend = FrontEndManager().load_by_framework('pytorch')
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    settings = {
        'INFERENCE_PRECISION_HINT': 'f32',  # by itself it may choose bfloat16
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
        'ENABLE_CPU_PINNING': False,  # processes that share the cores must be free to move
    }
    request = openvino.compile_model(model, 'CPU', settings).create_infer_request()
    return lambda batch: np.array(request.infer([batch])[0])


def compile_network(
    network: nn.Module,
    spec: Tensor,
    rows: int,
    backend: str,
    read_logits: Callable[[Any], Any],
    compiler: Compiler = compile_openvino,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[nn.Module, str]:
    '''A network compiled for a batch's shape, or the network itself, and a text for the report.

    The network itself is returned where it cannot be compiled, where the batch's logits differ, and with backend auto
    where it is as fast, in the median of two turns.

    Shape:  spec (B, C, M, N), B <= rows
    '''
    batch = pad_rows(spec, rows)
    expected = read_logits(network(batch))
    try:
        compiled = CompiledNetwork(compiler(network, tuple(batch.shape)), rows)
        difference = float((read_logits(compiled(batch)) - expected).abs().max())
    except Exception as error:
        return network, f'torch: OpenVINO cannot compile the network: {one_line(error)[:200]}'
    if not is_tolerable(difference, expected):
        return network, f'torch: the logits of OpenVINO differed by {difference:.2g}'
    text = f'openvino: logits differ by {difference:.1g} or less'
    if backend != 'auto':
        return compiled, text
    times: dict[nn.Module, list[float]] = {network: [], compiled: []}
    for _ in range(2):
        for module, turns in times.items():
            start = now()
            module(batch)
            turns.append(now() - start)
    torch_s, compiled_s = (statistics.median(turns) for turns in times.values())
    speed = f'{rows} windows take {torch_s:.3f} s with torch, {compiled_s:.3f} s with OpenVINO'
    if torch_s <= compiled_s:
        return network, f'torch: {speed}'
    return compiled, f'{text}; {speed}'


class NormWatch(TorchFunctionMode):
    '''Watch a forward: every convolution's output and weight, and the calls that read each tensor.'''

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple[Tensor, Tensor]] = []  # held, so that ids stay their own
        self.calls: dict[int, list[Any]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list) and not isinstance(result, torch.Size):
            for value in (*args, *(kwargs or {}).values()):
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    self.calls[id(tensor)].append((func, args))
        if func in (torch.conv1d, torch.conv2d):
            self.convolutions.append((result, args[1]))
        return result

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        '''Return (weight, running mean) of convolutions whose output one batch norm alone reads, each used once.'''
        found = []
        for output, weight in self.convolutions:
            calls = self.calls[id(output)]
            if len(calls) == 1 and calls[0][0] is F.batch_norm and calls[0][1][0] is output:
                mean = calls[0][1][1]
                if len(self.calls[id(weight)]) == len(self.calls[id(mean)]) == 1:
                    found.append((weight, mean))
        return found


def fuse_norms(network: nn.Module, channels: int, rows: int) -> tuple[nn.Module, str]:
    '''A copy of a network in evaluation mode with its batch norms fused, and a text for the report.

    The copy shares all tensors but those of fused convolutions. One forward of noise shows which norms can be fused, a
    second whether the logits stay equal. If not, and for a custom network, the network itself is returned.
    '''
    if not isinstance(network, Network):
        return network, 'not fused: a custom network'
    tensors = [*network.parameters(), *network.buffers()]
    fused = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    shape = (1, channels, rows, 2 * network.min_frames)
    spec = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tensors[0].device)
    with NormWatch() as watch:
        expected = fused(spec)
    named: dict[int, tuple[str, Any]] = {}
    for name, module in fused.named_modules():
        for tensor in (getattr(module, 'weight', None), getattr(module, 'running_mean', None)):
            named[id(tensor)] = name, module
    pairs = watch.pairs()
    for weight, mean in pairs:
        _, conv = named[id(weight)]
        name, norm = named[id(mean)]
        of_norm = (mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *of_norm)
        # timm's norms have children, dropout and activation: they stay.
        fused.set_submodule(name, nn.Sequential(*norm.children()))
    difference = float((fused(spec) - expected).abs().max())
    if not is_tolerable(difference, expected):
        return network, f'not fused: logits of noise differed by {difference:.2g}'
    return fused, f'{len(pairs)} batch norms fused into convolutions'
