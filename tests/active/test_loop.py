"""`race active`: killed anywhere it ends as if it had not been; no label is computed twice;
what it compares is comparable.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from race.active.config import OracleConfig, read_active_config
from race.active.loop import Loop, Round
from race.active.oracle import make_oracle
from race.cli import main
from race.data import read_frames
from race.data.fingerprint import fingerprint
from race.data.weights import WEIGHT
from race.errors import RaceError
from race.train.members import initial_model
from race.train.run import load_run

from .problem import write_problem


def active(config: Path, out: Path) -> int:
    return main(["active", str(config), "--out", str(out)])


def report(out: Path) -> list[dict]:
    return json.loads((out / "report.json").read_text())["records"]


def same(a: list[dict], b: list[dict]) -> bool:
    """Selections are compared apart; two trainings differ by rounding at most."""
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        if any(
            one[key] != other[key] for key in ("strategy", "seed", "round", "n_labels", "split")
        ):
            return False
        if any(
            not np.isclose(one[key], other[key], rtol=1e-9)
            for key in ("rmse_e", "rmse_f", "nll_f", "auroc")
            if key in one
        ):
            return False
    return True


def selections(out: Path) -> dict[str, list[int]]:
    paths = sorted(out.glob("seed-*/*/round-*/selected.extxyz"))
    return {
        str(path.relative_to(out)): [atoms.info["race_frame"] for atoms in ase.io.read(path, ":")]
        for path in paths
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """A config and the folder of its comparison, run without interruption."""
    folder = tmp_path_factory.mktemp("active")
    config = write_problem(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["active", str(config), "--out", str(folder / "out"), "--json"]) == 0
    (folder / "said.json").write_text(said.getvalue())
    return config, folder / "out"


def test_the_report_as_json(done):
    """Alone on stdout: lines of the trainings are not among it."""
    _, out = done
    said = json.loads((out.parent / "said.json").read_text())
    assert said["records"] == report(out)


def test_what_a_comparison_leaves(done):
    _, out = done
    records = report(out)
    assert {(r["strategy"], r["round"], r["n_labels"]) for r in records} == {
        (name, k, 6 + 3 * k) for name in ("random", "bald-joint") for k in range(3)
    }
    assert (
        [r["split"] for r in records[:2]] == ["known", "hot"]
        and "auroc" in records[1]
        and "auroc" not in records[0]
    )
    first = {
        name: [r for r in records if r["strategy"] == name and r["round"] == 0]
        for name in ("random", "bald-joint")
    }
    # One initial training for all
    assert [r["rmse_f"] for r in first["random"]] == [r["rmse_f"] for r in first["bald-joint"]]
    assert same(records, records) and not same(
        records, [*records[:-1], records[-1] | {"rmse_f": records[-1]["rmse_f"] * (1 + 1e-7)}]
    )
    text = (out / "report.md").read_text()
    assert "| random |" in text and "## hot (out of distribution)" in text
    assert (out / "errors_vs_labels.png").read_bytes().startswith(b"\x89PNG")


def test_training_sets_grow_by_what_was_labelled_and_stay_apart(done):
    _, out = done
    for name in ("random", "bald-joint"):
        train, validation = set(), set()
        for folder in (
            out / "seed-0/initial",
            out / f"seed-0/{name}/round-1",
            out / f"seed-0/{name}/round-2",
        ):
            now = [
                {fingerprint(a) for a in ase.io.read(folder / f"{part}.extxyz", ":")}
                for part in ("train", "validation")
            ]
            assert train <= now[0] and validation <= now[1] and not now[0] & now[1]
            train, validation = now
        chosen = [
            frame
            for path, frames in selections(out).items()
            if f"/{name}/" in path
            for frame in frames
        ]
        assert len(set(chosen)) == 6 and len(train | validation) == 12
    labels = [
        ase.io.read(out / f"seed-0/bald-joint/round-1/{name}.extxyz", 0)
        for name in ("selected", "labelled")
    ]
    assert (
        labels[0].calc is None
        and np.isfinite(labels[1].get_forces()).all()
        and labels[1].info["race_score"] == labels[0].info["race_score"]
    )


def test_members_go_on_from_the_last_weights(done):
    _, out = done
    first, second = (
        load_run(out / folder)[1] for folder in ("seed-0/initial/run", "seed-0/random/round-1/run")
    )
    assert second.train.warm_start == out / "seed-0/initial/run" and second.model == first.model
    assert second.constants.as_trained() == first.constants.as_trained()
    assert (second.train.epochs, second.train.warmup_epochs) == (1, 0)


def test_seeds_share_no_member(done, tmp_path):
    """Nor the order of the data, the division into training and validation, or what is drawn."""
    config, out = done[0], shutil.copytree(done[1], tmp_path / "out")
    both = read_active_config(
        write_problem(config.parent, strategies=["random"], rounds=1, seeds=[0, 1])
    )
    write_problem(config.parent)
    Loop(both, out).run()
    first, second = (load_run(out / f"seed-{seed}/initial/run")[1] for seed in (0, 1))
    starts = [
        initial_model(c.model, c.constants, c.train.seed, torch.float64).embedding
        for c in (first, second)
    ]
    assert not any(torch.equal(one, other) for one in starts[0] for other in starts[1])
    # What seed 1 as it stands would share
    assert torch.equal(
        initial_model(second.model, second.constants, 1, torch.float64).embedding[0], starts[0][1]
    )
    frames = [
        {fingerprint(a) for a in ase.io.read(out / f"seed-{seed}/initial/validation.extxyz", ":")}
        for seed in (0, 1)
    ]
    chosen = [selections(out)[f"seed-{seed}/random/round-1/selected.extxyz"] for seed in (0, 1)]
    assert frames[0] != frames[1] and set(chosen[0]) != set(chosen[1])


def test_killed_and_continued_it_ends_alike(done, tmp_path):
    """SIGKILL in the middle of a training; what is there is not made again."""
    config, out = done
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "race.cli", "active", str(config), "--out", str(killed)],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (killed / "seed-0/bald-joint/round-1/run/checkpoint/state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, (
            "it ended before it was killed"
        )
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "seed-0/bald-joint/round-2").exists()
    before = {
        path: path.stat().st_mtime_ns
        for path in killed.rglob("*")
        if path.is_file() and "/run/" not in str(path)
    }
    assert active(config, killed) == 0
    assert same(report(killed), report(out)) and selections(killed) == selections(out)
    assert sorted(path.name for path in (killed / "labels").iterdir()) == sorted(
        path.name for path in (out / "labels").iterdir()
    )
    rewritten = [
        path.name
        for path, stamp in before.items()
        if path.exists() and path.stat().st_mtime_ns != stamp
    ]
    assert set(rewritten) <= {
        "config.json",
        "files.json",
        "report.json",
        "report.md",
        "errors_vs_labels.png",
    }


class Killed(BaseException):
    pass


def test_dying_again_and_again_it_ends_alike(done, tmp_path, monkeypatch, capsys):
    """Every 17th file is not put in its place."""
    config, out = done
    replace, count = os.replace, 0

    def dying(source, target):
        nonlocal count
        count += 1
        if count % 17 == 0:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    deaths = 0
    while True:
        try:
            assert active(config, tmp_path / "out") == 0
            break
        except Killed:
            deaths += 1
            assert deaths < 40
    assert deaths >= 4
    assert same(report(tmp_path / "out"), report(out)) and selections(
        tmp_path / "out"
    ) == selections(out)


def test_a_finished_comparison_is_extended_not_repeated(done, capsys):
    config, out = done
    before = report(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    extended = write_problem(config.parent, strategies=["random", "bald-joint", "fps"])
    assert active(extended, out) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    after = report(out)
    assert same([r for r in after if r["strategy"] != "fps"], before) and len(after) == 9 / 6 * len(
        before
    )
    other = write_problem(config.parent, budget=4)
    assert active(other, out) == 2
    assert "differs from the comparison that is there; expected 3; got 4" in capsys.readouterr().err
    write_problem(config.parent)


def test_a_comparison_moves_with_its_data(done, tmp_path, capsys, monkeypatch):
    """From whatever folder it is continued, files are known by content; changed ones refused."""
    config, out = done
    moved = tmp_path / "moved"
    shutil.copytree(config.parent, moved)
    monkeypatch.chdir(moved)
    before = report(out)
    assert main(["active", "config.yaml", "--out", out.name]) == 0
    # Another test may have added a strategy, which this config does not name
    assert same(report(moved / out.name), [r for r in before if r["strategy"] != "fps"])
    assert "0 labels computed" in "".join(capsys.readouterr())
    pool = moved / "pool.extxyz"
    pool.write_text(pool.read_text().replace("\nB ", "\nN ", 1))
    assert main(["active", "config.yaml", "--out", out.name]) == 2
    assert "the data has changed since the comparison began" in capsys.readouterr().err


def test_paths_are_those_of_the_config(tmp_path, monkeypatch):
    """Its own folder's, `train.warm_start` and the pool's groups too; a first training starts
    from that run.
    """
    change = {"pool": {"a": ["pool.extxyz"]}, "rounds": 1}
    path = write_problem(tmp_path / "there", **change)
    text = path.read_text().replace("train:\n", "train:\n  warm_start: foundation\n", 1)
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    config = read_active_config(Path("there/config.yaml"))
    folder = tmp_path / "there"
    assert config.pool["a"] == [folder / "pool.extxyz"] and config.test["hot"].is_absolute()
    assert config.train.warm_start == folder / "foundation"
    loop, given = Loop.__new__(Loop), []
    loop.config = config

    def stop(config, out, resume):
        given.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("race.active.loop.train", stop)
    first = Round(tmp_path / "out" / "initial", "initial", 0, 0)
    with pytest.raises(KeyboardInterrupt):
        loop._train(first, None)
    assert given[0].train.warm_start == folder / "foundation"
    with pytest.raises(KeyboardInterrupt):
        loop._train(Round(tmp_path / "out" / "round-1", "random", 0, 1), first)
    assert given[1].train.warm_start == first.run


def test_weights_of_the_initial_set_reach_the_training(tmp_path):
    """By frame, atom and config_type, once each."""
    frames = [ase.build.bulk("Cu", cubic=True) for _ in range(3)]
    for k, atoms in enumerate(frames):
        atoms.positions[0, 0] = 0.01 * k
        atoms.info |= {"weight": 2.0, "config_type": "ab"[k % 2]}
        atoms.arrays["weight"] = np.array([1.0, 0.0, 3.0, 1.0])
    loop, _ = loop_of(frames, tmp_path, failures=0.0)
    loop.keys = {"weight_key": "weight", "config_weights": {"a": 5.0}}
    loop._labelled_set(tmp_path / "initial.extxyz", [tmp_path / "frames.xyz"])
    read = read_frames(tmp_path / "initial.extxyz", weight_key=WEIGHT)
    assert [atoms.info[WEIGHT] for atoms in read] == [10.0, 2.0, 10.0]
    assert read[0].arrays[WEIGHT].tolist() == [1.0, 0.0, 3.0, 1.0]
    assert np.isnan(read[0].arrays["forces"][1]).all()


def test_replayed_choices(done, tmp_path, capsys):
    """Files with labels of their own, as others published them: the initial set and what
    they had acquired.
    """
    config, out = done
    rounds = []
    for number in (1, 2):
        folder = out / f"seed-0/bald-joint/round-{number}"
        rounds.append([str(folder / "train.extxyz"), str(folder / "validation.extxyz")])
    replay = write_problem(
        tmp_path, strategies=["bald-joint", {"name": "theirs", "replay": rounds}]
    )
    assert active(replay, tmp_path / "out") == 0
    records = report(tmp_path / "out")
    assert [
        r["n_labels"] for r in records if r["strategy"] == "theirs" and r["split"] == "hot"
    ] == [6, 9, 12]
    for number in (1, 2):
        ours, theirs = (
            {
                fingerprint(a)
                for part in ("train", "validation")
                for a in ase.io.read(
                    tmp_path / f"out/seed-0/{name}/round-{number}/{part}.extxyz", ":"
                )
            }
            for name in ("bald-joint", "theirs")
        )
        assert ours == theirs
    contaminated = write_problem(
        tmp_path / "x",
        strategies=[{"name": "theirs", "replay": [str(out / "data/test-hot.extxyz")] * 2}],
    )
    assert active(contaminated, tmp_path / "x" / "out") == 2
    assert "this structure is in the test set hot" in capsys.readouterr().err


def test_labels_that_the_pool_has(done, tmp_path):
    """The oracle is a file: nothing is computed, and groups of the pool each give a budget."""
    _, out = done
    write_problem(tmp_path)
    loop = Loop(read_active_config(write_problem(tmp_path)), tmp_path / "labelling")
    for name in ("initial", "pool", "known", "hot"):
        path = tmp_path / f"{name}.extxyz"
        ase.io.write(
            tmp_path / f"full-{name}.extxyz",
            ase.io.read(loop._labelled_set(tmp_path / f"{name}-labels.extxyz", [path]), ":"),
        )
    frames = ase.io.read(tmp_path / "full-pool.extxyz", ":")
    ase.io.write(tmp_path / "a.extxyz", frames[:7])
    ase.io.write(tmp_path / "b.extxyz", frames[7:])
    config = write_problem(
        tmp_path,
        initial=["full-initial.extxyz"],
        test={"hot": "full-hot.extxyz"},
        ood=[],
        oracle={"labels": "pool"},
        rounds=1,
        budget=2,
        pool={"a": ["a.extxyz"], "b": ["b.extxyz"]},
        strategies=["max-variance"],
    )
    assert active(config, tmp_path / "out") == 0
    picked = ase.io.read(tmp_path / "out/seed-0/max-variance/round-1/labelled.extxyz", ":")
    assert [atoms.info["race_source"] for atoms in picked] == [
        "a.extxyz",
        "a.extxyz",
        "b.extxyz",
        "b.extxyz",
    ]
    by_name = {fingerprint(atoms): atoms for atoms in frames}
    for atoms in picked:
        np.testing.assert_allclose(
            atoms.get_forces(), by_name[fingerprint(atoms)].get_forces(), atol=1e-8
        )


def test_candidates_from_dynamics(tmp_path):
    pytest.importorskip("race._race", reason="librace is not built")
    explore = {
        "temperature": 1500,
        "n_walkers": 2,
        "steps": 6,
        "every": 3,
        "timestep": 0.5,
        "max_force_std": 1000.0,
    }
    config = write_problem(
        tmp_path, pool=[], explore=explore, strategies=["bald-force"], rounds=1, budget=3
    )
    assert active(config, tmp_path / "out") == 0
    folder = tmp_path / "out/seed-0/bald-force/round-1"
    frames = [
        atoms for k in range(2) for atoms in ase.io.read(folder / f"explored-{k}.extxyz", ":")
    ]
    assert [atoms.info["step"] for atoms in frames] == [3, 6, 3, 6] and len(
        {fingerprint(atoms) for atoms in frames}
    ) == 4
    picked = ase.io.read(folder / "labelled.extxyz", ":")
    assert (
        len(picked) == 3
        and {fingerprint(a) for a in picked} <= {fingerprint(a) for a in frames}
        and picked[0].info["temperature"] == 1500
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strategies": ["best"]}, "unknown strategy best"),
        ({"ood": ["cold"]}, "ood cold is not one of test"),
        ({"oracle": {}}, "an oracle is one of lammps, calculator, labels"),
        ({"oracle": {"lammps": ["pair_style extep"]}}, "oracle.elements names the element"),
        ({"pool": []}, "candidates come from either pool or explore"),
        ({"budget": [3]}, "budget has 1 entries for 2 rounds"),
        (
            {"strategies": [{"name": "x", "replay": ["pool.extxyz"]}]},
            "replay x has fewer files than there are rounds",
        ),
        ({"data": {"train": ["x"]}}, "data.train is what the rounds make"),
        ({"retrain": {"epoch": 3}}, "epoch"),
        ({"pool": ["none.extxyz"]}, "none.extxyz: no such file"),
        (
            {"test": {"initial": "initial.extxyz"}, "ood": []},
            "this structure is in the test set initial",
        ),
        ({"budget": 15, "rounds": 1}, "the budget does not fit; expected 1 to 14"),
    ],
)
def test_refusals(tmp_path, capsys, change, message):
    assert active(write_problem(tmp_path, **change), tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_the_example_is_valid():
    example = Path(__file__).parents[2] / "examples" / "active" / "config.yaml"
    config = read_active_config(example)
    assert config.oracle.elements == ["B", "N"] and config.retrained().epochs < config.train.epochs
    with pytest.raises(RaceError, match="no such file"):
        read_active_config(example.with_name("none.yaml"))


class Flaky(EMT):
    """Fails for structures whose first atom lies far from the origin."""

    limit = 0.1

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if abs(atoms.positions[0, 0]) > self.limit:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)


def loop_of(frames, tmp_path, failures):
    """A loop without its start: what labels, and what it remembers."""
    ase.io.write(tmp_path / "frames.xyz", frames)
    loop = Loop.__new__(Loop)
    oracle = OracleConfig(calculator=f"{__name__}.Flaky", failures=failures)
    loop.config = SimpleNamespace(oracle=oracle)
    loop.oracle = make_oracle(oracle, [], {}, tmp_path / "labels")
    return loop, read_frames(tmp_path / "frames.xyz", require=())


def test_a_baseline_is_that_of_each_round(tmp_path):
    """The campaign is that of labels without it, and the errors are those of the sum."""
    ours = {"sigma": 1.4, "epsilon": 0.2, "rc": 3.0, "smooth": True}
    potential = {"calculator": "ase.calculators.lj.LennardJones"}
    outs = {}
    for name, factor, data in (
        ("sum", 1.5, {"baseline": potential | {"arguments": ours}}),
        ("rest", 0.5, {}),
    ):
        oracle = potential | {"arguments": ours | {"epsilon": factor * ours["epsilon"]}}
        config = write_problem(
            tmp_path / name, oracle=oracle, data=data, strategies=["bald-joint"], rounds=1
        )
        outs[name] = tmp_path / name / "out"
        assert active(config, outs[name]) == 0
    assert selections(outs["sum"]) == selections(outs["rest"])
    runs = [sorted(out.glob("seed-0/*/round-1/run"))[0] for out in outs.values()]
    for one, other in zip(*(load_run(run)[0].parameters() for run in runs), strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-6, atol=1e-9)
    assert [load_run(run)[1].constants.baseline is None for run in runs] == [False, True]
    for one, other in zip(*(report(out) for out in outs.values()), strict=True):
        for key in ("rmse_e", "rmse_f"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_a_label_that_fails_is_left_out_and_listed(tmp_path, caplog):
    frames = [ase.build.bulk("Cu", cubic=True) for _ in range(5)]
    for k in (1, 3):
        frames[k].positions[0, 0] = 0.2 + 0.1 * k
    loop, frames = loop_of(frames, tmp_path, failures=0.4)
    folder = tmp_path / "random" / "round-1"
    folder.mkdir(parents=True)
    kept = loop._label(frames, loop.oracle, folder / "labelled.extxyz")
    assert len(kept) == 3 and all(atoms.get_potential_energy() < 1 for atoms in kept)
    failed = json.loads((folder / "failed-labelled.json").read_text())
    assert [entry["frame"] for entry in failed] == [1, 3]
    assert all("SCF not converged" in entry["reason"] for entry in failed)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2
    # Not chosen again by the strategy, whatever it thinks of them
    later = Round(tmp_path / "random" / "round-3", "random", 0, 3)
    assert loop._failed(later).keys() == {fingerprint(frames[k]) for k in (1, 3)}


def test_an_oracle_that_fails_too_often_ends_the_round(tmp_path):
    frames = [ase.build.bulk("Cu", cubic=True) for _ in range(4)]
    for k in (1, 3):
        frames[k].positions[0, 0] = 0.2 + 0.1 * k
    loop, frames = loop_of(frames, tmp_path, failures=0.25)
    with pytest.raises(RaceError, match="2 of 4 labels failed; expected at most 25%.*SCF"):
        loop._label(frames, loop.oracle, tmp_path / "x.extxyz")
    assert len(list((tmp_path / "labels").iterdir())) == 1  # of two structures that are one
