"""The peer's side of ../training.py and ../scoring.py: runs in the peer's own environment and does one phase for each line it reads.

A request is a line of JSON with the name of a phase; the answer is a line of JSON with wall and CPU seconds and what was computed. Both
sides take turns phase by phase, so that whatever else the machine does slows both.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np


class Peer:
    """sinzlab/sensorium and neuralpredictors, imported and set up by the timing tool that is handed in."""

    def __init__(self, job: dict) -> None:
        specification = importlib.util.spec_from_file_location("time_sensorium", job["tool"])
        self.tool = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.tool)
        self.tool.shim(job["sensorium"], job["neuralpredictors"])
        self.job = job

    def prepare_training(self) -> dict:
        """Loaders, model and one batch of each session in hand."""
        import torch
        from neuralpredictors.measures import modules
        from neuralpredictors.training import LongCycler
        from sensorium.models import stacked_core_full_gauss_readout

        torch.set_num_threads(self.job["threads"])
        paths = sorted(Path(self.job["data"]).glob("static*"))
        self.loaders = self.tool.load_shared(paths, self.job["batch"], "cpu", 0.25)
        self.cycler = LongCycler
        self.model = stacked_core_full_gauss_readout(self.loaders, 42, **self.tool.MODEL)
        self.criterion = modules.PoissonLoss(avg=False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.009)
        self.load_batches()  # reads files and fills the cache
        self.batches = {}
        for name, loader in self.loaders["train"].items():
            trials = np.flatnonzero(loader.dataset.trial_info.tiers == "train")[: self.job["batch"]]
            points = [loader.dataset[int(trial)] for trial in trials]
            self.batches[name] = [torch.stack([point[i] for point in points]) for i in (0, 1)]
        return {}

    def loss(self, name: str, **options: object) -> "torch.Tensor":  # noqa: F821
        """The loss of a session's batch, as its trainer computes it."""
        images, responses = self.batches[name]
        # Its trainer takes the trials of all tiers here, this side those of training; for the same loss it must be the same number.
        scale = np.sqrt(len(self.loaders["train"][name].sampler) / len(images))
        loss = scale * self.criterion(self.model(images, data_key=name, **options), responses)
        return loss + self.model.core.regularizer() + self.model.readout.regularizer(name)

    def reference(self) -> dict:
        """Weights, and the numbers that must come out of them on the other side."""
        import torch

        # The checkpoints that were published have no biases in depth-separable layers.
        biases = [name for name, _ in self.model.named_parameters() if ".ds_conv." in name and name.endswith(".bias")]
        for name in biases:
            self.model.get_parameter(name).data.zero_()
        torch.save({name: value for name, value in self.model.state_dict().items() if name not in biases}, self.job["weights"])
        validation = self.validation()
        self.model.train()
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        with torch.no_grad():
            # At the mean positions: drawn ones would be drawn otherwise on the other side.
            losses = {name: float(self.loss(name, sample=False)) for name in self.batches}
        self.model.load_state_dict(state)
        return {"losses": losses, **validation}

    def load_batches(self) -> dict:
        """One pass over the training batches, as the trainer takes them."""
        return {"batches": sum(1 for _ in self.cycler(self.loaders["train"]))}

    def step(self) -> dict:
        """One batch of every session, and a step of Adam."""
        self.model.train()
        for name in self.batches:
            self.loss(name).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {}

    def validation(self) -> dict:
        """The validation objective of early stopping."""
        from sensorium.utility import scores

        self.model.eval()
        return {"score": float(scores.get_correlations(self.model, self.loaders["validation"], device="cpu", per_neuron=False))}

    def score_files(self) -> dict:
        """A submission's CSV file and the ground truth's to three numbers, as the server of 2022 read them."""
        from sensorium.utility.eval import evaluate

        return {name: float(value) for name, value in evaluate(self.job["submission"], self.job["truth"]).items()}


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = Peer(json.loads(sys.argv[1]))
    for line in sys.stdin:
        phase = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        found = getattr(peer, phase)()
        answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **found}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
