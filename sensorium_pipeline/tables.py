"""The ranking tables of a release, from the evaluations that are stored; nothing is run and nothing is scored here."""

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.evaluation import EvaluationRecord, Job, latest_evaluation, list_jobs, read_scores
from sensorium_pipeline.rankings.publication import Publication, latest_publication
from sensorium_pipeline.rankings.records import TIER_LABELS, Entry, RankingTable
from sensorium_pipeline.rankings.selection import which_counts
from sensorium_pipeline.rankings.table import rank_submissions
from sensorium_pipeline.scoring import Tier, Track
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.storage import Workspace


def rank(workspace: Workspace, release: Release, track: Track, tier: Tier, previous: Publication | None = None) -> RankingTable:
    """The table of one track on one tier.

    On the live tier every submission is listed; on the final tier the one that counts for each team, and the
    reference baseline.

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
    jobs = [job for job in list_jobs(workspace, release) if job.track == track]
    if tier == "final_test":
        counting = which_counts(_rank(workspace, release, track, "test", jobs, None), {})
        reference = _reference_job(release, track, jobs)
        jobs = [job for job in jobs if counting.get(job.submission.team) == job.submission.digest or job == reference]
    if previous is None:
        previous = latest_publication(workspace.open, release.name)
    return _rank(workspace, release, track, tier, jobs, previous)


def rank_all(workspace: Workspace, release: Release) -> list[RankingTable]:
    """Every table that the release may show now: both tracks, the tiers it has opened."""
    previous = latest_publication(workspace.open, release.name)
    return [rank(workspace, release, track, tier, previous) for track in release.tracks for tier in release.opened_tiers]


def _rank(workspace: Workspace, release: Release, track: Track, tier: Tier, jobs: list[Job], previous: Publication | None) -> RankingTable:
    reference = _reference_job(release, track, jobs)
    return rank_submissions(
        [_entry(workspace, job, tier, reference=job == reference) for job in jobs],
        release=release.name,
        track=track,
        tier=tier,
        sessions={session.name: session.open_digest for session in release.competition_sessions(track)},
        previous=previous.table(track, tier) if previous else None,
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
        failure=evaluation.failure if evaluation else "",
        scores=tuple(score.record for score in scores),
        resampled=tuple(score.resampled for score in scores),
        wall_seconds=_total_seconds(evaluation),
        device_seconds=_total_seconds(evaluation),
    )


def _total_seconds(evaluation: EvaluationRecord | None) -> float | None:
    """Seconds of all runs; each holds one device for as long as it lasts. None where nothing ran here."""
    seconds = sum(run.outcome.wall_seconds for run in evaluation.runs) if evaluation else 0.0
    return seconds or None
