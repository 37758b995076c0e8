"""MADE as in the paper (Germain et al., ICML 2015, arXiv 1502.03509), with logistic outputs.

Nothing here knows fxsolve.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLinear(nn.Linear):
    """A linear map of whose weights a mask keeps only those from earlier to later units."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """A density over vectors of `pixels` numbers: pixel i is logistic, its location and log-scale read pixels < i."""

    def __init__(self, pixels: int = 784, hidden: tuple[int, ...] = (512, 512)) -> None:
        super().__init__()
        self.pixels = pixels
        degrees = [torch.arange(pixels)]
        degrees += [torch.randint(pixels - 1, (width,)) for width in hidden]
        layers: list[nn.Module] = []
        for before, after in zip(degrees, degrees[1:]):
            layers += [MaskedLinear((after[:, None] >= before).float()), nn.ReLU()]
        last = (degrees[0][:, None] > degrees[-1]).float()
        layers.append(MaskedLinear(torch.cat([last, last])))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pixels) to (batch, 2 * pixels): the locations, then the log-scales."""
        loc, log_scale = self.net(x).chunk(2, -1)
        return torch.cat([loc, log_scale.clamp(-6.0, 2.0)], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row, in nats."""
        loc, log_scale = self(x).chunk(2, -1)
        z = (x - loc) * torch.exp(-log_scale)
        return (-z - log_scale - 2 * F.softplus(-z)).sum(-1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n rows, pixel by pixel."""
        x = torch.zeros(n, self.pixels)
        for i in range(self.pixels):
            out = self(x)
            loc, log_scale = out.chunk(2, -1)
            u = torch.rand(n)
            x[:, i] = loc[:, i] + log_scale[:, i].exp() * (torch.log(u) - torch.log1p(-u))
        return x
