"""The trials of a recording: responses of all neurons, behaviour, tiers, and why some are not released."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.recordings.raw_session import RawSession
from sensorium_pipeline.sessions.alignment import (
    LEAST_SAMPLES,
    RESPONSE_WINDOW,
    lost_frames,
    outside,
    rate_of_change,
    responses,
    sample_delays,
    spoiled_samples,
    touches,
    window_means,
)
from sensorium_pipeline.sessions.tiers import VALIDATION_SHARE, TierNames, assign_tiers

OUTSIDE = "outside the recording"
LOST_FRAMES = "lost frames"
FLAGGED_FRAMES = "flagged frames"
NO_TREADMILL = "treadmill missing"
NO_PUPIL = "pupil missing"


@dataclass(frozen=True)
class AlignedTrials:
    """All presentations of a recording, in the order shown.

    Shapes: image_id, onset, offset (s), tier and rejection (trials,), rejection is "" where the trial is released; response
    (trials, neurons) float32, of all cells found, plane after plane; behavior (trials, 3) = pupil dilation (px), its derivative
    (px/s), running speed (cm/s); pupil_center (trials, 2) = x, y (px); both float32 and NaN where missing.
    """

    image_id: NDArray[np.int64]
    onset: NDArray[np.float64]
    offset: NDArray[np.float64]
    tier: TierNames
    rejection: NDArray[np.str_]
    response: NDArray[np.float32]
    behavior: NDArray[np.float32]
    pupil_center: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether a trial is released (trials,)."""
        return np.asarray(self.rejection == "", np.bool_)

    def rejected(self) -> dict[str, int]:
        """Number of trials that are not released, by reason."""
        return dict(sorted(Counter(str(reason) for reason in self.rejection if reason).items()))


def plane_delays(raw: RawSession, planes: Sequence[PlaneExtraction]) -> list[NDArray[np.float64]]:
    """Delay of every neuron of every plane, released or not, s after its volume's start."""
    return [sample_delays(plane.centroids[:, 0], float(raw.plane_delays[k]), raw.line_period) for k, plane in enumerate(planes)]


def align_trials(
    raw: RawSession,
    planes: Sequence[PlaneExtraction],
    window: tuple[float, float] = RESPONSE_WINDOW,
    validation_share: float = VALIDATION_SHARE,
) -> AlignedTrials:
    """Trials of a recording from its extracted planes.

    A trial is not released when its window leaves the recording, touches a lost frame (in any plane), a flagged frame or the one after
    a run of these, or when more than half of its treadmill or pupil samples are missing.

    Raises:
        InputError: when the planes are not those of the recording, or an image belongs to no set.
    """
    if len(planes) != raw.planes or any(plane.activity.shape[1] != raw.volumes for plane in planes):
        found = [plane.activity.shape[1] for plane in planes]
        raise InputError(
            f"{raw.planes} planes of {raw.volumes} frames were recorded, {len(planes)} of {found} frames extracted",
            where=f"session {raw.name}",
        )
    onset, times = raw.stimulus.onset, raw.frame_times
    rejection = np.full(len(onset), "", dtype=f"<U{len(OUTSIDE)}")

    def reject(marked: NDArray[np.bool_], reason: str) -> None:
        rejection[marked & (rejection == "")] = reason

    delays = plane_delays(raw, planes)
    response = [responses(plane.activity, times, d, onset, window) for plane, d in zip(planes, delays, strict=True)]
    # Cells that are not released cannot cost a trial.
    delays = [d[plane.kept] for plane, d in zip(planes, delays, strict=True)]
    for d in delays:
        reject(outside(times, d, onset, window), OUTSIDE)
    for d in delays:
        reject(touches(lost_frames(times), times, d, onset, window), LOST_FRAMES)
    for plane, d in zip(planes, delays, strict=True):
        reject(touches(spoiled_samples(plane.flagged), times, d, onset, window), FLAGGED_FRAMES)
    speed, speed_there = window_means(raw.treadmill.time, raw.treadmill.speed[:, None], onset, window)
    reject(np.any(speed_there < LEAST_SAMPLES, axis=1), NO_TREADMILL)
    rate = rate_of_change(raw.pupil.time, raw.pupil.dilation)
    table = np.column_stack([raw.pupil.dilation, rate, raw.pupil.center])
    pupil, pupil_there = window_means(raw.pupil.time, table, onset, window)
    reject(np.any(pupil_there < LEAST_SAMPLES, axis=1), NO_PUPIL)
    return AlignedTrials(
        image_id=raw.stimulus.image_id,
        onset=onset,
        offset=raw.stimulus.offset,
        tier=assign_tiers(raw.stimulus.image_id, raw.image_sets, raw.name, validation_share),
        rejection=rejection,
        response=np.concatenate(response, axis=1),
        behavior=np.column_stack([pupil[:, :2], speed]).astype(np.float32),
        pupil_center=pupil[:, 2:].astype(np.float32),
    )
