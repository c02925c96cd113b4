"""What models normalise with: means and standard deviations over the training trials of a session, and over nothing else.

Standard deviations are those of the population (ddof 0), as in SENSORIUM 2022. Images are counted at full resolution, every training
trial once; sums of grey values are kept as integers, so the order of trials cannot change a digit.
"""

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.training.data import Statistics


def training_statistics(
    images: NDArray[np.uint8],
    image_index: NDArray[np.integer],
    responses: NDArray[np.float32],
    behavior: NDArray[np.float32] | None = None,
    pupil_center: NDArray[np.float32] | None = None,
) -> Statistics:
    """Statistics of training trials.

    Args:
        images: (images, y, x) grey values at full resolution; may lie on disk, one image is read at a time.
        image_index: (trials,), which of them each training trial showed.
        responses: (trials, neurons), raw.
        behavior: (trials, 3), or None where the track shows none.
        pupil_center: (trials, 2), or None.

    Raises:
        OrganiserError: when there is no training trial, or one holds a value that is not finite.
    """
    if not len(image_index):
        raise OrganiserError("there is no training trial to take statistics from", where="statistics")
    tables = {"responses": responses, "behavior": behavior, "pupil_center": pupil_center}
    for name, table in tables.items():
        if table is not None and not np.isfinite(table).all():
            raise OrganiserError("training trials hold values that are not finite", where=name)
    image_mean, image_std = _image_statistics(images, image_index)
    response_mean, response_std = _mean_and_std(responses)
    behavior_mean, behavior_std = _mean_and_std(behavior) if behavior is not None else (None, None)
    pupil_mean, pupil_std = _mean_and_std(pupil_center) if pupil_center is not None else (None, None)
    return Statistics(image_mean, image_std, response_mean, response_std, behavior_mean, behavior_std, pupil_mean, pupil_std)


def _image_statistics(images: NDArray[np.uint8], image_index: NDArray[np.integer]) -> tuple[float, float]:
    total = squares = pixels = 0
    for index, trials in zip(*np.unique(image_index, return_counts=True), strict=True):
        image = np.asarray(images[index]).astype(np.int64)
        total += int(trials) * int(image.sum())
        squares += int(trials) * int((image**2).sum())
        pixels += int(trials) * image.size
    # Exact integers until here: the variance is a difference of large numbers.
    return total / pixels, ((squares * pixels - total**2) / pixels**2) ** 0.5


def _mean_and_std(table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over trials (columns,), a block of columns at a time."""
    mean, std = np.empty(table.shape[1], np.float32), np.empty(table.shape[1], np.float32)
    for start in range(0, table.shape[1], 1024):
        block = np.asarray(table[:, start : start + 1024], np.float64)
        mean[start : start + 1024], std[start : start + 1024] = block.mean(axis=0), block.std(axis=0)
    return mean, std
