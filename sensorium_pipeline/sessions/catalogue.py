"""The catalogue: which sessions there are, what is in one, and a session as models and the scorer read it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.sessions.records import PublishedSession, SessionRecord, binding_path
from sensorium_pipeline.sessions.schema import TRACKS, known_track, read_array, release_rule
from sensorium_pipeline.sessions.tiers import Tier
from sensorium_pipeline.storage import MissingObjectError, Series, Store, Workspace, open_dataset
from sensorium_pipeline.training.data import SessionData, SessionDescription, Statistics, TrialInputs, Trials

TRIAL_BLOCK = 512


class SessionSummary(BaseModel):
    """What is in a session, for showing.

    Attributes:
        generation: of the pointer; 1 is the first version published.
        session: the pointer itself.
        tracks: tracks it serves.
        hidden_tiers: tiers whose responses are sealed.
        behavior: whether behaviour and pupil are published.
        images: different images shown.
        image_shape: (y, x) of the images, pixels.
        model_input_shape: (y, x) at the models' scale.
        code_version: that made it.
    """

    model_config = ConfigDict(frozen=True)

    generation: int
    session: PublishedSession
    tracks: tuple[Track, ...]
    hidden_tiers: tuple[Tier, ...]
    behavior: bool
    images: int
    image_shape: tuple[int, int]
    model_input_shape: tuple[int, int]
    code_version: str


@dataclass(frozen=True)
class HiddenResponses:
    """What the scorer compares predictions with: some tiers of one session, ascending by trial id.

    Shapes: trial_id, image_id (trials,) int64; tier (trials,) text; responses (trials, neurons) float32 in raw units; precision
    (neurons,) float32, the factor from raw to standardised units; unit_ids (neurons,) int64.
    """

    trial_id: NDArray[np.int64]
    image_id: NDArray[np.int64]
    tier: NDArray[np.str_]
    responses: NDArray[np.float32]
    precision: NDArray[np.float32]
    unit_ids: NDArray[np.int64]

    def of_tier(self, tier: str) -> "HiddenResponses":
        """Trials of one tier alone."""
        rows = self.tier == tier
        return HiddenResponses(
            self.trial_id[rows], self.image_id[rows], self.tier[rows], self.responses[rows], self.precision, self.unit_ids
        )


def list_sessions(store: Store) -> list[PublishedSession]:
    """Current version of every session of an open store, sorted by name."""
    found = (Series(store, f"sessions/{name}").latest(PublishedSession) for name in store.list("sessions"))
    return [latest[1] for latest in found if latest is not None]


def read_session(store: Store, name: str, open_digest: str | None = None) -> tuple[int, PublishedSession]:
    """Generation and pointer of one session: the current version, or the one of a given open part (a release may hold an older one).

    Raises:
        InputError: there is no such session or version; the message names those there are.
    """
    series = Series(store, f"sessions/{name}")
    latest = series.latest(PublishedSession)
    if latest is None:
        known = ", ".join(store.list("sessions")) or "none yet"
        raise InputError("there is no session of this name", where=name, advice=f"Known sessions: {known}.")
    if open_digest is None or latest[1].open_digest == open_digest:
        return latest
    for generation, session in reversed(series.all(PublishedSession)):
        if session.open_digest == open_digest:
            return generation, session
    raise InputError(f"no version of this session has the digest {open_digest}", where=name, advice=f"It has {latest[0]} version(s).")


def show_session(store: Store, name: str) -> SessionSummary:
    """What is in one session of an open store."""
    generation, session = read_session(store, name)
    tree = open_dataset(store, session.open_digest)
    rule = release_rule(session.role, session.track)
    images = tree["images"]
    return SessionSummary(
        generation=generation,
        session=session,
        tracks=TRACKS if session.track is None else (session.track,),
        hidden_tiers=tuple(tier for tier in session.trials if tier not in rule.response_tiers),
        behavior=rule.shows_behavior,
        images=images.sizes["image"],
        image_shape=(images.sizes["y"], images.sizes["x"]),
        model_input_shape=(images.sizes["model_y"], images.sizes["model_x"]),
        code_version=str(tree.attrs["code_version"]),
    )


def read_binding(store: Store, open_digest: str) -> SessionRecord:
    """The private record of an open part, from the sealed store.

    Raises:
        OrganiserError: no session of this digest was published here, or the record is damaged.
    """
    path = binding_path(open_digest)
    try:
        return SessionRecord.model_validate_json(store.read(path))
    except MissingObjectError as error:
        raise OrganiserError(
            "no hidden part is known for this session", where=f"{store.url}/{path}", advice="Publish the session first."
        ) from error
    except ValidationError as error:
        raise OrganiserError(
            f"the record is damaged ({error.error_count()} fields)", where=f"{store.url}/{path}", advice="Restore it."
        ) from error


def load_description(tree: xr.DataTree, track: str) -> SessionDescription:
    """What a model may know of a session before any trial.

    Args:
        tree: an open part.
        track: "sensorium" or "sensorium+"; the first shows no behaviour, so its statistics are None.

    Raises:
        InputError: unknown track, or a session that belongs to the other one.
    """
    behavior = _shows_behavior(tree, track)
    return SessionDescription(
        name=str(tree.attrs["session"]),
        unit_ids=read_array(tree, "neurons/unit_id"),
        positions=read_array(tree, "neurons/position"),
        image_shape=(tree["images"].sizes["model_y"], tree["images"].sizes["model_x"]),
        statistics=_statistics(tree, behavior),
    )


def load_session_data(tree: xr.DataTree, track: str) -> SessionData:
    """A session as a model of this track may train on it; arguments and errors as in `load_description`."""
    return SessionData(load_description(tree, track), *(_trials(tree, tier, track) for tier in ("train", "validation")))


def load_inputs(tree: xr.DataTree, tiers: str | Sequence[str], track: str) -> tuple[NDArray[np.int64], NDArray[np.int64], TrialInputs]:
    """What predictions are made from.

    Args:
        tree: an open part.
        tiers: one tier or several, of which at least one must have trials.
        track: as in `load_description`.

    Returns:
        trial_id (trials,), image_id (trials,) and the inputs, ascending by trial id.
    """
    behavior = _shows_behavior(tree, track)
    rows = _rows(tree, [tiers] if isinstance(tiers, str) else list(tiers))
    image_id = read_array(tree, "trials/image_id")[rows]
    inputs = TrialInputs(
        images=read_array(tree, "images/model_input")[np.searchsorted(read_array(tree, "images/image_id"), image_id)],
        behavior=read_array(tree, "trials/behavior")[rows] if behavior else None,
        pupil_center=read_array(tree, "trials/pupil_center")[rows] if behavior else None,
    )
    return read_array(tree, "trials/trial_id")[rows], image_id, inputs


def load_hidden(workspace: Workspace, open_digest: str, tiers: str | Sequence[str]) -> HiddenResponses:
    """Responses of one tier or several for scoring, from the sealed part, or from the open part where it shows all of them.

    Raises:
        InputError: the session has no trials of one of the tiers.
        OrganiserError: the session has no private record, or open and sealed part do not belong together.
    """
    tree = open_dataset(workspace.open, open_digest)
    precision, units = _statistics(tree, behavior=False).response_precision, read_array(tree, "neurons/unit_id")
    wanted = [tiers] if isinstance(tiers, str) else list(tiers)
    rows = np.sort(np.concatenate([_rows(tree, [tier]) for tier in wanted]))
    role: Role = "open" if tree.attrs["role"] == "open" else "competition"
    track = known_track(tree.attrs["track"]) if tree.attrs["track"] else None
    if set(wanted) <= set(release_rule(role, track).response_tiers):
        source = tree
    else:
        sealed = read_binding(workspace.sealed, open_digest).sealed_digest
        if sealed is None:
            raise OrganiserError("the session's record names no sealed part", where=open_digest, advice="Publish the session again.")
        source = open_dataset(workspace.sealed, sealed)
    there = _rows(source, wanted)
    trial_id, image_id = read_array(source, "trials/trial_id")[there], read_array(source, "trials/image_id")[there]
    expected = read_array(tree, "trials/trial_id")[rows], read_array(tree, "trials/image_id")[rows]
    if not (
        np.array_equal(trial_id, expected[0])
        and np.array_equal(image_id, expected[1])
        and np.array_equal(read_array(source, "neurons/unit_id"), units)
    ):
        raise OrganiserError("open and sealed part list other trials or neurons", where=open_digest, advice="Publish the session again.")
    responses = _responses(source, there)
    return HiddenResponses(trial_id, image_id, read_array(source, "trials/tier")[there], responses, precision, units)


def _shows_behavior(tree: xr.DataTree, track: str) -> bool:
    """Whether a model of this track sees behaviour: in every session of SENSORIUM+, in none of SENSORIUM, open ones included."""
    wanted, own = known_track(track), str(tree.attrs["track"])
    if own and own != wanted:
        raise InputError(
            f'the session belongs to the track "{own}", not "{wanted}"', where=str(tree.attrs["session"]), advice="Choose another session."
        )
    return wanted == "sensorium+"


def _responses(tree: xr.DataTree, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Responses of some trials. Read in whole blocks: zarr takes a list of rows one by one, fifty times slower."""
    response = tree["trials"].to_dataset()["response"]
    chosen = np.empty((len(rows), response.sizes["neuron"]), np.float32)
    for start in range(0, response.sizes["trial"], TRIAL_BLOCK):
        here = (rows >= start) & (rows < start + TRIAL_BLOCK)
        if here.any():
            chosen[here] = response.isel(trial=slice(start, start + TRIAL_BLOCK)).values[rows[here] - start]
    return chosen


def _rows(tree: xr.DataTree, tiers: Sequence[str]) -> NDArray[np.intp]:
    present = read_array(tree, "trials/tier")
    rows = np.flatnonzero(np.isin(present, list(tiers)))
    if not len(rows):
        known = ", ".join(sorted(set(present.tolist())))
        raise InputError(
            f"no trials of the tier {' or '.join(tiers)}", where=f"session {tree.attrs['session']}", advice=f"It has: {known}."
        )
    return rows


def _trials(tree: xr.DataTree, tier: Tier, track: str) -> Trials:
    _, _, inputs = load_inputs(tree, tier, track)
    return Trials(inputs, _responses(tree, _rows(tree, [tier])))


def _statistics(tree: xr.DataTree, behavior: bool) -> Statistics:
    names = ["response_mean", "response_std"] + (
        ["behavior_mean", "behavior_std", "pupil_center_mean", "pupil_center_std"] if behavior else []
    )
    arrays = {name: read_array(tree, f"statistics/{name}") for name in names}
    return Statistics(image_mean=float(tree["statistics/image_mean"]), image_std=float(tree["statistics/image_std"]), **arrays)
