"""PixelCNN++ (Salimans, Karpathy, Chen, Kingma, ICLR 2017, arXiv 1701.05517): causal streams from above and from the left.

Nothing here knows fxsolve.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class Down(nn.Module):
    """A convolution whose output at (i, j) reads rows up to i; with `shift`, up to i - 1."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int] = (2, 3), stride: int = 1, shift: bool = False) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(width, out, kernel, stride))
        rows, columns = kernel
        self.pad = (columns // 2, columns // 2, rows - 1, 0)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, self.pad))
        return F.pad(x[:, :, :-1], (0, 0, 1, 0)) if self.shift else x


class DownRight(nn.Module):
    """A convolution whose output at (i, j) reads rows above and columns up to j; with `shift`, up to j - 1."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int] = (2, 2), stride: int = 1, shift: bool = False) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(width, out, kernel, stride))
        rows, columns = kernel
        self.pad = (columns - 1, 0, rows - 1, 0)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, self.pad))
        return F.pad(x[:, :, :, :-1], (1, 0)) if self.shift else x


class UpDown(nn.Module):
    """The transposed `Down` of stride 2: twice the rows and columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose2d(width, width, (2, 3), 2, output_padding=1), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :-1, 1:-1]


class UpDownRight(nn.Module):
    """The transposed `DownRight` of stride 2: twice the rows and columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose2d(width, width, (2, 2), 2, output_padding=1), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :-1, :-1]


class GatedResnet(nn.Module):
    """x + a * sigmoid(b), where (a, b) is two convolutions of x, and of what another stream or layer says (`other`)."""

    def __init__(self, conv: type[nn.Module], width: int, other: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = conv(2 * width, width)
        self.other = weight_norm(nn.Conv2d(2 * other, width, 1)) if other else None
        self.dropout = nn.Dropout2d(dropout)
        self.second = conv(2 * width, 2 * width)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        h = self.first(concat_elu(x))
        if self.other is not None:
            h = h + self.other(concat_elu(other))
        a, b = self.second(self.dropout(concat_elu(h))).chunk(2, 1)
        return x + a * torch.sigmoid(b)


class PixelCNNpp(nn.Module):
    """A density over images (channels, side, side) in [-1, 1]: pixel (i, j) reads the pixels before it in raster order.

    Three resolutions, `resnets` gated layers at each on the way down and up again, in two streams: `u` sees the rows above,
    `ul` also what is to the left. Out come the parameters of a mixture of `mixtures` logistics for each pixel.
    """

    def __init__(self, channels: int = 1, width: int = 32, resnets: int = 2, mixtures: int = 10, side: int = 28) -> None:
        super().__init__()
        self.channels, self.mixtures, self.side = channels, mixtures, side
        self.u_first = Down(channels + 1, width, (2, 3), shift=True)
        self.ul_above = Down(channels + 1, width, (1, 3), shift=True)
        self.ul_left = DownRight(channels + 1, width, (2, 1), shift=True)
        counts = [resnets, resnets + 1, resnets + 1]
        self.u_down = nn.ModuleList(many(3, resnets, lambda: GatedResnet(Down, width)))
        self.ul_down = nn.ModuleList(many(3, resnets, lambda: GatedResnet(DownRight, width, width)))
        self.u_smaller = nn.ModuleList(Down(width, width, (2, 3), 2) for _ in range(2))
        self.ul_smaller = nn.ModuleList(DownRight(width, width, (2, 2), 2) for _ in range(2))
        self.u_up = nn.ModuleList(nn.ModuleList(GatedResnet(Down, width, width) for _ in range(n)) for n in counts)
        self.ul_up = nn.ModuleList(nn.ModuleList(GatedResnet(DownRight, width, 2 * width) for _ in range(n)) for n in counts)
        self.u_larger = nn.ModuleList(UpDown(width) for _ in range(2))
        self.ul_larger = nn.ModuleList(UpDownRight(width) for _ in range(2))
        per_mixture = 3 if channels == 1 else 1 + 3 * channels
        self.out = weight_norm(nn.Conv2d(width, per_mixture * mixtures, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, mixture parameters, side, side)."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # padding is told from black
        us, uls = [self.u_first(x)], [self.ul_above(x) + self.ul_left(x)]
        for level, (u_layers, ul_layers) in enumerate(zip(self.u_down, self.ul_down)):
            for u_layer, ul_layer in zip(u_layers, ul_layers):
                us.append(u_layer(us[-1]))
                uls.append(ul_layer(uls[-1], us[-1]))
            if level < 2:
                us.append(self.u_smaller[level](us[-1]))
                uls.append(self.ul_smaller[level](uls[-1]))
        u, ul = us.pop(), uls.pop()
        for level, (u_layers, ul_layers) in enumerate(zip(self.u_up, self.ul_up)):
            for u_layer, ul_layer in zip(u_layers, ul_layers):
                u = u_layer(u, us.pop())
                ul = ul_layer(ul, torch.cat([u, uls.pop()], 1))
            if level < 2:
                u, ul = self.u_larger[level](u), self.ul_larger[level](ul)
        return self.out(F.elu(ul))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log probability of each 8-bit image (grey values g as g / 127.5 - 1), in nats."""
        logits, means, log_scales = self.parameters_of(self(x), x)
        half = 1 / 255
        inverse = torch.exp(-log_scales)
        centred = (x[:, None] - means) * inverse
        above, below = centred + half * inverse, centred - half * inverse
        inside = torch.log((torch.sigmoid(above) - torch.sigmoid(below)).clamp(min=1e-12))
        log_probs = torch.where(x[:, None] < -0.999, F.logsigmoid(above), inside)
        log_probs = torch.where(x[:, None] > 0.999, F.logsigmoid(-below), log_probs)
        mixed = torch.logsumexp(torch.log_softmax(logits, 1) + log_probs.sum(2), 1)
        return mixed.sum((1, 2))

    def parameters_of(self, out: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (batch, mixtures, ..), means and log-scales (batch, mixtures, channels, ..) given the pixel's own channels."""
        logits, rest = out.split([self.mixtures, out.shape[1] - self.mixtures], 1)
        parts = rest.unflatten(1, (self.mixtures, -1, self.channels))
        means, log_scales = parts[:, :, 0], parts[:, :, 1].clamp(min=-7.0)
        if self.channels == 3:  # green hangs on red, blue on both
            c = torch.tanh(parts[:, :, 2])
            r, g = x[:, None, 0], x[:, None, 1]
            green = means[:, :, 1] + c[:, :, 0] * r
            blue = means[:, :, 2] + c[:, :, 1] * r + c[:, :, 2] * g
            means = torch.stack([means[:, :, 0], green, blue], 2)
        return logits, means, log_scales

    def draw(self, out: Tensor) -> Tensor:
        """One pixel (batch, channels) from its mixture parameters (batch, parameters)."""
        logits, rest = out.split([self.mixtures, out.shape[1] - self.mixtures], 1)
        gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-5, 1 - 1e-5)))
        chosen = torch.argmax(logits + gumbel, 1)
        parts = rest.unflatten(1, (self.mixtures, -1, self.channels))
        parts = parts[torch.arange(len(out), device=out.device), chosen]
        u = torch.rand(len(out), self.channels, device=out.device).clamp(1e-5, 1 - 1e-5)
        x = parts[:, 0] + torch.exp(parts[:, 1].clamp(min=-7.0)) * (torch.log(u) - torch.log1p(-u))
        if self.channels == 1:
            return x.clamp(-1, 1)
        c = torch.tanh(parts[:, 2])
        red = x[:, 0].clamp(-1, 1)
        green = (x[:, 1] + c[:, 0] * red).clamp(-1, 1)
        blue = (x[:, 2] + c[:, 1] * red + c[:, 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], 1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n images, pixel by pixel, of real numbers."""
        x = torch.zeros(n, self.channels, self.side, self.side, device=self.out.bias.device)
        for i in range(self.side):
            for j in range(self.side):
                x[:, :, i, j] = self.draw(self(x)[:, :, i, j])
        return x

    @torch.no_grad()
    def sample_8bit(self, n: int) -> Tensor:
        """n images, pixel by pixel, each pixel rounded to one of 256 values."""
        x = torch.zeros(n, self.channels, self.side, self.side, device=self.out.bias.device)
        for i in range(self.side):
            for j in range(self.side):
                pixel = self.draw(self(x)[:, :, i, j])
                x[:, :, i, j] = torch.round((pixel + 1) * 127.5) / 127.5 - 1
        return x


def many(levels: int, resnets: int, layer) -> list[nn.ModuleList]:
    return [nn.ModuleList(layer() for _ in range(resnets)) for _ in range(levels)]
