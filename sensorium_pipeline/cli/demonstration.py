"""The main job on one machine, at a size that two cores do in minutes: `sensorium demo`."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from sensorium_pipeline.cli.benchmark import print_ranking
from sensorium_pipeline.compute import Channel, cluster_address, run_on_cluster
from sensorium_pipeline.progress import ProgressCallback
from sensorium_pipeline.rankings.publication import latest_page
from sensorium_pipeline.rankings.records import RankingTable
from sensorium_pipeline.recordings.simulation import simulate_recording, truth_folder
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters
from sensorium_pipeline.sessions.catalogue import list_sessions, load_inputs, load_session_data, read_session
from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.records import SessionRecord
from sensorium_pipeline.sessions.release import Release, change_phases, create_release, read_release
from sensorium_pipeline.sessions.tiers import HIDDEN_TIERS
from sensorium_pipeline.sessions.truth import TruthComparison, compare_with_truth
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, dataset_url, open_dataset, open_workspace
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.predictions import Predictions, write_predictions
from sensorium_pipeline.submissions.sandbox import IsolationTier
from sensorium_pipeline.submissions.sending import submit
from sensorium_pipeline.submissions.teams import Kind, Token, add_team, parse_token, read_team, token_of
from sensorium_pipeline.tables import rank_all
from sensorium_pipeline.terminal import console

RELEASE = "demo"
BUCKET = "sensorium"
MICE = (
    SimulationParameters(animal=1, seed=1),
    SimulationParameters(animal=2, seed=2, role="competition", track="sensorium"),
    SimulationParameters(animal=3, seed=3, role="competition", track="sensorium+"),
)
TEMPLATES = Path(__file__).parent / "demo_submissions"
RIDGE = 300.0


class Demonstration(BaseModel):
    """What a run of the demonstration did, and where its results lie; `truth` by session; `timings` are (step, seconds)."""

    folder: Path
    tables: list[RankingTable]
    page: str
    reports: dict[str, str]
    truth: dict[str, TruthComparison]
    simulated: int
    ingested: int
    evaluated: int
    timings: list[tuple[str, float]]


def run_demo(folder: Path, show: ProgressCallback, *, s3: bool) -> Demonstration:
    """Do the main job in a folder; with `s3`, the workspace is a bucket of a server whose data lie in that folder.

    A Prefect server is there already.
    """
    from flows.evaluate_submissions import evaluate_submissions

    timings: list[tuple[str, float]] = []

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        timings.append((step, time.monotonic() - begun))

    with ExitStack() as stack:
        missing = [mouse for mouse in MICE if not (folder / "raw" / mouse.name).exists()]
        with timed("start services"):
            settings = _on_s3(stack, folder) if s3 else Settings(root=str(folder))
            workspace = open_workspace(settings)
            before = {session.open_digest for session in list_sessions(workspace.open)}
            if missing or len(before) < len(MICE):
                # One cluster for all steps; later, a flow that has something to do starts one.
                os.environ["SENSORIUM_DASK_ADDRESS"] = stack.enter_context(cluster_address(settings))
                stack.callback(os.environ.pop, "SENSORIUM_DASK_ADDRESS", None)
        with timed("simulate recordings"):
            _simulate(folder / "raw", missing, show)
        with timed("ingest"):
            records = _ingest(folder / "raw", settings.root)
        with timed("release and submit"):
            create_release(
                workspace,
                RELEASE,
                [record.name for record in records],
                # Who changes the code and runs it again the same day has other predictions to send.
                phases=[Phase(per_day=20)],
                references={"sensorium": "organisers/LN baseline", "sensorium+": "organisers/LN baseline"},
            )
            release = change_phases(workspace, RELEASE, final="open")
            _submit(workspace, release, folder / "submissions")
        with timed("evaluate and publish"):
            summary = evaluate_submissions(RELEASE, settings.root)
        return Demonstration(
            folder=folder,
            tables=rank_all(workspace, read_release(workspace.open, RELEASE)),
            page=latest_page(workspace.open, RELEASE),
            truth={record.name: _beside_truth(workspace, record, folder / "raw") for record in records},
            reports={record.name: dataset_url(workspace.lab, record.report_digest) for record in records},
            simulated=len(missing),
            ingested=len({record.open_digest for record in records} - before),
            evaluated=len(summary.evaluated),
            timings=timings,
        )


def print_demo(demo: Demonstration) -> None:
    """Print the tables, and where everything lies."""
    console.print()
    for table in demo.tables:
        print_ranking(table)
    for name, truth in demo.truth.items():
        found = f"{truth.matched} of {truth.neurons} simulated neurons found ({truth.matched_fraction:.0%})"
        agree = f"responses correlate with the true spike counts by {truth.correlation:.2f} (median)"
        console.print(f"Session {name}:    {found}, {agree}", highlight=False)
    console.print(f"Ranking page:     {demo.page}", highlight=False)
    for name, url in demo.reports.items():
        console.print(f"Quality report:   {url}/report.md  (session {name})", highlight=False)
    console.print(f"Look at the runs: sensorium up --root {demo.folder}, then open the Prefect URL it prints", highlight=False)
    if demo.page.startswith("s3://"):
        console.print(f"The S3 server has ended; its data stay in {demo.folder / 's3'}, and the same command starts it again on them.")
    if demo.simulated or demo.ingested or demo.evaluated:
        done = f"{demo.simulated} recordings simulated, {demo.ingested} sessions ingested, {demo.evaluated} submissions evaluated"
        console.print(f"New: {done}.")
    else:
        console.print("Everything was there already: nothing was computed again.")
    if probe_isolation().tier is IsolationTier.REFUSE:
        console.print("Submitted code was refused, as this machine cannot isolate it: install bubblewrap and run the demo again.")
    steps = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in demo.timings)
    console.print(f"Time: {steps}", highlight=False)


def _on_s3(stack: ExitStack, folder: Path) -> Settings:
    """A real S3 server with its data below the folder; its address and keys go to the workers through the environment."""
    from sensorium_pipeline.storage.local_s3 import LocalS3Server

    server = stack.enter_context(LocalS3Server(folder / "s3"))
    variables: dict[str, str] = {
        "SENSORIUM_ROOT": f"s3://{BUCKET}/workspace",
        "SENSORIUM_ENDPOINT_URL": server.endpoint_url,
        "SENSORIUM_ACCESS_KEY": server.access_key,
        "SENSORIUM_SECRET_KEY": server.secret_key.get_secret_value(),
    }
    os.environ.update(variables)
    # Workers that `sensorium up` keeps have no keys of this server.
    os.environ.pop("SENSORIUM_DASK_ADDRESS", None)
    for name in variables:
        stack.callback(os.environ.pop, name, None)
    return Settings()


def _simulate(folder: Path, mice: Sequence[SimulationParameters], show: ProgressCallback) -> None:
    """Simulate recordings side by side on the cluster of the demonstration."""
    folder.mkdir(exist_ok=True)

    def simulate(mouse: SimulationParameters) -> None:
        address, name = os.environ["SENSORIUM_DASK_ADDRESS"], f"simulate {mouse.name}"
        run_on_cluster(address, _simulate_on_worker, folder / mouse.name, mouse, name=name, progress=show)

    with ThreadPoolExecutor(len(MICE)) as pool:
        list(pool.map(simulate, mice))


def _simulate_on_worker(out: Path, mouse: SimulationParameters, channel: Channel) -> None:
    simulate_recording(out, mouse, channel.report)


def _ingest(folder: Path, root: str) -> list[SessionRecord]:
    from flows.ingest_session import ingest_session

    with ThreadPoolExecutor(len(MICE)) as pool:
        return list(pool.map(lambda mouse: ingest_session(str(folder / mouse.name), root), MICE))


def _beside_truth(workspace: Workspace, record: SessionRecord, raw: Path) -> TruthComparison:
    """What only a simulation can tell: how much of what was simulated the session holds."""
    return compare_with_truth(open_dataset(workspace.lab, record.lab_digest), truth_folder(raw / record.name))


def _submit(workspace: Workspace, release: Release, folder: Path) -> None:
    """Both baselines to both tracks, a predictions file, a submission that crashes and one that pries; each with its team's token."""
    organisers = _token(workspace, "organisers", "organisers")
    for architecture in ("ln", "cnn"):
        path = folder / architecture
        _write_baseline(path, architecture)
        for track in ("sensorium", "sensorium+"):
            submit(workspace, release, path, organisers, track)
    _write_predictions(workspace, folder / "ridge")
    submit(workspace, release, folder / "ridge", _token(workspace, "linear-lab"), "sensorium")
    for name, team in (("crashing", "unlucky"), ("prying", "curious")):
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted((TEMPLATES / name).iterdir()):
            (path / file.name.removesuffix(".template")).write_bytes(file.read_bytes())
        submit(workspace, release, path, _token(workspace, team), "sensorium")


def _token(workspace: Workspace, team: str, kind: Kind = "team") -> Token:
    """The token of a team, as `sensorium team add` issues it."""
    if read_team(workspace.sealed, team) is None:
        add_team(workspace.sealed, team, datetime.now(UTC), kind=kind)
    return parse_token(token_of(workspace.sealed, team))


def _write_baseline(path: Path, architecture: str) -> None:
    """A baseline as `sensorium new-submission` writes it, at a size for two cores."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [f'name = "{architecture.upper()} baseline"', 'entry_point = "sensorium_pipeline.submissions.baseline:build"', ""]
    lines += ["[parameters]", f'architecture = "{architecture}"', 'size = "demo"']
    (path / "submission.toml").write_text("\n".join(lines) + "\n")


def _write_predictions(workspace: Workspace, path: Path) -> None:
    """What a participant without code to run here would send: ridge regression on coarse images, from the released data alone."""
    (path / "predictions").mkdir(parents=True, exist_ok=True)
    (path / "submission.toml").write_text('name = "Ridge regression"\npredictions = "predictions"\ntrack = "sensorium"\n')
    for mouse in MICE:
        if mouse.track != "sensorium":
            continue
        tree = open_dataset(workspace.open, read_session(workspace.open, mouse.name)[1].open_digest)
        data = load_session_data(tree, "sensorium")
        trial_id, _, inputs = load_inputs(tree, HIDDEN_TIERS, "sensorium")
        coarse, unseen = _coarse(data.training.inputs.images), _coarse(inputs.images)
        center, scale = coarse.mean(0), coarse.std(0)
        coarse, unseen = (coarse - center) / scale, (unseen - center) / scale
        precision = data.description.statistics.response_precision
        target = data.training.responses * precision
        weights = np.linalg.solve(coarse.T @ coarse + RIDGE * np.eye(coarse.shape[1]), coarse.T @ (target - target.mean(0)))
        prediction = (unseen @ weights + target.mean(0)).astype(np.float32)
        write_predictions(path / "predictions" / f"{mouse.name}.npz", Predictions(trial_id, data.description.unit_ids, prediction))


def _coarse(images: np.ndarray) -> np.ndarray:
    """Images (images, y, x) as means over blocks of 4 x 4 pixels, one row each."""
    count, height, width = images.shape
    return images.reshape(count, height // 4, 4, width // 4, 4).mean((2, 4)).reshape(count, -1).astype(np.float64)
