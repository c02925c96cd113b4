"""Entries as an evaluation leaves them, with numbers like those of 2022: for tests, and for looking at the page."""

from datetime import UTC, datetime, timedelta

import numpy as np

from sensorium_pipeline.rankings import Entry, ResampledScore
from sensorium_pipeline.scoring import METRIC_VERSION, Metrics, RepeatCounts, ScoreRecord, primary_metric
from sensorium_pipeline.storage import digest_of

SESSIONS = {"sensorium": {"static26872-17-20": "d1" * 32}, "sensorium+": {"static27204-5-13": "d2" * 32}}
MODELS = (
    # team, model, single trial, average, FEVE
    ("Organisers", "CNN baseline", 0.274, 0.513, 0.433),
    ("Organisers", "LN baseline", 0.197, 0.363, 0.222),
    ("Cortex Cartographers", "Dual-stream ensemble of ten", 0.316, 0.589, 0.527),
    ("V1 Appreciation Society", "ViT core with seven mice", 0.315, 0.586, 0.519),
    ("Gabor & Sons", "Energy model, steerable pyramid", 0.246, 0.461, 0.371),
    ("tübingen-nord", "Rotation-equivariant CNN", 0.309, 0.577, 0.511),
    ("one-person lab", "CNN + squeeze-excitation", 0.289, 0.541, 0.468),
    ("Neuropil Anonymous", "Task-pretrained ConvNeXt features", 0.2885, 0.5395, 0.455),
)
RECEIVED = datetime(2026, 10, 1, 9, 30, tzinfo=UTC)
RESAMPLES = 200


def make_score(submission, track="sensorium", session="static26872-17-20", tier="test", seed=0, **changes):
    known = {
        "submission_digest": submission,
        "track": track,
        "session": session,
        "tier": tier,
        "seed": seed,
        "open_digest": SESSIONS[track].get(session, "d3" * 32),
        "responses_digest": "5e" * 32,
        "predictions_digest": digest_of(["predictions", submission, session, seed]),
        "environment_digest": "e0" * 32,
        "code_version": "0.1.0",
        "device_class": "cuda",
        "metric_version": METRIC_VERSION,
        "metrics": Metrics(single_trial_correlation=0.3, correlation_to_average=0.5, feve=0.4),
        "noise_ceiling": Metrics(single_trial_correlation=0.41, correlation_to_average=0.79),
        "neurons": 7776,
        "feve_neurons": 5102,
        "images": 100,
        "trials": 990,
        "repeats": RepeatCounts(fewest=8, most=10),
    }
    return ScoreRecord(**(known | changes))


def make_resampled(score, spread=0.012, resampling_seed=0):
    """Draws of which most is shared by all models, as odd images are odd for everybody."""
    metric = primary_metric(score.track)
    shared = np.random.default_rng(11).standard_normal((2, RESAMPLES))
    own = np.random.default_rng(int(digest_of(score)[:12], 16)).standard_normal((3, RESAMPLES))
    images, neurons = shared * [[0.8], [0.25]] + own[:2] * [[0.22], [0.06]]
    value = score.metrics.value(metric)
    return ResampledScore(
        score_digest=digest_of(score),
        metric=metric,
        resampling_seed=resampling_seed,
        image_count=score.images,
        neuron_count=score.neurons,
        images=tuple(value + spread * images),
        neurons=tuple(value + spread * neurons),
        both=tuple(value + spread * (images + neurons + 0.05 * own[2])),
    )


def make_entry(team, model, scores=(), **changes):
    scored = [score for score in scores if score.status == "scored"]
    defined = [score for score in scored if score.metrics.value(primary_metric(score.track)) is not None]
    known = {
        "team": team,
        "model": model,
        "submission_digest": scores[0].submission_digest if scores else digest_of([team, model]),
        "track": scores[0].track if scores else "sensorium",
        "received": RECEIVED,
        "seeds": tuple(sorted({score.seed for score in scores if score.seed is not None})) or (0,),
        "scores": tuple(scores),
        "resampled": tuple(make_resampled(score) for score in defined),
    }
    return Entry(**(known | changes))


def make_entries(track="sensorium", tier="test"):
    """Eight ranked submissions, a crashed one, a prying one and one whose evaluation is under way."""
    session = next(iter(SESSIONS[track]))
    up = 1.0 if track == "sensorium" else 1.31
    up *= 1.0 if tier == "test" else 1.03
    entries = []
    for place, (team, model, single, average, feve) in enumerate(MODELS):
        submission = digest_of([team, model, track])
        scores = []
        for seed in (None, 0, 1, 2):
            jitter = 0.0 if seed is None else 0.0009 * np.random.default_rng([place, seed]).standard_normal()
            metrics = Metrics(
                single_trial_correlation=up * single + jitter, correlation_to_average=up * average + jitter, feve=feve + jitter
            )
            scores.append(make_score(submission, track, session, tier, seed, metrics=metrics))
        entries.append(
            make_entry(
                team,
                model,
                scores,
                reference=model == "CNN baseline",
                received=RECEIVED + timedelta(days=3 * place, hours=place),
                wall_seconds=220.0 + 310 * place,
                device_seconds=190.0 + 290 * place,
            )
        )
    crash = "It stopped in train(): KeyError: 'behavior', line 41 of model.py."
    pried = "It predicted nothing: the file it tried to open does not exist for it."
    broken = {"received": RECEIVED + timedelta(days=20), "track": track}
    entries.append(make_entry("Late Night Commits", "Transformer v7 final FINAL", failure=crash, **broken))
    entries.append(make_entry("Shortcut Ltd", "Oracle", failure=pried, **broken))
    entries.append(make_entry("Patience", "Large language cortex", **broken))
    return entries
