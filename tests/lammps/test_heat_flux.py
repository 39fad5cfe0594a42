"""compute race/heat/flux against d/dt sum_i r_i e_i by central differences in time, from LAMMPS's
own per-atom energies of a cluster in vacuum.
"""

from typing import NamedTuple

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import boron_nitride

INPUT = """
units {units}
atom_modify map yes
boundary f f f
read_data cluster.data
plugin load {plugin}
pair_style race {model} dtype float64
pair_coeff * * B N O
newton {newton}
velocity all create 3000 7 loop geom
compute ke all ke/atom
compute pe all pe/atom
{computes}
thermo_style custom step {columns}
thermo_modify format float %.15g
dump now all custom 1 run.0 id x y z vx vy vz c_pe c_ke fx fy fz
dump_modify now sort id format float %.17g
run 0
undump now
variable h equal {h}
variable xp atom x+v_h*vx
variable yp atom y+v_h*vy
variable zp atom z+v_h*vz
variable xm atom x-2*v_h*vx
variable ym atom y-2*v_h*vy
variable zm atom z-2*v_h*vz
set group all x v_xp y v_yp z v_zp
dump next all custom 1 run.p id c_pe
dump_modify next sort id format float %.17g
run 0
undump next
set group all x v_xm y v_ym z v_zm
dump last all custom 1 run.m id c_pe
dump_modify last sort id format float %.17g
run 0
"""
EXACT = "compute J all race/heat/flux"
LAMMPS_OWN = """
compute s all centroid/stress/atom NULL virial
compute K all heat/flux ke pe s
"""


EACH = "compute J all race/heat/flux members"
OF_EACH = "c_J[*] " + " ".join(f"c_J[{m}][{a}]" for m in (1, 2, 3) for a in (1, 2, 3))


class Flux(NamedTuple):
    """Of one step, in LAMMPS's units."""

    row: dict[str, float]  # what thermo says
    exact: np.ndarray  # [3] d/dt sum_i r_i e_i
    convective: np.ndarray  # [3] sum_i e_i v_i
    kinetic: np.ndarray  # [3] of that, the kinetic energy's


def flux(
    lammps_run, model, ranks=1, computes=EXACT, columns="c_J[*]", units="metal", newton="on"
) -> Flux:
    frame = boron_nitride((2, 2, 2))
    frame.center(vacuum=6.0)
    frame.pbc = False
    write_data(lammps_run.folder / "cluster.data", frame, ELEMENTS)
    h = 1e-5 if units == "metal" else 1e-2
    text = INPUT.format(
        plugin=lammps_run.plugin,
        model=model,
        computes=computes,
        columns=columns,
        units=units,
        newton=newton,
        h=h,
    ).replace(f"newton {newton}\n", "", 1)
    text = f"newton {newton}\n" + text
    finished = lammps_run.run(text, ranks)
    assert finished.status == 0 and not finished.hung, finished.output
    now, later, before = (read_dump(lammps_run.folder / f"run.{k}")[0] for k in "0pm")
    x, v, f = (np.stack([now[f"{kind}{a}"] for a in "xyz"], 1) for kind in ("", "v", "f"))
    energy = now["c_pe"] + now["c_ke"]
    power = (f * v).sum(1) + (later["c_pe"] - before["c_pe"]) / (2 * h)
    assert abs(power.sum()) < 1e-3 * np.abs(power).sum()
    convective = (v * energy[:, None]).sum(0)
    return Flux(
        row=thermo(finished.output)[0],
        exact=convective + (x * power[:, None]).sum(0),
        convective=convective,
        kinetic=(v * now["c_ke"][:, None]).sum(0),
    )


def three(row, name="c_J", first=1):
    return np.array([row[f"{name}[{k}]"] for k in range(first, first + 3)])


def each(row) -> np.ndarray:
    """[M, 3] of OF_EACH"""
    return np.array([[row[f"c_J[{m}][{a}]"] for a in (1, 2, 3)] for m in (1, 2, 3)])


@pytest.mark.parametrize("n_layers", [1, 3])
def test_exact(lammps_run, artifacts, n_layers):
    model = artifacts(f"flux{n_layers}", n_layers=n_layers)
    row, exact, convective, _ = flux(lammps_run, model)
    scale = np.abs(exact).max()
    assert np.abs(three(row) - exact).max() < 1e-4 * scale
    assert np.abs(three(row, first=4) - convective).max() < 1e-9 * scale
    for ranks, newton in ((2, "on"), (4, "on"), (2, "off")):
        other = flux(lammps_run, model, ranks, newton=newton).row
        for first in (1, 4):
            np.testing.assert_allclose(
                three(other, first=first), three(row, first=first), rtol=0, atol=1e-9 * scale
            )


def test_units_of_real(lammps_run, artifacts):
    found = flux(lammps_run, artifacts("flux3", n_layers=3), units="real")
    assert np.abs(three(found.row) - found.exact).max() < 1e-4 * np.abs(found.exact).max()


def test_members(lammps_run, artifacts):
    """The mean of the members' is the model's, on two ranks; with a core, too."""
    training = {"min_distance": {"B-B": 2.0, "B-N": 1.7, "N-N": 2.0}}
    model = f"{artifacts('flux_core', n_layers=2, training=training)} zbl on"
    row, exact, *_ = flux(lammps_run, model, 2, EACH, OF_EACH)
    scale = np.abs(exact).max()
    assert np.abs(three(row) - exact).max() < 1e-4 * scale
    of = each(row)
    np.testing.assert_allclose(of.mean(0), three(row), rtol=0, atol=1e-10 * scale)
    assert np.abs(of - of.mean(0)).max() > 1e-3 * scale


@pytest.mark.parametrize("lead", [1, 2, 3])
def test_each_member_of_products(lammps_run, artifacts, lead):
    """A member's flux is the rate of its own energies, which it has as the leader. The vector is
    the leader's, which moves the atoms, also where all members are requested.
    """
    path = artifacts("flux_products", leaders=True, n_layers=2, correlation=3, gate=True)
    row, exact, convective, _ = flux(lammps_run, f"{path} lead {lead}", 2, EACH, OF_EACH)
    scale, of = np.abs(exact).max(), each(row)
    assert np.abs(of[lead - 1] - exact).max() < 1e-4 * scale
    assert np.abs(of - exact).max(1)[np.arange(3) != lead - 1].min() > 1e-2 * scale
    np.testing.assert_allclose(three(row), of[lead - 1], rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(three(row, first=4), convective, rtol=0, atol=1e-9 * scale)
    alone = flux(lammps_run, f"{path} lead {lead}", 2).row
    for first in (1, 4):
        np.testing.assert_allclose(
            three(alone, first=first), three(row, first=first), rtol=0, atol=1e-9 * scale
        )


@pytest.mark.parametrize("factor", [0.25, -2.0])
def test_scale_of_fix_adapt(lammps_run, artifacts, factor):
    """The factor is on energies and forces, and so on what they carry; not on kinetic energies."""
    model = artifacts("flux3", n_layers=3)
    adapt = f"variable s equal {factor}\nfix a all adapt 0 pair race scale * * v_s"
    plain = flux(lammps_run, model, 2, EACH, OF_EACH)
    found = flux(lammps_run, model, 2, f"{EACH}\n{adapt}", OF_EACH)
    scale = np.abs(found.exact).max()
    assert np.abs(three(found.row) - found.exact).max() < 1e-4 * scale
    assert np.abs(three(found.row, first=4) - found.convective).max() < 1e-9 * scale
    for of in (three, lambda row: three(row, first=4), each):
        carried, scaled = of(plain.row) - plain.kinetic, of(found.row) - found.kinetic
        assert np.all(np.abs(carried) > 1e-4 * np.abs(carried).max())
        np.testing.assert_allclose(scaled, factor * carried, rtol=0, atol=1e-9 * scale)


def test_lammps_own(lammps_run, artifacts):
    """Right for one layer, whose virials are the sender's; refused with the remedy for more."""
    row, exact, *_ = flux(
        lammps_run, artifacts("flux1", n_layers=1), 2, EXACT + LAMMPS_OWN, "c_J[*] c_K[*]"
    )
    scale = np.abs(exact).max()
    assert np.abs(three(row, "c_K") - exact).max() < 1e-4 * scale
    np.testing.assert_allclose(three(row, "c_K", 4), three(row, "c_J", 4), atol=1e-8 * scale)
    script = INPUT.format(
        plugin=lammps_run.plugin,
        model=artifacts("flux3", n_layers=3),
        computes=LAMMPS_OWN,
        columns="c_K[*]",
        units="metal",
        newton="on",
        h=1e-5,
    ).replace("newton on\n", "", 1)
    finished = lammps_run.run(script)
    assert finished.status != 0 and "entroid" in finished.errors()[0]
    assert "use compute race/heat/flux" in finished.output


def test_wrong_arguments(lammps_run, artifacts):
    model = artifacts("flux_one", n_layers=1, n_members=1)
    start = INPUT.split("newton")[0].format(plugin=lammps_run.plugin, model=model, units="metal")
    write_data(lammps_run.folder / "cluster.data", boron_nitride((1, 1, 1)), ELEMENTS)
    for command, said in {
        "compute J all race/heat/flux each": "expected nothing more, or members, got each",
        "group b type 1\ncompute J b race/heat/flux": "expected group all",
        "compute J all race/heat/flux members\nrun 0": "has one member",
        "compute J all race/heat/flux\nvariable j equal c_J[1]\nprint $j": "",
    }.items():
        finished = lammps_run.run(f"{start}\n{command}\n")
        assert finished.status == 1 and said in finished.errors()[0], finished.output
