"""An extracted plane as xarray datasets: one of each stage, so that it can be put away as soon as it is done, and one of the whole."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction, PlaneMotion


class Variable(NamedTuple):
    """Dimensions, units and meaning of an array."""

    dims: tuple[str, ...]
    units: str
    long_name: str


IN_FLAGGED = "NaN in flagged frames, the same for all neurons"

VARIABLES: dict[str, Variable] = {
    "mean_before": Variable(("y", "x"), "count", "mean of the raw frames"),
    "mean_after": Variable(("y", "x"), "count", "mean of the corrected frames that are not flagged"),
    "max_before": Variable(("y", "x"), "count", "maximum of the raw frames"),
    "max_after": Variable(("y", "x"), "count", "maximum of the corrected frames that are not flagged"),
    "template": Variable(("y", "x"), "count", "image that frames were aligned to"),
    "coverage": Variable(("y", "x"), "1", "part of the frames in which the pixel lay inside the field"),
    "shifts": Variable(("frame", "yx"), "px", "motion of the frame as a whole, y and x: content was moved by it"),
    "block_shifts": Variable(("frame", "row", "column", "yx"), "px", "what is left of the motion at the nodes, less that of the whole"),
    "block_centres": Variable(("row", "column", "yx"), "px", "where the nodes are"),
    "template_correlation": Variable(("frame",), "1", "Pearson correlation of the corrected frame with the template"),
    "measured": Variable(("frame",), "1", "motion stands out of noise; that of other frames is interpolated"),
    "flagged": Variable(("frame",), "1", "motion could not be trusted, so that traces have no sample"),
    "flag_reason": Variable(("frame",), "1", "why a frame is flagged, empty where it is not"),
    "depth_drift_first_frame": Variable(("part",), "1", "first frame of a part of the recording"),
    "depth_drift_template_correlation": Variable(("part",), "1", "correlation of the part's mean image with the mean of all"),
    "depth_drift_correlation": Variable(("part", "other_part"), "1", "correlation of the mean images of parts with each other"),
    "sampled_frame": Variable(("sample",), "1", "frames of which brightness was measured"),
    "brightness": Variable(("sample",), "count", "mean of a sampled raw frame"),
    "group_mean": Variable(("group",), "count", "mean of pixels alike in brightness"),
    "group_variance": Variable(("group",), "count2", "variance from frame to frame of pixels alike in brightness, median"),
    "residual_frame": Variable(("stretch",), "1", "middle frame of a stretch of time"),
    "residual_shifts": Variable(("stretch", "block_row", "block_column", "yx"), "px", "motion of a block that correction left over"),
    "footprint_neuron": Variable(("entry",), "1", "neuron of an entry; entries are sorted by neuron, then pixel"),
    "footprint_pixel": Variable(("entry",), "1", "flat index of the pixel, y * width + x"),
    "footprint_weight": Variable(("entry",), "1", "weight of the pixel; squares add up to one within a neuron"),
    "centroids": Variable(("neuron", "yx"), "px", "centre of weight of the footprint, y and x"),
    "detection_snr": Variable(("neuron",), "1", "signal-to-noise in the binned movie that cells were found in"),
    "kept": Variable(("neuron",), "1", "whether it is taken for a neuron"),
    "fluorescence": Variable(("neuron", "frame"), "count", f"brightness of a pixel of the footprint; {IN_FLAGGED}"),
    "neuropil": Variable(("neuron", "frame"), "count", f"brightness of a pixel around it where no cell is; {IN_FLAGGED}"),
    "neuropil_coefficient": Variable(("neuron",), "1", "part of the neuropil that was subtracted"),
    "dff": Variable(("neuron", "frame"), "dF/F", f"change of the fluorescence over its baseline; {IN_FLAGGED}"),
    "activity": Variable(
        ("neuron", "frame"),
        "dF/F",
        "height of the transient that the frame's activity makes, not a rate. NaN in flagged frames; what happened in them may show in the "
        "next frame that is not flagged, which alignment to trials leaves out as well",
    ),
    "denoised": Variable(("neuron", "frame"), "dF/F", f"dF/F that the activity makes, without noise and baseline; {IN_FLAGGED}"),
    "noise": Variable(("neuron",), "dF/F", "standard deviation of the noise within a frame"),
    "time_constants": Variable(("neuron", "order"), "s", "decay and rise of the deconvolution"),
    "snr": Variable(("neuron",), "1", "standard deviation of the denoised calcium over that of the noise within a second"),
}
"""Every array of the stages and of a `PlaneExtraction`, by its name there."""


def stage_dataset(result: object, *, rename: Mapping[str, str] | None = None, leave_out: Iterable[str] = ()) -> xr.Dataset:
    """The fields of a stage's result (a dataclass): arrays as variables, numbers and texts as attributes.

    Args:
        result: of a stage.
        rename: fields that are called otherwise here.
        leave_out: fields that are not kept.
    """
    dataset = xr.Dataset()
    for name, value in _flat(result, rename or {}, set(leave_out)):
        if isinstance(value, np.ndarray):
            dataset[name] = _variable(name, value)
        elif isinstance(value, float) and not np.isfinite(value):
            continue  # unknown; attributes cannot hold it
        else:
            dataset.attrs[name] = list(value) if isinstance(value, tuple) else value
    return dataset


def _flat(result: object, rename: Mapping[str, str], leave_out: set[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names and values of a dataclass's fields, those of a record within it under both names; what is None is left out."""
    if not is_dataclass(result):
        raise TypeError(f"{type(result).__name__} is not a dataclass")
    for field in fields(result):
        value = getattr(result, field.name)
        if value is None or field.name in leave_out:
            continue
        name = prefix + rename.get(field.name, field.name)
        if is_dataclass(value):
            yield from _flat(value, {}, set(), f"{name}_")
        else:
            yield name, value


def _variable(name: str, value: NDArray[Any]) -> xr.Variable:
    known = VARIABLES.get(name) or Variable(tuple(f"{name}_{axis}" for axis in range(value.ndim)), "1", name.replace("_", " "))
    return _measured(known, value)


def _measured(known: Variable, value: NDArray[Any]) -> xr.Variable:
    # Without the fast path xarray loads Dask, which takes a third of a second, to ask whether this is one of its arrays.
    return xr.Variable(known.dims, value, {"units": known.units, "long_name": known.long_name}, fastpath=True)


def to_dataset(plane: PlaneExtraction, pixel_sides: tuple[float, float] | None) -> xr.Dataset:
    """Every array of the plane under its own name; scalars, reasons and metrics as attributes.

    Args:
        plane: extracted.
        pixel_sides: (y, x) in micrometres, from which positions come; None where they are not known.
    """
    dataset = stage_dataset(plane, leave_out=("metrics",))
    starts = np.arange(len(plane.flagged)) / plane.frame_rate
    dataset["frame_time"] = _measured(Variable(("frame",), "s", "start of the frame after that of the first"), starts)
    if pixel_sides is not None:
        position = plane.centroids[:, ::-1] * np.array(pixel_sides[::-1], np.float32)
        dataset["position"] = _measured(Variable(("neuron", "xy"), "um", "x and y within the field"), position)
    dataset.attrs["neurons_sorted_by"] = "energy of the signal in the binned movie, largest first"
    dataset.attrs["sample_time"] = (
        "a neuron's sample was taken at the start of its frame plus the delay of its plane plus the mean delay of its lines, "
        "centroids[:, 0] * line period"
    )
    dataset.attrs["metrics"] = plane.metrics.model_dump()
    return dataset


def assemble(stages: Iterable[xr.Dataset], **values: object) -> PlaneExtraction:
    """A plane from the datasets of its stages and whatever they do not hold."""
    return PlaneExtraction(**_found(PlaneExtraction, stages, values))


def assemble_motion(motion: xr.Dataset, **values: object) -> PlaneMotion:
    """What is known of a plane from the dataset of its first stage and whatever that does not hold."""
    return PlaneMotion(**_found(PlaneMotion, [motion], values))


def _found(kind: type[PlaneMotion], stages: Iterable[xr.Dataset], values: Mapping[str, object]) -> dict[str, Any]:
    """A value for every field of `kind`."""
    found: dict[str, Any] = {}
    for stage in stages:
        found |= {str(name): value for name, value in stage.attrs.items()}
        found |= {str(name): np.asarray(stage[name]) for name in stage.variables}
    found |= values
    known = {field.name for field in fields(kind)}
    if missing := known - set(found):
        raise TypeError(f"no stage holds {sorted(missing)}")
    return {name: tuple(value) if name == "reason" else value for name, value in found.items() if name in known}
