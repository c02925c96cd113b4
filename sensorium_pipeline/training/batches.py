"""Sessions resident in memory: normalised once, on the device that trains, and cut into batches without a copy per array."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.models.inputs import ModelInputs, normalise_inputs, standardise_responses
from sensorium_pipeline.training.data import SessionData, SessionDescription, Trials


@dataclass(frozen=True)
class ResidentTrials:
    """Normalised inputs and standardised responses (trials, neurons) of trials, on one device."""

    inputs: ModelInputs
    responses: Tensor

    def __len__(self) -> int:
        return self.responses.shape[0]


@dataclass(frozen=True)
class ResidentSession:
    """A session ready for training."""

    name: str
    training: ResidentTrials
    validation: ResidentTrials


def resident_session(configuration: ModelConfiguration, session: SessionData, device: torch.device | str) -> ResidentSession:
    """Normalise a session's visible trials and put them on a device.

    Raises:
        InputError: when a tier has too few trials, or an array does not fit the session.
    """
    for tier, trials in (("training", session.training), ("validation", session.validation)):
        if len(trials) < 2:
            raise InputError(
                f"{len(trials)} {tier} trials are too few", where=session.description.name, advice="Give at least 2 of each tier"
            )
    return ResidentSession(
        session.description.name,
        _resident(configuration, session.description, session.training, device),
        _resident(configuration, session.description, session.validation, device),
    )


def _resident(configuration: ModelConfiguration, session: SessionDescription, trials: Trials, device: torch.device | str) -> ResidentTrials:
    responses = standardise_responses(session, trials.responses)
    inputs = normalise_inputs(configuration, session, trials.inputs)
    if len(inputs) != len(responses):
        raise InputError(f"{len(inputs)} images for {len(responses)} responses", where=session.name, advice="Give one image a trial")
    return ResidentTrials(inputs.to(device), responses.to(device))


def seeded_generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on a seed and a purpose alone, so that a resumed run draws what an undisturbed one would."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def steps_per_epoch(sessions: Sequence[ResidentSession], batch_size: int) -> int:
    """Steps in which every trial of the longest session is seen once."""
    return max(-(-len(session.training) // batch_size) for session in sessions)


def epoch_batches(sessions: Sequence[ResidentSession], batch_size: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Trial indices of one epoch, step by step: one batch (at most batch_size) of every session, on the session's device.

    Every session is passed in random order; shorter ones are passed again, in a new order, until the longest is through.
    """
    steps = steps_per_epoch(sessions, batch_size)
    columns = []
    for session in sessions:
        batches: list[Tensor] = []
        while len(batches) < steps:
            order = torch.randperm(len(session.training), generator=generator).to(session.training.responses.device)
            batches.extend(order.split(batch_size))
        columns.append(batches[:steps])
    return (list(step) for step in zip(*columns, strict=True))
