"""Functions of torch that look at values before they compute, and what computes the same without a look.

    one_hot(x, n)    -->    (x[..., None] == arange(n)).long()

The function itself is called too while it is recorded, so that its complaint about bad values comes as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor | None:
    """None where the number of classes hangs on the values."""
    if num_classes <= 0:
        return None
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).to(torch.int64)


STAND_INS: tuple[tuple[Any, str, Callable[..., torch.Tensor | None]], ...] = (
    (torch.nn.functional, "one_hot", one_hot),
    (torch._C._nn, "one_hot", one_hot),  # pyright: ignore[reportAttributeAccessIssue]
)
