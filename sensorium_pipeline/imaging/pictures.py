"""Pictures of one extracted plane for the quality report; each is the bytes of a PNG, the same for the same plane.

Figures are drawn without pyplot, whose state threads would share.
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction

DOTS_PER_INCH = 110
MASK = 0.2  # part of its maximum at which a footprint's outline is drawn
KEPT, LEFT_OUT, INFERRED = "#ffb000", "#648fff", "#dc267f"

CAPTIONS = {
    "footprints.png": "Mean image after motion correction with the outlines of the cells",
    "motion.png": "Shifts and correlation with the template over time",
    "summary-images.png": "Mean and maximum image before and after motion correction",
    "traces.png": "dF/F and inferred activity of example neurons",
    "distributions.png": "Signal-to-noise, noise, size and decay time of the cells kept",
}
"""What each picture shows, by the name of its file."""


def draw_all(plane: PlaneExtraction) -> dict[str, bytes]:
    """Every picture under the name of its file."""
    return {
        "footprints.png": draw_footprints(plane),
        "motion.png": draw_motion(plane),
        "summary-images.png": draw_summary_images(plane),
        "traces.png": draw_traces(plane),
        "distributions.png": draw_distributions(plane),
    }


def draw_footprints(plane: PlaneExtraction) -> bytes:
    """Mean image with the outlines of all cells: kept ones in one colour, the others thin in another."""
    figure = Figure(figsize=(7, 7.4), layout="constrained")
    axes = figure.add_subplot()
    _image(axes, plane.mean_after)
    height, width = plane.mean_after.shape
    for neuron in range(plane.neurons):
        entries = slice(*np.searchsorted(plane.footprint_neuron, [neuron, neuron + 1]))
        image = np.zeros((height + 2, width + 2), np.float32)
        rows, columns = np.divmod(plane.footprint_pixel[entries], width)
        image[rows + 1, columns + 1] = plane.footprint_weight[entries]
        if image.any():
            kept = bool(plane.kept[neuron])
            window = (slice(rows.min(), rows.max() + 3), slice(columns.min(), columns.max() + 3))
            axes.contour(
                np.arange(window[1].start, window[1].stop) - 1,
                np.arange(window[0].start, window[0].stop) - 1,
                image[window],
                levels=[MASK * image.max()],
                colors=KEPT if kept else LEFT_OUT,
                linewidths=1.2 if kept else 0.6,
            )
    axes.set_title(f"Mean image: {int(plane.kept.sum())} cells kept (yellow), {int((~plane.kept).sum())} not (blue)")
    return _png(figure)


def draw_summary_images(plane: PlaneExtraction) -> bytes:
    """Mean and maximum image before and after motion correction."""
    figure = Figure(figsize=(9, 9.2), layout="constrained")
    images = [plane.mean_before, plane.mean_after, plane.max_before, plane.max_after]
    titles = ["mean before motion correction", "mean after", "maximum before", "maximum after"]
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(2, 2, index + 1)
        _image(axes, image)
        axes.set_title(title)
    return _png(figure)


def draw_motion(plane: PlaneExtraction) -> bytes:
    """Shifts and correlation with the template over time; flagged frames are marked."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    time = np.arange(len(plane.flagged)) / plane.frame_rate
    shifts, correlation = figure.subplots(2, 1, sharex=True)
    for axis, name, colour in ((0, "y", KEPT), (1, "x", LEFT_OUT)):
        shifts.plot(time, plane.shifts[:, axis], color=colour, linewidth=0.6, label=name)
    shifts.set_ylabel("shift (px)")
    shifts.legend(loc="upper right", ncols=2, frameon=False)
    correlation.plot(time, plane.template_correlation, color="black", linewidth=0.6)
    correlation.set_ylabel("correlation with\nthe template")
    correlation.set_xlabel("time (s)")
    lowest = correlation.get_ylim()[0]
    correlation.plot(time[plane.flagged], np.full(int(plane.flagged.sum()), lowest), "|", color=INFERRED)
    shifts.set_title(f"{plane.metrics.flagged_fraction:.1%} of the frames flagged")
    return _png(figure)


def draw_traces(plane: PlaneExtraction, count: int = 12, seconds: float = 120.0) -> bytes:
    """dF/F of kept neurons, evenly over the range of signal-to-noise, with the inferred activity below each."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.add_subplot()
    kept = np.flatnonzero(plane.kept)
    if len(kept) == 0:
        axes.text(0.5, 0.5, "no cell was kept", ha="center", va="center", transform=axes.transAxes)
        return _png(figure)
    ranked = kept[np.argsort(-plane.snr[kept], kind="stable")]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).astype(int))]
    frames = _liveliest(plane.dff[chosen], max(int(seconds * plane.frame_rate), 2))
    time = np.arange(frames.start, frames.stop) / plane.frame_rate
    for row, neuron in enumerate(chosen):
        dff, activity = plane.dff[neuron, frames], plane.activity[neuron, frames]
        if np.isnan(dff).all():
            continue
        low, high = float(np.nanmin(dff)), float(np.nanmax(dff))
        axes.plot(time, (dff - low) / max(high - low, 1e-9) * 0.65 - row + 0.2, color="black", linewidth=0.6)
        axes.plot(time, activity / max(float(np.nanmax(activity)), 1e-9) * 0.2 - row, color=INFERRED, linewidth=0.6)
        axes.text(time[-1], -row + 0.3, f" {high - low:.2g} dF/F, snr {plane.snr[neuron]:.1f}", va="center", fontsize=7)
    axes.set_yticks(-np.arange(len(chosen)) + 0.3, [str(neuron) for neuron in chosen])
    axes.set_ylabel("neuron")
    axes.set_xlabel("time (s)")
    axes.margins(x=0.01)
    axes.set_title("dF/F (black) and inferred activity (red), each over its own range")
    return _png(figure)


def draw_distributions(plane: PlaneExtraction) -> bytes:
    """Distributions over kept cells: signal-to-noise, noise, area of the mask, decay time."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    kept = np.flatnonzero(plane.kept)
    quantities = [
        ("signal-to-noise in a second", plane.snr[kept]),
        ("noise of dF/F within a frame", plane.noise[kept]),
        ("area of the mask (px)", _areas(plane)[kept]),
        ("decay time (s)", plane.time_constants[kept, 0]),
    ]
    for index, (title, values) in enumerate(quantities):
        axes = figure.add_subplot(2, 2, index + 1)
        known = values[np.isfinite(values)]
        if len(known):
            axes.hist(known, bins=30, color=LEFT_OUT)
            axes.axvline(float(np.median(known)), color=INFERRED, linewidth=1)
        axes.set_xlabel(title)
        axes.set_ylabel("cells")
    return _png(figure)


def _areas(plane: PlaneExtraction) -> NDArray[np.float64]:
    """Pixels of each neuron's mask."""
    peak = np.zeros(plane.neurons, np.float32)
    np.maximum.at(peak, plane.footprint_neuron, plane.footprint_weight)
    inside = plane.footprint_weight > MASK * peak[plane.footprint_neuron]
    return np.bincount(plane.footprint_neuron[inside], minlength=plane.neurons).astype(np.float64)


def _liveliest(dff: NDArray[np.float32], length: int) -> slice:
    """The stretch of so many frames with the largest variance over the neurons."""
    frames = dff.shape[1]
    if frames <= length:
        return slice(0, frames)
    starts = np.arange(0, frames - length + 1, max(length // 4, 1))
    power = np.where(np.isnan(dff), 0, dff) ** 2
    energy = [float(np.median(power[:, start : start + length].mean(1))) for start in starts]
    start = int(starts[int(np.argmax(energy))])
    return slice(start, start + length)


def _image(axes: Axes, image: NDArray[np.float32]) -> None:
    shown = np.nan_to_num(image)
    low, high = np.percentile(shown, [1, 99.5])
    axes.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axes.set_axis_off()


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    # Without the program's version, so that the bytes say nothing but the picture.
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()
