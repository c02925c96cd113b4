"""The baseline zoo: architectures with their papers, at full size for both tracks, and small for a demonstration on a CPU.

In track SENSORIUM behaviour is shown to nobody. In SENSORIUM+ it enters the core where the core takes it (as in 2022), else it
multiplies the rates; and the pupil moves the readout where the readout has positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import ModelConfiguration

Size = Literal["full", "demo"]


@dataclass(frozen=True)
class Baseline:
    """One architecture.

    Attributes:
        name: for tables.
        paper: where it comes from.
        full: fields of `ModelConfiguration` at full size, in track SENSORIUM.
        demo: fields that are set otherwise in a demonstration.
        plus: fields that track SENSORIUM+ adds.
    """

    name: str
    paper: str
    full: Mapping[str, Any]
    demo: Mapping[str, Any]
    plus: Mapping[str, Any] = field(default_factory=lambda: {"behavior": True, "shifter": True})


# In a demonstration behaviour enters weakly, so that the image is learnt before what moves all neurons together drowns it, and the
# running statistics of batches this small are averaged over many.
_DEMO_CORE = {"batch_norm_momentum": 0.1}
_DEMO_LEARNT = {**_DEMO_CORE, "laplace_weight": 1.0}
# Two layers hold an energy cell: four phases, rectified, then summed.
_DEMO_CONVOLUTION = {**_DEMO_LEARNT, "layers": 2, "channels": 16, "hidden_kernel": 3}
_GAUSSIAN = {"kind": "gaussian"}
_FACTORISED = {"kind": "factorised"}
_DEMO_GAUSSIAN = {**_GAUSSIAN, "initial_sigma": 0.15}
_MODULATED = {"modulator": True, "shifter": True}

BASELINES: Mapping[str, Baseline] = {
    "ln": Baseline(
        "LN",
        "Willeke et al. 2022",
        {"core": {"kind": "convolution", "linear": True, "layers": 3}, "readout": _GAUSSIAN},
        {"core": _DEMO_CONVOLUTION, "readout": _DEMO_GAUSSIAN, "behavior_scale": 0.1},
    ),
    "energy": Baseline(
        "energy model",
        "Adelson & Bergen 1985",
        {"core": {"kind": "energy"}, "readout": _GAUSSIAN},
        {
            "core": {**_DEMO_CORE, "orientations": 6, "wavelengths": (5.0, 8.0, 12.0), "kernel": 13},
            "readout": _DEMO_GAUSSIAN,
            "behavior_scale": 0.1,
        },
        _MODULATED,
    ),
    "subunit": Baseline(
        "subunit LN-LN",
        "Rust et al. 2005; Vintch et al. 2015",
        {"core": {"kind": "subunits"}, "readout": _FACTORISED},
        {"core": {**_DEMO_LEARNT, "channels": 16, "input_kernel": 9}, "behavior_scale": 0.1},
        {"modulator": True},
    ),
    "factorised": Baseline(
        "CNN, factorised readout",
        "Klindt et al. 2017",
        {"core": {"kind": "convolution", "layers": 3}, "readout": _FACTORISED},
        {"core": _DEMO_CONVOLUTION, "behavior_scale": 0.1},
        {"behavior": True},
    ),
    "cnn": Baseline(
        "CNN",
        "Lurz et al. 2021; Willeke et al. 2022",
        {"core": {"kind": "convolution"}, "readout": _GAUSSIAN},
        {"core": _DEMO_CONVOLUTION, "readout": _DEMO_GAUSSIAN, "behavior_scale": 0.1},
    ),
    "rotation": Baseline(
        "rotation-equivariant CNN",
        "Ecker et al. 2019",
        {"core": {"kind": "rotation"}, "readout": _GAUSSIAN},
        {
            "core": {**_DEMO_LEARNT, "layers": 2, "features": 4, "input_kernel": 9, "hidden_kernel": 3},
            "readout": _DEMO_GAUSSIAN,
            "behavior_scale": 0.1,
        },
    ),
    "squeeze": Baseline(
        "squeeze-and-excitation CNN",
        "Hu et al. 2018",
        {"core": {"kind": "squeeze_excitation"}, "readout": _GAUSSIAN},
        {"core": {**_DEMO_CONVOLUTION, "reduction": 4}, "readout": _DEMO_GAUSSIAN, "behavior_scale": 0.1},
    ),
    "pretrained": Baseline(
        "task-pretrained features",
        "Cadena et al. 2019",
        {"core": {"kind": "pretrained"}, "readout": _GAUSSIAN},
        {"core": {**_DEMO_CORE, "layer": "features.2"}, "readout": _DEMO_GAUSSIAN, "behavior_scale": 0.1},
        _MODULATED,
    ),
    "transformer": Baseline(
        "vision transformer",
        "Li et al. 2023",
        {"core": {"kind": "transformer"}, "readout": _GAUSSIAN},
        {
            "core": {**_DEMO_CORE, "stride": 4, "channels": 32, "blocks": 2, "heads": 2, "hidden": 64},
            "readout": _DEMO_GAUSSIAN,
            "behavior_scale": 0.1,
        },
    ),
}

# Fields of `TrainerParameters` with which a demonstration trains in under a minute on one CPU core with two sessions of 100 neurons
# and 700 images of 36 x 64 pixels.
DEMO_TRAINING: Mapping[str, Any] = {"epochs": 18, "batch_size": 32, "learning_rate": 0.005, "patience": 8}


def baseline(architecture: str, track: str, sizes: Mapping[str, Any] | None = None, size: Size = "full") -> ModelConfiguration:
    """Configuration of a baseline for a track, with some fields of `ModelConfiguration` set otherwise by `sizes`.

    Raises:
        InputError: for an unknown architecture, track or field, or a value that a field cannot take.
    """
    if architecture not in BASELINES:
        raise InputError(f"unknown architecture {architecture!r}", where="architecture", advice=f"Choose one of {', '.join(BASELINES)}")
    if track not in ("sensorium", "sensorium+"):
        raise InputError(f"unknown track {track!r}", where="track", advice="Choose sensorium or sensorium+")
    preset = BASELINES[architecture]
    fields = _merged(preset.full, preset.demo if size == "demo" else {})
    fields = _merged(fields, preset.plus if track == "sensorium+" else {})
    try:
        return ModelConfiguration.model_validate(_merged(fields, sizes or {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "sizes"
        raise InputError(
            f"{field}: {first['msg']}", where="model", advice="See the fields of sensorium_pipeline.models.configuration.ModelConfiguration"
        ) from error


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with changes on top; tables within both are merged field by field."""
    merged = dict(fields)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
