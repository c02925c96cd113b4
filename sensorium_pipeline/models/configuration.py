"""What a model is made of, apart from its weights: stored with the weights and checked when they are loaded.

Weights loaded with another input scale or another number of layers than they were trained with predict nonsense without
complaining; so no weights travel without their configuration.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sensorium_pipeline.errors import InputError


class ModelConfiguration(BaseModel):
    """Sizes of an encoder with a convolutional core and Gaussian readouts; the defaults are the 2022 CNN of track SENSORIUM.

    Attributes:
        schema_version: raised when a field changes its meaning.
        linear: no nonlinearity in the core, which makes it the LN model.
        layers: convolutional layers of the core, the first included.
        hidden_channels: channels of every layer.
        input_kernel: side of the first layer's kernels, pixels; the first layer is not padded.
        hidden_kernel: side of the later layers' depthwise kernels, pixels, odd; they are padded to keep the shape.
        batch_norm_momentum: weight of the newest batch in the running mean and variance (PyTorch's convention).
        behavior: pupil dilation, its derivative and running speed enter as constant image channels.
        behavior_scale: factor on the behaviour channels, beside their standard deviation. A step changes all the weights of a constant
            channel's kernels together, so at 1 behaviour is learnt many times faster than the image, which few trials do not mend.
        shifter: the pupil centre moves the readout positions.
        position_features: hidden units of the network from cortical to visual position.
        shifter_features: hidden units of each of the shifter's two hidden layers.
        initial_sigma: the 2 x 2 spread of each neuron's position starts uniform within plus and minus this, in half image sides.
        laplace_weight: of the smoothness of the first layer's kernels in the loss.
        feature_weight: of the absolute readout features in the loss.
        image_shape: (y, x) pixels of the input that the weights belong to; None while they belong to no scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    linear: bool = False
    layers: int = Field(default=4, ge=1)
    hidden_channels: int = Field(default=64, ge=1)
    input_kernel: int = Field(default=9, ge=1)
    hidden_kernel: int = Field(default=7, ge=1)
    batch_norm_momentum: float = Field(default=0.9, gt=0, le=1)
    behavior: bool = False
    behavior_scale: float = Field(default=1.0, gt=0)
    shifter: bool = False
    position_features: int = Field(default=30, ge=1)
    shifter_features: int = Field(default=5, ge=1)
    initial_sigma: float = Field(default=0.1, ge=0)
    laplace_weight: float = Field(default=6.3831, ge=0)
    feature_weight: float = Field(default=0.0076, ge=0)
    image_shape: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _odd_hidden_kernel(self) -> Self:
        if self.hidden_kernel % 2 == 0:
            raise ValueError("hidden_kernel must be odd, so that padding keeps the shape")
        return self

    @property
    def input_channels(self) -> int:
        """Channels of the first layer's kernels: the image, and three behaviour values where they are used."""
        return 4 if self.behavior else 1


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
            advice="load weights only with the version of the package that wrote them, or train the model again",
        ) from error
