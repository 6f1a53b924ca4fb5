"""The demo's own errors; all are ``ValueError`` because each names an input that cannot be used."""


class DemoError(ValueError):
    """Base of the demo's errors."""


class PromptError(DemoError):
    """A prompt that does not name exactly one digit."""


class SizeError(DemoError):
    """An image or latent whose shape the demo cannot use."""


class WeightsError(DemoError):
    """A weight file that is missing, damaged, or of another kind than asked for."""
