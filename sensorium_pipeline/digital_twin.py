"""An evaluated model as a digital twin: what the neurons of a session would answer to any images."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.evaluation import latest_evaluation
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.prediction_runs import staging_area
from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.sessions.catalogue import load_description
from sensorium_pipeline.sessions.scaling import rescale
from sensorium_pipeline.storage import Workspace, download_files, open_dataset
from sensorium_pipeline.submissions.inbox import fetch_submission
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.run import STATE, predict_images


def predict_twin(
    workspace: Workspace, job: Job, images: NDArray[np.generic], session: str | None = None, *, progress: ProgressCallback = silent
) -> tuple[str, NDArray[np.int64], NDArray[np.float32]]:
    """Responses of a session's neurons to any images, by a submission that was evaluated: a digital twin.

    Args:
        workspace: where it was evaluated.
        job: the submission.
        images: (images, y, x) grey values 0..255, at the full or at the model-input resolution of the session.
        session: whose neurons; the track's first competition session where it is left out.
        progress: of the run.

    Returns:
        The session's name, unit ids (neurons,) and responses (images, neurons) in standardised units; the mean over seeds.

    Raises:
        InputError: it was not evaluated or failed, or the session or images do not fit.
    """
    evaluation = latest_evaluation(workspace, job)
    if evaluation is None or evaluation.failure:
        problem = f"it failed ({evaluation.failure})" if evaluation else "it has not been evaluated"
        raise InputError(problem, where=job.identifier, advice="Only an evaluated model predicts; see `sensorium rank`.")
    name = session or job.release.competition_sessions(job.track)[0].name
    if name not in job.data():
        raise InputError(
            f"the release has no session {name} for this track", where="session", advice=f"Choose one of {', '.join(job.data())}."
        )
    tree = open_dataset(workspace.open, job.data()[name])
    description = load_description(tree, job.track)
    full = (tree["images"].sizes["y"], tree["images"].sizes["x"])
    if images.ndim == 3 and images.shape[1:] == full and full != description.image_shape:
        images = rescale(images, description.image_shape)
    staged = stage_release(workspace.open, job.release, job.track, staging_area(), progress)
    responses = []
    with tempfile.TemporaryDirectory(prefix="sensorium-twin-") as folder:
        files = Path(folder, "submission")
        fetch_submission(workspace, job.submission, files)
        for seed, run in zip(job.submission.seeds, evaluation.runs, strict=True):
            state = None
            if run.state_digest is not None:
                download_files(workspace.sealed, run.state_digest, Path(folder, str(seed)))
                state = Path(folder, str(seed), STATE)
            responses.append(predict_images(files, state, staged, name, images, seed=seed, progress=progress))
    return name, description.unit_ids, np.mean(responses, axis=0, dtype=np.float32)
