"""The causality proof: what it proves, what it refuses and why, and that it is never wrong about random programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxsolve.ir import FixedPoint, Slots, TensorType, results
from fxsolve.passes.causality import Proof, chain_length, prove
from fxsolve.passes.causality_head import seeds
from fxsolve.passes.dependence import Analysis, Concrete, slot_indices
from fxsolve.passes.dependence_interpret import interpret
from fxsolve.passes.probe import probe_bits

from .random_causal import LENGTH, Network, brute_force
from .tracing import column_slots, picking_head, traced

BATCH, SIDE = 2, 4
PIXELS = SIDE * SIDE
Net = Callable[..., Tensor]


def proof_of(net: Net, state: Tensor, *tensors: Tensor, order: list[int] | None = None) -> Proof:
    """The proof for net: (batch, D), tensors -> (batch, channels, D), whose head at step t reads element order[t]."""
    order = order or list(range(state.shape[1]))
    given = {"s0": state, **{f"c{n}": tensor for n, tensor in enumerate(tensors)}}
    graph, values = traced(lambda *x: (net(*x),), given)
    features = net(state, *tensors)
    head, table = picking_head(features, order)
    return prove(graph, head, (column_slots(tuple(state.shape), order),), table, values, {})


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def tokens(length: int = 6) -> Tensor:
    return torch.zeros(BATCH, length)


# ---------------------------------------------------------------- MADE


def made_masks(size: int, hidden: tuple[int, ...], generator: torch.Generator, outputs: int = 1) -> list[Tensor]:
    degrees = [torch.arange(size)] + [torch.randint(0, size - 1, (width,), generator=generator) for width in hidden]
    masks = [(b[:, None] >= a[None, :]).float() for a, b in zip(degrees, degrees[1:], strict=False)]
    return [*masks, (degrees[0][:, None] > degrees[-1][None, :]).float().repeat(outputs, 1)]


def made(size: int, hidden: tuple[int, ...], batch: int, outputs: int = 1) -> tuple[Net, Tensor, list[Tensor]]:
    """The network, its state, and its weights followed by its masks."""
    generator = torch.Generator().manual_seed(0)
    masks = made_masks(size, hidden, generator, outputs)
    weights = [torch.randn(mask.shape, generator=generator) for mask in masks]
    layers = len(masks)

    def net(state: Tensor, *tensors: Tensor) -> Tensor:
        x = state
        for n in range(layers):
            x = F.linear(x, tensors[n] * tensors[layers + n])
            x = x.relu() if n < layers - 1 else x
        return x.view(len(state), outputs, size)

    return net, torch.zeros(batch, size), weights + masks


def test_made_is_proved_and_relies_on_its_masks_only() -> None:
    net, state, tensors = made(8, (16, 16), 3)
    proof = proof_of(net, state, *tensors)
    assert proof.holds, proof.reason
    assert proof.used == ("c3", "c4", "c5") and proof.head_used == proof.exact == ()
    assert 1 <= proof.depth <= 8


def test_made_in_a_permuted_order() -> None:
    net, state, tensors = made(8, (16, 16), 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()

    def permuted(state: Tensor, *tensors: Tensor) -> Tensor:
        return net(state[:, order], *tensors)[..., torch.tensor(order).argsort()]

    assert proof_of(permuted, state, *tensors, order=order).holds
    assert not proof_of(net, state, *tensors, order=order).holds


def test_masks_in_the_weights_themselves() -> None:
    net, state, tensors = made(8, (16,), 3)
    weights = [tensors[0] * tensors[2], tensors[1] * tensors[3]]
    proof = proof_of(net, state, *weights, torch.ones_like(tensors[2]), torch.ones_like(tensors[3]))
    assert proof.holds and proof.used == ("c0", "c1") and proof.exact == ()


def test_zeros_that_are_computed_rely_on_values() -> None:
    net, state, tensors = made(8, (16,), 3)

    def compared(state: Tensor, *tensors: Tensor) -> Tensor:
        return net(state, *tensors[:2], tensors[2], (tensors[3] > 0.5).float())

    proof = proof_of(compared, state, *tensors)
    assert proof.holds and proof.used == ("c2", "c3") and proof.exact == ("c3",)


def test_weight_norm_keeps_the_mask() -> None:
    net, state, tensors = made(8, (16,), 3)

    def normed(state: Tensor, *tensors: Tensor) -> Tensor:
        scale = torch.arange(1.0, 17)[:, None]
        return net(state, torch._weight_norm(tensors[0] * tensors[2], scale), *tensors[1:])

    proof = proof_of(normed, state, *tensors)
    assert proof.holds and proof.used == ("c2", "c3")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_leaking_weight_is_found(layer: int) -> None:
    net, state, tensors = made(8, (16, 16), 3)
    masks = tensors[3:]
    refused = named = 0
    for row, column in (masks[layer] == 0).nonzero().tolist()[::7]:
        leaking = [mask.clone() for mask in masks]
        leaking[layer][row, column] = 1
        proof = proof_of(net, state, *tensors[:3], *leaking)
        if not proof.holds:  # not every extra weight closes a path to a later slot
            refused += 1
            assert "through aten.mm.default (net.py:" in proof.reason, proof.reason
            named += f"entry ({column}, {row}) of its operand {['t', 't_1', 't_2'][layer]} lets it" in proof.reason
    # Where a unit could as well have another degree, more than one weight may be blamed.
    assert refused > 3 and named > refused / 2


def test_the_real_size_takes_less_than_a_second() -> None:
    net, state, tensors = made(784, (512, 512), 100, outputs=2)
    given = {"s0": state, **{f"c{n}": tensor for n, tensor in enumerate(tensors)}}
    graph, values = traced(lambda *x: (net(*x),), given)
    order = list(range(784))
    head, table = picking_head(net(state, *tensors), order)
    start = time.perf_counter()
    assert prove(graph, head, (column_slots((100, 784), order),), table, values, {}).holds
    assert time.perf_counter() - start < 1


# ---------------------------------------------------------------- convolutions


def causal_mask(outputs: int, inputs: int, first: bool) -> Tensor:
    mask = torch.ones(outputs, inputs, 3, 3)
    mask[:, :, 1, 1 + (not first) :] = 0
    mask[:, :, 2] = 0
    return mask


def pixelcnn(state: Tensor, *tensors: Tensor) -> Tensor:
    """Convolutions with PixelCNN's A and B masks, residuals, and a norm over the channels."""
    w0, w1, w2, m0, m1, m2, scale = tensors
    x = F.conv2d(state.view(-1, 1, SIDE, SIDE), w0 * m0, padding=1)
    y = F.conv2d(F.relu(x), w1 * m1, padding=1) + x
    y = F.layer_norm(y.permute(0, 2, 3, 1), (5,), scale).permute(0, 3, 1, 2)
    return F.conv2d(y, w2 * m2, padding=1).flatten(2)


def pixelcnn_tensors() -> list[Tensor]:
    masks = [causal_mask(5, 1, True), causal_mask(5, 5, False), causal_mask(2, 5, False)]
    return [*(normal(*mask.shape) for mask in masks), *masks, normal(5)]


def test_masked_convolutions() -> None:
    proof = proof_of(pixelcnn, torch.zeros(BATCH, PIXELS), *pixelcnn_tensors())
    assert proof.holds, proof.reason
    assert proof.used == ("c3", "c4", "c5")


def test_a_leaking_tap_is_found() -> None:
    tensors = pixelcnn_tensors()
    tensors[4][3, 2, 1, 2] = 1
    proof = proof_of(pixelcnn, torch.zeros(BATCH, PIXELS), *tensors)
    assert not proof.holds
    assert "aten.convolution.default" in proof.reason and "(3, 2, 1, 2)" in proof.reason, proof.reason


def test_the_first_mask_must_exclude_the_pixel_itself() -> None:
    tensors = pixelcnn_tensors()
    tensors[3] = causal_mask(5, 1, False)
    proof = proof_of(pixelcnn, torch.zeros(BATCH, PIXELS), *tensors)
    assert not proof.holds and proof.reason.startswith("slot 0 depends on slot 0 through aten.convolution")


def shifted(state: Tensor, *tensors: Tensor) -> Tensor:
    """PixelCNN++: a stream for the rows above, one for the pixels to the left, on two scales."""
    w0, w1, w2, w3, w4 = tensors
    image = F.pad(state.view(-1, 1, SIDE, SIDE), (0, 0, 0, 0, 0, 1), value=1.0)
    above = F.pad(F.conv2d(F.pad(image, (1, 1, 1, 0)), w0), (0, 0, 1, 0))[:, :, :-1]
    left = F.pad(F.conv2d(F.pad(image, (0, 0, 1, 0)), w1), (1, 0))[..., :-1]
    x = F.elu(torch.cat([above + left, -above], 1))
    small = F.conv2d(F.pad(x, (1, 0, 1, 0)), w2, stride=2)
    large = F.conv_transpose2d(small, w3, stride=2)
    p, q = F.conv2d(torch.cat([x, large], 1), w4).chunk(2, 1)
    return (p * q.sigmoid()).flatten(2)


def shifted_tensors() -> list[Tensor]:
    return [normal(3, 2, 2, 3), normal(3, 2, 2, 1), normal(3, 6, 2, 2), normal(3, 3, 2, 2), normal(4, 9, 1, 1)]


def test_shifted_convolutions_need_no_values() -> None:
    proof = proof_of(shifted, torch.zeros(BATCH, PIXELS), *shifted_tensors())
    assert proof.holds, proof.reason
    assert proof.used == ()


def test_missing_shift() -> None:
    def net(state: Tensor, *tensors: Tensor) -> Tensor:
        return F.conv2d(F.pad(state.view(-1, 1, SIDE, SIDE), (1, 1, 1, 0)), tensors[0]).flatten(2)

    proof = proof_of(net, torch.zeros(BATCH, PIXELS), normal(3, 1, 2, 3))
    assert not proof.holds and "aten.convolution.default" in proof.reason


# ---------------------------------------------------------------- attention


def after_first(tokens: Tensor) -> Tensor:
    """Tokens moved by one, so that position t sees the tokens before t: (batch, length) -> (batch, length, 1)."""
    return F.pad(tokens, (1, 0))[:, :-1, None]


def additive(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (scores + torch.zeros_like(scores).masked_fill(mask == 0, -torch.inf)).softmax(-1) @ v


def filled(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask == 0, -torch.inf).softmax(-1) @ v


def chosen(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask > 0, scores, -torch.inf).softmax(-1) @ v


def multiplied(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    share = scores.exp() * mask
    return share / share.sum(-1, keepdim=True) @ v


def with_cut(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A softmax over what is allowed, and a mask multiplied in once more."""
    return (scores.masked_fill(mask == 0, -torch.inf).softmax(-1) * mask) @ v


def by_position(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Weights that do not depend on the state: here a mask after the softmax is enough."""
    return (torch.arange(len(mask)).float().expand(mask.shape).softmax(-1) * mask) @ v


def finite(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask == 0, -1e9).softmax(-1) @ v


def finite_then_cut(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PixelSNAIL: the barred scores are replaced, so nothing of them is left in the sum, and then cut."""
    return (scores.masked_fill(mask == 0, -1e4).softmax(-1) * mask) @ v


def finite_sum(scores: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return ((scores - 1e9 * (1 - mask)).softmax(-1) * mask) @ v


def attending(how: Any) -> Net:
    def net(state: Tensor, *tensors: Tensor) -> Tensor:
        x = after_first(state) * tensors[0]
        q, k, v = (x @ w for w in tensors[1:4])
        return (x + how(q @ k.transpose(1, 2), v, tensors[4])).transpose(1, 2)

    return net


def attention_tensors(length: int = 6) -> list[Tensor]:
    return [normal(4), normal(4, 4), normal(4, 4) + 1, normal(4, 4) + 2, torch.ones(length, length).tril()]


@pytest.mark.parametrize("how", [additive, filled, chosen, multiplied, with_cut, by_position, finite_then_cut])
def test_causal_attention(how: Any) -> None:
    proof = proof_of(attending(how), tokens(), *attention_tensors())
    assert proof.holds, proof.reason
    assert proof.used == ("c4",)


@pytest.mark.parametrize(("how", "op"), [(finite, "bmm"), (finite_sum, "_softmax")])
def test_finite_masks_do_not_count(how: Any, op: str) -> None:
    proof = proof_of(attending(how), tokens(), *attention_tensors())
    assert not proof.holds
    assert f"aten.{op}.default (net.py:" in proof.reason and "only -inf" in proof.reason, proof.reason


def test_one_hole_in_an_attention_mask() -> None:
    tensors = attention_tensors()
    tensors[4][2, 4] = 1
    proof = proof_of(attending(filled), tokens(), *tensors)
    assert proof.reason.startswith("slot 2 depends on slot 3 through aten.masked_fill.Scalar"), proof.reason
    assert "entry (2, 4)" in proof.reason


def test_a_row_that_attends_to_nothing() -> None:
    """It is NaN in a softmax: no proof."""
    tensors = attention_tensors()
    tensors[4] = tensors[4].tril(-1)
    assert not proof_of(attending(filled), tokens(), *tensors).holds


@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32])
def test_fused_attention(mask: torch.dtype | None) -> None:
    def net(state: Tensor, *tensors: Tensor) -> Tensor:
        x = after_first(state) * tensors[0]
        q, k, v = ((x @ w).unflatten(2, (2, 2)).transpose(1, 2) for w in tensors[1:4])
        given = {torch.bool: tensors[4] > 0, torch.float32: (1 / tensors[4]).clamp_min(1).log().neg()}.get(mask)
        return F.scaled_dot_product_attention(q, k, v, given, is_causal=mask is None).transpose(1, 2).flatten(2).mT

    proof = proof_of(net, tokens(), *attention_tensors())
    assert proof.holds, proof.reason
    leaky = [*attention_tensors()[:4], torch.ones(6, 6)]
    assert mask is None or not proof_of(net, tokens(), *leaky).holds


# ---------------------------------------------------------------- further parts of networks


def test_integer_embeddings() -> None:
    def net(state: Tensor, *tensors: Tensor) -> Tensor:
        x = F.embedding(F.pad(state, (1, 0))[:, :-1], tensors[0])
        return x.cumsum(1).mT + tensors[0][0, 0]

    assert proof_of(net, torch.zeros(BATCH, 6, dtype=torch.int64), normal(5, 3)).holds


def test_norms() -> None:
    def net(state: Tensor, over: int) -> Tensor:
        x = after_first(state) * torch.arange(4.0)
        return (x * torch.rsqrt((x * x).mean(over, keepdim=True) + 1e-6)).mT

    assert proof_of(lambda state: net(state, 2), tokens()).holds
    assert not proof_of(lambda state: net(state, 1), tokens()).holds


def test_a_mean_over_all_positions_is_named() -> None:
    def net(state: Tensor, weight: Tensor) -> Tensor:
        x = after_first(state) * weight
        return (x + x.mean(1, keepdim=True)).mT

    proof = proof_of(net, tokens(), normal(4))
    assert proof.reason.startswith("slot 0 depends on slot 4: aten.mean.dim (net.py:"), proof.reason


def test_an_op_without_a_rule_is_named() -> None:
    def net(state: Tensor) -> Tensor:
        x = after_first(state)
        return (x + torch.fft.fft(x, dim=2).real).mT

    proof = proof_of(net, tokens())
    assert "aten._fft_r2c.default (net.py:" in proof.reason and "has no dependence rule" in proof.reason, proof.reason


def test_batch_norm_in_training_is_refused() -> None:
    def net(state: Tensor, mean: Tensor, spread: Tensor, training: bool) -> Tensor:
        return F.batch_norm(after_first(state).mT, mean, spread, training=training)

    statistics = torch.zeros(1), torch.ones(1)
    assert proof_of(lambda *x: net(*x, False), tokens(), *statistics).holds
    proof = proof_of(lambda *x: net(*x, True), tokens(), *statistics)
    assert not proof.holds and "updates running statistics" in proof.reason
    own = proof_of(lambda state: F.batch_norm(after_first(state).mT, None, None, training=True), tokens())
    assert not own.holds and "native_batch_norm" in own.reason


def test_random_draws_are_refused() -> None:
    proof = proof_of(lambda state: F.dropout(after_first(state), 0.5).mT, tokens())
    assert not proof.holds and "draws random numbers" in proof.reason
    assert proof_of(lambda state: F.dropout(after_first(state), 0.5, training=False).mT, tokens()).holds


def test_the_sign_of_a_masked_zero_is_followed() -> None:
    """0 * x is 0 or -0, which 1 / (0 * x) tells apart; adding anything but zero first makes it safe."""
    mask = torch.zeros(6)
    assert proof_of(lambda state, mask: (state * mask).exp()[:, None], tokens(), mask).holds
    assert proof_of(lambda state, mask: (1 / (state * mask + 1))[:, None], tokens(), mask).holds
    assert not proof_of(lambda state, mask: (1 / (state * mask)).tanh()[:, None], tokens(), mask).holds
    assert not proof_of(lambda state, mask: torch.copysign(torch.ones(6), state * mask)[:, None], tokens(), mask).holds


# ---------------------------------------------------------------- buffers, heads, depth


def test_two_buffers_and_slots_of_several_elements() -> None:
    """Step t writes row t of one buffer and element t of another."""
    rows, singles = torch.zeros(BATCH, 5, 3), torch.zeros(5)

    def net(rows: Tensor, singles: Tensor) -> tuple[Tensor, ...]:
        return (F.pad(rows.cumsum(1).sum((0, 2)) + singles.cumsum(0), (1, 0))[:-1].expand(BATCH, 1, 5),)

    slots = Slots((BATCH, 3), (15, 1), (0, 3, 6, 9, 12)), Slots((), (), (0, 1, 2, 3, 4))
    graph, values = traced(net, {"s0": rows, "s1": singles})
    head, table = picking_head(net(rows, singles)[0], list(range(5)))
    (returned,) = results(head)
    both = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    both.graph_copy(head, env)
    both.output((env[returned], env[returned]))
    assert prove(graph, both, slots, table, values, {}).holds
    late = slots[0], Slots((), (), (1, 2, 3, 4, 0))
    assert not prove(graph, both, late, table, values, {}).holds


def test_slots_place_their_steps() -> None:
    index = slot_indices(Slots((2,), (3,), (2, 0)), TensorType.of(torch.zeros(2, 3)))
    assert index.tolist() == [[1, -1, 0], [1, -1, 0]]


def test_chain_length() -> None:
    assert chain_length([-1, -1, -1]) == 1
    assert chain_length([-1, 0, 1, 2]) == 4
    assert chain_length([-1, -1, 0, 1, 3]) == 3
    assert chain_length([]) == 0


def test_a_head_that_reads_too_late() -> None:
    net, state, tensors = made(8, (16,), 3)
    given = {"s0": state, **{f"c{n}": tensor for n, tensor in enumerate(tensors)}}
    graph, values = traced(lambda *x: (net(*x),), given)
    head, _ = picking_head(net(state, *tensors), list(range(8)))
    slots = (column_slots((3, 8), list(range(8))),)
    assert not prove(graph, head, slots, ((*range(1, 8), 7),), values, {}).holds
    assert prove(graph, head, slots, ((0, *range(7)),), values, {}).holds


# ---------------------------------------------------------------- the probe of bits


def probed(net: Net, state: Tensor, *tensors: Tensor, **options: Any) -> str | None:
    order = list(range(state.shape[1]))
    given = {"s0": state, **{f"c{n}": tensor for n, tensor in enumerate(tensors)}}
    graph, _ = traced(lambda *x: (net(*x),), given)
    head, table = picking_head(net(state, *tensors), order)
    slots = (column_slots(tuple(state.shape), order),)
    block = FixedPoint("block", len(order), graph, head, 1, len(tensors), 1, 1, 0, table, slots)
    return probe_bits(lambda *b: (net(*b, *tensors),), block, [state], [0, 3, 7], (), **options)


def test_the_probe_sees_bits_change() -> None:
    net, state, tensors = made(8, (16, 16), 3)
    assert probed(net, state, *tensors) is None
    assert probed(lambda state: state[:, None], state) is not None
    whole = probed(lambda state: state.cumsum(1)[:, None] - state[:, None] + 1e-3 * state.sum(1)[:, None, None], state)
    assert whole is not None and "changes in bits" in whole
    assert probed(net, state, *tensors, nonfinite=True) is not None  # 0 * NaN
    assert probed(lambda state: F.pad(state, (1, 0))[:, None, :-1], state, nonfinite=True) is None


# ---------------------------------------------------------------- random programs


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # torch's own
@pytest.mark.parametrize("first", range(0, 320, 40))
def test_never_a_false_proof(first: int, record_property: Callable[[str, object], None]) -> None:
    """For each element of each result: the abstract index is at least the true one."""
    tight = 0
    for seed in range(first, first + 40):
        net = Network(seed, depth=1 + seed % 5)
        state = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
        order = list(range(LENGTH))
        if seed % 3 == 0:
            net.random.shuffle(order)
        given = {"s0": state, **{f"c{n}": tensor for n, tensor in enumerate(net.tensors)}}
        graph, values = traced(lambda *x: (net(*x),), given)  # noqa: B023
        slots = (column_slots((BATCH, LENGTH), order),)
        env = interpret(graph, seeds(graph, slots, values), Analysis(LENGTH - 1.0))
        (fact,) = [env[node] for node in results(graph)]
        true = brute_force(lambda s: net(s, *net.tensors), state, order)  # noqa: B023
        index = torch.full(true.shape, -1.0) if isinstance(fact, Concrete) else fact.index
        assert bool((index >= true).all()), f"seed {seed}: {net.names}"
        head, table = picking_head(net(state, *net.tensors), order)
        proof = prove(graph, head, slots, table, values, {})
        assert not proof.holds or all(bool((true[:, :, c] < t).all()) for t, c in enumerate(order))
        assert proof.holds or proof.reason.startswith("slot ")
        tight += torch.equal(index, true)
    record_property("tight", f"{tight} of 40")
    assert tight >= 30
