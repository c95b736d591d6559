"""Write and read a checkpoint of the warm-up: trainable parameters and Adam moments, each by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gtp_exp.errors import UserError
from gtp_exp.files import write_json
from gtp_exp.model.parameters import trainable_parameters

TRAINABLE = "trainable.safetensors"
MOMENTS = "moments.safetensors"
ABOUT = "checkpoint.json"
_BLOCK = 256  # values that share a scale in bitsandbytes's eight-bit moments


@dataclass(frozen=True)
class Checkpoint:
    """Names a finished checkpoint on disk, and says where in the training it was taken."""

    directory: Path
    step: int  # optimizer steps taken so far
    learning_rate: float  # mean over the steps of the segment that ends here


@dataclass(frozen=True)
class Moments:
    """Holds Adam's running means of the gradient and of its square, fp32, in the parameter's shape."""

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


def save_checkpoint(
    directory: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    learning_rate: float,
    moments: bool = True,
) -> Checkpoint:
    """Write parameters, moments and checkpoint.json; the last file written marks the checkpoint complete.

    moments: False for an optimizer that keeps none; directions that read them then cannot be had.

    The optimizer may be wrapped (Accelerate, Trainer). Its own numbering of parameters is never used:
    state is looked up by parameter object, so the order of parameter groups does not matter.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    parameters = trainable_parameters(model)
    if not parameters:
        raise UserError("the model has no trainable parameter, so there is no checkpoint to save")
    tensors = _moments_by_name(optimizer, parameters, step) if moments else {}
    values = {name: _host(p) for name, p in parameters.items()}
    return _write(directory, values, tensors, step, learning_rate)


def _moments_by_name(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], step: int
) -> dict[str, torch.Tensor]:
    """Return both moments of every parameter, fp32 in the memory of the processor, as they are stored.

    Those of a parameter that has taken part in no step, as a model may have, are zero.
    """
    tensors = {}
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter) or {}
        if not state and optimizer.state and id(parameter) in own:
            tensors |= _no_moments(name, parameter)
            continue
        found = moments_of(state)
        if found is None:
            raise UserError(
                f"the optimizer ({type(optimizer).__name__}) has no Adam moments for {name}; it takes "
                "Adam or AdamW over this very model, after at least one step"
            )
        if found.exp_avg.shape != parameter.shape:
            raise UserError(
                f"the moments of {name} have shape {tuple(found.exp_avg.shape)}, the parameter "
                f"{tuple(parameter.shape)}; sharded optimizers must be gathered first"
            )
        if int(state["step"]) != step:
            raise UserError(
                f"step={step} but Adam has taken {int(state['step'])} steps on {name}; bias correction needs "
                "the number of optimizer steps"
            )
        tensors[f"exp_avg.{name}"] = _host(found.exp_avg).float()
        tensors[f"exp_avg_sq.{name}"] = _host(found.exp_avg_sq).float()
    return tensors


def moments_of(state: Mapping[str, Any]) -> Moments | None:
    """Return the moments in an optimizer's state of one parameter, or None where there are none: those of
    torch's Adam, or of bitsandbytes's, in eight bits or (of small parameters) in 32."""
    if "exp_avg" in state and "exp_avg_sq" in state:
        return Moments(state["exp_avg"], state["exp_avg_sq"])
    if "state1" not in state or "state2" not in state:
        return None
    return Moments(*(_from_eight_bits(state, number) for number in (1, 2)))


def _from_eight_bits(state: Mapping[str, Any], number: int) -> torch.Tensor:
    """Return a moment of bitsandbytes's: each byte names a value of the map, times the scale of its block."""
    stored = state[f"state{number}"]
    if stored.dtype is not torch.uint8:
        return stored
    values = state[f"qmap{number}"][stored.flatten().long()]
    scales = state[f"absmax{number}"].repeat_interleave(_BLOCK)[: len(values)]
    return (values * scales).view(stored.shape)


def save_untuned(
    directory: Path, parameters: Mapping[str, torch.Tensor], *, learning_rate: float
) -> Checkpoint:
    """Write the parameters that the warm-up begins with, with Adam's moments before its first step: zero.

    learning_rate: mean over the steps of the first epoch, which goes away from here.
    """
    moments: dict[str, torch.Tensor] = {}
    for name, value in parameters.items():
        moments |= _no_moments(name, value)
    return _write(directory, parameters, moments, 0, learning_rate)


def _no_moments(name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the moments of a parameter before any step."""
    return {f"{moment}.{name}": torch.zeros(parameter.shape) for moment in ("exp_avg", "exp_avg_sq")}


def host_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the trainable parameters by name, in the memory of the processor."""
    return {name: _host(p).clone() for name, p in trainable_parameters(model).items()}


def _write(
    directory: Path,
    parameters: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    step: int,
    learning_rate: float,
) -> Checkpoint:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(parameters), directory / TRAINABLE)
    save_file(dict(moments), directory / MOMENTS)
    write_json(directory / ABOUT, {"step": step, "learning_rate": learning_rate})
    return Checkpoint(directory=directory, step=step, learning_rate=learning_rate)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Return the checkpoint in a directory, its tensors unread. Raise UserError if it is unfinished."""
    about = directory / ABOUT
    if not about.is_file():
        raise UserError(f"{directory} is not a finished checkpoint: {ABOUT} is missing")
    values = json.loads(about.read_text())
    return Checkpoint(directory=directory, step=values["step"], learning_rate=values["learning_rate"])


def load_trainable(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the checkpoint's parameters into the model; names and shapes must match exactly."""
    parameters = trainable_parameters(model)
    stored = load_file(checkpoint.directory / TRAINABLE)
    _check_names(stored, parameters, checkpoint.directory / TRAINABLE)
    with torch.no_grad():
        for name, parameter in parameters.items():
            _check_shape(name, stored[name], parameter.shape, checkpoint.directory / TRAINABLE)
            parameter.copy_(stored[name])


def load_moments(
    checkpoint: Checkpoint, names: Sequence[str], device: torch.device | str
) -> dict[str, Moments]:
    """Return the moments of the named parameters, fp32 on the device. `check_moments` checks their shapes."""
    path = checkpoint.directory / MOMENTS
    moments = {}
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        for name in names:
            keys = f"exp_avg.{name}", f"exp_avg_sq.{name}"
            if missing := [key for key in keys if key not in stored]:
                raise UserError(f"{path} lacks {', '.join(missing)}; it belongs to another model or adapter")
            first, second = (file.get_tensor(key).to(device, torch.float32) for key in keys)
            moments[name] = Moments(exp_avg=first, exp_avg_sq=second)
    return moments


def check_moments(
    moments: Mapping[str, Moments], parameters: Mapping[str, torch.nn.Parameter], checkpoint: Checkpoint
) -> None:
    """Raise UserError for a moment that is not of its parameter's shape.

    One transposed or numbered anew would go unnoticed: as many values, with another meaning.
    """
    path = checkpoint.directory / MOMENTS
    for name, parameter in parameters.items():
        _check_shape(f"exp_avg.{name}", moments[name].exp_avg, parameter.shape, path)
        _check_shape(f"exp_avg_sq.{name}", moments[name].exp_avg_sq, parameter.shape, path)


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _check_names(stored: Mapping[str, object], wanted: Mapping[str, object], path: Path) -> None:
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        raise UserError(
            f"{path} does not fit the model: {len(missing)} parameters missing {missing[:3]}, "
            f"{len(extra)} not in the model {extra[:3]}; use the adapter settings it was trained with"
        )


def _check_shape(name: str, tensor: torch.Tensor, shape: torch.Size, path: Path) -> None:
    if tensor.shape != shape:
        raise UserError(f"{path}: {name} has shape {tuple(tensor.shape)}, the model's is {tuple(shape)}")
