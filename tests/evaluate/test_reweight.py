"""race reweight: averages of a run under each member, where the truth is known in closed form."""

import json
import re

import numpy as np
import pytest

from race.cli import main
from race.data.series import read_series
from race.errors import RaceError
from race.evaluate.reweight import reweight

KT = 0.5


def oscillator(stiffness, n=4000, seed=0):
    """Positions of a harmonic oscillator of stiffness 1 at kT, and the members' energies."""
    x = np.random.default_rng(seed).normal(scale=np.sqrt(KT), size=n)
    return x, 0.5 * np.asarray(stiffness) * x[:, None] ** 2, 0.5 * x**2


@pytest.mark.parametrize(("method", "tolerance"), [("direct", 0.02), ("cumulant", 0.06)])
def test_a_members_average_is_its_own(method, tolerance):
    """<x^2> = kT / k: exactly, or to the first order in k - 1."""
    stiffness = [0.9, 1.0, 1.2]
    x, members, driving = oscillator(stiffness, n=200_000)
    found = reweight(x**2, members, driving, KT, method).members
    np.testing.assert_allclose(found, KT / np.array(stiffness), rtol=tolerance)
    if method == "cumulant":
        first_order = KT * (2 - np.array(stiffness))  # -beta cov(x^2, x^2/2) (k - 1) = -kT (k - 1)
        np.testing.assert_allclose(found, first_order, rtol=0.01)


@pytest.mark.parametrize(("method", "tolerance"), [("direct", 0.02), ("cumulant", 0.06)])
def test_the_energy_of_a_member_is_its_own(method, tolerance):
    """kT / 2 for any stiffness, where the driving potential's would be kT / (2 k)."""
    x, members, driving = oscillator([0.9, 1.0, 1.2], n=200_000)
    found = reweight(members, members, driving, KT, method, own=True)
    np.testing.assert_allclose(found.members, KT / 2, rtol=tolerance)
    assert found.mean.shape == () and found.epistemic_std < 0.02
    profile = np.stack([members, 2 * members], axis=2)
    both = reweight(profile, members, driving, KT, method, own=True).members
    np.testing.assert_allclose(both, np.stack([found.members, 2 * found.members], axis=1))


def test_equal_members_leave_nothing_uncertain_but_sampling():
    x, members, driving = oscillator([1.0, 1.0, 1.0])
    found = reweight(x**2, members, driving, KT)
    assert found.epistemic_std == pytest.approx(0, abs=1e-14)
    expected = np.sqrt(2) * KT / np.sqrt(len(x))  # std of x^2 over sqrt(n)
    assert found.sampling_std == pytest.approx(expected, rel=0.35)
    np.testing.assert_allclose(found.effective, len(x))


def test_weights_that_degenerate_turn_auto_into_the_cumulant_expansion():
    x, members, driving = oscillator([1.0, 1.05])
    assert reweight(x**2, members, driving, KT).method == "direct"
    x, members, driving = oscillator([1.0, 4000.0])
    found = reweight(x**2, members, driving, KT)
    assert found.method == "cumulant" and found.effective[1] < 0.05 * len(x)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Members and truth are draws of one distribution: 90 % of 300 intervals."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(300):
        stiffness = rng.normal(1.0, 0.1, size=6)
        truth, members = stiffness[0], stiffness[1:]
        mean = members.mean()
        x = rng.normal(scale=np.sqrt(KT / mean), size=500)
        energies = 0.5 * members * x[:, None] ** 2
        found = reweight(x**2, energies, energies.mean(1), KT)
        held.append(abs(found.mean - KT / truth) < found.half_width(0.9))
    assert 0.86 <= np.mean(held) <= 0.95


def test_profiles_and_the_temperature_of_each_step():
    x, members, driving = oscillator([0.9, 1.1])
    profile = np.stack([x**2, np.ones_like(x)], axis=1)
    found = reweight(profile, members, driving, np.full(len(x), KT))
    assert found.mean.shape == (2,) and found.members.shape == (2, 2)
    alone = reweight(x**2, members, driving, KT)
    np.testing.assert_allclose(found.members[:, 0], alone.members)
    np.testing.assert_allclose(found.members[:, 1], 1)


# ---- files of LAMMPS -------------------------------------------------------------------------

LOG = """LAMMPS (22 Jul 2025)
Per MPI rank memory allocation (min/avg/max) = 3.1 | 3.1 | 3.1 Mbytes
   Step          Temp          c_U[1]         c_U[2]
         0   300            1.0            1.1
        10   310            1.2            1.1
WARNING: something happened (src/x.cpp:1)
        20   290            1.1            1.3
Loop time of 1.0 on 1 procs for 20 steps with 2 atoms
   Step          Temp          c_U[1]         c_U[2]
        20   295            1.1            1.4
        30   305            1.0            1.2
Loop time of 1.0 on 1 procs for 10 steps with 2 atoms
"""
RDF = """# Time-averaged data for fix r
# TimeStep Number-of-rows
# Row c_g[1] c_g[2]
10 2
1 0.5 0.0
2 1.5 1.0
20 2
1 0.5 0.2
2 1.7 1.0
30 2
1 0.5 0.4
2 1.6 1.0
"""


def test_runs_of_a_log_are_joined_and_a_step_counts_once(tmp_path):
    (tmp_path / "log").write_text(LOG)
    series = read_series(tmp_path / "log")
    assert series.step.tolist() == [0, 10, 20, 30]
    assert series["Temp"].tolist() == [300, 310, 295, 305]  # the later value of step 20


def test_the_other_kinds_of_file(tmp_path):
    (tmp_path / "rdf").write_text(RDF)
    series = read_series(tmp_path / "rdf")
    assert series["c_g[1]"].tolist() == [[0.5, 1.5], [0.5, 1.7], [0.5, 1.6]]
    (tmp_path / "print").write_text("# step density\n5 1.5\n6 1.25\n")
    assert read_series(tmp_path / "print")["density"].tolist() == [1.5, 1.25]
    (tmp_path / "ave").write_text("# Time-averaged data\n# TimeStep c_p\n5 1.5\n6 1.25\n")
    assert read_series(tmp_path / "ave").step.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing here\n", "no table"),
        (LOG.replace("1.2            1.1", "nan            1.1"), "step 10: column c_U.1. is not"),
        (RDF.replace("30 2", "30 3"), "ends inside a block"),
        (RDF.replace("20 2\n1 0.5 0.2\n", "20 1\n"), "blocks of different length"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(RaceError, match=message):
        read_series(tmp_path / "file")


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, members, _ = oscillator([0.9, 1.0, 1.1], n=400)
    rows = "".join(
        f"{10 * k} {x[k] ** 2:.9g} {rng.normal(300):.9g} "
        + " ".join(f"{e:.12g}" for e in members[k])
        + "\n"
        for k in range(len(x))
    )
    (tmp_path / "log").write_text(
        f"Step v_x2 Temp c_U[1] c_U[2] c_U[3]\n{rows}Loop time of 1 on 1 procs\n"
    )
    kelvin = KT / 8.617333262e-5
    command = ["reweight", str(tmp_path / "log"), "--members", "c_U", "--observables", "v_x2"]
    status = main([*command, "--temperature", str(kelvin), "-o", str(tmp_path / "out.json")])
    assert status == 0 and "v_x2" in capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text())["averages"]["v_x2"]
    expected = reweight(x**2, members, members.mean(1), KT)
    np.testing.assert_allclose(record["members"], expected.members, rtol=1e-6)

    # Columns of energies are each member's own; a pressure cannot be.
    text = (tmp_path / "log").read_text().replace("v_x2 Temp", "PotEng Press")
    (tmp_path / "energies").write_text(text)
    words = ["reweight", str(tmp_path / "energies"), "--members", "c_U"]
    out = ["--temperature", str(kelvin), "-o", str(tmp_path / "out.json")]
    assert main([*words, *out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: Press: every member's average has the pressures of the potential" in said
    assert main([*words, *out, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert printed["notes"][0].startswith("warning: Press")
    record = printed["averages"]["PotEng"]
    own = (x**2)[:, None] + members - members.mean(1, keepdims=True)
    expected = reweight(own, members, members.mean(1), KT, own=True)
    np.testing.assert_allclose(record["members"], expected.members, rtol=1e-6)

    for output in ("log", "log.dat"):
        assert main([*command, "--temperature", str(kelvin), "-o", str(tmp_path / output)]) == 2
    assert "Loop time" in (tmp_path / "log").read_text()

    for wrong, message in [
        (["--members", "c_V"], "no energies of two or more members"),
        (["--members", "c_U[2:9]"], "no column 4"),
        (["--lead", "4"], "--lead: no such member"),
        (["--temperature", "-3"], "not a temperature"),
        (["--observables", "v_y"], "no column v_y"),
        (["--skip", "3990"], "fewer than two steps"),
    ]:
        assert main([*command, "--temperature", str(kelvin), *wrong]) == 2
        assert re.search(re.escape(message), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("stiffness", "method", "weak"),
    [
        (4000.0, "direct", True),
        (4000.0, "auto", False),
        (1.1, "direct", False),
    ],
)
def test_weights_of_few_steps_are_said(tmp_path, capsys, stiffness, method, weak):
    """Direct averages of a member that hardly a step of the run belongs to."""
    x, members, _ = oscillator([1.0, stiffness], n=400)
    rows = "".join(
        f"{k} {x[k] ** 2:.9g} {members[k, 0]:.12g} {members[k, 1]:.12g}\n" for k in range(len(x))
    )
    (tmp_path / "log").write_text(f"Step v_x2 c_U[1] c_U[2]\n{rows}Loop time of 1 on 1 procs\n")
    words = ["reweight", str(tmp_path / "log"), "--members", "c_U", "--observables", "v_x2"]
    words += ["--temperature", str(KT / 8.617333262e-5), "--method", method]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    warning = "warning: fewer than 20 steps carry the weight of a member in v_x2; use --method"
    assert (warning in said) == weak and ("cumulant: the members differ" in said) == (
        method == "auto"
    )
