"""Every bad raw session ends in one error that names the file and the field and says what to do."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import SimulationParameters, describe, open_session, session_folder, simulate_recording


def replace(path: Path, pattern: str, text: str) -> None:
    before = path.read_text()
    after = re.sub(pattern, text, before, count=1, flags=re.MULTILINE)
    assert after != before
    path.write_text(after)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "a") as file:
        if name in file.attrs:
            file.attrs[name] = values
            return
        del file[name]
        if values is not None:
            file[name] = values


def last_tiff(raw: Path) -> Path:
    return sorted((raw / "scans").glob("*.tif"))[-1]


def shift_onset(raw: Path, row: int, seconds: float) -> None:
    """Move a presentation and all after it in the stimulus machine's log."""
    path = raw / "stimulus/presentations.csv"
    lines = path.read_text().splitlines()
    for index in range(2 + row, len(lines)):
        image, onset, offset = lines[index].split(",")
        lines[index] = f"{image},{float(onset) + seconds},{float(offset) + seconds}"
    path.write_text("\n".join(lines))


def samples(raw: Path) -> int:
    with h5py.File(raw / "treadmill.h5") as file:
        return len(file["position"])


def camera_times(raw: Path, change: Callable[[float], float]) -> None:
    """Change the eye camera's own time stamps."""
    lines = (raw / "eye.csv").read_text().splitlines()
    for index in range(2, len(lines)):
        frame, time, rest = lines[index].split(",", 2)
        lines[index] = f"{frame},{change(float(time))},{rest}"
    (raw / "eye.csv").write_text("\n".join(lines))


def elsewhere(path: Path, name: str) -> None:
    """Move a dataset to a file of its own and link to it."""
    with h5py.File(path, "r+") as file, h5py.File(path.with_name("other.h5"), "w") as other:
        other["moved"] = file[name][:]
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", "/moved")


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, images=np.zeros((3, 36, 64), np.uint8))


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # what is done to the session: (how, file named, message)
    "no session.toml": (lambda raw: (raw / "session.toml").unlink(), "session.toml", "is missing"),
    "a number of thousands of digits": (
        lambda raw: replace(raw / "session.toml", "^animal = .*$", "animal = " + "9" * 5000),
        "session.toml",
        "is not TOML",
    ),
    "pixel size is no number": (
        lambda raw: replace(raw / "session.toml", "^pixel_size.*$", "pixel_size = [nan, 1]"),
        "session.toml",
        "recording.pixel_size.0: Input should be",
    ),
    "depth is no number": (
        lambda raw: replace(raw / "session.toml", "^plane_depths.*$", "plane_depths = [100, inf]"),
        "session.toml",
        "recording.plane_depths.1: Input should be a finite number",
    ),
    "wheel of no size": (
        lambda raw: change(raw / "treadmill.h5", "counts_per_revolution", 1e-320),
        "treadmill.h5",
        "position is too large",
    ),
    "images in an archive": (lambda raw: archive(raw / "stimulus/images.npy"), "images.npy", "holds several arrays"),
    "eye frames beyond all numbers": (
        lambda raw: replace(raw / "eye.csv", r"^\d+,(?=.*\n\Z)", "1e308,"),
        "eye.csv",
        "1e.308 is not a whole",
    ),
    "not toml": (lambda raw: (raw / "session.toml").write_text("[session"), "session.toml", "is not TOML"),
    "no animal": (lambda raw: replace(raw / "session.toml", "^animal.*$", ""), "session.toml", "session.animal: Field required"),
    "animal is text": (lambda raw: replace(raw / "session.toml", "^animal = .*$", 'animal = "x"'), "session.toml", "session.animal"),
    "negative scan": (lambda raw: replace(raw / "session.toml", "^scan = .*$", "scan = -1"), "session.toml", "session.scan"),
    "no indicator": (lambda raw: replace(raw / "session.toml", "^indicator.*$", ""), "session.toml", "recording.indicator: Field required"),
    "depths": (
        lambda raw: replace(raw / "session.toml", "^plane_depths.*$", "plane_depths = [1]"),
        "session.toml",
        "recording.plane_depths",
    ),
    "unknown track": (lambda raw: replace(raw / "session.toml", "sensorium\\+", "sensorium2"), "session.toml", "release.track"),
    "unknown role": (lambda raw: replace(raw / "session.toml", "competition", "closed"), "session.toml", "release.role"),
    "no track": (lambda raw: replace(raw / "session.toml", "^track.*$", ""), "session.toml", "release.track is missing"),
    "open with a track": (lambda raw: replace(raw / "session.toml", "competition", "open"), "session.toml", "release.track is given"),
    "no scans": (lambda raw: shutil.rmtree(raw / "scans"), "scans", "holds no .tif files"),
    "last scan file missing": (lambda raw: last_tiff(raw).unlink(), "sync.h5", "frame_clock counts"),
    "scan file cut off": (lambda raw: cut(last_tiff(raw)), ".tif", "is cut off"),
    "scan file empty": (lambda raw: last_tiff(raw).write_bytes(b""), ".tif", "is empty"),
    "no stimulus table": (lambda raw: (raw / "stimulus/presentations.csv").unlink(), "presentations.csv", "is missing"),
    "unknown image": (
        lambda raw: replace(raw / "stimulus/presentations.csv", r"^\d+,(?=.*\n\Z)", "777777,"),
        "presentations.csv",
        r"image_id: 1 images are not in images.csv \(777777\)",
    ),
    "onset column missing": (
        lambda raw: replace(raw / "stimulus/presentations.csv", "onset", "begin"),
        "presentations.csv",
        "lacks the column 'onset'",
    ),
    "onset is no number": (
        lambda raw: replace(raw / "stimulus/presentations.csv", r"^(\d+),\d+\.\d+,", r"\1,soon,"),
        "presentations.csv",
        "column 'onset', row 1: 'soon' is not a number",
    ),
    "onset after the recording": (lambda raw: shift_onset(raw, 20, 300.0), "presentations.csv", "outside the recording"),
    "presentations out of order": (lambda raw: shift_onset(raw, 10, -5.0), "presentations.csv", "onset is before the last offset"),
    "stimulus table of another session": (
        lambda raw: replace(raw / "stimulus/presentations.csv", "7-2-5", "7-2-4"),
        "presentations.csv",
        "belongs to session 7-2-4, and this folder is session 7-2-5",
    ),
    "unknown image set": (lambda raw: replace(raw / "stimulus/images.csv", "single", "train"), "images.csv", "image_set is 'train'"),
    "image twice": (lambda raw: replace(raw / "stimulus/images.csv", "^2,", "1,"), "images.csv", "image_id comes twice"),
    "images missing": (lambda raw: (raw / "stimulus/images.npy").unlink(), "images.npy", "is missing"),
    "images cut off": (lambda raw: cut(raw / "stimulus/images.npy"), "images.npy", "damaged or cut off"),
    "images of another shape": (
        lambda raw: np.save(raw / "stimulus/images.npy", np.zeros((3, 36, 64), np.uint8)),
        "images.npy",
        r"\(3, 36, 64\) uint8",
    ),
    "no sync": (lambda raw: (raw / "sync.h5").unlink(), "sync.h5", "is missing"),
    "sync cut off": (lambda raw: cut(raw / "sync.h5"), "sync.h5", "cannot be read"),
    "no photodiode": (lambda raw: change(raw / "sync.h5", "analog/photodiode", None), "sync.h5", "lacks the dataset 'analog/photodiode'"),
    "dead photodiode": (
        lambda raw: change(raw / "sync.h5", "analog/photodiode", np.full(1000, 7, np.int16)),
        "sync.h5",
        "photodiode never changes",
    ),
    "photodiode in another file": (
        lambda raw: elsewhere(raw / "sync.h5", "analog/photodiode"),
        "sync.h5",
        "dataset 'analog/photodiode' takes values from other.h5",
    ),
    "sync of another session": (lambda raw: change(raw / "sync.h5", "session", "7-2-6"), "sync.h5", "belongs to session 7-2-6"),
    "sample rate": (lambda raw: change(raw / "sync.h5", "sample_rate", 9000.0), "sync.h5", "frame_clock runs for"),
    "no samples of the photodiode": (
        lambda raw: change(raw / "sync.h5", "analog/photodiode", np.zeros(0, np.int16)),
        "sync.h5",
        "photodiode has no samples",
    ),
    "treadmill counter stands still": (
        lambda raw: change(raw / "treadmill.h5", "counter", np.full(samples(raw), 7, np.uint32)),
        "treadmill.h5",
        "counter stands still",
    ),
    "eye camera's clock stands still": (
        lambda raw: camera_times(raw, lambda _: 5.0),
        "eye.csv",
        "stamps are not ascending",
    ),
    "eye camera's clock in milliseconds": (
        lambda raw: camera_times(raw, lambda time: 1000 * time),
        "eye.csv",
        r"s are .* s by the pulses",
    ),
    "no treadmill": (lambda raw: (raw / "treadmill.h5").unlink(), "treadmill.h5", "is missing"),
    "treadmill names another session": (
        lambda raw: change(raw / "treadmill.h5", "session", "8-1-1"),
        "treadmill.h5",
        "belongs to session 8-1-1, and this folder is session 7-2-5",
    ),
    "treadmill cut off": (lambda raw: cut(raw / "treadmill.h5"), "treadmill.h5", "cannot be read"),
    "treadmill without position": (
        lambda raw: change(raw / "treadmill.h5", "position", None),
        "treadmill.h5",
        "lacks the dataset 'position'",
    ),
    "treadmill position short": (lambda raw: change(raw / "treadmill.h5", "position", np.arange(9)), "treadmill.h5", "position 9"),
    "treadmill without pulses": (
        lambda raw: change(raw / "treadmill.h5", "pulse_counter", np.zeros(0, np.uint32)),
        "treadmill.h5",
        "0 of 0",
    ),
    "no eye table": (lambda raw: (raw / "eye.csv").unlink(), "eye.csv", "is missing"),
    "eye column missing": (lambda raw: replace(raw / "eye.csv", "dilation", "size"), "eye.csv", "lacks the column 'dilation'"),
    "eye table without session": (lambda raw: replace(raw / "eye.csv", "^# session.*\n", ""), "eye.csv", "does not name its session"),
    "eye frames beyond the pulses": (lambda raw: replace(raw / "eye.csv", r"^\d+,(?=.*\n\Z)", "99999,"), "eye.csv", "the last is 99999"),
    "eye table empty": (lambda raw: (raw / "eye.csv").write_text("# session: 7-2-5\n"), "eye.csv", "cannot be read"),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input(damaged: Callable[[], Path], how: str) -> None:
    raw = damaged()
    damage, file, message = BAD[how]
    damage(raw)
    with pytest.raises(InputError, match=message) as caught:
        open_session(raw)
    assert caught.value.where.endswith(file)
    assert caught.value.advice
    assert caught.value.exit_code == 1


def test_treadmill_file_of_another_session_that_claims_to_be_of_this(
    damaged: Callable[[], Path], tmp_path: Path, small_parameters: SimulationParameters
) -> None:
    raw, other = damaged(), tmp_path / "other"
    simulate_recording(other, small_parameters.model_copy(update={"seed": 4}))
    shutil.copy(other / "treadmill.h5", raw / "treadmill.h5")
    with pytest.raises(InputError, match=r"treadmill.h5: pulse_counter: .* agree with .* another session"):
        open_session(raw)
    raw = damaged()
    shutil.copy(other / "stimulus/presentations.csv", raw / "stimulus/presentations.csv")
    shutil.copy(other / "stimulus/images.csv", raw / "stimulus/images.csv")
    shutil.copy(other / "stimulus/images.npy", raw / "stimulus/images.npy")
    with pytest.raises(InputError, match=r"presentations.csv: onset: the photodiode"):
        open_session(raw)


@pytest.mark.parametrize(
    "name",
    ["session.toml", "eye.csv", "stimulus/presentations.csv", "stimulus/images.csv", "stimulus/images.npy", "treadmill.h5", "sync.h5"],
)
def test_corrupted_tables_end_in_input_errors(damaged: Callable[[], Path], name: str) -> None:
    raw = damaged()
    whole = (raw / name).read_bytes()
    generator = np.random.default_rng(len(name))
    for trial in range(12):
        changed = bytearray(whole if trial % 4 else whole[: int(generator.integers(1, len(whole)))])
        for _ in range(int(generator.integers(1, 8))):
            changed[int(generator.integers(min(len(changed), 6000)))] = int(generator.integers(256))
        (raw / name).write_bytes(changed)
        try:
            session = open_session(raw)
        except InputError as error:
            assert name.split("/")[-1] in str(error)  # noqa: PT017 - most trials, not all, raise
        else:
            assert len(session.stimulus)


@pytest.mark.parametrize("name", ["sync.h5", "treadmill.h5"])
def test_a_file_that_crashes_the_hdf5_library(damaged: Callable[[], Path], name: str) -> None:
    """One byte in the type of an attribute is enough: HDF5 follows it into memory that is not its own."""
    raw = damaged()
    changed = bytearray((raw / name).read_bytes())
    changed[changed.index(b"session\0") + 9] = 29
    (raw / name).write_bytes(changed)
    with pytest.raises(InputError, match="makes the HDF5 library crash") as caught:
        open_session(raw)
    assert caught.value.where.endswith(name)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        open_session(tmp_path / "nothing")


def test_a_photodiode_that_missed_an_image(damaged: Callable[[], Path], small_session: Path) -> None:
    """The missing onset comes from the stimulus machine's clock, and a warning says so; more than a few are refused."""
    raw = damaged()
    whole = open_session(small_session)
    with h5py.File(raw / "sync.h5", "a") as file:
        rate = file.attrs["sample_rate"]
        signal = file["analog/photodiode"]
        clock = file["digital/frame_clock"][:]
        zero = np.flatnonzero(clock)[0] / rate
        missed = 8
        start, stop = ((whole.stimulus.onset[missed] + zero - 0.05) * rate, (whole.stimulus.offset[missed] + zero + 0.05) * rate)
        signal[int(start) : int(stop)] = 300
    with pytest.raises(InputError, match="does not show 1 of"):  # one of twenty-odd is more than 2 %
        open_session(raw)


def test_a_photodiode_that_is_inverted(damaged: Callable[[], Path], small_session: Path) -> None:
    """Images last about as long as the gaps between them: ends of images passed for beginnings, half a second late."""
    raw = damaged()
    with h5py.File(raw / "sync.h5", "a") as file:
        signal = file["analog/photodiode"]
        signal[:] = -signal[:]
    session, whole = open_session(raw), open_session(small_session)
    np.testing.assert_array_equal(session.stimulus.onset, whole.stimulus.onset)
    np.testing.assert_array_equal(session.stimulus.offset, whole.stimulus.offset)
    assert set(session.warnings) - set(whole.warnings) == {"the photodiode is inverted: its signal is low while images are shown"}


def test_a_photodiode_line_that_is_noise(damaged: Callable[[], Path]) -> None:
    raw = damaged()
    change(raw / "sync.h5", "digital/treadmill", np.random.default_rng(0).integers(0, 2, 2_000_000, np.uint8))
    with pytest.raises(InputError, match=r"pulse_counter: 0 of .* pulses agree"):  # half a million edges, whose shifts would take minutes
        open_session(raw)


def test_tables_as_spreadsheets_write_them(damaged: Callable[[], Path], small_session: Path) -> None:
    raw, whole = damaged(), open_session(small_session)
    for name in ("stimulus/presentations.csv", "stimulus/images.csv", "eye.csv", "session.toml"):
        text = (raw / name).read_text().replace("\n", "\r\n")
        (raw / name).write_bytes(b"\xef\xbb\xbf" + (text if name.endswith("toml") else text.replace(",", " , ")).encode())
    session = open_session(raw)
    np.testing.assert_array_equal(session.stimulus.onset, whole.stimulus.onset)
    np.testing.assert_array_equal(session.pupil.center, whole.pupil.center)


def test_what_is_odd_but_no_error(damaged: Callable[[], Path]) -> None:
    raw = damaged()
    lines = (raw / "stimulus/presentations.csv").read_text().splitlines()
    (raw / "stimulus/presentations.csv").write_text("\n".join(lines[:-3]))
    with h5py.File(raw / "treadmill.h5", "a") as file:
        file["position"][100:] += 10**6
    warnings = open_session(raw).warnings
    assert "the photodiode shows 3 presentations that presentations.csv does not list" in warnings
    assert any("says that the mouse ran at" in warning for warning in warnings)


def test_images_in_any_order(damaged: Callable[[], Path], small_session: Path) -> None:
    raw = damaged()
    table = (raw / "stimulus/images.csv").read_text().splitlines()
    (raw / "stimulus/images.csv").write_text("\n".join([table[0], *table[:0:-1]]))
    np.save(raw / "stimulus/images.npy", np.load(raw / "stimulus/images.npy")[::-1])
    session, whole = open_session(raw), open_session(small_session)
    np.testing.assert_array_equal(session.images.image_ids, whole.images.image_ids)
    np.testing.assert_array_equal(session.images.images, whole.images.images)
    assert session.image_sets == whole.image_sets
    assert session.digest != whole.digest


def test_summary(small_session: Path) -> None:
    summary = describe(open_session(small_session))
    assert (summary.name, summary.role, summary.track) == ("7-2-5", "competition", "sensorium+")
    assert (summary.planes, summary.frame_shapes, summary.bidirectional) == (2, ((48, 56),), True)
    assert summary.images == {"single": 14, "test": 3, "final_test": 2}
    assert summary.repeats["single"] == (1, 1)
    assert summary.repeats["test"][1] <= 3
    assert summary.frame_rate == pytest.approx(8.0, rel=1e-4)
    assert 0 < summary.minutes < 2
    assert type(summary).model_validate_json(summary.model_dump_json()) == summary


def test_a_recording_that_grows_while_it_is_looked_at(damaged: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    raw = damaged()
    read = session_folder.read_pupil

    def grow_then_read(*arguments: object) -> object:
        with last_tiff(raw).open("ab") as file:
            file.write(b"more")
        return read(*arguments)

    monkeypatch.setattr(session_folder, "read_pupil", grow_then_read)
    with pytest.raises(InputError, match=r"grew from \d+ to \d+ bytes while it was looked at: it is still being written"):
        open_session(raw)


def test_a_channel_is_chosen(damaged: Callable[[], Path]) -> None:
    raw = damaged()
    replace(raw / "session.toml", "^area", "channel = 2\narea")
    with pytest.raises(InputError, match=r"recording.channel is 2, and the scan saved 1"):
        open_session(raw)
    replace(raw / "session.toml", "channel = 2", "channel = 1")
    assert open_session(raw).planes == 2
