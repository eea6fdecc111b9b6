"""Fuse batch norms into the convolutions before them, in a copy of a network that only predicts."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from kit.models.network import Network

# The fused network's logits may differ so much, relative to the greatest logit, or to 1 where that is below 1.
FUSION_TOLERANCE = 1e-4


class NormWatch(TorchFunctionMode):
    """Watch a forward: which functions read each convolution's output, and with which arguments."""

    def __init__(self) -> None:
        super().__init__()
        # By the id of an output: the output, kept so that its id stays its own, the weight, and the calls that read it.
        self.convolutions: dict[int, tuple[Tensor, Tensor, list[Any]]] = {}
        self.tensors_used: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values: list[Any] = []
        for value in (*args, *(kwargs or {}).values()):
            values += value if isinstance(value, list | tuple) else [value]
        results = result if isinstance(result, list | tuple) else [result]
        if any(isinstance(value, Tensor) for value in results):  # shapes and types read no numbers
            self.tensors_used += map(id, values)
            for key in {id(value) for value in values} & self.convolutions.keys():
                self.convolutions[key][2].append((func, args))
        if func in (torch.conv1d, torch.conv2d):
            self.convolutions[id(result)] = (result, args[1], [])
        return result

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, running mean) of each convolution whose output one batch norm alone reads.

        A tensor that the forward used more than once is in no pair.
        """
        found = []
        for output, weight, readers in self.convolutions.values():
            if len(readers) == 1 and readers[0][0] is F.batch_norm and readers[0][1][0] is output:
                pair = (weight, readers[0][1][1])
                if all(self.tensors_used.count(id(tensor)) == 1 for tensor in pair):
                    found.append(pair)
        return found


def fuse_norms(network: nn.Module, channels: int, rows: int) -> tuple[nn.Module, str]:
    """Return a copy of a network with its batch norms fused, and a text for the report.

    The network must be in evaluation mode and stays as it is: the copy shares all tensors but those of fused
    convolutions. One forward of noise shows which norms can be fused, a second whether the logits stay equal. Where
    they do not, and for a network that is not of the kit's families, the network itself is returned.
    """
    if not isinstance(network, Network):
        return network, "not fused: a custom network"
    tensors = [*network.parameters(), *network.buffers()]
    fused = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    shape = (1, channels, rows, 2 * network.min_frames)
    spec = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tensors[0].device)
    with NormWatch() as watch:
        expected = fused(spec)
    module_of: dict[int, tuple[str, Any]] = {}
    for name, module in fused.named_modules():
        for attribute in ("weight", "running_mean"):
            if isinstance(getattr(module, attribute, None), Tensor):
                module_of[id(getattr(module, attribute))] = (name, module)
    pairs = watch.pairs()
    for weight, mean in pairs:
        _, conv = module_of[id(weight)]
        name, norm = module_of[id(mean)]
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's norms have children, dropout and activation, which stay.
        fused.set_submodule(name, nn.Sequential(*norm.children()))
    difference = float((fused(spec) - expected).abs().max())
    if not difference <= FUSION_TOLERANCE * max(1.0, float(expected.abs().max())):
        return network, f"not fused: logits of noise differed by {difference:.2g}"
    return fused, f"{len(pairs)} batch norms fused into convolutions"
