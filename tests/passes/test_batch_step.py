"""Batch step: `out[n] = step(in[n])`, rule by rule, on real cells and on random steps."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.proxy import GraphAppendingTracer

from fxsolve import prims
from fxsolve.errors import FxsolveError
from fxsolve.ir import TensorType, calls, to_text
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.batching_default import Each

aten = torch.ops.aten
COUNT = 5


class Typed(fx.Interpreter):
    """Runs a graph and records the type of each value on its node."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["type"] = type_of(result)
        return result


def type_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorType.of(value)
    return tuple(map(type_of, value)) if isinstance(value, tuple | list) else None


def trace(step: Callable[..., Any], *inputs: torch.Tensor) -> fx.Graph:
    """The step graph of a function of tensors: placeholders x0, x1, .., calls functional."""
    traced = make_fx(step)(*inputs).graph
    graph, new = fx.Graph(), {}
    for node in traced.nodes:
        if node.op == "placeholder":
            new[node] = graph.placeholder(f"x{len(new)}")
        elif node.op == "output":
            out = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
            graph.output(tuple(new[n] for n in out))
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
            new[node].target = functional(node.target)
    graph.owning_module = traced.owning_module
    Typed(module(graph)).run(*inputs)
    return graph


def module(graph: fx.Graph) -> fx.GraphModule:
    return fx.GraphModule(graph.owning_module or {}, graph)


def functional(target: Any) -> Any:
    """The functional twin of an in-place overload, which is enough for cells whose in-place calls nobody sees."""
    if not isinstance(target, torch._ops.OpOverload):
        return target
    packet, _, overload = target.__name__.partition(".")
    return getattr(getattr(aten, packet[:-1]), overload) if packet.endswith("_") else target


def write_step(inputs: dict[str, Any], body: Callable[..., fx.Proxy]) -> fx.Graph:
    """A step graph written with proxies, for Python ints that stay placeholders."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    out = body(*(fx.Proxy(graph.placeholder(name), tracer) for name in inputs))
    graph.output((out.node,))
    Typed(module(graph)).run(*inputs.values())
    return graph


def call(target: Any, first: fx.Proxy, *args: Any, **kwargs: Any) -> fx.Proxy:
    return first.tracer.create_proxy("call_function", target, (first, *args), kwargs)


def sample_like(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype.is_floating_point:
        return torch.randn(value.shape, dtype=value.dtype, generator=generator)
    return torch.randint(0, 2, value.shape, generator=generator).to(value.dtype)


def joined(values: Sequence[torch.Tensor], fold: bool) -> torch.Tensor:
    if not isinstance(values[0], torch.Tensor):
        return torch.tensor(values)
    return torch.cat(list(values)) if fold and values[0].dim() else torch.stack(list(values))


def check_equals_loop(
    graph: fx.Graph,
    elements: Sequence[Sequence[Any] | Any],
    batched: Sequence[int],
    fold: bool,
) -> fx.Graph:
    """Batches the graph and compares it with a loop; `elements[k]` is a list over n for k in `batched`."""
    names = [n.name for n in graph.nodes if n.op == "placeholder"]
    new = batch_step(graph, [names[k] for k in batched], COUNT, fold=fold)
    new.lint()
    inputs = [joined(v, fold) if k in batched else v for k, v in enumerate(elements)]
    single = module(graph)
    wanted = [single(*(v[n] if k in batched else v for k, v in enumerate(elements))) for n in range(COUNT)]
    found = CheckTypes(module(new)).run(*inputs)
    for k, result in enumerate(found):
        torch.testing.assert_close(result, joined([w[k] for w in wanted], fold), equal_nan=True)
    return new


class CheckTypes(fx.Interpreter):
    """Runs a batched graph; every recorded type must be the true one (strides aside)."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function":
            assert shape_and_dtype(type_of(result)) == shape_and_dtype(n.meta["type"]), n.format_node()
        return result


def shape_and_dtype(type: Any) -> Any:
    return tuple(map(shape_and_dtype, type)) if isinstance(type, tuple) else type and (type.shape, type.dtype)


def check_all_ways(step: Callable[..., Any], *inputs: torch.Tensor, rule: bool = True) -> None:
    """A step against the loop for each choice of batched inputs and both forms; `rule`: without the default."""
    graph = trace(step, *inputs)
    generator = torch.Generator().manual_seed(1)
    for size in range(1, len(inputs) + 1):
        for batched in itertools.combinations(range(len(inputs)), size):
            elements = [
                [sample_like(v, generator) for _ in range(COUNT)] if k in batched else v for k, v in enumerate(inputs)
            ]
            for fold in (False, True):
                new = check_equals_loop(graph, elements, batched, fold)
                opaque = [n.name for n in calls(new) if isinstance(n.target, Each)]
                assert not (rule and opaque), (batched, fold, opaque)


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 1)
    return sample_like(torch.empty(shape, dtype=dtype), generator)


def ints(*shape: int) -> torch.Tensor:
    return rand(*shape, dtype=torch.int64)


def bools(*shape: int) -> torch.Tensor:
    return rand(*shape, dtype=torch.bool)


POINTWISE: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "tanh": (torch.tanh, (rand(3, 4),)),
    "0-d": (torch.tanh, (rand(),)),
    "add": (torch.add, (rand(3, 4), rand(3, 4))),
    "add alpha": (lambda x, y: torch.add(x, y, alpha=2), (rand(3, 4), rand(4))),
    "add row": (torch.add, (rand(3, 4), rand(1, 4))),
    "add column": (torch.add, (rand(3, 4), rand(3, 1))),
    "outer": (torch.mul, (rand(3, 1), rand(1, 4))),
    "vector and matrix": (torch.mul, (rand(4), rand(3, 4))),
    "0-d and matrix": (torch.mul, (rand(), rand(3, 4))),
    "0-d twice": (torch.mul, (rand(), rand())),
    "rank 1 and rank 3": (torch.sub, (rand(2), rand(3, 4, 2))),
    "empty": (torch.add, (rand(0, 4), rand(1, 4))),
    "scalar": (lambda x: 2 * x + 1.5, (rand(3, 4),)),
    "where": (torch.where, (bools(3, 4), rand(3, 4), rand(4))),
    "where 0-d condition": (torch.where, (bools(), rand(3, 4), rand(4))),
    "clamp tensors": (lambda x, y: torch.clamp(x, max=y), (rand(3, 4), rand(4))),
    "comparison": (torch.lt, (rand(3, 4), rand(3, 4))),
    "lerp": (torch.lerp, (rand(3, 4), rand(3, 4), rand(3, 4))),
    "addcmul": (lambda a, b, c: torch.addcmul(a, b, c, value=3), (rand(3, 4), rand(4), rand(3, 1))),
    "gelu": (F.gelu, (rand(3, 4),)),
    "silu": (lambda x: F.silu(x), (rand(3, 4),)),
    "masked_fill": (lambda x, m: x.masked_fill(m, -1e9), (rand(3, 4), bools(4))),
    "masked_fill 0-d": (lambda x, m, v: x.masked_fill(m, v), (rand(3, 4), bools(4), rand())),
    "int / int": (torch.div, (ints(3, 4), ints(4) + 1)),
    "dtypes, 0-d double": (torch.mul, (rand(3, 4, dtype=torch.float32), rand())),
    "dtypes, 0-d float and ints": (torch.mul, (ints(3, 4), rand(dtype=torch.float32))),
    "dtypes, 0-d int": (torch.add, (rand(3, 4, dtype=torch.float32), ints())),
    "dtypes, comparison": (torch.gt, (rand(3, 4, dtype=torch.float32), rand())),
    "dtypes, where": (torch.where, (bools(), rand(3, dtype=torch.float32), rand())),
    "dtypes, two 0-d": (torch.add, (rand(dtype=torch.float32), rand())),
    "bool sum": (torch.add, (bools(3), rand())),
    "to": (lambda x: x.to(torch.float32), (rand(3, 4),)),
    "copy": (lambda x, y: aten.copy.default(x, y), (rand(3, 4, dtype=torch.float32), rand(4))),
    "prelu": (F.prelu, (rand(2, 3, 4), rand(3))),
    "logsigmoid": (F.logsigmoid, (rand(3, 4),)),
    "frexp": (torch.frexp, (rand(3, 4),)),
    "zeros_like": (lambda x: x + torch.zeros_like(x), (rand(3, 4),)),
    "full_like of a transposed": (lambda x: torch.full_like(x.t(), 2.0) + x.t(), (rand(3, 4),)),
    "new_zeros": (lambda x: torch.cat([x, x.new_zeros(2, 4)]), (rand(3, 4),)),
}


@pytest.mark.parametrize("case", POINTWISE)
def test_pointwise(case: str) -> None:
    step, inputs = POINTWISE[case]
    check_all_ways(step, *inputs)


PRODUCTS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "mm": (torch.mm, (rand(3, 4), rand(4, 5))),
    "addmm": (torch.addmm, (rand(5), rand(3, 4), rand(4, 5))),
    "addmm full": (torch.addmm, (rand(3, 5), rand(3, 4), rand(4, 5))),
    "addmm row": (torch.addmm, (rand(1, 5), rand(3, 4), rand(4, 5))),
    "addmm scaled": (lambda c, x, w: torch.addmm(c, x, w, beta=2, alpha=3), (rand(3, 5), rand(3, 4), rand(4, 5))),
    "bmm": (torch.bmm, (rand(2, 3, 4), rand(2, 4, 5))),
    "baddbmm": (torch.baddbmm, (rand(1, 3, 5), rand(2, 3, 4), rand(2, 4, 5))),
    "baddbmm full": (torch.baddbmm, (rand(2, 3, 5), rand(2, 3, 4), rand(2, 4, 5))),
    "mv": (torch.mv, (rand(3, 4), rand(4))),
    "addmv": (torch.addmv, (rand(3), rand(3, 4), rand(4))),
    "dot": (torch.dot, (rand(4), rand(4))),
    "linear": (F.linear, (rand(3, 4), rand(5, 4), rand(5))),
    "linear vector": (F.linear, (rand(4), rand(5, 4), rand(5))),
    "linear rank 3": (F.linear, (rand(2, 3, 4), rand(5, 4), rand(5))),
    "matmul rank 4": (torch.matmul, (rand(2, 3, 4, 5), rand(2, 3, 5, 2))),
    "matmul broadcast": (torch.matmul, (rand(2, 3, 4), rand(4, 5))),
    "einsum": (lambda x, y: torch.einsum("bij,bkj->bik", x, y), (rand(2, 3, 4), rand(2, 5, 4))),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case: str) -> None:
    step, inputs = PRODUCTS[case]
    check_all_ways(step, *inputs)


VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "view": lambda x: x.view(3, 20),
    "view rows": lambda x: x.view(12, 5),
    "view to 0-d": lambda x: x[0, 0, 0].view(()),
    "flatten": lambda x: x.flatten(),
    "reshape -1": lambda x: x.reshape(-1, 2),
    "reshape of a transposed": lambda x: x.transpose(0, 2).reshape(5, 12),
    "unsqueeze 0": lambda x: x.unsqueeze(0) * 2,
    "unsqueeze, squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "squeeze all": lambda x: x[:, :1].squeeze(),
    "t": lambda x: x[0].t(),
    "transpose": lambda x: x.transpose(0, 1),
    "transpose inner": lambda x: x.transpose(-1, 1),
    "permute": lambda x: x.permute(2, 0, 1),
    "permute inner": lambda x: x.permute(0, 2, -2),
    "expand": lambda x: x[:, :1].expand(3, 7, 5),
    "expand rows": lambda x: x[:1].expand(2, 3, 4, 5)[1],
    "expand 0-d": lambda x: x.sum().expand(2, 2),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat rows": lambda x: x.repeat(2, 1, 1, 1),
    "select": lambda x: x[1],
    "select inner": lambda x: x[:, -1],
    "slice": lambda x: x[1:],
    "slice inner": lambda x: x[..., 1:4:2],
    "split": lambda x: x.split(2),
    "split inner": lambda x: x.split([1, 3], dim=1),
    "unbind": lambda x: x.unbind(),
    "unbind inner": lambda x: x.unbind(1),
    "chunk": lambda x: x.chunk(2, -1),
    "detach, clone": lambda x: x.detach().clone(),
    "channels last": lambda x: x.unsqueeze(0).contiguous(memory_format=torch.channels_last),
    "flip": lambda x: x.flip(0, 2),
    "roll": lambda x: x.roll(2, 1),
    "roll all": lambda x: x.roll(2),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "tril": lambda x: x.tril(),
    "triu of a matrix": lambda x: x[0].triu(1),
    "read": lambda x: x + prims_read(x),
    "pad": lambda x: F.pad(x, (1, 2)),
    "pad all": lambda x: F.pad(x, (1, 2, 0, 1, 1, 1), value=3.0),
}


def prims_read(x: torch.Tensor) -> torch.Tensor:
    return x[:, 2:3]


@pytest.mark.parametrize("case", VIEWS)
def test_views(case: str) -> None:
    check_all_ways(VIEWS[case], rand(3, 4, 5))


REDUCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda x: x.sum(),
    "sum dim": lambda x: x.sum(1),
    "sum rows": lambda x: x.sum(0, keepdim=True),
    "sum dims": lambda x: x.sum((0, -1)),
    "mean": lambda x: x.mean(),
    "mean dim": lambda x: x.mean(-1, keepdim=True),
    "amax": lambda x: x.amax(),
    "amin dim": lambda x: x.amin(1),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "max dim": lambda x: x.max(1),
    "argmax": lambda x: x.argmax(),
    "argmax keepdim": lambda x: torch.argmax(x, dim=None, keepdim=True),
    "argmin dim": lambda x: x.argmin(0),
    "var": lambda x: x.var(),
    "var_mean": lambda x: torch.var_mean(x, dim=None, keepdim=True),
    "std dim": lambda x: x.std(1, correction=0),
    "logsumexp": lambda x: x.logsumexp((0, 1)),
    "norm": lambda x: x.norm(),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "all": lambda x: (x > 0).all(),
    "any dim": lambda x: (x > 0).any(0),
    "prod": lambda x: x.prod(),
    "prod dim": lambda x: x.prod(2),
    "cumsum": lambda x: x.cumsum(0),
    "cumsum inner": lambda x: x.cumsum(2),
    "cumprod": lambda x: x.cumprod(1),
    "softmax": lambda x: x.softmax(-1),
    "softmax rows": lambda x: x.softmax(0),
    "softmax 0-d": lambda x: x.sum().softmax(0),
    "log_softmax": lambda x: x.log_softmax(1),
    "topk": lambda x: x.topk(2),
    "sort rows": lambda x: x.sort(0),
    "sort": lambda x: x.sort(-1, descending=True),
    "median dim": lambda x: x.median(1),
    "glu": lambda x: F.glu(x, 1),
    "count_nonzero": lambda x: (x > 0).count_nonzero(),
    "max of 0-d": lambda x: x.sum().max(0),
    "layer_norm": lambda x: F.layer_norm(x, (5,)),
    "layer_norm all": lambda x: F.layer_norm(x, (3, 4, 5)),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_reductions(case: str) -> None:
    check_all_ways(REDUCTIONS[case], rand(3, 4, 5))


SEVERAL: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "cat rows": (lambda x, y: torch.cat([x, y]), (rand(3, 4), rand(2, 4))),
    "cat": (lambda x, y: torch.cat([x, y], 1), (rand(3, 4), rand(3, 2))),
    "cat with an empty": (lambda x, y: torch.cat([x, y]), (rand(3, 4), rand(0))),
    "stack": (lambda x, y: torch.stack([x, y]), (rand(3, 4), rand(3, 4))),
    "stack last": (lambda x, y: torch.stack([x, y], -1), (rand(3, 4), rand(3, 4))),
    "stack 0-d": (lambda x, y: torch.stack([x, y]), (rand(), rand())),
    "gather": (lambda x, i: x.gather(1, i), (rand(3, 4), ints(3, 2))),
    "gather rows": (lambda x, i: x.gather(0, i), (rand(3, 4), ints(2, 4))),
    "scatter": (lambda x, i, v: x.scatter(1, i, v), (rand(3, 4), ints(3, 1), rand(3, 1))),
    "scatter value": (lambda x, i: x.scatter(1, i, 7.0), (rand(3, 4), ints(3, 1))),
    "scatter_add": (lambda x, i, v: x.scatter_add(0, i, v), (rand(3, 4), ints(2, 4), rand(2, 4))),
    "select_scatter": (lambda x, v: x.select_scatter(v, 1, 2), (rand(3, 4), rand(3))),
    "slice_scatter": (lambda x, v: x.slice_scatter(v, 0, 1, 3), (rand(3, 4), rand(2, 4))),
    "index_select": (lambda x, i: x.index_select(1, i), (rand(3, 4, 2), ints(5))),
    "index": (lambda x, i: x[i], (rand(3, 4), ints(2, 2))),
    "index inner": (lambda x, i: x[:, i], (rand(3, 4, 2), ints(2, 3))),
    "index pair": (lambda x, i, j: x[:, i, j], (rand(3, 4, 2, 3), ints(2, 1), ints(3))),
    "index apart": (lambda x, i, j: x[i, :, j], (rand(3, 4, 2), ints(5), ints(5))),
    "index_put": (lambda x, i, v: aten.index_put(x, [i], v), (rand(3, 4), torch.tensor([1]), rand(1, 4))),
    "embedding": (lambda w, i: F.embedding(i, w), (rand(6, 4), ints(3, 2))),
    "embedding 0-d": (lambda w, i: F.embedding(i, w), (rand(6, 4), ints())),
    "index_add": (lambda x, v: x.index_add(0, torch.tensor([0, 2]), v), (rand(3, 4), rand(2, 4))),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_operands(case: str) -> None:
    step, inputs = SEVERAL[case]
    check_all_ways(step, *inputs)


KERNEL, BIAS, PAIR = rand(4, 2, 3, 3), rand(4), rand(2)
IMAGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "conv": lambda x: F.conv2d(x, KERNEL, BIAS, padding=1),
    "conv groups": lambda x: F.conv2d(x, KERNEL[:, :1], groups=2, stride=2),
    "conv_transpose": lambda x: F.conv_transpose2d(x, KERNEL[:2], stride=2),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool of one image": lambda x: F.max_pool2d(x[0], 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool 2": lambda x: F.adaptive_avg_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2),
    "group_norm": lambda x: F.group_norm(x, 2, PAIR, PAIR),
    "batch_norm": lambda x: F.batch_norm(x, PAIR, PAIR**2, PAIR, PAIR),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images(case: str) -> None:
    check_all_ways(IMAGES[case], rand(3, 2, 6, 6))


@pytest.mark.parametrize("masked", ["no", "causal", "matrix", "full"])
def test_attention(masked: str) -> None:
    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        given = mask if masked in ("matrix", "full") else None
        return F.scaled_dot_product_attention(q, k, v, given, is_causal=masked == "causal")

    mask = rand(3, 4) if masked == "matrix" else rand(2, 1, 3, 4)
    graph = trace(step, rand(2, 2, 3, 4), rand(2, 2, 4, 4), rand(2, 2, 4, 4), mask)
    assert any("scaled_dot" in str(n.target) for n in calls(graph))
    check_all_ways(step, rand(2, 2, 3, 4), rand(2, 2, 4, 4), rand(2, 2, 4, 4), mask)


@pytest.mark.parametrize("mask", [None, torch.ones(4, 4, dtype=torch.bool).triu(1)])
def test_fused_attention(mask: torch.Tensor | None) -> None:
    weights = [rand(24, 8), rand(24), rand(8, 8), rand(8)]

    def step(x: torch.Tensor) -> Any:
        return aten._native_multi_head_attention.default(x, x, x, 8, 2, *weights, mask, False, True, 0)[0]

    check_all_ways(step, rand(2, 4, 8))


BACKWARD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "layer_norm": (lambda x: F.layer_norm(x, (4,), BIAS), rand(3, 4)),
    "layer_norm all": (lambda x: F.layer_norm(x, (3, 4)), rand(3, 4)),
    "group_norm": (lambda x: F.group_norm(x, 2, PAIR), rand(3, 2, 4)),
    "batch_norm": (lambda x: F.batch_norm(x, PAIR, PAIR**2, PAIR, PAIR), rand(3, 2, 4)),
    "conv": (lambda x: F.conv2d(x, KERNEL, BIAS, padding=1), rand(3, 2, 5, 5)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), rand(3, 2, 4, 4)),
    "max_pool of one image": (lambda x: F.max_pool2d(x, 2), rand(2, 4, 4)),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), rand(3, 2, 4, 4)),
    "adaptive_avg_pool": (lambda x: F.adaptive_avg_pool2d(x, 2), rand(3, 2, 4, 4)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), rand(3, 2, 4, 4)),
    "bilinear": (lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"), rand(3, 2, 4, 4)),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), rand(3, 2, 4, 4)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), rand(2, 2, 3, 4)),
    "softmax": (lambda x: x.softmax(-1) + x.log_softmax(0), rand(3, 4)),
    "glu": (lambda x: F.glu(x), rand(3, 4)),
    "views": (lambda x: x[1:, 2] * x.t()[0, 1:] + x.cumsum(0)[:2, 0], rand(3, 4)),
    "activations": (lambda x: F.gelu(x) + F.silu(x) + F.elu(x) * F.softplus(x) + F.leaky_relu(x), rand(3, 4)),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_backward(case: str) -> None:
    """The gradient with respect to the input, for each n."""
    layer, x = BACKWARD[case]

    def step(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.func.vjp(layer, x)[1](g)[0]

    check_all_ways(step, x, torch.randn_like(layer(x)))


COMPLEX: dict[str, Callable[[torch.Tensor], Any]] = {
    "as complex": lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j),
    "complex": lambda x: torch.view_as_real(torch.complex(x[0], x[1]).conj().resolve_conj()),
    "fft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * 2, dim=1),
    "fft rows": lambda x: torch.view_as_real(torch.fft.fft(x, dim=0)),
}


@pytest.mark.parametrize("case", COMPLEX)
def test_complex(case: str) -> None:
    check_all_ways(COMPLEX[case], rand(3, 4, 2))


DEFAULTS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "conv with a kernel each": (F.conv2d, (rand(2, 2, 5, 5), rand(3, 2, 3, 3))),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), (rand(4, 3),)),
    "cholesky": (lambda x: torch.linalg.cholesky_ex(x @ x.t() + torch.eye(3).double())[0], (rand(3, 3),)),
    "bucketize": (lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), (rand(3, 4),)),
    "take": (lambda x, i: torch.take(x, i), (rand(3, 4), ints(2, 2))),
    "mask index": (lambda x, m: aten.index_put(x, [m], torch.zeros(()).double()), (rand(3, 4), bools(3, 4))),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_default(case: str) -> None:
    step, inputs = DEFAULTS[case]
    check_all_ways(step, *inputs, rule=False)


def test_default_is_picklable_and_named() -> None:
    new = batch_step(trace(F.conv2d, rand(2, 2, 5, 5), rand(3, 2, 3, 3)), ["x1"], COUNT)
    (target,) = [n.target for n in calls(new) if isinstance(n.target, Each)]
    assert pickle.loads(pickle.dumps(target)) == target
    assert target.__name__ == "vmap_aten_convolution_default_1"


INDEXED: dict[str, Callable[..., Any]] = {
    "select": lambda x, v, i, j: call(aten.select.int, x, 1, i),
    "select row": lambda x, v, i, j: call(aten.select.int, x, 0, i),
    "slice": lambda x, v, i, j: call(aten.slice.Tensor, x, 1, i, j),
    "slice rows": lambda x, v, i, j: call(aten.slice.Tensor, x, 0, i, j),
    "read": lambda x, v, i, j: call(prims.read, x, [4], [6], i),
    "read block": lambda x, v, i, j: call(prims.read, x, [2, 2], [6, 1], i),
    "write": lambda x, v, i, j: call(prims.write, x, v, [4], [6], i),
    "select_scatter": lambda x, v, i, j: call(aten.select_scatter.default, x, v, 1, i),
    "slice_scatter": lambda x, v, i, j: call(
        aten.slice_scatter.default, x, call(aten.expand.default, call(aten.unsqueeze.default, v, 1), [4, 2]), 1, i, j
    ),
    "read at a constant": lambda x, v, i, j: call(prims.read, x, [4], [6], 2),
    "write at a constant": lambda x, v, i, j: call(prims.write, x, v, [4], [6], 2),
    "scalar": lambda x, v, i, j: call(aten.mul.Tensor, x, i),
    "power": lambda x, v, i, j: call(aten.pow.Tensor_Scalar, x, i),
    "comparison": lambda x, v, i, j: call(aten.lt.Scalar, x, i),
    "fill": lambda x, v, i, j: call(aten.full_like.default, x, i),
    "masked_fill": lambda x, v, i, j: call(aten.masked_fill.Scalar, v, call(aten.gt.Scalar, v, 0), i),
    "roll": lambda x, v, i, j: call(aten.roll.default, x, [i], [1]),
    "alpha": lambda x, v, i, j: call(aten.add.Tensor, x, x, alpha=i),
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("batched", ["ij", "xij", "vij", "xvij", "x", "v"])
@pytest.mark.parametrize("case", INDEXED)
def test_index_constants(case: str, batched: str, fold: bool) -> None:
    """Calls with a Python int that differs from element to element; x may be laid out column by column."""
    region = "read" in case or "write" in case  # which is one of a row-major x
    starts = [0, 3, 1, 2, 2] if region else [0, 2, -3, 2, 1]
    series = {"i": starts, "j": [start + 2 for start in starts]}
    generator = torch.Generator().manual_seed(3)
    for x in [rand(4, 6)] if region else [rand(4, 6), rand(6, 4).t()]:
        inputs = {"x": x, "v": rand(4), "i0": 1, "i1": 3}
        elements = [
            value if n not in batched else series.get(n) or [sample_like(value, generator) for _ in range(COUNT)]
            for n, value in zip("xvij", inputs.values(), strict=True)
        ]
        check_equals_loop(write_step(inputs, INDEXED[case]), elements, ["xvij".index(n) for n in batched], fold)


def test_one_row_takes_scalars_and_indices_folded() -> None:
    """With one row, (count, ..) is folded and leading alike: the state needs no reshape."""
    inputs = {"s0": rand(1, 4), "x0": rand(), "x1": rand(4), "i0": 3, "c0": rand(4, 4)}

    def step(s: fx.Proxy, x: fx.Proxy, v: fx.Proxy, i: fx.Proxy, w: fx.Proxy) -> fx.Proxy:
        y = call(aten.mul.Tensor, call(aten.mm.default, s, w), x)
        return call(aten.mul.Tensor, call(aten.add.Tensor, y, v), i)

    graph = write_step(inputs, step)
    generator = torch.Generator().manual_seed(0)
    elements: list[Any] = [[sample_like(v, generator) for _ in range(COUNT)] for v in inputs.values()]
    elements[3:] = [[0, 1, 2, 3, 4], inputs["c0"]]
    new = check_equals_loop(graph, elements, range(4), fold=True)
    reshaped = [n.args[0] for n in calls(new) if n.target is aten.reshape.default]
    assert [str(n) for n in reshaped] == ["x0", "x1", "i0"]


def test_region_in_a_column_major_buffer() -> None:
    """A region is addressed in the memory of the single step, whatever the layout of the batch is."""
    inputs = {"x": rand(6, 4).t(), "v": rand(6), "i0": 1}
    generator = torch.Generator().manual_seed(3)
    for body in (
        lambda x, v, i: call(prims.write, x, v, [6], [4], i),
        lambda x, v, i: call(prims.read, x, [6], [4], i),
        lambda x, v, i: call(prims.read, x, [6], [4], 2),
    ):
        graph = write_step(inputs, body)
        xs = [sample_like(inputs["x"], generator).t().contiguous().t() for _ in range(COUNT)]
        for batched in ([0, 2], [2]):
            elements = [xs if 0 in batched else inputs["x"], inputs["v"], [0, 1, 2, 3, 0]]
            check_equals_loop(graph, elements, batched, fold=False)


def cell_step(cell: nn.Module, states: int) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """A cell as a function of (x, states.., parameters..), and its parameters."""
    names = [name for name, _ in cell.named_parameters()]

    def step(*inputs: torch.Tensor) -> Any:
        x, hidden, weights = inputs[0], inputs[1 : 1 + states], inputs[1 + states :]
        state = hidden[0] if states == 1 else tuple(hidden)
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x, state))

    return step, [p.detach() for p in cell.parameters()]


CELLS = {
    "rnn": (nn.RNNCell, 1),
    "gru": (nn.GRUCell, 1),
    "lstm": (nn.LSTMCell, 2),
}


@pytest.mark.parametrize("name", CELLS)
def test_folded_cells_have_the_calls_of_one_step(name: str) -> None:
    kind, states = CELLS[name]
    step, weights = cell_step(kind(4, 8, dtype=torch.float64), states)
    inputs = [rand(3, 4), *(rand(3, 8) for _ in range(states)), *weights]
    graph = trace(step, *inputs)
    generator = torch.Generator().manual_seed(0)
    batched = range(1 + states)
    elements = [[sample_like(v, generator) for _ in range(COUNT)] if k in batched else v for k, v in enumerate(inputs)]
    new = check_equals_loop(graph, elements, batched, fold=True)
    assert [n.target for n in calls(new)] == [n.target for n in calls(graph)]
    check_equals_loop(graph, elements, batched, fold=False)


@pytest.mark.parametrize("name", CELLS)
def test_cells_without_a_batch_dimension(name: str) -> None:
    kind, states = CELLS[name]
    step, weights = cell_step(kind(4, 8, dtype=torch.float64), states)
    inputs = [rand(4), *(rand(8) for _ in range(states)), *weights]
    generator = torch.Generator().manual_seed(0)
    batched = range(1 + states)
    elements = [[sample_like(v, generator) for _ in range(COUNT)] if k in batched else v for k, v in enumerate(inputs)]
    for fold in (False, True):
        check_equals_loop(trace(step, *inputs), elements, batched, fold)


def attention_block(x: torch.Tensor, w: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    q, k, v = (F.layer_norm(x, (width,)) @ w).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) / 2.0
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
    return x + (weights @ v).transpose(1, 2).reshape(batch, length, width) @ wo


def conv_block(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = F.elu(F.conv2d(F.group_norm(x, 2), w, bias, padding=1))
    a, g = torch.cat([y, -y], 1).chunk(2, 1)
    return x + a * torch.sigmoid(g) + F.adaptive_avg_pool2d(x, 1)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    ("block", "inputs"),
    [
        (attention_block, (rand(2, 5, 8), rand(8, 24), rand(8, 8))),
        (conv_block, (rand(2, 4, 5, 5), rand(4, 4, 3, 3), rand(4))),
    ],
)
def test_blocks(block: Callable[..., Any], inputs: tuple[torch.Tensor, ...], fold: bool) -> None:
    graph = trace(block, *inputs)
    generator = torch.Generator().manual_seed(0)
    elements = [[sample_like(inputs[0], generator) for _ in range(COUNT)], *inputs[1:]]
    new = check_equals_loop(graph, elements, [0], fold)
    assert not any(isinstance(n.target, Each) for n in calls(new))


def random_step(choose: random.Random) -> Callable[..., Any]:
    """A random chain of pointwise calls, products, views, reductions and joins on three inputs."""
    program = [(choose.randrange(14), choose.random(), choose.random()) for _ in range(choose.randint(4, 14))]

    def step(*inputs: torch.Tensor) -> Any:
        values = list(inputs)
        for kind, first, second in program:
            x, y = values[int(first * len(values))], values[int(second * len(values))]
            values.append(apply_random(kind, x, y))
        return tuple(values[len(inputs) :])

    return step


def apply_random(kind: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One call that the shapes allow, else a pointwise one."""
    if kind == 0 and x.dim():
        return x.sum(-1)
    if kind == 1 and x.dim():
        return x.mean(0, keepdim=True)
    if kind == 2 and x.dim() > 1:
        return x.transpose(0, -1)
    if kind == 3:
        return x.reshape(-1)
    if kind == 4:
        return x.unsqueeze(0)
    if kind == 5 and x.dim():
        return x.softmax(0)
    if kind == 6 and x.dim() > 1:
        return x.flatten(0, 1)
    if kind == 7 and x.dim() and x.shape[0] > 1:
        return x[1:]
    if kind == 8 and x.dim() and x.shape[-1] > 1:
        return x[..., 0]
    if kind == 9 and x.dim() > 1 and x.shape == y.shape:
        return torch.cat([x, y], -1)
    if kind == 10 and x.dim() == 2 and y.dim() == 2 and x.shape[1] == y.shape[1]:
        return x @ y.t() / 4
    if kind == 11 and x.dim() < 4 and x.numel() < 200:
        return torch.stack([x, x.tanh()])
    try:
        torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        return x.sigmoid()
    return torch.tanh(x * y + 1) if x.numel() + y.numel() < 5000 else x.sum() - y.mean()


@pytest.mark.parametrize("seed", range(100))
def test_random_steps(seed: int) -> None:
    choose = random.Random(seed)
    inputs = [rand(3, 4), rand(4), rand(3, 1, 4)]
    graph = trace(random_step(choose), *inputs)
    generator = torch.Generator().manual_seed(seed)
    batched = [k for k in range(3) if choose.random() < 0.6] or [0]
    elements = [[sample_like(v, generator) for _ in range(COUNT)] if k in batched else v for k, v in enumerate(inputs)]
    for fold in (False, True):
        check_equals_loop(graph, elements, batched, fold)


def test_text_of_a_folded_step(golden: Callable[[str, str], None]) -> None:
    step, weights = cell_step(nn.GRUCell(4, 8), 1)
    graph = trace(step, torch.randn(3, 4), torch.randn(3, 8), *weights)
    golden("batch_step_gru", to_text(batch_step(graph, ["x0", "x1"], 64, fold=True)))


def test_text_with_an_index(golden: Callable[[str, str], None]) -> None:
    inputs = {"s0": rand(4, 6), "c0": rand(4, 6), "i0": 1}
    graph = write_step(
        inputs,
        lambda s, c, i: call(prims.write, s, call(aten.tanh.default, call(aten.select.int, c, 1, i)), [4], [6], i),
    )
    golden("batch_step_index", to_text(batch_step(graph, ["s0", "i0"], 64)))


@pytest.mark.parametrize(
    "step",
    [torch.rand_like, lambda x: x + torch.randn(3), lambda x: torch.native_dropout(x, 0.5, True), torch.bernoulli],
)
def test_draws_are_refused(step: Callable[..., Any]) -> None:
    with pytest.raises(FxsolveError, match="draws random numbers"):
        batch_step(trace(step, torch.rand(3)), ["x0"], COUNT)


def test_in_place_calls_are_refused() -> None:
    inputs = {"x": rand(3)}
    with pytest.raises(FxsolveError, match="mutates"):
        batch_step(write_step(inputs, lambda x: call(aten.add_.Tensor, x, 1)), ["x"], COUNT)


def test_source_lines_are_kept() -> None:
    graph = trace(lambda x, w: torch.tanh(x @ w), rand(3, 4), rand(4, 4))
    for line, node in enumerate(calls(graph)):
        node.meta["source"] = f"model.py:{line}"
    new = batch_step(graph, ["x0"], COUNT, fold=True)
    assert [n.meta["source"] for n in calls(new)] == ["model.py:0", "model.py:1"]
