"""Energy of a GPU over a stretch of time, from its own counter (NVML, Volta and later). Reading it makes no CUDA context."""

import importlib
from collections.abc import Callable


def start_counting(gpu: int | None) -> Callable[[], float | None]:
    """Begin to count; the returned function gives the joules since then, or None where there is no GPU, no NVML or no counter."""
    before = _millijoules(gpu)

    def joules() -> float | None:
        now = _millijoules(gpu)
        return None if before is None or now is None else (now - before) / 1000

    return joules


def _millijoules(gpu: int | None) -> int | None:
    if gpu is None:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(gpu)))
    except nvml.NVMLError:
        return None
