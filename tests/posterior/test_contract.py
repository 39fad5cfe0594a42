"""What every posterior keeps: its run predicts as any run does, in Python, in ASE and in LAMMPS."""

import json
from itertools import product

import ase
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import race
from race.conventions import matrix_from_six
from race.data.graph import build_graph, collate
from race.deploy.artifact import read_metadata
from race.deploy.export import export_model
from race.heads import GAUSSIAN
from race.model.race import RACE
from race.posterior.protocol import model_of
from race.predict.prediction import Prediction
from race.predict.predictor import predict_batch
from race.train.run import load_run
from tests.lammps.harness import Lammps, Snapshot

from .conftest import CASES, ELEMENTS, R_MAX, labelled

TOLERANCE = 1e-10  # float64, of the largest value


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture
def model(case, fitted) -> RACE:
    return load_run(fitted(case))[0]


def structure(seed: int = 20) -> ase.Atoms:
    """Eight atoms, in a cell thinner than two cutoffs."""
    atoms = labelled(seed) * (2, 1, 1)
    atoms.calc = None
    atoms.rattle(0.05, seed=seed)
    return atoms


def predict(model: RACE, *frames: ase.Atoms) -> Prediction:
    return predict_batch(
        model, collate([build_graph(atoms, ELEMENTS, R_MAX, torch.float64) for atoms in frames])
    )


def close(got, want, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1e-3, np.abs(want).max()))


def assert_spd(cov: np.ndarray) -> None:
    assert (
        np.isfinite(cov).all()
        and np.abs(cov - cov.swapaxes(-1, -2)).max() <= 1e-12 * np.abs(cov).max()
    )
    assert np.linalg.eigvalsh(cov).min() > 0


# ---- the run -------------------------------------------------------------------------------------


def test_members(case, model, fitted, trained):
    """As many as asked for, each a model of its own: alone it predicts what it contributes."""
    expected = CASES[case].n_members
    _, config, summary = load_run(fitted(case))
    assert model.n_members == config.model.n_members == expected
    assert (
        summary["posterior"]["name"] == CASES[case].posterior
        and summary["posterior"]["fit_seconds"] > 0
    )
    assert summary["training"] == load_run(trained())[2]["training"]
    together = (
        model(build_graph(structure(), ELEMENTS, R_MAX, torch.float64)).forces.detach().numpy()
    )
    for m in range(expected):
        alone = predict(
            model_of(model, {name: p[m : m + 1] for name, p in model.named_parameters()}),
            structure(),
        )
        close(alone.forces.mean, together[:, m])
    for m in range(1, expected):
        assert np.abs(together[:, m] - together[:, 0]).max() > 1e-6, (
            "members are samples: they differ"
        )


def test_seed(case, model, fitted):
    """The same seed gives the same weights, another seed others."""
    if "seed" not in {
        **CASES[case].options,
        **json.loads((fitted(case) / "summary.json").read_text())["posterior"]["options"],
    }:
        pytest.skip("nothing random")
    same = dict([next(iter(CASES[case].options.items()))])
    again, other = (
        dict(load_run(fitted(case, **options))[0].named_parameters())
        for options in (same, {"seed": 5})
    )
    assert all(
        torch.allclose(p, again[name], rtol=1e-9, atol=1e-12)
        for name, p in model.named_parameters()
    )
    assert not all(torch.allclose(p, other[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("head", [head for head in GAUSSIAN if head != "equivariant"])
def test_other_heads(case, head, fitted):
    """Every head the posterior is made for predicts finite moments; its refusal of another
    is one line.
    """
    try:
        model = load_run(fitted(case, head))[0]
    except race.RaceError as error:
        assert "head" in str(error) and "\n" not in str(error)
        return
    prediction = predict(model, structure())
    assert (
        np.isfinite(prediction.forces.mean).all()
        and np.isfinite(prediction.energy.total).all()
        and prediction.energy.total.min() > 0
    )
    epistemic = np.trace(prediction.forces.epistemic, axis1=1, axis2=2)
    assert epistemic.min() > 0 or model.n_members == 1
    if head == "cholesky":
        assert_spd(prediction.forces.total)


# ---- moments -------------------------------------------------------------------------------------


def test_covariances_are_positive_definite(model):
    prediction = predict(model, structure())
    assert_spd(prediction.forces.total)
    assert_spd(prediction.forces.aleatoric)
    assert (
        np.linalg.eigvalsh(prediction.forces.epistemic)
        >= -1e-12 * np.abs(prediction.forces.epistemic).max()
    ).all()
    assert prediction.energy.total > 0 and np.isfinite(prediction.energy.mean).all()


@pytest.mark.parametrize("inversion", [1.0, -1.0])
def test_rotation(model, inversion):
    matrix = inversion * Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    if model.head == "eip":  # whose variances are those of x, y and z
        matrix = inversion * np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    turned = structure()
    turned.set_cell(turned.cell.array @ matrix.T)
    turned.positions = turned.positions @ matrix.T
    turned.set_cell(structure().cell.array @ matrix.T)
    before, after = predict(model, structure()), predict(model, turned)
    close(after.energy.mean, before.energy.mean)
    close(after.energy.total, before.energy.total)
    close(after.forces.mean, before.forces.mean @ matrix.T)
    close(after.forces.aleatoric, matrix @ before.forces.aleatoric @ matrix.T)
    close(after.forces.epistemic, matrix @ before.forces.epistemic @ matrix.T)
    with pytest.raises(AssertionError):  # the comparison can fail: covariances that did not rotate
        close(after.forces.total, before.forces.total)


def test_permutation(model):
    order = np.random.default_rng(0).permutation(len(structure()))
    before, after = predict(model, structure()), predict(model, structure()[order])
    close(after.energy.mean, before.energy.mean)
    close(after.energy.total, before.energy.total)
    close(after.forces.mean, before.forces.mean[order])
    close(after.forces.total, before.forces.total[order])
    with pytest.raises(AssertionError):
        close(after.forces.total, before.forces.total)


def test_batched_is_single(model):
    frames = [structure(20), ase.Atoms("Au"), structure(21)]
    together = predict(model, *frames)
    alone = [predict(model, atoms) for atoms in frames]
    for name in ("mean", "aleatoric", "epistemic"):
        close(
            getattr(together.energy, name), np.concatenate([getattr(p.energy, name) for p in alone])
        )
        close(
            getattr(together.forces, name), np.concatenate([getattr(p.forces, name) for p in alone])
        )


def test_one_atom(model):
    """Without neighbours: no force, in no member, but a covariance."""
    prediction = predict(model, ase.Atoms("Cu"))
    assert np.abs(prediction.forces.mean).max() == 0
    # Which has one of its own
    assert np.abs(prediction.forces.epistemic).max() == 0 or model.own_epistemic
    assert_spd(prediction.forces.total)
    assert np.isfinite(prediction.energy.mean).all() and prediction.energy.total > 0


# ---- deployment ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def artifacts(fitted, tmp_path_factory):
    """The artifact of every case."""
    folder = tmp_path_factory.mktemp("artifacts")
    paths = {}
    for name in CASES:
        model, _, summary = load_run(fitted(name))
        paths[name] = folder / f"{name}.race.pt"
        export_model(model, paths[name], summary=summary)
    return paths


@pytest.fixture(scope="session")
def snapshots(artifacts, plugin, tmp_path_factory) -> dict[int, dict[str, Snapshot]]:  # noqa: F811
    """Every case in LAMMPS on one rank and on two, by number of ranks and name; those of one
    member in a process of their own.
    """
    results: dict[int, dict[str, Snapshot]] = {1: {}, 2: {}}
    for ranks, alone in product(results, (False, True)):
        some = {
            name: path for name, path in artifacts.items() if (CASES[name].n_members == 1) == alone
        }
        pair = (
            f"variable model index {' '.join(map(str, some.values()))}\npair_style race "
            f"${{model}}\npair_coeff * * {' '.join(ELEMENTS)}"
        )
        lammps, systems = (
            Lammps(plugin, tmp_path_factory.mktemp(f"ranks{ranks}")),
            {name: structure() for name in some},
        )
        results[ranks] |= lammps.single_points(
            systems,
            "",
            ELEMENTS,
            ranks=ranks,
            pair=pair,
            before_run="next model",
            stress=not alone,  # whose one member tells an epistemic part of forces alone
        )
    return results


def test_artifact_equals_the_model(case, model, artifacts):
    metadata, _ = read_metadata(artifacts[case])
    assert metadata["posterior"] == CASES[case].posterior
    assert metadata["n_trunks"] == (CASES[case].n_trunks or CASES[case].n_members)
    atoms = structure()
    atoms.calc = race.Calculator(artifacts[case], uncertainty=True)
    want, get = predict(model, atoms), atoms.calc.get_property
    close(atoms.get_potential_energy(), want.energy.mean[0])
    close(get("energy_std", atoms), want.energy.std[0])
    parts = atoms.calc.predictor.predict([atoms]).energy
    close(parts.aleatoric, want.energy.aleatoric)
    close(parts.epistemic, want.energy.epistemic)
    close(atoms.get_forces(), want.forces.mean)
    close(get("forces_cov", atoms), want.forces.total)
    close(get("forces_cov_aleatoric", atoms), want.forces.aleatoric)
    if model.n_members > 1 or model.own_epistemic:
        close(get("forces_cov_epistemic", atoms), want.forces.epistemic)


@pytest.mark.parametrize("ranks", [1, 2])
def test_lammps_equals_the_model(case, ranks, model, snapshots):
    """Within 1e-9, as LAMMPS is of Python for every artifact: its positions come by a text file."""
    want, got = predict(model, structure()), snapshots[ranks][case]
    close(got.energy, want.energy.mean[0], 1e-9)
    close(got.energy_std, want.energy.std[0], 1e-9)
    close(got.forces, want.forces.mean, 1e-9)
    close(matrix_from_six(got.columns["f_cov"]), want.forces.total, 1e-9)
    close(matrix_from_six(got.columns["f_aleatoric"]), want.forces.aleatoric, 1e-9)
    if model.n_members > 1 or model.own_epistemic:
        close(matrix_from_six(got.columns["f_epistemic"]), want.forces.epistemic, 1e-9)
