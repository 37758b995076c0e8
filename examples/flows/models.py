"""A MAF of zuko's and one of normflows', 64 dimensions and 3 transforms each, trained on scikit-learn's 8x8 digits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import normflows
import torch
import zuko
from torch import Tensor, nn

from examples.bar import bar
from examples.made.train import digits

OUT = Path(__file__).parent / "out"
PIXELS, TRANSFORMS = 64, 3


def dequantised(grey: Tensor) -> Tensor:
    """Grey values as real numbers around 0, uniform within a step of the scans, which have 17 grey values."""
    return (grey + 15 * torch.rand_like(grey)) / 64 - 2


def zuko_maf(small: bool) -> zuko.flows.MAF:
    width = 32 if small else 256
    return zuko.flows.MAF(PIXELS, transforms=TRANSFORMS, hidden_features=(width, width))


def normflows_maf(small: bool) -> normflows.NormalizingFlow:
    """From images to noise in its quick direction, `forward`; noise to images is its `inverse`."""
    layers: list[nn.Module] = []
    for _ in range(TRANSFORMS):
        layers += [normflows.flows.MaskedAffineAutoregressive(PIXELS, 32 if small else 256, num_blocks=1)]
        layers += [normflows.flows.Permute(PIXELS, mode="swap")]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(PIXELS, trainable=False), layers)


def nats_of(flow: nn.Module) -> Callable[[Tensor], Tensor]:
    """Mean negative log density of rows."""
    if not isinstance(flow, normflows.NormalizingFlow):
        return lambda x: -flow().log_prob(x).mean()

    def nats(x: Tensor) -> Tensor:
        noise, log_det = flow.forward_and_log_det(x)
        return -(flow.q0.log_prob(noise) + log_det).mean()

    return nats


@torch.enable_grad()
def train(flow: nn.Module, seconds: float) -> float:
    """Train for so many seconds; returns the nats of images that were held out."""
    seen, held_out = digits(8)
    nats = nats_of(flow)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=0.01)
    start = time.perf_counter()
    with bar(f"training {type(flow).__name__}", seconds) as move:
        while (spent := time.perf_counter() - start) < seconds:
            move(spent)
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - spent / seconds)
            for batch in torch.randperm(len(seen)).split(100):
                optimizer.zero_grad()
                nats(dequantised(seen[batch])).backward()
                nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
                optimizer.step()
    with torch.no_grad():
        return nats(dequantised(held_out)).item()


def trained(package: str, small: bool = False, folder: Path = OUT) -> nn.Module:
    """A trained flow of "zuko" or "normflows"; the weights are kept in `folder` and used again."""
    torch.manual_seed(0)
    flow = (zuko_maf if package == "zuko" else normflows_maf)(small).to(torch.get_default_device())
    path = folder / f"{package}{'-small' if small else ''}.pt"
    if path.exists():
        flow.load_state_dict(torch.load(path, weights_only=True, map_location=torch.get_default_device()))
    else:
        held_out = train(flow, 3.0 if small else 40.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(flow.state_dict(), path)
        print(f"{package}: {held_out:.1f} nats held out")
    return flow.eval()
