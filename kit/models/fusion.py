"""Fuse batch norms into the convolutions before them, in a copy of a network that only predicts."""

import copy
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from kit.models.network import Network

# How much fused logits may differ, relative to the greatest logit or to 1.
FUSION_TOLERANCE = 1e-4


class NormWatch(TorchFunctionMode):
    """Watch a forward: every convolution's output and weight, and the calls that read each tensor."""

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
        """Return (weight, running mean) of convolutions whose output one batch norm alone reads, each used once."""
        found = []
        for output, weight in self.convolutions:
            calls = self.calls[id(output)]
            if len(calls) == 1 and calls[0][0] is F.batch_norm and calls[0][1][0] is output:
                mean = calls[0][1][1]
                if len(self.calls[id(weight)]) == len(self.calls[id(mean)]) == 1:
                    found.append((weight, mean))
        return found


def fuse_norms(network: nn.Module, channels: int, rows: int) -> tuple[nn.Module, str]:
    """Return a copy of a network in evaluation mode with its batch norms fused, and a text for the report.

    The copy shares all tensors but those of fused convolutions. One forward of noise shows which norms can be fused, a
    second whether the logits stay equal. Where they do not, and for a custom network, the network itself is returned.
    """
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
        variance = norm.running_var
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        # timm's norms have children, dropout and activation, which stay.
        fused.set_submodule(name, nn.Sequential(*norm.children()))
    difference = float((fused(spec) - expected).abs().max())
    if not difference <= FUSION_TOLERANCE * max(1.0, float(expected.abs().max())):
        return network, f'not fused: logits of noise differed by {difference:.2g}'
    return fused, f'{len(pairs)} batch norms fused into convolutions'
