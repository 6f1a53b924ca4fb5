"""Train the digit classifier: ``python -m fewstep.demo.train_classifier`` (about a minute on one CPU core)."""

import argparse
import json
import time

import torch
import torch.nn.functional as F

from . import data, weights
from .classifier import Classifier
from .train import learning_rate


def main() -> None:
    """Train on the augmented training part, report accuracy on the held-out part, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train, held = data.load()
    net = Classifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    begin = time.monotonic()
    for step in range(args.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, 2e-3)
        pick = torch.randint(len(train.labels), (args.batch,), generator=generator)
        latents = data.augmented_latents(train.images[pick], generator)
        loss = F.cross_entropy(net(latents), train.labels[pick], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 250 == 249:
            print(f"classifier step={step + 1} loss={loss.item():.4f}", flush=True)
    net.eval()
    # Only now is the held-out part looked at: it chooses neither settings nor the moment to stop.
    right = {name: (net.predict(part.latents()) == part.labels).float().mean().item()
             for name, part in (("train", train), ("held_out", held))}
    print(f"classifier accuracy {right}, {time.monotonic() - begin:.0f} s", flush=True)
    weights.save(weights.path_of("classifier"), net.state_dict(), {
        "form": "classifier", "settings": json.dumps(net.settings), "seed": str(args.seed), "steps": str(args.steps),
        "batch": str(args.batch), "held_out_accuracy": f"{right['held_out']:.4f}",
        "data": "scikit-learn load_digits, 1437 training images",
    })


if __name__ == "__main__":
    main()
