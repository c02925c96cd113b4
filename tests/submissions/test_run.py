"""A submission that behaves: its predictions come out, the same every time, and it can be asked again about other images."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from submission_samples import GOOD, SMALL, Run, small_session, write_submission

from sensorium_pipeline.errors import InputError, PlatformError, SubmissionError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.submissions.check import WholeRelease, check_submission, estimated_cost
from sensorium_pipeline.submissions.outcome import RunOutcome, as_reported, true_place
from sensorium_pipeline.submissions.package import Submission, new_submission
from sensorium_pipeline.submissions.predictions import Predictions, write_predictions
from sensorium_pipeline.submissions.run import RUNNER, predict_images, run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from sensorium_pipeline.submissions.staging import StagedSession, load_staged, stage_sessions
from sensorium_pipeline.submissions.transfer import ReportedError


def wanted(session: StagedSession, images: np.ndarray) -> np.ndarray:
    training = session.data.training.responses.mean(axis=0) * session.data.description.statistics.response_precision
    return images.mean(axis=(1, 2))[:, None] * 0.01 + training


def test_predictions_come_out(run: Run, sessions: list[StagedSession], tmp_path: Path) -> None:
    reports: list[Progress] = []
    outcome = run(GOOD, progress=reports.append)
    assert outcome.failure is None
    assert outcome.status == "finished"
    assert outcome.trained
    assert outcome.sessions == ["static1-1-1", "static2-1-1"]
    assert reports[0] == Progress("epoch", 1, 1, "loss 0.5")
    for session in sessions:
        with np.load(tmp_path / "out" / "predictions" / f"{session.data.description.name}.npz", allow_pickle=False) as file:
            np.testing.assert_array_equal(file["trial_id"], session.trial_id)
            np.testing.assert_array_equal(file["unit_id"], session.data.description.unit_ids)
            assert file["prediction"].dtype == np.float32
            np.testing.assert_allclose(file["prediction"], wanted(session, session.inputs.images), rtol=1e-5)


def test_same_bytes_again(run: Run, tmp_path: Path) -> None:
    run(GOOD)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.npz")}
    run(GOOD)
    assert len(first) == 3
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.npz")}


def test_platform_adds_little_time(run: Run) -> None:
    run(GOOD)
    started = time.monotonic()
    run(GOOD)
    assert time.monotonic() - started < 1.5


def test_digital_twin(run: Run, sessions: list[StagedSession], staged: Path, tmp_path: Path) -> None:
    assert run(GOOD).status == "finished"
    images = np.random.default_rng(3).uniform(0, 255, (4, 6, 8)).astype(np.float32)
    state = tmp_path / "out" / "state.npz"
    prediction = predict_images(tmp_path / "submission", state, staged, "static2-1-1", images, limits=SMALL)
    np.testing.assert_allclose(prediction, wanted(sessions[1], images), rtol=1e-5)
    with pytest.raises(InputError, match="unknown session 'static9-1-1'"):
        predict_images(tmp_path / "submission", state, staged, "static9-1-1", images)
    with pytest.raises(InputError, match=r"images of shape \(4, 6, 7\)"):
        predict_images(tmp_path / "submission", state, staged, "static2-1-1", images[:, :, :7])


def test_behaviour_reaches_the_model_of_the_second_track(tier: IsolationTier, tmp_path: Path) -> None:
    session = small_session("static3-1-1", 4, seed=3, track="sensorium+")
    stage_sessions([session], "sensorium+", tmp_path / "staged")
    code = """
    import numpy as np

    class Gain:
        def predict(self, session, inputs):
            return np.repeat(inputs.behavior[:, 2:] + inputs.pupil_center[:, :1], 4, axis=1)

    def build(context):
        assert context.track == "sensorium+"
        return Gain()
    """
    folder = write_submission(tmp_path / "submission", code)
    outcome = run_submission(folder, tmp_path / "staged", "sensorium+", 0, tmp_path / "out", SMALL)
    assert outcome.failure is None
    assert not outcome.trained
    with np.load(tmp_path / "out" / "predictions" / "static3-1-1.npz") as file:
        expected = session.inputs.behavior[:, 2] + session.inputs.pupil_center[:, 0]
        np.testing.assert_allclose(file["prediction"][:, 3], expected, rtol=1e-6)
    images = np.zeros((2, 6, 8), np.uint8)
    prediction = predict_images(folder, None, tmp_path / "staged", "static3-1-1", images, limits=SMALL)
    statistics = session.data.description.statistics
    np.testing.assert_allclose(prediction, statistics.behavior_mean[2] + statistics.pupil_center_mean[0], rtol=1e-5)
    with pytest.raises(PlatformError, match=r"sessions staged for sensorium\+"):
        run_submission(folder, tmp_path / "staged", "sensorium", 0, tmp_path / "out")


def test_starter_runs_as_it_is(tier: IsolationTier, tmp_path: Path) -> None:
    stage_sessions([small_session("static4-1-1", 4, seed=4, image_shape=(36, 64))], "sensorium", tmp_path / "staged")
    new_submission(tmp_path / "mine", "ln")
    description = tmp_path / "mine" / "submission.toml"
    small = "[parameters.model.core]\nchannels = 4\n[parameters.training]\nepochs = 1\n[resources]"
    description.write_text(description.read_text().replace("[resources]", small))
    limits = Limits(wall_seconds=200, memory_bytes=4 * 1024**3)
    outcome = run_submission(tmp_path / "mine", tmp_path / "staged", "sensorium", 0, tmp_path / "out", limits)
    assert outcome.failure is None
    assert outcome.trained


def test_the_runner_itself_is_light() -> None:
    # A submission pays for every import of ours at each of its runs.
    program = f"import sys, {RUNNER}; print(sorted(set(sys.modules) & {{'pydantic', 'torch', 'xarray', 'scipy', 'numba', 'fsspec'}}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_own_error_names_the_line(run: Run, tmp_path: Path) -> None:
    outcome = run("def build(context):\n    values = {}\n    return values['weights']\n")
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert outcome.failure.error == "SubmissionError"
    assert outcome.failure.problem == "KeyError: 'weights'"
    assert outcome.failure.where == "model.py, line 3, in build"
    # What it printed, the traceback too, is kept for organisers.
    assert "Traceback" in (tmp_path / "out" / "console.txt").read_text()


HALF = """
class Half:
    def train(self, sessions): pass
    def predict(self, session, inputs): pass
"""


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (f"{HALF}def build(context): return Half()", "Half: it has a method train, but no state and load_state", "A model that is"),
        ("def build(context): pass", "build: it returned NoneType, which has no method predict", "Return an object with predict"),
        (GOOD.replace("return self.mean\n", "pass\n"), "state: it returned NoneType", "Return a dictionary"),
        (GOOD.replace(".astype(np.float32)", "[:, :1]"), "predict: it returned shape (7, 1) for", "Return (trials, neurons), here (7, 5)"),
        (
            GOOD.replace("return (brightness", "return None and (brightness"),
            "predict: it returned NoneType of dtype object",
            "Return float32",
        ),
        ("import no_such_module\ndef build(context): pass", "ModuleNotFoundError", "bring Python along"),
        ("import socket\ndef build(context): socket.getaddrinfo('example.org', 80)", "gaierror", "There is no network"),
        ("def build(context): open('/submission/log', 'w')", "OSError: [Errno 30]", "Write to /tmp"),
    ],
)
def test_usual_mistakes_say_what_to_do(run: Run, code: str, message: str, advice: str) -> None:
    failure = run(code).failure
    assert failure is not None
    assert message in failure.problem
    assert advice in failure.advice


def test_a_torch_module_with_weights_of_its_own_is_not_taken_for_one_that_trains(run: Run) -> None:
    code = """
    import numpy as np, torch
    class Fixed(torch.nn.Module):
        def predict(self, session, inputs):
            return np.zeros((len(inputs), 5 if session == "static1-1-1" else 3), np.float32)
    def build(context):
        return Fixed()
    """
    assert run(code, replace(SMALL, memory_bytes=2**31)).status == "finished"


@pytest.mark.parametrize("end", [".", ": ", "... "])
def test_words_of_a_submission_are_known_as_such_however_they_end(run: Run, end: str) -> None:
    failure = run(f"def build(context):\n    raise ValueError('all pixels{end}')\n").failure
    assert failure is not None
    assert failure.own_words


def test_places_of_errors_are_looked_up_in_python_alone(tmp_path: Path) -> None:
    # A place is what the submission says: reading a gigabyte of weights as lines took this side its memory and half an hour.
    folder = write_submission(tmp_path, "def build(context):\n    pass\n")
    (folder / "weights.bin").write_bytes(b"\n" * 100)
    (folder / "table.py").write_bytes(b"\n" * 1_000_001)
    assert true_place("model.py, line 1, in build", folder) == "model.py, line 1, in build"
    assert true_place("model.py, line 1, in secret", folder) == "model.py, line 1"
    for place in ("weights.bin, line 1, in x", "table.py, line 1, in x", "model.py, line 9, in build", "/etc/passwd, line 1, in x"):
        assert true_place(place, folder) == ""


def test_an_error_of_our_own_code_names_the_file_and_not_itself() -> None:
    reported = ReportedError("InputError", "weights.pth: is no checkpoint", "", None, "Send another")
    assert str(as_reported(reported)) == "weights.pth: is no checkpoint. Send another."
    assert str(as_reported(replace(reported, kind="ValueError", message="x", advice=""))) == "sandbox: ValueError: x"


@pytest.mark.parametrize("value", ["np.nan", "np.inf", "1e300"])
def test_numbers_must_be_finite(run: Run, value: str, tmp_path: Path) -> None:
    code = f"""
    import numpy as np

    class Model:
        def predict(self, session, inputs):
            prediction = np.ones((7, 5 if session == "static1-1-1" else 3))
            prediction[2, 1] = {value}
            return prediction

    def build(context):
        return Model()
    """
    outcome = run(code)
    assert outcome.failure is not None
    assert outcome.failure.problem == "1 of 35 values are NaN or infinite"
    assert "trial 22, unit 13" in outcome.failure.advice
    assert not (tmp_path / "out" / "predictions").exists()


def test_stop(run: Run) -> None:
    asked = time.monotonic() + 1.0
    outcome = run("import time\ndef build(context):\n    time.sleep(60)\n", stop=lambda: time.monotonic() > asked)
    assert outcome.status == "stopped"
    assert outcome.wall_seconds < 4


def test_own_time_limit_shortens(run: Run, staged: Path, tmp_path: Path) -> None:
    description = 'name = "slow"\nentry_point = "model:build"\n[resources]\nminutes = 0.02\n'
    folder = write_submission(tmp_path / "slow", "import time\ndef build(context):\n    time.sleep(60)\n", description)
    outcome = run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert outcome.failure is not None
    assert outcome.failure.error == "ResourceLimitError"


def test_malformed_submission_fails_without_a_sandbox(staged: Path, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "submission", "", 'name = "x"\nentry_point = "modle:build"\n')
    outcome = run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert "no module 'modle'" in outcome.failure.problem
    assert outcome.tier == "not started"


def test_check_runs_the_same_way(staged: Path, tier: IsolationTier, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "submission", GOOD)
    assert check_submission(folder, None).run is None
    report = check_submission(folder, staged)
    assert report.passed
    assert report.run is not None
    assert report.run.tier.startswith(tier)
    assert sorted(os.listdir(tmp_path)) == ["submission"]


def test_check_says_what_the_whole_release_would_cost(staged: Path, tier: IsolationTier, tmp_path: Path) -> None:
    description = 'name = "two"\nentry_point = "model:build"\nseeds = [0, 1]\n[parameters]\ngain = 0.01\n[resources]\nminutes = 0.5\n'
    folder = write_submission(tmp_path / "submission", GOOD, description)
    expected = tuple(session.expected for session in load_staged(staged).predicted)
    report = check_submission(folder, staged, WholeRelease(1032, expected))
    assert report.passed
    assert report.run is not None
    assert report.cost is not None
    assert report.cost.seconds >= report.run.wall_seconds
    assert report.cost.device_seconds == 2 * report.cost.seconds
    assert report.cost.limit_seconds == 30


def test_cost_is_a_straight_line_through_two_runs() -> None:
    submission = Submission(name="x", entry_point="model:build", seeds=[0, 1, 2])

    def run(seconds: float, memory: int | None) -> RunOutcome:
        return RunOutcome(status="finished", seed=0, tier="none needed", wall_seconds=seconds, peak_memory_bytes=memory)

    cost = estimated_cost(submission, run(5, 100), run(8, 400), (10, 40, 1040))
    assert (cost.seconds, cost.device_seconds, cost.memory_bytes) == (108, 324, 10400)
    # Noise of the start never makes a longer training a shorter one.
    assert estimated_cost(submission, run(5, None), run(4.5, None), (10, 40, 1040)).seconds == 4.5
    assert estimated_cost(submission, run(5, 100), run(8, 400), (10, 40, 40)).seconds == 8


def test_check_holds_predictions_against_the_release_and_not_the_slice(staged: Path, tmp_path: Path) -> None:
    expected = tuple(session.expected for session in load_staged(staged).predicted)
    folder = write_submission(tmp_path / "submission", "", 'name = "file"\npredictions = "predictions"\n')
    (folder / "predictions").mkdir()
    for each in expected:
        values = np.ones((len(each.trial_id), len(each.unit_id)), np.float32)
        write_predictions(folder / "predictions" / f"{each.session}.npz", Predictions(each.trial_id, each.unit_id, values))
    assert check_submission(folder, None, WholeRelease(1000, expected)).passed
    (folder / "predictions" / f"{expected[1].session}.npz").unlink()
    with pytest.raises(SubmissionError, match="no predictions for session static2-1-1"):
        check_submission(folder, None, WholeRelease(1000, expected))


def test_compiled_code_is_found_inside() -> None:
    from sensorium_pipeline.models import sampling  # compiles, where that was not done before
    from sensorium_pipeline.submissions.isolation import require_isolation
    from sensorium_pipeline.submissions.sandbox import run_isolated

    code = "from sensorium_pipeline.models import sampling; print(sum(sampling._forward.stats.cache_hits.values()))"
    outcome = run_isolated([sys.executable, "-I", "-B", "-c", code], tier=require_isolation(), limits=Limits(), read_only={})
    assert sampling._forward.signatures
    assert outcome.console.decode().strip() == "1"
