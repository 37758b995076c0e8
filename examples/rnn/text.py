"""A real text that every Python brings along: the language reference in `pydoc_data`, about 460 kB."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor


class Text:
    """The text as numbers, split into a part for training and a part held out."""

    def __init__(self) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        self.alphabet = sorted(set(text))
        number = {character: i for i, character in enumerate(self.alphabet)}
        data = torch.tensor([number[character] for character in text])
        held_out = len(data) // 10
        self.train, self.held_out = data[:-held_out], data[-held_out:]

    @property
    def blank(self) -> int:
        """The number that hides a character in the fill-in task."""
        return len(self.alphabet)

    def batch(self, size: int, length: int, fill_in: bool) -> tuple[Tensor, Tensor]:
        """Random pieces of the training part: what the model reads, and what it should say."""
        starts = torch.randint(len(self.train) - length - 1, (size, 1))
        pieces = self.train[starts + torch.arange(length + 1)]
        if not fill_in:
            return pieces[:, :-1], pieces[:, 1:]
        hidden = torch.rand(size, length) < 0.15
        target = pieces[:, :-1]
        return target.masked_fill(hidden, self.blank), target.masked_fill(~hidden, -100)
