"""The pictures of the quality report: footprints on the mean image, motion, example traces, and signal-to-noise."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sensorium_pipeline.imaging.extraction import PlaneExtraction

EXAMPLES = 5  # cells whose traces are shown
SECONDS = 60.0  # of each trace
INK, SIGNAL, QUIET = "#222222", "#c23b22", "#2f6f9f"


def plane_pictures(plane: PlaneExtraction) -> dict[str, tuple[str, bytes]]:
    """Pictures of one plane: short name -> (title, PNG). The same plane gives the same bytes."""
    pictures = {
        "footprints": ("Mean image after motion correction, with the footprints of released cells", _png(_footprints(plane))),
        "shifts": ("Rigid shifts; red marks flagged frames", _png(_shifts(plane))),
    }
    if plane.neurons:
        pictures["traces"] = (f"dF/F of example cells, with inferred activity below, {SECONDS:g} s", _png(_traces(plane)))
        pictures["snr"] = ("Signal-to-noise of all cells found, and of those released", _png(_snr(plane)))
    return pictures


def _footprints(plane: PlaneExtraction) -> Figure:
    image = plane.mean_after
    height, width = image.shape
    figure = Figure(figsize=(6, 6 * height / width + 0.2), layout="constrained")
    axes = figure.add_subplot()
    low, high = np.nanpercentile(image, [1, 99.7])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    covered = np.zeros(height * width, np.float32)
    shown = plane.kept[plane.footprint_neuron]
    np.maximum.at(covered, plane.footprint_pixel[shown], plane.footprint_weight[shown] / _largest_weight(plane)[shown])
    if (covered > 0.3).any() and min(height, width) > 1:
        axes.contour(covered.reshape(height, width), levels=[0.3], colors=[SIGNAL], linewidths=0.7)
    axes.set_axis_off()
    return figure


def _largest_weight(plane: PlaneExtraction) -> NDArray[np.float32]:
    largest = np.zeros(plane.neurons, np.float32)
    np.maximum.at(largest, plane.footprint_neuron, plane.footprint_weight)
    return largest[plane.footprint_neuron]


def _shifts(plane: PlaneExtraction) -> Figure:
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.add_subplot()
    time = np.arange(len(plane.shifts)) / plane.frame_rate
    for axis, (name, colour) in enumerate((("y", INK), ("x", QUIET))):
        axes.plot(time, plane.shifts[:, axis], color=colour, linewidth=0.6, label=name)
    for flagged in time[plane.flagged]:
        axes.axvline(flagged, color=SIGNAL, linewidth=0.4, alpha=0.5)
    axes.set(xlabel="time (s)", ylabel="shift (px)", xlim=(0, max(time[-1], 1e-3)))
    axes.legend(frameon=False, ncols=2, loc="upper right")
    return figure


def _traces(plane: PlaneExtraction) -> Figure:
    released = np.flatnonzero(plane.kept)
    cells = (released if len(released) else np.arange(plane.neurons))[:EXAMPLES]
    frames = min(plane.dff.shape[1], round(SECONDS * plane.frame_rate))
    figure = Figure(figsize=(8, 1.3 * len(cells) + 0.4), layout="constrained")
    time = np.arange(frames) / plane.frame_rate
    for row, cell in enumerate(cells):
        axes = figure.add_subplot(len(cells), 1, row + 1)
        axes.plot(time, plane.dff[cell, :frames], color=INK, linewidth=0.7)
        activity = plane.activity[cell, :frames]
        scale = np.nanmax(np.abs(plane.dff[cell, :frames]), initial=1e-6) / max(float(np.nanmax(activity, initial=0.0)), 1e-6)
        axes.vlines(time, -0.5 * scale * np.nan_to_num(activity), 0, color=SIGNAL, linewidth=0.8)
        axes.set(ylabel="dF/F", xlim=(0, time[-1]))
        axes.set_title(f"cell {cell}, signal-to-noise {plane.snr[cell]:.1f}", fontsize=8, loc="left")
        if row < len(cells) - 1:
            axes.set_xticklabels([])
    figure.axes[-1].set_xlabel("time (s)")
    return figure


def _snr(plane: PlaneExtraction) -> Figure:
    figure = Figure(figsize=(5, 2.4), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(0, max(float(np.nanmax(plane.snr)), 1e-3), 30)
    axes.hist(plane.snr, bins=list(bins), color="#cccccc", label="found")
    axes.hist(plane.snr[plane.kept], bins=list(bins), color=QUIET, label="released")
    axes.set(xlabel="signal-to-noise ratio", ylabel="cells")
    axes.legend(frameon=False)
    return figure


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without this the version of matplotlib would be part of the bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
