"""The embedded demo: three tiny class-conditional digit diffusion models that share one latent space.

They exist so that every sampler and every node can be run, tested and shown with real trained networks, on a CPU, in
seconds and without a download. See ``demo/README.md`` for what they are and how good they are.
"""

FORMS = ("eps", "v", "flow")

__all__ = ["FORMS"]
