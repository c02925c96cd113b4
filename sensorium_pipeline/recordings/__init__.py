"""Raw recordings: reading what a rig leaves, and simulating it with known truth."""

from sensorium_pipeline.recordings.movie import Movie, OpenedMovie, open_movie, open_with_rate
from sensorium_pipeline.recordings.raw_session import (
    ImageSet,
    Presentations,
    Pupil,
    RawSession,
    RecordingDescription,
    Role,
    StimulusImages,
    Track,
    Treadmill,
)
from sensorium_pipeline.recordings.session_folder import open_session
from sensorium_pipeline.recordings.simulation import simulate_recording, truth_folder
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters
from sensorium_pipeline.recordings.summary import SessionSummary, describe

__all__ = [
    "ImageSet",
    "Movie",
    "OpenedMovie",
    "Presentations",
    "Pupil",
    "RawSession",
    "RecordingDescription",
    "Role",
    "SessionSummary",
    "SimulationParameters",
    "StimulusImages",
    "Track",
    "Treadmill",
    "describe",
    "open_movie",
    "open_session",
    "open_with_rate",
    "simulate_recording",
    "truth_folder",
]
