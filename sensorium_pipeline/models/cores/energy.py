"""The energy model: quadrature pairs of Gabor filters, squared and added.

Adelson & Bergen 1985 (J. Opt. Soc. Am. A 2, 284): two filters a quarter of a cycle apart give a response that depends on orientation
and spatial frequency, not on phase; the standard model of a complex cell. Orientation, wavelength and size of every pair are learnt; so
are, in the readout, which pairs a neuron pools and where.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.models.configuration import EnergyConfiguration
from sensorium_pipeline.models.cores.base import Core, channels_last

# Standard deviation of the envelope over the wavelength: a bandwidth of about one and a half octaves.
_ENVELOPE = 0.4


class EnergyCore(Core):
    """Images to the energy of quadrature pairs, batch-normalised; every pair is a channel.

    Args:
        configuration: sizes, and where orientations and wavelengths start.
    """

    coordinates: Tensor

    def __init__(self, configuration: EnergyConfiguration) -> None:
        super().__init__()
        wavelengths = torch.tensor(configuration.wavelengths).repeat_interleave(configuration.orientations)
        angles = torch.arange(configuration.orientations) * (math.pi / configuration.orientations)
        self.channels = len(wavelengths)
        self.orientation = nn.Parameter(angles.repeat(len(configuration.wavelengths)))
        self.log_wavelength = nn.Parameter(wavelengths.log())
        self.log_envelope = nn.Parameter((wavelengths * _ENVELOPE).log())
        half = configuration.kernel // 2
        steps = torch.arange(-half, half + 1, dtype=torch.float32)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(steps, steps, indexing="ij")), persistent=False)
        self.norm = nn.BatchNorm2d(self.channels, momentum=configuration.batch_norm_momentum)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Even and odd filters, each (channels, side, side), of unit energy; the even ones do not respond to uniform grey."""
        y, x = self.coordinates
        wavelength, envelope = self.log_wavelength.exp()[:, None, None], self.log_envelope.exp()[:, None, None]
        angle = self.orientation[:, None, None]
        window = torch.exp(-(y.square() + x.square()) / (2 * envelope.square()))
        phase = 2 * math.pi / wavelength * (x * angle.cos() + y * angle.sin())
        even, odd = window * phase.cos(), window * phase.sin()
        even = even - window * (even.sum((1, 2), keepdim=True) / window.sum((1, 2), keepdim=True))
        return _unit_energy(even), _unit_energy(odd)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Energies (trials, channels, y, x); see `Core.forward`."""
        filters = torch.cat(self.pairs())[:, None]
        even, odd = functional.conv2d(images, filters, padding=filters.shape[-1] // 2).chunk(2, dim=1)
        maps: Tensor = self.norm(channels_last(even.square() + odd.square()))
        return maps


def _unit_energy(filters: Tensor) -> Tensor:
    return filters / filters.square().sum((1, 2), keepdim=True).sqrt()
