'''Measure OpenVINO and ONNX Runtime against torch with fused batch norms, on windows of 5 s.

python -m tests.benchmarks backends [REPEATS]
'''

import io
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from kit.audio.windows import InferenceConfig
from kit.infer.backend import STATIC_ROWS, CompiledCall, CompiledNetwork, compile_network, compile_openvino
from kit.infer.predictor import Predictor
from kit.train.recipe import Recipe
from kit.train.recipes import RECIPES, find_recipe
from tests.benchmarks.bench_frames import make_tagger
from tests.benchmarks.timing import interleaved_times, print_times, time_ratio

SECONDS = 60.0
WINDOWS = InferenceConfig(mode='windows', window_s=5.0, hop_s=5.0)


def compile_onnxruntime(network: nn.Module, shape: tuple[int, ...]) -> CompiledCall:
    '''Compile as `compile_openvino` does. Exporting needs onnx; torch's newer exporter would need onnxscript, too.'''
    import onnxruntime

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(network, (torch.zeros(shape),), content, input_names=['spec'], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=['CPUExecutionProvider'])

    def call(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {'spec': batch})[0])

    return call


def systems() -> dict[str, Recipe]:
    '''The networks to measure.'''
    efficient = {'family': 'timm', 'name': 'tf_efficientnet_b0'}
    return {
        'max-pyramid-mel --small': find_recipe('max-pyramid-mel', small=True),
        'max-pyramid-mel': RECIPES['max-pyramid-mel'],
        'max-pyramid-stft': RECIPES['max-pyramid-stft'],
        'axis-pool': RECIPES['axis-pool'],
        'window-snr': RECIPES['window-snr'],
        'skip-attention': RECIPES['skip-attention'],
        'sed (EfficientNetV2-S, attention)': RECIPES['sed'],
        'freq-coord (EfficientNet-B3)': RECIPES['freq-coord'],
        'tf_efficientnet_b0': replace(RECIPES['sed'], network=efficient),
    }


def main(repeats: int = 5) -> None:
    '''Print each backend's time over a minute, the speed-ups, the times to compile and how far logits are off.'''
    compilers = {'openvino': compile_openvino, 'onnxruntime': compile_onnxruntime}
    compilers = {name: compiler for name, compiler in compilers.items() if find_spec(name)}
    if not compilers:
        print('backends: neither openvino nor onnxruntime is installed')
        return
    torch.set_num_threads(1)
    print(f'5-s windows over {SECONDS:.0f} s, 1 thread, processor seconds, {repeats} turns')
    for name, system in systems().items():
        tagger = make_tagger(system)
        frames = round(SECONDS * system.frontend.frames_per_s)
        spec = torch.randn(system.frontend.rows, frames, generator=torch.Generator().manual_seed(0))
        predictors = {
            backend: Predictor(tagger, torch.device('cpu'), inference=WINDOWS, fuse=True)
            for backend in ('torch', *compilers)
        }
        print(name)
        for backend, predictor in predictors.items():
            if backend != 'torch':
                predictor.batch_clips = STATIC_ROWS
            predictor.predict([spec])
        for backend, compiler in compilers.items():
            predictor = predictors[backend]
            length = WINDOWS.spans(frames, system.frontend.frames_per_s)[0][1]
            batch = predictor.make_inputs(spec[None, :, :length])
            began = time.process_time()
            with predictor.evaluation_mode():
                predictor.network, text = compile_network(
                    predictor.network, batch, STATIC_ROWS, 'openvino', tagger.read_logits, compiler
                )
            seconds = time.process_time() - began
            if isinstance(predictor.network, CompiledNetwork):
                print(f'  {backend}: compiled and checked in {seconds:.1f} s;{text.partition(":")[2]}')
            else:
                print(f'  {backend}: cannot compile it, torch stays')
        works = {backend: lambda p=one, s=spec: p.predict([s]) for backend, one in predictors.items()}
        times = interleaved_times(works, repeats, time.process_time)
        print_times(times)
        for backend in compilers:
            print(f'  torch against {backend}: {time_ratio(times, "torch", backend)}', flush=True)


if __name__ == '__main__':
    main()
