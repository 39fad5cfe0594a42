"""Posteriors that train: shallow and singular value ensembles, and distillation."""

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from race.data import Dataset
from race.errors import RaceError
from race.evaluate.ranking import spearman
from race.model.race import RACE
from race.posterior import distill, shallow, sve
from race.posterior.fit import fit
from race.posterior.perturbed import as_wide_as_errors
from race.posterior.protocol import Run, member_of, replicated
from race.predict.predictor import predict_batch, predict_dataset
from race.train.checkpoint import read_tensors
from race.train.loss import STRESS_LENGTH, Loss
from race.train.training import train
from tests.train.conftest import copper, make_config  # noqa: F401

HEADS = {"point": "mse", "equivariant": "nll_jef", "evidential": "evidential", "eip": "eip"}


@pytest.fixture(scope="module")
def runs(copper, tmp_path_factory):  # noqa: F811
    """runs(head, n_members) -> folder of a short float64 run."""
    folder = tmp_path_factory.mktemp("runs")

    def make(head, n_members=1):
        path = folder / f"{head}{n_members}"
        if not path.exists():
            # The bounds below are those of short runs with Adam
            options = {"loss": HEADS[head], "epochs": 8, "schedule": "constant"}
            options["optimizer"] = "adam"
            train(make_config(copper, {"head": head, "n_members": n_members}, options), path)
        return path

    return make


@pytest.fixture(scope="module")
def one(runs):
    return Run.load(runs("equivariant"))


@pytest.fixture(scope="module")
def batch(one):
    return one.prepare().train.batch([0, 3])


# ---- shallow -------------------------------------------------------------------------------------


def spread_out(model: RACE, n_members: int) -> RACE:
    out = replicated(model, n_members)
    with torch.no_grad():
        for name, p in out.named_parameters():
            if shallow.is_last_layer(name):
                p += 0.3 * torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype
                )
    return out


def test_shared_trunk_has_the_summed_gradient(one, batch):
    """The gradient of the one trunk is the sum over the copies in a replicated model, that of the
    members' own maps theirs.
    """
    plain = spread_out(one.model, 3)
    shared = shallow.share_trunk(spread_out(one.model, 3))
    losses = []
    for model in (plain, shared):
        out = model(batch, create_graph=True)
        loss = shallow.JointLoss(one.config, model.force_covariance)(out, batch)["loss"].sum()
        loss.backward(inputs=list(model.parameters()))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    expected = dict(plain.named_parameters())
    n_shared = 0
    for name, p in shared.named_parameters():
        grad = expected[name.replace("parametrizations.", "").removesuffix(".original")].grad
        if not shallow.is_last_layer(name):
            grad, n_shared = grad.sum(0, keepdim=True), n_shared + 1
        assert p.shape == grad.shape
        torch.testing.assert_close(p.grad, grad, rtol=1e-8, atol=1e-10)
    assert n_shared > 10


@pytest.mark.parametrize("head", ["point", "equivariant"])
def test_joint_likelihood_against_torch(runs, head):
    run = Run.load(runs(head))
    batch, model = run.prepare().train.batch([1, 2]), spread_out(run.model, 5)
    rows = shallow.JointLoss(run.config, model.force_covariance).rows(model(batch), batch)
    moments = predict_batch(model, batch)
    floor = shallow.FLOOR * np.array(
        [run.model.constants.sigma0, run.model.constants.sigma0_energy]
    )
    cov = torch.from_numpy(moments.forces.epistemic + floor[0] ** 2 * np.eye(3))
    likelihood = MultivariateNormal(torch.from_numpy(moments.forces.mean), cov).log_prob(
        batch.forces
    )
    torch.testing.assert_close(
        rows["forces"][:, 0].detach(),
        -likelihood - 1.5 * math.log(2 * math.pi),
        rtol=1e-9,
        atol=1e-9,
    )
    std = torch.from_numpy(moments.energy.epistemic + 4 * floor[1] ** 2).sqrt()
    likelihood = Normal(torch.from_numpy(moments.energy.mean), std).log_prob(batch.energy)
    torch.testing.assert_close(
        rows["energy"][:, 0].detach(),
        -likelihood - 0.5 * math.log(2 * math.pi),
        rtol=1e-9,
        atol=1e-9,
    )


def test_joint_likelihood_of_two_members_that_err_widely(one, batch):
    """Two members' covariance has rank one: the floor alone makes it definite, in float32 too."""
    out = spread_out(one.model, 2)(batch)
    wide = 1000 * one.model.constants.sigma0 * torch.randn_like(out.forces)
    loss = shallow.JointLoss(one.config, one.model.force_covariance)
    single, double = (
        loss.rows(replace(out, forces=forces), batch)["forces"]
        for forces in (wide.float(), wide.float().double())
    )
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single, double, rtol=1e-9, atol=0.0, check_dtype=False)


def test_noise_of_the_heads_learns_nothing(one, batch):
    """Nor does it weigh the stress of the members' mean, which has the unit of their forces."""
    config = one.config.model_copy(deep=True)
    config.model.stress_head, config.train.stress_weight = "equivariant", 1.0
    torch.manual_seed(0)
    model = spread_out(RACE(config.model, config.constants, torch.float64), 5)
    batch = replace(batch, stress=torch.randn(batch.n_frames, 6, dtype=torch.float64))
    loss = shallow.JointLoss(config, model.force_covariance)
    rows = loss.rows(model(batch, create_graph=True), batch)
    sum(part.sum() for part in rows.values()).backward(inputs=list(model.parameters()))
    for layer in model.layers:
        w2, wt = layer.readout.w2.grad, layer.readout.wt.grad
        assert w2[..., 0].abs().min() > 0 and not w2[..., 1:].any()
        assert wt is None or not wt.any()

    moments, volume = predict_batch(model, batch), batch.volume
    floor = (shallow.FLOOR * config.constants.sigma0) ** 2
    det = np.linalg.det(moments.forces.epistemic + floor * np.eye(3)) ** (1 / 3)
    unit = torch.zeros(batch.n_frames, dtype=torch.float64)
    unit.index_add_(0, batch.frame, torch.from_numpy(det))
    error = volume[:, None] * (torch.from_numpy(moments.stress.mean) - batch.stress)
    want = 0.5 * error.square().sum(1) / (unit * STRESS_LENGTH**2)
    torch.testing.assert_close(rows["stress"][:, 0].detach(), want, rtol=1e-9, atol=1e-9)


def test_start_spreads_as_it_errs(one, batch):
    out = shallow.perturbed(one.model, batch, 64, seed=1)(batch).forces.detach()
    error, spread = out.mean(1) - batch.forces, out.std(1, unbiased=False)
    torch.testing.assert_close(
        out.mean(1), one.model(batch).forces[:, 0].detach(), rtol=1e-8, atol=1e-9
    )
    assert (error**2).mean().item() == pytest.approx((spread**2).mean().item(), rel=1e-6)


def test_shallow_fit_and_resume(runs, tmp_path, monkeypatch):
    """Members share a trunk that has been trained, the joint likelihood falls, and a killed
    fit ends with the same weights.
    """
    options = {"members": "4", "epochs": "6"}
    fit("shallow", [runs("point")], tmp_path / "whole", options)
    old, new = Run.load(runs("point")), Run.load(tmp_path / "whole")
    for (name, p), before in zip(new.model.named_parameters(), old.model.parameters(), strict=True):
        assert p.shape[0] == 4
        if shallow.is_last_layer(name):
            assert p.numel() == 0 or not torch.equal(p[0], p[1])
        else:
            assert torch.equal(p, p[:1].expand_as(p)) and (
                not torch.equal(p[:1], before) or "weight_skip" in name
            ), name
    validation = old.prepare().validation
    whole = validation.batch(range(len(validation)))
    start = shallow.perturbed(old.model, old.prepare().train.batch([0, 1, 2]), 4, 0)
    scores = [
        shallow.JointLoss(old.config, m.force_covariance)(m(whole), whole)["loss"].item()
        for m in (start, new.model)
    ]
    assert scores[1] < scores[0]

    step = shallow.ShallowTrainer.step

    def killed(self, batch):
        step(self, batch)
        if self.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(shallow.ShallowTrainer, "step", killed)
        with pytest.raises(SystemExit):
            fit("shallow", [runs("point")], tmp_path / "killed", options)
    assert not (tmp_path / "killed" / "config.yaml").exists()
    fit("shallow", [runs("point")], tmp_path / "killed", options, resume=True)
    first, second = (
        read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-10, atol=1e-12)


# ---- singular value ensembles --------------------------------------------------------------------


def singular_vectors(model: RACE) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    """By parameter: matrices [n, a, b] of one member, and their U and V^T."""
    found, flat = {}, model.flat_matrices()
    for name, p in model.named_parameters():
        rows = p[0].detach()
        if name in flat:
            sizes = [a * b for a, b in flat[name]]
            pieces = [
                part.reshape(-1, *shape)
                for part, shape in zip(rows.split(sizes, -1), flat[name], strict=True)
            ]
        elif p.dim() == 3 and p.numel():
            pieces = [rows.unsqueeze(0)]
        else:
            continue
        found[name] = [(m, *torch.linalg.svd(m, full_matrices=False)[::2]) for m in pieces]
    return found


def test_members_share_singular_vectors_and_differ_in_values(runs, tmp_path):
    fit("sve", [runs("equivariant")], tmp_path / "new", {"members": "3", "epochs": "4"})
    old, new = Run.load(runs("equivariant")), Run.load(tmp_path / "new")
    vectors = singular_vectors(old.model)
    assert {"layers.0.readout.w1", "layers.1.weight_product", "linear_up.weight"} <= set(vectors)
    seen = {}
    for member in range(3):
        for name, trained in singular_vectors(member_of(new.model, member)).items():
            for k, ((w, *_), (before, u, vt)) in enumerate(
                zip(trained, vectors[name], strict=True)
            ):
                values = u.mT @ w @ vt.mT
                diagonal = values.diagonal(dim1=1, dim2=2)
                within = u @ torch.diag_embed(diagonal) @ vt
                torch.testing.assert_close(within, w, rtol=0, atol=1e-9 * float(w.abs().max()))
                assert not torch.allclose(w, before, rtol=1e-6), name
                other = seen.setdefault((name, k), diagonal)
                assert member == 0 or not torch.allclose(diagonal, other, rtol=1e-6), name
    loss = Loss(old.config, old.model.force_covariance)
    validation = old.prepare().validation
    whole = validation.batch(range(len(validation)))
    train = old.prepare().train
    first = train.batch(train.order(0, 0)[: old.config.train.batch_size])
    start = as_wide_as_errors(
        lambda factor: sve.perturbed(old.model, 3, factor, 0), first, sve.START
    )
    before, after = (loss(model(whole), whole)["loss"] for model in (start, new.model))
    assert (after < before).all(), "every member has learned from where it began"


def test_values_are_those_of_the_decomposition(one):
    """Without noise a model by its singular values is the model."""
    members = sve.by_singular_values(one.model, 2)
    found = dict(members.named_parameters())
    assert len(found) == len(dict(one.model.named_parameters()))
    w = one.model.layers[0].readout.w1
    values = found["layers.0.readout.parametrizations.w1.original"]
    torch.testing.assert_close(values[1], torch.linalg.svdvals(w[0]), rtol=1e-10, atol=1e-12)
    batch = one.prepare().train.batch([0, 3])
    both, alone = members(batch), one.model(batch)
    for key in ("energy", "forces", "raw"):
        want = getattr(alone, key).expand_as(getattr(both, key))
        torch.testing.assert_close(getattr(both, key), want, rtol=1e-10, atol=1e-10)


def test_members_begin_as_far_apart_as_they_err(one, batch):
    model = as_wide_as_errors(lambda x: sve.perturbed(one.model, 16, x, 1), batch, sve.START)
    out = model(batch).forces.detach()
    error, spread = out.mean(1) - batch.forces, out.std(1, unbiased=False)
    assert (error**2).mean().item() == pytest.approx((spread**2).mean().item(), rel=0.3)


# ---- distillation --------------------------------------------------------------------------------


def test_divergence_against_torch(runs):
    """Both directions of the divergence differ: the ensemble's comes first."""
    run = Run.load(runs("equivariant", 3))
    frames = run.prepare().train.frames[:3]
    taught = distill.Taught(frames, run.model, torch.float64, (1e-3, 1e-4)).batch([2, 0])
    student = distill.student_of(run.model, 1, 0)
    out = student(taught)
    rows = distill.DivergenceLoss(run.config, student.force_covariance).rows(out, taught)
    forces = MultivariateNormal(taught.forces, taught.forces_cov)
    aleatoric, epistemic = (part[:, 0] for part in student.own_forces_cov(out.raw))
    own = MultivariateNormal(out.forces[:, 0], aleatoric + epistemic)
    traces = [part.diagonal(dim1=1, dim2=2).sum(1) for part in (epistemic, aleatoric + epistemic)]
    of_share = kl_divergence(Bernoulli(taught.epistemic), Bernoulli(traces[0] / traces[1]))
    assert of_share.min() > 1e-3  # else it is not seen
    torch.testing.assert_close(
        rows["forces"][:, 0] - of_share, kl_divergence(forces, own), rtol=1e-8, atol=1e-8
    )
    assert (rows["forces"][:, 0] - of_share - kl_divergence(own, forces)).abs().max() > 1e-3
    energy = Normal(taught.energy, taught.energy_var.sqrt())
    own = Normal(out.energy[:, 0], out.energy_var[:, 0].sqrt())
    torch.testing.assert_close(
        rows["energy"][:, 0], kl_divergence(energy, own), rtol=1e-8, atol=1e-8
    )
    # What is taught are the moments of the frames asked for, in their order.
    moments = predict_batch(
        run.model,
        Dataset(frames, run.model.constants.elements, run.model.config.r_max, torch.float64).batch(
            [2, 0]
        ),
    )
    np.testing.assert_allclose(taught.forces.numpy(), moments.forces.mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        taught.forces_cov.numpy(), moments.forces.total + 1e-6 * np.eye(3), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(taught.energy_var.numpy(), moments.energy.total + 4e-8, rtol=1e-9)
    share = np.trace(moments.forces.epistemic, axis1=1, axis2=2) / (
        np.trace(moments.forces.total, axis1=1, axis2=2) + 3e-6
    )
    np.testing.assert_allclose(taught.epistemic.numpy(), share, rtol=1e-9)


def test_a_perfect_student_has_no_divergence(runs):
    """One equivariant member teaching itself, but for the floor."""
    run = Run.load(runs("equivariant"))
    taught = distill.Taught(
        run.prepare().train.frames[:2], run.model, torch.float64, (0.0, 0.0)
    ).batch([0, 1])
    student = distill.student_of(run.model, 0, 0)
    rows = distill.DivergenceLoss(run.config, student.force_covariance).rows(
        student(taught), taught
    )
    assert all(value.abs().max() < 1e-9 for value in rows.values())
    plain = Loss(run.config, student.force_covariance).rows(student(taught), taught)
    assert plain["forces"].abs().max() > 1e-3


def test_student_starts_from_the_member(runs):
    for head, stress_head in (
        ("equivariant", "none"),
        ("evidential", "none"),
        ("evidential", "equivariant"),
    ):
        teacher = Run.load(runs(head, 2)).model
        if stress_head != "none":  # which the student has not
            teacher = RACE(
                teacher.config.model_copy(update={"stress_head": stress_head}),
                teacher.constants,
                torch.float64,
            )
        batch = Run.load(runs(head, 2)).prepare().train.batch([0])
        student = distill.student_of(teacher, 1, 0)
        assert (
            student.head == "evidential" and student.n_members == 1 and not student.has_stress_cov
        )
        out, member = student(batch), member_of(teacher, 1)(batch)
        for name in ("forces", "energy", "energy_var"):
            torch.testing.assert_close(getattr(out, name), getattr(member, name))
        torch.testing.assert_close(out.raw[..., 2], member.raw[..., 2])
        torch.testing.assert_close(out.raw[..., -5:], member.raw[..., -5:])
        if head == "equivariant":  # nu and kappa alike for all, the total that of the member
            parts = student.own_forces_cov(out.raw)
            torch.testing.assert_close(
                parts[0] + parts[1], member_of(teacher, 1).forces_cov(member.raw)
            )
            assert out.raw[..., 3:5].abs().max() == 0


@pytest.mark.parametrize("head", ["equivariant", "point", "eip"])
def test_distillation_approaches_the_teacher(runs, tmp_path, head):
    """Divergence on frames that the student was never taught, before and after; `point`
    members spread enough for a covariance.
    """
    path = runs(head, 4)
    fit("distill", [path], tmp_path / "student", {"epochs": "25"})
    teacher, student = Run.load(path), Run.load(tmp_path / "student")
    assert student.model.n_members == 1 and student.config.train.loss == "evidential"
    start = distill.student_of(teacher.model, 0, 0)
    floor = (
        distill.FLOOR * teacher.model.constants.sigma0,
        distill.FLOOR * teacher.model.constants.sigma0_energy,
    )
    frames = list(distill.rattled(teacher.prepare().validation.frames, 2, 0.1, seed=5))
    taught = distill.Taught(frames, teacher.model, torch.float64, floor).batch(range(len(frames)))
    loss = distill.DivergenceLoss(student.config, student.model.force_covariance)
    before, after = (
        loss.rows(model(taught), taught)["forces"].mean().item() for model in (start, student.model)
    )
    assert after < 0.5 * before
    new, _ = predict_dataset(student.model, teacher.prepare().validation)
    assert np.linalg.eigvalsh(new.forces.total).min() > 0
    # What one finds strange, the other does: the epistemic parts go together
    scores = [
        np.trace(predict_batch(model, taught).forces.epistemic, axis1=1, axis2=2)
        for model in (student.model, teacher.model)
    ]
    assert spearman(*scores) > 0.5


def test_rattled_copies(one):
    frames = one.prepare().train.frames
    first, again = (list(distill.rattled(frames, 2, 0.1, seed=3)) for _ in range(2))
    assert len(first) == 2 * len(frames) and all(
        np.array_equal(a.positions, b.positions) for a, b in zip(first, again, strict=True)
    )
    moved = [
        np.std(copy.positions - frame.positions)
        for copy, frame in zip(first, [*frames, *frames], strict=True)
    ]
    assert max(moved) < 0.2 and np.std(moved) > 0.005


def test_refusals(runs, tmp_path):
    with pytest.raises(RaceError, match="no force uncertainty to distil"):
        fit("distill", [runs("point")], tmp_path / "a", {})
    with pytest.raises(RaceError, match=r"no such member.*expected 0 .. 1; got 2"):
        fit("distill", [runs("equivariant", 2)], tmp_path / "b", {"member": "2"})
    with pytest.raises(RaceError, match="no shallow posterior for this head.*got evidential"):
        fit("shallow", [runs("evidential")], tmp_path / "c", {})
    with pytest.raises(RaceError, match="starts from one member"):
        fit("shallow", [runs("point", 4)], tmp_path / "d", {})
    assert not any((tmp_path / name).exists() for name in "abcd")
