"""Character models the way people write them. Nothing here knows fxsolve."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearRNNCell(nn.Module):
    """`h' = tanh(W x + U h + b)`, written out."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.x = nn.Linear(inputs, hidden)
        self.h = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(h))


class LinearGRUCell(nn.Module):
    """A GRU cell with two linear maps and chunk."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.x = nn.Linear(inputs, 3 * hidden)
        self.h = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xr, xz, xn = self.x(x).chunk(3, -1)
        hr, hz, hn = self.h(h).chunk(3, -1)
        r = torch.sigmoid(xr + hr)
        z = torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return (1 - z) * n + z * h


class LinearLSTMCell(nn.Module):
    """An LSTM cell with two linear maps and chunk."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.x = nn.Linear(inputs, 4 * hidden)
        self.h = nn.Linear(hidden, 4 * hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class Loop(nn.Module):
    """A loop over a cell with one state: (batch, T, inputs) to (batch, T, hidden)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outs.append(h)
        return torch.stack(outs, 1)


class LSTMLoop(nn.Module):
    """A loop over an LSTM cell, whose state is the pair (h, c)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        c = torch.zeros_like(h)
        outs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outs.append(h)
        return torch.stack(outs, 1)


class PixelRNN(nn.Module):
    """The network of Song et al. 2021, section 4.1: one pixel a step, a softplus cell, the next pixel's logit.

    (batch, pixels, 1) in and out.
    """

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(1, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.orthogonal_(self.h.weight, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.h.out_features)
        outs = []
        for t in range(x.shape[1]):
            h = nn.functional.softplus(self.x(x[:, t]) + self.h(h))
            outs.append(self.out(h))
        return torch.stack(outs, 1)


class CharModel(nn.Module):
    """Characters in, one row of logits for each character out: (batch, T) to (batch, T, characters).

    `body` is anything that maps (batch, T, features) to (batch, T, width): a loop above, or one of torch's modules.
    """

    def __init__(self, characters: int, features: int, body: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters + 1, features)  # one more: the blank of the fill-in task
        self.body = body
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        y = self.body(self.embedding(text))
        if isinstance(y, tuple):
            y = y[0]
        return self.head(y)


def build(characters: int, hidden: int = 128) -> dict[str, CharModel]:
    """Every model of the example by the name that the table shows."""
    loops = {
        "loop over nn.RNNCell": Loop(nn.RNNCell(hidden, hidden)),
        "loop over nn.GRUCell": Loop(nn.GRUCell(hidden, hidden)),
        "loop over nn.LSTMCell": LSTMLoop(nn.LSTMCell(hidden, hidden)),
        "loop, LSTM written out": LSTMLoop(LinearLSTMCell(hidden, hidden)),
        "nn.RNN": nn.RNN(hidden, hidden, batch_first=True),
        "nn.GRU": nn.GRU(hidden, hidden, batch_first=True),
        "nn.LSTM, 2 layers": nn.LSTM(hidden, hidden, num_layers=2, batch_first=True),
    }
    models = {name: CharModel(characters, hidden, body, hidden) for name, body in loops.items()}
    both = nn.LSTM(hidden, hidden, num_layers=2, bidirectional=True, batch_first=True)
    models["nn.LSTM, 2 layers, bidirectional"] = CharModel(characters, hidden, both, 2 * hidden)
    return models
