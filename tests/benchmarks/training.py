"""Training beside the peer, sinzlab/sensorium with neuralpredictors: the same data, weights and numbers, phase by phase in turns.

    python tests/benchmarks/training.py                                # this side alone
    python tests/benchmarks/training.py --peer PYTHON --sensorium CHECKOUT --neuralpredictors CHECKOUT
    python tests/benchmarks/training.py --device cuda                  # an epoch on a GPU, against the floor of its memory

PYTHON is the interpreter of an environment of the peer's own; what belongs in it, and how the data are made, says the timing tool
(tools/peers/time_sensorium.py beside the folder of real recordings, or --tool).
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_process import PeerProcess, add_peer_arguments, timed

from sensorium_pipeline.models.baselines import baseline
from sensorium_pipeline.models.checkpoints import load_checkpoint
from sensorium_pipeline.models.encoder import Encoder, SessionNeurons
from sensorium_pipeline.models.inputs import ModelInputs, take
from sensorium_pipeline.training.batches import ResidentSession, ResidentTrials, epoch_batches, resident_session, seeded_generator
from sensorium_pipeline.training.data import SessionData, SessionDescription, Statistics, TrialInputs, Trials
from sensorium_pipeline.training.memory import keep_freed_memory
from sensorium_pipeline.training.parameters import TrainerParameters
from sensorium_pipeline.training.trainer import Trainer, poisson_loss, validation_score

GOALS = {"warm batch": 42.0, "train step": 3.0, "validation objective": 3.6}
BATCH = 128


def read_tree(folder: Path, name: str) -> SessionData:
    """A file tree of 2022, its images at a quarter of their resolution (linear interpolation without anti-aliasing)."""
    meta = lambda path: np.load(folder / "meta" / path)  # noqa: E731
    tiers = meta("trials/tiers.npy")

    def trials(tier: str) -> Trials:
        rows = np.flatnonzero(tiers == tier)
        images = torch.from_numpy(np.stack([np.load(folder / f"data/images/{row}.npy") for row in rows]))
        small = torch.nn.functional.interpolate(images, scale_factor=0.25, mode="bilinear", recompute_scale_factor=False)
        return Trials(TrialInputs(small[:, 0].numpy()), np.stack([np.load(folder / f"data/responses/{row}.npy") for row in rows]))

    statistics = Statistics(
        *(float(meta(f"statistics/images/all/{part}.npy")) for part in ("mean", "std")),
        *(meta(f"statistics/responses/all/{part}.npy") for part in ("mean", "std")),
    )
    training = trials("train")
    positions, units = meta("neurons/cell_motor_coordinates.npy"), meta("neurons/unit_ids.npy")
    description = SessionDescription(name, units, positions, training.inputs.images.shape[1:], statistics)
    return SessionData(description, training, trials("validation"))


class Ours:
    """This side: what the trainer does in a step and after an epoch."""

    def __init__(self, sessions: list[SessionData]) -> None:
        keep_freed_memory()
        configuration = baseline("cnn", "sensorium")
        self.encoder = Encoder.for_sessions(configuration, [s.description for s in sessions], seeded_generator(0, "weights"))
        self.sessions = [resident_session(configuration, session, "cpu") for session in sessions]
        self.first = [torch.arange(min(BATCH, len(session.training))) for session in self.sessions]
        self.noise = seeded_generator(0, "positions")
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=0.009)

    def load_batches(self) -> int:
        batches = 0
        for step in epoch_batches(self.sessions, BATCH, seeded_generator(0, "order")):
            for session, trials in zip(self.sessions, step, strict=True):
                session.training.inputs.select(trials)
                take(session.training.responses, trials)
                batches += 1
        return batches

    def loss(self, encoder: Encoder, session: ResidentSession, trials: torch.Tensor, noise: torch.Generator | None) -> torch.Tensor:
        rates = encoder(session.name, session.training.inputs.select(trials), noise)
        scale = math.sqrt(len(session.training) / len(trials))
        return scale * poisson_loss(rates, take(session.training.responses, trials)) + encoder.regularizer(session.name)

    def step(self) -> None:
        self.encoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        for session, trials in zip(self.sessions, self.first, strict=True):
            self.loss(self.encoder, session, trials, self.noise).backward()
        self.optimizer.step()

    def validation(self) -> float:
        return validation_score(self.encoder, self.sessions, BATCH)

    def reference(self, weights: Path) -> dict[str, Any]:
        """What the peer's weights give here."""
        encoder = load_checkpoint(weights, self.encoder.configuration.image_shape)
        score = validation_score(encoder, self.sessions, BATCH)
        encoder.train()
        with torch.no_grad():
            losses = {s.name: float(self.loss(encoder, s, trials, None)) for s, trials in zip(self.sessions, self.first, strict=True)}
        return {"losses": losses, "score": score}


def side_by_side(arguments: argparse.Namespace, data: Path) -> None:
    """Print milliseconds of both sides, their ratios and how far their numbers agree."""
    peer = None
    if arguments.peer:
        peer = PeerProcess(arguments, data=data, weights=data / "peer_weights.pth", batch=BATCH)
        peer.ask("prepare_training")
    folders = sorted(data.glob("static*"))
    # The peer names a session by animal, session and scan.
    ours = Ours([read_tree(folder, "-".join(folder.name.removeprefix("static").split("-")[:3])) for folder in folders])
    batches, mice = ours.load_batches(), len(folders)
    phases: dict[str, tuple[str, Callable[[], Any], int]] = {
        "warm batch": ("load_batches", ours.load_batches, batches),
        "train step": ("step", ours.step, mice),
        "validation objective": ("validation", ours.validation, 1),
    }
    if peer is None:
        print("No peer at hand (--peer): this side alone.")
    else:
        theirs, here = peer.ask("reference"), ours.reference(data / "peer_weights.pth")
        for name, loss in theirs["losses"].items():
            off = abs(here["losses"][name] / loss - 1)
            print(
                f"loss of a training step of {name}, same weights: {loss:.2f} and {here['losses'][name]:.2f}, relative difference {off:.1e}"
            )
        print(f"validation objective, same weights: {theirs['score']:.8f} and {here['score']:.8f}")
    print(f"{'milliseconds, the best of ' + str(arguments.rounds):30}{'ours':>10}{'peer':>10}{'ratio':>8}{'ratio CPU':>11}{'goal':>7}")
    for phase, (request, work, share) in phases.items():
        work()
        measured: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(arguments.rounds):
            measured["ours"].append(timed(work))
            if peer is not None:
                measured["peer"].append(peer.ask(request))
        best = {side: {clock: min(run[clock] for run in runs) for clock in ("wall", "cpu")} for side, runs in measured.items() if runs}
        line = f"{phase:30}{best['ours']['wall'] / share * 1e3:10.2f}"
        if peer is not None:
            ratios = [best["peer"][clock] / best["ours"][clock] for clock in ("wall", "cpu")]
            line += f"{best['peer']['wall'] / share * 1e3:10.2f}{ratios[0]:8.1f}{ratios[1]:11.1f}{GOALS[phase]:7.1f}"
        print(line, flush=True)
    print(f"{mice} mice, batch {BATCH}, {arguments.threads} threads, load of this machine {os.getloadavg()[0]:.1f}")


def resident_at_random(name: str, neurons: int, trials: int, device: str) -> ResidentSession:
    """A session of the real size, drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)

    def part(number: int) -> ResidentTrials:
        images = torch.randn(number, 1, 36, 64, generator=generator, device=device)
        return ResidentTrials(ModelInputs(images), torch.rand(number, neurons, generator=generator, device=device))

    return ResidentSession(name, part(trials), part(max(trials // 10, 2)))


def bytes_a_batch(batch: int, layers: int = 4, channels: int = 64, maps: tuple[int, int] = (28, 56)) -> int:
    """Bytes that the core's layers must move at least for one batch, each as a kernel of its own, in float32.

    Forward: a convolution reads and writes an array of activations; normalisation with ELU reads twice and writes once. Backward: a
    convolution reads two arrays for each of its two gradients and writes one; normalisation with ELU reads four and writes one. The first
    convolution reads the image, which is small.
    """
    array = 4 * batch * channels * maps[0] * maps[1]
    convolutions = 3 * (layers - 1)
    forward = convolutions * 2 + 1 + layers * 3
    backward = convolutions * 5 + 2 + layers * 5
    return (forward + backward) * array


def memory_bandwidth(device: str) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(10):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best


def epoch_on_gpu(device: str, mice: int, neurons: int, trials: int, epochs: int) -> None:
    """Print seconds of an epoch of the 2022 CNN, and the share of the floor that the device's memory sets."""
    sessions = [resident_at_random(f"mouse-{n}", neurons, trials, device) for n in range(mice)]
    rng = np.random.default_rng(0)
    described = [
        SessionNeurons(s.name, rng.uniform(-1, 1, (neurons, 2)).astype(np.float32), np.ones(neurons, np.float32)) for s in sessions
    ]
    encoder = Encoder(baseline("cnn", "sensorium", {"image_shape": (36, 64)}), described, seeded_generator(0, "weights")).to(device)
    trainer = Trainer(encoder, sessions, TrainerParameters(epochs=epochs + 1, batch_size=BATCH), seed=0)
    result = trainer.train()
    seconds = np.diff([epoch.seconds for epoch in result.epochs])
    steps = mice * -(-trials // BATCH)
    bandwidth = memory_bandwidth(device)
    floor = steps * bytes_a_batch(BATCH) / bandwidth
    print(f"{torch.cuda.get_device_name(device)}: copies at {bandwidth / 1e12:.2f} TB/s")
    print(f"epoch of {mice} mice x {neurons} neurons x {trials} images, validation included: {min(seconds):.3f} s (goal 0.6 s)")
    print(f"floor {floor:.3f} s ({bytes_a_batch(BATCH) / 1e9:.1f} GB a batch): {floor / min(seconds):.0%} of it is reached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_peer_arguments(parser)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "sensorium-benchmark", help="made once, kept")
    parser.add_argument("--mice", type=int, default=2)
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--trials", type=int, default=1024, help="training images of a mouse")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cuda: time epochs on a GPU (take --mice 5 --trials 5000)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":
        if not torch.cuda.is_available():
            print("skipped: there is no GPU on this machine")
            return
        epoch_on_gpu(arguments.device, arguments.mice, arguments.neurons, arguments.trials, arguments.rounds)
        return
    data = arguments.data / f"{arguments.mice}-{arguments.neurons}-{arguments.trials}"
    if not list(data.glob("static*")):
        if not arguments.tool.is_file():
            print(f"skipped: {arguments.tool} does not exist, and it makes the data")
            return
        make = ["make", "--root", data, "--mice", arguments.mice, "--neurons", arguments.neurons, "--train", arguments.trials]
        subprocess.run([sys.executable, arguments.tool, *map(str, make)], check=True, stdout=subprocess.DEVNULL)
    side_by_side(arguments, data)


if __name__ == "__main__":
    main()
