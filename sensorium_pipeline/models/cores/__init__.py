"""Cores, one module each: from images to feature maps that all sessions share."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import (
    ConvolutionConfiguration,
    EnergyConfiguration,
    FeaturesConfiguration,
    ModelConfiguration,
    PretrainedConfiguration,
    RotationConfiguration,
    SqueezeExcitationConfiguration,
    SubunitConfiguration,
)
from sensorium_pipeline.models.cores.base import Core
from sensorium_pipeline.models.cores.convolution import ConvolutionCore
from sensorium_pipeline.models.cores.energy import EnergyCore
from sensorium_pipeline.models.cores.features import FeaturesCore
from sensorium_pipeline.models.cores.pretrained import PretrainedCore, random_vgg
from sensorium_pipeline.models.cores.rotation import RotationCore
from sensorium_pipeline.models.cores.squeeze_excitation import SqueezeExcitationCore
from sensorium_pipeline.models.cores.subunits import SubunitCore
from sensorium_pipeline.models.cores.transformer import TransformerCore

__all__ = ["Core", "build_core"]


def build_core(configuration: ModelConfiguration, generator: torch.Generator, network: Mapping[str, Tensor] | None = None) -> Core:
    """The core of a configuration, with initial weights from a generator.

    Args:
        configuration: sizes; its image shape is needed by the transformer alone.
        generator: of the initial weights.
        network: weights of a pretrained network, where the configuration names some.

    Raises:
        InputError: when the image shape or the network is missing, or the network does not fit.
    """
    core, behavior = configuration.core, configuration.behavior
    if isinstance(core, ConvolutionConfiguration):
        return ConvolutionCore(core, behavior, generator)
    if isinstance(core, SqueezeExcitationConfiguration):
        return SqueezeExcitationCore(core, behavior, generator)
    if isinstance(core, RotationConfiguration):
        return RotationCore(core, behavior, generator)
    if isinstance(core, EnergyConfiguration):
        return EnergyCore(core)
    if isinstance(core, SubunitConfiguration):
        return SubunitCore(core, generator)
    if isinstance(core, FeaturesConfiguration):
        return FeaturesCore(core)
    if isinstance(core, PretrainedConfiguration):
        if core.weights is not None and network is None:
            raise InputError("the network's weights were not given", where=core.weights, advice="Read them with read_network")
        return PretrainedCore(core, random_vgg(generator) if network is None else network)
    if configuration.image_shape is None:
        raise InputError("a transformer is made for one image shape", where="image_shape", advice="Build it for sessions")
    return TransformerCore(core, behavior, configuration.image_shape, generator)
