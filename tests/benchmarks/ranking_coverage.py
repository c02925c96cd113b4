"""Simulate the ranking statistics: coverage of the 95 % intervals, false positives for equal models, and time for a model.

    python tests/benchmarks/ranking_coverage.py [--simulations 300]

The simulated benchmark: 100 images x 10 repeats; a model's error has a part shared by all neurons at an image, a part of its own
for each image and neuron, and neurons differ in how well they are predicted. The truth is the score over very many of both. Two equal
models differ by chance alone. Expected: 0.93 to 0.96 for the score and 0.93 to 0.97 for the paired difference.
"""

import argparse
import os
import time

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.rankings.comparison import compare
from sensorium_pipeline.rankings.resampling import draw, resample_score
from sensorium_pipeline.scoring import score_predictions

REPEATS = 10


def simulate(
    random: np.random.Generator, images: int, neurons: int, models: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Predictions (models, trials, neurons), responses (trials, neurons) and image ids (trials,)."""
    image_id = np.repeat(np.arange(images), REPEATS)
    signal = random.standard_normal((images, neurons))
    quality = random.uniform(0.3, 1.7, neurons)
    noise = random.standard_normal((images * REPEATS, neurons)) * 1.5
    shared = random.standard_normal((models, images, 1))
    own = random.standard_normal((models, images, neurons))
    easy = np.exp(0.5 * random.standard_normal((images, 1)))  # some images drive everybody
    predictions = quality * signal * easy + 0.7 * shared + own
    responses = (signal * easy)[image_id] + noise
    return predictions[:, image_id].astype(np.float32), responses.astype(np.float32), image_id


def coverage(simulations: int, images: int, neurons: int, resamples: int) -> None:
    """Print how often the intervals hold the truth."""
    for metric in ("single_trial_correlation", "correlation_to_average"):
        random = np.random.default_rng(1)
        truth = np.mean(
            [
                score_predictions(p[0], r, i, np.ones(r.shape[1]), with_noise_ceiling=False).metrics.value(metric)
                for p, r, i in (simulate(random, 3000, 300, models=1) for _ in range(6))
            ]
        )
        held, held_difference, best = 0, 0, []
        for simulation in range(simulations):
            predictions, responses, image_id = simulate(random, images, neurons)
            draws = draw("simulated", image_id, neurons, seed=simulation, resamples=resamples)
            scores = [
                score_predictions(p, responses, image_id, np.ones(neurons), with_noise_ceiling=False).metrics.value(metric)
                for p in predictions
            ]
            made = [resample_score(p, responses, image_id, metric, draws) for p in predictions]
            comparison = compare(
                np.array(scores, dtype=np.float64),
                np.stack([r.images for r in made]),
                np.stack([r.neurons for r in made]),
                np.stack([r.both for r in made]),
                degrees_of_freedom=min(images, neurons) - 1,
                seed=simulation,
            )
            held += abs(comparison.half_width[0]) >= abs(scores[0] - truth)
            other = int(np.argmax(comparison.rank))
            held_difference += comparison.difference_half_width[other] >= abs(comparison.difference[other])
            best.append(comparison.p_best[0])
        print(
            f"{metric}: coverage of the score {held / simulations:.3f}, of the paired difference {held_difference / simulations:.3f} "
            f"(false positives of equal models {1 - held_difference / simulations:.3f}); "
            f"P(best) of the first of two equal models: mean {np.mean(best):.2f}, above 0.95 or below 0.05 in "
            f"{np.mean((np.array(best) > 0.95) | (np.array(best) < 0.05)):.3f}; {simulations} simulations",
            flush=True,
        )


def speed() -> None:
    """Print the time of one model at the size of 26872-17-20."""
    random = np.random.default_rng(0)
    predictions, responses, image_id = simulate(random, 100, 7776, models=1)
    draws = draw("26872-17-20", image_id, 7776)
    for metric in ("single_trial_correlation", "correlation_to_average"):
        wall, processor = [], []
        for _ in range(5):
            start, start_processor = time.perf_counter(), time.process_time()
            resample_score(predictions[0], responses, image_id, metric, draws)
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
        # On a busy machine several BLAS threads wait for each other: only together with the load is a time worth anything.
        print(
            f"{metric}: 1000 resamples of 100 images x 7776 neurons in {min(wall):.2f} s (median {np.median(wall):.2f}), processor time "
            f"{min(processor):.2f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, "
            f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
        )
    start = time.perf_counter()
    score_predictions(predictions[0], responses, image_id, np.ones(7776), with_noise_ceiling=False)
    print(f"three metrics, 1000 trials x 7776 neurons: {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--simulations", type=int, default=300)
    arguments = parser.parse_args()
    speed()
    coverage(arguments.simulations, images=100, neurons=150, resamples=400)
