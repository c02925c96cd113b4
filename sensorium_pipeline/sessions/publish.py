"""Publishing a session: its lab part, its open part, its sealed part, the private binding, and then the pointers.

Everything is written before anything points to it, and the open pointer comes last. Running it again with the same content writes the
same digests and appends nothing.

What the open store learns is chosen by the allow-list of `schema`. The order of its trials is drawn from the lab part's digest, which
stays in the lab and sealed stores; a changed code version or parameter changes that digest, and with it the order. The open pointer
names neither the lab nor the sealed part nor the recording.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.raw_session import RawSession
from sensorium_pipeline.sessions.gates import refuse_failed, session_gates
from sensorium_pipeline.sessions.parts import lab_tree, open_tree, released_order, sealed_tree
from sensorium_pipeline.sessions.records import Provenance, SessionParameters, SessionRecord, binding_path
from sensorium_pipeline.sessions.report import quality_report
from sensorium_pipeline.sessions.schema import release_rule
from sensorium_pipeline.sessions.tiers import TIERS
from sensorium_pipeline.sessions.trials import align_trials
from sensorium_pipeline.storage import Series, Workspace, canonical_json, write_dataset, write_files

STEPS = 6


def publish_session(
    workspace: Workspace,
    raw: RawSession,
    planes: Sequence[PlaneExtraction],
    *,
    parameters: SessionParameters,
    provenance: Provenance,
    progress: ProgressCallback = silent,
) -> SessionRecord:
    """Align, judge and publish a session.

    The quality report is kept in the lab store whether the session is published or refused.

    Args:
        workspace: needs its lab, open and sealed stores.
        raw: the recording.
        planes: its planes, extracted, in order.
        parameters: kept in the lab part.
        provenance: kept in every part.
        progress: told after every step.

    Returns:
        The private record of the session.

    Raises:
        QualityGateError: a gate refuses the session; the message says which and by how much.
        InputError: planes, images and recording do not fit together.
        OrganiserError: role and track do not go together, or the same open part is bound to other parts.
    """
    rule = release_rule(raw.description.role, raw.description.track)
    trials = align_trials(raw, planes, parameters.response_window, parameters.validation_share)
    progress(Progress("publish session", 1, STEPS, "trials aligned"))
    if len(rule.response_tiers) < len(TIERS) and not (trials.kept & ~np.isin(trials.tier, rule.response_tiers)).any():
        raise OrganiserError(
            "nothing of this competition session would be hidden",
            where=f"session {raw.name}",
            advice="Show it the test images, or give it the role open.",
        )
    gates = session_gates(planes, trials, parameters.gates)
    report = write_files(workspace.lab, quality_report(raw, planes, trials, gates)).digest
    progress(Progress("publish session", 2, STEPS, "quality report written"))
    refuse_failed(raw.name, gates, f"{workspace.lab.name} dataset {report}")

    lab_digest = write_dataset(workspace.lab, lab_tree(raw, planes, trials, parameters, provenance)).digest
    progress(Progress("publish session", 3, STEPS, "lab part written"))
    kept = trials.kept
    order = released_order(lab_digest, int(kept.sum()))
    sealed = sealed_tree(raw, planes, trials, order, parameters, provenance)
    sealed_digest = None if sealed is None else write_dataset(workspace.sealed, sealed).digest
    progress(Progress("publish session", 4, STEPS, "sealed part written"))
    open_digest = write_dataset(workspace.open, open_tree(raw, planes, trials, order, parameters, provenance)).digest
    progress(Progress("publish session", 5, STEPS, "open part written"))
    record = SessionRecord(
        name=raw.name,
        animal=raw.description.animal,
        role=raw.description.role,
        track=raw.description.track,
        open_digest=open_digest,
        lab_digest=lab_digest,
        sealed_digest=sealed_digest,
        report_digest=report,
        recording_digest=raw.digest,
        neurons=sum(int(np.count_nonzero(plane.kept)) for plane in planes),
        trials={tier: int((kept & (trials.tier == tier)).sum()) for tier in TIERS if (trials.tier == tier).any()},
        rejected=trials.rejected(),
    )
    bind(workspace, record)
    point(Series(workspace.lab, f"sessions/{record.name}"), record)
    point(Series(workspace.open, f"sessions/{record.name}"), record.published())
    progress(Progress("publish session", STEPS, STEPS, "published"))
    return record


def bind(workspace: Workspace, record: SessionRecord) -> None:
    """Record in the sealed store which parts belong together.

    Raises:
        OrganiserError: the open part is bound to other parts already.
    """
    path, payload = binding_path(record.open_digest), canonical_json(record)
    if not workspace.sealed.create(path, payload) and workspace.sealed.read(path) != payload:
        raise OrganiserError(
            "the same open part is bound to other parts",
            where=f"{workspace.sealed.url}/{path}",
            advice="Compare the two records; a digest cannot stand for two recordings.",
        )


def point(series: Series, record: BaseModel) -> None:
    """Let a series point at a record, unless it does so already."""
    latest = series.latest(type(record))
    if latest is None or latest[1] != record:
        series.append(record)
