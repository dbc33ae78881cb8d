"""How many bytes of tensors live while a piece of code runs, operation by operation."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations inside make, as long as these live; a storage counts once.

    What an operation needs for itself while it runs is not seen, nor how an allocator rounds.

    Args:
        known: Tensors that were there before, which do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]):  # noqa: D107
        super().__init__()
        self.live, self.after = 0, []  # bytes now, and after each operation
        self._seen: dict[int, weakref.ref] = {}
        for tensor in known:
            self._note(tensor, counts=False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        self.after.append(self.live)
        return result

    def _note(self, tensor: torch.Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if counts else 0
        self.live += size

        def forget(_):
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)


def extrapolate(few: list[int], more: list[int], rows: tuple[int, int], wanted: int) -> int:
    """Return the most bytes that live at once with a number of rows, from what lives with two smaller ones.

    The same operations run on any number of rows, and what lives after each is linear in it: so the peak is found
    where it is with all rows, which may be another place than with few.

    Args:
        few: Bytes after each operation, with the first number of rows.
        more: Likewise with the second.
        rows: Both numbers.
        wanted: The number that is asked for.

    >>> extrapolate([100, 10], [100, 20], (1, 2), 20)
    200
    """
    first, second = rows
    if len(few) != len(more):  # another path was taken
        few, more = [max(few)], [max(more)]
    steps = (wanted - first) / (second - first)
    return round(max(a + steps * (b - a) for a, b in zip(few, more, strict=True)))
