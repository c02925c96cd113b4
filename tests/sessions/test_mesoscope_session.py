"""Fields of view of different sizes become one session: positions in the tissue, delays of lines far down a page, images filled up."""

import h5py
import numpy as np

from sensorium_pipeline.recordings import open_session
from sensorium_pipeline.recordings.simulation import simulate_recording
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import open_dataset


def test_a_mesoscope_recording_becomes_a_session(tmp_path, workspace, publish, plane_of):
    parameters = SimulationParameters(
        role="competition", track="sensorium+", single_images=60, test_images=5, final_test_images=5, repeats=4,
        neurons_per_plane=5, height=60, width=64, fields=3, planes=1,
    )  # fmt: skip
    simulate_recording(tmp_path / "recording", parameters)
    raw = open_session(tmp_path / "recording")
    with h5py.File(tmp_path / "recording-truth" / "truth.h5") as file:
        truth = {name: file[f"neurons/{name}"][()] for name in ("plane", "center", "position", "delay")}
        dff = [file[f"planes/{plane}/dff"][()] for plane in range(3)]
    planes = []
    for index, trace in enumerate(dff):
        image = np.full((raw.plane(index).height, raw.plane(index).width), 10.0 + index, np.float32)
        planes.append(
            plane_of(
                index,
                neurons=len(trace),
                flagged=np.zeros(raw.volumes, bool),
                shifts=np.zeros((raw.volumes, 2), np.float32),
                template_correlation=np.ones(raw.volumes, np.float32),
                centroids=truth["center"][truth["plane"] == index].astype(np.float32),
                **dict.fromkeys(("mean_before", "mean_after", "max_before", "max_after"), image),
                **{name: np.maximum(trace, 0) for name in ("fluorescence", "neuropil", "dff", "activity")},
                kept=np.ones(len(trace), bool),
                reason=("",) * len(trace),
            )
        )
    record = publish(raw, planes)
    opened, lab = open_dataset(workspace.open, record.open_digest), open_dataset(workspace.lab, record.lab_digest)
    np.testing.assert_allclose(read_array(opened, "neurons/position"), truth["position"], atol=1e-3)
    np.testing.assert_array_equal(read_array(opened, "neurons/plane"), truth["plane"])
    np.testing.assert_allclose(read_array(lab, "neurons/delay"), truth["delay"], atol=2e-4)  # the clock's samples
    assert truth["delay"].max() > 2 * truth["delay"][truth["plane"] == 0].max()  # the last field begins far down the page
    sizes = read_array(lab, "recording/plane_size")
    np.testing.assert_array_equal(sizes, [(60, 64), (56, 58), (52, 64)])
    images = read_array(lab, "recording/mean_after")
    assert images.shape == (3, 60, 64)
    for plane, (height, width) in enumerate(sizes):
        assert (images[plane, :height, :width] == 10 + plane).all()
        assert np.isnan(images[plane]).sum() == 60 * 64 - height * width
    np.testing.assert_allclose(read_array(lab, "recording/corner"), [plane.corner for plane in raw.description.planes])
    np.testing.assert_allclose(read_array(lab, "recording/pixel_size"), np.full((3, 2), 1.3))
