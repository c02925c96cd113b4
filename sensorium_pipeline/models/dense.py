"""A fully connected layer whose initial weights come from a generator passed by hand."""

import math

import torch
from torch import nn


def dense(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Linear layer, weights and bias uniform within plus and minus 1/sqrt(inputs), PyTorch's own default range."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
