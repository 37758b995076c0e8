"""Where a call stands: what runs around it that a compiled program would get wrong, or could not run in.

Transforms (torch.func.vmap, grad, jvp), tracers (torch.jit.trace, make_fx, torch.export) and modes that see each operation want
the original's operations; forward derivatives are not what sweeps are iterated for; and a checkpoint's second run has to save
what its first one saved. The original runs there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fxsolve.memory import Held

CHECKPOINT = "torch.utils.checkpoint"


def transformed(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a transform of torch.func is under way, or a backward of many cotangents at once (is_grads_batched=True)."""
    return peek_interpreter_stack() is not None or any(map(is_legacy_batchedtensor, tensors))


def why_original() -> str | None:
    """What speaks against the compiled program here, or None."""
    transform = peek_interpreter_stack()
    if transform is not None:
        return f"it is called inside of torch.func.{transform.key().name.lower()}, which transforms the original's operations"
    if forward_ad._current_level >= 0:
        return "forward derivatives are taken (torch.autograd.forward_ad), which follow the original's operations"
    if torch._C._get_tracing_state() is not None:
        return "it is called inside of torch.jit.trace, which takes the original's operations down"
    if torch._C._len_torch_dispatch_stack():
        kinds = [type(mode) for mode in _get_current_dispatch_mode_stack() if not isinstance(mode, Held)]
        if kinds:
            return f"it is called inside of {kinds[-1].__name__}, which sees the original's operations"
    if torch.is_grad_enabled():
        hooks = _top_saved_tensors_default_hooks(True)
        if hooks is not None and getattr(hooks[0], "__module__", None) == CHECKPOINT:
            return (
                "it is called inside of torch.utils.checkpoint, where the second run has to save what the first one saved; "
                "blocks keep little for their backward, so try it without the checkpoint"
            )
    return None
