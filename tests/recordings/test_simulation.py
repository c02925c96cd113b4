"""A simulated session is read back as it was made, its truth lies beside it, and its population is what it claims to be."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.recordings import SimulationParameters, open_session, simulate_recording, truth_folder
from sensorium_pipeline.recordings.digest import digest_of_files
from sensorium_pipeline.recordings.simulated_images import natural_image
from sensorium_pipeline.recordings.simulated_population import draw_population, expected_counts


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_frames_come_back_bitwise(small_session: Path) -> None:
    session = open_session(small_session)
    files = sorted((small_session / "scans").glob("*.tif"))
    assert len(files) >= 2
    pages = np.concatenate([tifffile.imread(file) for file in files])
    assert session.planes == 2
    for plane in range(2):  # three frames a volume, the last of them flyback
        np.testing.assert_array_equal(session.plane(plane).read(0, session.volumes), pages[plane::3])


def test_every_clock_is_the_frame_clock(small_session: Path) -> None:
    session = open_session(small_session)
    with h5py.File(truth_folder(small_session) / "truth.h5") as truth:
        np.testing.assert_array_equal(session.stimulus.image_id, truth["presentations/image_id"])
        for name in ("onset", "offset"):  # the acquisition samples at 10 kHz
            np.testing.assert_allclose(getattr(session.stimulus, name), truth[f"presentations/{name}"], atol=3e-4)
        time, behavior = session.treadmill.time, truth["behavior"]
        expected = np.interp(time, behavior["time"], behavior["speed"])
        assert np.sqrt(np.mean((session.treadmill.speed - expected) ** 2)) < 0.6
        seen = ~np.isnan(session.pupil.dilation)
        for column, values in ((session.pupil.dilation, behavior["dilation"][:]), (session.pupil.center[:, 0], behavior["center"][:, 0])):
            expected = np.interp(session.pupil.time[seen], behavior["time"], values)
            assert np.abs(column[seen] - expected).max() < 1.5
    np.testing.assert_allclose(session.frame_times, np.arange(session.volumes) / 8, atol=2e-4)
    np.testing.assert_allclose(session.plane_delays, [0, 1 / 24], atol=2e-4)
    assert session.line_period == pytest.approx(0.98 / (24 * 48))


def test_truth_lies_beside_and_never_inside(small_session: Path) -> None:
    inside = files_of(small_session)
    assert inside == sorted(open_session(small_session).raw_files)  # nothing but what ingestion reads
    assert files_of(truth_folder(small_session)) == ["parameters.json", "truth.h5"]
    names: list[str] = []
    for name in ("sync.h5", "treadmill.h5"):
        with h5py.File(small_session / name) as file:
            names += file.attrs
            file.visit(names.append)
    names += ["".join((small_session / name).read_text()) for name in inside if name.endswith((".toml", ".csv"))]
    for secret in ("seed", "truth", "gain", "kind", "expected", "spike"):
        assert not [name for name in names if secret in name]


def test_same_parameters_same_bytes(small_session: Path, small_parameters: SimulationParameters, tmp_path: Path) -> None:
    simulate_recording(tmp_path / "again", small_parameters)
    again, first = tmp_path / "again", small_session
    for one, other in ((first, again), (truth_folder(first), truth_folder(again))):
        assert digest_of_files(one, files_of(one)) == digest_of_files(other, files_of(other))
    assert open_session(again).digest == open_session(first).digest
    simulate_recording(tmp_path / "other", small_parameters.model_copy(update={"seed": 9}))
    assert open_session(tmp_path / "other").digest != open_session(first).digest


def test_test_images_are_the_same_in_every_mouse(small_session: Path, small_parameters: SimulationParameters, tmp_path: Path) -> None:
    other = small_parameters.model_copy(update={"seed": 8, "animal": 8, "role": "open", "track": None})
    simulate_recording(tmp_path / "other", other)
    one, two = open_session(small_session), open_session(tmp_path / "other")
    assert set(two.image_sets.values()) == {"single", "test"}
    tests = [image for image, image_set in one.image_sets.items() if image_set == "test"]
    assert tests == [image for image, image_set in two.image_sets.items() if image_set == "test"]
    rows = [np.searchsorted(session.images.image_ids, tests) for session in (one, two)]
    np.testing.assert_array_equal(one.images.images[rows[0]], two.images.images[rows[1]])
    assert len(np.unique(one.images.images.reshape(len(one.images), -1), axis=0)) == len(one.images)


def test_repeats_are_unequal_and_presentations_jittered(small_session: Path) -> None:
    session = open_session(small_session)
    ids, counts = np.unique(session.stimulus.image_id, return_counts=True)
    repeats = [int(count) for image, count in zip(ids, counts, strict=True) if session.image_sets[int(image)] != "single"]
    assert len(set(repeats)) > 1
    blank = session.stimulus.onset[1:] - session.stimulus.offset[:-1]
    assert 0.3 < blank.min() < blank.max() < 0.61
    assert np.isclose(np.median(session.stimulus.offset - session.stimulus.onset), 31 / 60, atol=1e-3)


def test_nothing_half_written_and_nothing_overwritten(small_parameters: SimulationParameters, tmp_path: Path) -> None:
    out = tmp_path / "raw"

    def stop(progress: Progress) -> None:
        if progress.stage == "frames":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_recording(out, small_parameters, stop)
    assert os.listdir(tmp_path) == []
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        simulate_recording(out, small_parameters)
    assert files_of(tmp_path) == ["raw/notes.txt"]


def test_timeline_of_a_real_session(test_data: Path, small_parameters: SimulationParameters, tmp_path: Path) -> None:
    timeline = test_data / "sensorium" / "timelines" / "21067-10-18.csv"
    simulate_recording(tmp_path / "raw", small_parameters.model_copy(update={"timeline": timeline}))
    session = open_session(tmp_path / "raw")
    rows = [line.split(",") for line in timeline.read_text().splitlines()[1:] if ",image," in line]
    real = np.array([float(row[3]) for row in rows[: len(session.stimulus)]])
    np.testing.assert_allclose(session.stimulus.onset - session.stimulus.onset[0], real - real[0], atol=3e-4)
    too_many = small_parameters.model_copy(update={"timeline": timeline, "single_images": 7000})
    with pytest.raises(InputError, match="holds 6000 presentations"):
        simulate_recording(tmp_path / "more", too_many)


def test_parameters_are_checked() -> None:
    with pytest.raises(ValidationError, match="belongs to one track"):
        SimulationParameters(role="competition")
    with pytest.raises(ValidationError, match="belongs to one track"):
        SimulationParameters(track="sensorium")


def test_somata_flicker_where_the_truth_says(small_session: Path) -> None:
    """Fluorescence under a true footprint, in frames moved back by the true shifts, follows the true dF/F."""
    session = open_session(small_session)
    with h5py.File(truth_folder(small_session) / "truth.h5") as truth:
        for plane in range(2):
            group = truth[f"planes/{plane}"]
            movie = session.plane(plane).read(0, session.volumes).astype(float)
            shifts = np.rint(group["shifts"][:]).astype(int)
            still = np.stack([np.roll(frame, tuple(-shift), (0, 1)) for frame, shift in zip(movie, shifts, strict=True)])
            traces = np.tensordot(group["footprints"][:], still, axes=([1, 2], [1, 2]))
            correlations = [np.corrcoef(trace, dff)[0, 1] for trace, dff in zip(traces, group["dff"][:], strict=True)]
            assert np.median(correlations) > 0.7


def test_the_kinds_of_cells_are_what_they_are_called() -> None:
    """A linear model explains linear cells and hardly the others; a contrast-reversed image tells energy cells from linear ones."""
    generator = np.random.default_rng(4)
    population = draw_population(
        generator.random((60, 2)),
        (1.0, 1.0),
        orientations=8,
        wavelengths=(24.0, 40.0),
        fractions=(0.6, 0.25, 0.15),
        spikes=1.0,
        generator=generator,
    )
    assert np.bincount(population.kind).tolist() == [36, 15, 9]
    images = np.stack([natural_image(5, index) for index in range(160)])
    both = expected_counts(population, np.concatenate([images, 230 - np.minimum(images, 230)]))
    plain, reversed_ = both[:160], both[160:]
    agreement = np.array([np.corrcoef(plain[:, n], reversed_[:, n])[0, 1] for n in range(60)])
    assert agreement[population.kind == 0].min() > 0.9
    assert np.median(agreement[population.kind == 1]) > 0.5
    assert agreement[population.kind == 2].max() < 0.3
    assert both.mean() == pytest.approx(1.0, rel=0.3)
