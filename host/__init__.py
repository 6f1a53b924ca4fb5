"""The embedded host: runs workflow files with FewStep's nodes on a machine without ComfyUI.

It is a small host for first pictures, headless batches and tests, not a ComfyUI: it knows the pack's nodes, the demo model
and the few stock nodes that the example workflows use, under the stock names and with the stock results.

>>> from fewstep.host import stock_ids
>>> "VAEDecode" in stock_ids()
True
"""

from __future__ import annotations

__all__ = ["stock_ids"]


def stock_ids() -> list[str]:
    """Ids of the host's own nodes that are built in here."""
    from .stock import NODES

    return [node.__name__ for node in NODES]
