"""How pictures of the quality report look: one style, colours that everyone can tell apart, axes with units, scale bars.

Figures are drawn without pyplot, whose state threads would share, and with margins in inches, so that no label can squeeze an axis.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

DOTS_PER_INCH = 110
# Okabe and Ito's palette (2008): told apart with every kind of colour vision.
ORANGE, SKY, VERMILION, BLUE, GREEN = "#e69f00", "#56b4e9", "#d55e00", "#0072b2", "#009e73"
INK, FAINT = "#222222", "#9a9a9a"

SMALL, NORMAL = 7.5, 9.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.2, 0.35, 0.5  # inches around the axes
_BETWEEN = 0.55


def panels(
    rows: Sequence[float],
    columns: Sequence[float],
    *,
    left: float = _LEFT,
    right: float = _RIGHT,
    top: float = _TOP,
    bottom: float = _BOTTOM,
    across: float = _BETWEEN,
    down: float = _BETWEEN,
) -> tuple[Figure, GridSpec]:
    """A figure and its grid; heights of rows, widths of columns and all margins in inches."""
    width = left + sum(columns) + across * (len(columns) - 1) + right
    height = top + sum(rows) + down * (len(rows) - 1) + bottom
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    grid = GridSpec(
        len(rows),
        len(columns),
        figure,
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        height_ratios=list(rows),
        width_ratios=list(columns),
        hspace=down * len(rows) / sum(rows),
        wspace=across * len(columns) / sum(columns),
    )
    return figure, grid


def headline(axes: Axes, title: str, size: float = NORMAL, colour: str = INK) -> None:
    """A title above the axis; given its height, matplotlib need not lay out all ticks to find one."""
    axes.set_title(title, fontsize=size, loc="left", color=colour, y=1.0)


def plain(axes: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
    """An axis with a title and labels, and without a frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK)
    headline(axes, title)
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
    return axes


def show_image(
    axes: Axes, image: NDArray[np.float32], title: str, pixel_size: float | None = None, like: NDArray[np.float32] | None = None
) -> None:
    """An image in grey from the 1st to the 99.7th percentile (of `like` where it is given), with a scale bar."""
    shown = np.nan_to_num(image)
    low, high = np.percentile(shown if like is None else np.nan_to_num(like), [1, 99.7])
    axes.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("W")  # below its title, where it is narrower than its place
    headline(axes, title)
    scale_bar(axes, image.shape, pixel_size)


def scale_bar(axes: Axes, shape: tuple[int, ...], pixel_size: float | None) -> None:
    """A bar of a round length, about a fifth of the width, in micrometres or, where these are not known, in pixels."""
    height, width = shape[:2]
    unit, factor = ("px", 1.0) if pixel_size is None else ("µm", pixel_size)
    aim = width * factor / 5
    power = 10 ** np.floor(np.log10(aim))
    length = float(power * max(step for step in (1, 2, 5) if step * power <= aim))
    right, bottom = 0.96 * width, height - 0.04 * width
    outline = [withStroke(linewidth=4, foreground="black")]
    axes.plot([right - length / factor, right], [bottom, bottom], color="white", linewidth=2.5, solid_capstyle="butt", path_effects=outline)
    axes.text(
        right - length / factor / 2,
        bottom - 0.02 * width,
        f"{length:g} {unit}",
        color="white",
        ha="center",
        va="bottom",
        fontsize=SMALL,
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def say(axes: Axes, text: str) -> None:
    """What is written where there is nothing to draw."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=NORMAL, color=FAINT)


def png(figure: Figure) -> bytes:
    """The bytes of the picture, the same every time."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    stream = io.BytesIO()
    # Figures are opaque: a quarter less to compress without the alpha channel.
    opaque = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(opaque).save(stream, "png", compress_level=2, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return stream.getvalue()
