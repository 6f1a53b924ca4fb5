"""A stand-in for CUDA graphs on the CPU: operations are noted without being done, and replayed on the addresses they had."""

import ctypes

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Address:
    """A tensor's place in memory; nothing keeps the memory alive."""

    def __init__(self, x):
        self.pointer, self.shape, self.stride, self.dtype = x.data_ptr(), x.shape, x.stride(), x.dtype

    def tensor(self):
        length = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        memory = (ctypes.c_char * (length * self.dtype.itemsize)).from_address(self.pointer)
        return torch.frombuffer(memory, dtype=self.dtype).as_strided(self.shape, self.stride)


class Noting(TorchDispatchMode):
    """Notes what is written where, as a stream under capture; an operation that makes a tensor is an error."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        if not func._schema.is_mutable:
            raise AssertionError(f"{func} makes a tensor, which a recording must not")
        self.operations.append((func, [_noted(a) for a in args], {name: _noted(a) for name, a in kwargs.items()}))
        return kwargs.get("out", args[0])


def _noted(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.item() if x.ndim == 0 else Address(x)


def _found(x):
    return x.tensor() if isinstance(x, Address) else x


class AddressRecorder:
    """What ``samplers.graphs`` takes for its recorder. ``records`` and ``replays`` count, ``operations`` is of the last record."""

    def __init__(self):
        self.records = self.replays = 0
        self.recorded = False  # whether the caller is to be told that it is being recorded

    def busy(self):
        return self.recorded

    def record(self, work, device):
        with Noting() as noting:
            result = work()
        self.records += 1
        self.operations = noting.operations

        def replay():
            self.replays += 1
            for func, args, kwargs in noting.operations:
                func(*map(_found, args), **{name: _found(a) for name, a in kwargs.items()})

        return replay, result


class Arena:
    """Replaces ``torch.empty`` and ``empty_like``: from ``begin()`` on they deal out the same memory in the same order, as
    torch's allocator on a GPU does for runs that repeat."""

    def __init__(self, monkeypatch):
        self._empty, self._made, self._next = torch.empty, {}, {}
        monkeypatch.setattr(torch, "empty_like", lambda like, *, dtype=None: self._deal(tuple(like.shape), dtype or like.dtype))
        monkeypatch.setattr(torch, "empty", lambda *shape, dtype=torch.float32: self._deal(shape, dtype))

    def begin(self):
        self._next.clear()

    def _deal(self, shape, dtype):
        made, k = self._made.setdefault((shape, dtype), []), self._next.get((shape, dtype), 0)
        self._next[shape, dtype] = k + 1
        if k == len(made):
            made.append(self._empty(shape, dtype=dtype))
        return made[k]
