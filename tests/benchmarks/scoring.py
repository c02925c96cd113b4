"""Scoring one submission from its files, beside the server of 2022 (sinzlab/sensorium with neuralpredictors): the same three numbers.

    python tests/benchmarks/scoring.py                                 # this side alone
    python tests/benchmarks/scoring.py --peer PYTHON --sensorium CHECKOUT --neuralpredictors CHECKOUT

The peer reads what was sent in 2022, two CSV files with lists inside their cells; this side reads and checks the .npz file that it takes
itself, with the responses in an .npy file. The environment of the peer: see training.py.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from peer_process import PeerProcess, add_peer_arguments, timed

from sensorium_pipeline.scoring import SessionScore, score_predictions
from sensorium_pipeline.submissions.predictions import Expected, Predictions, read_predictions, write_predictions

GOAL = 289.0
NAMES = {
    "single_trial_correlation": "Single Trial Correlation",
    "correlation_to_average": "Correlation to Average",
    "feve": "FEVE",
}


def write_files(folder: Path, images: int, repeats: int, neurons: int) -> Expected:
    """Responses with a signal, and predictions that follow it, in both formats."""
    rng = np.random.default_rng(0)
    image_id = np.repeat(np.arange(images), repeats)
    signal = rng.gamma(1.0, 1.0, (images, neurons))
    responses = rng.gamma(2.0, signal[image_id] / 2).astype(np.float32)
    prediction = (signal + rng.gamma(1.0, 0.5, signal.shape))[image_id].astype(np.float32)
    trial_id, unit_id = np.arange(len(image_id)), np.arange(1, 2 * neurons, 2)
    for name, column, values in (("submission", "prediction", prediction), ("truth", "responses", responses)):
        table = {
            "trial_indices": trial_id,
            "image_ids": image_id,
            column: values.tolist(),
            "neuron_ids": [unit_id.tolist()] * len(trial_id),
        }
        pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    write_predictions(folder / "submission.npz", Predictions(trial_id, unit_id, prediction))
    np.save(folder / "responses.npy", responses)
    np.save(folder / "image_id.npy", image_id)
    return Expected("benchmark", trial_id, unit_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_peer_arguments(parser)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as area:
        folder = Path(area)
        expected = write_files(folder, arguments.images, arguments.repeats, arguments.neurons)
        precision = np.ones(arguments.neurons, np.float32)
        scores: list[SessionScore] = []

        def score() -> None:
            predictions = read_predictions(folder / "submission.npz", expected, "submission.npz")
            responses = np.load(folder / "responses.npy")
            # The ceiling depends on the responses alone; the peer has none.
            scores.append(
                score_predictions(predictions.prediction, responses, np.load(folder / "image_id.npy"), precision, with_noise_ceiling=False)
            )

        score()
        ours = [timed(score) for _ in range(5)]
        seconds = {clock: min(each[clock] for each in ours) for clock in ("wall", "cpu")}
        size = f"{arguments.images * arguments.repeats} trials x {arguments.neurons} neurons"
        print(f"this side: {seconds['wall']:.3f} s for {size} ({seconds['cpu']:.3f} s of CPU)")
        if not arguments.peer:
            print("No peer at hand (--peer): this side alone.")
            return
        peer = PeerProcess(arguments, submission=folder / "submission.csv", truth=folder / "truth.csv")
        answers = [peer.ask("score_files") for _ in range(arguments.rounds)]
        theirs = {clock: min(each[clock] for each in answers) for clock in ("wall", "cpu")}
        ratios = [theirs[clock] / seconds[clock] for clock in ("wall", "cpu")]
        print(f"the peer: {theirs['wall']:.1f} s ({theirs['cpu']:.1f} s of CPU)")
        print(f"ratio {ratios[0]:.0f}, of CPU time {ratios[1]:.0f} (goal {GOAL:.0f})")
        for name, theirs_name in NAMES.items():
            print(f"{theirs_name}: {scores[0].metrics.value(name):.8f} and {answers[0][theirs_name]:.8f}")
        print(f"{arguments.threads} threads, load of this machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
