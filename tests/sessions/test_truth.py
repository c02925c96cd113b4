"""Sessions beside the truth of their simulated recordings."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_world import OPEN, SENSORIUM, World

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import truth_folder
from sensorium_pipeline.sessions.catalogue import read_binding, read_session
from sensorium_pipeline.sessions.truth import compare_with_truth
from sensorium_pipeline.storage import open_dataset


@pytest.mark.parametrize("session", [OPEN, SENSORIUM])
def test_what_was_simulated_is_found(world: World, session: str) -> None:
    comparison = compare_with_truth(lab_part(world, session), truth_folder(world.raw(session)))
    assert comparison.neurons == 6
    assert comparison.matched_fraction >= 5 / 6
    assert comparison.matched <= comparison.released
    assert comparison.correlation > 0.85


def test_another_truth_is_not_found(world: World, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(truth_folder(world.raw(OPEN)), tmp_path / "truth"))
    with h5py.File(elsewhere / "truth.h5", "a") as file:
        footprints = np.asarray(file["planes/0/footprints"])
        counts = np.asarray(file["presentations/spike_count"])
        file["planes/0/footprints"][...] = np.roll(footprints, (11, 17), axis=(1, 2))
    lost = compare_with_truth(lab_part(world, OPEN), elsewhere)
    assert lost.matched_fraction < 0.5
    with h5py.File(elsewhere / "truth.h5", "a") as file:
        file["planes/0/footprints"][...] = footprints
        file["presentations/spike_count"][...] = np.roll(counts, 1, axis=0)
    assert abs(compare_with_truth(lab_part(world, OPEN), elsewhere).correlation) < 0.3


def test_a_truth_of_another_recording_or_none(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as the truth"):
        compare_with_truth(lab_part(world, OPEN), tmp_path)
    with pytest.raises(InputError, match="presentations"):
        compare_with_truth(lab_part(world, OPEN), truth_folder(world.raw(SENSORIUM)))


def lab_part(world: World, session: str):
    workspace = world.workspace
    binding = read_binding(workspace.sealed, read_session(workspace.open, session)[1].open_digest)
    return open_dataset(workspace.lab, binding.lab_digest)
