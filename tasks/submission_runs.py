"""What Dask workers do for a submission: its smoke run, and its run with one seed. Imports only what that takes."""

import os
from pathlib import Path

from sensorium_pipeline.compute import Channel
from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.prediction_runs import PredictionRecord, RunSettings, predict, try_out
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import open_workspace
from sensorium_pipeline.submissions.run import CPU, Device
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from tasks.workspaces import settings_for


def try_out_on_worker(job: Job, root: str | None, channel: Channel) -> PredictionRecord | None:
    """See `prediction_runs.try_out`."""
    settings = settings_for(root)
    progress = _reporter(f"{job.identifier} smoke run", channel)
    return try_out(open_workspace(settings), job, settings=_run_settings(job, settings), progress=progress, stop=channel.stopped)


def predict_on_worker(job: Job, seed: int, root: str | None, channel: Channel) -> PredictionRecord:
    """See `prediction_runs.predict`."""
    settings = settings_for(root)
    progress = _reporter(f"{job.identifier} seed {seed}" if len(job.submission.seeds) > 1 else job.identifier, channel)
    return predict(open_workspace(settings), job, seed, settings=_run_settings(job, settings), progress=progress, stop=channel.stopped)


def _reporter(name: str, channel: Channel) -> ProgressCallback:
    def report(progress: Progress) -> None:
        channel.report(Progress(f"{name} {progress.stage}", progress.done, progress.total, progress.detail))

    return report


def _run_settings(job: Job, settings: Settings) -> RunSettings:
    limits = Limits(checkpoint_seconds=settings.checkpoint_seconds)
    return RunSettings(limits, _worker_device(job, settings.gpu_slots), IsolationTier(settings.isolation))


def _worker_device(job: Job, slots: int) -> Device:
    """The GPU that dask-cuda gave to this worker, with its device nodes alone; the worker itself makes no CUDA context.

    Raises:
        PlatformError: the job is for GPUs and this worker has none; a result from a CPU must not be recorded as one of a GPU.
    """
    if job.device_class == "cpu":
        return CPU
    # In a container the only GPU has the index 0, whatever the number of its node.
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"), key=lambda node: int(node.name.removeprefix("nvidia")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if not visible.isdigit() or int(visible) >= len(gpus):
        raise PlatformError(
            "the evaluation asks for a GPU, and this worker has none",
            where=f"CUDA_VISIBLE_DEVICES={visible}",
            advice="Start the workers with `dask cuda worker`, or evaluate with device_class=cpu.",
        )
    common = [Path("/dev") / name for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")]
    # Energy is counted for a whole GPU, so where several models share one it is nobody's.
    gpu = int(visible) if slots == 1 else None
    return Device("cuda:0", (gpus[int(visible)], *(node for node in common if node.exists())), gpu)
