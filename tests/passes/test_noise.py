"""Separated noise: the values and the generator's state are eager's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from fxsolve import ir, prims
from fxsolve.ir import TensorType
from fxsolve.passes.noise import is_random, pinned, separate_noise

aten = torch.ops.aten
SHAPES = [(), (1,), (3, 5), (15,), (16,), (4, 4), (17,), (2, 3, 7), (40, 33), (0,)]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def recorded(function: Callable[..., Any], *inputs: Tensor) -> fx.Graph:
    """The functional ATen graph of `function(*inputs)`, in fxsolve's form."""
    made = make_fx(functionalize(function), tracing_mode="fake")(*inputs)
    graph, env = fx.Graph(), {}
    for node in made.graph.nodes:
        if node.op == "output":
            values = node.args[0] if isinstance(node.args[0], (tuple, list)) else (node.args[0],)
            graph.output(tuple(env[value] for value in values))
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].meta = {"type": type_of(node.meta["val"]), "source": f"model.py:{len(env)}"}
    return graph


def type_of(value: Any) -> Any:
    return tuple(map(type_of, value)) if isinstance(value, (tuple, list)) else TensorType.of(value)


def one_call(target: Any, kind: TensorType, args: tuple[Any, ...], **kwargs: Any) -> fx.Graph:
    """A graph of one call whose tensor arguments are placeholders."""
    graph, types = fx.Graph(), []
    holes = []
    for value in args:
        if isinstance(value, Tensor):
            value, kept = graph.placeholder(f"x{len(types)}"), value
            value.meta.update(type=TensorType.of(kept), source="")
            types.append(value)
        holes.append(value)
    node = graph.call_function(target, tuple(holes), kwargs)
    node.meta.update(type=kind, source="model.py:7")
    graph.output((node,))
    return graph


def outcome(function: Callable[[], Any], seed: int = 3) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(seed)
    results = function()
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    return results, torch.get_rng_state()


def same_bits(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    return same and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))


def check(graph: fx.Graph, eager: Callable[[], Any], *inputs: Tensor) -> fx.Graph:
    """Separate `graph`; values and generator's state are eager's, and a second run changes nothing."""
    before = ir.to_text(graph)
    separated = separate_noise(graph)
    separated.lint()
    module = fx.GraphModule(nn.Module(), separated)
    for seed in (3, 4):
        values, state = outcome(lambda: module(*inputs), seed)
        expected, after = outcome(eager, seed)
        assert all(map(same_bits, values, expected)), separated
        assert torch.equal(state, after), separated
    for node, value in zip(ir.results(separated), module(*inputs)):
        assert node.meta["type"] == TensorType.of(value)
    assert ir.to_text(graph) == before
    assert ir.to_text(separate_noise(separated)) == ir.to_text(separated)
    return separated


def draws(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in ir.calls(graph) if node.target is prims.draw]


def check_separated(graph: fx.Graph, eager: Callable[[], Any], *inputs: Tensor) -> fx.Graph:
    """As `check`; and all that is random are draws, which depend on no node."""
    separated = check(graph, eager, *inputs)
    assert pinned(separated) == ()
    assert all(not node.all_input_nodes for node in draws(separated))
    assert len(draws(separated)) == sum(map(is_random, ir.calls(graph)))
    return separated


FRESH: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "rand": lambda shape, dtype: torch.rand(shape, dtype=dtype),
    "randn": lambda shape, dtype: torch.randn(shape, dtype=dtype),
    "randint": lambda shape, dtype: torch.randint(7, shape, dtype=dtype),
    "randint low": lambda shape, dtype: torch.randint(-3, 7, shape, dtype=dtype),
    "normal float_float": lambda shape, dtype: torch.normal(0.5, 2.0, shape, dtype=dtype),
    "randperm": lambda shape, dtype: torch.randperm(sum(shape), dtype=dtype),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (3, 5), (16,), (2, 3, 7), (40, 33), (0,)])
@pytest.mark.parametrize("name", FRESH)
def test_fresh(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_separated(recorded(lambda: FRESH[name](shape, dtype)), lambda: FRESH[name](shape, dtype))


LIKE: dict[str, Callable[[Tensor], Tensor]] = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 5),
    "randint_like low": lambda x: torch.randint_like(x, 2, 5),
    "rand_like in double": lambda x: torch.rand_like(x, dtype=torch.float64),
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of all": lambda x: F.dropout(x, 1.0),
    "native_dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "native_dropout of nothing": lambda x: torch.native_dropout(x, 0.0, None)[0],
    "native_dropout of all": lambda x: torch.native_dropout(x, 1.0, True)[0],
    "dropout mask": lambda x: torch.native_dropout(x, 0.4, True)[1],
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal tensors": lambda x: torch.normal(x, x.abs()),
    "normal mean": lambda x: torch.normal(x, 0.7),
    "normal std": lambda x: torch.normal(0.3, x.abs()),
    "normal broadcast": lambda x: torch.normal(x, x.abs().amax()),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (3, 5), (16,), (40, 33)])
@pytest.mark.parametrize("name", LIKE)
def test_of_a_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, max(torch.Size(shape).numel(), 1), dtype=dtype).reshape(shape)
    check_separated(recorded(LIKE[name], x), lambda: LIKE[name](x), x)


@pytest.mark.parametrize("name", [n for n in LIKE if "dropout" not in n])
def test_of_a_transposed_tensor(name: str) -> None:
    x = torch.linspace(-1, 1, 40 * 33).reshape(40, 33).t()
    check_separated(recorded(LIKE[name], x), lambda: LIKE[name](x), x)


# In-place calls: what functionalization makes of them, the call itself, and the dtypes it takes.
IN_PLACE: dict[str, tuple[Any, Callable[..., Tensor], tuple[Any, ...], list[torch.dtype]]] = {
    "uniform": (aten.uniform.default, Tensor.uniform_, (-0.5, 2.0), FLOATS),
    "normal": (aten.normal_functional.default, Tensor.normal_, (0.5, 2.0), FLOATS),
    "exponential": (aten.exponential.default, Tensor.exponential_, (1.5,), FLOATS),
    "cauchy": (aten.cauchy.default, Tensor.cauchy_, (0.5, 2.0), FLOATS),
    "log_normal": (aten.log_normal.default, Tensor.log_normal_, (0.5, 0.25), FLOATS),
    "geometric": (aten.geometric.default, Tensor.geometric_, (0.3,), [*FLOATS, torch.int64]),
    "bernoulli": (aten.bernoulli.p, Tensor.bernoulli_, (0.3,), [*FLOATS, torch.int64, torch.bool]),
    "random": (aten.random.default, Tensor.random_, (), [*FLOATS, torch.int64, torch.uint8, torch.bool]),
    "random to": (aten.random.to, Tensor.random_, (5,), [*FLOATS, torch.int64]),
    "random from": (getattr(aten.random, "from"), Tensor.random_, (2, 9), [*FLOATS, torch.int64]),
    "random from on": (getattr(aten.random, "from"), Tensor.random_, (2, None), [torch.int64, torch.int32]),
}
CASES = [(name, dtype) for name, (_, _, _, dtypes) in IN_PLACE.items() for dtype in dtypes]


def laid_out(dtype: torch.dtype) -> list[Tensor]:
    """Tensors in several layouts: dense, transposed, with gaps, channels last."""
    dense = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    square, image = torch.zeros(40, 33, dtype=dtype), torch.zeros(2, 3, 4, 5, dtype=dtype)
    return [*dense, square.t(), square[:, 3], square[::2, ::3], image.contiguous(memory_format=torch.channels_last)]


@pytest.mark.parametrize("name, dtype", CASES)
def test_in_place(name: str, dtype: torch.dtype) -> None:
    target, eager, parameters, _ = IN_PLACE[name]
    for x in laid_out(dtype):
        graph = one_call(target, TensorType.of(x), (x, *parameters))
        check_separated(graph, lambda x=x: eager(TensorType.of(x).empty(), *parameters), x)


@pytest.mark.parametrize("given", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_bernoulli_in_place_with_probabilities(dtype: torch.dtype, given: torch.dtype) -> None:
    """The result has no gaps where the region that it is written to has some."""
    for x in laid_out(dtype):
        p = torch.linspace(0, 1, x.numel(), dtype=given).reshape(x.shape)
        graph = one_call(aten.bernoulli.Tensor, TensorType.of(x), (x, p))
        check_separated(graph, lambda x=x, p=p: TensorType.of(x).empty().bernoulli_(p).clone(), x, p)


def test_generators_are_kept() -> None:
    generator = torch.Generator()
    kind = TensorType.of(torch.zeros(20))
    graph = one_call(aten.randn.generator, kind, ([20],), generator=generator)
    module = fx.Interpreter(fx.GraphModule({}, fx.Graph()), graph=separate_noise(graph))
    generator.manual_seed(5)
    (value,) = module.run()
    again = torch.Generator().manual_seed(5)
    assert same_bits(value, torch.randn(20, generator=again))
    assert torch.equal(generator.get_state(), again.get_state())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5,), (1, 16), (3, 5), (40, 33)])
@pytest.mark.parametrize("count, replacement", [(1, True), (1, False), (3, False)])
def test_multinomial(shape: tuple[int, ...], count: int, replacement: bool, dtype: torch.dtype) -> None:
    p = torch.linspace(0.1, 1, torch.Size(shape).numel(), dtype=dtype).reshape(shape)
    for each in (p, p.t().contiguous().t(), p[..., ::2].repeat_interleave(2, -1)[..., ::2]):
        if each.shape[-1] >= count:
            graph = recorded(lambda x: torch.multinomial(x, count, replacement), each)
            check_separated(graph, lambda x=each: torch.multinomial(x, count, replacement), each)


SAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Normal": lambda x: D.Normal(x, x.exp(), validate_args=False).sample(),
    "Normal rsample": lambda x: D.Normal(x, x.exp(), validate_args=False).rsample(),
    "Bernoulli": lambda x: D.Bernoulli(logits=x, validate_args=False).sample(),
    "Categorical": lambda x: D.Categorical(logits=x, validate_args=False).sample(),
    "Gumbel": lambda x: D.Gumbel(x, x.exp(), validate_args=False).sample(),
    "Uniform": lambda x: D.Uniform(x, x + 2, validate_args=False).sample(),
    "Exponential": lambda x: D.Exponential(x.exp(), validate_args=False).sample(),
    "Laplace": lambda x: D.Laplace(x, x.exp(), validate_args=False).sample(),
    "Cauchy": lambda x: D.Cauchy(x, x.exp(), validate_args=False).sample(),
    "Geometric": lambda x: D.Geometric(logits=x, validate_args=False).sample(),
    "Logistic": lambda x: (lambda u: x + u.log() - (-u).log1p())(torch.rand_like(x).clamp(1e-5, 1 - 1e-5)),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "dropout2d": lambda x: F.dropout2d(x[None, :, None], 0.4),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "several": lambda x: torch.bernoulli(torch.normal(torch.rand_like(x), 0.5).sigmoid()) * torch.randn(33),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 40 * 33, dtype=dtype).reshape(40, 33)
    check_separated(recorded(SAMPLERS[name], x), lambda: SAMPLERS[name](x), x)


def test_dropout_module_in_training() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.25), nn.ReLU(), nn.Dropout1d(0.5)).requires_grad_(False)
    x = torch.ones(5, 6)
    weights = list(net[0].parameters())

    def fn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(net, {"0.weight": weight, "0.bias": bias}, (x,))

    check_separated(recorded(fn, x, *weights), lambda: net(x), x, *weights)
    net.eval()
    assert draws(separate_noise(recorded(fn, x, *weights))) == []


def test_what_stays_is_named() -> None:
    p = torch.full((4, 5), 0.3)

    def fn(p: Tensor) -> tuple[Tensor, ...]:
        several = torch.multinomial(p, 3, True)
        return torch.poisson(p), several, torch._standard_gamma(p), torch.rand_like(p), torch.binomial(p * 9, p)

    separated = check(recorded(fn, p), lambda: fn(p), p)
    names = ("multinomial", "poisson", "_standard_gamma", "binomial")
    found = pinned(separated)
    assert len(draws(separated)) == 1 and len(found) == len(names)
    assert all(f"aten.{name}.default at model.py:" in text for name, text in zip(names, found))


def test_silent_calls_are_not_random() -> None:
    q = torch.randn(1, 2, 4, 8)
    graph = recorded(lambda q: F.scaled_dot_product_attention(q, q, q), q)
    assert any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in graph.nodes)
    assert pinned(separate_noise(graph)) == ()


def test_parameters_that_are_nodes_stay() -> None:
    graph = fx.Graph()
    rate = graph.placeholder("i0")
    x = graph.placeholder("c0")
    x.meta["type"] = TensorType.of(torch.zeros(3))
    node = graph.call_function(aten.exponential.default, (x, rate))
    node.meta.update(type=x.meta["type"], source="")
    graph.output((node,))
    assert ir.to_text(separate_noise(graph)) == ir.to_text(graph)


def test_no_gradient_where_eager_gives_none() -> None:
    mean = torch.ones(20, requires_grad=True)
    module = fx.GraphModule(nn.Module(), separate_noise(recorded(lambda m: torch.normal(m, m.abs()), mean.detach())))
    (value,) = module(mean)
    assert not value.requires_grad


def sample(x: Tensor) -> tuple[Tensor, ...]:
    mean = torch.normal(x, 0.5)
    noisy = torch.normal(mean, x.abs())
    kept = torch.empty_like(noisy).bernoulli_(0.7)
    return kept * noisy, torch.multinomial(noisy.softmax(-1), 1), torch.bernoulli(noisy.sigmoid())


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph = recorded(sample, torch.linspace(-1, 1, 40).reshape(4, 10))
    text = f"before:\n{ir.to_text(graph)}\n\nafter:\n{ir.to_text(separate_noise(graph))}"
    golden("noise", text)
