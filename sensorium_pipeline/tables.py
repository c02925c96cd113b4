"""The ranking tables of a release, from the evaluations that are stored; nothing is run and nothing is scored here."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.evaluation import EvaluationRecord, is_current, latest_evaluation
from sensorium_pipeline.hidden_scores import read_scores
from sensorium_pipeline.jobs import Job, list_jobs
from sensorium_pipeline.rankings.publication import Publication, content_digest, latest_publication
from sensorium_pipeline.rankings.records import TIER_LABELS, Entry, RankingTable, Withdrawal
from sensorium_pipeline.rankings.selection import which_counts
from sensorium_pipeline.rankings.table import rank_submissions
from sensorium_pipeline.scoring import Tier, Track
from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.storage import Workspace
from sensorium_pipeline.submissions.inbox import REQUESTS, SUBMISSIONS, Kind, choices, list_submissions, waiting, withdrawals


def rank(workspace: Workspace, release: Release, track: Track, tier: Tier, previous: Publication | None = None) -> RankingTable:
    """The table of one track on one tier.

    On the live tier every submission is listed; on the final tier, of the phases that have opened it, the one that counts for each team
    and the reference baseline. What counts is decided without looking at final scores, and what a team withdraws after they were shown
    gives its place to none of its others.

    Args:
        workspace: needs its inbox, open and sealed stores.
        release: says which sessions count and which tiers are open.
        track: "sensorium" or "sensorium+".
        tier: "test" (live) or "final_test".
        previous: the publication to compare with; the newest one where it is left out.

    Raises:
        OrganiserError: the release has not opened the tier, or has no session of the track.
        InputError: a tier that is never ranked.
    """
    if tier not in ("test", "final_test"):
        raise InputError(f"tier {tier} is not ranked", where="tier", advice="Choose test (live) or final_test.")
    if track not in release.tracks:
        known = ", ".join(release.tracks)
        raise InputError(f"the release has no session of track {track}", where=release.name, advice=f"It has the tracks: {known}.")
    if tier not in release.opened_tiers:
        raise OrganiserError(
            f"the {TIER_LABELS[tier]} tier is not open", where=f"release {release.name}", advice="The organisers open it in the release."
        )
    if previous is None:
        previous = latest_publication(workspace.open, release.name)
    sent = [Job(submission=record, release=release) for record in list_submissions(workspace, release.name, withdrawn=True)]
    sent = [job for job in sent if job.track == track]
    taken_back = withdrawals(workspace)
    gone = {job.identifier: taken_back[job.submission.key] for job in sent if job.submission.key in taken_back}
    jobs = [job for job in sent if job.identifier not in gone]
    if tier == "final_test":
        counting = _counting(workspace, release, track, sent, gone)
        reference = _reference_job(release, track, jobs)
        jobs = [job for job in jobs if job.identifier in counting or (job == reference and _phase(job).final_opened is not None)]
    withdrawn = [
        Withdrawal(team=job.submission.team, model=job.submission.name, submission_digest=job.submission.digest, time=gone[job.identifier])
        for job in sent
        if job.identifier in gone
    ]
    return _rank(workspace, release, track, tier, jobs, previous, withdrawn)


def nothing_new(workspace: Workspace, release: Release, only: Sequence[str] = ()) -> list[str] | None:
    """Identifiers of all submissions where every one is evaluated and the published tables are those of today; else None.

    It takes seconds where an evaluation would first start its services. What waits in the inbox is new, and is not decided here.
    """
    kinds: tuple[Kind, ...] = (SUBMISSIONS, REQUESTS)
    if any(waiting(workspace, kind) for kind in kinds):
        return None
    jobs = list_jobs(workspace, release, only=only)
    before = latest_publication(workspace.open, release.name)
    if before is None or not all(is_current(workspace, job) for job in jobs):
        return None
    today = content_digest(rank_all(workspace, release), final_open="final_test" in release.opened_tiers)
    return [job.identifier for job in jobs] if before.record.content_digest == today else None


def rank_all(workspace: Workspace, release: Release) -> list[RankingTable]:
    """Every table that the release may show now: both tracks, the tiers it has opened."""
    previous = latest_publication(workspace.open, release.name)
    return [rank(workspace, release, track, tier, previous) for track in release.tracks for tier in release.opened_tiers]


def _counting(workspace: Workspace, release: Release, track: Track, sent: list[Job], gone: Mapping[str, datetime]) -> set[str]:
    """Identifiers of the submissions that count on the final tier, as far as their phase has opened it."""
    opened = [job for job in sent if (since := _phase(job).final_opened) is not None and gone.get(job.identifier, since) >= since]
    chosen = choices(workspace, release.name, track)
    found: set[str] = set()
    for after in (False, True):
        group = [job for job in opened if _phase(job).after_competition == after]
        digests = {(job.submission.team, job.submission.digest): job.identifier for job in group}
        own = {team: digest for team, digest in chosen.items() if (team, digest) in digests}
        counting = which_counts(_rank(workspace, release, track, "test", group, None), own)
        found |= {digests[place] for place in counting.items()}
    return found


def _phase(job: Job) -> Phase:
    """The phase in which a submission was received; the first where the release has it no more."""
    return job.release.phase(job.submission.phase) or job.release.phases[0]


def _rank(
    workspace: Workspace,
    release: Release,
    track: Track,
    tier: Tier,
    jobs: list[Job],
    previous: Publication | None,
    withdrawn: Sequence[Withdrawal] = (),
) -> RankingTable:
    reference = _reference_job(release, track, jobs)
    return rank_submissions(
        [_entry(workspace, job, tier, reference=job == reference) for job in jobs],
        release=release.name,
        track=track,
        tier=tier,
        sessions={session.name: session.open_digest for session in release.competition_sessions(track)},
        previous=previous.table(track, tier) if previous else None,
        withdrawn=withdrawn,
    )


def _reference_job(release: Release, track: Track, jobs: list[Job]) -> Job | None:
    """The reference baseline: the first submission of the name that the release gives."""
    name = release.references.get(track)
    return next((job for job in jobs if f"{job.submission.team}/{job.submission.name}" == name), None)


def _entry(workspace: Workspace, job: Job, tier: Tier, *, reference: bool) -> Entry:
    evaluation = latest_evaluation(workspace, job)
    scores = read_scores(workspace, evaluation, tier) if evaluation else []
    return Entry(
        team=job.submission.team,
        model=job.submission.name,
        submission_digest=job.submission.digest,
        track=job.submission.track,
        received=job.submission.submitted_at,
        seeds=tuple(job.submission.seeds),
        reference=reference,
        phase=job.submission.phase,
        after_competition=_phase(job).after_competition,
        failure=evaluation.failure if evaluation else "",
        scores=tuple(score.record for score in scores),
        resampled=tuple(score.resampled for score in scores if score.resampled is not None),
        **_taken(evaluation),
    )


def _taken(evaluation: EvaluationRecord | None) -> dict[str, Any]:
    """What all runs took together; each holds one device for as long as it lasts. Nothing where nothing ran here."""
    outcomes = [run.outcome for run in evaluation.runs if run.outcome.wall_seconds] if evaluation else []
    if not outcomes:
        return {}
    # Rounded: a submission chooses what it takes, and the tables are public.
    seconds = round(sum(outcome.wall_seconds for outcome in outcomes), 1)
    energies = [outcome.energy_joules for outcome in outcomes]
    known = [energy for energy in energies if energy is not None]
    return {
        "wall_seconds": seconds,
        "device_seconds": seconds,
        "energy_joules": round(sum(known)) if len(known) == len(energies) else None,
        "peak_memory_bytes": round(max(outcome.peak_memory_bytes or 0 for outcome in outcomes) / 2**20) * 2**20 or None,
        "isolation": tuple(sorted({outcome.tier for outcome in outcomes})),
    }
