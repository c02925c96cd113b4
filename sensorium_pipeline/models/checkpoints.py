"""The organisers' checkpoints of SENSORIUM 2022, loaded into our modules.

They are plain PyTorch state dictionaries whose keys and shapes say everything but one thing: how many of the layers have a
nonlinearity. The published LN models have three layers, the CNNs four.
"""

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import ConvolutionConfiguration, GaussianConfiguration, ModelConfiguration
from sensorium_pipeline.models.encoder import Encoder, SessionNeurons, load_tensors

_ADVICE = "Give one of the organisers' published state dictionaries (sensorium_ln_model.pth and its like)"

# Their names on the left, ours on the right.
_RENAMED = [
    (r"core\.features\.layer0\.conv\.weight", "core.first.weight"),
    (r"core\.features\.layer(\d+)\.norm\.(\w+)", r"core.norms.\1.\2"),
    (r"core\.features\.layer(\d+)\.ds_conv\.in_depth_conv\.weight", r"core.hidden.\1.inwards.weight"),
    (r"core\.features\.layer(\d+)\.ds_conv\.spatial_conv\.weight", r"core.hidden.\1.spatial.weight"),
    (r"core\.features\.layer(\d+)\.ds_conv\.out_depth_conv\.weight", r"core.hidden.\1.outwards.weight"),
    (r"readout\.([^.]+)\.source_grid", r"readouts.\1.grid"),
    (r"readout\.([^.]+)\.mu_transform\.(\d+)\.(\w+)", r"readouts.\1.position.\2.\3"),
    (r"readout\.([^.]+)\._features", r"readouts.\1.features"),
    (r"readout\.([^.]+)\.(sigma|bias)", r"readouts.\1.\2"),
    (r"shifter\.([^.]+)\.mlp\.(\d+)\.(\w+)", r"shifters.\1.network.\2.\3"),
]
# Constants that our modules compute themselves.
_CONSTANTS = {"core._input_weights_regularizer.laplace.filter"}


def load_checkpoint(path: Path, image_shape: tuple[int, int] | None = None) -> Encoder:
    """An encoder, in evaluation mode, with the weights of one of the organisers' checkpoints.

    Args:
        path: the `.pth` file; read with `weights_only=True`, so nothing in it is executed.
        image_shape: (y, x) of the images it will be used with; the file does not say which scale it was trained at.

    Raises:
        InputError: when the file is no state dictionary, a key is unknown or missing, or a shape does not fit.
    """
    tensors = {_renamed(name, path): value for name, value in _read(path).items() if name not in _CONSTANTS}
    for name in [name for name in tensors if re.fullmatch(r"readouts\.[^.]+\.(features|sigma)", name)]:
        # Theirs carry axes of length one: features (1, channels, 1, neurons), sigma (1, neurons, 2, 2).
        value, axes = tensors[name], 4
        if value.ndim != axes or value.shape[0] != 1 or (name.endswith("features") and value.shape[2] != 1):
            raise InputError(f"{name} has the shape {tuple(value.shape)}", where=path, advice=_ADVICE)
        tensors[name] = value[0, :, 0].T.contiguous() if name.endswith("features") else value[0]
    configuration = _configuration(tensors, path).model_copy(update={"image_shape": image_shape})
    neurons = [
        SessionNeurons(name.split(".")[1], value.numpy(), np.ones(len(value), np.float32))
        for name, value in tensors.items()
        if re.fullmatch(r"readouts\.[^.]+\.grid", name)
    ]
    encoder = Encoder(configuration, neurons, torch.Generator().manual_seed(0))
    load_tensors(encoder, tensors, str(path))
    return encoder.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=path, advice=_ADVICE) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError("this is no PyTorch file that holds nothing but weights", where=path, advice=_ADVICE) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError("this file does not hold a state dictionary (names to tensors)", where=path, advice=_ADVICE)
    return dict(state)


def _renamed(name: str, path: Path) -> str:
    for theirs, ours in _RENAMED:
        if re.fullmatch(theirs, name):
            new = re.sub(theirs, ours, name)
            # Their layer 1 is the first depth-separable one, our hidden.0.
            return re.sub(r"core\.hidden\.(\d+)", lambda match: f"core.hidden.{int(match[1]) - 1}", new)
    raise InputError(f"unknown key {name!r}", where=path, advice=_ADVICE)


def _configuration(tensors: dict[str, Tensor], path: Path) -> ModelConfiguration:
    """Sizes, from shapes alone."""
    layers = len({name for name in tensors if re.fullmatch(r"core\.norms\.\d+\.weight", name)})
    first = tensors.get("core.first.weight")
    spatial = tensors.get("core.hidden.0.spatial.weight")
    position = next((value for name, value in tensors.items() if name.endswith(".position.0.weight")), None)
    shifter = next((value for name, value in tensors.items() if name.endswith(".network.0.weight")), None)
    if first is None or spatial is None or position is None or layers not in (3, 4) or first.ndim != 4 or first.shape[1] not in (1, 4):
        raise InputError("the layers are not those of an LN or CNN baseline of 2022", where=path, advice=_ADVICE)
    core = ConvolutionConfiguration(
        linear=layers == 3, layers=layers, channels=first.shape[0], input_kernel=first.shape[-1], hidden_kernel=spatial.shape[-1]
    )
    return ModelConfiguration(
        core=core,
        readout=GaussianConfiguration(position_features=position.shape[0]),
        behavior=first.shape[1] == 4,
        shifter=shifter is not None,
        shifter_features=5 if shifter is None else shifter.shape[0],
    )
