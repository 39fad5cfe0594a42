"""A data set on disk: what training reads of it is what it would have in memory, frame by frame and
weight by weight, and memory does not grow with it.
"""

import shutil
import subprocess
import sys
from dataclasses import fields

import ase.io
import numpy as np
import pytest
import torch
import yaml

from race.cli import main
from race.data.shards import StoredFrame
from race.errors import RaceError
from race.posterior import distill
from race.posterior.fit import fit
from race.posterior.protocol import Run
from race.train.checkpoint import read_tensors
from race.train.prepare import prepare
from race.train.shards import build
from race.train.training import train
from tests.train.conftest import labelled, make_config

# All that changes labels between a file and a batch
DATA = {
    "validation_fraction": 0.25,
    "energy_offsets": {"two.xyz": 3.0},
    "config_weights": {"liquid": 2.0},
    "baseline": {"calculator": "ase.calculators.lj.LennardJones", "arguments": {"sigma": 2.2}},
    "accept": ["conflicting-labels"],
}
TRAIN = {"stress_weight": 1.0, "balance": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames with and without some of the labels, weighted, with remarks of several types."""
    folder = tmp_path_factory.mktemp("shards")
    frames = [labelled(seed) for seed in range(16)]
    for k, atoms in enumerate(frames):
        atoms.info |= {"config_type": "liquid" if k % 3 else "solid", "temperature": 300.0 * k}
        atoms.info["vector"] = np.arange(3) * k
        atoms.set_array("weight", np.where(np.arange(len(atoms)) == k % 4, 0.5, 1.0))
    frames[5].calc.results["forces"][1] = np.nan
    del frames[6].calc.results["stress"]
    del frames[7].calc.results["energy"]
    ase.io.write(folder / "one.xyz", frames[:9])
    ase.io.write(folder / "two.xyz", frames[9:])
    return folder


def config(folder, shards="shards", **train):
    on_disk = {} if shards is None else {"shards": str(folder / shards)}
    made = make_config(folder / "one.xyz", train=TRAIN | train, **DATA, **on_disk)
    made.data.train.append(folder / "two.xyz")
    return made


@pytest.fixture(scope="module")
def shards(folder):
    build(config(folder))
    return folder / "shards"


@pytest.fixture(scope="module")
def in_memory(folder):
    train(config(folder, None), folder / "in-memory")
    return folder / "in-memory"


def assert_same_weights(run, other):
    one, two = (read_tensors(folder / "model.safetensors") for folder in (run, other))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-10, atol=1e-12)


def test_every_batch_is_that_of_memory(folder, shards):
    one, other = prepare(config(folder, None)), prepare(config(folder))
    assert all(isinstance(frame, StoredFrame) for frame in other.train.frames)
    for part in ("train", "validation", "calibration"):
        mine, its = getattr(one, part), getattr(other, part)
        assert len(mine) == len(its)
        plans = [dataset.plan(3, seed=1, epoch=2, balanced=True) for dataset in (mine, its)]
        for a, b in zip(*plans, strict=True):
            np.testing.assert_array_equal(a, b)
            expected, got = mine.batch(a), its.batch(b)
            for field in fields(expected):
                x, y = getattr(expected, field.name), getattr(got, field.name)
                assert (x is None) == (y is None), field.name
                if x is not None:
                    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
                    assert x.dtype == y.dtype
        for a, b in zip(mine.frames, its.frames, strict=True):
            assert a.info["config_type"] == b.info["config_type"]
            assert list(a.info["vector"]) == list(b.info["vector"])
    assert one.config.constants == other.config.constants
    assert one.report.text() == other.report.text()
    ours, theirs = dict(one.summary), dict(other.summary)
    assert theirs.pop("files").items() > ours.pop("files").items()
    assert ours == theirs


def test_nothing_is_kept(folder, shards):
    dataset = prepare(config(folder)).train
    dataset.batch(range(len(dataset)))
    assert not any(dataset._graphs)


def test_training_is_that_of_memory(folder, shards, in_memory):
    train(config(folder), folder / "run")
    assert_same_weights(folder / "run", in_memory)


def test_resumed_inside_an_epoch(folder, shards, in_memory, monkeypatch):
    """Stopped after the second of four steps, by the signal that a queue sends."""
    import os
    import signal

    from race.train.trainer import Trainer

    step = Trainer.step

    def interrupted(self, batch):
        step(self, batch)
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(SystemExit):
            train(config(folder), folder / "stopped")
    train(config(folder), folder / "stopped", resume=True)
    assert_same_weights(folder / "stopped", in_memory)


def test_run_and_shards_are_copied(folder, tmp_path):
    """The files that the shards were made of need not be there."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for name in ("one.xyz", "two.xyz"):
        shutil.copy(folder / name, here)
    build(config(here))
    train(config(here), here / "run")
    here.rename(there)
    for name in ("one.xyz", "two.xyz"):
        (there / name).unlink()
    train(config(there, epochs=3), there / "run", resume=True)
    (there / "shards").rename(there / "run" / "shards")
    run = Run.load(there / "run")
    assert isinstance(run.prepare().train.frames[0], StoredFrame)
    (there / "run" / "shards" / "about.json").write_text("{}")
    with pytest.raises(RaceError, match=r"no such file|has changed"):
        Run.load(there / "run").prepare()


def test_distillation_is_that_of_memory(folder, shards, tmp_path, monkeypatch):
    """Rattled copies are on disk, too, as long as the fit lasts."""
    train(config(folder, "shards"), tmp_path / "stored")
    train(config(folder, None), tmp_path / "kept")
    seen = []

    class Watched(distill.Taught):
        def __init__(self, frames, *others):
            super().__init__(frames, *others)
            seen.append((all(isinstance(f, StoredFrame) for f in frames), any(self._graphs)))

    monkeypatch.setattr(distill, "Taught", Watched)
    for run in ("stored", "kept"):
        fit("distill", [tmp_path / run], tmp_path / f"{run}-one", {"epochs": 2, "copies": 2})
    assert seen == [(True, False)] * 2 + [(False, True)] * 2
    assert_same_weights(tmp_path / "stored-one", tmp_path / "kept-one")
    assert not list((tmp_path / "stored-one").rglob("edges.bin"))


def test_commands(folder, tmp_path, capsys):
    """race data, race train, race fit, race export."""
    path = tmp_path / "c.yaml"
    raw = config(folder, None).model_dump(mode="json", exclude_unset=True)
    raw["data"]["shards"] = "big"
    raw["train"] |= {"epochs": 1}
    path.write_text(yaml.safe_dump(raw))
    run = str(tmp_path / "run")
    assert main(["train", str(path), "--out", run]) == 2
    assert "no shards, or unfinished ones; make them with `race data`" in capsys.readouterr().err
    assert main(["data", str(path)]) == 0
    assert "neighbours" in capsys.readouterr().out
    assert main(["train", str(path), "--out", run]) == 0
    assert main(["fit", run, "--posterior", "llpr", "--out", str(tmp_path / "llpr")]) == 0
    assert main(["export", run, "-o", str(tmp_path / "x.race.pt")]) == 0
    captured = capsys.readouterr()
    assert "no grade" not in captured.err + captured.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"split_seed": 3}}, r"data\.split_seed: differs from what the shards"),
        ({"data": {"baseline": None}}, r"data\.baseline: differs"),
        ({"model": {"r_max": 4.0}}, r"model\.r_max: differs .* expected 3.5; got 4.0"),
        ({"train": {"dtype": "float32"}}, r"train\.dtype: differs"),
    ],
)
def test_made_otherwise(folder, shards, change, message):
    given = config(folder)
    for section, values in change.items():
        setattr(given, section, getattr(given, section).model_copy(update=values))
    with pytest.raises(RaceError, match=message):
        prepare(given)


def test_of_other_labels(folder, tmp_path):
    """A check that was not made."""
    given = config(folder, None, stress_weight=0.0)
    given.data.shards = tmp_path / "forces"
    build(given)
    given.train.stress_weight = 1.0
    with pytest.raises(RaceError, match=r"train\.stress_weight: .*train on energy, forces"):
        prepare(given)


def test_damaged_or_changed(folder, tmp_path):
    for name in ("one.xyz", "two.xyz"):
        shutil.copy(folder / name, tmp_path)
    given = config(tmp_path)
    build(given)
    prepare(given)
    shards = tmp_path / "shards"
    with open(shards / "edges.bin", "r+b") as file:
        file.truncate((shards / "edges.bin").stat().st_size - 8)
    with pytest.raises(RaceError, match=r"edges\.bin: has another length"):
        prepare(given)
    build(given)
    with open(tmp_path / "two.xyz", "a") as file:
        file.write("\n")
    with pytest.raises(RaceError, match=r"two\.xyz: has another content than the shards"):
        prepare(given)
    (tmp_path / "two.xyz").write_text("nonsense\n")
    with pytest.raises(RaceError, match="not the start of a frame"):
        build(given)  # which leaves nothing that could be taken for shards
    with pytest.raises(RaceError, match="no shards, or unfinished ones"):
        prepare(given)


LIMIT = 8 << 20  # bytes beyond what the making of a small set, and training on it, have taken
SCRIPT = """
import resource, sys
from pathlib import Path
from race.config import read_config
from race.train.shards import build
from race.train.training import train

small, large, out, limit, name = sys.argv[1:]
for k, path in enumerate((small, large)):
    config = read_config(path)
    if config.data.shards is not None:
        build(config)
    train(config, Path(out) / f"{name}-{k}")
    if k == 0:
        used = next(int(x.split()[1]) for x in open("/proc/self/status") if x[:6] == "VmData")
        limit = 1024 * used + int(limit)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print("trained")
"""


def many(folder, n):
    """n frames of 32 atoms with some 200 neighbours each, as file and config."""
    import ase.build
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(0)
    frames = []
    for k in range(n):
        atoms = ase.build.bulk("Cu", cubic=True, a=3.7) * (2, 2, 2)
        atoms.rattle(0.1, seed=k)
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(rng.normal()), forces=rng.normal(size=(len(atoms), 3))
        )
        frames.append(atoms)
    ase.io.write(folder / f"{n}.xyz", frames)
    model = {"r_max": 8.5, "n_layers": 1, "irreps_hidden": "2x0e", "lmax": 0, "radial_mlp": [4]}
    model |= {"head": "point", "n_features": 2, "readout_hidden": 4, "n_radial_basis": 4}
    options = {"epochs": 1, "batch_size": 2, "n_threads": 1, "loss": "mse"}
    data = {"train": [f"{n}.xyz"], "validation_fraction": 0.05}
    data |= {"accept": ["unrelated-forces"]}  # drawn at random
    return {"data": data, "model": model, "train": options}


def test_a_set_ten_times_as_large_as_memory(tmp_path):
    """Trained from shards under a limit, at which the same set in memory ends."""
    n_small, n_large = 20, 850
    paths = {}
    for n in (n_small, n_large):
        raw = many(tmp_path, n)
        for name, data in (("memory", {}), ("shards", {"shards": f"{n}.shards"})):
            paths[n, name] = tmp_path / f"{n}-{name}.yaml"
            raw["data"] |= data
            paths[n, name].write_text(yaml.safe_dump(raw))

    def trained(name):
        arguments = [paths[n_small, name], paths[n_large, name], tmp_path, LIMIT, name]
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    on_disk, in_memory = trained("shards"), trained("memory")
    assert on_disk.returncode == 0 and "trained" in on_disk.stdout, on_disk.stderr[-2000:]
    size = (tmp_path / f"{n_large}.shards" / "edges.bin").stat().st_size
    assert size > 10 * LIMIT, size / LIMIT
    assert in_memory.returncode != 0
    assert "memory" in in_memory.stderr.lower() or "bad_alloc" in in_memory.stderr
