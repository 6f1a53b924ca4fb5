"""Packages that only some functions need, imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingDependencyError


def require(module: str, package: str, purpose: str) -> Any:
    """Imports ``module``; raises MissingDependencyError naming the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{purpose} needs the package {package}: pip install {package} ({error})") from error


def scipy_special() -> Any:
    """scipy.special, for the beta grid."""
    return require("scipy.special", "scipy", "the beta grid")


def pyplot() -> Any:
    """matplotlib.figure without a window system, for plots."""
    return require("matplotlib.figure", "matplotlib", "drawing a plan")
