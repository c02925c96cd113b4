"""The baselines of SENSORIUM 2022, for both tracks, and their small versions for a demonstration on a CPU.

LN: three layers without nonlinearity. CNN: four layers with ELU. For track SENSORIUM+ behaviour channels and a shifter are added.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import ModelConfiguration

BASELINES: Mapping[str, ModelConfiguration] = {"ln": ModelConfiguration(linear=True, layers=3), "cnn": ModelConfiguration(layers=4)}

# The `[parameters]` table, beside the architecture, of a baseline that trains in under a minute on one CPU core with two sessions
# of 100 neurons and 700 images of 36 x 64. Two layers hold an energy cell (four phases, rectified, then summed). The steps are
# small, and behaviour enters weakly, so that the image is learnt before what moves all neurons together drowns it; the
# running statistics of batches this small are averaged over many.
DEMO: Mapping[str, Mapping[str, Any]] = {
    "model": {
        "layers": 2,
        "hidden_channels": 16,
        "hidden_kernel": 3,
        "initial_sigma": 0.15,
        "batch_norm_momentum": 0.1,
        "laplace_weight": 1.0,
        "behavior_scale": 0.1,
    },
    "training": {"epochs": 18, "batch_size": 32, "learning_rate": 0.005, "patience": 8},
}

_BEHAVIOR_OF_TRACK = {"sensorium": False, "sensorium+": True}


def baseline(architecture: str, track: str, sizes: Mapping[str, Any] | None = None) -> ModelConfiguration:
    """Configuration of a baseline for a track, with some fields of `ModelConfiguration` set otherwise by `sizes`.

    Raises:
        InputError: for an unknown architecture, track or field, or a value that a field cannot take.
    """
    if architecture not in BASELINES:
        raise InputError(f"unknown architecture {architecture!r}", where="architecture", advice=f"choose one of {sorted(BASELINES)}")
    if track not in _BEHAVIOR_OF_TRACK:
        raise InputError(f"unknown track {track!r}", where="track", advice=f"choose one of {sorted(_BEHAVIOR_OF_TRACK)}")
    behavior = _BEHAVIOR_OF_TRACK[track]
    fields = BASELINES[architecture].model_dump() | {"behavior": behavior, "shifter": behavior} | dict(sizes or {})
    try:
        return ModelConfiguration.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "sizes"
        raise InputError(
            f"{field}: {first['msg']}", where="model", advice="see the fields of sensorium_pipeline.models.configuration.ModelConfiguration"
        ) from error
