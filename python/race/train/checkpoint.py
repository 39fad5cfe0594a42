"""Checkpoints that survive a kill at any moment: a folder is written aside and swapped in
by renaming.

run/model.safetensors                  averaged weights, each member's best by validation:
the ones to use run/checkpoint/last.safetensors        weights, their average and the best
so far run/checkpoint/GROUP.safetensors       what else a subclass of the trainer keeps
run/checkpoint/optimizer.pt            moments of the optimiser, sums of the unfinished
epoch run/checkpoint/state.json              epoch, batch, step, scores
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from race.errors import RaceError


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` in one step: a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Atomic: a killed process leaves the old file or the new one."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """safetensors, contiguous and on the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(plain, metadata={"format": "race-run/1"}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Of `write_tensors`.

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
    optimizer: dict,
    state: dict,
    more: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Replaces run/checkpoint by a new one; `weights` are groups such as {"weights": {name:
    tensor}, "average": {...}}.

    `more`: further groups, a file each: writing a file takes as much memory as it is long.
    """
    folder, aside, old = run / "checkpoint", run / ".checkpoint.new", run / ".checkpoint.old"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    flat = {
        f"{group}/{name}": tensor
        for group, part in weights.items()
        for name, tensor in part.items()
    }
    write_tensors(aside / "last.safetensors", flat)
    for group, tensors in (more or {}).items():
        write_tensors(aside / f"{group}.safetensors", tensors)
    torch.save(optimizer, aside / "optimizer.pt")
    write_json(aside / "state.json", state)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(run: Path) -> bool:
    """Also mends a run killed between the two renamings of `save_checkpoint`."""
    folder, old = run / "checkpoint", run / ".checkpoint.old"
    if not folder.exists() and old.exists():
        os.rename(old, folder)
    return folder.exists()


def load_checkpoint(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict, dict]:
    """The three arguments of `save_checkpoint`, `more` among the weights."""
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
    optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    return weights, optimizer, json.loads((folder / "state.json").read_text())
