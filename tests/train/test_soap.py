"""SOAP in stacks against one matrix at a time."""

import pytest
import torch
from torch import nn

from race.train import soap
from race.train.soap import Soap

BETAS = (0.8, 0.97)


class SlowSoap:
    """Algorithm 3 of arXiv:2409.11321 for one matrix: the mean of the gradient is kept as it
    is, and rotated at every step.
    """

    def __init__(self, matrix):
        self.matrix = matrix
        rows, columns = matrix.shape
        self.mean, self.square = torch.zeros_like(matrix), torch.zeros_like(matrix)
        self.grams = [torch.zeros(n, n).to(matrix) for n in (rows, columns)]
        self.bases = [torch.eye(n).to(matrix) for n in (rows, columns)]

    def step(self, gradient, rate, t):
        for k, gram in enumerate((gradient @ gradient.T, gradient.T @ gradient)):
            if len(gram) > soap.WIDEST:
                continue
            self.grams[k] = soap.DECAY * self.grams[k] + (1 - soap.DECAY) * gram
            if t == 1 or t % soap.EVERY == 0:
                gram = self.grams[k] + soap.DAMPING * self.grams[k].diagonal().mean() * torch.eye(
                    len(gram)
                ).to(gram)
                self.bases[k] = torch.linalg.qr(gram @ self.bases[k]).Q
        left, right = self.bases
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
        rotated = left.T @ gradient @ right
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * rotated**2
        mean = left.T @ self.mean @ right / (1 - BETAS[0] ** t)
        size = (self.square / (1 - BETAS[1] ** t)).sqrt() + soap.EPSILON
        self.matrix = self.matrix - rate * left @ (mean / size) @ right.T


@pytest.mark.parametrize("widest", [256, 4])
def test_stacks_step_as_single_matrices(widest, monkeypatch):
    monkeypatch.setattr(soap, "WIDEST", widest)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    # Two members: a plain matrix, three flat ones for each of two species, two of a higher rate
    shapes = [None, [(3, 5), (2, 2), (3, 5)], [(1, 4), (3, 5)]]
    parameters = [nn.Parameter(random(2, 3, 5)), nn.Parameter(random(2, 2, 34))]
    parameters.append(nn.Parameter(random(2, 19)))

    def matrices(tensors):
        parts = [tensors[0]]
        for tensor, of in zip(tensors[1:], shapes[1:], strict=True):
            flat = tensor.split([rows * columns for rows, columns in of], dim=-1)
            parts += [part.unflatten(-1, shape) for part, shape in zip(flat, of, strict=True)]
        return [matrix for part in parts for matrix in part.reshape(-1, *part.shape[-2:])]

    groups = [
        {"params": parameters[:2], "factor": 1.0, "shapes": shapes[:2]},
        {"params": parameters[2:], "factor": 3.0, "shapes": shapes[2:]},
    ]
    stepper = Soap(groups, lr=0.1, betas=BETAS)
    slow = [SlowSoap(matrix.detach().clone()) for matrix in matrices(parameters)]
    for t in range(1, 2 * soap.EVERY + 5):
        for group in stepper.param_groups:
            group["lr"] = 0.1 * group["factor"] / t
        for p in parameters:
            p.grad = random(*p.shape)
        gradients = matrices([p.grad for p in parameters])
        for k, (one, gradient) in enumerate(zip(slow, gradients, strict=True)):
            one.step(gradient, (0.3 if k >= len(slow) - 4 else 0.1) / t, t)
        stepper.step()
    for one, matrix in zip(slow, matrices(parameters), strict=True):
        torch.testing.assert_close(one.matrix, matrix.detach(), rtol=1e-9, atol=1e-9)


def test_a_gradient_that_is_missing_or_zero_moves_nothing():
    parameters = [nn.Parameter(torch.ones(2, 3, 3)) for _ in range(2)]
    stepper = Soap([{"params": parameters, "shapes": [None, None]}], lr=0.1)
    for _ in range(2 * soap.EVERY):
        parameters[0].grad = torch.zeros(2, 3, 3)
        stepper.step()
    assert all(torch.equal(p, torch.ones(2, 3, 3)) for p in parameters)


def test_the_state_of_another_optimiser_is_refused():
    parameters = [nn.Parameter(torch.ones(2, 3, 3))]
    stepper = Soap([{"params": parameters, "shapes": [None]}], lr=0.1)
    other = Soap([{"params": [nn.Parameter(torch.ones(2, 3, 4))], "shapes": [None]}], lr=0.1)
    for state in (torch.optim.Adam(parameters).state_dict(), other.state_dict()):
        with pytest.raises(ValueError, match="other shapes"):
            stepper.load_state_dict(state)


def test_a_loaded_state_goes_on_with_the_rates_that_are_set_after():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 2, 3, 3, generator=generator)
    ends = []
    for resumes in (False, True):
        parameter = nn.Parameter(torch.ones(2, 3, 3))
        groups = [{"params": [parameter], "shapes": [None]}]
        stepper = Soap(groups, lr=0.1)
        for t, gradient in enumerate(gradients):
            if resumes and t == 2:
                state, stepper = stepper.state_dict(), Soap(groups, lr=0.1)
                stepper.load_state_dict(state)
            stepper.param_groups[0]["lr"] = 0.1 / (1 + t)
            parameter.grad = gradient.clone()
            stepper.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)
