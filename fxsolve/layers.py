"""A chain's layers as equations, `s_l = h_l(s_{<l})`, and their sweeps.

Each layer is a generated function of the states that it reads: eager's own calls at eager's own shapes. A layer is evaluated
again only if a state that it reads has changed since; it is final, and has eager's bits, once it was evaluated with all of
them final. That takes about as many sweeps as there are layers; to rounding fewer do: once a sweep moves no state by more
than NEAR times the program's own noise, the next one also measures by how many rounding units each layer's state misses its
equation. If by no more than TOLERANCE, and if that sweep and the one before it each moved less than half as much as the one
before, the states it started from are the solution: with moves that halve, what is still to come adds up to less than one
more such move. (Units bound what rounding can do; over sums of a thousand terms it does much less, so units alone would stop
too early. The last bits, on the other hand, wander until the last layer is final. So moves are measured in each layer's own
noise: how far the program in order is from float64, on the first call.)

All layers of a Jacobi sweep read states from before, so where that is quicker a sweep is one program (fxsolve.together): of the
layers' own calls, or, far from the solution, with layers of one form as one call. That rounds otherwise, so none of its layers
is final but the first one, which is evaluated by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import fx

from fxsolve.bits import same_bits
from fxsolve.certificate import CONTRACTION, TOLERANCE
from fxsolve.ir import CARRY, CONST, Chain, placeholders, results
from fxsolve.iterates import note
from fxsolve.passes.doubled import doubled, widened
from fxsolve.passes.graphs import copy_nodes, needed_for, placeholder_like
from fxsolve.passes.readable import generated
from fxsolve.passes.units import unit_step
from fxsolve.plan import Tensors
from fxsolve.together import Sweep, Together

NEAR = 4.0  # times a layer's own noise: a sweep that moves more is not the last but one
QUIET, NOISY = 2.0, 32.0  # eps, relative to a state's largest value: what a layer's own noise is taken for at least, at most


class Layer:
    """`h_l`: a function of some states and of what it reads from outside."""

    def __init__(self, layers: fx.Graph, number: int) -> None:
        wanted = results(layers)[number]
        inside = needed_for([wanted])
        states, consts = placeholders(layers, CARRY), placeholders(layers, CONST)
        self.states = [i for i, n in enumerate(states) if n in inside]
        self.consts = [i for i, n in enumerate(consts) if n in inside]
        graph, env = fx.Graph(), {}
        for node in [states[i] for i in self.states] + [consts[i] for i in self.consts]:
            env[node] = placeholder_like(graph, node, node.name)
        copy_nodes(graph, [n for n in layers.nodes if n in inside and n not in env], env)
        graph.output((env[wanted],))
        self.graph = graph
        self.source: str = wanted.meta.get("source", "")
        self.function: Callable[..., tuple[torch.Tensor]] = generated(graph)

    def __call__(self, states: Tensors, consts: Tensors) -> torch.Tensor:
        """The layer's value from the states that it reads, and from all that the block reads from outside."""
        return self.function(*states, *[consts[i] for i in self.consts])[0]

    @cached_property
    def units(self) -> Callable[..., tuple[torch.Tensor]]:
        return generated(unit_step(self.graph, 1))

    def bound(self, states: Tensors, consts: Tensors) -> torch.Tensor:
        """The rounding units of the layer's value, from what it reads."""
        return self.units(*states, *[consts[i] for i in self.consts])[0]

    def in_double(self, states: Tensors, consts: Tensors) -> torch.Tensor:
        """The layer's value in float64, from states that are; raises RuntimeError where a call is not to be had in it."""
        wide = [widened(consts[i]) for i in self.consts]
        return fx.Interpreter(fx.GraphModule({}, doubled(self.graph))).run(*states, *wide)[0]


class Sweeps:
    """One call's sweeps over a chain: the problem that a solver drives.

    `noise`: of each layer, in eps of its largest value; None: sweeps go on until all are final. `seconds`: how long each layer
    takes by itself; `together`: the windows that may be evaluated as one program.
    """

    def __init__(
        self,
        block: Chain,
        layers: Sequence[Layer],
        consts: Tensors,
        noise: Sequence[float] | None,
        seconds: Sequence[float] = (),
        together: Sequence[Together] = (),
    ) -> None:
        self.layers, self.consts, self.noise = layers, consts, noise
        self.seconds, self.windows = seconds, {(t.low, t.high): t for t in together}
        self.name, self.equations = block.name, block.length
        self.states = [torch.zeros_like(n.meta["type"].empty()) for n in placeholders(block.layers, CARRY)]
        self.used: list[tuple[torch.Tensor, ...] | None] = [None] * block.length  # what each layer was evaluated from
        self.frontier = 0
        self.rounds: list[list[list[int]]] = []  # for each sweep, and each block in it, the layers that were evaluated
        self.steps = 0  # evaluations that had to follow one another
        self.looked: set[int] = set()  # the sweeps that were looked at closely
        self.at_once: dict[int, float] = {}  # the sweeps that were one program, and how long that takes
        self.residual, self.contraction = 0.0, 0.0  # the largest of all windows

    def open(self, low: int, high: int, block: int) -> None:
        self.window, self.block = range(low, high), block
        self.moves = [float("inf"), float("inf")]  # by the last sweeps, in the noise of the layer that moved most
        self.certified = False
        self.together = self.windows.get((low, high))
        self.fused = self.together.sweep(self.consts) if self.together is not None and self.together.pays else None

    def sweep(self) -> None:
        looked_at = self.noise is not None and self.moves[-1] < NEAR
        before, block = self.states.copy(), 1 if looked_at else self.block
        left = range(self.frontier, self.window.stop)
        together, fused = self.together, None if looked_at else self.fused
        if together is None or block > 1 or sum(self.seconds[n] for n in left) <= together.least(fused is not None):
            self.evaluate_each(before, block)
        elif fused is None or together.seconds.plain <= together.seconds.fused:
            self.evaluate_at_once(together, before, left)
        else:
            self.evaluate_fused(together, fused, before, left)
        if self.noise is not None:
            moves = [distance(before[n], self.states[n]) / self.noise[n] for n in self.window]
            self.moves = [*self.moves[-2:], max(moves, default=0.0)]
        if looked_at and all(after < CONTRACTION * once for once, after in pairwise(self.moves)):
            self.look_closely(before)
        note(self.name, self.steps, lambda: list(self.states))

    def evaluate_each(self, before: Tensors, block: int) -> None:
        """Evaluates, in blocks of layers, those that may have changed."""
        evaluated: list[list[int]] = []
        for start in range(self.window.start, self.window.stop, block):
            inside = range(start, min(start + block, self.window.stop))
            again = [n for n in inside if n >= self.frontier and self.evaluate(n, before, start)]
            evaluated += [again] if again else []
        self.rounds.append(evaluated)
        self.steps += max(map(len, evaluated), default=0)

    def evaluate_at_once(self, together: Together, before: Tensors, left: range) -> None:
        """Evaluates all layers that are left, by one program of their own calls."""
        values = together.plain(*before, *self.consts)
        for n in left:
            self.take(n, values[n - together.low], tuple([before[i] for i in self.layers[n].states]))
        self.was_at_once(left, together.seconds.plain)

    def evaluate_fused(self, together: Together, fused: Sweep, before: Tensors, left: range) -> None:
        """Evaluates all layers that are left, those of one form by one call; and the first of them, which becomes final, by
        itself.
        """
        later = left[1:]
        self.states[later.start : later.stop] = fused(before)[later.start - together.low :]
        self.used[later.start : later.stop] = [None] * len(later)
        self.evaluate(left.start, before, left.start)
        self.was_at_once(left, together.seconds.fused)

    def was_at_once(self, left: range, seconds: float) -> None:
        self.at_once[len(self.rounds)] = seconds
        self.rounds.append([[n] for n in left])
        self.steps += 1

    def look_closely(self, before: Tensors) -> None:
        """Takes the states before a Jacobi sweep as the solution if each is close enough to what the sweep made of them."""
        worst, sweep = 0.0, len(self.rounds) - 1
        self.looked.add(sweep)
        if self.together is not None and sweep in self.at_once:
            self.at_once[sweep] += self.together.seconds.looking
            bounds = iter(self.together.units(*before, *self.consts)[self.frontier - self.window.start :])
        else:
            seen = ([before[i] for i in self.layers[n].states] for n in range(self.frontier, self.window.stop))
            bounds = (self.layers[n].bound(s, self.consts) for n, s in zip(range(self.frontier, self.window.stop), seen))
        for n, bound in zip(range(self.frontier, self.window.stop), bounds, strict=True):
            worst = max(worst, residual(before[n], self.states[n], bound))
            if worst > TOLERANCE:
                return
        self.certified, self.states = True, list(before)
        self.residual = max(self.residual, worst)
        self.contraction = max([self.contraction, *[after / once for once, after in pairwise(self.moves) if once < math.inf]])

    def evaluate(self, number: int, before: Tensors, start: int) -> bool:
        """Evaluates a layer from what its block has computed and the others had before, if that is new to it."""
        seen = tuple([self.states[n] if n >= start else before[n] for n in self.layers[number].states])
        used = self.used[number]
        if used is not None and all(a is b for a, b in zip(used, seen, strict=True)):
            return False
        self.take(number, self.layers[number](seen, self.consts), seen)
        return True

    def take(self, number: int, value: torch.Tensor, seen: tuple[torch.Tensor, ...]) -> None:
        """A layer's value from such states; an equal one stays the same object: who read it is up to date."""
        self.used[number] = seen
        if not same_bits(value, self.states[number]):
            self.states[number] = value

    def commit(self) -> int:
        if self.certified:
            self.frontier = self.window.stop
        while self.frontier < self.window.stop and self.is_final(self.frontier):
            self.frontier += 1
        return self.frontier

    def forget(self) -> None:
        """Lets go of all tensors; which layers each sweep evaluated stays."""
        self.states, self.used, self.consts, self.fused = [], [], (), None

    def is_final(self, number: int) -> bool:
        """Whether a layer, all layers before it being final, was evaluated from them as they are."""
        used = self.used[number]
        return used is not None and all(u is self.states[n] for u, n in zip(used, self.layers[number].states, strict=True))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in eps, relative to the largest value of b; infinite where that says nothing."""
    if a is b:
        return 0.0
    if not b.is_floating_point():
        return float("inf")
    gap = largest(a - b) / (largest(b) or 1.0) / torch.finfo(b.dtype).eps if b.numel() else 0.0
    return gap if math.isfinite(gap) else float("inf")


def largest(x: torch.Tensor) -> float:
    """The largest absolute value."""
    low, high = torch.aminmax(x)
    return max(-low.item(), high.item())


def residual(state: torch.Tensor, value: torch.Tensor, bound: torch.Tensor) -> float:
    """How far a state is from its layer's value, in rounding units of the component that is furthest."""
    if not value.is_floating_point() or not bool(value.isfinite().all()):
        return 0.0 if same_bits(state, value) else float("inf")
    gap = (value - state).abs().div_(torch.finfo(value.dtype).eps)
    return float(torch.where(gap == 0, gap, gap / bound).nan_to_num(nan=float("inf")).max())


def own_noise(layers: Sequence[Layer], states: Tensors, consts: Tensors) -> list[float]:
    """How far the rounding of a run in order took each state from float64; the least where float64 cannot be had."""
    exact: list[torch.Tensor] = []
    try:
        for layer in layers:
            exact.append(layer.in_double([exact[n] for n in layer.states], consts))
    except RuntimeError:
        return [QUIET] * len(layers)
    far = [distance(e, s) if s.is_floating_point() else 0.0 for e, s in zip(exact, states, strict=True)]
    return [min(max(eps, QUIET), NOISY) for eps in far]
