"""Pictures of one extracted plane for the quality report; each is the bytes of a PNG, the same for the same plane."""

from collections.abc import Mapping

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sensorium_pipeline.imaging.measurements import steady_line
from sensorium_pipeline.imaging.picture_style import (
    BLUE,
    GREEN,
    INK,
    NORMAL,
    ORANGE,
    SKY,
    SMALL,
    VERMILION,
    headline,
    panels,
    plain,
    png,
    say,
    show_image,
)
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction, PlaneMotion

MASK = 0.2  # part of its maximum at which a footprint's outline is drawn
IMAGE_SIDE = 4.6  # inches of the longer side of an image
TITLE_WIDTH = 1.9  # inches that a title takes, however narrow the image
TRACES = 16
SECONDS = 120.0
MOST_POINTS = 4000  # of a line; more cannot be seen

CAPTIONS = {
    "cells.png": "Mean and maximum image after motion correction, with the outlines of the cells that were kept and, thin, of the others",
    "correction.png": "Mean and maximum image before and after motion correction, and a part of the mean image in detail",
    "motion.png": "Motion over time, likeness to the template, and the motion that correction left over",
    "light.png": "Brightness over the recording, and the variance of pixels against their mean, whose slope is the gain",
    "traces.png": "dF/F and inferred activity of example neurons, evenly over the range of signal-to-noise",
    "distributions.png": "Distributions over the cells that were kept",
}
"""What each picture shows, by the name of its file."""


def draw_all(plane: PlaneExtraction, drawn: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Every picture under the name of its file, in the order of `CAPTIONS`; `drawn` are those of `draw_after_motion`, where they are."""
    pictures = {
        **(draw_after_motion(plane) if drawn is None else drawn),
        "cells.png": draw_cells(plane),
        "traces.png": draw_traces(plane),
        "distributions.png": draw_distributions(plane),
    }
    return {file: pictures[file] for file in CAPTIONS}


def draw_after_motion(plane: PlaneMotion) -> dict[str, bytes]:
    """The pictures that can be drawn as soon as motion is corrected."""
    return {"correction.png": draw_correction(plane), "motion.png": draw_motion(plane), "light.png": draw_light(plane)}


def draw_cells(plane: PlaneExtraction) -> bytes:
    """Mean and maximum image with the outlines of all cells: kept ones in one colour, the others thin in another."""
    width, height = _sides(plane)
    figure, grid = panels([height], [max(width, TITLE_WIDTH)] * 2, left=0.15, right=0.15, bottom=0.15, across=0.2, top=0.55)
    kept, others = _outlines(plane)
    counts = f"{int(plane.kept.sum())} cells kept (orange), {int((~plane.kept).sum())} candidates not (blue)"
    for column, (image, name) in enumerate(((plane.mean_after, "mean"), (plane.max_after, "maximum"))):
        axes = figure.add_subplot(grid[0, column])
        show_image(axes, image, name, plane.pixel_size)
        axes.add_collection(LineCollection(others, colors=SKY, linewidths=0.5, alpha=0.8))
        axes.add_collection(LineCollection(kept, colors=ORANGE, linewidths=1.0))
    figure.suptitle(counts, x=0.01, y=0.99, ha="left", va="top", fontsize=NORMAL + 1, color=INK)
    return png(figure)


def draw_correction(plane: PlaneMotion) -> bytes:
    """Mean and maximum image before and after motion correction, on one scale, and the middle of the mean images in detail."""
    width, height = (0.7 * side for side in _sides(plane))
    figure, grid = panels([height, height], [max(width, TITLE_WIDTH)] * 3, left=0.15, right=0.15, bottom=0.15, across=0.15, down=0.35)
    metrics = plane.metrics
    detail = tuple(slice(max(side // 2 - max(side // 8, 32), 0), side // 2 + max(side // 8, 32)) for side in plane.mean_after.shape)
    for row, (when, mean, peak, crisp) in enumerate((
        ("before", plane.mean_before, plane.max_before, metrics.crispness_before),
        ("after", plane.mean_after, plane.max_after, metrics.crispness_after),
    )):  # fmt: skip
        show_image(figure.add_subplot(grid[row, 0]), mean, f"mean {when}: crispness {crisp:.4g}", plane.pixel_size, plane.mean_after)
        show_image(figure.add_subplot(grid[row, 1]), mean[detail], f"detail of the mean {when}", plane.pixel_size, plane.mean_after[detail])
        show_image(figure.add_subplot(grid[row, 2]), peak, f"maximum {when}", plane.pixel_size, plane.max_after)
    return png(figure)


def draw_motion(plane: PlaneMotion) -> bytes:
    """Shifts, correlation with the template, motion left over and depth over time; residual motion over the field; flagged frames."""
    figure, grid = panels([1.5, 1.1, 1.1, 1.1], [6.6], right=3.6, down=0.35)
    width, height = figure.get_size_inches()
    metrics, frames = plane.metrics, len(plane.flagged)
    time = np.arange(frames) / plane.frame_rate
    good = np.where(plane.flagged[:, None], np.nan, plane.shifts)
    title = f"motion: {metrics.shift_rms:.2f} px RMS" if metrics.motion_pooled else "motion could not be measured: frames show too little"
    shifts = plain(figure.add_subplot(grid[0]), title, y="shift (px)")
    for axis, name, colour in ((0, "y", VERMILION), (1, "x", BLUE)):
        _line(shifts, time, good[:, axis], colour, name)
    legend = shifts.legend(loc="lower right", ncols=2, frameon=False, fontsize=SMALL, borderaxespad=0, bbox_to_anchor=(1, 1.0))
    for handle in legend.get_lines():
        handle.set_linewidth(2)
    title = f"likeness to the template: median {metrics.template_correlation:.2f}; {metrics.flagged_fraction:.1%} of frames flagged"
    likeness = plain(figure.add_subplot(grid[1], sharex=shifts), title, y="correlation")
    _line(likeness, time, plane.template_correlation, INK, "")
    if plane.flagged.any():
        flagged = time[plane.flagged][:: max(int(plane.flagged.sum()) // MOST_POINTS, 1)]
        likeness.vlines(flagged, 0, 0.1, transform=likeness.get_xaxis_transform(), color=VERMILION, linewidth=0.8)
    title = f"motion left after correction: {metrics.residual_motion:.3f} px RMS, a line for every block"
    left = plain(figure.add_subplot(grid[2], sharex=shifts), title, y="shift (px)")
    middle = plane.residual_frame / plane.frame_rate
    for axis, colour in ((0, VERMILION), (1, BLUE)):
        for row, column in np.ndindex(plane.residual_shifts.shape[1:3]):
            left.plot(middle, plane.residual_shifts[:, row, column, axis], color=colour, linewidth=0.6, alpha=0.5)
    reach = max(float(np.abs(plane.residual_shifts).max(initial=0)) * 1.2, 0.1)
    left.set_ylim(-reach, reach)
    title = f"staying in the plane: likeness of parts to the mean of all; {metrics.depth_drift:.0%} lost from beginning to end"
    depth = plain(figure.add_subplot(grid[3], sharex=shifts), title, x="time (s)", y="correlation")
    starts = np.append(plane.depth_drift_first_frame, frames) / plane.frame_rate
    if len(starts) > 1:
        depth.stairs(np.nan_to_num(plane.depth_drift_template_correlation), starts, baseline=None, color=GREEN, linewidth=1.2)
        depth.set_ylim(min(0.0, float(np.nanmin(plane.depth_drift_template_correlation, initial=0.0))), 1.05)
    shifts.set_xlim(0, max(frames / plane.frame_rate, 1e-6))
    for axes in (shifts, likeness, left):
        axes.tick_params(labelbottom=False)
    _draw_where_frames_stood(figure.add_axes((8.05 / width, (height - 0.35 - 1.5) / height, 1.5 / width, 1.5 / height)), plane)
    _draw_left_over(figure.add_axes((8.05 / width, 0.5 / height, 1.5 / width, 1.7 / height)), plane)
    return png(figure)


def _draw_where_frames_stood(axes: Axes, plane: PlaneMotion) -> None:
    shifts = plane.shifts[~plane.flagged]
    step = max(len(shifts) // MOST_POINTS, 1)
    axes.plot(shifts[::step, 1], shifts[::step, 0], ".", markersize=2, color=INK, alpha=0.2, markeredgewidth=0)
    reach = max(float(np.abs(shifts).max(initial=0)) * 1.15, 0.2)
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach))
    plain(axes, "where frames stood", x="x (px)", y="y (px)")


def _draw_left_over(axes: Axes, plane: PlaneMotion) -> None:
    """Residual motion of every block of the field, root mean square over time."""
    left = np.sqrt((plane.residual_shifts.astype(np.float64) ** 2).mean((0, 3))) if len(plane.residual_shifts) else np.zeros((1, 1))
    height, width = plane.mean_after.shape
    most = max(float(left.max()), 0.1)
    image = axes.imshow(left, cmap="cividis", vmin=0, vmax=most, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    plain(axes, "motion left, by block", x="x (px)", y="y (px)")
    bar = axes.inset_axes((1.1, 0, 0.08, 1))
    axes.figure.colorbar(image, cax=bar).set_label("px RMS", fontsize=SMALL)
    bar.tick_params(labelsize=SMALL)


def draw_light(plane: PlaneMotion) -> bytes:
    """Mean brightness over the recording with the line that bleaching is read from; variance against mean with the gain."""
    figure, grid = panels([2.2], [4.4, 3.4], across=0.9)
    metrics = plane.metrics
    axes = plain(
        figure.add_subplot(grid[0, 0]),
        f"bleaching: {metrics.bleaching:.1%} over the recording",
        x="time (s)",
        y="mean brightness (counts)",
    )
    time = plane.sampled_frame / plane.frame_rate
    if len(time) > 2:
        axes.plot(time, plane.brightness, ".", color=INK, markersize=3)
        axes.plot(time, np.polyval(steady_line(time, plane.brightness.astype(np.float64)), time), color=VERMILION, linewidth=1)
        low, high = axes.get_ylim()
        least = 0.02 * abs(float(plane.brightness.mean()))  # what changes by less need not look like much
        axes.set_ylim(low - max(least - (high - low) / 2, 0), high + max(least - (high - low) / 2, 0))
    else:
        say(axes, "too few frames")
    light = plain(
        figure.add_subplot(grid[0, 1]),
        f"{metrics.photons:.3g} photons a pixel and frame, {metrics.gain:.3g} counts each",
        x="mean of pixels alike (counts)",
        y="variance (counts²)",
    )
    if len(plane.group_mean) > 2:
        light.plot(plane.group_mean, plane.group_variance, "o", color=BLUE, markersize=3)
        slope, offset = np.polyfit(plane.group_mean.astype(np.float64), plane.group_variance.astype(np.float64), 1)
        light.plot(plane.group_mean, slope * plane.group_mean + offset, color=VERMILION, linewidth=1)
        light.ticklabel_format(useOffset=False)
    return png(figure)


def draw_traces(plane: PlaneExtraction, count: int = TRACES, seconds: float = SECONDS) -> bytes:
    """dF/F of kept neurons, evenly over the range of signal-to-noise, with the inferred activity below each."""
    kept = np.flatnonzero(plane.kept)
    ranked = kept[np.argsort(-plane.snr[kept], kind="stable")]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).astype(int))] if len(ranked) else ranked
    figure, grid = panels([max(0.42 * len(chosen), 1.2)], [7.2], right=1.5)
    axes = plain(
        figure.add_subplot(grid[0, 0]), "dF/F (black) and inferred activity (orange), each over its own range", x="time (s)", y="neuron"
    )
    if not len(chosen):
        say(axes, "no cell was kept")
        axes.set(xticks=[], yticks=[])
        return png(figure)
    frames = _liveliest(plane.activity[chosen], max(int(seconds * plane.frame_rate), 2))
    time = np.arange(frames.start, frames.stop) / plane.frame_rate
    for row, neuron in enumerate(chosen):
        dff, activity = plane.dff[neuron, frames], plane.activity[neuron, frames]
        note = "no sample"
        if not np.isnan(dff).all():
            low, high = float(np.nanmin(dff)), float(np.nanmax(dff))
            axes.plot(time, (dff - low) / max(high - low, 1e-9) * 0.62 - row + 0.24, color=INK, linewidth=0.6)
            scaled = np.nan_to_num(activity) / max(float(np.nanmax(activity)), 1e-9) * 0.2 - row
            axes.fill_between(time, scaled, -row, color=ORANGE, linewidth=0.4, step="mid")
            note = f"{high - low:.2g} dF/F   snr {plane.snr[neuron]:.1f}"
        axes.text(1.01, -row + 0.35, note, va="center", fontsize=SMALL, color=INK, transform=axes.get_yaxis_transform())
    axes.set_yticks(-np.arange(len(chosen)) + 0.3, [str(neuron) for neuron in chosen])
    axes.set_xlim(time[0], max(time[-1], time[0] + 1e-6))
    axes.set_ylim(-len(chosen) + 0.9, 1)
    return png(figure)


def draw_distributions(plane: PlaneExtraction) -> bytes:
    """Distributions over kept cells: signal-to-noise, noise level, activity, size, decay time, neuropil coefficient."""
    kept = np.flatnonzero(plane.kept)
    unit, pixel = ("px", 1.0) if plane.pixel_size is None else ("µm", plane.pixel_size)
    rates = np.nansum(plane.activity[kept], axis=1) / max(int((~plane.flagged).sum()), 1) * plane.frame_rate
    quantities = [
        ("signal-to-noise within a second", plane.snr[kept]),
        ("noise level (% dF/F per √Hz)", 100 * plane.noise[kept] / np.sqrt(plane.frame_rate)),
        ("inferred activity (dF/F per s)", rates),
        (f"diameter of the mask ({unit})", 2 * np.sqrt(_areas(plane)[kept] / np.pi) * pixel),
        ("decay time (s)", plane.time_constants[kept, 0]),
        ("part of the neuropil subtracted", plane.neuropil_coefficient[kept]),
    ]
    figure, grid = panels([1.5, 1.5], [2.4, 2.4, 2.4], down=0.75)
    for index, (label, values) in enumerate(quantities):
        known = values[np.isfinite(values)].astype(np.float64)
        axes = plain(figure.add_subplot(grid[index // 3, index % 3]), x=label, y="cells" if index % 3 == 0 else "")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(known):
            median = float(np.median(known))
            axes.stairs(*np.histogram(known, bins=min(30, max(8, len(known) // 4))), fill=True, color=SKY)
            axes.axvline(median, color=VERMILION, linewidth=1)
            headline(axes, f"median {median:.3g}", SMALL, VERMILION)
        else:
            say(axes, "no cell was kept")
    return png(figure)


def _sides(plane: PlaneMotion) -> tuple[float, float]:
    """Inches across and down of an image of the plane."""
    height, width = plane.mean_after.shape
    return IMAGE_SIDE * width / max(height, width), IMAGE_SIDE * height / max(height, width)


def _outlines(plane: PlaneExtraction) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Lines (points, 2) = x, y around the masks of kept cells, and of the others."""
    width = plane.mean_after.shape[1]
    kept: list[NDArray[np.float64]] = []
    others: list[NDArray[np.float64]] = []
    edges = np.searchsorted(plane.footprint_neuron, np.arange(plane.neurons + 1))
    for neuron in range(plane.neurons):
        entries = slice(edges[neuron], edges[neuron + 1])
        if entries.start == entries.stop:
            continue
        rows, columns = np.divmod(plane.footprint_pixel[entries], width)
        top, left = int(rows.min()) - 1, int(columns.min()) - 1
        patch = np.zeros((int(rows.max()) - top + 2, int(columns.max()) - left + 2))
        patch[rows - top, columns - left] = plane.footprint_weight[entries]
        lines = contour_generator(z=patch).lines(MASK * float(patch.max()))
        (kept if plane.kept[neuron] else others).extend(line + np.array([left, top]) for line in lines)
    return kept, others


def _areas(plane: PlaneExtraction) -> NDArray[np.float64]:
    """Pixels of each neuron's mask."""
    peak = np.zeros(plane.neurons, np.float32)
    np.maximum.at(peak, plane.footprint_neuron, plane.footprint_weight)
    inside = plane.footprint_weight > MASK * peak[plane.footprint_neuron]
    return np.bincount(plane.footprint_neuron[inside], minlength=plane.neurons).astype(np.float64)


def _line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.floating], colour: str, name: str) -> None:
    """A line; of a long one, the least and largest value of every stretch, so that nothing that stands out is lost."""
    if len(x) > MOST_POINTS:
        length = -(-len(x) // (MOST_POINTS // 2))
        whole = len(x) // length * length
        parts = y[:whole].reshape(-1, length)
        known = ~np.isnan(parts).all(1)
        y = np.full((len(parts), 2), np.nan)
        y[known] = np.stack([np.nanmin(parts[known], 1), np.nanmax(parts[known], 1)], axis=1)
        x, y = np.repeat(x[:whole:length], 2), y.ravel()
    axes.plot(x, y, color=colour, linewidth=0.6, label=name)


def _liveliest(activity: NDArray[np.float32], length: int) -> slice:
    """The stretch of so many frames in which as many neurons as possible do much of what they do at all."""
    frames = activity.shape[1]
    if frames <= length:
        return slice(0, frames)
    starts = np.arange(0, frames - length + 1, max(length // 8, 1))
    summed = np.concatenate([np.zeros((len(activity), 1)), np.cumsum(np.nan_to_num(activity), axis=1, dtype=np.float64)], axis=1)
    share = (summed[:, starts + length] - summed[:, starts]) / np.maximum(summed[:, -1:], 1e-12)
    start = int(starts[int(np.argmax(np.sqrt(share).mean(0)))])
    return slice(start, start + length)
