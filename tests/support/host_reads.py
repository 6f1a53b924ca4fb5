"""Counting how often a program reads tensors on the host, which would make it wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostReads(TorchDispatchMode):
    """Counts reads: by the dispatcher (item, bool, float) and by the methods that pass it by (tolist, numpy)."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self._methods = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy")}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, self._counted(method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def _counted(self, method):
        def read(tensor, *args, **kwargs):
            self.count += 1
            return method(tensor, *args, **kwargs)

        return read
