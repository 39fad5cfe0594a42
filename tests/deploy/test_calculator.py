"""The ASE calculator: against the Python model, against finite differences, and what it refuses."""

import copy
import functools
import json
import pickle
import shutil
import warnings

import ase.build
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces

import race
from race.conventions import SIX_TO_VOIGT, matrix_from_six
from race.deploy.export import export_model
from race.errors import RaceError
from race.evaluate.calibration import IntervalTable
from race.model.heads import evidential_kappa
from tests.deploy.conftest import graph_of, make_model, numeric_stress


@pytest.fixture
def calculator(artifact):
    return race.Calculator(artifact)


def close(got, want, tolerance=1e-9):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def test_equals_the_model(calculator, model, atoms):
    atoms.calc = calculator
    result = {
        name: value.detach().numpy() for name, value in model(graph_of(atoms)).tensors().items()
    }
    energy, forces, stress = result["energy"][0], result["forces"], result["stress"][0]
    close(atoms.get_potential_energy(), energy.mean())
    close(atoms.get_potential_energies(), result["node_energy"].mean(1))
    close(atoms.get_forces(), forces.mean(1))
    close(atoms.get_stress(), stress.mean(0)[list(SIX_TO_VOIGT)])

    get = calculator.get_property
    close(get("energy_std", atoms), np.sqrt(result["energy_var"].mean() + energy.var()))
    of_members = model.forces_cov(torch.from_numpy(result["raw"])).detach().numpy()  # [n, M, 3, 3]
    aleatoric = of_members.mean(1)
    deviation = forces - forces.mean(1, keepdims=True)
    epistemic = np.einsum("nma,nmb->nab", deviation, deviation) / forces.shape[1]
    close(get("forces_cov_aleatoric", atoms), aleatoric)
    close(get("forces_cov_epistemic", atoms), epistemic)
    close(get("forces_cov", atoms), aleatoric + epistemic)
    bald = 0.5 * np.log(np.linalg.det(aleatoric + epistemic)) - 0.5 * np.log(
        np.linalg.det(of_members)
    ).mean(1)
    close(get("bald", atoms), bald)
    # It is not what the mean of the covariances would give, and it is positive: mixing
    # members adds entropy.
    assert (
        np.abs(
            bald - 0.5 * np.log(np.linalg.det(aleatoric + epistemic) / np.linalg.det(aleatoric))
        ).max()
        > 1e-4
        and bald.min() > 0
    )
    close(get("stress_std", atoms), stress.std(0)[list(SIX_TO_VOIGT)])
    close(get("energy_members", atoms), energy)
    close(get("forces_members", atoms), forces)
    close(get("stress_members", atoms), stress[:, SIX_TO_VOIGT])
    assert np.abs(epistemic).max() > 1e-6 and np.abs(aleatoric).max() > 1e-6


def test_plain_forces_do_not_pay_for_members(calculator, atoms, monkeypatch):
    requests = []
    model = calculator.predictor.model

    class Spy:
        def predict(self, *arguments, **request):
            requests.append(request)
            return model.predict(*arguments, **request)

    calculator.predictor.model = Spy()
    atoms.calc = calculator
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    assert requests == [{"members": False, "uncertainty": False, "zbl": None}]
    (
        calculator.get_property("forces_cov", atoms),
        calculator.get_property("energy_std", atoms),
        atoms.get_forces(),
    )
    assert len(requests) == 2 and requests[1] == {"members": True, "uncertainty": True, "zbl": None}


@pytest.mark.parametrize("pbc", [True, False])
def test_forces_against_finite_differences(calculator, atoms, pbc):
    atoms.set_pbc(pbc)
    atoms.calc = calculator
    forces = atoms.get_forces()
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 5])
    scale = np.abs(forces).max()
    assert np.abs(forces[[0, 5]] - numerical).max() < 1e-6 * scale
    assert np.abs(forces[[1, 6]] - numerical).max() > 1e-3 * scale
    assert np.abs(forces.sum(0)).max() < 1e-10 * scale


def test_covariance_rotates(calculator, atoms):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell @ rotation.T, scale_atoms=True)
    before, after = (calculator.get_property("forces_cov", frame) for frame in (atoms, rotated))
    close(after, rotation @ before @ rotation.T, 1e-10)
    assert np.abs(after - before).max() > 1e-6 and np.linalg.eigvalsh(before).min() > 0


def test_follows_changes(calculator, atoms):
    atoms.calc = calculator
    first = atoms.get_potential_energy()
    atoms.positions[0] += 0.1
    assert atoms.get_potential_energy() != first
    atoms.positions[0] -= 0.1
    close(atoms.get_potential_energy(), first)


def test_atoms_outside_the_cell(calculator, atoms):
    moved = atoms.copy()
    moved.positions[3] += 2 * atoms.cell[0] - atoms.cell[2]
    close(calculator.get_property("forces", moved), calculator.get_property("forces", atoms))


def test_one_point_member_has_no_uncertainty(atoms, tmp_path):
    export_model(make_model(head="point", n_members=1), tmp_path / "x.race.pt")
    calculator = race.Calculator(tmp_path / "x.race.pt", uncertainty=True)
    assert np.isfinite(calculator.get_property("forces", atoms)).all()
    for name in ("energy_std", "forces_cov", "forces_cov_aleatoric", "bald", "stress_std"):
        with pytest.raises(PropertyNotImplementedError):
            calculator.get_property(name, atoms)


def test_one_member_has_its_aleatoric_part(atoms, tmp_path):
    export_model(make_model(n_members=1), tmp_path / "x.race.pt")
    calculator = race.Calculator(tmp_path / "x.race.pt")
    close(
        calculator.get_property("forces_cov", atoms),
        calculator.get_property("forces_cov_aleatoric", atoms),
    )
    for name in ("forces_cov_epistemic", "bald", "stress_std"):
        with pytest.raises(PropertyNotImplementedError):
            calculator.get_property(name, atoms)


@pytest.mark.parametrize("n_members", [1, 3])
def test_noise_of_the_stress(n_members, atoms, tmp_path):
    """Total covariance of the stress: noise over volume^2, and the members' spread; Voigt
    order; half of it in a cell of twice the size.
    """
    model = make_model(n_members=n_members, stress_head="equivariant")
    export_model(model, tmp_path / "x.race.pt")
    calculator = race.Calculator(tmp_path / "x.race.pt")
    result, voigt = model(graph_of(atoms)), list(SIX_TO_VOIGT)
    noise = result.virial_cov[0].detach().numpy().mean(0)[voigt][:, voigt] / atoms.get_volume() ** 2
    spread = np.cov(result.stress[0].detach().numpy()[:, voigt].T, bias=True)
    get = calculator.get_property
    np.testing.assert_allclose(get("stress_cov_aleatoric", atoms), noise, rtol=1e-9)
    np.testing.assert_allclose(get("stress_cov", atoms), noise + spread, rtol=1e-9)
    np.testing.assert_allclose(
        get("stress_std", atoms), np.sqrt(np.diagonal(noise + spread)), rtol=1e-9
    )
    if n_members == 1:
        with pytest.raises(PropertyNotImplementedError):
            get("stress_cov_epistemic", atoms)
    double = calculator.get_property("stress_cov_aleatoric", atoms.repeat((2, 1, 1)))
    np.testing.assert_allclose(double, noise / 2, rtol=1e-9)


def test_one_evidential_member_has_bald(atoms, tmp_path):
    """Its two covariances are proportional: 3/2 ln(1 + 1/kappa)."""
    model = make_model(n_members=1, head="evidential")
    export_model(model, tmp_path / "x.race.pt")
    kappa = evidential_kappa(model(graph_of(atoms)).raw).detach().numpy()[:, 0]
    close(
        race.Calculator(tmp_path / "x.race.pt").get_property("bald", atoms),
        1.5 * np.log1p(1 / kappa),
    )


def test_one_eip_member_has_bald(atoms, tmp_path):
    """Its two variances of a component have the ratio nu: sum_k 1/2 ln(1 + 1/nu_k)."""
    model = make_model(n_members=1, head="eip")
    export_model(model, tmp_path / "x.race.pt")
    nu, _, _ = model.force_covariance.gamma_evidence(model(graph_of(atoms)).raw[:, 0])
    close(
        race.Calculator(tmp_path / "x.race.pt").get_property("bald", atoms),
        0.5 * np.log1p(1 / nu.detach().numpy()).sum(1),
    )


def test_an_ensemble_of_energy_heads_has_no_bald(atoms, tmp_path):
    export_model(make_model(head="energy"), tmp_path / "x.race.pt")
    calculator = race.Calculator(tmp_path / "x.race.pt")
    assert calculator.get_property("forces_cov", atoms).any()
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property("bald", atoms)


def test_the_papers_intensive_energy_variance(atoms, tmp_path):
    model = make_model(head="energy", energy_aggregation="paper")
    export_model(model, tmp_path / "x.race.pt")
    result = model(graph_of(atoms))
    want = np.sqrt(result.energy_var.mean().item() + result.energy.detach().numpy().var())
    close(race.Calculator(tmp_path / "x.race.pt").get_property("energy_std", atoms), want)


@pytest.fixture(scope="module")
def calibrated(model, tmp_path_factory):
    """An artifact whose forces are calibrated up to 0.9999 and energies, by nine frames, up
    to 0.9; and the two tables.
    """
    z = np.random.default_rng(0).standard_t(3, size=2000)
    tables = {
        "forces": IntervalTable.fit(z),
        "energy": IntervalTable.fit(z[:9], method="conformal"),
    }
    intervals = {
        "method": "isotonic",
        "levels": tables["forces"].levels.tolist(),
        "fingerprints": [],
    }
    path = tmp_path_factory.mktemp("calibrated") / "x.race.pt"
    export_model(
        model,
        path,
        intervals=intervals | {name: table.factors.tolist() for name, table in tables.items()},
    )
    return path, tables


def test_interval_factors_are_pythons_own(calibrated):
    path, tables = calibrated
    runtime = race.Calculator(path).predictor.model
    for name, table in tables.items():
        last = table.levels[len(table.factors) - 1]
        for level in [
            0.001,
            0.004,
            0.5,
            0.637,
            0.8999,
            last,
            *np.random.default_rng(1).random(50) * last,
        ]:
            assert runtime.interval_factor(name, level) == pytest.approx(
                table.factor(level), rel=1e-10
            ), (name, level)
    with pytest.raises(
        RaceError, match="interval of energy at level 0.95.*the calibration reaches 0.9"
    ):
        runtime.interval_factor("energy", 0.95)
    with pytest.raises(RaceError, match="interval of stress: the model is not calibrated for it"):
        runtime.interval_factor("stress", 0.5)
    with pytest.raises(RaceError, match="expected a level between 0 and 1"):
        runtime.interval_factor("forces", 1.0)


def test_damaged_intervals_are_refused(model, calibrated, tmp_path):
    levels = [0.5, 0.9]
    for wrong in (
        {"forces": [1.0, 0.5]},
        {"forces": [1.0, 2.0, 3.0]},
        {"forces": []},
        {"levels": [0.9, 0.5]},
        {"levels": [0.5, 1.0]},
    ):
        with pytest.raises(RaceError, match="expected ascending levels and factors"):
            export_model(
                model,
                tmp_path / "x.race.pt",
                intervals={"levels": levels, "forces": [1.0, 2.0]} | wrong,
            )


def test_intervals(calibrated, artifact, atoms):
    path, tables = calibrated
    calculator = race.Calculator(path, interval=0.85)
    std = np.sqrt(np.diagonal(calculator.get_property("forces_cov", atoms), axis1=1, axis2=2))
    close(calculator.get_property("forces_interval", atoms), tables["forces"].factor(0.85) * std)
    close(
        calculator.get_property("energy_interval", atoms),
        tables["energy"].factor(0.85) * calculator.get_property("energy_std", atoms),
    )
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property("stress_interval", atoms)
    with pytest.raises(PropertyNotImplementedError):  # the nine energies do not reach 0.99
        race.Calculator(path, interval=0.99).get_property("energy_interval", atoms)
    with pytest.raises(PropertyNotImplementedError):
        race.Calculator(path).get_property("forces_interval", atoms)
    with pytest.raises(RaceError, match="not calibrated, so it has no intervals"):
        race.Calculator(artifact, interval=0.95)


@pytest.mark.parametrize("pbc", [[True, True, False], [False, False, True]])
def test_stress_of_slabs_and_wires(calculator, model, atoms, pbc):
    """dE/dstrain over the volume of the cell, with vacuum in it, by finite differences; the
    model in training and the artifact agree; twice the vacuum, half the stress.
    """
    slab = atoms.copy()
    slab.set_pbc(pbc)
    slab.calc = calculator
    energy = functools.partial(calculator.get_property, "energy")
    numerical = numeric_stress(energy, slab, 1e-4)
    got = slab.get_stress()
    scale = np.abs(numerical).max()
    assert np.abs(got - numerical).max() < 1e-6 * scale
    close(got, model(graph_of(slab)).stress[0].detach().numpy().mean(0)[list(SIX_TO_VOIGT)])
    assert np.isfinite(calculator.get_property("stress_std", slab)).all()
    apart = int(np.flatnonzero(~np.array(pbc))[0])
    high = slab.copy()
    high.cell[apart] *= 2
    close(calculator.get_property("stress", high), got / 2)
    high.cell[apart] = 0
    high.calc = calculator
    with pytest.raises(PropertyNotImplementedError):
        high.get_stress()


def test_an_element_without_data_is_a_warning(model, atoms, tmp_path):
    """Once, not at every step; and none of elements that the training set has."""
    training = {"per_element": {"B": {"n_atoms": 9}}, "n_frames": 9}
    training |= {"n_atoms_per_frame": [1, 1]}
    export_model(model, tmp_path / "x.race.pt", summary={"training": training})
    calculator = race.Calculator(tmp_path / "x.race.pt")
    boron = atoms.copy()
    boron.symbols[:] = "B"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.get_property("energy", boron)
        race.Calculator(tmp_path / "x.race.pt").get_property("energy", boron)
    with pytest.warns(UserWarning, match="training set of model .*x.race.pt has no N"):
        calculator.get_property("energy", atoms)
    atoms.positions[0] += 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.get_property("energy", atoms)


def test_refusals(calculator, atoms):
    water = ase.build.molecule("H2O")
    water.calc = calculator
    with pytest.raises(RaceError, match="element H, O is unknown.*take a model that was trained"):
        water.get_forces()
    molecule = atoms.copy()
    molecule.set_pbc(False)
    molecule.calc = calculator
    with pytest.raises(PropertyNotImplementedError):
        molecule.get_stress()
    atoms.calc = calculator
    for place in (atoms.positions[1].copy(), atoms.positions[1] + atoms.cell[0]):
        atoms.positions[0] = place
        with pytest.raises(RaceError, match="atoms [01] and [01] are at one place; got .* A"):
            atoms.get_potential_energy()
    atoms.positions[0, 0] = np.nan
    with pytest.raises(RaceError, match="NaN"):
        atoms.get_potential_energy()


def test_six_columns():
    six = np.arange(6.0)
    assert (matrix_from_six(six) == [[0, 3, 4], [3, 1, 5], [4, 5, 2]]).all()


def test_copies_and_pickles_are_the_same_calculator(artifact, atoms, tmp_path, monkeypatch):
    """Worker processes take one in their arguments; a copy loads the very same artifact, from
    whatever folder.
    """
    monkeypatch.chdir(artifact.parent)
    calculator = race.Calculator(artifact.name, dtype="float32", uncertainty=True)
    atoms = atoms.copy()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    monkeypatch.chdir(tmp_path)
    for copied in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert copied.results.keys() == calculator.results.keys()
        other = atoms.copy()
        other.calc = copied
        assert other.get_potential_energy() == energy
        assert copied.predictor.model.dtype == "float32" and copied.always_uncertain
    assert copy.deepcopy(atoms).get_potential_energy() == energy


class Named(race.Calculator):
    """As users write them: with arguments and attributes of their own."""

    def __init__(self, name, path):
        super().__init__(path, dtype="float64")
        self.given = name


def test_copies_keep_what_others_have_set(artifact, atoms):
    named = Named("mine", artifact)
    named.note = [1, 2]
    atoms = atoms.copy()
    atoms.calc = named
    energy = atoms.get_potential_energy()
    for copied in (copy.deepcopy(named), copy.copy(named), pickle.loads(pickle.dumps(named))):
        assert type(copied) is Named and copied.given == "mine" and copied.note == [1, 2]
        other = atoms.copy()
        other.calc = copied
        assert other.get_potential_energy() == energy
        assert copied.parameters == named.parameters
    assert copy.deepcopy(named).note is not named.note


def test_options_are_given_when_it_is_made(artifact):
    """ASE's `set`, and its keywords for whatever, would take an option without a word."""
    calculator = race.Calculator(artifact)
    before = dict(calculator.parameters)
    with pytest.raises(RaceError, match=r"zbl: is decided when .* is made; .*\(\.\.\., zbl="):
        calculator.set(zbl=True)
    for unknown in (calculator.set, functools.partial(race.Calculator, artifact)):
        with pytest.raises(RaceError, match="unceratinty: no such option; expected .*uncertainty"):
            unknown(unceratinty=True)
    assert calculator.parameters == before and calculator.predictor.zbl is None
    assert race.Calculator(artifact, directory="d", label="l").label == "d/l"


def test_types_as_users_have_them(artifact, atoms):
    """Types of numpy and torch, a number as leader; a word is no bool, though it is true."""
    for dtype in (np.float32, np.dtype("float32"), torch.float32, "float32"):
        assert race.Calculator(artifact, dtype=dtype).predictor.model.dtype == "float32"
    calculator = race.Calculator(artifact, torch.device("cpu"), zbl=np.bool_(False))
    assert copy.deepcopy(calculator).get_property("energy", atoms) < 0
    with pytest.raises(RaceError, match="lead 1: the file carries no such member"):
        race.Calculator(artifact, lead=1)
    for name in ("zbl", "uncertainty"):
        with pytest.raises(RaceError, match=f"{name}: is no bool; expected True or False; got off"):
            race.Calculator(artifact, **{name: "off"})


def test_what_ase_knows_of_the_results(artifact, atoms):
    atoms = atoms.copy()
    atoms.calc = race.Calculator(artifact, uncertainty=True)
    properties = atoms.get_properties(["energy", "forces"])
    assert "energy_std" in atoms.calc.results and "energy_std" not in properties
    np.testing.assert_array_equal(properties["forces"], atoms.get_forces())


def test_a_copy_is_refused_another_artifact(artifact, tmp_path):
    path = tmp_path / "x.race.pt"
    shutil.copy(artifact, path)
    pickled = pickle.dumps(race.Calculator(path))
    export_model(make_model(seed=7), path)
    with pytest.raises(RaceError, match="sha256"):
        pickle.loads(pickled)


def test_ase_db_tells_models_apart(artifact):
    calculator = race.Calculator(artifact)
    assert calculator.name == "race"
    assert calculator.todict()["sha256"] == calculator.predictor.model.sha256
    assert json.loads(json.dumps(calculator.todict()))["model"] == artifact.name


def test_forces_std_is_the_root_of_the_diagonal(artifact, atoms):
    atoms = atoms.copy()
    atoms.calc = race.Calculator(artifact)
    std, cov = (atoms.calc.get_property(name, atoms) for name in ("forces_std", "forces_cov"))
    np.testing.assert_allclose(std, np.sqrt(np.diagonal(cov, axis1=1, axis2=2)), rtol=1e-12)
