"""Two nights of the real evaluation flow: good, bad and hostile submissions side by side, and tables published through the pointer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from small_world import (
    MEAN_RESPONSE,
    RELEASE,
    SENSORIUM,
    SENSORIUM_PLUS,
    World,
    send,
    tree_snapshot,
    true_predictions,
    write_code,
    write_file_submission,
)

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.evaluation import latest_evaluation
from sensorium_pipeline.hidden_scores import read_scores
from sensorium_pipeline.jobs import find_job
from sensorium_pipeline.rankings import latest_publication
from sensorium_pipeline.rankings.records import Row
from sensorium_pipeline.sessions.release import change_phases, read_release
from sensorium_pipeline.storage import download_files, list_files
from sensorium_pipeline.submissions.inbox import Standings, standings_series
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier

CRASHING = """
    def build(context):
        weights = {}
        return weights["core"]
"""

# It knows where the hidden responses lie, which no stranger does, and still must not get at them.
PRYING = """
    import os, socket
    from pathlib import Path

    def build(context):
        found = []
        for place in {places!r}:
            try:
                found += os.listdir(place)
            except OSError:
                pass
        for port in {ports!r}:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1)
                found.append(port)
            except OSError:
                pass
        found += [name for name in os.environ if name.startswith(("SENSORIUM", "PREFECT", "AWS", "DASK"))]
        raise RuntimeError(f"saw {{found}}" if found else "saw nothing")
"""

# It behaves where only visible trials are in reach, and tries to carry images out in what it says of its failure later.
LEAKING = MEAN_RESPONSE.replace(
    "def predict(self, session, inputs):",
    """def predict(self, session, inputs):
            if not self.smoke_run:
                raise RuntimeError("pixels of a hidden zebra " + str(inputs.images.ravel()[:9]) + ":.")""",
).replace("self.mean = {}", "self.mean, self.smoke_run = {}, context.smoke_run")

FAILURES = {
    "leaking": "model.py, line 22, in predict: it failed in the real run, after a smoke run on visible trials",
    "unlucky": "model.py, line 4, in build: KeyError: 'core'",
    "curious": "model.py, line 19, in build: RuntimeError: saw nothing",
    "not-a-number": "predictions/2-1-1.npz, prediction: 1 of {size} values are NaN or infinite",
    "narrow": "predictions/2-1-1.npz, prediction: ",
    "elsewhere": "predictions/2-1-1.npz, trial_id: 1 unknown ids, the first is 999999",
}


@dataclass(frozen=True)
class Night:
    world: World
    ended: Any

    @property
    def summary(self) -> Any:
        return self.ended.result()

    def row(self, team: str, track: str = "sensorium", tier: str = "test") -> Row:
        publication = latest_publication(self.world.workspace.open, RELEASE)
        assert publication is not None
        table = publication.table(track, tier)  # type: ignore[arg-type]
        assert table is not None
        return next(row for row in table.rows if row.team == team)


def evaluate(world: World, **options: Any) -> Night:
    from prefect_queries import run_flow

    from flows.evaluate_submissions import evaluate_submissions

    return Night(world, run_flow(evaluate_submissions, RELEASE, world.root, **options))


@pytest.fixture(scope="module")
def isolated() -> None:
    isolation = probe_isolation()
    if isolation.tier is IsolationTier.REFUSE:
        pytest.skip(f"no isolation here: {'; '.join(isolation.reasons)}")


@pytest.fixture(scope="module")
def first_night(world: World, isolated: None, prefect_api: str, on_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("evaluation")
    world = world.copy(folder)
    workspace = world.workspace
    sent = folder / "sent"
    truth = true_predictions(workspace, SENSORIUM)

    def spoil(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        return write_file_submission(sent / name, name, SENSORIUM, truth, change)

    def put_nan(arrays: dict[str, Any]) -> None:
        arrays["prediction"][2, 1] = np.nan

    def drop_neurons(arrays: dict[str, Any]) -> None:
        arrays["prediction"] = arrays["prediction"][:, :-2]

    def change_id(arrays: dict[str, Any]) -> None:
        arrays["trial_id"][0] = 999_999

    ports = [urlsplit(url).port for url in (prefect_api, on_cluster)]
    prying = PRYING.format(places=[world.root, f"{world.root}/sealed", "/proc/1/root" + world.root], ports=ports)
    baseline = write_code(sent / "baseline", "Mean response", seeds=(1, 2))
    for team, path, track in (
        ("baseline", baseline, "sensorium"),
        ("baseline", baseline, "sensorium+"),
        ("sharp", write_file_submission(sent / "sharp", "Sharp", SENSORIUM, true_predictions(workspace, SENSORIUM, 0.3)), "sensorium"),
        ("blurred", write_file_submission(sent / "blurred", "Blurred", SENSORIUM, true_predictions(workspace, SENSORIUM, 6)), "sensorium"),
        ("unlucky", write_code(sent / "crashing", "Crashing", CRASHING), "sensorium"),
        ("leaking", write_code(sent / "leaking", "Leaking", LEAKING), "sensorium"),
        ("curious", write_code(sent / "prying", "Prying", prying), "sensorium"),
        ("not-a-number", spoil("nan", put_nan), "sensorium"),
        ("narrow", spoil("shape", drop_neurons), "sensorium"),
        ("elsewhere", spoil("ids", change_id), "sensorium"),
    ):
        send(workspace, path, team, track)
    return evaluate(world)


def test_every_submission_ends_in_its_own_way(first_night: Night) -> None:
    results = {result.identifier: result for result in first_night.summary.evaluated}
    assert first_night.summary.known == []
    assert {identifier: result.status for identifier, result in results.items()} == {
        "baseline/sensorium/1": "scored",
        "baseline/sensorium+/1": "scored",
        "sharp/sensorium/1": "scored",
        "blurred/sensorium/1": "scored",
        **{f"{team}/sensorium/1": "failed" for team in FAILURES},
    }
    truth = true_predictions(first_night.world.workspace, SENSORIUM)
    for team, reason in FAILURES.items():
        assert results[f"{team}/sensorium/1"].reason.startswith(reason.format(size=truth.prediction.size)), team
    trials, neurons = truth.prediction.shape
    assert f"({trials}, {neurons - 2})" in results["narrow/sensorium/1"].reason


def test_every_seed_is_a_result_and_their_ensemble_is_what_counts(first_night: Night, tmp_path: Path) -> None:
    workspace = first_night.world.workspace
    release = read_release(workspace.open, RELEASE)
    evaluation = latest_evaluation(workspace, find_job(workspace, release, "baseline/sensorium+/1"))
    assert evaluation is not None
    assert [run.outcome.seed for run in evaluation.runs] == [1, 2]
    assert [run.outcome.trained for run in evaluation.runs] == [True, True]
    assert len(evaluation.scores) == 3 * 2  # two seeds, their ensemble, and hidden tiers
    members = []
    for digest in (*(run.predictions_digest for run in evaluation.runs), evaluation.ensemble_digest):
        assert digest is not None
        assert [entry.path for entry in list_files(workspace.sealed, digest)] == [f"predictions/{SENSORIUM_PLUS}.npz"]
        download_files(workspace.sealed, digest, tmp_path / str(len(members)))
        with np.load(tmp_path / str(len(members)) / "predictions" / f"{SENSORIUM_PLUS}.npz") as file:
            members.append(file["prediction"])
    np.testing.assert_allclose(members[2], (members[0].astype(np.float64) + members[1]) / 2, rtol=1e-6)
    scores = {score.record.seed: score for score in read_scores(workspace, evaluation, "test")}
    assert {seed: score.resampled is not None for seed, score in scores.items()} == {1: False, 2: False, None: True}
    row = first_night.row("baseline", "sensorium+")
    assert row.score is not None
    assert row.score.value == scores[None].record.metrics.single_trial_correlation
    assert row.seed_deviation is not None
    assert [held.startswith(probe_isolation().tier) for held in row.isolation] == [True]
    assert row.peak_memory_bytes


def test_the_published_table_ranks_by_what_is_true_and_gives_reasons(first_night: Night) -> None:
    assert [first_night.row(team).rank for team in ("sharp", "blurred")] == [1, 2]
    assert first_night.row("baseline").rank == 3
    assert first_night.row("baseline", "sensorium+").rank == 1
    for team in FAILURES:
        row = first_night.row(team)
        assert (row.rank, row.status) == (None, "failed")
        assert row.reason
    leader, second = first_night.row("sharp"), first_night.row("blurred")
    assert second.difference_to_leader is not None
    assert leader.score is not None
    assert second.score is not None
    assert second.difference_to_leader.value == pytest.approx(second.score.value - leader.score.value)
    assert second.difference_to_leader.high < 0
    assert leader.score.value > 0.8


def test_the_final_tier_is_nowhere_until_the_release_opens_it(first_night: Night) -> None:
    from prefect_queries import run_flow, run_of

    from flows.publish_rankings import publish_rankings

    world = first_night.world
    workspace = world.workspace
    publication = latest_publication(workspace.open, RELEASE)
    assert publication is not None
    assert publication.record.tables == ("sensorium-live", "sensorium-plus-live")
    assert publication.table("sensorium", "final_test") is None
    public = b"".join(
        path.read_bytes() for path in (Path(world.root) / "open" / "data").rglob("*") if path.suffix in {".json", ".html", ".csv"}
    )
    assert b'"test"' in public
    assert b"zebra" not in public
    assert b'"tier":"final_test"' not in public.replace(b" ", b"")
    change_phases(workspace, RELEASE, final="open")
    try:
        # The only release need not be named; the run shows its name all the same.
        ended = run_flow(publish_rankings, root=world.root)
        assert run_of(ended).name == f"publish {RELEASE}"
        opened = ended.result()
        assert opened.new
        assert set(opened.record.tables) == {"sensorium-final", "sensorium-live", "sensorium-plus-final", "sensorium-plus-live"}
        assert first_night.row("sharp", tier="final_test").rank == 1
        # The responses themselves stay where they were.
        assert not any(path.startswith("sealed/") for path in tree_snapshot(Path(world.root) / "open"))
    finally:
        change_phases(workspace, RELEASE, final="closed")
        publish_rankings(RELEASE, world.root)


def test_prefect_shows_each_submission_and_the_tables(first_night: Night) -> None:
    from prefect_queries import run_of, task_runs_of

    run = run_of(first_night.ended)
    assert (run.name, run.state_name) == (f"evaluate {RELEASE}", "Completed")
    tasks = task_runs_of(first_night.ended, "evaluate ", 10)
    assert {task.name.removeprefix("evaluate "): task.state_name for task in tasks} == {
        result.identifier: "Scored" if result.status == "scored" else "Unranked" for result in first_night.summary.evaluated
    }
    # A failed submission is never tried again, and says why where one looks first.
    assert {task.run_count for task in tasks} == {1}
    crashed = next(task for task in tasks if "unlucky" in task.name)
    assert crashed.state is not None
    assert "KeyError: 'core'" in (crashed.state.message or "")


def test_ranking_tables_are_artifacts(first_night: Night) -> None:
    from prefect.artifacts import Artifact

    tables = {key: Artifact.get(key) for key in ("ranking-sensorium-live", "ranking-sensorium-plus-live", "ranking-page")}
    assert all(table is not None for table in tables.values())
    page = tables["ranking-page"]
    assert page is not None
    assert (page.description or "").startswith(f"Ranking page of release {RELEASE}: file://")
    found = tables["ranking-sensorium-live"]
    assert found is not None
    lines = json.loads(found.data) if isinstance(found.data, str) else found.data
    assert [line["team"] for line in lines][:3] == ["sharp", "blurred", "baseline"]
    assert {line["team"] for line in lines if line["status"] == "failed"} == set(FAILURES)


def test_the_second_night_runs_nothing_and_one_new_submission_runs_one(first_night: Night, tmp_path: Path) -> None:
    from prefect_queries import task_runs_of

    world = first_night.world
    before = tree_snapshot(Path(world.root))
    second = evaluate(world)
    assert second.summary.evaluated == []
    assert len(second.summary.known) == 10
    assert task_runs_of(second.ended, "evaluate ", 0) == []
    assert tree_snapshot(Path(world.root)) == before
    send(world.workspace, write_code(tmp_path / "late", "Late", gain=0.02), "latecomer", "sensorium")
    third = evaluate(world)
    assert [result.identifier for result in third.summary.evaluated] == ["latecomer/sensorium/1"]
    assert [task.name for task in task_runs_of(third.ended, "evaluate ", 1)] == ["evaluate latecomer/sensorium/1"]
    assert third.row("latecomer").rank is not None
    assert third.row("sharp").rank == 1


def test_what_the_platform_lost_fails_the_run_and_no_other_submission(
    world: World, on_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_queries import run_of, task_runs_of

    from flows.evaluate_submissions import evaluate_submission

    monkeypatch.setattr(evaluate_submission, "retry_delay_seconds", 0)
    world = world.copy(tmp_path / "copy")
    workspace = world.workspace
    for team, noise in (("lost", 1.0), ("whole", 2.0)):
        predictions = true_predictions(workspace, SENSORIUM, noise)
        send(workspace, write_file_submission(tmp_path / team, team, SENSORIUM, predictions), team, "sensorium")
        if team == "lost":
            next(Path(world.root, "inbox", "data").rglob(f"{SENSORIUM}.npz")).unlink()
    night = evaluate(world)
    with pytest.raises(PlatformError, match="the platform failed on some submissions") as caught:
        night.ended.result()
    assert caught.value.where == "lost/sensorium/1"
    # It says why where an operator looks first, and teams are told so without the platform's own addresses.
    found = standings_series(workspace.open, RELEASE, "lost", "sensorium").latest(Standings)
    assert found is not None
    (standing,) = found[1].entries
    assert standing.state == "platform failed"
    assert standing.reason in caught.value.problem
    assert world.root not in standing.reason
    assert night.row("whole").rank == 1
    assert night.row("lost").rank is None
    assert run_of(night.ended).state_name == "Failed"
    states = {task.name: task.state_name for task in task_runs_of(night.ended, "evaluate ", 2)}
    assert states == {"evaluate lost/sensorium/1": "Failed", "evaluate whole/sensorium/1": "Scored"}
