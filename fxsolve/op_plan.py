"""What the recorder has to know of an operator, worked out once for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

VIEWS_IN_PLACE = frozenset({"transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_"})
# Their schemas say that they mutate nothing, but in training they update running statistics.
HIDDEN_MUTATORS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
RUNNING_MEAN, TRAINING = 3, 5  # their arguments


@dataclass(frozen=True)
class OpPlan:
    op: torch._ops.OpOverload
    name: str
    mutated: tuple[tuple[str, int], ...]  # the arguments that are written: name and position
    resizes: bool  # whether it may give the tensor that it writes another shape
    scalar: bool  # whether it gives a number to Python
    decompose: bool  # whether it is made of others
    refuse: str | None  # why a program with it is not recorded
    depends: bool  # whether that depends on the arguments

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors that a call writes; lists of them are left to functionalize to refuse."""
        found = [args[position] if position < len(args) else kwargs.get(name) for name, position in self.mutated]
        return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]

    @staticmethod
    def of(func: torch._ops.OpOverload) -> OpPlan:
        name = func._schema.name.split("::")[-1]
        written = [
            (a.name, i, a.kwarg_only)
            for i, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write and name not in VIEWS_IN_PLACE
        ]
        mutated = tuple([(argument, position) for argument, position, _ in written])
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        return OpPlan(
            func,
            name,
            mutated,
            any(keyword for _, _, keyword in written),
            name == "_local_scalar_dense",
            composite and not mutated,
            refusal(func, name, bool(mutated)),
            name == "index" or name in HIDDEN_MUTATORS,
        )


def refusal(func: torch._ops.OpOverload, name: str, mutates: bool) -> str | None:
    """Why calls of an operator are not recorded, if that does not depend on their arguments."""
    if torch.Tag.dynamic_output_shape in func.tags and name != "index":
        return f"{name} has a result whose shape depends on values"
    if name not in VIEWS_IN_PLACE and (torch.Tag.inplace_view in func.tags or name in ("set_", "resize_", "resize_as_")):
        return f"{name} changes a tensor's shape or storage in place"
    if name == "equal":
        return f"{name} gives a truth value to Python"
    if name in ("_conj", "_neg_view"):
        return f"{name} marks a tensor as conjugated or negated without computing (use torch.conj_physical)"
    if mutates and any(r.alias_info is None for r in func._schema.returns):
        return f"{name} both writes to an argument and returns something else"
    return None


def refusal_of_call(plan: OpPlan, args: tuple[Any, ...]) -> str | None:
    """Why this call of an operator is not recorded."""
    if plan.name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        return "an index with a boolean mask has a result whose shape depends on values (use torch.where)"
    if plan.name in HIDDEN_MUTATORS and args[TRAINING] and args[RUNNING_MEAN] is not None:
        return f"{plan.name} in training mode updates its running statistics: call .eval()"
    return None
