"""Runners for the golden data, one module per system.

Each module has ``accepts(head, settings) -> bool``, which recognises its cases by the file's metadata ``head`` (str to str)
and the case's settings, and ``run(case)``, which runs one and asserts.
"""

import importlib
import pkgutil


def runners():
    """The modules that can run cases, by name."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.__name__.rpartition(".")[2]: module for module in found if hasattr(module, "accepts")}
