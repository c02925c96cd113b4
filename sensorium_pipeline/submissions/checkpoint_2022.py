"""The organisers' checkpoints of 2022 as a submission that brings weights alone: entry point `...submissions.checkpoint_2022:build`.

    name = "CNN of 2022"
    entry_point = "sensorium_pipeline.submissions.checkpoint_2022:build"
    [parameters]
    weights = "sensorium_sota_model.pth"
    # image_mean = 113.5246        # where the weights were trained with other statistics than the session's
    # image_std = 64.5583

The file is opened inside the sandbox only, and nothing in it is executed. It belongs to one session: the one of its name, or one with as
many neurons. Where the session's neurons lie at the positions that the checkpoint knows, they are put in that order; else they are taken
in the order of the session.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.spatial import cKDTree

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.checkpoints import load_checkpoint
from sensorium_pipeline.models.inputs import normalise_inputs
from sensorium_pipeline.models.readouts.gaussian import source_grid
from sensorium_pipeline.submissions.interface import Context
from sensorium_pipeline.training.data import SessionDescription, TrialInputs
from sensorium_pipeline.training.trainer import predict_inputs

BATCH = 128
SAME_PLACE = 1e-3
"""Distance between normalised positions, of which the farthest is 1: a third of a micrometre."""


class CheckpointParameters(BaseModel):
    """The `[parameters]` table: the file of weights in the submission, and statistics that replace the session's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    image_mean: float | None = None
    image_std: float | None = None


class CheckpointModel:
    """A checkpoint on the sessions of a release, in standardised units.

    Args:
        context: sessions, device, parameters and folder.

    Raises:
        InputError: the parameters or the file are not usable.
    """

    def __init__(self, context: Context) -> None:
        try:
            self._parameters = CheckpointParameters.model_validate(dict(context.parameters))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(["parameters", *(str(part) for part in first["loc"])])
            advice = "A checkpoint takes weights, image_mean and image_std"
            raise InputError(f"{field}: {first['msg']}", where="submission.toml", advice=advice) from error
        self._weights = context.folder / Path(self._parameters.weights).name
        shapes = {session.image_shape for session in context.sessions}
        if len(shapes) != 1:
            raise InputError("the sessions differ in image shape", where="sessions", advice="Use sessions at one scale")
        self._encoder = load_checkpoint(self._weights, shapes.pop()).to(context.device)
        self._device = context.device
        self._sessions: Mapping[str, SessionDescription] = {session.name: session for session in context.sessions}

    def predict(self, session: str, inputs: TrialInputs) -> NDArray[np.float32]:
        """Responses (trials, neurons) in standardised units, float32.

        Raises:
            InputError: the checkpoint does not fit the session.
        """
        description = self._sessions[session]
        readout, column = self._match(description)
        statistics = description.statistics
        mean, std = self._parameters.image_mean, self._parameters.image_std
        statistics = replace(
            statistics,
            image_mean=statistics.image_mean if mean is None else mean,
            image_std=statistics.image_std if std is None else std,
        )
        normalised = normalise_inputs(self._encoder.configuration, replace(description, statistics=statistics), inputs)
        prediction = predict_inputs(self._encoder, readout, normalised.to(self._device), BATCH).cpu().numpy()
        return np.ascontiguousarray(prediction[:, column])

    def _match(self, session: SessionDescription) -> tuple[str, NDArray[np.intp]]:
        """The checkpoint's readout for a session, and for every neuron of the session its column there."""
        grids = {name: self._grid(name) for name in self._encoder.sessions}
        fitting = [name for name, grid in grids.items() if len(grid) == session.neurons]
        readout = session.name if session.name in fitting else next(iter(fitting), None)
        if readout is None:
            known = ", ".join(f"{name} with {len(grid)}" for name, grid in grids.items())
            problem = f"session {session.name} has {session.neurons} neurons"
            raise InputError(problem, where=self._weights.name, advice=f"The checkpoint is of {known}")
        grid, own = grids[readout], source_grid(session.positions)
        in_order = np.arange(session.neurons)
        if np.abs(grid - own).max() < SAME_PLACE:
            return readout, in_order
        places = cKDTree(grid)
        nearest = places.query(own)
        distance, place = np.asarray(nearest[0]), np.asarray(nearest[1])
        place_there = np.asarray(places.query(grid)[1])
        # Neurons of different depths may lie at one place: those are taken in their order, as nothing else tells them apart.
        ours, theirs = np.argsort(place, kind="stable"), np.argsort(place_there, kind="stable")
        if distance.max() >= SAME_PLACE or not np.array_equal(place[ours], place_there[theirs]):
            return readout, in_order
        column = np.empty_like(in_order)
        column[ours] = theirs
        return readout, column

    def _grid(self, readout: str) -> NDArray[np.float32]:
        return dict(self._encoder.named_buffers())[f"readouts.{readout}.grid"].cpu().numpy()


def build(context: Context) -> CheckpointModel:
    """Entry point of submission.toml."""
    return CheckpointModel(context)
