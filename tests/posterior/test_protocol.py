"""What the posteriors share: how samples are assigned to members and drawn."""

import numpy as np
import torch

from race.posterior.protocol import assigned_members, normal_draws


def test_dealt():
    assert assigned_members(5, 2) == [0, 1, 0, 1, 0] and assigned_members(2, 1) == [0, 0]


def test_draws_are_centred_and_standard_normal():
    """Few samples of each member: mean zero in every draw; population variance, and the
    variance of every sample, 1 on average.
    """
    members = assigned_members(7, 2)  # four of the first member, three of the second
    z = normal_draws(members, (20000,), torch.Generator().manual_seed(0)).numpy()
    for member in range(2):
        rows = z[[k for k, other in enumerate(members) if other == member]]
        assert np.abs(rows.mean(0)).max() < 1e-14
        # The mean of 20000 squares errs by sqrt(2 / 20000) = 1 %.
        np.testing.assert_allclose((rows**2).mean(1), 1.0, atol=0.05)
        np.testing.assert_allclose((rows**2).mean(0).mean(), 1.0, atol=0.03)
    assert abs(np.corrcoef(z[0], z[1])[0, 1]) < 0.05  # members are independent
    alone = normal_draws(
        [0, 1], (20000,), torch.Generator().manual_seed(0)
    ).numpy()  # one sample each: nothing to centre
    np.testing.assert_allclose((alone**2).mean(1), 1.0, atol=0.05)
