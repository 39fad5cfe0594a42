"""`race select` on the command line: extended xyz, a dump that LAMMPS wrote with its own
uncertainties, refusals.
"""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import race._race

from race.active.pool import column_names, read_pool
from race.active.scores import open_scorer
from race.cli import main
from race.errors import RaceError

from ..lammps.harness import Lammps, write_data
from .conftest import boron_nitride

LAMMPS = """units metal
atom_style atomic
plugin load {plugin}
read_data start.data
pair_style race x.race.pt
pair_coeff * * B N
velocity all create 3000 1
fix nve all nve
timestep 0.001
compute u all race/atom force/std force/cov bald
dump d all custom 5 out.lammpstrj id type xs ys zs fx c_u[*]
dump_modify d sort id format float %.17g
{colname}
run 15
"""


def select(*arguments) -> int:
    return main(["select", *map(str, arguments)])


def test_selected_frames_keep_all_and_gain_why(run, pool, tmp_path, capsys):
    out = tmp_path / "selected.extxyz"
    assert select("--strategy", "bald-joint", "--budget", 4, run, pool, "-o", out) == 0
    printed = capsys.readouterr().out
    assert "4 of 12 frames" in printed
    pool_frames, picked = ase.io.read(pool, ":"), ase.io.read(out, ":")
    scores = open_scorer(run).scores(read_pool([pool]))
    for k, atoms in enumerate(picked):
        source = pool_frames[atoms.info["race_frame"]]
        np.testing.assert_allclose(atoms.positions, source.positions)
        np.testing.assert_allclose(atoms.get_forces(), source.get_forces())
        np.testing.assert_allclose(atoms.arrays["site_value"], source.arrays["site_value"])
        assert (
            atoms.get_potential_energy() == source.get_potential_energy()
            and atoms.info["origin"] == source.info["origin"]
        )
        name = "bald-energy" if k < 2 else "bald-force"
        score = scores[atoms.info["race_frame"]].get(name)
        assert (
            atoms.info["race_score"] == pytest.approx(score, rel=1e-9)
            and atoms.info["race_score_name"] == name
        )
        assert (
            atoms.info["race_strategy"] == "bald-joint"
            and atoms.info["race_source"] == "pool.extxyz"
        )
    again = tmp_path / "again.extxyz"
    assert select("--strategy", "bald-joint", "--budget", 4, run, pool, "-o", again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_choice_as_json(run, pool, tmp_path, capsys):
    out = tmp_path / "selected.extxyz"
    words = ("--strategy", "bald-joint", "--budget", 3, run, pool, "-o", out, "--json")
    assert select(*words) == 0
    said = json.loads(capsys.readouterr().out)
    picked = ase.io.read(out, ":")
    assert said["output"] == str(out) and said["n_pool"] == 12 and said["budget"] == 3
    assert [row["frame"] for row in said["selected"]] == [a.info["race_frame"] for a in picked]
    for row, atoms in zip(said["selected"], picked, strict=True):
        assert row["file"] == str(pool) and row["by"] == atoms.info["race_score_name"]
        assert row["score"] == pytest.approx(atoms.info["race_score"], rel=1e-9)
    # Strategies without a score have none
    out.unlink()
    assert select("--strategy", "random", "--budget", 1, pool, "-o", out, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["selected"]
    assert row["score"] is None


def test_without_a_model(pool, tmp_path):
    train = tmp_path / "train.extxyz"
    ase.io.write(train, ase.io.read(pool, ":3"))
    for strategy in ("random", "fps"):
        out = tmp_path / f"{strategy}.extxyz"
        assert (
            select(
                "--strategy",
                strategy,
                "--budget",
                8,
                pool,
                "-o",
                out,
                "--exclude",
                train,
                "--seed",
                5,
            )
            == 0
        )
        picked = [atoms.info["race_frame"] for atoms in ase.io.read(out, ":")]
        assert len(set(picked)) == 8 and not set(picked) & {0, 1, 2}
        assert not {3, 7} <= set(picked)  # copies of each other


def test_straight_from_a_lammps_dump(run, tmp_path, capsys):
    plugin = Path(race._race.__file__).parent / "raceplugin.so"
    if not plugin.exists():
        pytest.skip("raceplugin.so is not installed beside race._race: make setup builds it")
    assert main(["export", str(run), "-o", str(tmp_path / "x.race.pt")]) == 0
    write_data(tmp_path / "start.data", boron_nitride(0), ["B", "N"])
    command = "compute u all race/atom force/std force/cov bald"
    for name, colname in (
        ("plain", ""),
        ("named", "dump_modify d colname c_u[1] force/std colname c_u[8] bald"),
    ):
        finished = Lammps(plugin, tmp_path).run(LAMMPS.format(plugin=plugin, colname=colname))
        assert finished.status == 0, finished.output
        (tmp_path / "out.lammpstrj").rename(tmp_path / f"{name}.lammpstrj")
    expected = {}
    for strategy in ("max-variance", "bald-force"):
        picked = {}
        for name, words in {
            "model": [run, tmp_path / "plain.lammpstrj"],
            "columns": [tmp_path / "plain.lammpstrj", "--compute", command],
            "named": [tmp_path / "named.lammpstrj"],
        }.items():
            out = tmp_path / f"{strategy}-{name}.extxyz"
            assert (
                select(
                    "--strategy", strategy, "--budget", 3, *words, "--elements", "B", "N", "-o", out
                )
                == 0
            )
            picked[name] = ase.io.read(out, ":")
        for k in range(3):
            scores = [picked[name][k].info["race_score"] for name in picked]
            assert scores == pytest.approx([scores[0]] * 3, rel=1e-6)
            assert len({picked[name][k].info["race_frame"] for name in picked}) == 1
        atoms = picked["columns"][0]
        assert atoms.info["timestep"] == 5 * atoms.info["race_frame"] and "energy" not in (
            atoms.calc.results if atoms.calc else {}
        )
        cov = np.stack([atoms.arrays[f"force_cov_{k}"] for k in (1, 2, 3)], axis=1)
        np.testing.assert_allclose(atoms.arrays["force_std"] ** 2, cov.mean(axis=1), rtol=1e-6)
        expected[strategy] = scores
    assert expected["max-variance"] != pytest.approx(expected["bald-force"], rel=0.1)
    # Without columns that say so, the dump is only structures.
    out = str(tmp_path / "none.extxyz")
    assert (
        select(
            "--strategy",
            "bald-force",
            "--budget",
            1,
            tmp_path / "plain.lammpstrj",
            "--elements",
            "B",
            "N",
            "-o",
            out,
        )
        == 2
    )
    assert "no model to tell bald-force" in capsys.readouterr().err


def test_the_grade_of_a_dump(tmp_path):
    """The largest of its atoms; an infinite one, of an element never seen, comes first."""
    dump = tmp_path / "out.lammpstrj"
    frames = {0: ["0.5", "3.0"], 10: ["inf", "0.1"], 20: ["2.0", "2.5"]}
    dump.write_text(
        "".join(
            f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n"
            + "0 9\n" * 3
            + "ITEM: ATOMS id element x y z grade\n"
            + f"1 B {step * 0.1} 0 0 {first}\n2 N 0 2 0 {second}\n"
            for step, (first, second) in frames.items()
        )
    )
    out = tmp_path / "selected.extxyz"
    assert select("--strategy", "grade", "--budget", 2, dump, "-o", out) == 0
    picked = ase.io.read(out, ":")
    assert [atoms.info["timestep"] for atoms in picked] == [10, 0]
    assert [atoms.info["race_score"] for atoms in picked] == [np.inf, 3.0]


def test_columns_of_a_compute():
    names = column_names("compute u all race/atom force/std interval 0.9 force/cov")
    assert (
        names["force/std"] == ["c_u[1]"]
        and names["interval 0.9"] == ["c_u[2]", "c_u[3]", "c_u[4]"]
        and names["force/cov"][0] == "c_u[5]"
    )
    assert column_names("v all race/atom bald; w all race/atom energy/std") == {
        "bald": ["c_v"],
        "energy/std": ["c_w"],
    }
    for wrong, message in (
        ("u all stress/atom NULL", "not a compute race/atom"),
        ("u all race/atom force", "unknown keyword"),
    ):
        with pytest.raises(RaceError, match=message):
            column_names(wrong)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--budget", "99", "POOL"], "the budget does not fit; expected 1 to 12"),
        (["--budget", "2", "RUN"], "no pool"),
        (["--budget", "2", "missing.extxyz"], "missing.extxyz: no such file"),
        (["--budget", "2", "broken.extxyz"], "the file ends inside this frame"),
        (["--budget", "2", "coincide.extxyz"], "coincide.extxyz, frame 1: atoms"),
        (["--budget", "2", "--features", "model", "POOL"], "--features: is that of fps"),
        (["--budget", "2", "POOL", "--elements", "B", "N"], "--elements: is for LAMMPS dumps"),
        (["--budget", "2", "POOL", "--compute", "u all race/atom bald"], "--compute: is for"),
    ],
)
def test_refusals(run, pool, tmp_path, capsys, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.extxyz").write_text("3\nnothing\nB 0 0\n")
    bad = boron_nitride(1)
    bad.positions[1] = bad.positions[0]
    ase.io.write("coincide.extxyz", [boron_nitride(0), bad])
    words = [{"POOL": pool, "RUN": run}.get(word, word) for word in words]
    assert select("--strategy", "random", *words, "-o", "out.extxyz") == 2
    assert message in capsys.readouterr().err and not Path("out.extxyz").exists()


def test_the_pool_is_not_overwritten(pool, tmp_path, capsys):
    """Under its own name, by another way, and as what is excluded."""
    original = pool.read_bytes()
    link = tmp_path / "link.extxyz"
    link.symlink_to(pool)
    other = tmp_path / "known.extxyz"
    other.write_bytes(original)
    for words in (
        [pool, "-o", pool],
        [pool, "-o", pool.parent / "." / pool.name],
        [pool, "-o", link],
        [other, "--exclude", pool, "-o", pool],
    ):
        assert select("--strategy", "random", "--budget", "2", *words) == 2
        assert "the output is one of the inputs" in capsys.readouterr().err
        assert pool.read_bytes() == original


def test_bad_frames_of_a_pool_are_left_out_and_named(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = boron_nitride(1)
    bad.positions[1] = bad.positions[0]
    ase.io.write("pool.extxyz", [boron_nitride(0), bad, boron_nitride(2)])
    words = ["--strategy", "random", "--budget", "2", "pool.extxyz", "-o", "out.extxyz"]
    assert select(*words) == 2
    assert select(*words, "--skip-bad-frames", "1") == 0
    assert "left out: pool.extxyz, frame 1: atoms" in caplog.text
    assert len(ase.io.read("out.extxyz", ":")) == 2


def test_frames_of_other_elements_are_left_out(run, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = boron_nitride(1)
    other.symbols[0] = "Cu"
    ase.io.write("pool.extxyz", [boron_nitride(0), other, boron_nitride(2)])
    words = ["--budget", "2", str(run), "pool.extxyz", "-o", "out.extxyz"]
    assert select(*words, "--strategy", "max-variance") == 2
    assert "pool.extxyz, frame 1: element Cu is unknown" in capsys.readouterr().err
    assert select(*words, "--strategy", "max-variance", "--skip-bad-frames", "1") == 0
    assert "left out: pool.extxyz, frame 1: element Cu" in caplog.text
    assert len(ase.io.read("out.extxyz", ":")) == 2
    assert select(*words, "--strategy", "random") == 0  # asks no model
