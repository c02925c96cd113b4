"""An extracted plane as an xarray dataset and back, so that it can be put away as soon as it is done."""

from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr

from sensorium_pipeline.imaging.extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import PlaneMetrics

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "mean_before": ("y", "x"),
    "mean_after": ("y", "x"),
    "max_before": ("y", "x"),
    "max_after": ("y", "x"),
    "shifts": ("frame", "yx"),
    "template_correlation": ("frame",),
    "flagged": ("frame",),
    "footprint_neuron": ("entry",),
    "footprint_pixel": ("entry",),
    "footprint_weight": ("entry",),
    "centroids": ("neuron", "yx"),
    "fluorescence": ("neuron", "frame"),
    "neuropil": ("neuron", "frame"),
    "neuropil_coefficient": ("neuron",),
    "dff": ("neuron", "frame"),
    "activity": ("neuron", "frame"),
    "noise": ("neuron",),
    "time_constants": ("neuron", "order"),
    "snr": ("neuron",),
    "kept": ("neuron",),
}
"""Dimensions of every array of a `PlaneExtraction`, by its name there."""


def to_dataset(plane: PlaneExtraction) -> xr.Dataset:
    """Every array of the plane under its own name; scalars, reasons and metrics as attributes."""
    return xr.Dataset(
        {name: (dimensions, getattr(plane, name)) for name, dimensions in DIMENSIONS.items()},
        attrs={
            "frame_rate": plane.frame_rate,
            "raster_phase": plane.raster_phase,
            "reason": list(plane.reason),
            "metrics": plane.metrics.model_dump(),
        },
    )


def from_dataset(dataset: xr.Dataset) -> PlaneExtraction:
    """What `to_dataset` was given."""
    values: dict[str, Any] = {name: np.asarray(dataset[name]) for name in DIMENSIONS}
    values["reason"] = tuple(dataset.attrs["reason"])
    values["metrics"] = PlaneMetrics.model_validate(dataset.attrs["metrics"])
    values["frame_rate"] = float(dataset.attrs["frame_rate"])
    values["raster_phase"] = float(dataset.attrs["raster_phase"])
    missing = {field.name for field in fields(PlaneExtraction)} - set(values)
    if missing:
        raise TypeError(f"PlaneExtraction has fields that are not put away: {sorted(missing)}")
    return PlaneExtraction(**values)
