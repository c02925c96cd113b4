"""The vision transformer core: patches of the image as tokens that attend to each other.

Li, Cornacchia, Rochefort & Onken 2023 (V1T, TMLR, arXiv:2302.03023), after Dosovitskiy et al. 2021: overlapping patches, learnt
positions, pre-norm blocks of attention and MLP, and behaviour added to every token before each block by a small network of the block's own.
The tokens go back to where their patches lay, so that any readout can follow. Without dropout: the weights are all that is random.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import TransformerConfiguration
from sensorium_pipeline.models.cores.base import Core
from sensorium_pipeline.models.dense import dense


class Block(nn.Module):
    """Behaviour, attention and MLP, each added to the tokens.

    Args:
        configuration: sizes.
        behavior: whether behaviour is added.
        generator: of the initial weights.
    """

    def __init__(self, configuration: TransformerConfiguration, behavior: bool, generator: torch.Generator) -> None:
        super().__init__()
        channels, hidden = configuration.channels, configuration.hidden
        self.heads = configuration.heads
        self.attention_norm, self.hidden_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.to_attention, self.from_attention = dense(channels, 3 * channels, generator), dense(channels, channels, generator)
        self.to_hidden, self.from_hidden = dense(channels, hidden, generator), dense(hidden, channels, generator)
        self.behavior = (
            nn.Sequential(dense(3, channels, generator), nn.Tanh(), dense(channels, channels, generator), nn.Tanh()) if behavior else None
        )

    def forward(self, tokens: Tensor, behavior: Tensor | None) -> Tensor:
        """Tokens (trials, tokens, channels) to the same shape; behaviour (trials, 3) or None."""
        if behavior is not None and self.behavior is not None:
            tokens = tokens + self.behavior(behavior)[:, None]
        trials, number, channels = tokens.shape
        parts = self.to_attention(self.attention_norm(tokens)).view(trials, number, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(trials, number, channels)
        tokens = tokens + self.from_attention(attended)
        return tokens + self.from_hidden(functional.gelu(self.to_hidden(self.hidden_norm(tokens))))


class TransformerCore(Core):
    """Images to tokens, laid out as maps.

    Args:
        configuration: sizes.
        behavior: whether behaviour is added to the tokens.
        image_shape: (y, x) pixels; every patch has a learnt position.
        generator: of the initial weights.
    """

    def __init__(
        self, configuration: TransformerConfiguration, behavior: bool, image_shape: tuple[int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.channels, self.patch, self.stride = configuration.channels, configuration.patch, configuration.stride
        self.rows, self.columns = ((side - self.patch) // self.stride + 1 for side in image_shape)
        self.embedding = dense(self.patch**2, self.channels, generator)
        if min(self.rows, self.columns) < 1:
            raise InputError(
                f"images of {image_shape} pixels hold no patch of {self.patch}", where="image_shape", advice="Use smaller patches"
            )
        tokens = self.rows * self.columns
        self.positions = nn.Parameter(torch.randn(tokens, self.channels, generator=generator) / math.sqrt(self.channels))
        self.blocks = nn.ModuleList(Block(configuration, behavior, generator) for _ in range(configuration.blocks))
        self.norm = nn.BatchNorm2d(self.channels, momentum=configuration.batch_norm_momentum)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Maps (trials, channels, rows of patches, columns of patches); see `Core.forward`."""
        patches = functional.unfold(images, self.patch, stride=self.stride).transpose(1, 2)
        tokens = self.embedding(patches) + self.positions
        for block in self.blocks:
            tokens = block(tokens, behavior)
        maps = tokens.reshape(-1, self.rows, self.columns, self.channels).permute(0, 3, 1, 2)
        return functional.elu(self.norm(maps))
