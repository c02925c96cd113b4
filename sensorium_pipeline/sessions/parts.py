"""The lab, open and sealed part of a session, as trees ready to be written.

The lab part is in the order of time. The open and the sealed part are in the order of `released_order`, a permutation drawn from the
lab part's digest: repeatable for the lab, and unknown to everyone who does not hold the traces.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.recordings.raw_session import RawSession, StimulusImages
from sensorium_pipeline.sessions.records import Provenance, SessionParameters
from sensorium_pipeline.sessions.scaling import rescale
from sensorium_pipeline.sessions.schema import FIELDS, OPEN_ATTRIBUTES, SCHEMA_VERSION, Part, ReleaseRule, build_tree, release_rule
from sensorium_pipeline.sessions.statistics import training_statistics
from sensorium_pipeline.sessions.tiers import seeded_generator
from sensorium_pipeline.sessions.trials import AlignedTrials, plane_delays

Values = dict[str, NDArray[Any]]


def released_order(lab_digest: str, trials: int) -> NDArray[np.int64]:
    """Place in time, among the released trials, of every trial id (trials,): a permutation drawn from the lab part's digest."""
    return seeded_generator("trial order", lab_digest).permutation(trials).astype(np.int64)


def lab_tree(
    raw: RawSession, planes: Sequence[PlaneExtraction], trials: AlignedTrials, parameters: SessionParameters, provenance: Provenance
) -> xr.DataTree:
    """The lab part: everything before release, all cells and all trials in the order of time."""
    images = ("mean_before", "mean_after", "max_before", "max_after")
    values: Values = {f"recording/{name}": _stacked([getattr(plane, name) for plane in planes]) for name in images}
    for name in ("shifts", "template_correlation", "flagged"):
        values[f"recording/{name}"] = np.stack([getattr(plane, name) for plane in planes])
    values["recording/plane_size"] = np.array([plane.mean_after.shape for plane in planes])
    for name in ("pixel_size", "corner"):
        values[f"recording/{name}"] = np.array([getattr(plane, name) for plane in raw.description.planes])
    values["recording/frame_time"] = raw.frame_times
    values["recording/raster_phase"] = np.array([plane.raster_phase for plane in planes])
    values["recording/plane_delay"] = raw.plane_delays
    first = np.cumsum([0] + [plane.neurons for plane in planes])
    values |= _neurons(raw, planes)
    values["neurons/kept"] = np.concatenate([plane.kept for plane in planes])
    values["neurons/reason"] = np.array([reason for plane in planes for reason in plane.reason], str)
    values["neurons/centroid"] = np.concatenate([plane.centroids for plane in planes])
    values["neurons/delay"] = np.concatenate(plane_delays(raw, planes))
    for name in ("noise", "neuropil_coefficient"):
        values[f"neurons/{name}"] = np.concatenate([getattr(plane, name) for plane in planes])
    values["neurons/footprint_neuron"] = np.concatenate(
        [plane.footprint_neuron + start for plane, start in zip(planes, first, strict=False)]
    )
    for name in ("pixel", "weight"):
        values[f"neurons/footprint_{name}"] = np.concatenate([getattr(plane, f"footprint_{name}") for plane in planes])
    values |= {
        f"trials/{name}": getattr(trials, name)
        for name in ("image_id", "tier", "response", "behavior", "pupil_center", "onset", "offset", "rejection")
    }
    traces = [field for field in FIELDS["lab"] if field.group == "traces"]
    tree = build_tree(
        [field for field in FIELDS["lab"] if field.group != "traces"], values, _attributes(raw, "lab", parameters, provenance)
    )
    dataset = xr.Dataset()
    for field in traces:
        parts = [getattr(plane, field.name) for plane in planes]
        dataset[field.name] = xr.Variable(field.dims, _in_sequence(parts), {"units": field.units, "long_name": field.long_name})
    tree["traces"] = xr.DataTree(dataset)
    return tree


def open_tree(
    raw: RawSession,
    planes: Sequence[PlaneExtraction],
    trials: AlignedTrials,
    order: NDArray[np.int64],
    parameters: SessionParameters,
    provenance: Provenance,
) -> xr.DataTree:
    """The open part: the fields that the release rule lists, of released neurons and trials, in `order`.

    Raises:
        OrganiserError: when a visible response is not finite, or there is nothing to train on.
    """
    rule = release_rule(raw.description.role, raw.description.track)
    kept = np.concatenate([plane.kept for plane in planes])
    values = {name: value[kept] for name, value in _neurons(raw, planes).items()}
    shown = _released_trials(trials, kept, order)
    images, image_index = _released_images(raw.images, shown["trials/image_id"])
    tier, training = shown["trials/tier"], shown["trials/tier"] == "train"
    statistics = training_statistics(
        images.images,
        image_index[training],
        shown["trials/response"][training],
        shown["trials/behavior"][training] if rule.shows_behavior else None,
        shown["trials/pupil_center"][training] if rule.shows_behavior else None,
    )
    values |= shown
    values |= {
        f"statistics/{name}": np.asarray(getattr(statistics, name)) for name in ("image_mean", "image_std", "response_mean", "response_std")
    }
    values |= {"images/image_id": images.image_ids, "images/image": images.images, "images/model_input": _model_input(images.images)}
    if rule.shows_behavior:
        for name in ("behavior_mean", "behavior_std", "pupil_center_mean", "pupil_center_std"):
            values[f"statistics/{name}"] = np.asarray(getattr(statistics, name))
    else:
        del values["trials/behavior"], values["trials/pupil_center"]
    hide(values, tier, rule)
    return build_tree(rule.fields, values, _attributes(raw, "open", parameters, provenance))


def sealed_tree(
    raw: RawSession,
    planes: Sequence[PlaneExtraction],
    trials: AlignedTrials,
    order: NDArray[np.int64],
    parameters: SessionParameters,
    provenance: Provenance,
) -> xr.DataTree | None:
    """The sealed part: responses of the hidden tiers under the open part's trial ids; None where nothing is hidden."""
    rule = release_rule(raw.description.role, raw.description.track)
    kept = np.concatenate([plane.kept for plane in planes])
    shown = _released_trials(trials, kept, order)
    hidden = ~np.isin(shown["trials/tier"], rule.response_tiers)
    if not hidden.any():
        return None
    values = {f"trials/{name}": shown[f"trials/{name}"][hidden] for name in ("trial_id", "image_id", "tier", "response")}
    values["neurons/unit_id"] = _neurons(raw, planes)["neurons/unit_id"][kept]
    return build_tree(FIELDS["sealed"], values, _attributes(raw, "sealed", parameters, provenance))


def hide(values: Values, tier: NDArray[np.str_], rule: ReleaseRule) -> None:
    """Replace by NaN, in place, what the rule does not show of the trials' tiers."""
    fields = {"trials/response": rule.response_tiers, "trials/behavior": rule.behavior_tiers, "trials/pupil_center": rule.behavior_tiers}
    for name, tiers in fields.items():
        if name in values:
            values[name][~np.isin(tier, tiers)] = np.nan


def _attributes(raw: RawSession, part: Part, parameters: SessionParameters, provenance: Provenance) -> dict[str, object]:
    description = raw.description
    attributes: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "session": raw.name,
        "animal": description.animal,
        "role": description.role,
        "track": description.track or "",
        "area": description.area,
        "indicator": description.indicator,
        "code_version": provenance.code_version,
        "lock_digest": provenance.lock_digest,
        "response_window": list(parameters.response_window),
    }
    if part == "open":
        return {name: attributes[name] for name in OPEN_ATTRIBUTES}
    attributes["recording_digest"] = raw.digest
    attributes["parameters"] = parameters.model_dump(mode="json")
    if part == "lab":
        attributes |= {
            "optics": description.optics,
            "frame_rate": raw.frame_rate,
            "line_period": raw.line_period,
        }
    return attributes


def _neurons(raw: RawSession, planes: Sequence[PlaneExtraction]) -> Values:
    """What open and lab part say of all cells: unit_id from 1 over all planes, so released cells have gaps where others were found."""
    positions = [geometry.positions(plane.centroids) for geometry, plane in zip(raw.description.planes, planes, strict=True)]
    return {
        "neurons/unit_id": np.arange(1, sum(plane.neurons for plane in planes) + 1, dtype=np.int64),
        "neurons/position": np.concatenate(positions),
        "neurons/plane": np.concatenate([np.full(plane.neurons, k) for k, plane in enumerate(planes)]),
        "neurons/snr": np.concatenate([plane.snr for plane in planes]),
    }


def _released_trials(trials: AlignedTrials, kept: NDArray[np.bool_], order: NDArray[np.int64]) -> Values:
    released = np.flatnonzero(trials.kept)[order]
    response = trials.response[np.ix_(released, np.flatnonzero(kept))]
    if not np.isfinite(response).all():
        raise OrganiserError(
            "released trials hold responses that are not finite", where="activity", advice="Report this: alignment missed a rejection."
        )
    return {
        "trials/trial_id": np.arange(len(released), dtype=np.int64),
        "trials/image_id": trials.image_id[released],
        "trials/tier": trials.tier[released],
        "trials/response": response,
        "trials/behavior": trials.behavior[released],
        "trials/pupil_center": trials.pupil_center[released],
    }


def _released_images(images: StimulusImages, shown: NDArray[np.int64]) -> tuple[StimulusImages, NDArray[np.intp]]:
    """The images of released trials, ascending by id, and the index of every trial's image among them."""
    ids, index = np.unique(shown, return_inverse=True)
    sorter = np.argsort(images.image_ids)
    place = np.clip(np.searchsorted(images.image_ids, ids, sorter=sorter), 0, len(images) - 1)
    rows = sorter[place]
    if missing := [int(image) for image in ids[images.image_ids[rows] != ids]]:
        raise InputError(f"{len(missing)} images shown are not among the images, such as {missing[:3]}", where="images", advice="Add them.")
    return StimulusImages(ids.astype(np.int64), images.images[rows]), index.astype(np.intp)


def _model_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([rescale(images[start : start + 256]) for start in range(0, len(images), 256)])


def _stacked(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Images of the planes as one array (planes, y, x); where planes differ in size, NaN fills up the smaller ones."""
    height, width = (max(image.shape[axis] for image in images) for axis in range(2))
    stacked = np.full((len(images), height, width), np.nan, np.float32)
    for plane, image in zip(stacked, images, strict=True):
        plane[: image.shape[0], : image.shape[1]] = image
    return stacked


def _in_sequence(parts: Sequence[NDArray[Any]]) -> Any:
    """Traces of several planes as one lazy array: a movie's worth of traces must never be copied into memory to be written."""
    return parts[0] if len(parts) == 1 else indexing.LazilyIndexedArray(_Sequence(parts))


class _Sequence(BackendArray):
    """Arrays one after the other along their first dimension, read only where indexed."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        if not isinstance(key[0], slice):
            part = int(np.searchsorted(self.starts, key[0], side="right")) - 1
            return self.parts[part][(key[0] - self.starts[part], *key[1:])]
        start, stop, step = key[0].indices(self.shape[0])
        rows = [
            part[(slice(max(start - first, 0), max(stop - first, 0)), *key[1:])]
            for part, first in zip(self.parts, self.starts, strict=False)
        ]
        return np.concatenate(rows)[::step]
