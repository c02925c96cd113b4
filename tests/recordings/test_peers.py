"""Frame by frame against the readers that the field uses, where they are installed: scanimage-tiff-reader and roiextractors."""

from pathlib import Path

import numpy as np
import pytest

from sensorium_pipeline.recordings.scanimage import open_scanimage
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, WrittenField, fields_text, first_lines, header_text, page_shape

VOLUMES, DEPTHS, PER_VOLUME = 11, 3, 4


def write(folder: Path, fields: list[WrittenField], channels: list[int], pages_per_file: int) -> list[Path]:
    shape = page_shape(fields)
    header = header_text(
        fields=fields,
        channels=channels,
        planes=DEPTHS,
        frames_per_volume=PER_VOLUME,
        depths=[100, 150, 200],
        volume_rate=6.0,
        line_period=1e-4,
        bidirectional=True,
        pixel_size=1.0,
        volumes=VOLUMES,
    )
    pages = np.random.default_rng(7).integers(-500, 5000, (VOLUMES * PER_VOLUME * len(channels), *shape)).astype(np.int16)
    stamps = np.repeat(np.arange(VOLUMES * PER_VOLUME) / 24.0, len(channels))
    text = fields_text(fields, 1.0)
    with ScanImageWriter(folder, "scan", shape, header, text, pages_per_file=pages_per_file, channels=len(channels)) as writer:
        writer.write(pages, stamps)
    return sorted(folder.glob("*.tif"))


ONE = [WrittenField(20, 24)]
SEVERAL = [WrittenField(20, 24, (0.0, -40.0)), WrittenField(16, 20, (5.0, 0.0)), WrittenField(22, 24, (0.0, 50.0))]


@pytest.mark.parametrize("fields", [ONE, SEVERAL], ids=["one field", "several fields"])
@pytest.mark.parametrize("channels", [[1], [1, 2]], ids=["one channel", "two channels"])
def test_scanimage_tiff_reader_sees_the_same_pages(tmp_path: Path, fields: list[WrittenField], channels: list[int]) -> None:
    reader = pytest.importorskip("ScanImageTiffReader", reason="scanimage-tiff-reader is not installed")
    files = write(tmp_path, fields, channels, pages_per_file=16)
    pages = np.concatenate([reader.ScanImageTiffReader(str(file)).data() for file in files])
    recording = open_scanimage(files)
    index = 0
    for depth in range(DEPTHS):
        for field, line in zip(fields, first_lines(fields), strict=True):
            for channel in range(len(channels)):
                theirs = pages[depth * len(channels) + channel :: PER_VOLUME * len(channels)]
                np.testing.assert_array_equal(
                    recording.plane(index, channel).read(0, VOLUMES), theirs[:, line : line + field.height, : field.width]
                )
            index += 1
    assert f"frameNumbers = {recording.last.number}" in reader.ScanImageTiffReader(str(files[-1])).description(len(pages) % 16 - 1)


@pytest.mark.parametrize("fields", [ONE, SEVERAL], ids=["one field", "several fields"])
@pytest.mark.parametrize("channels", [[1], [1, 2]], ids=["one channel", "two channels"])
def test_roiextractors_sees_the_same_planes(tmp_path: Path, fields: list[WrittenField], channels: list[int]) -> None:
    extractors = pytest.importorskip("roiextractors", reason="roiextractors is not installed")
    files = write(tmp_path, fields, channels, pages_per_file=16)  # files end inside volumes
    recording = open_scanimage(files)
    for depth in range(DEPTHS):
        for channel, number in enumerate(channels):
            theirs = extractors.ScanImageImagingExtractor(
                file_paths=[str(file) for file in files], plane_index=depth, channel_name=f"Channel {number}"
            )
            assert theirs.get_sampling_frequency() == recording.header.volume_rate
            series = np.asarray(theirs.get_series())
            for index, (field, line) in enumerate(zip(fields, first_lines(fields), strict=True)):
                movie = recording.plane(depth * len(fields) + index, channel)
                np.testing.assert_array_equal(movie.read(0, VOLUMES), series[:, line : line + field.height, : field.width])
