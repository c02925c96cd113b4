"""Learning curves as a picture: training loss and validation score by epoch, as submissions report them.

Both come from visible tiers, but a hostile submission may report anything it likes, so the picture is for organisers.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from sensorium_pipeline.submissions.transfer import Epoch

PICTURE = "learning-curve.png"
DOTS_PER_INCH = 110


def draw_learning_curves(curves: Mapping[str, Sequence[Epoch]]) -> bytes:
    """A PNG with loss and validation score over epochs; the same curves give the same bytes.

    Args:
        curves: label, such as "seed 0" -> its epochs.
    """
    # Imported where it draws: a night with nothing new draws nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, validation = figure.subplots(1, 2)
    for label, epochs in curves.items():
        numbers = [epoch.number for epoch in epochs]
        loss.plot(numbers, _values([epoch.loss for epoch in epochs]), label=label)
        validation.plot(numbers, _values([epoch.validation for epoch in epochs]), label=label)
    loss.set(title="Training loss", xlabel="epoch")
    validation.set(title="Validation score", xlabel="epoch")
    if len(curves) > 1:
        validation.legend(fontsize="small")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()


def _values(values: Sequence[float | None]) -> list[float]:
    """Gaps where a number is not finite; larger ones than a picture can show are cut."""
    return [np.nan if value is None else float(np.clip(value, -1e30, 1e30)) for value in values]
