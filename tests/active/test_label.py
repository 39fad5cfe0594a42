"""`race label`: labels in processes of their own that may hang, crash or need another try."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from race.active.config import OracleConfig
from race.active.label_worker import label_apart
from race.active.labelling import label_frames
from race.active.oracle import make_oracle
from race.cli import main
from race.data import read_frames
from race.errors import RaceError

from .moody import Moody


def cells(moods):
    frames = []
    for k, mood in enumerate(moods):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.positions[0, 0], atoms.positions[1, 1] = 0.1 * mood, 1.7 + 0.01 * k
        atoms.info["number"] = k
        frames.append(atoms)
    return frames


def problem(tmp_path, moods, **options):
    (tmp_path / "marks").mkdir()
    ase.io.write(tmp_path / "pool.xyz", cells(moods))
    given = {
        "calculator": f"{Moody.__module__}.Moody",
        "arguments": {"marks": str(tmp_path / "marks")},
    }
    config = OracleConfig(**given, **options)
    frames = read_frames(tmp_path / "pool.xyz", require=())
    return config, frames, make_oracle(config, [], {}, tmp_path / "labels")


def is_gone(pid):
    """Within five seconds; a process that has ended and that nobody asked after is gone, too."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def right(atoms):
    expected = atoms.copy()
    expected.calc = EMT()
    np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-8)
    np.testing.assert_allclose(atoms.get_stress(), expected.get_stress(), atol=1e-8)
    return atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy())


def test_crashing_and_moody_oracles(tmp_path):
    config, frames, oracle = problem(tmp_path, [0, 2, 3, 0], workers=2, retries=1)
    out = label_frames(frames, oracle, config, tmp_path / "out.xyz")
    assert [atoms.info["number"] for atoms in out] == [0, 2, 3]
    assert all(right(atoms) for atoms in out)
    (failed,) = json.loads((tmp_path / "failed-out.json").read_text())
    assert failed["frame"] == 1 and "ended with status 7" in failed["reason"]
    assert oracle.computed == 3 and len(list((tmp_path / "labels").iterdir())) == 3
    # Kept, whatever computes the others: another executor is not another oracle
    again = OracleConfig(**config.model_dump() | {"workers": 1, "retries": 0, "failures": 0.0})
    kept = make_oracle(again, [], {}, tmp_path / "labels")
    label_frames([frames[k] for k in (0, 2, 3)], kept, again, tmp_path / "out.xyz")
    assert kept.computed == 0


def test_a_label_that_takes_too_long_is_given_up(tmp_path):
    config, frames, oracle = problem(tmp_path, [1, 1], workers=2, minutes=0.3, failures=1.0)
    with pytest.raises(RaceError, match="2 of 2 labels failed.*no label within 0.3 minutes"):
        label_frames(frames, oracle, config, tmp_path / "out.xyz")
    children = (tmp_path / "marks" / "children").read_text().split()
    assert len(children) == 2 and all(is_gone(child) for child in children)
    config = config.model_copy(update={"minutes": 60.0})
    frames = read_frames(tmp_path / "pool.xyz", require=(), frames=[0])
    frames[0].positions[0, 0] = 0.0
    assert right(label_frames(frames, oracle, config, tmp_path / "out.xyz")[0])


def test_labels_are_kept_when_too_many_fail(tmp_path):
    config, frames, oracle = problem(tmp_path, [0, 2, 2], workers=2, failures=0.1)
    with pytest.raises(RaceError, match="2 of 3 labels failed.*status 7"):
        label_frames(frames, oracle, config, tmp_path / "out.xyz")
    assert len(list((tmp_path / "labels").iterdir())) == 1


def test_what_an_executor_loses_is_a_failure(tmp_path, monkeypatch):
    """As a worker of Dask that dies at each try; the list of failures is that of the last call."""
    config, frames, oracle = problem(tmp_path, [0, 0, 0], workers=2)

    def lost(config, atoms, where):
        if where.endswith("frame 1"):
            raise RuntimeError("KilledWorker")
        return label_apart(config, atoms, where)

    with monkeypatch.context() as patch:
        patch.setattr("race.active.labelling.label_apart", lost)
        out = label_frames(frames, oracle, config, tmp_path / "out.xyz")
    assert [atoms.info["number"] for atoms in out] == [0, 2]
    (failed,) = json.loads((tmp_path / "failed-out.json").read_text())
    assert failed["frame"] == 1 and failed["reason"].endswith("frame 1: RuntimeError: KilledWorker")
    assert len(label_frames(frames, oracle, config, tmp_path / "out.xyz")) == 3
    assert not (tmp_path / "failed-out.json").exists()


def test_an_oracle_that_is_none_ends_the_work_at_once(tmp_path):
    config, frames, oracle = problem(tmp_path, [0, 0], workers=2)
    wrong = config.model_copy(update={"calculator": "no.such.Thing"})
    with pytest.raises(RaceError, match="oracle.calculator: no such calculator"):
        label_frames(frames, oracle, wrong, tmp_path / "out.xyz")


def test_the_command(tmp_path, capsys):
    _, frames, _ = problem(tmp_path, [0, 0, 2])
    section = {"calculator": "ase.calculators.emt.EMT", "workers": 2}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"oracle": section, "rounds": 3}))
    pool, out = str(tmp_path / "pool.xyz"), str(tmp_path / "out.xyz")
    assert main(["label", str(tmp_path / "a.yaml"), pool, "-o", out]) == 0
    assert "3 of 3 frames, 3 labels computed" in capsys.readouterr().out
    written = ase.io.read(out, ":")
    assert [atoms.info["number"] for atoms in written] == [0, 1, 2]
    assert all(right(atoms) for atoms in written)
    assert main(["label", str(tmp_path / "a.yaml"), pool, "-o", out]) == 0
    assert "0 labels computed" in capsys.readouterr().out
    assert main(["label", str(tmp_path / "a.yaml"), pool, "-o", pool]) == 2
    assert "the output is one of the inputs" in capsys.readouterr().err


def test_structures_keep_all_but_labels(tmp_path):
    """Labels that cannot be read say nothing of the structure; the new ones replace them."""
    frames = cells([0, 0])
    for atoms in frames:
        atoms.set_tags([1, 2, 3, 4])
        atoms.set_constraint(FixAtoms([1]))
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    junk = text.getvalue().replace("pbc=", "energy=inf DFT_energy=7 pbc=")
    (tmp_path / "pool.xyz").write_text(junk)
    (tmp_path / "a.yaml").write_text("oracle: {calculator: ase.calculators.emt.EMT}")
    command = ["label", str(tmp_path / "a.yaml"), str(tmp_path / "pool.xyz"), "-o"]
    assert main([*command, str(tmp_path / "out.xyz")]) == 0
    for atoms in ase.io.read(tmp_path / "out.xyz", ":"):
        assert atoms.get_tags().tolist() == [1, 2, 3, 4] and atoms.info["DFT_energy"] == 7
        assert atoms.constraints[0].index.tolist() == [1]
        atoms.set_constraint()
        assert right(atoms)
    assert main([*command, str(tmp_path / "out.traj")]) == 2


def test_what_was_labelled_as_json(tmp_path, capsys):
    config, _, _ = problem(tmp_path, [0, 2, 0])
    section = {"calculator": config.calculator, "arguments": config.arguments, "workers": 2}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"oracle": section}))
    out = tmp_path / "out.xyz"
    words = ["label", str(tmp_path / "a.yaml"), str(tmp_path / "pool.xyz"), "-o", str(out)]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    (failed,) = said.pop("failed")
    assert failed["frame"] == 1 and "ended with status 7" in failed["reason"]
    assert said == {"output": str(out), "n_frames": 3, "n_labelled": 2, "n_computed": 2}
    assert "left out" in captured.err


def by_dask(tmp_path, frames, **options):
    """`race label` with the workers of Dask, in a process of its own."""
    pytest.importorskip("distributed")
    (tmp_path / "marks").mkdir()
    ase.io.write(tmp_path / "pool.xyz", frames)
    given = {
        "calculator": f"{Moody.__module__}.Moody",
        "arguments": {"marks": str(tmp_path / "marks")},
    }
    section = given | {"executor": "dask"} | options
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"oracle": section}))
    command = [sys.executable, "-m", "race", "label", "a.yaml", "pool.xyz", "-o", "out.xyz"]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def waited_for(path, n_lines=1):
    for _ in range(600):
        if path.exists() and len(lines := path.read_text().split()) >= n_lines:
            return lines
        time.sleep(0.2)
    raise AssertionError(f"no {path}")


def test_a_killed_dask_worker_costs_no_label(tmp_path):
    process = by_dask(tmp_path, cells([4, 0, 4, 0, 0]), workers=2)
    try:
        worker = int(waited_for(tmp_path / "marks" / "workers")[0])
        os.kill(worker, signal.SIGKILL)
        out, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "5 of 5 frames, 5 labels computed" in out
    written = ase.io.read(tmp_path / "out.xyz", ":")
    assert [atoms.info["number"] for atoms in written] == [0, 1, 2, 3, 4]
    assert all(right(atoms) for atoms in written)
    # The label of the worker that was killed was begun again by another
    begun = (tmp_path / "marks" / "workers").read_text().split()
    assert len(begun) == 3 and len(set(begun)) >= 2
    assert all(is_gone(pid) for pid in begun)


def test_a_cluster_that_runs_and_one_that_does_not(tmp_path):
    pytest.importorskip("distributed")
    scheduler_file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    dask += ["--port", "0", "--scheduler-file", str(scheduler_file)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard"]
    worker += ["--nthreads", "1", "--scheduler-file", str(scheduler_file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    quiet["env"] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [subprocess.Popen(dask, **quiet)]
    try:
        waited_for(scheduler_file)
        running.append(subprocess.Popen(worker, **quiet))
        process = by_dask(tmp_path, cells([0, 2, 0]), scheduler=str(scheduler_file))
        running.append(process)
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and "2 of 3 frames, 2 labels computed" in out, errors
        (failed,) = json.loads((tmp_path / "failed-out.json").read_text())
        assert failed["frame"] == 1 and "ended with status 7" in failed["reason"]
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)
    config = OracleConfig(
        calculator="ase.calculators.emt.EMT", executor="dask", scheduler="tcp://127.0.0.1:1"
    )
    frames = read_frames(tmp_path / "pool.xyz", require=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("race.active.labelling.CONNECT", 1)
        with pytest.raises(RaceError, match="oracle.scheduler: no Dask scheduler.*tcp://127"):
            oracle = make_oracle(config, [], {}, tmp_path / "labels")
            label_frames(frames, oracle, config, tmp_path / "out.xyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calculator": None, "labels": "pool", "workers": 2}, "oracle.labels are read"),
        ({"calculator": None, "labels": "pool", "executor": "dask"}, "oracle.labels are read"),
        ({"scheduler": "tcp://a:1"}, "oracle.scheduler is that of a Dask cluster"),
        ({"executor": "dask", "scheduler": "tcp://a:1", "workers": 2}, "and no workers"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        OracleConfig(**{"calculator": "ase.calculators.emt.EMT"} | options)
