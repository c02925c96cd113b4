"""A core that computes nothing: the feature maps were computed before, by a network that is not trained on neurons.

So that a readout can be fitted to any network's features (Yamins et al. 2014; as Brain-Score, Schrimpf et al. 2018, takes models).
"""

from torch import Tensor, nn

from sensorium_pipeline.models.configuration import FeaturesConfiguration
from sensorium_pipeline.models.cores.base import Core, channels_last


class FeaturesCore(Core):
    """Batch normalisation of given maps, which stand in the place of images: (trials, channels, y, x)."""

    def __init__(self, configuration: FeaturesConfiguration) -> None:
        super().__init__()
        self.channels, self._shape = configuration.channels, configuration.map_shape
        self.norm = nn.BatchNorm2d(self.channels, momentum=configuration.batch_norm_momentum)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """The maps, every channel with mean 0 and variance 1; see `Core.forward`."""
        maps: Tensor = self.norm(channels_last(images))
        return maps

    def map_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """That of the given maps."""
        return self._shape
