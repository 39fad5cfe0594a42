"""Curvature against explicit Jacobians, the marginal likelihood against linear regression,
and what a fit makes of them.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from race.data import Batch
from race.model.heads import CHOLESKY_JITTER
from race.posterior.evidence import Evidence, Observations
from race.posterior.ggn import Noise, squared_vjp
from race.posterior.laplace import (
    LaplaceOptions,
    carried,
    diagonal,
    last_layer,
    predictive_score,
    rescaled,
)
from race.posterior.last_layer import force_features, frame_features
from race.posterior.protocol import Run
from race.train.loss import Loss
from race.train.run import load_run


@pytest.fixture(scope="module")
def run(trained) -> Run:
    return Run.load(trained(n_members=2))


@pytest.fixture(scope="module")
def batch(run) -> Batch:
    return run.prepare().train.batch([0, 1])


def whitened(run: Run, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [n_frames, M] and forces [n_atoms, M, 3] in units of the noise, by NumPy's means."""
    out = run.model(batch, create_graph=True)
    covariance = run.model.forces_cov(out.raw).detach()
    roots = torch.from_numpy(np.linalg.inv(np.linalg.cholesky(covariance.numpy())))
    return out.energy / out.energy_var.detach().sqrt(), torch.einsum(
        "nmab,nmb->nma", roots, out.forces
    )


def explicit_jacobian(outputs: torch.Tensor, parameters: list[torch.Tensor]) -> list[np.ndarray]:
    """One backward pass per output: [n_outputs, *shape] for each parameter."""
    rows = []
    for output in outputs.flatten():
        grads = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            [
                np.zeros(p.shape) if g is None else g.numpy()
                for p, g in zip(parameters, grads, strict=True)
            ]
        )
    return [np.stack(column) for column in zip(*rows, strict=True)]


def test_probes_average_to_the_diagonal(run, batch):
    """Over all sign vectors (of the energies, of one atom's forces) the squares are the
    diagonal, to rounding: cross terms cancel.
    """
    parameters = list(run.model.parameters())
    energy, forces = whitened(run, batch)
    for outputs in (energy, forces[:1]):
        want = [(j**2).sum(0) for j in explicit_jacobian(outputs, parameters)]
        got = [np.zeros(p.shape) for p in parameters]
        vectors = list(itertools.product((1.0, -1.0), repeat=outputs.numel()))
        for z in vectors:
            for total, square in zip(
                got,
                squared_vjp(parameters, outputs, torch.tensor(z).double().view(outputs.shape)),
                strict=True,
            ):
                total += square.numpy() / len(vectors)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-10 * max(np.abs(b).max(initial=0), 1e-30)
            )
        one = squared_vjp(parameters, outputs, torch.ones_like(outputs))
        assert (
            max(
                float((a - torch.from_numpy(b)).abs().max())
                for a, b in zip(one, want, strict=True)
                if b.size
            )
            > 1e-3
        )


def test_diagonal_curvature_of_a_run(run):
    """All frames, energies and forces, each member its own. One frame at a time: its energy
    has one sign, so the probe is exact.
    """
    train = run.prepare().train
    parameters = list(run.model.parameters())
    want = [0.0, 0.0]
    for k in range(len(train)):
        for term, outputs in enumerate(whitened(run, train.batch([k]))):
            squares = [(j**2).sum(0).ravel() for j in explicit_jacobian(outputs, parameters)]
            want[term] = want[term] + np.concatenate(squares)
    gaussian = diagonal(
        run.config, run.model, train, LaplaceOptions(structure="diagonal", probes=12, batch_size=1)
    )
    sampled = want[0] + want[1] > 0
    energy, forces = gaussian.evidence.energy.numpy(), gaussian.evidence.forces.numpy()
    np.testing.assert_allclose(energy, want[0][sampled], rtol=0, atol=1e-9 * want[0].max())
    # 9 frames x 12 probes: sqrt(2 / 108) = 14 % at most, of entries that the same few
    # forces dominate.
    assert forces.shape == energy.shape and forces.sum() == pytest.approx(want[1].sum(), rel=0.3)
    assert np.corrcoef(forces, want[1][sampled])[0, 1] > 0.98
    # Weights of the uncertainty channels alone have none, and do not move.
    samples = gaussian.draw(torch.zeros(3, dtype=torch.float64), 1.0)
    w2 = run.model.layers[0].readout.w2
    assert torch.equal(
        samples["layers.0.readout.w2"][:2, :, 1:], w2[..., 1:]
    ) and sampled.sum() < len(sampled)
    assert not torch.equal(samples["layers.0.readout.w2"][:2, :, :1], w2[..., :1])


def test_last_layer_jacobian(run, batch):
    """Columns by unit weights against rows by backward passes."""
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    by_energy = frame_features(run.model, batch)
    by_forces = force_features(run.model, batch)
    weights = [layer.readout.w2 for layer in run.model.layers]
    out = run.model(batch, create_graph=True)
    for got, output in ((by_energy, out.energy), (by_forces, out.forces)):
        # [outputs, M, D]
        jacobian = np.concatenate([j[..., 0] for j in explicit_jacobian(output, weights)], axis=-1)
        jacobian = jacobian.reshape(*output.shape, 2, -1)
        for m in range(2):
            np.testing.assert_allclose(
                got[:, m], jacobian[:, m, ..., m, :], rtol=0, atol=1e-10 * np.abs(jacobian).max()
            )
            assert np.abs(jacobian[:, m, ..., 1 - m, :]).max() == 0
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]), f"{name} was not restored"


def test_last_layer_curvature_and_samples(run):
    train, options = run.prepare().train, LaplaceOptions(members=6000, batch_size=4)
    gaussian = last_layer(run.config, run.model, train, options)
    want = [np.zeros((2, 12, 12)) for _ in range(2)]
    for k in range(len(train)):
        for total, outputs in zip(want, whitened(run, train.batch([k])), strict=True):
            rows = np.concatenate(
                [
                    j[..., 0]
                    for j in explicit_jacobian(
                        outputs, [layer.readout.w2 for layer in run.model.layers]
                    )
                ],
                axis=-1,
            )
            total += np.einsum("nmd,nme->mde", rows, rows)
    for got, exact in zip((gaussian.evidence.energy, gaussian.evidence.forces), want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-9 * np.abs(exact).max())
    logs = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    samples = gaussian.draw(logs, 0.5)
    drawn = np.concatenate(
        [samples[f"layers.{t}.readout.w2"][..., 0] for t in range(2)], axis=1
    ).reshape(-1, 2, 12)
    weights = np.concatenate(
        [layer.readout.w2[..., 0].detach() for layer in run.model.layers], axis=1
    )
    for m in range(2):
        precision = want[0][m] / np.exp(0.3) + want[1][m] / np.exp(-0.5) + np.exp(0.1) * np.eye(12)
        factor = np.linalg.cholesky(precision / 0.5)
        white = (
            drawn[:, m] - weights[m]
        ) @ factor  # of identity covariance, if the samples are right
        assert np.abs(np.cov(white.T) - np.eye(12)).max() < 5 * np.sqrt(2 / 3000)
    assert all(
        torch.equal(samples[name][0], p[0])
        for name, p in run.model.named_parameters()
        if not name.endswith("w2")
    )


def test_noise_is_the_loss(trained):
    """Whitened squares are the residuals that each loss of race.train.loss divides by its
    variances.
    """
    for head in ("point", "energy", "cholesky"):
        run = Run.load(trained(head))
        batch = run.prepare().train.batch([0, 1, 2])
        out = run.model(batch)
        noise = Noise.of(run.config, run.model, batch, out)
        energy = noise.whiten_energy(out.energy - batch.energy.unsqueeze(1))
        forces = noise.whiten_forces(out.forces - batch.forces.unsqueeze(1))
        rows = Loss(run.config, run.model.force_covariance).rows(out, batch)
        if head != "point":  # less the logarithm of the variance
            rows["energy"] = rows["energy"] - 0.5 * out.energy_var.log()
        if head == "cholesky":
            rows["forces"] = rows["forces"] - 0.5 * torch.logdet(run.model.forces_cov(out.raw))
        torch.testing.assert_close(0.5 * energy**2, rows["energy"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(0.5 * (forces**2).sum(-1), rows["forces"], rtol=1e-9, atol=1e-9)


# ---- the marginal likelihood ---------------------------------------------------------------------


def random_evidence(full: bool) -> Evidence:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 2, 5, 4))  # energies and forces, members, observations, weights
    curvature = np.einsum("kmnd,kmne->kmde", rows, rows)
    if not full:
        curvature = np.einsum("kmdd->kmd", curvature).reshape(2, -1)
    energy, forces = torch.from_numpy(curvature)
    return Evidence(energy, forces, [30.0, 4.0], [10, 10], 7.0)


@pytest.mark.parametrize("full", [False, True])
def test_gradient_by_finite_differences(full):
    evidence = random_evidence(full)
    for point in ([0.0, 0.0, 0.0], [0.7, -1.3, 2.0]):
        logs = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(evidence.log_likelihood(logs), logs)
        for k in range(3):
            step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
            with torch.no_grad():
                numerical = (
                    evidence.log_likelihood(logs + step) - evidence.log_likelihood(logs - step)
                ) / 2e-5
            assert gradient[k].item() == pytest.approx(numerical.item(), rel=1e-6)
            assert abs(gradient[k].item()) > 1e-2


@pytest.mark.parametrize("full", [False, True])
def test_maximum(full):
    evidence = random_evidence(full)
    logs, best = evidence.maximise()
    assert best == pytest.approx(evidence.log_likelihood(logs).item())
    for shift in itertools.product((-0.3, 0.0, 0.3), repeat=3):
        assert (
            evidence.log_likelihood(logs + torch.tensor(shift, dtype=torch.float64)).item()
            <= best + 1e-9
        )
    assert best > evidence.log_likelihood(torch.zeros(3, dtype=torch.float64)).item() + 1
    bounded, lower = evidence.maximise([0.01, float("inf")])
    assert bounded[0].item() <= np.log(0.01) + 1e-12 and lower < best


def test_evidence_of_linear_regression():
    """y = X w + noise, where Laplace is exact: ln N(y; 0, X X^T / delta + s) by SciPy."""
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((n, 3)) for n in (6, 20)]
    s, delta = [0.3, 0.05], 1.7
    y = [rows @ [1.0, -0.5, 2.0] + 0.3 * rng.standard_normal(len(rows)) for rows in x]
    precision = sum(rows.T @ rows / var for rows, var in zip(x, s, strict=True)) + delta * np.eye(3)
    best = np.linalg.solve(
        precision, sum(rows.T @ labels / var for rows, labels, var in zip(x, y, s, strict=True))
    )
    residuals = [
        float(((labels - rows @ best) ** 2).sum()) for rows, labels in zip(x, y, strict=True)
    ]
    curvature = [torch.from_numpy(rows.T @ rows).unsqueeze(0) for rows in x]
    evidence = Evidence(*curvature, residuals, [6, 20], float(best @ best))
    got = evidence.log_likelihood(torch.tensor(np.log([*s, delta]))).item() - 13.0 * np.log(
        2 * np.pi
    )
    together = np.concatenate(x)
    covariance = together @ together.T / delta + np.diag(np.repeat(s, [6, 20]))
    assert got == pytest.approx(
        multivariate_normal(np.zeros(26), covariance).logpdf(np.concatenate(y)), abs=1e-9
    )


# ---- the fit -------------------------------------------------------------------------------------


def test_noise_goes_into_the_heads_units(run, batch):
    """sigma0 changes so that the aleatoric covariance is multiplied by s, and nothing else is."""
    before, after = run.model, rescaled(run.model, run.config, 4.0, 0.25)
    out, other = before(batch), after(batch)
    torch.testing.assert_close(other.energy_var, 4.0 * out.energy_var)
    torch.testing.assert_close(after.forces_cov(other.raw), 0.25 * before.forces_cov(out.raw))
    torch.testing.assert_close(other.forces, out.forces)


def test_fit_reports_what_it_chose(fitted, trained):
    model, config, summary = load_run(fitted("laplace"))
    before = load_run(trained())[1].constants
    about = summary["posterior"]
    assert config.constants.sigma0 == pytest.approx(before.sigma0 * about["noise_forces"] ** 0.5)
    assert config.constants.sigma0_energy == pytest.approx(
        before.sigma0_energy * about["noise_energy"] ** 0.5
    )
    assert (
        about["temperature"] == 1.0
        and 0 < load_run(fitted("laplace-diagonal"))[2]["posterior"]["temperature"] <= 1.0
    )


def test_a_point_head_gets_one_that_tells_the_noise(fitted, trained):
    """Constant and isotropic, what the loss took for it times the factors found by evidence
    and on the validation set; the mean stays.
    """
    before, (after, config, summary) = (
        load_run(trained("point"))[0],
        load_run(fitted("laplace", "point")),
    )
    about, old = summary["posterior"], before.constants
    assert (config.model.head, config.train.loss) == ("cholesky", "nll_jef")
    batch = next(iter(Run.load(trained("point")).prepare().validation.batches(2)))
    out, plain = after(batch), before(batch)
    factors = about["noise_factors"]
    noise = about["noise_forces"] * (factors["forces"] * old.sigma0) ** 2 + CHOLESKY_JITTER
    torch.testing.assert_close(
        after.forces_cov(out.raw),
        (noise * torch.eye(3)).to(out.raw).expand(*out.forces.shape, 3),
    )
    per_atom = about["noise_energy"] * (factors.get("energy", 1.0) * old.sigma0_energy) ** 2
    torch.testing.assert_close(
        out.energy_var,
        (batch.n_atoms_per_frame * per_atom)[:, None].to(out.energy_var).expand_as(out.energy_var),
    )
    # Linear in what was sampled, and the samples are centred.
    torch.testing.assert_close(out.forces.mean(1), plain.forces.mean(1), rtol=1e-3, atol=1e-4)
    assert carried(load_run(trained("point"))[1]) == (False, False) and carried(
        load_run(trained("energy"))[1]
    ) == (True, False)


def test_predictive_score(run):
    """Against NumPy, on the run itself, whose two members differ."""
    dataset = run.prepare().validation
    total = 0.0
    for k in range(len(dataset)):
        batch = dataset.batch([k])
        out = run.model(batch).detach()
        cov = run.model.forces_cov(out.raw).detach().numpy()
        for value, label, noise in (
            (out.energy.numpy(), batch.energy.numpy(), out.energy_var.numpy().mean(1)),
            (out.forces.numpy(), batch.forces.numpy(), np.einsum("nmaa->nma", cov).mean(1)),
        ):
            var = value.var(1) + noise
            total -= 0.5 * ((value.mean(1) - label) ** 2 / var + np.log(var)).sum()
    assert predictive_score(run.model, run.config, dataset, (3.0, 5.0), 2) == pytest.approx(
        total, rel=1e-10
    )


def test_observations_count_members(run):
    data = Observations(run.config, run.model)
    for batch in run.prepare().train.batches(4):
        data.add(batch)
    assert data.counts == [2 * 9, 2 * 9 * 4 * 3]
