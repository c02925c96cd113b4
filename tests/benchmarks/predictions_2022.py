"""Reading a submission of SENSORIUM 2022, beside how it was read in 2022: pandas and `ast.literal_eval`.

    python tests/benchmarks/predictions_2022.py                    # 990 trials x 7776 neurons, as in session 26872-17-20
    python tests/benchmarks/predictions_2022.py --trials 100 --peer-rows 20

The files are written as the tutorial of 2022 wrote them. The peer's time is that of its first rows, times the number of rows, as it takes
minutes and gigabytes for all. Reading stored predictions (.npz), which is what every later scoring does, stands beside it.
"""

import argparse
import ast
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from sensorium_pipeline.submissions.csv_2022 import FILES, Trials2022, read_2022
from sensorium_pipeline.submissions.predictions import Expected, Predictions, read_predictions, write_predictions


def write_files(folder: Path, trials: int, neurons: int) -> Trials2022:
    """Both files with random predictions, half of the trials in each."""
    rng = np.random.default_rng(0)
    tier = np.where(np.arange(2 * trials) < trials, "test", "final_test")
    names = np.array([f"{int.from_bytes(rng.bytes(16)):032x}" for _ in tier])
    made = Trials2022("26872-17-20", names, np.arange(2 * trials), rng.integers(1, 9999, 2 * trials), tier, np.arange(1, 2 * neurons, 2))
    for name, file in FILES.items():
        rows = np.flatnonzero(tier == name)
        frames = []
        for row in rows:
            prediction = rng.gamma(2, 0.2, neurons).astype(np.float32)
            columns = {"trial_indices": [names[row]], "image_ids": [made.image_id[row]], "prediction": [prediction.tolist()]}
            frames.append(pd.DataFrame({**columns, "neuron_ids": [made.unit_id.tolist()]}))
        pd.concat(frames).to_csv(folder / file, index=False)
    return made


def read_as_in_2022(path: Path, rows: int) -> np.ndarray:
    """Predictions (rows, neurons) of the first rows, put in the order of neurons and trials as the server of 2022 did."""
    table = pd.read_csv(path, nrows=rows)
    prediction = np.array([ast.literal_eval(text) for text in table["prediction"]])
    neurons = np.array([ast.literal_eval(text) for text in table["neuron_ids"]])
    return np.take_along_axis(prediction, neurons.argsort(axis=1), axis=1).astype(np.float32)


def main() -> None:
    """Write files, time both ways, compare what they read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=990, help="trials of each file")
    parser.add_argument("--neurons", type=int, default=7776, help="neurons of the session")
    parser.add_argument("--peer-rows", type=int, default=50, help="rows that pandas and literal_eval read")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is shown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials = write_files(folder, options.trials, options.neurons)
        size = sum((folder / file).stat().st_size for file in FILES.values())
        ours, read = best(options.repeats, lambda: read_2022(folder, trials))
        write_predictions(folder / "stored.npz", Predictions(trials.trial_id, trials.unit_id, read.prediction))
        expected = Expected(trials.session, trials.trial_id, trials.unit_id)
        stored, _ = best(options.repeats, lambda: read_predictions(folder / "stored.npz", expected, "stored.npz"))
        rows = min(options.peer_rows, options.trials)
        peer, theirs = best(1, lambda: read_as_in_2022(folder / FILES["test"], rows))
        peer *= 2 * options.trials / rows
        assert np.array_equal(theirs, read.prediction[:rows]), "the two read other numbers"
    print(f"{2 * options.trials} trials x {options.neurons} neurons, {size / 1e6:.0f} MB of CSV; the same numbers to the last digit")
    for what, seconds in (("pandas + literal_eval", peer), ("read_2022", ours), ("read_predictions (.npz)", stored)):
        print(f"{what:24} {seconds:8.2f} s  {size / 1e6 / seconds:8.1f} MB/s of CSV  {peer / seconds:7.1f} x")


def best(repeats: int, run):
    """Shortest time in seconds, and what the last run returned."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begun)
    return min(times), result


if __name__ == "__main__":
    main()
