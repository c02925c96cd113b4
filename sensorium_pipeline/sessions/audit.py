"""The leak audit: what a session's open part says, recomputed from the bytes that were published.

Nothing here trusts the code that published: files, metadata documents and arrays are read back and compared with the allow-list of
`schema`. Where the sealed and lab parts can be read, trial ids and statistics are compared with them, and the order of trials with time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.sessions.audit_files import file_findings, pointer_findings
from sensorium_pipeline.sessions.catalogue import read_session
from sensorium_pipeline.sessions.parts import released_order
from sensorium_pipeline.sessions.records import PublishedSession, SessionRecord, binding_path
from sensorium_pipeline.sessions.schema import ReleaseRule, read_array, release_rule
from sensorium_pipeline.storage import MissingObjectError, Workspace, open_dataset

# Rank correlations are compared with the noise of a random order, whose z-scores are standard normal.
ORDER_Z = 5.0  # of a single variable
NEURON_Z = 6.5  # of any of ten thousand neurons
NEURON_BLOCK = 1024
IMAGE_BLOCK = 256
PLAIN_NAN = np.float32(np.nan).view(np.uint32)


class Finding(BaseModel):
    """One thing that must not be: which check found it, where, and what it is."""

    model_config = ConfigDict(frozen=True)

    check: str
    where: str
    message: str


class AuditReport(BaseModel):
    """Result of the audit of one session.

    Attributes:
        session: name.
        open_digest: what was audited.
        checks: checks that were made.
        skipped: checks that could not be made, and why.
        findings: what is wrong; the audit is passed when there is none.
    """

    model_config = ConfigDict(frozen=True)

    session: str
    open_digest: str
    checks: tuple[str, ...]
    skipped: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def refuse_leaks(self) -> None:
        """Raise `OrganiserError` naming what was found, if anything was."""
        if self.findings:
            shown = "; ".join(f"{finding.where}: {finding.message}" for finding in self.findings[:5])
            more = f" (and {len(self.findings) - 5} more)" if len(self.findings) > 5 else ""
            raise OrganiserError(
                f"the leak audit failed: {shown}{more}", where=f"session {self.session}", advice="Do not release it; publish it again."
            )


@dataclass(frozen=True)
class _Opened:
    """The parts of a session that could be read."""

    session: PublishedSession
    rule: ReleaseRule
    tree: xr.DataTree
    trial_id: NDArray[np.int64]
    image_id: NDArray[np.int64]
    tier: NDArray[np.str_]

    @property
    def hidden(self) -> NDArray[np.bool_]:
        return ~np.isin(self.tier, self.rule.response_tiers)


def audit_session(workspace: Workspace, name: str, open_digest: str | None = None) -> AuditReport:
    """Audit a session.

    Args:
        workspace: needs its open store; with the sealed and lab stores more is checked.
        name: of the session.
        open_digest: which version of it; the current one where it is left out.

    Raises:
        InputError: there is no such session or version.
        OrganiserError: its role and track do not go together.
    """
    _, session = read_session(workspace.open, name, open_digest)
    rule = release_rule(session.role, session.track)
    findings = [Finding(check="files", where=where, message=text) for where, text in file_findings(workspace.open, session, rule)]
    findings += [Finding(check="pointer", where=where, message=text) for where, text in pointer_findings(workspace.open, name)]
    checks = ["files", "pointer"]
    # Values are read only where files are as they must be: else a reader could not even find them.
    tree = open_dataset(workspace.open, session.open_digest)
    if missing := [field.path for field in rule.fields if field.path not in _paths(tree)]:
        findings.append(Finding(check="fields", where=session.name, message=f"does not hold {', '.join(missing)}"))
        return _report(session, checks, ["values: fields are missing"], findings)
    opened = _Opened(
        session, rule, tree, read_array(tree, "trials/trial_id"), read_array(tree, "trials/image_id"), read_array(tree, "trials/tier")
    )
    findings += [*_trial_findings(opened), *_value_findings(opened)]
    checks += ["trials", "hidden responses", "behaviour", "statistics", "order"]

    binding = _binding(workspace, session.open_digest)
    if binding is None:
        return _report(session, checks, ["sealed and lab parts: the private record cannot be read here"], findings)
    findings += _binding_findings(session, binding)
    if binding.sealed_digest is not None:
        findings += _sealed_findings(opened, open_dataset(workspace.sealed, binding.sealed_digest))
        checks.append("sealed part")
    elif opened.hidden.any():
        findings.append(Finding(check="sealed part", where="binding", message="names no sealed part though tiers are hidden"))
    try:
        lab = open_dataset(workspace.lab, binding.lab_digest)
    except MissingObjectError:
        return _report(session, checks, ["order in time: the lab part cannot be read here"], findings)
    findings += _time_findings(opened, lab, binding.lab_digest)
    return _report(session, [*checks, "order in time"], [], findings)


def _report(session: PublishedSession, checks: list[str], skipped: list[str], findings: list[Finding]) -> AuditReport:
    return AuditReport(
        session=session.name, open_digest=session.open_digest, checks=tuple(checks), skipped=tuple(skipped), findings=tuple(findings)
    )


def _paths(tree: xr.DataTree) -> set[str]:
    return {f"{group}/{name}" for group in tree.children for name in tree[group].to_dataset().variables}


def _binding(workspace: Workspace, open_digest: str) -> SessionRecord | None:
    try:
        return SessionRecord.model_validate_json(workspace.sealed.read(binding_path(open_digest)))
    except MissingObjectError:
        return None


def _trial_findings(opened: _Opened) -> Iterator[Finding]:
    count = len(opened.trial_id)
    if not np.array_equal(opened.trial_id, np.arange(count)):
        yield Finding(check="trials", where="trials/trial_id", message="is not 0, 1, 2, ... in the order of the file")
    counted = {str(tier): int((opened.tier == tier).sum()) for tier in np.unique(opened.tier)}
    if counted != {tier: number for tier, number in opened.session.trials.items() if number}:
        yield Finding(check="trials", where="trials/tier", message=f"holds {counted}, the pointer says {opened.session.trials}")
    images = read_array(opened.tree, "images/image_id")
    if not np.array_equal(images, np.unique(opened.image_id)):
        yield Finding(check="trials", where="images/image_id", message="is not the ascending list of the images of the trials")
    yield from _order_findings("trials/image_id", opened.image_id.astype(float), np.arange(count))
    yield from _order_findings("trials/tier", np.unique(opened.tier, return_inverse=True)[1].astype(float), np.arange(count))


def _value_findings(opened: _Opened) -> Iterator[Finding]:
    trials = opened.tree["trials"].to_dataset()
    training, visible = opened.tier == "train", ~opened.hidden
    population = np.zeros(int(visible.sum()))
    for start in range(0, trials.sizes["neuron"], NEURON_BLOCK):
        block = slice(start, start + NEURON_BLOCK)
        response = np.asarray(trials["response"].isel(neuron=block).values)
        where = f"trials/response, neurons {start} to {start + response.shape[1] - 1}"
        # A NaN has room for 22 bits of anything: only the plain one hides.
        if shown := int((response[opened.hidden].view(np.uint32) != PLAIN_NAN).sum()):
            yield Finding(check="hidden responses", where=where, message=f"{shown} responses of hidden tiers are visible")
        if not np.isfinite(response[visible]).all():
            yield Finding(check="hidden responses", where=where, message="responses of visible tiers are missing")
            return
        yield from _statistics_findings(opened, "response", response[training], block)
        scores = _rank_z(response[visible], np.flatnonzero(visible))
        if (worst := float(np.abs(scores).max(initial=0.0))) > NEURON_Z:
            yield Finding(
                check="order", where=where, message=f"a neuron's responses rise or fall with the trial's number (z = {worst:.1f})"
            )
        population += response[visible].sum(axis=1)
    yield from _order_findings("trials/response, mean over neurons", population, np.flatnonzero(visible))
    images = opened.tree["images"].to_dataset()
    yield from _image_findings(opened, images)
    if opened.rule.shows_behavior:
        for name in ("behavior", "pupil_center"):
            table = np.asarray(trials[name].values)
            yield from _statistics_findings(opened, name, table[training], slice(None))
            hidden = ~np.isin(opened.tier, opened.rule.behavior_tiers)
            if hidden.any() and (table[hidden].view(np.uint32) != PLAIN_NAN).any():
                yield Finding(check="behaviour", where=f"trials/{name}", message="is visible in tiers that must not show it")
            for column in range(table.shape[1]):
                yield from _order_findings(f"trials/{name}, column {column}", table[~hidden, column], np.flatnonzero(~hidden))


def _statistics_findings(opened: _Opened, name: str, training: NDArray[np.float32], block: slice) -> Iterator[Finding]:
    for suffix, expected in (("mean", training.astype(np.float64).mean(axis=0)), ("std", training.astype(np.float64).std(axis=0))):
        stored = np.asarray(opened.tree[f"statistics/{name}_{suffix}"].values)[block]
        if not np.allclose(stored, expected, rtol=1e-4, atol=1e-6 * float(np.abs(expected).max(initial=0.0))):
            yield Finding(check="statistics", where=f"statistics/{name}_{suffix}", message="is not that of the training trials alone")


def _image_findings(opened: _Opened, images: xr.Dataset) -> Iterator[Finding]:
    ids, repeats = np.unique(opened.image_id[opened.tier == "train"], return_counts=True)
    weight = np.zeros(images.sizes["image"])
    weight[np.isin(read_array(opened.tree, "images/image_id"), ids)] = repeats
    total = squares = pixels = 0.0
    for start in range(0, len(weight), IMAGE_BLOCK):
        block = slice(start, start + IMAGE_BLOCK)
        part = np.asarray(images["image"].isel(image=block).values, np.float64)
        total += float(weight[block] @ part.sum(axis=(1, 2)))
        squares += float(weight[block] @ (part**2).sum(axis=(1, 2)))
        pixels += float(weight[block].sum()) * part[0].size
    mean = total / pixels if pixels else np.nan
    std = np.sqrt(max(squares / pixels - mean**2, 0.0)) if pixels else np.nan
    for name, expected in (("image_mean", mean), ("image_std", std)):
        if not np.isclose(float(np.asarray(opened.tree[f"statistics/{name}"].values)), expected, rtol=1e-5):
            yield Finding(check="statistics", where=f"statistics/{name}", message="is not that of the training trials alone")


def _binding_findings(session: PublishedSession, binding: SessionRecord) -> Iterator[Finding]:
    if binding.published() != session:
        yield Finding(check="pointer", where=f"sessions/{session.name}", message="says other things than the private record")


def _sealed_findings(opened: _Opened, sealed: xr.DataTree) -> Iterator[Finding]:
    hidden = opened.hidden
    for name, shown in (("trial_id", opened.trial_id), ("image_id", opened.image_id), ("tier", opened.tier)):
        if not np.array_equal(read_array(sealed, f"trials/{name}"), shown[hidden]):
            yield Finding(check="sealed part", where=f"trials/{name}", message="open and sealed part disagree about the hidden trials")
    if not np.array_equal(read_array(sealed, "neurons/unit_id"), read_array(opened.tree, "neurons/unit_id")):
        yield Finding(check="sealed part", where="neurons/unit_id", message="open and sealed part list other neurons")
    trials = sealed["trials"].to_dataset()
    for start in range(0, trials.sizes["neuron"], NEURON_BLOCK):
        if not np.isfinite(trials["response"].isel(neuron=slice(start, start + NEURON_BLOCK)).values).all():
            yield Finding(check="sealed part", where="trials/response", message="hidden responses are missing")
            return


def _time_findings(opened: _Opened, lab: xr.DataTree, lab_digest: str) -> Iterator[Finding]:
    """Compare the published order with the order of presentation, through the images shown once."""
    released = read_array(lab, "trials/rejection") == ""
    onset, image_id = read_array(lab, "trials/onset")[released], read_array(lab, "trials/image_id")[released]
    drawn = image_id[released_order(lab_digest, len(image_id))] if len(image_id) else image_id
    if not np.array_equal(drawn, opened.image_id):
        yield Finding(check="order in time", where="trials", message="the order is not the one drawn from the lab part")
    ids, first, counts = np.unique(image_id, return_index=True, return_counts=True)
    once = {int(image): float(onset[row]) for image, row, count in zip(ids, first, counts, strict=True) if count == 1}
    places = np.array([place for place, image in enumerate(opened.image_id) if int(image) in once], np.int64)
    if len(places) < 3:
        return
    times = np.array([once[int(image)] for image in opened.image_id[places]])
    for where, variable in (("trials, order of the file", places), ("trials/image_id", opened.image_id[places])):
        score = float(_rank_z(times[:, None], variable)[0])
        if abs(score) > ORDER_Z:
            yield Finding(check="order in time", where=where, message=f"follows the order of presentation (z = {score:.1f})")
    # In a random order about two neighbours in the file were also shown one right after the other; the number is nearly Poisson.
    neighbours = int((np.abs(np.diff(rankdata(times))) == 1).sum())
    if neighbours > 2 + ORDER_Z * 2**0.5 + 3:
        yield Finding(
            check="order in time", where="trials, order of the file", message=f"{neighbours} neighbours were shown one after the other"
        )


def _order_findings(where: str, values: NDArray[np.floating], places: NDArray[np.integer]) -> Iterator[Finding]:
    score = float(_rank_z(values[:, None], places)[0])
    if abs(score) > ORDER_Z:
        yield Finding(check="order", where=where, message=f"rises or falls with the trial's number (z = {score:.1f})")


def _rank_z(table: NDArray[np.floating], places: NDArray[np.integer]) -> NDArray[np.float64]:
    """z-score of the rank correlation of every column of a table (trials, columns) with the places of its rows."""
    if len(table) < 3:
        return np.zeros(table.shape[1])
    ranks = rankdata(table, axis=0)
    ranks -= ranks.mean(axis=0)
    order = rankdata(places)
    order -= order.mean()
    norms = np.sqrt((ranks**2).sum(axis=0) * (order**2).sum())
    correlation = np.divide(order @ ranks, norms, out=np.zeros(table.shape[1]), where=norms > 0)
    return correlation * np.sqrt(len(table) - 1)
