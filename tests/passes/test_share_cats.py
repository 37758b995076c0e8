"""Share cats: features that are handed on are copied once; the straight-line program has eager's bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, cat, fx, relu

from fxsolve import prims
from fxsolve.ir import calls, to_text
from fxsolve.passes.build import build
from fxsolve.passes.chain import flat_cats, in_order
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.share_cats import share_cats
from tests.checking import assert_same_bits
from tests.passes.random_layers import random_network
from tests.passes.running import cleaned
from tests.passes.test_chain import block_of, dense, found

aten = torch.ops.aten


def graph_of(fn: Callable[[Tensor], Tensor], x: Tensor) -> fx.Graph:
    return flat_cats(build(cleaned(fn, x), []).graph)


def count(graph: fx.Graph, target: object) -> int:
    return sum(n.target is target for n in calls(graph))


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = in_order(block_of(found(dense, torch.randn(1, 2))))
    after = share_cats(before)
    assert to_text(share_cats(after)) == to_text(after)
    assert count(before, aten.cat.default) == 4, "the pass changed its input"
    golden("share_cats", "\n\n-->\n\n".join(map(to_text, [before, after])))


@pytest.mark.parametrize("seed", range(60))
def test_straight_line_programs_have_eagers_bits(seed: int) -> None:
    net, shape = random_network(seed)
    with torch.no_grad():
        for batch in (1, shape[0]):
            x = torch.randn(batch, *shape[1:])
            program = found(net, x)
            block = block_of(program)
            (call,) = [n for n in program.graph.nodes if n.op == "call_module"]
            outside = generated_until(program.graph, call)
            leaves = [leaf.tensor if leaf.position < 0 else x for leaf in program.leaves]
            straight = generated(reuse(share_cats(in_order(block))))
            assert_same_bits(straight(*outside(*leaves))[0], net(x.clone()))


def generated_until(graph: fx.Graph, call: fx.Node) -> Callable[..., tuple]:
    """What a program computes for its block."""
    new, env = fx.Graph(), {}
    for node in graph.nodes:
        if node is call:
            break
        env[node] = new.node_copy(node, lambda n: env[n])
    new.output(tuple(env[n] for n in call.args[2]))
    return generated(new)


def test_only_what_is_laid_out_as_the_whole_is_shared() -> None:
    def fn(x: Tensor) -> Tensor:
        a = cat([x, relu(x)], 1)
        b = cat([x, relu(x), a], 1)
        return b.sum() + a.sum()

    assert count(share_cats(graph_of(fn, torch.randn(1, 3))), aten.cat.default) == 0
    assert count(share_cats(graph_of(fn, torch.randn(2, 3))), aten.cat.default) == 2
    assert count(share_cats(graph_of(lambda x: fn(x.t()), torch.randn(3, 2))), aten.cat.default) == 2


def test_what_is_returned_has_memory_of_its_own() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        a = cat([x, relu(x)], 1)
        return a, cat([x, relu(x), x * 2], 1).sum()

    graph = share_cats(graph_of(fn, torch.randn(1, 3)))  # pyright: ignore[reportArgumentType]
    assert count(graph, prims.extended) == 0


def test_two_ways_to_continue() -> None:
    def fn(x: Tensor) -> Tensor:
        first, second = [x, relu(x)], [x * 2]
        a, b = cat(first, 1), cat([*first, *second], 1)
        c = cat([*first, x * 3], 1)
        return a.sum() + (b * c).sum() + cat([*first, *second, x], 1).sum() + b.sum()

    x = torch.randn(1, 3)
    graph = share_cats(graph_of(fn, x))
    assert_same_bits(generated(graph)(x)[0], fn(x))
    assert count(graph, prims.extended) == 3
