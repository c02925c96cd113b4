"""What a model is made of, apart from its weights: stored with the weights and checked when they are loaded.

Weights loaded with another input scale or another number of layers than they were trained with predict nonsense without
complaining; so no weights travel without their configuration.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sensorium_pipeline.errors import InputError

Momentum = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _odd(side: int) -> int:
    if side % 2 == 0:
        raise ValueError("must be odd, so that padding keeps the shape")
    return side


OddCount = Annotated[Count, AfterValidator(_odd)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Core(_Part):
    """What all cores have.

    Attributes:
        batch_norm_momentum: weight of the newest batch in the running mean and variance (PyTorch's convention).
    """

    batch_norm_momentum: Momentum = 0.9


class _LearntKernels(_Core):
    """Cores whose first layer is learnt.

    Attributes:
        laplace_weight: of the smoothness of the first layer's kernels in the loss.
    """

    laplace_weight: Weight = 6.3831


class _DepthwiseKernels(_LearntKernels):
    """Cores of depthwise convolutions; the defaults are those of the 2022 CNN.

    Attributes:
        layers: convolutional layers, the first included.
        channels: of every layer.
        input_kernel: side of the first layer's kernels, pixels; the first layer is not padded.
        hidden_kernel: side of the later layers' depthwise kernels, pixels, odd; they are padded to keep the shape.
    """

    layers: Count = 4
    channels: Count = 64
    input_kernel: Count = 9
    hidden_kernel: OddCount = 7


class ConvolutionConfiguration(_DepthwiseKernels):
    """Sizes of `cores.convolution`; linear: no nonlinearity in the core, which makes it the LN model."""

    kind: Literal["convolution"] = "convolution"
    linear: bool = False


class SqueezeExcitationConfiguration(_DepthwiseKernels):
    """Sizes of `cores.squeeze_excitation`; reduction: how many times narrower the gate's middle is."""

    kind: Literal["squeeze_excitation"] = "squeeze_excitation"
    reduction: Count = 16


class RotationConfiguration(_LearntKernels):
    """Sizes of `cores.rotation`.

    Attributes:
        layers: convolutional layers, the first included.
        features: of every layer; each gives a channel for every rotation.
        rotations: orientations that every feature comes in.
        input_kernel: side of the first layer's kernels, pixels, odd; the first layer is not padded.
        hidden_kernel: side of the later layers' kernels, pixels, odd; they are padded to keep the shape.
    """

    kind: Literal["rotation"] = "rotation"
    layers: Count = 3
    features: Count = 16
    rotations: Count = 8
    input_kernel: OddCount = 13
    hidden_kernel: OddCount = 5


class EnergyConfiguration(_Core):
    """Sizes of `cores.energy`.

    Attributes:
        orientations: of the quadrature pairs at the start, evenly over half a turn.
        wavelengths: of the quadrature pairs at the start, pixels; each comes in every orientation.
        kernel: side of the filters, pixels, odd; they are padded to keep the shape.
    """

    kind: Literal["energy"] = "energy"
    orientations: Count = 8
    wavelengths: Annotated[tuple[Annotated[float, Field(gt=2)], ...], Field(min_length=1)] = (4.0, 6.0, 9.0, 14.0)
    kernel: OddCount = 15


class SubunitConfiguration(_LearntKernels):
    """Sizes of `cores.subunits`: kinds of subunits, and the side of their filters in pixels."""

    kind: Literal["subunits"] = "subunits"
    channels: Count = 32
    input_kernel: Count = 11


class TransformerConfiguration(_Core):
    """Sizes of `cores.transformer`, of the order of those of V1T.

    Attributes:
        patch: side of a patch, pixels.
        stride: from one patch to the next, pixels.
        channels: length of a token, a multiple of heads.
        blocks: of attention and MLP.
        heads: of attention.
        hidden: units of the MLP in each block.
    """

    kind: Literal["transformer"] = "transformer"
    patch: Count = 8
    stride: Count = 2
    channels: Count = 128
    blocks: Count = 4
    heads: Count = 4
    hidden: Count = 384

    @model_validator(mode="after")
    def _heads_share_channels(self) -> Self:
        if self.channels % self.heads:
            raise ValueError("channels must be a multiple of heads")
        return self


class PretrainedConfiguration(_Core):
    """Where `cores.pretrained` gets its frozen network.

    Attributes:
        weights: file in the submission's folder, a state dictionary with torchvision's names (VGG or ResNet); None draws the
            weights of a VGG19 at random, the control of Cadena et al. 2019.
        layer: last layer that is computed: "features.10" (conv3_1 of VGG19) or "layer2", for instance.
    """

    kind: Literal["pretrained"] = "pretrained"
    weights: str | None = None
    layer: str = "features.10"


class FeaturesConfiguration(_Core):
    """Sizes of `cores.features`: of maps that were computed before, (channels, y, x)."""

    kind: Literal["features"] = "features"
    channels: Count
    map_shape: tuple[Count, Count]


class GaussianConfiguration(_Part):
    """Sizes of `readouts.gaussian`.

    Attributes:
        position_features: hidden units of the network from cortical to visual position.
        initial_sigma: the 2 x 2 spread of each neuron's position starts uniform within plus and minus this, in half image sides.
        feature_weight: of the absolute readout features in the loss.
    """

    kind: Literal["gaussian"] = "gaussian"
    position_features: Count = 30
    initial_sigma: Weight = 0.1
    feature_weight: Weight = 0.0076


class FactorisedConfiguration(_Part):
    """Sizes of `readouts.factorised`: feature_weight is that of the absolute weights (mask times features) in the loss."""

    kind: Literal["factorised"] = "factorised"
    feature_weight: Weight = 0.0076


CoreConfiguration = Annotated[
    ConvolutionConfiguration
    | SqueezeExcitationConfiguration
    | RotationConfiguration
    | EnergyConfiguration
    | SubunitConfiguration
    | TransformerConfiguration
    | PretrainedConfiguration
    | FeaturesConfiguration,
    Field(discriminator="kind"),
]
ReadoutConfiguration = Annotated[GaussianConfiguration | FactorisedConfiguration, Field(discriminator="kind")]

# Cores into which behaviour cannot enter: it can act on the rates alone (the modulator).
_WITHOUT_BEHAVIOR = (EnergyConfiguration, SubunitConfiguration, PretrainedConfiguration, FeaturesConfiguration)


class ModelConfiguration(_Part):
    """Sizes of an encoder; the defaults are the 2022 CNN of track SENSORIUM.

    Attributes:
        schema_version: raised when a field changes its meaning.
        core: shared by all sessions.
        readout: of every session.
        behavior: pupil dilation, its derivative and running speed enter the core, as constant image channels or into every token.
        behavior_scale: factor on behaviour, beside its standard deviation. A step changes all the weights of a constant
            channel's kernels together, so at 1 behaviour is learnt many times faster than the image, which few trials do not mend.
        shifter: the pupil centre moves the positions of a Gaussian readout.
        shifter_features: hidden units of each of the shifter's two hidden layers.
        modulator: behaviour multiplies the rate of every neuron.
        modulator_features: hidden units of the modulator.
        image_shape: (y, x) pixels of the input that the weights belong to; None while they belong to no scale.
    """

    schema_version: Literal[2] = 2
    core: CoreConfiguration = ConvolutionConfiguration()
    readout: ReadoutConfiguration = GaussianConfiguration()
    behavior: bool = False
    behavior_scale: float = Field(default=1.0, gt=0)
    shifter: bool = False
    shifter_features: Count = 5
    modulator: bool = False
    modulator_features: Count = 10
    image_shape: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.behavior and isinstance(self.core, _WITHOUT_BEHAVIOR):
            raise ValueError(f"behaviour cannot enter the core {self.core.kind}; use the modulator")
        if self.shifter and not isinstance(self.readout, GaussianConfiguration):
            raise ValueError("only a Gaussian readout has positions that a shifter could move")
        return self


def parse_configuration(text: str | bytes, where: str | Path) -> ModelConfiguration:
    """Read a configuration from the JSON stored with weights.

    Raises:
        InputError: naming `where` and the field, when the text is no configuration this version knows.
    """
    try:
        return ModelConfiguration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InputError(
            f"the model configuration's {field} cannot be used: {first['msg']}",
            where=where,
            advice="Load weights only with the version of the package that wrote them, or train the model again",
        ) from error
