"""Checkpoints that survive a kill at any moment: a folder is written aside and swapped in
by renaming.

run/model.safetensors             averaged weights, each member's best: the ones to use
run/checkpoint/last.safetensors   weights, their average and the best so far
run/checkpoint/GROUP.safetensors  what else a subclass of the trainer keeps
run/checkpoint/optimizer.pt       moments of the optimiser, sums of the unfinished epoch
run/checkpoint/state.json         epoch, batch, step, scores
"""

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from race.config import ModelConfig
from race.errors import RaceError
from race.files import write_atomic, writing

MODEL = "model"  # in the metadata of a file of weights


def write_tensors(path: Path, tensors: dict[str, Tensor], model: ModelConfig | None = None) -> None:
    """safetensors, contiguous and on the CPU; with the options of the model that they are of."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": "race-run/1"}
    if model is not None:
        about[MODEL] = model.model_dump_json()
    write_atomic(path, save(stored, metadata=about))


def model_of_weights(path: Path) -> dict[str, Any]:
    """The options of the model that weights are of, where their file has them."""
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get(MODEL, "{}")))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of `write_tensors`.

    Raises:
        RaceError: there is no such file, or it is damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise RaceError("no such file", where=path) from None
    except SafetensorError as error:
        raise RaceError(
            f"not a safetensors file ({str(error).splitlines()[0]})", where=path
        ) from None


def save_checkpoint(
    run: Path,
    weights: dict[str, dict[str, Tensor]],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    more: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Replaces run/checkpoint by a new one; `weights` are groups such as {"weights": {name:
    tensor}, "average": {...}}.

    `more`: further groups, a file each: writing a file takes as much memory as it is long.
    """
    folder, aside, old = run / "checkpoint", run / ".checkpoint.new", run / ".checkpoint.old"
    shutil.rmtree(aside, ignore_errors=True)
    with writing(aside):
        aside.mkdir(parents=True)
    flat = {
        f"{group}/{name}": tensor
        for group, part in weights.items()
        for name, tensor in part.items()
    }
    write_tensors(aside / "last.safetensors", flat)
    for group, tensors in (more or {}).items():
        write_tensors(aside / f"{group}.safetensors", tensors)
    # torch's own writer does not say that a disk is full
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    write_atomic(aside / "optimizer.pt", buffer.getvalue())
    # As it is: a score of a member without an epoch yet is infinite
    write_atomic(aside / "state.json", json.dumps(state).encode())
    with writing(folder):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def mend_checkpoint(run: Path) -> None:
    """Completes what a kill between the two renamings of `save_checkpoint` left undone."""
    folder, old = run / "checkpoint", run / ".checkpoint.old"
    if not folder.exists() and old.exists():
        os.rename(old, folder)


def has_checkpoint(run: Path) -> bool:
    """Whether there is one to continue from."""
    return (run / "checkpoint").exists()


def load_checkpoint(
    run: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """The three arguments of `save_checkpoint`, `more` among the weights.

    Raises:
        RaceError: a file of it is missing or damaged.
    """
    folder = run / "checkpoint"
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder / "last.safetensors").items():
        group, name = key.split("/", 1)
        weights.setdefault(group, {})[name] = tensor
    weights |= {
        path.stem: read_tensors(path)
        for path in folder.glob("*.safetensors")
        if path.name != "last.safetensors"
    }
    try:
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        return weights, optimizer, json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise RaceError(
            f"the checkpoint is damaged ({str(error).splitlines()[0]})",
            where=folder,
            remedy="remove the folder, and train anew with the same --out and --resume",
        ) from None
