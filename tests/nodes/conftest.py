"""A model whose ODE is solved by hand: Gaussian data around a mean that the prompt's digit chooses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

SPREAD = 0.5  # standard deviation of the data
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
AC = np.cumprod(1 - BETAS)
SIGMAS = np.sqrt((1 - AC) / AC)


class GaussianNet(torch.nn.Module):
    """The exact network for x_0 ~ N(digit/10, SPREAD^2) in the form eps, v or flow; counts its calls and samples."""

    def __init__(self, form):
        super().__init__()
        self.form, self.calls, self.samples, self.levels = form, 0, 0, []

    def forward(self, x, timesteps, context=None, **ignored):
        self.calls += 1
        self.samples += len(x)
        weights = context.mean(1)
        mean = (weights[:, :10] @ torch.arange(10.0) / 10).reshape(-1, *(1,) * (x.ndim - 1))
        t = timesteps.reshape(mean.shape).double()
        if self.form == "flow":
            s = t / 1000
            a = 1 - s
            self.levels.append(float(s.flatten()[0]))
            x_0 = mean + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x - a * mean)
            return ((x - x_0) / s).float()
        s = torch.from_numpy(SIGMAS)[t.long()]
        self.levels.append(float(s.flatten()[0]))
        full = x * (1 + s**2) ** 0.5
        x_0 = mean + SPREAD**2 / (SPREAD**2 + s**2) * (full - mean)
        if self.form == "eps":
            return ((full - x_0) / s).float()
        return ((full / (1 + s**2) - x_0) * (1 + s**2) ** 0.5 / s).float()


def load(form):
    return SimpleNamespace(net=GaussianNet(form), form=form, prediction=form, alphas_cumprod=None if form == "flow" else AC)


@pytest.fixture
def gaussian():
    return SimpleNamespace(load=load, Net=GaussianNet, SPREAD=SPREAD, SIGMAS=SIGMAS, AC=AC)


@pytest.fixture
def host(tmp_path):
    """The embedded host with the Gaussian model, installed for the test."""
    from fewstep.host.embedded import EmbeddedHost
    from fewstep.nodes.host import use_host

    with use_host(EmbeddedHost(tmp_path / "out", load_demo=load)) as made:
        yield made


@pytest.fixture
def text():
    """text('7') -> CONDITIONING."""

    def encode(prompt):
        row = torch.zeros(1, 1, 11)
        row[0, 0, int(prompt) if prompt else 10] = 1
        return [[row, {}]]

    return encode


@pytest.fixture
def embedded(tmp_path):
    """The embedded host with the real demo model and two files."""
    from demo_loras import DEMO, lora_file
    from fewstep.host.embedded import EmbeddedHost
    from fewstep.nodes.host import use_host

    loras = tmp_path / "models" / "loras"
    lora_file(loras / "digits.safetensors", metadata=DEMO)
    lora_file(loras / "sub" / "plain.safetensors", seed=2)
    with use_host(EmbeddedHost(tmp_path / "out", models_directory=tmp_path / "models")) as host:
        host.loras = loras
        yield host
