"""The grid that is left after a jump."""

import math

import numpy as np
import pytest
from fewstep.samplers import frames, grids
from fewstep.samplers.shortened import regrid, tail
from latents import FRAMES


def test_a_tail_keeps_the_grids_nodes():
    grid = grids.karras(frames.edm(), 8, end="zero", t_T=80.0, t_0=0.03)
    at = tail(grid, float(grid.sigma[3]))
    for name in ("sigma", "alpha", "lambda_", "t"):
        np.testing.assert_array_equal(getattr(at, name), getattr(grid, name)[3:])
    between = tail(grid, 10.0)
    assert between.sigma[0] == 10.0 and between.node(0).lambda_ == pytest.approx(-math.log(10))
    np.testing.assert_array_equal(between.sigma[1:], grid.sigma[grid.sigma < 10])
    # a float32 copy of a node is that node, and no step of 1e-8 is left behind
    assert len(tail(grid, float(np.float32(grid.sigma[3]))).sigma) == len(at.sigma)


@pytest.mark.parametrize(("frame", "name", "more"), [
    ("edm", "karras", {}), ("vp", "uniform_t", {}), ("vp", "quadratic_t", {}), ("vp", "uniform_lambda", {}),
    ("flow", "uniform_t", {}), ("flow", "exponential", {}), ("flow", "karras", {}), ("edm", "exponential", {})])
@pytest.mark.parametrize("end", ["stop", "zero"])
def test_a_regridded_named_grid_is_the_named_grid_from_there_on(frame, name, more, end):
    """With all its steps, from the jump's end to the grid's own."""
    frame = FRAMES[frame]
    stop = float(frame.t_of_lambda(3.0))
    grid = grids.GRIDS[name](frame, 6, end=end, t_0=stop)
    sigma = float(frame.sigma_of_lambda(-0.4))
    found = regrid(grid, sigma)
    wanted = grids.GRIDS[name](frame, 6, end=end, t_0=stop, t_T=float(frame.t_of_lambda(-0.4)))
    assert found.steps == 6
    np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-9)


@pytest.mark.parametrize("sigmas", [[14.6, 9.0, 5.0, 2.9, 1.3, 0.4, 0.0], [0.99, 0.95, 0.7, 0.6, 0.3, 0.0], [9.0, 0.0], [9.0, 2.0]])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_any_grid_can_be_regridded(sigmas, share):
    grid = grids.from_sigmas(frames.flow() if sigmas[0] < 1 else frames.edm(), sigmas)
    sigma = share * sigmas[0]
    found = regrid(grid, sigma)
    assert (found.steps, found.end, found.sigma[0], found.sigma[-1]) == (grid.steps, grid.end, sigma, grid.sigma[-1])
