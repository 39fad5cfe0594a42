"""The driver of i-PI: its units against the calculator, and path integrals by i-PI itself."""

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ipi.utils.io.inputs import read_args_kwargs

import race
from race.deploy.export import alone, export_model
from race.deploy.ipi_driver import RaceDriver
from race.errors import RaceError

BIN = Path(sys.executable).parent
INPUT = """
<simulation verbosity="low">
  <output prefix="run">
    <properties stride="1" filename="out">
      [step, conserved{{electronvolt}}, potential{{electronvolt}}]
    </properties>
    <trajectory stride="1" filename="x" format="xyz" cell_units="angstrom">
      positions{{angstrom}}
    </trajectory>
    <trajectory stride="1" filename="f"> forces{{ev/ang}} </trajectory>
    <trajectory stride="1" filename="std" extra_type="forces_std"> extras </trajectory>
  </output>
  <total_steps> 4 </total_steps>
  <ffsocket mode="unix" name="race" pbc="false"> <address> {address} </address> </ffsocket>
  <system>
    <initialize nbeads="2">
      <file mode="ase"> init.xyz </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces> <force forcefield="race"/> </forces>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"> <timestep units="femtosecond"> 0.25 </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""


def atomic_units(atoms):
    """As i-PI passes them: cell vectors in columns, Bohr."""
    return atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr


def test_units_and_extras(artifact, atoms, tmp_path):
    ase.io.write(tmp_path / "init.xyz", atoms)
    names = ["energy_std", "forces_std"]
    driver = RaceDriver(str(tmp_path / "init.xyz"), str(artifact), "/".join(names))
    moved = atoms.copy()
    moved.rattle(0.05, seed=2)
    energy, forces, virial, extras = driver.compute(*atomic_units(moved))
    calculator = race.Calculator(artifact)
    get = {
        name: calculator.get_property(name, moved)
        for name in ["energy", "forces", "stress", *names]
    }
    close = {"rtol": 1e-5, "atol": 1e-5}  # i-PI and ASE know the constants of different years
    np.testing.assert_allclose(energy * units.Hartree, get["energy"], **close)
    np.testing.assert_allclose(forces * units.Hartree / units.Bohr, get["forces"], **close)
    want = -moved.get_volume() * get["stress"]
    np.testing.assert_allclose(
        (virial.reshape(3, 3) * units.Hartree)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
        want,
        **close,
    )
    extras = json.loads(extras)
    assert extras.keys() == set(names)
    np.testing.assert_allclose(extras["energy_std"], get["energy_std"], **close)
    np.testing.assert_allclose(extras["forces_std"], get["forces_std"], **close)


def test_a_cluster(artifact, atoms, tmp_path):
    """The box that i-PI keeps around it is no periodicity."""
    atoms.pbc = False
    ase.io.write(tmp_path / "init.xyz", atoms)
    driver = RaceDriver(str(tmp_path / "init.xyz"), str(artifact))
    energy, forces, virial, extras = driver.compute(*atomic_units(atoms))
    want = race.Calculator(artifact).get_property("energy", atoms)
    assert energy * units.Hartree == pytest.approx(want, rel=2e-6)
    assert not virial.any() and extras == ""


def test_an_uncertainty_that_the_artifact_does_not_have(artifact, atoms, tmp_path):
    ase.io.write(tmp_path / "init.xyz", atoms)
    with pytest.raises(RaceError, match="does not give this uncertainty.*energy_std"):
        RaceDriver(str(tmp_path / "init.xyz"), str(artifact), "energy_std/force_std")


def test_a_member_leads(model, atoms, tmp_path):
    """i-PI reads the 1 of `lead=1` as a number."""
    path = tmp_path / "led.race.pt"
    export_model(model, path, leaders=alone(model))
    ase.io.write(tmp_path / "init.xyz", atoms)
    _, options = read_args_kwargs(f"template={tmp_path}/init.xyz,model={path},lead=1")
    energy, *_ = RaceDriver(**options).compute(*atomic_units(atoms))
    want = race.Calculator(path, lead="1").get_property("energy", atoms)
    assert energy * units.Hartree == pytest.approx(want, rel=2e-6)


def test_path_integrals(artifact, atoms, tmp_path):
    """Two beads by i-PI: what it writes of them is what the calculator says of their positions."""
    # i-PI wants a triangular cell
    cell, _ = atoms.cell.standard_form()
    atoms.set_cell(cell, scale_atoms=True)
    ase.io.write(tmp_path / "init.xyz", atoms)
    address = f"race-{uuid.uuid4().hex[:12]}"
    (tmp_path / "input.xml").write_text(INPUT.format(address=address))
    file = subprocess.run(
        [BIN / "race", "plugin", "--i-pi"], capture_output=True, text=True, check=True
    ).stdout.strip()
    options = f"template=init.xyz,model={artifact},uncertainty=forces_std"
    server = subprocess.Popen(
        [sys.executable, BIN / "i-pi", "input.xml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(Path(f"/tmp/ipi_{address}"), server)
        words = ["-u", "-a", address, "-m", "custom", "-P", file, "-o", options]
        done = subprocess.run(
            [sys.executable, BIN / "i-pi-driver-py", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said, _ = server.communicate(timeout=60)
        assert server.returncode == 0, said
    finally:
        server.kill()

    table = np.loadtxt(tmp_path / "run.out")
    assert len(table) == 5 and np.ptp(table[:, 1]) < 1e-3 < np.ptp(table[:, 2])
    calculator = race.Calculator(artifact)
    potential = np.zeros(5)
    for bead in "01":
        frames = ase.io.read(tmp_path / f"run.x_{bead}.xyz", ":")
        forces = ase.io.read(tmp_path / f"run.f_{bead}.xyz", ":")
        std = np.loadtxt(tmp_path / f"run.std_{bead}").reshape(5, len(atoms), 3)
        assert np.abs(frames[4].positions - frames[0].positions).max() > 1e-3
        for k, frame in enumerate(frames):
            known = atoms.copy()
            known.positions = frame.positions
            potential[k] += calculator.get_property("energy", known) / 2
            # i-PI writes six digits
            np.testing.assert_allclose(
                forces[k].positions, calculator.get_property("forces", known), atol=2e-3
            )
            np.testing.assert_allclose(
                std[k], calculator.get_property("forces_std", known), atol=2e-3
            )
    np.testing.assert_allclose(table[:, 2], potential, atol=2e-3)


def wait_for(socket: Path, server: subprocess.Popen) -> None:
    for _ in range(600):
        if socket.exists():
            return
        assert server.poll() is None, server.stdout.read()
        time.sleep(0.1)
    raise AssertionError("i-PI did not open its socket")
