"""A small digit classifier on latents: it counts recognised samples and gives the features of the Frechet distance."""

import functools
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import weights
from .network import CLASSES

FEATURES = 64


class Classifier(nn.Module):
    """Three convolutions and two linear layers on 4x8x8 latents."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.conv1 = nn.Conv2d(4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * width * 16, FEATURES)
        self.out = nn.Linear(FEATURES, CLASSES)

    def features(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, 8, 8], standardised -> features [B, 64], the last layer's input; each row has mean 0, variance 1."""
        h = F.relu(self.conv1(latents))
        h = F.relu(self.conv2(h))
        h = F.dropout(F.relu(self.conv3(h)).flatten(1), 0.3, self.training)
        # Normalised, so that no unusual digit has a long feature vector: a few such would rule the Frechet distance.
        return F.layer_norm(self.hidden(h), [FEATURES])

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, 8, 8] -> logits [B, 10]."""
        out: Tensor = self.out(F.dropout(self.features(latents), 0.2, self.training))
        return out

    @torch.no_grad()
    def predict(self, latents: Tensor) -> Tensor:
        """Most likely digit, int64 [B]."""
        return self.forward(latents).argmax(dim=1)


@functools.cache
def load() -> Classifier:
    """The shipped classifier in float32, ready to evaluate; one shared instance, not to be trained further."""
    state, metadata = weights.load(weights.path_of("classifier"), "classifier")
    net = Classifier(**json.loads(metadata["settings"]))
    weights.fill(net, state, "classifier.safetensors")
    return net.eval().requires_grad_(False)
