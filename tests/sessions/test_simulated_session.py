"""A simulated recording, with the true dF/F in place of extraction, becomes a session that agrees with what the neurons did."""

import h5py
import numpy as np
import pytest

from sensorium_pipeline.imaging.deconvolution import deconvolve
from sensorium_pipeline.progress import silent
from sensorium_pipeline.recordings import open_session
from sensorium_pipeline.recordings.simulation import simulate_recording
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters
from sensorium_pipeline.sessions.audit import audit_session
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import open_dataset


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "recording"
    parameters = SimulationParameters(
        role="competition", track="sensorium+", single_images=60, test_images=5, final_test_images=5, repeats=4,
        neurons_per_plane=15, height=64, width=64,
    )  # fmt: skip
    simulate_recording(folder, parameters, silent)
    with h5py.File(folder.with_name("recording-truth") / "truth.h5") as file:
        truth = {name: file[name][()] for name in ("presentations/spike_count", "presentations/onset", "neurons/center")}
        truth |= {f"behavior/{name}": file[f"behavior/{name}"][()] for name in ("time", "speed", "dilation", "center")}
        dff = [file[f"planes/{plane}/dff"][()] for plane in range(2)]
    return open_session(folder), dff, truth


def test_responses_and_behaviour_are_what_was_simulated(simulated, workspace, publish, plane_of):
    raw, dff, truth = simulated
    rng = np.random.default_rng(0)
    planes = []
    for index, trace in enumerate(dff):
        clean = np.zeros(raw.volumes, bool)
        noisy = (trace + rng.normal(0, 0.1 * trace.std(axis=1, keepdims=True), trace.shape)).astype(np.float32)
        count = len(trace)
        planes.append(
            plane_of(
                index,
                neurons=count,
                flagged=clean,
                shifts=np.zeros((raw.volumes, 2), np.float32),
                template_correlation=np.ones(raw.volumes, np.float32),
                centroids=truth["neurons/center"][index * count : (index + 1) * count].astype(np.float32),
                fluorescence=noisy,
                neuropil=noisy,
                dff=noisy,
                activity=deconvolve(noisy, raw.frame_rate).activity,
                kept=np.ones(count, bool),
                reason=("",) * count,
            )
        )
    record = publish(raw, planes)
    lab = open_dataset(workspace.lab, record.lab_digest)
    kept = read_array(lab, "trials/rejection") == ""
    assert kept.mean() > 0.9
    np.testing.assert_allclose(read_array(lab, "trials/onset"), truth["presentations/onset"], atol=0.005)
    response, spikes = read_array(lab, "trials/response")[kept], truth["presentations/spike_count"][kept]
    active = np.flatnonzero(spikes.sum(axis=0) > 20)
    correlation = [np.corrcoef(response[:, neuron], spikes[:, neuron])[0, 1] for neuron in active]
    assert np.median(correlation) > 0.9
    behavior = read_array(lab, "trials/behavior")[kept]
    time, onset = truth["behavior/time"], truth["presentations/onset"][kept]
    for column, name in ((0, "dilation"), (2, "speed")):
        inside = [truth[f"behavior/{name}"][(time >= start + 0.05) & (time < start + 0.55)].mean() for start in onset]
        assert np.corrcoef(behavior[:, column], inside)[0, 1] > 0.9, name
    report = audit_session(workspace, record.name)
    assert report.passed, report.findings
