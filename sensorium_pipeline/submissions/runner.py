"""The program inside the sandbox: builds a submission's model, trains it where it can be, and sends predictions out.

    python -I -B -m sensorium_pipeline.submissions.runner

It finds its job in /job/job.json, the sessions in /staged, the submission in /submission, and writes to descriptor 3 alone. Light on
purpose: numpy and the standard library, so that a submission pays only for what it imports itself.
"""

import importlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sensorium_pipeline.errors import SensoriumError, SubmissionError
from sensorium_pipeline.submissions.arrays import write_arrays
from sensorium_pipeline.submissions.interface import Context, FeatureModel, Model, NoCheckpoints, TrainableModel
from sensorium_pipeline.submissions.staging import Staged, load_staged
from sensorium_pipeline.submissions.transfer import ReportedError, ResultWriter
from sensorium_pipeline.training.data import SessionDescription, TrialInputs

RESULT_DESCRIPTOR = 3
SUBMISSION, STAGED, JOB = Path("/submission"), Path("/staged"), Path("/job")
CHECKPOINT = "checkpoint"
LONGEST_TEXT = 1000


class SentCheckpoints:
    """Checkpoints that leave through the result stream; the last of an interrupted run lies in the job's folder."""

    def __init__(self, results: ResultWriter, seconds_between: float) -> None:
        self._results, self._seconds_between = results, seconds_between
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is long enough ago."""
        return time.monotonic() - self._last >= self._seconds_between

    def save(self, content: bytes) -> None:
        """Send one where it is due."""
        if self.due():
            self._results.checkpoint(content)
            self._last = time.monotonic()

    def latest(self) -> bytes | None:
        """The last one of an interrupted run."""
        file = JOB / CHECKPOINT
        return file.read_bytes() if file.exists() else None


def main() -> None:
    """Run the job; the exit code is 0 when everything was sent."""
    results = ResultWriter(RESULT_DESCRIPTOR)
    try:
        job = json.loads((JOB / "job.json").read_text())
        staged = load_staged(STAGED)
        results.started()
        model = _build(job, staged, results)
        if job["mode"] == "evaluate":
            _evaluate(model, staged, results)
        else:
            _predict_images(model, job, staged, results)
        results.done()
        code = 0
    except BaseException as error:  # also SystemExit, which a submission may raise
        traceback.print_exc()
        results.error(_reported(error))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and exit handlers of the submission have no say in when it ends.
    os._exit(code)


def _build(job: dict[str, Any], staged: Staged, results: ResultWriter) -> Model:
    if job["device"] != "cpu":
        _require_device(job["device"])
    sys.path.insert(0, str(SUBMISSION))
    module, function = job["entry_point"].split(":")
    build = getattr(importlib.import_module(module), function, None)
    if "torch" in sys.modules:
        from sensorium_pipeline.models.vector_functions import settle_vector_functions

        settle_vector_functions()
    if not callable(build):
        raise SubmissionError(f"{module} has no function {function}", where="entry_point", advice="Name the function that builds the model")
    seconds = job["checkpoint_seconds"]
    context = Context(
        sessions=tuple(session.data.description for session in staged.sessions),
        track=staged.track,
        seed=job["seed"],
        device=job["device"],
        parameters=job["parameters"],
        folder=SUBMISSION,
        progress=results.progress,
        epoch=results.epoch,
        checkpoints=NoCheckpoints() if seconds is None else SentCheckpoints(results, seconds),
        smoke_run=job["smoke_run"],
    )
    model = build(context)
    if callable(getattr(model, "predict", None)):
        _refuse_half_trainable(model)
        return model
    if isinstance(model, FeatureModel):
        from sensorium_pipeline.submissions.features import FittedReadout

        return FittedReadout(context, model)
    advice = "Return an object with predict(session, inputs), or with features(images)"
    raise SubmissionError(f"it returned {type(model).__name__}, which has no method predict", where=function, advice=advice)


def _refuse_half_trainable(model: object) -> None:
    """Without `state` a method `train` would never be called, and the model predict untrained."""
    train = getattr(type(model), "train", None)
    # That of every torch module switches between two modes.
    if isinstance(model, TrainableModel) or train is None or str(getattr(train, "__module__", "")).startswith("torch."):
        return
    missing = " and ".join(name for name in ("state", "load_state") if not hasattr(model, name))
    advice = "A model that is trained here has train, state and load_state"
    raise SubmissionError(f"it has a method train, but no {missing}", where=type(model).__name__, advice=advice)


def _require_device(device: str) -> None:
    # Without this a missing device node would silently mean a run on the processor.
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"device {device} is not available in the sandbox")


def _evaluate(model: Model, staged: Staged, results: ResultWriter) -> None:
    if isinstance(model, TrainableModel):
        model.train([session.data for session in staged.sessions])
        state = model.state()
        if not isinstance(state, Mapping):
            raise SubmissionError(f"it returned {type(state).__name__}", where="state", advice="Return a dictionary, name -> array")
        content = io.BytesIO()
        write_arrays(content, state)
        results.file("state.npz", content.getbuffer())
    for session in staged.predicted:
        _send(results, model, session.data.description, session.inputs, session.trial_id)


def _predict_images(model: Model, job: dict[str, Any], staged: Staged, results: ResultWriter) -> None:
    state = JOB / "state.npz"
    if state.exists():
        if not isinstance(model, TrainableModel):
            raise SubmissionError("it has no load_state, but a trained state was kept", where=type(model).__name__)
        with np.load(state, allow_pickle=False) as arrays:
            model.load_state({name: arrays[name] for name in arrays.files})
    description = next(session.data.description for session in staged.sessions if session.data.description.name == job["session"])
    images = np.load(JOB / "images.npy", mmap_mode="r", allow_pickle=False)
    statistics = description.statistics

    def repeated(mean: np.ndarray[Any, np.dtype[np.float32]] | None) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        return None if mean is None else np.repeat(mean[None].astype(np.float32), len(images), axis=0)

    # No behaviour belongs to such images, so the animal is taken as it was on average.
    inputs = TrialInputs(images, repeated(statistics.behavior_mean), repeated(statistics.pupil_center_mean))
    _send(results, model, description, inputs, np.arange(len(images), dtype=np.int64))


def _send(
    results: ResultWriter, model: Model, session: SessionDescription, inputs: TrialInputs, trial_id: np.ndarray[Any, np.dtype[np.int64]]
) -> None:
    wanted = (len(trial_id), session.neurons)
    returned = model.predict(session.name, inputs)
    prediction = np.asarray(returned)
    if prediction.dtype.kind not in "fiu":
        problem = f"it returned {type(returned).__name__} of dtype {prediction.dtype} for session {session.name}"
        raise SubmissionError(problem, where="predict", advice="Return float32")
    if prediction.shape != wanted:
        problem = f"it returned shape {prediction.shape} for session {session.name}"
        raise SubmissionError(problem, where="predict", advice=f"Return (trials, neurons), here {wanted}")
    content = io.BytesIO()
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]]
    arrays = {"trial_id": trial_id, "unit_id": session.unit_ids, "prediction": np.ascontiguousarray(prediction, dtype=np.float32)}
    write_arrays(content, arrays)
    results.file(f"predictions/{session.name}.npz", content.getbuffer())


def _reported(error: BaseException) -> ReportedError:
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(SUBMISSION):
            place = f"{path.relative_to(SUBMISSION)}, line {frame.lineno}, in {frame.name}"
    if isinstance(error, SensoriumError):
        message = f"{error.where}: {error.problem}" if error.where else error.problem
        return ReportedError(type(error).__name__, message[:LONGEST_TEXT], place, None, error.advice[:LONGEST_TEXT])
    number = error.errno if isinstance(error, OSError) else None
    try:
        message = str(error)[:LONGEST_TEXT]
    except Exception:  # the class is the submission's own, and may fail to say its text
        message = ""
    return ReportedError(type(error).__name__, message, place, number, "")


if __name__ == "__main__":
    main()
