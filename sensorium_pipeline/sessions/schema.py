"""The fields of a session's three parts, with their dimensions, types and units, and which of them may be released.

Everything that is written goes through `build_tree`, and the leak audit compares published bytes with the same tables: a field that is
not listed here can neither be written nor pass. What is released is an allow-list by role, track and tier (`RELEASE_RULES`). In 2022 a
forgotten column of time stamps in a competition session undid a track; here nothing with a time, an order or a link to the raw
recording is a field of the open part.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.sessions.tiers import TIERS, Tier

SCHEMA_VERSION = 1
TRACKS: tuple[Track, ...] = get_args(Track)
BEHAVIOR = ("pupil dilation", "its derivative", "running speed")

Part = Literal["lab", "open", "sealed"]


def known_track(track: str) -> Track:
    """The track of this name; `InputError` listing the two known ones otherwise."""
    for known in TRACKS:
        if track == known:
            return known
    raise InputError(f'"{track}" is not a track', where="track", advice=f"Known tracks: {', '.join(TRACKS)}.")


class Field(BaseModel):
    """One variable of a part: where it stands, its dimensions, type (a numpy kind with its width, "text" for strings) and units."""

    model_config = ConfigDict(frozen=True)

    group: str
    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str

    @property
    def path(self) -> str:
        """`group/name`."""
        return f"{self.group}/{self.name}"


def _fields(group: str, *rows: tuple[str, str, str, str, str]) -> tuple[Field, ...]:
    return tuple(
        Field(group=group, name=name, dims=tuple(dims.split()), dtype=dtype, units=units, long_name=text)
        for name, dims, dtype, units, text in rows
    )


_NEURONS = _fields(
    "neurons",
    ("unit_id", "neuron", "int64", "1", "number of the neuron within its session, with gaps"),
    ("position", "neuron axis", "float32", "um", "x and y within the field of view, z depth below the surface"),
    ("plane", "neuron", "int16", "1", "imaging plane, the first is 0"),
    ("snr", "neuron", "float32", "1", "signal-to-noise ratio of the trace"),
)

_TRIALS = _fields(
    "trials",
    ("trial_id", "trial", "int64", "1", "number of the trial in a random order"),
    ("image_id", "trial", "int64", "1", "image shown"),
    ("tier", "trial", "text", "1", "train, validation, test or final_test"),
    ("response", "trial neuron", "float32", "dF/F", "activity summed over the response window; NaN where hidden"),
)

_BEHAVIOR = _fields(
    "trials",
    ("behavior", "trial behavior_channel", "float32", "px, px s-1, cm s-1", ", ".join(BEHAVIOR) + "; means over the response window"),
    ("pupil_center", "trial pupil_axis", "float32", "px", "x and y of the pupil in the eye camera; mean over the response window"),
)

_IMAGES = _fields(
    "images",
    ("image_id", "image", "int64", "1", "number of the image, ascending"),
    ("image", "image y x", "uint8", "1", "grey values shown"),
    (
        "model_input",
        "image model_y model_x",
        "float32",
        "1",
        "grey values at the models' scale, linear interpolation without anti-aliasing",
    ),
)

_STATISTICS = _fields(
    "statistics",
    ("image_mean", "", "float64", "1", "mean grey value of the training trials' images at full resolution"),
    ("image_std", "", "float64", "1", "standard deviation of the training trials' grey values at full resolution"),
    ("response_mean", "neuron", "float32", "dF/F", "mean response of the training trials"),
    ("response_std", "neuron", "float32", "dF/F", "standard deviation of the training trials' responses"),
)

_BEHAVIOR_STATISTICS = _fields(
    "statistics",
    ("behavior_mean", "behavior_channel", "float32", "px, px s-1, cm s-1", "mean of the training trials"),
    ("behavior_std", "behavior_channel", "float32", "px, px s-1, cm s-1", "standard deviation of the training trials"),
    ("pupil_center_mean", "pupil_axis", "float32", "px", "mean of the training trials"),
    ("pupil_center_std", "pupil_axis", "float32", "px", "standard deviation of the training trials"),
)

_LAB_RECORDING = _fields(
    "recording",
    ("mean_before", "plane y x", "float32", "counts", "mean image before motion correction"),
    ("mean_after", "plane y x", "float32", "counts", "mean image after motion correction"),
    ("max_before", "plane y x", "float32", "counts", "maximum image before motion correction"),
    ("max_after", "plane y x", "float32", "counts", "maximum image after motion correction"),
    ("shifts", "plane time shift_axis", "float32", "px", "rigid shifts y and x by which content was moved"),
    ("template_correlation", "plane time", "float32", "1", "correlation of the corrected frame with the template"),
    ("flagged", "plane time", "bool", "1", "frames whose motion could not be trusted"),
    ("frame_time", "time", "float64", "s", "start of the volume, the first is 0"),
    ("raster_phase", "plane", "float32", "px", "shift of the odd lines that was undone"),
    ("plane_delay", "plane", "float64", "s", "start of the plane after its volume's start"),
    ("plane_size", "plane image_axis", "int32", "px", "height and width; images of smaller planes are filled up with NaN"),
    ("pixel_size", "plane image_axis", "float64", "um", "edge of a pixel, y and x"),
    ("corner", "plane image_axis", "float64", "um", "y and x of the first pixel's centre, as neurons' positions count them"),
)

_LAB_NEURONS = _fields(
    "neurons",
    ("kept", "neuron", "bool", "1", "whether the neuron is released"),
    ("reason", "neuron", "text", "1", "why a neuron is not released"),
    ("centroid", "neuron image_axis", "float32", "px", "y and x of the footprint's centre"),
    ("delay", "neuron", "float64", "s", "from the volume's start to the neuron's sample"),
    ("noise", "neuron", "float32", "dF/F", "standard deviation of the trace's noise within a frame"),
    ("neuropil_coefficient", "neuron", "float32", "1", "share of the neuropil subtracted"),
    ("footprint_neuron", "footprint_entry", "int32", "1", "index of the neuron"),
    ("footprint_pixel", "footprint_entry", "int32", "1", "flat index y * width + x within the plane, see plane_size"),
    ("footprint_weight", "footprint_entry", "float32", "1", "weight, Euclidean norm 1 within a neuron"),
)

_LAB_TRACES = _fields(
    "traces",
    ("fluorescence", "neuron time", "float32", "counts", "weighted mean of the footprint's pixels"),
    ("neuropil", "neuron time", "float32", "counts", "brightness around the neuron where no cell is"),
    ("dff", "neuron time", "float32", "1", "dF/F"),
    ("activity", "neuron time", "float32", "dF/F", "deconvolved dF/F of a frame"),
)

_LAB_TRIALS = _fields(
    "trials",
    ("onset", "trial", "float64", "s", "stimulus onset on the frame clock"),
    ("offset", "trial", "float64", "s", "stimulus offset on the frame clock"),
    ("rejection", "trial", "text", "1", "why the trial is not released"),
)

FIELDS: dict[Part, tuple[Field, ...]] = {
    "lab": _LAB_RECORDING
    + _NEURONS
    + _LAB_NEURONS
    + _LAB_TRACES
    + tuple(field for field in _TRIALS if field.name != "trial_id")  # the released numbers follow from this part's digest
    + _BEHAVIOR
    + _LAB_TRIALS,
    "open": _NEURONS + _TRIALS + _BEHAVIOR + _IMAGES + _STATISTICS + _BEHAVIOR_STATISTICS,
    "sealed": _TRIALS + _fields("neurons", ("unit_id", "neuron", "int64", "1", "number of the neuron within its session, with gaps")),
}

COORDINATES = ("trial_id", "unit_id", "images/image_id")

# Root attributes of the open part. The recording's digest, the lab and sealed digests and the processing parameters are not among
# them: should raw data ever be published, a digest would say which recording, and so which order, a competition session is; and the
# order of trials is drawn from the lab digest.
OPEN_ATTRIBUTES = (
    "schema_version",
    "part",
    "session",
    "animal",
    "role",
    "track",
    "area",
    "indicator",
    "code_version",
    "lock_digest",
    "response_window",
)


class ReleaseRule(BaseModel):
    """What may be published of a session of one role and track, by tier.

    Attributes:
        response_tiers: tiers whose responses are shown.
        behavior_tiers: tiers whose behaviour and pupil are shown; without any, the fields themselves are absent.
    """

    model_config = ConfigDict(frozen=True)

    response_tiers: tuple[Tier, ...]
    behavior_tiers: tuple[Tier, ...]

    @property
    def shows_behavior(self) -> bool:
        """Whether behaviour is shown in any tier."""
        return bool(self.behavior_tiers)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields that an open part under this rule holds, no more and no less."""
        hidden = () if self.shows_behavior else _BEHAVIOR + _BEHAVIOR_STATISTICS
        return tuple(field for field in FIELDS["open"] if field not in hidden)


_RULES: dict[tuple[Role, Track | None], ReleaseRule] = {
    ("open", None): ReleaseRule(response_tiers=TIERS, behavior_tiers=TIERS),
    ("competition", "sensorium"): ReleaseRule(response_tiers=("train", "validation"), behavior_tiers=()),
    ("competition", "sensorium+"): ReleaseRule(response_tiers=("train", "validation"), behavior_tiers=TIERS),
}


def release_rule(role: Role, track: Track | None) -> ReleaseRule:
    """The rule for a session; `OrganiserError` for a competition session without a track, or an open one with one."""
    rule = _RULES.get((role, track))
    if rule is None:
        raise OrganiserError(
            f"no release rule for role {role!r} and track {track!r}",
            where="session.toml: role, track",
            advice='A competition session belongs to the track "sensorium" or "sensorium+", an open session to none.',
        )
    return rule


def build_tree(fields: Iterable[Field], values: Mapping[str, NDArray[Any]], attributes: Mapping[str, object]) -> xr.DataTree:
    """A part of a session as a tree of datasets.

    Args:
        fields: the fields of the part; each must have a value.
        values: arrays by `group/name`, of the declared dimensions; types are converted to the declared ones.
        attributes: of the root, plain JSON values.

    Raises:
        OrganiserError: when a value has no field, a field no value, or dimensions disagree.
    """
    declared = {field.path: field for field in fields}
    if differing := set(declared) ^ set(values):
        raise OrganiserError(f"fields and values disagree about {sorted(differing)}", where="schema")
    groups: dict[str, xr.Dataset] = {}
    for path, field in declared.items():
        value = values[path]
        if value.ndim != len(field.dims):
            raise OrganiserError(f"has {value.ndim} dimensions, the schema says {field.dims}", where=path)
        wanted = np.dtype(str if field.dtype == "text" else field.dtype)
        typed = value if value.dtype == wanted or (field.dtype == "text" and value.dtype.kind == "U") else value.astype(wanted)
        variable = xr.Variable(field.dims, typed, {"units": field.units, "long_name": field.long_name})
        dataset = groups.setdefault(field.group, xr.Dataset())
        try:
            groups[field.group] = dataset.assign({field.name: variable})
        except ValueError as error:
            raise OrganiserError(f"does not fit its group ({error})", where=path) from error
    for group, dataset in groups.items():
        groups[group] = dataset.set_coords([name for name in dataset.variables if name in COORDINATES or f"{group}/{name}" in COORDINATES])
    root = xr.Dataset(attrs=dict(attributes))
    return xr.DataTree.from_dict({"/": root, **{f"/{group}": dataset for group, dataset in groups.items()}})


def read_array(tree: xr.DataTree, path: str) -> NDArray[Any]:
    """Values of the variable `group/name` of a part, wholly read; text as numpy strings of fixed width, which zarr does not give back."""
    values = np.asarray(tree[path].values)
    return np.array(values.tolist(), str) if values.dtype.kind in "OT" else values
