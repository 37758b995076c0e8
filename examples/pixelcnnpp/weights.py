"""The trained networks that come with the example, float16 in safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from examples.pixelcnnpp.model import PixelCNNpp

FOLDER = Path(__file__).parent / "weights"
KINDS = {"digits": {"channels": 1, "side": 28}, "patches": {"channels": 3, "side": 32}}


def untrained(kind: str) -> PixelCNNpp:
    return PixelCNNpp(**KINDS[kind])


def save(model: nn.Module, kind: str) -> Path:
    """Writes the weights, rounded to float16; returns the path."""
    path = FOLDER / f"{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)
    return path


def trained(kind: str) -> PixelCNNpp:
    """The network trained on "digits" (28x28x1) or "patches" (32x32x3), for sampling."""
    model = untrained(kind)
    state = load_file(FOLDER / f"{kind}.safetensors")
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()
