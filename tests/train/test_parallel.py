"""Two processes under torchrun: they train what one trains, and end together however they end."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from race.errors import RaceError
from race.interrupt import Interrupt
from race.train.checkpoint import load_checkpoint, read_tensors
from race.train.parallel import BUCKET, Ranks, _buckets
from race.train.training import train

from .conftest import make_config, write_yaml
from .test_run import rows_of

ROOT = Path(__file__).parents[2]
# Clipping bites from the first step; batches of 3 leave a last one of 1, which is too few
# for two ranks.
OPTIONS = {
    "epochs": 3,
    "batch_size": 3,
    "stress_weight": 0.1,
    "clip_norm": 0.5,
    "checkpoint_minutes": 0.0,
    "learning_rate": 0.02,
}
STEPS = 12


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """extxyz of 13 cells of 4 to 16 atoms; every third has no stress. 10 are trained on."""
    path = tmp_path_factory.mktemp("mixed") / "copper.extxyz"
    frames = []
    for seed in range(13):
        atoms = (
            ase.build.bulk("Cu", cubic=True, a=3.7) * ((1, 1, 1), (2, 1, 1), (2, 2, 1))[seed % 3]
        )
        atoms.symbols[0] = "Au"
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        names = ("energy", "forces", "stress") if seed % 3 else ("energy", "forces")
        atoms.calc = SinglePointCalculator(
            atoms, **{name: atoms.calc.get_property(name, atoms) for name in names}
        )
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def config_of(path, **options):
    return make_config(path, model={"n_members": 2}, train=OPTIONS | options)


def start(config_path, run) -> subprocess.Popen:
    """The command of the README, on another config."""
    line = re.search(r"^torchrun .*$", (ROOT / "README.md").read_text(), flags=re.M)[0]
    words = [
        {"examples/demo/config.yaml": str(config_path), "run": str(run)}.get(word, word)
        for word in shlex.split(line, comments=True)
    ]
    assert words[0] == "torchrun" and {str(config_path), str(run), "2"} <= set(words)
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def workers(process) -> list[int]:
    """Process ids of rank 0 and rank 1."""
    pids = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    ranks = {}
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(value[5:]): pid for value in environment if value.startswith(b"RANK=")}
    return [ranks[0], ranks[1]]


def steps(run) -> int:
    try:
        return load_checkpoint(run)[2]["step"]
    except (
        FileNotFoundError,
        NotADirectoryError,
        RaceError,
        EOFError,
    ):  # none yet, or between the renamings of one
        return 0


def reach(process, run, step):
    end = time.monotonic() + 120
    while steps(run) < step:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def ended(process, pids) -> str:
    """What it said, all of its processes being gone soon."""
    text, _ = process.communicate(timeout=60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "a rank lives on"
    return text


@pytest.fixture(scope="module", params=["adam", "soap"])
def optimizer(request):
    return request.param


@pytest.fixture(scope="module")
def together(mixed, optimizer, tmp_path_factory):
    """A run of two ranks, left alone."""
    folder = tmp_path_factory.mktemp("together")
    write_yaml(folder / "config.yaml", config_of(mixed, optimizer=optimizer))
    process = start(folder / "config.yaml", folder / "run")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and text.count("next:") == 1 and "2 ranks" in text, text
    return folder / "run"


def worst(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(
        float((a[key] - b[key]).abs().max() / b[key].abs().max())
        for key in a
        if b[key].numel() and b[key].any()
    )


def test_two_ranks_train_what_one_trains(mixed, optimizer, together, tmp_path):
    """Frames, atoms and stresses per rank differ, and so do rounding errors only. SOAP divides
    them by its damping in directions that no gradient has had.
    """
    # log.csv keeps 8 digits
    weights, digits, state = (1e-7, 1e-6, 1e-6) if optimizer == "soap" else (1e-12, 2e-8, 1e-12)
    trainer = train(config_of(mixed, optimizer=optimizer), tmp_path / "run")
    assert trainer.state.step == STEPS
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        found, expected = (read_tensors(run / name) for run in (together, tmp_path / "run"))
        assert worst(found, expected) < weights
    for two, one in zip(rows_of(together), rows_of(tmp_path / "run"), strict=True):
        assert two.keys() == one.keys()
        for key in two.keys() - {"seconds"}:
            assert float(two[key]) == pytest.approx(float(one[key]), rel=digits), key
        assert float(two["train/gradient"]) > OPTIONS["clip_norm"]
    moments = []
    for run in (together, tmp_path / "run"):
        kept = load_checkpoint(run)[1]["optimizer"]
        moments.append(kept["stacks"] if optimizer == "soap" else kept["state"].values())
    for two, one in zip(*moments, strict=True):
        assert worst(two, one) < state


def test_ends_together_and_resumes_exactly(mixed, optimizer, together, tmp_path):
    """All ranks killed; one rank killed; SIGTERM: each ends everything and the weights are
    those of the undisturbed run.
    """
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    write_yaml(path, config_of(mixed, optimizer=optimizer))

    process = start(path, run)
    reach(process, run, 2)
    pids = workers(process)
    for pid in (process.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    ended(process, [])
    assert 2 <= (first := steps(run)) < STEPS

    process = start(path, run)
    reach(process, run, first + 2)
    pids = workers(process)
    os.kill(pids[1], signal.SIGKILL)
    text = ended(process, pids)
    assert process.returncode != 0 and "rank 0 of 2: another rank has ended" in text, text
    assert first + 2 <= (second := steps(run)) < STEPS

    process = start(path, run)
    reach(process, run, second + 2)
    pids = workers(process)
    process.send_signal(signal.SIGTERM)
    text = ended(process, pids)
    assert (
        process.returncode != 0
        and text.count("SIGTERM: saved after epoch") == 1
        and "another rank" not in text
    ), text
    assert second + 2 <= steps(run) < STEPS

    process = start(path, run)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        a, b = read_tensors(together / name), read_tensors(run / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name


def test_the_launcher_does_not_cut_a_message(monkeypatch):
    """torchrun sends SIGTERM to the ranks that are left, perhaps while one is about to say why
    it ends.
    """
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RaceError, match="another rank has ended"), Interrupt():
            with Ranks()._together():
                raise RuntimeError("Connection closed by peer")  # as gloo does
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_batch_smaller_than_the_ranks(mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        RaceError,
        match="train.batch_size: the batch is smaller than the number of processes; "
        "expected at least 4; got 3",
    ):
        train(config_of(mixed), tmp_path, ranks=Ranks())
    with pytest.raises(RaceError, match="each rank takes its own"):
        Ranks("cuda:0")


def test_alone_nothing_is_sent():
    ranks, value = Ranks(), torch.ones(2)
    ranks.add([value])
    ranks.copy_first([value])
    ranks.wait()
    assert (
        value.tolist() == [1, 1]
        and ranks.first
        and ranks.total({"a": 3}) == {"a": 3}
        and ranks.largest(15) == 15
    )
    assert ranks.gather("x") == ["x"] and ranks.share([3, 1, 2]) == [0, 1, 2]


def test_buckets_hold_every_tensor_once():
    sizes = [3, BUCKET - 3, 5, 2 * BUCKET, 1]
    tensors = [torch.empty(size, dtype=torch.int8) for size in sizes] + [torch.empty(4)]
    buckets = list(_buckets(tensors))
    assert sorted(id(t) for bucket in buckets for t in bucket) == sorted(id(t) for t in tensors)
    for bucket in buckets:
        assert len({t.dtype for t in bucket}) == 1 and (
            len(bucket) == 1 or sum(t.numel() for t in bucket) <= BUCKET
        )
    assert len(buckets) == 5
