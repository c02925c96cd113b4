"""What was sent in 2022: the two CSV files, checked line by line, and the organisers' checkpoints, run in the sandbox."""

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from tree_2022 import write_csv, write_tree

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.sessions.catalogue import load_description, load_inputs
from sensorium_pipeline.sessions.exchange_2022 import import_tree
from sensorium_pipeline.sessions.records import Provenance
from sensorium_pipeline.sessions.release import Release, create_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_dataset, open_workspace
from sensorium_pipeline.submissions.csv_2022 import BLOCK_BYTES, FILES, Trials2022, read_2022
from sensorium_pipeline.submissions.formats_2022 import convert, is_of_2022
from sensorium_pipeline.submissions.isolation import IsolationTier
from sensorium_pipeline.submissions.package import load_submission
from sensorium_pipeline.submissions.predictions import Expected, read_predictions
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.staging import load_staged

PROVENANCE = Provenance(code_version="0.1.0", lock_digest="0" * 64)
LIVE, FINAL = FILES["test"], FILES["final_test"]


def some_trials(trials: int = 12, neurons: int = 5) -> Trials2022:
    rng = np.random.default_rng(0)
    names = np.array([f"{int.from_bytes(rng.bytes(16)):032x}" for _ in range(trials)])
    tier = np.where(np.arange(trials) % 3 == 0, "final_test", "test")
    unit_id = np.sort(rng.choice(np.arange(1, 9 * neurons), neurons, replace=False))
    return Trials2022("26872-17-20", names, np.arange(100, 100 + trials), rng.integers(1, 9999, trials), tier, unit_id)


def write_files(folder: Path, trials: Trials2022, prediction: NDArray[np.float32]) -> Path:
    folder.mkdir(exist_ok=True)
    for tier, name in FILES.items():
        rows = np.flatnonzero(trials.tier == tier)
        write_csv(folder / name, trials.trial_name[rows], trials.image_id[rows], prediction[rows], trials.unit_id)
    return folder


@pytest.fixture
def trials() -> Trials2022:
    return some_trials()


@pytest.fixture
def prediction(trials: Trials2022) -> NDArray[np.float32]:
    values = np.random.default_rng(1).gamma(2, 0.2, (len(trials.trial_id), len(trials.unit_id))).astype(np.float32)
    values[0, :3] = [0, 1e-12, 12345678]
    return values


@pytest.fixture
def files(tmp_path: Path, trials: Trials2022, prediction: NDArray[np.float32]) -> Path:
    return write_files(tmp_path / "sent", trials, prediction)


def change(path: Path, edit: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("\n".join(lines) + "\n")


class TestCsvFiles:
    def test_what_pandas_wrote_comes_back_to_the_last_digit(self, files: Path, trials: Trials2022, prediction: NDArray[np.float32]) -> None:
        read = read_2022(files, trials)
        np.testing.assert_array_equal(read.prediction, prediction)
        np.testing.assert_array_equal(read.trial_id, trials.trial_id)

    def test_rows_and_neurons_may_come_in_any_order(self, files: Path, trials: Trials2022, prediction: NDArray[np.float32]) -> None:
        rng = np.random.default_rng(2)
        for tier, name in FILES.items():
            rows = rng.permutation(np.flatnonzero(trials.tier == tier))
            half = len(rows) // 2
            text = ""
            for part, order in ((rows[:half], rng.permutation(5)), (rows[half:], rng.permutation(5))):
                path = files / f"part-{name}"
                write_csv(path, trials.trial_name[part], trials.image_id[part], prediction[part][:, order], trials.unit_id[order])
                text += path.read_text().split("\n", 1)[1] if text else path.read_text()
            # As Windows writes lines, and without an end of the last one.
            (files / name).write_bytes(text.replace("\n", "\r\n").rstrip().encode())
        np.testing.assert_array_equal(read_2022(files, trials).prediction, prediction)

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda lines: lines.pop(2), f"{LIVE}: 1 trials are missing, the first is "),
            (lambda lines: lines.append(lines[1]), f"{LIVE}, line 10: trial [0-9a-f]+ stands in line 2 already"),
            (lambda lines: lines.__setitem__(3, "0" + lines[3]), f"{LIVE}, line 4: unknown trial '0"),
            (lambda lines: lines.__setitem__(3, lines[3].replace(",", ",7", 1)), "line 4: image '7[0-9]+' was not shown in trial"),
            (lambda lines: lines.__setitem__(0, "," + lines[0]), "line 1: the columns are .* with pandas, write with index=False"),
            (lambda lines: lines.__setitem__(5, lines[5].replace("[", "[nan, ", 1)), "line 6: 6 predictions for 5 neurons"),
            (lambda lines: lines.__setitem__(5, lines[5].replace("[", "[nan", 1)), "line 6, prediction: value 1 is "),
            (lambda lines: lines.__setitem__(5, re.sub(r"\[[^,]*", "[1e999", lines[5], count=1)), "value 1 is NaN or infinite"),
            (lambda lines: lines.__setitem__(5, lines[5].replace(", ", ", zero", 1)), "line 6, prediction: value 2 is 'zero"),
            (lambda lines: lines.__setitem__(5, lines[5].replace(", ", ", , ", 1)), "line 6: 6 predictions for 5 neurons"),
            (lambda lines: lines.__setitem__(5, lines[5].rsplit(", ", 1)[0] + ", 99]\""), "line 6, neuron_ids: not the neurons of the"),
            (lambda lines: lines.__setitem__(5, lines[5].rsplit(", ", 1)[0] + "]\""), r"neuron_ids: .*0 unknown, 1 missing"),
            (lambda lines: lines.__setitem__(5, lines[5].rsplit(", ", 1)[0] + ", 1.5]\""), "neuron_ids: not a list of whole numbers"),
            (lambda lines: lines.__setitem__(5, lines[5].replace('"[', "").replace(']"', "")), "line 6: the row is not one of"),
            (lambda lines: lines.__setitem__(5, '__import__("os").system("touch ran"),1,"[1]","[1]"'), "line 6: unknown trial"),
            (lambda lines: lines.__setitem__(5, '1,2,"[__import__(\'os\')]"'), "line 6: the row is not one of"),
            (lambda lines: lines.__setitem__(5, "x" * 100_000), "line 6: the row is longer than"),
        ],
    )  # fmt: skip
    def test_mistakes_are_found_with_their_line(
        self, files: Path, trials: Trials2022, edit: Callable[[list[str]], object], said: str
    ) -> None:
        change(files / LIVE, edit)
        with pytest.raises(SubmissionError, match=said) as caught:
            read_2022(files, trials)
        assert str(files / LIVE) in caught.value.where
        assert caught.value.advice

    def test_files_that_are_swapped_or_missing(self, files: Path, trials: Trials2022) -> None:
        (files / LIVE).rename(files / "kept")
        with pytest.raises(SubmissionError, match=r"cannot be read .*No such file.*live_test.csv and .*final_test.csv"):
            read_2022(files, trials)
        (files / FINAL).rename(files / LIVE)
        with pytest.raises(SubmissionError, match=f"line 2: trial [0-9a-f]+ is of tier final_test, .* It belongs into {FINAL}"):
            read_2022(files, trials)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        trials = some_trials(120, 2000)
        prediction = np.random.default_rng(1).random((120, 2000), np.float32)
        files = write_files(tmp_path / "large", trials, prediction)
        (files / LIVE).write_text((files / LIVE).read_text().replace(", ", "," + " " * 10))
        assert (files / LIVE).stat().st_size > 7e6
        # Blocks are of four megabytes; a whole row more is read ahead.
        tracemalloc.start()
        np.testing.assert_array_equal(read_2022(files, trials).prediction, prediction)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < prediction.nbytes + 3 * BLOCK_BYTES


@dataclass(frozen=True)
class Released:
    workspace: Workspace
    release: Release


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A small session of 2022, with hashed trials, in a release."""
    folder = tmp_path_factory.mktemp("released")
    workspace = open_workspace(Settings(root=str(folder / "workspace")))
    made = import_tree(workspace, write_tree(folder / "tree"), "sensorium", PROVENANCE)
    return Released(workspace, create_release(workspace, "2022", [made.session.name])[0])


class TestConversion:
    def test_csv_files_become_a_predictions_file_of_the_sessions_own_trials(self, released: Released, tmp_path: Path) -> None:
        (session,) = released.release.competition_sessions("sensorium")
        tree = open_dataset(released.workspace.open, session.open_digest)
        trial_id, image_id, _ = load_inputs(tree, ("test", "final_test"), "sensorium")
        tier, unit_id = tree["trials/tier"].values[trial_id], tree["neurons/unit_id"].values
        source = np.load(Path(released.workspace.open.url.removeprefix("file://")).parent.parent / "tree/meta/trials/trial_idx.npy")
        trials = Trials2022(session.name, source[trial_id], trial_id, image_id, tier, unit_id)
        prediction = np.random.default_rng(3).random((len(trial_id), len(unit_id)), np.float32)
        sent = write_files(tmp_path / "my model", trials, prediction)
        assert is_of_2022(sent)
        convert(sent, None, released.workspace.open, released.release, "sensorium", tmp_path / "converted")
        submission = load_submission(tmp_path / "converted")
        assert (submission.name, submission.track, submission.predictions) == ("my model", "sensorium", "predictions")
        path = tmp_path / "converted" / "predictions" / f"{session.name}.npz"
        np.testing.assert_array_equal(read_predictions(path, Expected(session.name, trial_id, unit_id), "it").prediction, prediction)

    def test_a_checkpoint_becomes_a_submission_that_brings_weights_alone(self, released: Released, tmp_path: Path) -> None:
        path = tmp_path / 'CNN "of" 2022.pth'
        path.write_bytes(b"nobody opens this outside the sandbox")
        assert is_of_2022(path)
        convert(path, None, released.workspace.open, released.release, "sensorium", tmp_path / "converted")
        submission = load_submission(tmp_path / "converted")
        assert (submission.name, submission.parameters) == ("CNN of 2022", {"weights": "weights.pth"})

    def test_what_is_not_of_2022(self, tmp_path: Path) -> None:
        assert not is_of_2022(tmp_path)
        assert not is_of_2022(tmp_path / "missing.pth")
        (tmp_path / LIVE).touch()
        assert is_of_2022(tmp_path)
        (tmp_path / "submission.toml").touch()
        assert not is_of_2022(tmp_path)

    def test_a_release_without_the_track(self, released: Released, files: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"0 competition sessions of track sensorium\+"):
            convert(files, None, released.workspace.open, released.release, "sensorium+", tmp_path / "converted")


def dense(state: dict[str, torch.Tensor], layer: str, values: torch.Tensor) -> torch.Tensor:
    return functional.linear(values, state[f"{layer}.weight"], state[f"{layer}.bias"])


def forward_of_2022(state: dict[str, torch.Tensor], images: torch.Tensor, behavior: torch.Tensor | None, pupil: torch.Tensor | None):
    """The models of 2022 written down once more, from the keys of their state dictionaries alone; images (n, 1, y, x) normalised."""
    name = next(key.split(".")[1] for key in state if key.startswith("readout."))
    layers = max(int(key.split("layer")[1][0]) for key in state if key.startswith("core.features.layer"))
    maps = images
    if behavior is not None:
        maps = torch.cat([images, behavior[:, :, None, None].expand(-1, -1, *images.shape[-2:])], 1)
    for layer in range(layers + 1):
        at = f"core.features.layer{layer}"
        if layer == 0:
            maps = functional.conv2d(maps, state[f"{at}.conv.weight"])
        else:
            maps = functional.conv2d(maps, state[f"{at}.ds_conv.in_depth_conv.weight"])
            maps = functional.conv2d(maps, state[f"{at}.ds_conv.spatial_conv.weight"], padding=3, groups=64)
            maps = functional.conv2d(maps, state[f"{at}.ds_conv.out_depth_conv.weight"])
        norm = [state[f"{at}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        maps = functional.batch_norm(maps, *norm)
        if layers == 3:  # the LN models have three layers, and no nonlinearity
            maps = functional.elu(maps)
    at = f"readout.{name}"
    hidden = functional.elu(
        functional.linear(state[f"{at}.source_grid"], state[f"{at}.mu_transform.0.weight"], state[f"{at}.mu_transform.0.bias"])
    )
    positions = torch.tanh(functional.linear(hidden, state[f"{at}.mu_transform.2.weight"], state[f"{at}.mu_transform.2.bias"]))
    positions = positions[None].expand(len(images), -1, -1)
    if pupil is not None:
        shift = pupil
        for layer in (0, 2, 4):
            shift = torch.tanh(
                functional.linear(shift, state[f"shifter.{name}.mlp.{layer}.weight"], state[f"shifter.{name}.mlp.{layer}.bias"])
            )
        positions = positions + shift[:, None]
    read = functional.grid_sample(maps, positions[:, :, None], align_corners=True)[..., 0]  # (n, channels, neurons)
    rates = (read * state[f"{at}._features"][0, :, 0]).sum(1) + state[f"{at}.bias"]
    return functional.elu(rates) + 1


@dataclass(frozen=True)
class SessionOf2022:
    """A released session with the neurons of a track's checkpoints and the first real test images, which are `images` (id -> pixels).

    Its neurons are the checkpoints' numbers `column`; `grid` is where the checkpoints have theirs.
    """

    track: str
    workspace: Workspace
    release: Release
    staged: Path
    images: dict[int, NDArray[np.uint8]]
    grid: NDArray[np.float32]
    column: NDArray[np.intp]


def checkpoint_of(test_data: Path, model: str) -> Path:
    return test_data / "sensorium" / "checkpoints" / f"{model}_model.pth"


def checkpoint_state(test_data: Path, model: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint_of(test_data, model), map_location="cpu", weights_only=True)
    return state


@pytest.fixture(scope="module")
def sessions_of_2022(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SessionOf2022]:
    """One for each track; in SENSORIUM+ the neurons come in another order than the checkpoints have them."""
    pictures = sorted((test_data / "sensorium" / "test_images").iterdir())[:12]
    images = {int(path.stem): np.asarray(Image.open(path)) for path in pictures}
    made = {}
    for track, model in (("sensorium", "sensorium_ln"), ("sensorium+", "sensorium_p_ln")):
        folder = tmp_path_factory.mktemp("session-2022")
        grid = next(value for key, value in checkpoint_state(test_data, model).items() if key.endswith("source_grid")).numpy()
        column = np.random.default_rng(0).permutation(len(grid)) if track == "sensorium+" else np.arange(len(grid))
        positions = np.column_stack([308 * grid + 1000, np.full(len(grid), 200)])[column].astype(np.float32)
        workspace = open_workspace(Settings(root=str(folder / "workspace")))
        tree = write_tree(folder / "tree", neurons=len(grid), positions=positions, test_images=images, training=6, repeats=1)
        session = import_tree(workspace, tree, track, PROVENANCE).session  # type: ignore[arg-type]
        release, _ = create_release(workspace, "2022", [session.name])
        staged = stage_release(workspace.open, release, track, folder / "cache")
        made[track] = SessionOf2022(track, workspace, release, staged, images, grid, column)
    return made


@pytest.mark.parametrize("model", ["sensorium_ln", "sensorium_sota", "sensorium_p_ln", "sensorium_p_sota"])
def test_the_organisers_checkpoints_predict_through_the_sandbox_what_they_predicted_in_2022(
    test_data: Path, sessions_of_2022: dict[str, SessionOf2022], tier: IsolationTier, tmp_path: Path, model: str
) -> None:
    of = sessions_of_2022["sensorium+" if "_p_" in model else "sensorium"]
    convert(checkpoint_of(test_data, model), None, of.workspace.open, of.release, of.track, tmp_path / "submission")
    outcome = run_submission(tmp_path / "submission", of.staged, of.track, 0, tmp_path / "out")
    assert outcome.failure is None
    (session,) = load_staged(of.staged).predicted
    (released_session,) = of.release.competition_sessions(of.track)
    path = tmp_path / "out" / "predictions" / f"{released_session.name}.npz"
    found = read_predictions(path, session.expected, "it").prediction

    opened = open_dataset(of.workspace.open, released_session.open_digest)
    statistics = load_description(opened, of.track).statistics
    trial_id, image_id, inputs = load_inputs(opened, ("test", "final_test"), of.track)
    np.testing.assert_array_equal(trial_id, session.trial_id)
    full = torch.from_numpy(np.stack([of.images[int(image)] for image in image_id]).astype(np.float32))[:, None]
    small = functional.interpolate(full, scale_factor=0.25, mode="bilinear", align_corners=False, recompute_scale_factor=False)
    extra: list[torch.Tensor | None] = [None, None]
    if of.track == "sensorium+":
        assert statistics.behavior_std is not None
        assert inputs.behavior is not None
        assert inputs.pupil_center is not None
        extra = [
            torch.from_numpy(inputs.behavior / statistics.behavior_std),
            torch.from_numpy((inputs.pupil_center - statistics.pupil_center_mean) / statistics.pupil_center_std),
        ]
    with torch.no_grad():
        normalised = (small - statistics.image_mean) / statistics.image_std
        expected = forward_of_2022(checkpoint_state(test_data, model), normalised, *extra).numpy()
    assert expected.std(0).mean() > 0.005
    # Neurons at one place and of different depths cannot be told apart, unless they are in the checkpoint's order.
    _, place, count = np.unique(of.grid, axis=0, return_inverse=True, return_counts=True)
    alone = (count[place.ravel()] == 1) | (of.track == "sensorium")
    assert alone.mean() > 0.7
    np.testing.assert_allclose(found[:, alone[of.column]], expected[:, of.column[alone[of.column]]], rtol=0, atol=1e-5)


def test_a_checkpoint_of_other_neurons_is_refused(released: Released, test_data: Path, tier: IsolationTier, tmp_path: Path) -> None:
    weights = test_data / "sensorium" / "checkpoints" / "sensorium_ln_model.pth"
    convert(weights, "LN", released.workspace.open, released.release, "sensorium", tmp_path / "submission")
    staged = stage_release(released.workspace.open, released.release, "sensorium", tmp_path / "cache")
    outcome = run_submission(tmp_path / "submission", staged, "sensorium", 0, tmp_path / "out")
    assert outcome.failure is not None
    assert "session 26872-17-20 has 12 neurons" in outcome.failure.problem
    assert "26872-17-20 with 7776" in outcome.failure.advice
