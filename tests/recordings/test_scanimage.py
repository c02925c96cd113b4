"""ScanImage recordings: written as ScanImage does, read plane by plane, and every kind of damage named."""

import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import open_movie, tiff
from sensorium_pipeline.recordings.scanimage import open_scanimage
from sensorium_pipeline.recordings.scanimage_header import parse_header, parse_value
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, WrittenField, fields_text, header_text

SHAPE = (6, 10)


def write(folder: Path, frames: np.ndarray, *, pages_per_file: int = 40, stem: str = "scan", **changes: object) -> list[Path]:
    """Frames (volumes, frames of a volume, channels, y, x) as a recording of two planes."""
    volumes, per_volume, channels = frames.shape[:3]
    options: dict = {
        "channels": list(range(1, channels + 1)),
        "planes": 2,
        "frames_per_volume": per_volume,
        "depths": [200, 225],
        "volume_rate": 8.0,
        "line_period": 1e-3,
        "bidirectional": True,
        "fields": [WrittenField(*SHAPE)],
        "pixel_size": 1.5,
        "volumes": volumes,
    } | changes
    folder.mkdir(exist_ok=True)
    header, fields = header_text(**options), fields_text(options["fields"], options["pixel_size"])
    with ScanImageWriter(folder, stem, frames.shape[3:], header, fields, pages_per_file=pages_per_file, channels=channels) as writer:
        stamps = np.repeat(np.arange(volumes * per_volume) / (8.0 * per_volume), channels)
        writer.write(frames.reshape(-1, *frames.shape[3:]), stamps)
    return sorted(folder.glob("*.tif"))


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(5).integers(-300, 3000, (30, 3, 2, *SHAPE)).astype(np.int16)


def test_planes_and_channels_come_apart_across_files(tmp_path: Path, frames: np.ndarray) -> None:
    files = write(tmp_path, frames)  # 180 pages in files of 40: files end inside volumes
    assert len(files) == 5
    recording = open_scanimage(files[::-1])
    assert (recording.volumes, recording.frames, recording.header.slices) == (30, 90, 2)
    assert [(field.slice, field.first_line, field.height, field.width) for field in recording.header.fields] == [
        (0, 0, *SHAPE),
        (1, 0, *SHAPE),
    ]
    assert [field.pixel_size for field in recording.header.fields] == [pytest.approx((1.5, 1.5))] * 2
    assert [field.depth for field in recording.header.fields] == [200, 225]
    for plane in range(2):
        for channel in range(2):  # the third frame of a volume is flyback
            np.testing.assert_array_equal(recording.plane(plane, channel).read(0, 30), frames[:, plane, channel])
    np.testing.assert_array_equal(recording.plane(1).read(13, 14), frames[13:14, 1, 0])
    assert (recording.first.timestamp, recording.last.timestamp) == (0.0, pytest.approx(89 / 24))


def test_one_file_of_several_begins_with_its_first_whole_volume(tmp_path: Path, frames: np.ndarray) -> None:
    files = write(tmp_path, frames)  # the second of 40 pages begins with the second frame of volume 6
    part = open_scanimage(files[1:2], part=True)
    assert (part.volumes, part.frames) == (6, 20)
    np.testing.assert_array_equal(part.plane(1, 1).read(0, 6), frames[7:13, 1, 1])


def test_tifffile_reads_the_same(tmp_path: Path, frames: np.ndarray) -> None:
    files = write(tmp_path, frames, pages_per_file=1000)
    with tifffile.TiffFile(files[0]) as file:
        assert file.is_bigtiff
        assert file.is_scanimage
        metadata = file.scanimage_metadata
        assert metadata["FrameData"]["SI.hStackManager.zs"] == [200, 225]
        assert metadata["RoiGroups"]["imagingRoiGroup"]["rois"]["scanfields"]["pixelResolutionXY"] == [10, 6]
        np.testing.assert_array_equal(file.asarray().reshape(frames.shape), frames)


def test_even_pages_are_found_without_a_walk(tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, frames, pages_per_file=1000)
    with files[0].open("rb") as file:
        reader = tiff.DirectoryReader(file.fileno(), files[0])
        walked = tiff._walk(reader, reader.page(reader.start(), "page 0"))
    parsed: list[int] = []
    page = tiff.DirectoryReader.page
    monkeypatch.setattr(tiff.DirectoryReader, "page", lambda self, directory, name: parsed.append(directory) or page(self, directory, name))
    table = tiff.read_page_table(files[0])
    assert len(parsed) < 8
    np.testing.assert_array_equal(table.directories, walked.directories)
    np.testing.assert_array_equal(table.data_offsets, walked.data_offsets)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"bigtiff": True, "byteorder": ">"}, {"rowsperstrip": 2}, {"tile": (16, 16)}]
)
def test_pages_at_uneven_distances(tmp_path: Path, options: dict) -> None:
    """A walk that knows pages like the first by their bytes finds what parsing each of them finds, and a page that differs."""
    frames = np.random.default_rng(0).integers(0, 99, (30, *SHAPE)).astype(np.uint16)
    path = tmp_path / "movie.tif"
    writing = {name: options[name] for name in ("bigtiff", "byteorder") if name in options}
    layout = {name: value for name, value in options.items() if name not in writing}
    with tifffile.TiffWriter(path, **writing) as file:
        for number, frame in enumerate(frames):
            file.write(frame, metadata=None, description="x" * (number**2 % 700), photometric="minisblack", **layout)
    table = tiff.read_page_table(path)
    assert len(np.unique(np.diff(table.directories))) > 1
    with path.open("rb") as file:
        reader = tiff.DirectoryReader(file.fileno(), path)
        parsed = [reader.page(int(directory), "page") for directory in table.directories]
    assert [page.following for page in parsed] == [*table.directories[1:], 0]
    assert [page.data_offset for page in parsed] == list(table.data_offsets)
    np.testing.assert_array_equal(open_movie(path).read(0, 30), frames)
    with tifffile.TiffWriter(path, append=True, **writing) as file:
        file.write(frames[0, :, :8], metadata=None, photometric="minisblack", **layout)
    with pytest.raises(InputError, match="page 30 is 6 x 8"):
        tiff.read_page_table(path)


def test_missing_files_are_named(tmp_path: Path, frames: np.ndarray) -> None:
    files = write(tmp_path, frames)
    with pytest.raises(InputError, match=r"scan_00004.tif.*frameNumbers jump from 40 to 61.*after scan_00002.tif") as caught:
        open_scanimage([*files[:2], *files[3:]])
    assert caught.value.exit_code == 1
    with pytest.raises(InputError, match="first file of the recording is missing"):
        open_scanimage(files[1:])
    doubled = tmp_path / "scan_00009.tif"
    doubled.write_bytes(files[1].read_bytes())
    with pytest.raises(InputError, match="comes again"):
        open_scanimage([*files, doubled])
    with pytest.raises(InputError, match="no scan files"):
        open_scanimage([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": [WrittenField(8, 10)]}, "frames are 6 x 10 pixels, and SI.hRoiManager says 8 lines of 10"),
        ({"channels": [1]}, "channelSave"),
        ({"channels": [1, 2, 3, 4, 5, 6, 7]}, "no multiple of the 7 channels"),
        ({"frames_per_volume": 4, "volume_rate": 6.0}, None),  # fewer volumes than planned is a scan that was stopped
        ({"frames_per_volume": 1}, "fewer than 2 slices"),
        ({"volume_rate": 0.0}, "scanFrameRate is 0.0, not a positive number"),
        ({"volumes": 12}, "30 volumes, and the header's SI.hStackManager.actualNumVolumes says 12"),
        ({"line_period": float("nan")}, "linePeriod"),
    ],
)
def test_frames_that_do_not_match_the_header(tmp_path: Path, frames: np.ndarray, changes: dict, message: str | None) -> None:
    files = write(tmp_path, frames, pages_per_file=1000, **changes)
    if message is None:
        assert open_scanimage(files).volumes == 22
        return
    with pytest.raises(InputError, match=message) as caught:
        open_scanimage(files)
    assert str(tmp_path) in caught.value.where


def test_files_of_two_recordings(tmp_path: Path, frames: np.ndarray) -> None:
    files = write(tmp_path / "a", frames)
    others = write(tmp_path / "b", frames, line_period=2e-3)
    with pytest.raises(InputError, match=r"differs from that of scan_00001.tif in line_period"):
        open_scanimage([*files[:1], *others[1:]])


def test_lost_frames_inside_a_file(tmp_path: Path, frames: np.ndarray) -> None:
    (path,) = write(tmp_path, frames, pages_per_file=1000)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"frameNumbers = 90\n", b"frameNumbers = 95\n"))
    with pytest.raises(InputError, match="90 frames, and their frameNumbers go from 1 to 95"):
        open_scanimage([path])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SI.hChannels.channelSave", "[NaN; Inf]", None),  # as where nothing is said
        ("SI.hStackManager.numFramesPerVolumeWithFlyback", "NaN", None),  # SI.hFastZ says it too
        ("SI.hStackManager.numFramesPerVolumeWithFlyback", "-Inf", None),
        ("SI.hStackManager.numSlices", "1e12", "numSlices is 1e.12, not a whole number up to 65536"),
    ],
)
def test_numbers_that_cannot_be(name: str, value: str, message: str | None) -> None:
    options = {"planes": 2, "frames_per_volume": 3, "depths": [200, 225], "volume_rate": 8.0, "line_period": 1e-3, "volumes": 30}
    text = header_text(channels=[1, 2], fields=[WrittenField(*SHAPE)], pixel_size=1.5, bidirectional=True, **options)
    changed = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    assert changed != text
    if message is None:
        header = parse_header(changed, "", SHAPE, Path("scan.tif"))
        assert (header.channels, header.frames_per_volume) == ((1,) if "channel" in name else (1, 2), 3)
        return
    with pytest.raises(InputError, match=message):
        parse_header(changed, "", SHAPE, Path("scan.tif"))


def test_a_tiff_of_another_program(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((5, *SHAPE), np.int16))
    with pytest.raises(InputError, match="no ScanImage header"):
        open_scanimage([tmp_path / "plain.tif"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3.0),
        ("true", True),
        ("'GG'", "GG"),
        ("[1;2]", [1.0, 2.0]),
        ("[-1 2;3 4]", [-1.0, 2.0, 3.0, 4.0]),
        ("{'a b' 2}", ["a b", 2.0]),
        ("[]", []),
        ("", ""),
    ],
)
def test_values_in_matlab_spelling(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_corrupted_files_end_in_input_errors(tmp_path: Path, frames: np.ndarray) -> None:
    """Bytes changed at random, mostly where the structure is, and files cut anywhere: an `InputError` or frames, nothing else."""
    (path,) = write(tmp_path, frames[:8], pages_per_file=1000)
    whole = path.read_bytes()
    structure = whole.index(b"frameNumbers") + 400
    generator = np.random.default_rng(11)
    refused = named = 0
    for trial in range(150):
        raw = bytearray(whole)
        if trial % 5 == 0:
            raw = raw[: int(generator.integers(len(raw)))]
        for _ in range(int(generator.integers(1, 6)) if len(raw) else 0):
            limit = min(structure, len(raw)) if trial % 2 else len(raw)
            raw[int(generator.integers(limit))] = int(generator.integers(256))
        path.write_bytes(raw)
        try:
            recording = open_scanimage([path])
            recording.plane(0).read(0, recording.volumes)
        except InputError as error:
            named += str(tmp_path) in error.where
            refused += 1
    assert refused > 40
    assert named == refused


@pytest.mark.parametrize("left", ["half a page", "half a directory", "whole pages"])
def test_a_file_that_is_still_being_written(tmp_path: Path, frames: np.ndarray, left: str) -> None:
    """Every page points to where the next one will stand; an old file of this kind was broken off."""
    (path,) = write(tmp_path, frames, pages_per_file=1000)
    table = tiff.read_page_table(path)
    kept = {"whole pages": 0, "half a directory": 50, "half a page": int(table.data_offsets[60] - table.directories[60]) + 30}[left]
    path.write_bytes(path.read_bytes()[: int(table.directories[60]) + kept])
    with pytest.raises(InputError, match=r"cut off.* still being written or copied: wait"):
        open_scanimage([path])
    os.utime(path, (0, 1.7e9))
    with pytest.raises(InputError, match=r"cut off.* broken off, or the file cut off while it was copied"):
        open_scanimage([path])


def test_averaged_frames_and_slow_stacks_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    (path,) = write(tmp_path, frames, pages_per_file=1000)
    whole = path.read_bytes()
    for before, after, message in (
        (b"logAverageFactor = 1", b"logAverageFactor = 4", "frames were averaged"),
        (b"framesPerSlice = 1\n", b"framesPerSlice = 9\n", "stack of 2 slices, each scanned 9 times"),
        (b"stackMode = 'fast'", b"stackMode = 'slow'", "stack of 2 slices"),
    ):
        assert before in whole
        path.write_bytes(whole.replace(before, after))
        with pytest.raises(InputError, match=message):
            open_scanimage([path])


def test_a_damaged_size_asks_for_no_memory(tmp_path: Path, frames: np.ndarray) -> None:
    (path,) = write(tmp_path, frames, pages_per_file=1000)
    whole = path.read_bytes()
    directory = int(tiff.read_page_table(path).directories[0])
    for tag, number in ((256, 1 << 31), (257, 1 << 31), (270, 1 << 40), (305, 1 << 40), (273, 1 << 33), (279, 1 << 40)):
        at = next(place for place in range(directory + 8, directory + 300, 20) if struct.unpack_from("<H", whole, place)[0] == tag)
        raw = bytearray(whole)
        # Counts of texts and strips, values of the rest.
        struct.pack_into("<Q", raw, at + (4 if tag in (270, 305, 273) else 12), number)
        path.write_bytes(raw)
        tracemalloc.start()
        try:
            with pytest.raises(InputError):
                open_scanimage([path]).plane(0).read(0, 1)
            assert tracemalloc.get_traced_memory()[1] < 50e6
        finally:
            tracemalloc.stop()
