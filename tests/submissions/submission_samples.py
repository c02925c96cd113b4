"""Small sessions and submissions to test with."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

import sensorium_pipeline
from sensorium_pipeline.submissions.outcome import RunOutcome
from sensorium_pipeline.submissions.sandbox import Limits
from sensorium_pipeline.submissions.staging import StagedSession
from sensorium_pipeline.training.data import SessionData, SessionDescription, Statistics, TrialInputs, Trials

SMALL = Limits(wall_seconds=20, memory_bytes=512 * 1024**2, processes=24, disk_bytes=16 * 1024**2, output_bytes=64 * 1024**2)

INSTALLED = {
    path.parts[2] for path in (Path(sys.prefix), Path(sys.base_prefix), Path(sensorium_pipeline.__file__)) if path.is_relative_to("/tmp")
}
"""What every sandbox sees in /tmp where the checkout lies there: the way to this Python and this package."""

Attack = Callable[..., RunOutcome]

GOOD = """
    import numpy as np

    class MeanResponse:
        def __init__(self, context):
            self.context = context
            self.mean = {}

        def train(self, sessions):
            for session in sessions:
                precision = session.description.statistics.response_precision
                self.mean[session.description.name] = session.training.responses.mean(axis=0) * precision
                self.context.progress(Progress("epoch", 1, 1, "loss 0.5"))

        def state(self):
            return self.mean

        def load_state(self, state):
            self.mean = dict(state)

        def predict(self, session, inputs):
            brightness = inputs.images.mean(axis=(1, 2))[:, None]
            return (brightness * self.context.parameters["gain"] + self.mean[session]).astype(np.float32)

    from sensorium_pipeline.progress import Progress

    def build(context):
        return MeanResponse(context)
"""


def small_session(name: str, neurons: int, seed: int, track: str = "sensorium", image_shape: tuple[int, int] = (6, 8)) -> StagedSession:
    generator = np.random.default_rng(seed)
    plus = track == "sensorium+"

    def inputs(trials: int) -> TrialInputs:
        images = generator.uniform(0, 255, (trials, *image_shape)).astype(np.float32)
        behavior = generator.normal(1, 1, (trials, 3)).astype(np.float32) if plus else None
        pupil_center = generator.normal(5, 1, (trials, 2)).astype(np.float32) if plus else None
        return TrialInputs(images, behavior, pupil_center)

    def trials(count: int) -> Trials:
        return Trials(inputs(count), generator.gamma(2, 1, (count, neurons)).astype(np.float32))

    training, validation = trials(12), trials(4)
    statistics = Statistics(
        float(training.inputs.images.mean()),
        float(training.inputs.images.std()),
        training.responses.mean(axis=0),
        training.responses.std(axis=0),
        *(
            (
                training.inputs.behavior.mean(axis=0),
                training.inputs.behavior.std(axis=0),
                training.inputs.pupil_center.mean(axis=0),
                training.inputs.pupil_center.std(axis=0),
            )
            if training.inputs.behavior is not None and training.inputs.pupil_center is not None
            else ()
        ),
    )
    unit_ids = np.arange(10, 10 + 3 * neurons, 3, dtype=np.int64)
    positions = generator.normal(0, 100, (neurons, 3)).astype(np.float32)
    description = SessionDescription(name, unit_ids, positions, image_shape, statistics)
    return StagedSession(SessionData(description, training, validation), inputs(7), np.arange(20, 27, dtype=np.int64))


def write_submission(folder: Path, code: str, description: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(textwrap.dedent(code))
    (folder / "submission.toml").write_text(description or 'name = "test"\nentry_point = "model:build"\n[parameters]\ngain = 0.01\n')
    return folder


Run = Callable[..., RunOutcome]


def problem(outcome: RunOutcome, error: str = "SubmissionError") -> str:
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert outcome.failure.error == error
    return outcome.failure.problem


def nothing_found(outcome: RunOutcome) -> None:
    assert problem(outcome) == "RuntimeError: found: []"
