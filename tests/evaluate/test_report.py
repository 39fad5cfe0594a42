"""The record of a split: calibrated synthetic data pass, a planted scale fails,
recalibration mends it.
"""

from dataclasses import replace

import ase.build
import numpy as np
import pytest
from scipy import stats

from race.evaluate.evaluated import (
    FARTHEST,
    nearest_distances,
    trivial_scores,
    trivial_scores_of_atoms,
)
from race.evaluate.metrics import LEVELS, coverage
from race.evaluate.ood import frame_scores, ood_record
from race.evaluate.report import covariance_scale, fit_recalibration, split_record
from race.evaluate.split import Split, degrees_of_freedom
from race.predict.prediction import Estimate, Labels, Prediction, frame_labels


def split(synthetic, name: str = "test", **options) -> Split:
    made = synthetic(**options)
    return Split(name, made.prediction, made.labels)


def test_calibrated_data_pass(synthetic):
    record = split_record(split(synthetic))
    assert record["coverage90_f"] == pytest.approx(0.9, abs=0.01)
    assert record["coverage90_e"] == pytest.approx(0.9, abs=0.07)
    assert record["pit_ks"] < 0.03
    assert record["ce_f"] < 1e-4
    for metric in ("spearman_f", "ause_f", "auroc_error_f"):
        assert record[metric] == pytest.approx(record[f"{metric}_ideal"], abs=0.05)
    low, high = record["interval90"]["coverage90_f"]
    assert low < record["coverage90_f"] < high
    assert set(record["by_element"]) == {"B", "O"}
    assert record["by_element"]["B"]["zms_f"] == pytest.approx(1, abs=0.1)


def test_units_are_milli_per_atom(synthetic):
    made = split(synthetic)
    record = split_record(made)
    error = made.labels.energy - made.prediction.energy.mean
    assert record["rmse_e"] == pytest.approx(1000 * np.sqrt(np.mean((error / 40) ** 2)))
    assert record["rmse_f"] == pytest.approx(
        1000 * np.sqrt(np.mean((made.labels.forces - made.prediction.forces.mean) ** 2))
    )
    low, high = record["interval90"]["rmse_f"]
    assert low < record["rmse_f"] < high


@pytest.mark.parametrize("method", ["isotonic", "scaling", "conformal"])
def test_a_planted_scale_fails_and_recalibration_mends_it(synthetic, method):
    calibration, test = (
        split(synthetic, planted=1.5, seed=1),
        split(synthetic, planted=1.5, seed=2, n_frames=200),
    )
    assert covariance_scale(calibration) == pytest.approx(1.5, rel=0.02)
    record = split_record(
        test, fit_recalibration(calibration, method), covariance_scale(calibration)
    )
    assert record["coverage90_f"] < 0.8 and record["pit_ks"] > 0.1 and record["coverage90_e"] < 0.85
    assert record["coverage90_f_recal"] == pytest.approx(0.9, abs=0.01)
    assert record["coverage90_e_recal"] == pytest.approx(0.9, abs=0.08)
    assert record["ce_f_recal"] < record["ce_f"] / 50
    assert record["ce_e_recal"] < record["ce_e"]
    assert record["pit_ks_recal"] < 0.03
    assert record["nll_f_recal"] < record["nll_f"]
    assert record["by_element"]["O"]["coverage90_f_recal"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("method", ["isotonic", "conformal", "scaling"])
def test_ellipsoids_of_errors_with_heavy_tails_are_recalibrated_by_a_map_and_not_by_a_factor(
    synthetic, method
):
    def heavy(seed: int) -> Split:
        made = split(synthetic, seed=seed, n_frames=200)
        error = made.labels.forces - made.prediction.forces.mean
        sizes = np.random.default_rng(seed).exponential(size=(len(error), 1))
        forces = made.prediction.forces.mean + sizes * error
        return Split(made.name, made.prediction, replace(made.labels, forces=forces))

    calibration, test = heavy(1), heavy(2)
    fitted = fit_recalibration(calibration, method)
    record = split_record(test, fitted, covariance_scale(calibration))
    assert record["pit_ks"] > 0.1
    assert (record["pit_ks_recal"] < 0.02) == (method != "scaling")
    # A planted error: what was fitted to other covariances
    other = fit_recalibration(split(synthetic, planted=1.5, n_frames=200), method)
    assert split_record(test, other, 1.5)["pit_ks_recal"] > 0.05


def test_a_point_model_has_errors_only(synthetic):
    made = synthetic()
    zero = [
        Estimate(e.mean, 0 * e.aleatoric, 0 * e.epistemic)
        for e in (made.prediction.energy, made.prediction.forces)
    ]
    record = split_record(Split("test", Prediction(*zero), made.labels))
    assert "rmse_f" in record and "ce_f" not in record and "nll_f" not in record


def test_a_singular_covariance_has_no_likelihood(synthetic):
    """Two point members span one direction: marginals can be judged, the 3x3 matrix cannot."""
    made = synthetic()
    spread = np.random.default_rng(0).standard_normal(made.prediction.forces.mean.shape)
    forces = Estimate(
        made.prediction.forces.mean,
        np.zeros((*spread.shape, 3)),
        spread[:, :, None] * spread[:, None, :],
    )
    record = split_record(Split("test", replace(made.prediction, forces=forces), made.labels))
    assert "coverage90_f" in record and "nll_f" not in record


def test_an_intensive_target_is_not_divided_by_atoms(synthetic):
    made = synthetic()
    extensive, intensive = (
        split_record(Split("x", made.prediction, made.labels, extensive=extensive))
        for extensive in (True, False)
    )
    assert intensive["rmse_e"] == pytest.approx(40 * extensive["rmse_e"])  # all have 40 atoms
    assert "atom" in extensive["energy_unit"] and "atom" not in intensive["energy_unit"]
    assert intensive["rmse_f"] == extensive["rmse_f"]


def test_energies_alone(synthetic):
    made = synthetic()
    record = split_record(
        Split("qm9", Prediction(made.prediction.energy), replace(made.labels, forces=None))
    )
    assert "nll_e" in record and "rmse_f" not in record


def test_unlabelled_stress_rows_are_left_out(synthetic):
    made = synthetic(n_frames=10)
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((10, 6))
    reference[3] = np.nan
    members = reference[:, None] + rng.standard_normal((10, 4, 6))
    members[3] = 1.0
    stress = Estimate(members.mean(1), np.zeros((10, 6, 6)), np.broadcast_to(np.eye(6), (10, 6, 6)))
    record = split_record(
        Split(
            "test", replace(made.prediction, stress=stress), replace(made.labels, stress=reference)
        )
    )
    kept = np.arange(10) != 3
    assert record["rmse_s"] == pytest.approx(
        1000 * np.sqrt(np.mean((members.mean(1) - reference)[kept] ** 2))
    )


def ood_pair(synthetic, factor: float, epistemic: float = 0.3) -> tuple[Split, Split]:
    known, other = synthetic(seed=1, epistemic=epistemic), synthetic(seed=2, epistemic=epistemic)
    forces = other.prediction.forces
    wider = Estimate(forces.mean, forces.aleatoric, factor * forces.epistemic)
    return Split("id", known.prediction, known.labels), Split(
        "ood", replace(other.prediction, forces=wider), other.labels, True
    )


def test_ood_detection(synthetic):
    (known, alike), (_, strange) = ood_pair(synthetic, 1), ood_pair(synthetic, 9)
    same, far = ood_record([known], alike), ood_record([known], strange)
    assert same["auroc"] == pytest.approx(0.5, abs=0.12)
    assert far["auroc"] > 0.999 and far["auprc"] > 0.999 and far["ood_score"] == "epistemic"
    # The errors were drawn before the covariance was widened, so the split is called
    # strange but is not wrong.
    assert far["auroc_ideal"] > 0.99 and far["auroc_observed"] < 0.65
    low, high = same["interval90"]["auroc"]
    assert low < same["auroc"] < high


def test_bald_is_not_misled_by_noise(synthetic):
    """A quiet split on which the members disagree less than on the noisy one, but more than
    its noise explains.
    """
    (known, other) = ood_pair(synthetic, 1)
    energy = other.prediction.energy
    quiet = replace(
        other.prediction, energy=Estimate(energy.mean, energy.aleatoric / 100, energy.epistemic / 9)
    )
    record = ood_record([known], replace(other, prediction=quiet))
    assert record["auroc_energy"] < 0.4 and record["auroc_bald"] == 1.0


def test_a_single_member_is_scored_by_its_total(synthetic):
    known, other = ood_pair(synthetic, 1, epistemic=0.0)
    assert ood_record([known], other)["ood_score"] == "total"


def test_frame_scores_are_invariant_to_rotation(synthetic):
    made = split(synthetic, n_frames=5)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    forces = made.prediction.forces
    turned = Estimate(
        forces.mean,
        rotation @ forces.aleatoric @ rotation.T,
        rotation @ forces.epistemic @ rotation.T,
    )
    other = replace(made, prediction=replace(made.prediction, forces=turned))
    for name, values in frame_scores(made).items():
        np.testing.assert_allclose(frame_scores(other)[name], values, rtol=1e-12)


PROBABILISTIC = (
    "ce coverage90 miscalibration zms ence sharpness nll crps spearman ause "
    "auroc_error auprc_error rmse mae"
).split()


def with_stress(made, planted: float = 1.0, seed: int = 5) -> Split:
    """Stress predictions [n_frames, 6] with full covariances, references drawn from them and
    the covariances divided by planted^2.
    """
    rng = np.random.default_rng(seed)
    n = len(made.labels.n_atoms)
    root = 0.3 * rng.standard_normal((n, 6, 6)) + np.eye(6)
    cov = 1e-4 * root @ np.swapaxes(root, 1, 2) * np.exp(rng.standard_normal(n))[:, None, None]
    mean = rng.standard_normal((n, 6))
    reference = mean + np.einsum("nab,nb->na", np.linalg.cholesky(cov), rng.standard_normal((n, 6)))
    stress = Estimate(mean, 0.7 * cov / planted**2, 0.3 * cov / planted**2)
    return Split(
        "test", replace(made.prediction, stress=stress), replace(made.labels, stress=reference)
    )


def test_every_metric_for_energy_force_and_stress_with_its_interval(synthetic):
    made = with_stress(synthetic(n_frames=300))
    record = split_record(made)
    error, cov = made.labels.stress - made.prediction.stress.mean, made.prediction.stress.total
    expected = -np.mean(
        [stats.multivariate_normal.logpdf(e, cov=c) for e, c in zip(error, cov, strict=True)]
    )
    assert record["nll_s"] == pytest.approx(expected, abs=1e-8)
    expected = -np.mean(
        stats.norm.logpdf(
            made.labels.energy, made.prediction.energy.mean, made.prediction.energy.std
        )
    )
    assert record["nll_e"] == pytest.approx(expected, abs=1e-10)
    for suffix in "efs":
        for name in (f"{metric}_{suffix}" for metric in PROBABILISTIC):
            low, high = record["interval90"][name]
            # Distances and areas are biased upwards in a resample, so they need not lie inside.
            assert np.isfinite(record[name]) and (
                low <= record[name] <= high or name.startswith(("ce", "miscal", "ence"))
            ), name
        for metric in ("spearman", "ause", "auroc_error", "auprc_error"):
            assert record[f"{metric}_{suffix}"] == pytest.approx(
                record[f"{metric}_{suffix}_ideal"], abs=0.15
            ), (metric, suffix)
    for name in ("pit_ks_e", "pit_ks", "pit_ks_s", "energy_score_f", "energy_score_s"):
        assert name in record["interval90"]
    assert record["pit_ks_s"] < 0.08 and record["pit_ks_e"] < 0.08
    wrong = split_record(with_stress(synthetic(n_frames=300), planted=1.5), n_resamples=0)
    assert wrong["pit_ks_s"] > 0.2 and wrong["nll_s"] > record["nll_s"]


def test_the_stress_of_few_members_spans_no_six_dimensions(synthetic):
    """Five members: every marginal can be judged, the 6x6 matrix has no likelihood, however
    small its zero eigenvalues came out.
    """
    made = with_stress(synthetic(n_frames=20))
    members = np.random.default_rng(0).standard_normal((20, 5, 6))
    spread = members - members.mean(1, keepdims=True)
    stress = Estimate(
        members.mean(1), np.zeros((20, 6, 6)), np.einsum("nma,nmb->nab", spread, spread) / 5
    )
    record = split_record(
        replace(made, prediction=replace(made.prediction, stress=stress)), n_resamples=0
    )
    assert "coverage90_s" in record and "nll_s" not in record and "pit_ks_s" not in record
    barely = Estimate(
        members.mean(1),
        np.zeros((20, 6, 6)),
        np.broadcast_to(np.diag([1, 1, 1, 1, 1, 1e-13]), (20, 6, 6)),
    )
    record = split_record(
        replace(made, prediction=replace(made.prediction, stress=barely)), n_resamples=0
    )
    assert "coverage90_s" in record and "nll_s" not in record


def test_spreads_are_what_composition_leaves(synthetic):
    made = split(synthetic, n_atoms=39)
    e0 = {"B": -3.0, "O": -5.0}
    baseline = np.bincount(made.labels.frame, [e0[s] for s in made.labels.symbols])
    scatter = np.random.default_rng(0).standard_normal(made.n_frames)
    labels = replace(made.labels, energy=baseline + 39 * 0.02 * scatter)
    record = split_record(replace(made, labels=labels), n_resamples=0)
    expected = 20 * np.std(scatter)  # all frames have one composition: the fit removes the mean
    assert record["spread_e"] == pytest.approx(expected, rel=1e-6)
    assert record["spread_f"] == pytest.approx(1000 * np.sqrt(np.mean(made.labels.forces**2)))


def test_by_temperature(synthetic):
    made = split(synthetic)
    temperature = np.where(np.arange(100) < 60, 300.0, 1200.0)
    temperature[-1] = np.nan
    hot = np.isin(made.labels.frame, np.flatnonzero(temperature == 1200.0))
    forces = made.prediction.forces
    narrow = np.where(hot[:, None, None], 0.25, 1.0)
    wrong = replace(
        made.prediction,
        forces=Estimate(forces.mean, forces.aleatoric * narrow, forces.epistemic * narrow),
    )
    record = split_record(replace(made, prediction=wrong, temperature=temperature), n_resamples=0)[
        "by_temperature"
    ]
    assert {kelvin: part["n_frames"] for kelvin, part in record.items()} == {"300": 60, "1200": 39}
    assert (
        record["300"]["coverage90_f"] == pytest.approx(0.9, abs=0.02)
        and record["1200"]["coverage90_f"] < 0.65
    )
    error = (made.labels.forces - forces.mean)[hot]
    assert record["1200"]["rmse_f"] == pytest.approx(1000 * np.sqrt(np.mean(error**2)))
    assert record["1200"]["zms_f"] == pytest.approx(4, rel=0.1) and record["300"][
        "zms_e"
    ] == pytest.approx(1, abs=0.4)
    assert "by_temperature" not in split_record(made, n_resamples=0)


def test_every_ood_score_stands_beside_its_ideal(synthetic):
    known, strange = ood_pair(synthetic, 9)
    known, strange = (
        replace(with_stress(s, seed=k), name=s.name, ood=s.ood)
        for k, s in enumerate((known, strange))
    )
    record = ood_record([known], strange, n_resamples=20)
    for score in ("auroc", "auprc"):
        for suffix in ("", "_max", "_energy", "_stress"):
            assert (
                0 <= record[f"{score}{suffix}_ideal"] <= 1
                and f"{score}{suffix}" in record["interval90"]
            ), (score, suffix)
    assert record["auroc"] > 0.999 and record["auroc_stress"] == pytest.approx(0.5, abs=0.12)
    assert record["auprc_energy"] == pytest.approx(0.5, abs=0.15)


def test_the_floor_of_calibration_is_what_chance_leaves(synthetic):
    """The mean CE of predictions that are calibrated, over 60 sets of 40 frames; and the exact
    p (1 - p) / n of energies, whose rows are independent.
    """
    records = [
        split_record(split(synthetic, seed=seed, n_frames=40), n_resamples=0) for seed in range(60)
    ]
    exact = np.mean(LEVELS * (1 - LEVELS)) / 40
    for suffix in ("e", "f"):
        scored = np.mean([record[f"ce_{suffix}"] for record in records])
        floor = np.mean([record[f"ce_{suffix}_floor"] for record in records])
        assert floor == pytest.approx(scored, rel=0.25)
    assert records[0]["ce_e_floor"] == pytest.approx(exact, rel=0.15)
    assert records[0]["n_effective_e"] == pytest.approx(40, rel=0.05)
    found = np.mean([record["pit_ks_e"] for record in records])
    floor = np.mean([record["pit_ks_e_floor"] for record in records])
    assert floor == pytest.approx(found, rel=0.1)


def test_rows_that_err_together_count_once(synthetic):
    made = split(synthetic, n_frames=100)
    forces, labels = made.prediction.forces, made.labels
    of_frame = labels.forces - forces.mean
    first = np.searchsorted(labels.frame, labels.frame)  # every atom errs like its frame's first
    scale = np.broadcast_to(np.eye(3), forces.aleatoric.shape)
    same = Estimate(forces.mean, scale, 0 * scale)
    drawn = np.random.default_rng(0).standard_normal(of_frame.shape)
    records = [
        split_record(
            Split(
                "x",
                replace(made.prediction, forces=same),
                replace(labels, forces=forces.mean + error),
            ),
            n_resamples=0,
        )
        for error in (drawn, drawn[first])
    ]
    assert records[0]["n_effective_f"] > 5 * records[1]["n_effective_f"]
    assert records[1]["n_effective_f"] == pytest.approx(300, rel=0.25)


def test_students_t_has_the_members_degrees_of_freedom():
    """Three members and the truth are draws of one distribution: the interval of the normal
    distribution holds too little, and that of Student's t what it says.
    """
    rng = np.random.default_rng(0)
    members, truth = rng.standard_normal((20000, 3)), rng.standard_normal(20000)
    spread = 2.0 * members.var(1)  # (M + 1) / (M - 1)
    estimate = Estimate(members.mean(1), np.zeros(20000), spread)
    labels = Labels(
        truth, None, None, np.arange(20000), np.ones(20000, dtype=int), np.full(20000, "B")
    )
    normal, student = (
        Split("x", Prediction(estimate), labels, n_members=n).residual("energy") for n in (None, 3)
    )
    assert coverage(normal.z) < 0.82
    assert coverage(student.z) == pytest.approx(0.9, abs=0.008)
    exact = stats.norm.ppf(stats.t.cdf(normal.z[:100], 2))
    np.testing.assert_allclose(student.z[:100], exact, rtol=1e-6)


def test_noise_adds_degrees_of_freedom():
    total = np.array([1.0, 2.0, 1e9])
    np.testing.assert_allclose(
        degrees_of_freedom(total, np.ones(3), 5), [4.0, 16.0, 1e6], rtol=1e-12
    )
    cov = np.broadcast_to(np.diag([1.0, 2.0, 4.0]), (2, 3, 3))
    np.testing.assert_allclose(
        degrees_of_freedom(cov, np.broadcast_to(np.eye(3), (2, 3, 3)), 2), [[1, 4, 16]] * 2
    )


def test_trivial_baselines_stand_beside_detection(synthetic):
    """By hand: a density that differs is told from either side, and it is the best."""
    (known, strange) = ood_pair(synthetic, 1)
    low, high = np.zeros(known.n_frames), np.ones(strange.n_frames)
    known = replace(known, trivial={"density": high, "nearest": low, "forces": low})
    strange = replace(strange, trivial={"density": 0 * high, "nearest": 0 * high})
    record = ood_record([known], strange, n_resamples=0)
    assert record["auroc_by_density"] == 1 and record["auroc_by_nearest"] == 0.5
    assert record["auroc_trivial"] == 1 and "auroc_by_forces" not in record
    assert "auroc_trivial" not in ood_record([replace(known, trivial={})], strange, n_resamples=0)


def test_the_nearest_atom_is_another_atom():
    """Not its own image, which a thin cell brings nearer; and none beyond the radius."""
    thin = ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 3.0]], cell=[2.0, 9.0, 9.0], pbc=True)
    np.testing.assert_allclose(nearest_distances(thin), [3.0, 3.0])
    chain = ase.Atoms("Cu4", [[0, 0, 0], [0, 0, 2.0], [0, 0, 3.5], [0, 0, 9.0]])
    np.testing.assert_allclose(nearest_distances(chain), [2.0, 1.5, 1.5, FARTHEST])
    assert nearest_distances(ase.Atoms("Cu")) == [FARTHEST]


def test_trivial_scores_of_frames():
    cell = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
    squeezed = cell.copy()
    squeezed.set_cell(0.9 * cell.cell, scale_atoms=True)
    forces = np.arange(24.0).reshape(8, 3)
    zero = np.zeros((8, 3, 3))
    prediction = Prediction(
        Estimate(np.array([-8.0, -4.0]), np.zeros(2), np.zeros(2)), Estimate(forces, zero, zero)
    )
    made = Split("x", prediction, frame_labels([cell, squeezed]))
    distances = [nearest_distances(atoms) for atoms in (cell, squeezed)]
    scores = trivial_scores([cell, squeezed], made, distances)
    np.testing.assert_allclose(scores["energy"], [-2, -1])
    np.testing.assert_allclose(scores["density"], [4 / 3.6**3, 4 / 3.24**3])
    np.testing.assert_allclose(scores["nearest"], [3.6 / 2**0.5, 3.24 / 2**0.5])
    rms = [np.sqrt(np.mean(part**2)) for part in (forces[:4], forces[4:])]
    np.testing.assert_allclose(scores["forces"], rms)
    molecule, zeros = ase.build.molecule("H2O"), np.zeros(1)
    made = Split("x", Prediction(Estimate(zeros, zeros, zeros)), frame_labels([molecule]))
    distances = [nearest_distances(molecule)]
    assert set(trivial_scores([molecule], made, distances)) == {"energy", "nearest"}
    assert set(trivial_scores_of_atoms(made, distances)) == {"nearest"}


def test_the_grade_detects_beside_uncertainties(synthetic):
    """Of the least familiar atom of a frame, an element that was never trained on included."""
    known, strange = ood_pair(synthetic, 1)
    rng = np.random.default_rng(0)
    grades = [rng.uniform(0, 1, len(s.labels.frame)) for s in (known, strange)]
    grades[1][::40] = np.where(np.arange(strange.n_frames) % 2, 3.0, np.inf)  # an atom of each
    known, strange = (
        replace(s, prediction=replace(s.prediction, grade=g))
        for s, g in zip((known, strange), grades, strict=True)
    )
    record = ood_record([known], strange, n_resamples=20)
    assert record["auroc_grade"] == record["auprc_grade"] == 1 and record["auroc"] < 0.7
    assert record["interval90"]["auroc_grade"] == (1, 1) and "auroc_grade_ideal" not in record
    without = replace(strange, prediction=replace(strange.prediction, grade=None))
    assert "auroc_grade" not in ood_record([known], without, n_resamples=0)


def test_large_errors_of_atoms_are_found_by_trivial_scores_too(synthetic):
    """From the side that is better; where no one labelled an atom, no one asks."""
    made = split(synthetic)
    assert not [
        key for key in split_record(made, n_resamples=0) if "_by_" in key and "auroc" in key
    ]
    labelled = np.arange(len(made.labels.frame)) % 7 > 0
    forces = np.where(labelled[:, None], made.labels.forces, np.nan)
    magnitude = np.linalg.norm(made.labels.forces - made.prediction.forces.mean, axis=1)
    made = replace(
        made,
        labels=replace(made.labels, forces=forces),
        trivial_atoms={"nearest": -magnitude, "forces": np.zeros(len(forces))},
        prediction=replace(made.prediction, grade=np.where(labelled, magnitude, np.inf)),
    )
    record = split_record(made, n_resamples=20)
    assert record["auroc_error_f_by_nearest"] == record["auroc_error_f_trivial"] == 1
    assert record["auroc_error_f_by_forces"] == 0.5 and record["auroc_error_f"] < 1
    assert record["auroc_error_f_grade"] == 1
    assert record["interval90"]["auroc_error_f_grade"] == (1, 1)


def test_the_pressure_has_the_coverage_that_its_covariance_says(synthetic):
    """-tr / 3 by hand. The columns are correlated: as if they were not, the variance would
    be another.
    """
    made = with_stress(synthetic(n_frames=1000))
    pressure, stress = made.residual("pressure"), made.prediction.stress
    trace = -(made.labels.stress - stress.mean)[:, :3].sum(1) / 3
    np.testing.assert_allclose(pressure.error, trace, atol=1e-12)
    np.testing.assert_allclose(pressure.cov, stress.total[:, :3, :3].sum((1, 2)) / 9, rtol=1e-12)
    record = split_record(made, n_resamples=0)
    assert record["coverage90_p"] == pytest.approx(0.9, abs=0.03)
    assert record["rmse_p"] == pytest.approx(1000 * np.sqrt(np.mean(trace**2)))
    wrong = split_record(with_stress(synthetic(n_frames=1000), planted=1.5), n_resamples=0)
    assert wrong["coverage90_p"] < 0.78
    assert "coverage90_p" not in split_record(split(synthetic), n_resamples=0)
