"""Whether a recording stays in its plane: images of successive parts of it, after motion correction, compared with each other.

When the tissue sinks or rises under the objective, what is in focus changes: however well motion within the plane is undone, later images
correlate less with earlier ones. Correlation does not see brightness or contrast, so bleaching alone does not lower it beyond what the
rising noise does, and that is divided out. Without images from above and below nobody can tell depth from other lasting change, such as
swelling or a field that dries up, nor how many micrometres it was.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sensorium_pipeline.imaging.summary_images import SummaryImages

Float32 = NDArray[np.float32]

_MOST_PARTS = 20
_FEWEST_PARTS = 4
_SIDE = 128  # px to which images are reduced
_BROAD = 16.0  # px of the recording: structures beyond are shading and light from out of focus
_LEAST_AGREEMENT = 0.2  # of neighbouring parts, below which their noise hides everything


@dataclass(frozen=True)
class DepthDrift:
    """How alike the parts of a recording look once motion is undone.

    Attributes:
        first_frame: (parts,) int64, where each part begins; each lasts until the next.
        template_correlation: (parts,) float32, Pearson, of the part's mean image with the mean of all; without broad shading, as below.
        correlation: (parts, parts) float32, of the mean images with each other.
        loss: 1 - correlation of the first fifth of the parts with the last fifth over that of neighbouring parts there, which have the
            same noise: 0 where the recording ends in the plane in which it began. NaN where it is too short, noisy or of unknown motion.
    """

    first_frame: NDArray[np.int64]
    template_correlation: Float32
    correlation: Float32
    loss: float


class DepthDriftRecorder:
    """Keeps small mean images of successive parts of a corrected movie.

    Args:
        frames: of the recording.
        shape: height and width.
    """

    def __init__(self, frames: int, shape: tuple[int, int]) -> None:
        self._length, self._frames = max(frames // _MOST_PARTS, 1), frames
        self._factor = max(min(shape) // _SIDE, 1)
        self._total, self._count, self._begin = np.zeros(shape), 0, 0
        self._first_frames: list[int] = []
        self._images: list[Float32] = []

    def note(self, sums: SummaryImages, stop: int) -> None:
        """The sums over the corrected frames before `stop`; a part ends with the first chunk that completes it."""
        enough = stop - self._begin >= self._length
        if not enough or sums.count == self._count:
            return
        part = (sums.total - self._total) / (sums.count - self._count)
        self._total, self._count = sums.total.copy(), sums.count
        self._first_frames.append(self._begin)
        image = self._reduced(part)
        self._images.append(image - ndimage.gaussian_filter(image, _BROAD / self._factor))
        self._begin = stop

    def _reduced(self, image: NDArray[np.floating]) -> Float32:
        height, width = (side // self._factor * self._factor for side in image.shape)
        blocks = image[:height, :width].reshape(height // self._factor, self._factor, width // self._factor, self._factor)
        return blocks.mean((1, 3)).astype(np.float32)

    def result(self, inside: NDArray[np.bool_], *, known: bool) -> DepthDrift:
        """What the parts look like over the pixels `inside` (y, x), which nearly all frames saw; `known` says whether motion is."""
        use = self._reduced(inside.astype(np.float32)) == 1
        parts = np.stack(self._images)[:, use] if self._images and use.any() else np.zeros((len(self._images), 1), np.float32)
        parts = parts - parts.mean(1, keepdims=True)
        whole = parts.sum(0)
        lengths = np.maximum(np.linalg.norm(parts, axis=1), 1e-12)
        correlation = (parts @ parts.T) / np.outer(lengths, lengths)
        with_all = parts @ whole / (lengths * max(float(np.linalg.norm(whole)), 1e-12))
        return DepthDrift(
            first_frame=np.array(self._first_frames, np.int64),
            template_correlation=with_all.astype(np.float32),
            correlation=correlation.astype(np.float32),
            loss=_loss(correlation) if known else float("nan"),
        )


def _loss(correlation: NDArray[np.floating]) -> float:
    count = len(correlation)
    if count < _FEWEST_PARTS:
        return float("nan")
    size = max(count // 5, 1)
    neighbours = np.diagonal(correlation, 1)
    early, late = neighbours[:size].mean(), neighbours[-size:].mean()
    if min(early, late) < _LEAST_AGREEMENT:
        return float("nan")
    return float(np.clip(1 - correlation[:size, -size:].mean() / np.sqrt(early * late), -1, 1))
