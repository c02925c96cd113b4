"""Deconvolution against simultaneous electrophysiology: the protocol is that of the benchmark."""

import importlib.util
from pathlib import Path

import pytest

from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters


@pytest.mark.parametrize(
    ("name", "binned", "fine"),
    [("DS09-GCaMP6f-m-V1", 0.82, 0.775), ("DS14-GCaMP6s-m-V1", 0.88, 0.84), ("DS16-GCaMP6s-m-V1", 0.775, 0.578)],
)
def test_activity_agrees_with_recorded_spikes(test_data: Path, name: str, binned: float, fine: float) -> None:
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks/deconvolution.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    folder = test_data / "twophoton/ephys_ground_truth" / name
    _, found, found_fine = benchmark.accuracy(folder, benchmark.ours(DeconvolutionParameters()))
    assert found > binned
    assert found_fine > fine
