"""Capture: the recorded run is eager's, what cannot be recorded is refused with the user's line, nothing is left behind."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor, nn

from fxsolve import doors
from fxsolve.capture import Recording, record
from tests.passes.running import agrees, recording_of, tape_of

torch.manual_seed(0)
X = torch.randn(4, 6)
INDEX = torch.tensor([2, 0, 1])
LINEAR = nn.Linear(6, 6)
HALF = nn.Linear(6, 3)


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def sets_through_data(x: Tensor) -> Tensor:
    HALF.weight.data = HALF.weight.data * 1
    return HALF(x)


def resized(x: Tensor) -> Tensor:
    out = torch.empty(0)
    torch.mul(x, 2, out=out)
    return out


def two_lists(x: Tensor) -> Tensor:
    return torch.tensor([x[0, 0], x[0, 1]]) * x[0, 0]


class Stopped(BaseException):
    pass


class Wrapped(Tensor):
    pass


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x * x.sum().item(), "float of a tensor"),
    "float": (lambda x: x * float(x.sum()), "float of a tensor"),
    "int": (lambda x: x * int(x.sum()), "leaves torch"),
    "branch": (branches, "bool of a tensor"),
    "python any": (lambda x: x if any(x[0] > 0) else -x, "bool of a tensor"),
    "tolist": (lambda x: x * x.tolist()[0][0], "tolist"),
    "numpy": (lambda x: x * x.numpy().sum(), "numpy"),
    "asarray": (lambda x: x * np.asarray(x).sum(), "__array__"),
    "dlpack": (lambda x: torch.from_dlpack(x) * 2, "dlpack"),
    "numpy dlpack": (lambda x: x * float(np.from_dlpack(x).sum()), "dlpack"),
    "list of tensors": (two_lists, "list that holds tensors"),
    "format": (lambda x: (f"{x[0, 0]:.2f}", x)[1], "leaves torch"),
    "list as an index": (lambda x: x[SOME], "a list as an index"),
    "array beside a list": (lambda x: x[np.array([1, 0]), [1, 0]], "an array"),
    "nonzero": (lambda x: x.nonzero(), "shape depends on values"),
    "boolean index": (lambda x: x[x > 0], "boolean mask"),
    "masked_select": (lambda x: x.masked_select(x > 0), "shape depends on values"),
    "unique": (lambda x: x.unique(), "shape depends on values"),
    "equal": (lambda x: x if torch.equal(x, x) else -x, "truth value"),
    "allclose": (lambda x: x if torch.allclose(x, x) else -x, "bool"),
    "tensor as an index": (lambda x: x[torch.argmax(x[:, 0])], "int of a tensor"),
    "array inside": (lambda x: x + torch.from_numpy(np.ones(6, dtype=np.float32)), "an array enters"),
    "array as tensor": (lambda x: x + torch.as_tensor(np.ones(6, dtype=np.float32)), "an array enters"),
    "Python's random": (lambda x: x * random.random(), "random numbers"),
    "NumPy's random": (lambda x: x * np.random.rand(), "random numbers"),
    "a generator inside": (lambda x: x + torch.rand(6, generator=torch.Generator().manual_seed(1)), "a generator of its own"),
    "batch norm in training": (nn.BatchNorm1d(6), "running statistics"),
    "sparse": (lambda x: torch.eye(4).to_sparse() @ x, "sparse"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize(), "quantized"),
    "meta": (lambda x: x.to("meta").cumsum(0).shape[0] * x, "on the meta device"),
    "subclass": (lambda x: x.as_subclass(Wrapped) * 2, "Wrapped"),
    "conjugate": (lambda x: torch.complex(x, x).conj() * 2, "_conj"),
    "resized result": (resized, "another shape"),
    "resize_": (lambda x: x.clone().resize_(2, 3) + 1, "in place"),
    "set_": (lambda x: torch.empty(0).set_(x.clone()) + 1, "in place"),
    ".data of a module": (sets_through_data, "other storage"),
    "transposed argument": (lambda x: x.t_(), "shape of an input"),
    "backward": (lambda x: torch.autograd.grad((LINEAR.weight * x[0]).sum(), LINEAR.weight)[0], "gradients"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch's own
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_line(name: str) -> None:
    """The call itself is not disturbed: its result is eager's."""
    fn, reason = REFUSED[name]
    states = random.getstate(), np.random.get_state()
    with torch.enable_grad() if name == "backward" else torch.no_grad():
        wanted = fn(X.clone())
        random.setstate(states[0])
        np.random.set_state(states[1])
        known = {"LINEAR.weight": LINEAR.weight, "HALF.weight": HALF.weight, "HALF.bias": HALF.bias}
        recording = record(fn, (X.clone(),), {}, known)
    assert recording.refusal is not None and reason in recording.refusal, recording.refusal
    if name not in ("Python's random", "NumPy's random", ".data of a module", "subclass"):
        assert "test_capture.py:" in recording.refusal, recording.refusal
    if isinstance(wanted, Tensor) and wanted.layout is torch.strided:
        assert torch.equal(recording.result, wanted)


@dataclass
class Holding:
    tensor: Tensor


@pytest.mark.parametrize(
    "wrap", [Holding, lambda h: {h}, lambda h: (row for row in h), lambda h: lambda: h, lambda h: SimpleNamespace(h=h)]
)
def test_objects_in_results_are_not_replayed(wrap: Callable[[Tensor], Any]) -> None:
    """A replay would hand out the first call's object again."""
    recording = record(lambda x: (x * 2, {"more": wrap(x + 1)}), (X,), {}, {})
    assert recording.refusal is not None
    assert re.match("the result holds a .*return tensors in tuples, lists or dicts", recording.refusal)
    fixed = (None, 1, 2.5, "text", torch.float32, torch.Size([2]), Stopped, X.device, slice(3), np.float32(2))
    recording = record(lambda x: (x * 2, {"more": [x + 1, *fixed]}), (X,), {}, {})
    assert recording.refusal is None


@pytest.mark.parametrize(
    "change",
    [
        lambda state, x: state.update(h=x),
        lambda state, x: state.update(new=x),
        lambda state, x: state.pop("h"),
        lambda state, x: state["deep"].append(x),
        lambda state, x: operator.setitem(state["deep"], 0, x),
        lambda state, x: operator.setitem(state, "k", 2),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_containers_among_the_arguments_are_not_written_by_a_replay(change: Callable[..., Any], by_name: bool) -> None:
    def program(x: Tensor, state: dict[str, Any]) -> Tensor:
        y = x + state["h"] * state["k"]
        change(state, y)
        return y * 2

    state = {"h": X + 1, "k": 1, "deep": [X + 2]}
    recording = record(program, (X,) if by_name else (X, state), {"state": state} if by_name else {}, {})
    assert recording.refusal == "the call changes a list or dict among its arguments, which a replay would not repeat"


def in_place_mask(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0] = 2.0
    y.masked_fill_(y < -1, 0.5)
    return y


def views_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.t_()
    y.mul_(2)
    return y.unsqueeze_(0) + 1


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return LINEAR(x) + LINEAR(x)


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return LINEAR(x).reshape(-1).view(6, 4).softmax(-1) + 1


def writes_a_constant(x: Tensor) -> Tensor:
    c = torch.tensor([1.0, 2.0])
    c[1] = x[0, 0]
    return c


def out_of_a_storage(x: Tensor) -> Tensor:
    y = x * 2
    y[1:].as_strided((2, 3), (6, 2), 7).add_(1)
    return y + x.as_strided((4, 1), (6, 1), 2)


SOME = [0, 2]


def lists_as_indices(x: Tensor) -> tuple[Tensor, ...]:
    y = x.clone()
    y[:, [1, -1]] = x[:, [0, 2]]
    y[[3]] += 1
    return y, x[[0, 2]], x[[[1], [2]], [0, 1]], x[None, [1], 2:]


RECORDED: dict[str, Callable[[Tensor], Any]] = {
    "lists as indices": lists_as_indices,
    "index by a tensor": lambda x: x[INDEX] * 2,
    "mask in place": in_place_mask,
    "views in place": views_in_place,
    "autocast": autocast,
    "inference mode": inference,
    "constants": lambda x: x * torch.tensor([1.0] * 6) + torch.tensor(3.0) + x.new_tensor([2.0] * 6),
    "a constant that is written": writes_a_constant,
    "numbers in where": lambda x: torch.where(x > 0, x, 0.5) + torch.where(x > 1, 2.0, x),
    "strides": out_of_a_storage,
    "batch norm in eval": nn.BatchNorm1d(6).eval(),
    "batch norm without statistics": nn.BatchNorm1d(6, track_running_stats=False),
    "instance norm": lambda x: F.instance_norm(x[None]),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x) * 2j),
    "vmap": lambda x: torch.vmap(lambda row: row * row.sum())(x),
    "in": lambda x: x if 3.0 in x else -x,
    "distributions": lambda x: D.Normal(x, x.exp()).log_prob(x) + D.Categorical(logits=x).sample()[:, None],
    "packed": lambda x: nn.utils.rnn.pack_padded_sequence(x[:, :, None], torch.tensor([4, 3, 2, 2, 1, 1])).data,
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)),
    "lstm": lambda x: RNN(x[:, None])[0],
    "nothing": lambda x: None,
    "the argument": lambda x: (x, x[0], x.t()),
}
RNN = nn.LSTM(6, 3, num_layers=2, bidirectional=True).eval()


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    """Also with other values in the argument."""
    agrees(RECORDED[name], X)


def recorded(fn: Callable[..., Any], *args: Any, known: dict[str, Tensor] | None = None) -> Recording:
    with torch.no_grad():
        return record(fn, args, {}, known or {})


def test_memory_that_inputs_share() -> None:
    """Later calls bring other tensors, which need not share it."""

    def add(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    x, w = torch.randn(5), torch.randn(5)
    assert "shares memory with argument 0" in str(recorded(add, x[:4], x[1:]).refusal)
    assert "shares memory with weight" in str(recorded(add, w, x, known={"weight": w}).refusal)
    assert recorded(add, x, x).refusal is None  # one tensor twice is part of a call's signature
    assert recorded(lambda a, b: a * 2, w, x, known={"other": x}).refusal is None  # not read


def test_validation_becomes_a_guard() -> None:
    tape = tape_of(lambda x: D.Normal(x, x.exp(), validate_args=True).sample(), X)  # dynamo switches the default off
    assert [expected for _, expected in tape.guards] == [True, True]


def test_a_guard_holds_for_the_values_of_its_time() -> None:
    def program(x: Tensor) -> Tensor:
        flag = (x > -100).all()
        y = x if 1.0 in flag.float()[None] else -x
        flag.fill_(False)
        return y

    agrees(program, X)


def test_keywords_and_nested_arguments() -> None:
    def program(x: dict[str, Tensor], *, scale: Tensor, k: int) -> dict[str, Any]:
        return {"y": x["a"] * scale + k, "k": k}

    recording = recording_of(program, {"a": X}, scale=torch.tensor(2.0), k=3)
    assert recording.refusal is None
    assert torch.equal(recording.result["y"], X * 2 + 3)
    assert [leaf.position for leaf in recording.tape.leaves] == [0, 1]


def test_contents_before_the_first_write_are_kept() -> None:
    x = X.clone()
    recording = recorded(lambda x: x.mul_(2), x)
    assert torch.equal(recording.before[0], X) and torch.equal(x, X * 2)


def test_sources_are_the_users_lines() -> None:
    sources = tape_of(RECORDED["batch norm in eval"], X).sources.items
    assert all("test_" in source or "running.py" in source for source in sources), sources


@pytest.mark.parametrize("error", [ValueError("mine"), Stopped()])
def test_an_exception_passes_and_leaves_nothing_behind(error: BaseException) -> None:
    def before() -> list[Any]:
        places = [(owner, name) for owner, name, *_ in doors.DOORS + doors.MAKERS]
        return [vars(owner).get(name) for owner, name in places]

    def fails(x: Tensor) -> Tensor:
        x[0].tolist()
        raise error

    places = before()
    with pytest.raises(type(error)) as caught:
        recorded(fails, X)
    assert caught.value is error
    assert all(a is b for a, b in zip(before(), places, strict=True))
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_a_call_that_eager_refuses() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorded(lambda x: x @ x, X)


def test_sparse_argument() -> None:
    recording = recorded(lambda a, x: a @ x, torch.eye(4).to_sparse(), X)
    assert recording.refusal is not None and "sparse" in recording.refusal
    assert torch.equal(recording.result, X)


def test_time_and_size_do_not_grow_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds are printed, not asserted."""
    import time

    from fxsolve.passes.build import build
    from fxsolve.passes.clean import clean
    from fxsolve.passes.functionalize import functionalize
    from fxsolve.passes.roll import roll

    cell = nn.RNNCell(4, 4)

    def loop(x: Tensor) -> Tensor:
        h = torch.zeros(1, 4)
        for t in range(x.shape[0]):
            h = cell(x[t], h)
        return h

    nodes = []
    for steps in (1024, 8192):
        x = torch.randn(steps, 1, 4)
        start = time.perf_counter()
        tape = tape_of(loop, x)
        recorded_at = time.perf_counter()
        cleaned = clean(functionalize(tape))
        program = build(cleaned, roll(cleaned))
        done = time.perf_counter()
        rows = len(tape)
        with capsys.disabled():
            per_row = 1e6 * (recorded_at - start) / rows, 1e6 * (done - recorded_at) / rows
            print(f"\n{steps} steps, {rows} rows: {per_row[0]:.1f} us a row with eager, {per_row[1]:.1f} us in the passes")
        nodes.append(len(program.graph.nodes))
        assert [block.length for block in program.blocks.values()] == [steps]
    assert nodes[0] == nodes[1]


def test_one_hot_is_recorded_without_a_look_at_values() -> None:
    """Eager checks the values before it computes; its complaint about bad ones comes as ever."""

    def program(x: Tensor, classes: int) -> Tensor:
        return torch.nn.functional.one_hot(x.argmax(1), classes) * 2

    recording = record(program, (torch.eye(4), 5), {}, {})
    assert recording.refusal is None
    assert torch.equal(recording.result, program(torch.eye(4), 5))
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        record(program, (torch.eye(4), 3), {}, {})
    assert "leaves torch" in str(record(program, (torch.eye(4), -1), {}, {}).refusal)
