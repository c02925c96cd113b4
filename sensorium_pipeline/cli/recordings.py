"""Commands of the lab engineer: raw recordings, movies and traces."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sensorium_pipeline.cli.common import Json, Root, flows_ready, settings_of
from sensorium_pipeline.terminal import console, emphasised, print_json, progress_bars

PANEL = "Recordings"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("simulate-recording", rich_help_panel=PANEL)(simulate_recording)
    app.command(rich_help_panel=PANEL)(inspect)
    app.command(rich_help_panel=PANEL)(ingest)
    app.command(rich_help_panel=PANEL)(extract)
    app.command(rich_help_panel=PANEL)(deconvolve)


RawFolder = Annotated[Path, typer.Argument(metavar="RAW", help="Folder of the raw session (session.toml lies in it).")]
FrameRate = Annotated[float, typer.Option(help="Frames a second.")]


def simulate_recording(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist yet.")],
    animal: Annotated[int, typer.Option(min=0, help="Number of the animal.")] = 1,
    role: Annotated[Literal["open", "competition"], typer.Option(help="Role of the session in the benchmark.")] = "open",
    track: Annotated[
        Literal["sensorium", "sensorium+"] | None, typer.Option(help="Track of a competition session.", show_default=False)
    ] = None,
    planes: Annotated[int, typer.Option(min=1, max=20, help="Depths scanned.")] = 2,
    fields: Annotated[int, typer.Option(min=1, max=12, help="Fields of view at each depth; several make a mesoscope recording.")] = 1,
    neurons: Annotated[int, typer.Option(min=1, help="Neurons in a field.")] = 50,
    size: Annotated[int, typer.Option(min=48, max=1024, help="Edge of a field in pixels.")] = 100,
    images: Annotated[int, typer.Option(min=10, help="Images shown once.")] = 800,
    timeline: Annotated[Path | None, typer.Option(help="CSV with the presentation times of a real session.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
) -> None:
    """Write a raw ScanImage session as a rig leaves it; the truth goes to OUT-truth, beside it."""
    from pydantic import ValidationError

    from sensorium_pipeline.errors import InputError
    from sensorium_pipeline.recordings.simulation import simulate_recording as simulate
    from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters

    try:
        parameters = SimulationParameters(
            animal=animal,
            role=role,
            track=track,
            planes=planes,
            fields=fields,
            neurons_per_plane=neurons,
            height=size,
            width=size,
            single_images=images,
            timeline=timeline,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "options"
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(problem, where=field, advice="See `sensorium simulate-recording --help`.") from error
    with progress_bars() as show:
        simulate(out, parameters, show)
    console.print(f"{out} (the truth lies in {out}-truth)")


def inspect(raw: RawFolder, json: Json = False) -> None:
    """Say what is in a raw session, and whether it can be ingested."""
    from sensorium_pipeline.ingestion import session_parameters
    from sensorium_pipeline.recordings import open_session
    from sensorium_pipeline.recordings.summary import describe

    summary = describe(open_session(raw))
    session_parameters(raw)
    if json:
        print_json(summary)
        return
    for name, value in summary.model_dump().items():
        if shown := _shown(value):
            console.print(emphasised(f"{name.replace('_', ' ')}:"), shown, highlight=False)


def _shown(value: object) -> str:
    """A field of the summary in plain words; "" where there is nothing to say."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, tuple):
        return "; ".join(f"({', '.join(map(_shown, each))})" if isinstance(each, tuple) else _shown(each) for each in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def ingest(
    raw: RawFolder,
    archive: Annotated[bool, typer.Option("--archive", help="Keep the raw movie too, as sharded zarr, bit by bit.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """Turn a raw session into a checked, published dataset with a quality report.

    What was finished before, down to the stage of a plane, is not done again. A quality gate that refuses the session says by how much;
    thresholds and parameters are changed in session.toml, in tables such as `[parameters.gates.plane]`.
    """
    from sensorium_pipeline.archive import archived_plane
    from sensorium_pipeline.ingestion import session_parameters
    from sensorium_pipeline.recordings import open_session
    from sensorium_pipeline.storage import dataset_url, open_workspace

    settings = settings_of(root)
    session = open_session(raw)  # what cannot be read is said before anything is started
    session_parameters(raw)
    with flows_ready(settings):
        from flows.ingest_session import ingest_session

        record = ingest_session(str(raw.absolute()), settings.root, archive=archive)
    if json:
        print_json(record)
        return
    workspace = open_workspace(settings)
    report = dataset_url(workspace.lab, record.report_digest)
    trials = ", ".join(f"{count} {tier}" for tier, count in record.trials.items())
    console.print(f"Session {record.name}: {record.neurons} neurons; trials {trials}; {sum(record.rejected.values())} rejected")
    console.print(f"Quality report: {report}/report.md")
    kept = [archived_plane(workspace, record.recording_digest, plane) for plane in range(session.planes)] if archive else []
    for plane in kept:
        if plane is not None:
            size = f"{plane.stored_bytes / 1e6:.1f} MB, {plane.ratio:.2f} times smaller than the raw frames"
            console.print(f"Raw movie of plane {plane.plane}: {dataset_url(workspace.lab, plane.digest)} ({size})")


def extract(
    movie: Annotated[Path, typer.Argument(metavar="MOVIE", help="TIFF, NWB, HDF5 or zarr with (frames, y, x), or a folder of TIFF files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result.")],
    frame_rate: Annotated[float | None, typer.Option(help="Frames a second, where the file does not say it.", show_default=False)] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Edge of a pixel in micrometres.", show_default=False)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="HDF5 dataset, zarr array, NWB series, or plane and channel of a TIFF file, where there are several.", show_default=False
        ),
    ] = None,
    segmenter: Annotated[
        Literal["sensorium", "suite2p"],
        typer.Option(help="What finds the cells; suite2p needs SENSORIUM_SUITE2P_PYTHON, the python of an environment that has it."),
    ] = "sensorium",
    json: Json = False,
) -> None:
    """Take any two-photon movie through motion correction, cells, traces and activity; after an interruption, go on with it.

    OUT gets extraction.zarr (opens with `xarray.open_zarr`), report.md and its pictures.
    """
    from sensorium_pipeline.movie_digest import MovieDigest

    with MovieDigest(movie, dataset) as digest:  # while the libraries below load
        from sensorium_pipeline.extraction_folder import extract_movie
        from sensorium_pipeline.imaging.quality import judge
        from sensorium_pipeline.imaging.raster_phase import USUAL_PHASE

        with progress_bars() as show:
            metrics = extract_movie(
                movie,
                out,
                frame_rate=frame_rate,
                pixel_size=pixel_size,
                dataset=dataset,
                segmenter=segmenter,
                digest=digest,
                progress=show,
            )
    if json:
        print_json(metrics)
        return
    console.print(f"{metrics.kept_cells} cells of {metrics.cells} candidates, median signal-to-noise {metrics.median_snr:.1f}")
    console.print(f"Shifts {metrics.shift_rms:.2f} px RMS, {metrics.flagged_fraction:.1%} of {metrics.frames} frames flagged")
    if metrics.motion_pooled != 1:
        pooled = f"was measured on {metrics.motion_pooled} frames together" if metrics.motion_pooled else "could not be measured"
        console.print(f"Single frames show too little, so motion {pooled}.")
    if abs(metrics.raster_phase) > USUAL_PHASE:
        console.print(f"Odd lines stood {metrics.raster_phase:.1f} px away, which is undone: align the scanner's phase at the microscope.")
    if failed := [str(gate) for gate in judge(metrics) if not gate.passed]:
        console.print(f"A session with this plane would not be published: {'; '.join(failed)}.", highlight=False)
    console.print(f"{out}/report.md")


def deconvolve(
    traces: Annotated[Path, typer.Argument(metavar="TRACES", help=".npy with dF/F (neurons, frames); NaN where a frame is missing.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".npy for the activity (neurons, frames).")],
    frame_rate: FrameRate,
    json: Json = False,
) -> None:
    """Infer activity from dF/F traces that come from elsewhere.

    Frames that are NaN, such as those flagged for motion, may lie anywhere: calcium decays through them, and they are NaN in the activity.
    Noise, baseline and time constants are taken from each trace.
    """
    from sensorium_pipeline.extraction_folder import deconvolve_file

    with progress_bars() as show:
        summary = deconvolve_file(traces, out, frame_rate=frame_rate, progress=show)
    if json:
        print_json(summary)
    else:
        console.print(f"{out}: {summary.neurons} neurons, {summary.frames} frames")
        if summary.median_decay is not None and summary.median_rise is not None:
            console.print(
                f"Calcium rises within {1000 * summary.median_rise:.0f} ms and decays within {summary.median_decay:.2g} s, "
                f"noise {summary.median_noise:.3g} (medians)."
            )
    if summary.warning:
        typer.echo(f"Warning: {summary.warning}", err=True)
