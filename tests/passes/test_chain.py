"""Chain: which layers are found, what they read, and that the program with the block is the program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, cat, nn, relu

from fxsolve.chain import ChainRunner
from fxsolve.codegen import Executable
from fxsolve.ir import Chain, Program, calls, to_text
from fxsolve.passes.build import build
from fxsolve.passes.chain import chain, flat_cats
from fxsolve.solvers import GaussSeidel
from tests.checking import assert_same_bits
from tests.passes.random_layers import random_network
from tests.passes.running import cleaned

torch.manual_seed(0)
W = [torch.randn(3, 3) / 2 for _ in range(6)]
WIDE = [torch.randn(2, 2 * (k + 1)) / 2 for k in range(6)]


def dense(x: Tensor) -> Tensor:
    for k in range(4):
        x = cat([x, relu(x @ WIDE[k].T)], 1)
    return x.sum(1)


def residual(x: Tensor) -> Tensor:
    for k in range(5):
        x = relu(x + torch.tanh(x @ W[k]))
    return x


def block_of(program: Program) -> Chain:
    (block,) = program.blocks.values()
    assert isinstance(block, Chain)
    return block


def plain(fn: Callable[..., Tensor], *args: Tensor) -> Program:
    """The program of a call without its loops: equal layers are one."""
    return build(cleaned(fn, *args), [])


def found(fn: Callable[..., Tensor], *args: Tensor) -> Program:
    return chain(plain(fn, *args))


def shown(program: Program) -> str:
    return "\n\n".join([to_text(program.graph), *[to_text(b.body) for b in program.blocks.values()]])  # type: ignore[union-attr]


@pytest.mark.parametrize(("fn", "width"), [(dense, 2), (residual, 3)])
def test_golden(fn: Callable[[Tensor], Tensor], width: int, golden: Callable[[str, str], None]) -> None:
    before = plain(fn, torch.randn(2, width))
    text = to_text(before.graph)
    after = chain(before)
    assert to_text(before.graph) == text, "the pass changed its input"
    assert shown(chain(after)) == shown(after)
    golden(f"chain_{fn.__name__}", "\n\n-->\n\n".join([text, shown(after)]))


@pytest.mark.parametrize("seed", range(60))
def test_the_program_with_the_block_gives_the_same_bits(seed: int) -> None:
    net, shape = random_network(seed)
    x, other = torch.randn(shape), torch.randn(shape)
    with torch.no_grad():
        program = found(net, x)
        block = block_of(program)
        executable = Executable(program, {block.name: ChainRunner(block, GaussSeidel(), "auto")})
        for given in (x, other):
            leaves = executable.inputs([given.clone()])
            assert_same_bits(executable.values(leaves)[0], net(given.clone()))


@pytest.mark.parametrize("seed", range(60))
def test_a_layer_reads_states_before_it_only(seed: int) -> None:
    net, shape = random_network(seed)
    block = block_of(found(net, torch.randn(shape)))
    runner = ChainRunner(block, None, "auto")
    assert block.length >= 4
    for number, layer in enumerate(runner.layers):
        assert all(n < number for n in layer.states)
    assert all(runner.layers[n].states for n in range(1, block.length)), "a layer that reads no state is the first one"


def test_sums_with_a_relu_are_no_layers_of_their_own() -> None:
    """x = relu(x + f(x)): five products, five states and the result, which is asked for."""
    assert block_of(found(residual, torch.randn(2, 3))).length == 6


def test_work_that_two_layers_share_is_a_state() -> None:
    def program(x: Tensor) -> Tensor:
        for k in range(4):
            shared = x @ W[k]
            x = cat([x, torch.tanh(shared), torch.sin(shared @ W[5])], 1)[:, :3] + x
        return x

    block = block_of(found(program, torch.randn(2, 3)))
    heavy = [n for n in calls(block.layers) if n.target is torch.ops.aten.mm.default]
    runner = ChainRunner(block, None, "auto")
    assert len(heavy) == 8
    for product in heavy:
        assert sum(product.name in layer_text(runner, n) for n in range(block.length)) <= 1


def layer_text(runner: ChainRunner, number: int) -> list[str]:
    return [n.name for n in runner.layers[number].graph.nodes]


def nothing_skips(x: Tensor) -> Tensor:
    for k in range(6):
        x = torch.tanh(x @ W[k])
    return x


def branches(x: Tensor) -> Tensor:
    return cat([x @ W[k] for k in range(6)], 1)


def noise_inside(x: Tensor) -> Tensor:
    for k in range(5):
        x = x + torch.tanh(x @ W[k]) * torch.randn(2, 3)
    return x


def written(x: Tensor) -> Tensor:
    for k in range(5):
        x += torch.tanh(x @ W[k])
    return x.sum()


@pytest.mark.parametrize("fn", [nothing_skips, branches, noise_inside, written])
def test_programs_without_a_chain_stay_as_they_are(fn: Callable[[Tensor], Tensor]) -> None:
    program = plain(fn, torch.randn(2, 3))
    assert chain(program) is program


def test_concatenations_of_concatenations_are_flat() -> None:
    def nested(x: Tensor) -> Tensor:
        return cat([cat([x, x + 1], 1), cat([x, x * 2], 0).t()[:2]], 1)

    x = torch.randn(2, 2)
    graph = flat_cats(plain(nested, x).graph)
    (last,) = [n for n in calls(graph) if n.target is torch.ops.aten.cat.default and len(n.args[0]) == 3]  # type: ignore[arg-type]
    assert last.args[1] == 1
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    strided = flat_cats(plain(lambda x: cat([cat([x, x], 1), x], 1), images).graph)
    assert len([n for n in calls(strided) if n.target is torch.ops.aten.cat.default]) == 2


def test_a_list_of_features_is_returned_as_states() -> None:
    net = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def features(x: Tensor) -> list[Tensor]:
        kept = []
        for layer in net:
            x = x + torch.tanh(layer(x))
            kept.append(x)
        return kept

    with torch.no_grad():
        x = torch.randn(2, 4)
        program = found(features, x)
        block = block_of(program)
        executable = Executable(program, {block.name: ChainRunner(block, GaussSeidel(), "auto")})
        for ours, theirs in zip(executable.values(executable.inputs([x])), features(x), strict=True):
            assert_same_bits(ours, theirs)
