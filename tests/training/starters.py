"""What `sensorium new-submission` writes, as modules; and how well a model knows the true rates."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

from sensorium_pipeline.submissions.package import load_submission, new_submission


def starter(folder: Path, template: str) -> ModuleType:
    """The module that a fresh starter's entry point names."""
    new_submission(folder, template)
    entry_point = load_submission(folder).entry_point
    assert entry_point == "model:build"
    specification = importlib.util.spec_from_file_location(f"starter_{template}", folder / "model.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def correlation(prediction: np.ndarray, rates: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(prediction[:, n], rates[:, n])[0, 1] for n in range(rates.shape[1])]))
