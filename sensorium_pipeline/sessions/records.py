"""Small records that name a session's parts: the private binding, and what everyone may know."""

from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.sessions.alignment import RESPONSE_WINDOW
from sensorium_pipeline.sessions.gates import SessionGates
from sensorium_pipeline.sessions.tiers import VALIDATION_SHARE, Tier


class SessionParameters(BaseModel):
    """All parameters of turning a recording into a session.

    Attributes:
        imaging: of the extraction of planes.
        response_window: start and stop, s after the stimulus onset.
        validation_share: share of the images shown once that become validation.
        gates: thresholds below or above which a session is not published.
    """

    model_config = ConfigDict(frozen=True)

    imaging: ImagingParameters = ImagingParameters()
    response_window: tuple[float, float] = RESPONSE_WINDOW
    validation_share: float = VALIDATION_SHARE
    gates: SessionGates = SessionGates()


class Provenance(BaseModel):
    """Which code in which environment made a session; nothing of time or place.

    Attributes:
        code_version: of this package.
        lock_digest: sha256 of the lock file that the environment was installed from.
    """

    model_config = ConfigDict(frozen=True)

    code_version: str
    lock_digest: str


class PublishedSession(BaseModel):
    """What everyone may know of a session: the pointer `sessions/<name>` of the open store.

    Attributes:
        name: `<animal>-<session>-<scan>`.
        animal: number of the animal.
        role: "open" or "competition".
        track: of a competition session.
        open_digest: of the open part.
        neurons: released neurons.
        trials: released trials by tier.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    animal: int
    role: Role
    track: Track | None
    open_digest: str
    neurons: int
    trials: dict[Tier, int]


class SessionRecord(PublishedSession):
    """The private binding of a session's parts: in the lab store, and in the sealed store as `bindings/<open digest>.json`.

    The lab digest is a secret: the order of the released trials is drawn from it.

    Attributes:
        lab_digest: of the lab part.
        sealed_digest: of the sealed part; None for an open session, which hides nothing.
        report_digest: of the quality report in the lab store.
        recording_digest: of the raw files.
        rejected: trials that are not released, by reason.
    """

    lab_digest: str
    sealed_digest: str | None
    report_digest: str
    recording_digest: str
    rejected: dict[str, int]

    def published(self) -> PublishedSession:
        """The part of this record that everyone may know."""
        return PublishedSession(**{name: getattr(self, name) for name in PublishedSession.model_fields})


def binding_path(open_digest: str) -> str:
    """Where the private record of an open part lies in the sealed store."""
    return f"bindings/{open_digest}.json"
