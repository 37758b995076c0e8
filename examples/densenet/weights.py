"""The networks of the example, ready to be called: the small one trained, the large ones with settled statistics."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from examples.densenet.data import photographs
from examples.densenet.model import DenseNet, cifar, imagenet

PATH = Path(__file__).parent / "weights" / "digits.safetensors"


def save(model: nn.Module) -> Path:
    """Writes the weights, real numbers rounded to float16; returns the path."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, PATH)
    return PATH


def trained() -> DenseNet:
    """The network for 32x32 images that examples.densenet.train trains on digits."""
    model = cifar()
    state = load_file(PATH)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()


def untrained(depth: int) -> DenseNet:
    """DenseNet-121 or -201 as it is initialised (there are no weights of it without a download).

    Its batch norms hold the statistics of photographs, so that activations are of the size that they have in a trained one.
    """
    torch.manual_seed(0)
    model = imagenet(depth)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        model.train()(photographs(4))
    return model.eval()
