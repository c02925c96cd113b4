"""The trusted side of one run: start the sandbox, take what comes out, check it, and say in the taxonomy's terms how it ended."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError, PlatformError, ResourceLimitError, SubmissionError
from sensorium_pipeline.progress import ProgressCallback, never, silent
from sensorium_pipeline.submissions.checkpoints import KeptCheckpoints
from sensorium_pipeline.submissions.energy import start_counting
from sensorium_pipeline.submissions.isolation import require_isolation
from sensorium_pipeline.submissions.outcome import (
    PLAIN_PROBLEM,
    RunOutcome,
    as_reported,
    describe_failure,
    failed_before,
    true_place,
    why_it_failed,
)
from sensorium_pipeline.submissions.package import Submission, copy_submission, load_submission
from sensorium_pipeline.submissions.predictions import Expected, read_predictions, write_predictions
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits, Outcome, run_isolated
from sensorium_pipeline.submissions.staging import Staged, load_staged
from sensorium_pipeline.submissions.transfer import CheckpointRules, ResultReader

RUNNER = "sensorium_pipeline.submissions.runner"
CONSOLE = "console.txt"
STATE = "state.npz"
PREDICTIONS = "predictions"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Device:
    """What a run computes on.

    Attributes:
        name: torch device inside, "cpu" or "cuda:0".
        nodes: device nodes to bind, of that GPU alone.
        gpu: its number as NVML counts, to read its energy; None for a processor, and where others use the same GPU.
    """

    name: str = "cpu"
    nodes: tuple[Path, ...] = ()
    gpu: int | None = None


CPU = Device()


def run_submission(
    folder: Path,
    staged_folder: Path,
    track: str,
    seed: int,
    out: Path,
    limits: Limits | None = None,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
    device: Device = CPU,
    lowest_tier: IsolationTier = IsolationTier.NO_USER_NAMESPACE,
    checkpoints: KeptCheckpoints | None = None,
    smoke_run: bool = False,
) -> RunOutcome:
    """Run a submission in isolation, or take its predictions file, and check what comes out.

    A fault of the submission is in the outcome, not raised, so that one submission cannot end the evaluation of others.

    Args:
        folder: the submission's files.
        staged_folder: see `staging.stage_sessions`.
        track: of this evaluation; the staged sessions must be of it.
        seed: of this run.
        out: gets `predictions/<session>.npz` (all or none), `state.npz` if the model was trained, and `console.txt` (what it printed,
            for organisers only). Made if it is not there; what a former attempt left in it is replaced.
        limits: of the sandbox; the submission's own `minutes` can only shorten them.
        progress: called with the submission's progress, held to a name and numbers.
        stop: asked often; True ends the run.
        device: see `Device`.
        lowest_tier: of isolation that this submission may run in.
        checkpoints: of this very run; where given, it goes on from the latest and keeps its own there.
        smoke_run: tell it that this is only a try.

    Raises:
        IsolationError: this machine cannot isolate it.
        PlatformError: the staged sessions are not usable, or the sandbox did not start or was killed from outside.
    """
    staged = load_staged(staged_folder)
    if staged.track != track:
        raise PlatformError(f"sessions staged for {staged.track}", where=staged_folder, advice=f"Stage those of {track}")
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    try:
        submission = load_submission(folder)
    except SubmissionError as error:
        return failed_before(error, seed, "not started")
    with tempfile.TemporaryDirectory(prefix=".run-", dir=out) as private:
        fresh = Path(private)
        if submission.predictions is not None:
            outcome = RunOutcome(status="finished", seed=seed, tier="none needed")
            received = folder / submission.predictions
            unknown = _unknown_file(received, staged)
            if unknown is not None:
                return failed_before(unknown, seed, outcome.tier)
        else:
            job = {"mode": "evaluate", "seed": seed, "smoke_run": smoke_run}
            inputs = {}
            if checkpoints is not None and checkpoints.latest(fresh / CHECKPOINT):
                inputs[CHECKPOINT] = fresh / CHECKPOINT
            sandboxed = _Sandboxed(staged_folder, fresh, limits or Limits(), progress, stop, device, lowest_tier)
            try:
                run = sandboxed.run(folder, submission, job, inputs, [session.expected for session in staged.predicted], checkpoints)
            except SubmissionError as error:
                return failed_before(error, seed, "not started")
            (out / CONSOLE).write_bytes(run.outcome.console)
            outcome = RunOutcome(
                status="finished",
                seed=seed,
                tier=run.tier,
                device=device.name,
                wall_seconds=run.outcome.wall_seconds,
                peak_memory_bytes=run.outcome.peak_memory_bytes,
                energy_joules=run.energy_joules,
                trained=STATE in run.reader.received,
                epochs=run.reader.epochs,
                resumed=CHECKPOINT in inputs,
            )
            if run.outcome.status == "stopped":
                return outcome.model_copy(update={"status": "stopped", "trained": False})
            if run.error is not None:
                failure = describe_failure(run.error, own_words=run.own_words)
                return outcome.model_copy(update={"status": "failed", "trained": False, "failure": failure})
            received = fresh / PREDICTIONS
        checked = fresh / "checked"
        checked.mkdir()
        try:
            for session in staged.predicted:
                name = f"{session.expected.session}.npz"
                predictions = read_predictions(received / name, session.expected, f"{PREDICTIONS}/{name}")
                write_predictions(checked / name, predictions)
        except SubmissionError as error:
            own_words = submission.predictions is None and PLAIN_PROBLEM.fullmatch(error.problem) is None
            return outcome.model_copy(
                update={"status": "failed", "trained": False, "failure": describe_failure(error, own_words=own_words)}
            )
        if outcome.trained:
            os.replace(fresh / STATE, out / STATE)
        os.rename(checked, out / PREDICTIONS)
    return outcome.model_copy(update={"sessions": [session.expected.session for session in staged.predicted]})


def predict_images(
    folder: Path,
    state_file: Path | None,
    staged_folder: Path,
    session: str,
    images: NDArray[np.generic],
    *,
    seed: int = 0,
    limits: Limits | None = None,
    progress: ProgressCallback = silent,
    device: Device = CPU,
) -> NDArray[np.float32]:
    """Responses (images, neurons) of a session's neurons to any images, by an evaluated submission, in standardised units.

    Behaviour and pupil, where the track has them, are the session's training means.

    Args:
        folder: the submission's files.
        state_file: `state.npz` of its run; None for a model that is not trained here.
        staged_folder: the sessions that it was evaluated on.
        session: whose neurons.
        images: (images, y, x) grey values 0..255 at the session's model-input scale.
        seed, limits, progress, device: as for `run_submission`.

    Raises:
        InputError: an unknown session, or images of another shape or with NaN.
        SubmissionError, ResourceLimitError: the submission failed.
        IsolationError, PlatformError: as `run_submission`.
    """
    staged = load_staged(staged_folder)
    described = {each.data.description.name: each.data.description for each in staged.sessions}
    if session not in described:
        raise InputError(f"unknown session {session!r}", where="session", advice=f"Choose one of {', '.join(described)}")
    description = described[session]
    if images.ndim != 3 or images.shape[1:] != description.image_shape:
        advice = f"Give (images, {description.image_shape[0]}, {description.image_shape[1]})"
        raise InputError(f"images of shape {images.shape}", where="images", advice=advice)
    pixels = images.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise InputError("some pixels are NaN or infinite", where="images", advice="Give grey values from 0 to 255")
    submission = load_submission(folder)
    if submission.entry_point is None:
        raise InputError(f"{submission.name} is a predictions file", where=folder, advice="Only a submission with code can predict images")
    expected = Expected(session, np.arange(len(images), dtype=np.int64), description.unit_ids)
    with tempfile.TemporaryDirectory(prefix="sensorium-predict-") as private:
        fresh = Path(private)
        np.save(fresh / "images.npy", pixels, allow_pickle=False)
        inputs = {"images.npy": fresh / "images.npy"}
        if state_file is not None:
            shutil.copyfile(state_file, fresh / "given-state.npz")
            inputs[STATE] = fresh / "given-state.npz"
        job = {"mode": "predict", "seed": seed, "smoke_run": False, "session": session}
        run = _Sandboxed(staged_folder, fresh, limits or Limits(), progress, never, device).run(folder, submission, job, inputs, [expected])
        if run.error is not None:
            raise run.error
        name = f"{PREDICTIONS}/{session}.npz"
        return read_predictions(fresh / name, expected, name).prediction


@dataclass(frozen=True)
class _Run:
    outcome: Outcome
    reader: ResultReader
    tier: str
    energy_joules: float | None
    error: SubmissionError | ResourceLimitError | None
    own_words: bool


@dataclass(frozen=True)
class _Sandboxed:
    """Where and how the runner runs; what it sends lies in `fresh` afterwards, unchecked."""

    staged_folder: Path
    fresh: Path
    limits: Limits
    progress: ProgressCallback
    stop: Callable[[], bool]
    device: Device
    lowest_tier: IsolationTier = IsolationTier.NO_USER_NAMESPACE

    def run(
        self,
        folder: Path,
        submission: Submission,
        job: dict[str, Any],
        inputs: Mapping[str, Path],
        expected: Sequence[Expected],
        checkpoints: KeptCheckpoints | None = None,
    ) -> _Run:
        """Run a job; `inputs` are files that it finds in its folder, and a state is taken where it may train."""
        tier = require_isolation(self.lowest_tier)
        limits, minutes = self.limits, submission.resources.minutes
        if minutes is not None:
            limits = replace(limits, wall_seconds=min(limits.wall_seconds, minutes * 60))
        job_folder, copy = self.fresh / "job", self.fresh / "submission"
        job_folder.mkdir()
        copy.mkdir()
        copy_submission(folder, copy)
        job |= {"device": self.device.name, "entry_point": submission.entry_point, "parameters": submission.parameters}
        job["checkpoint_seconds"] = limits.checkpoint_seconds if checkpoints else None
        (job_folder / "job.json").write_text(json.dumps(job, default=str))
        for name, path in inputs.items():
            shutil.copyfile(path, job_folder / name)
        for path in (self.fresh, job_folder, *job_folder.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        files = {f"{PREDICTIONS}/{one.session}.npz": one.largest_file for one in expected}
        if job["mode"] == "evaluate":
            files[STATE] = limits.output_bytes
        rules = CheckpointRules(checkpoints.keep, limits.output_bytes, limits.checkpoint_seconds / 2) if checkpoints else None
        reader = ResultReader(self.fresh, files, self.progress, rules)
        energy = start_counting(self.device.gpu)
        try:
            outcome = run_isolated(
                [sys.executable, "-I", "-B", "-m", RUNNER],
                tier=tier,
                limits=limits,
                read_only={"/submission": copy, "/staged": self.staged_folder, "/job": job_folder},
                devices=self.device.nodes,
                receive=reader.feed,
                stop=self.stop,
            )
        except OSError as error:
            raise PlatformError(f"results cannot be kept: {error}", where=self.fresh, advice="Make room on this machine") from error
        finally:
            reader.close()
        if reader.error is not None:
            reader.error = replace(reader.error, place=true_place(reader.error.place, copy))
        failed = why_it_failed(outcome, reader, limits)
        own_words = failed is not None and reader.error is not None and failed.problem == as_reported(reader.error).problem
        held = f"{tier}, memory watched" if outcome.memory_watched else str(tier)
        return _Run(outcome, reader, held, energy(), failed, own_words)


def _unknown_file(folder: Path, staged: Staged) -> SubmissionError | None:
    """A file of predictions that belongs to no session, most often a misspelt one."""
    names = {f"{session.expected.session}.npz" for session in staged.predicted}
    for path in sorted(folder.iterdir()):
        if path.name not in names and not path.name.startswith("."):
            return SubmissionError("no such session", where=f"{folder.name}/{path.name}", advice=f"Expected are {', '.join(sorted(names))}")
    return None


def _clear(out: Path) -> None:
    """Remove what a former attempt left, so that old predictions never pass for new ones."""
    shutil.rmtree(out / PREDICTIONS, ignore_errors=True)
    for name in (STATE, CONSOLE):
        (out / name).unlink(missing_ok=True)
    for left in out.glob(".run-*"):
        shutil.rmtree(left, ignore_errors=True)
