"""The Transformer encoder as BERT has it: tokens with positions, blocks of attention, a mean, dense classes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tokens(Protocol):
    """What is asked of a task: `words` tokens below `num_tokens`, to be told apart into `num_classes`."""

    @property
    def words(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_classes(self) -> int: ...


class Transformer(Network):
    """`blocks` encoder blocks on tokens of `width` values, attention with `heads`, inside four times as wide.

    Each half of a block is added to what goes in, and then normed. `dropout` is that of the embedding, of what is
    added, and of the mean over all tokens, which goes to the dense classes. Tokens that fill up a text are seen like
    others. Source: J. Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019.
    """

    use: str = "transformer"
    width: PositiveInt = 64
    heads: PositiveInt = 4
    blocks: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3

    def build(self, task: Tokens) -> nn.Module:  # type: ignore[override]
        """A module (N, T) int32 -> logits (N, classes). Raises `UsageError` if heads do not divide the width."""
        if self.width % self.heads:
            raise UsageError(f"transformer: {self.heads} heads cannot share a width of {self.width} evenly")
        return _encoder()(task.words, task.num_tokens, task.num_classes, self)


@cache
def _encoder() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (
                layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            mixed = functional.scaled_dot_product_attention(query, key, value)
            joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
            return joined

    class Block(nn.Module):
        def __init__(self, network: Transformer) -> None:
            super().__init__()
            width = network.width
            self.attention = Attention(width, network.heads)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.dropout = nn.Dropout(network.dropout)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + self.dropout(self.attention(x)))
            inner = self.narrow(functional.gelu(self.wide(x)))
            normed: Tensor = self.norm2(x + self.dropout(inner))
            return normed

    class Encoder(nn.Module):
        def __init__(self, words: int, num_tokens: int, num_classes: int, network: Transformer) -> None:
            super().__init__()
            self.embedding = nn.Embedding(num_tokens, network.width)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.positions = nn.Parameter(0.02 * torch.randn(words, network.width))
            self.norm = nn.LayerNorm(network.width)
            self.dropout = nn.Dropout(network.dropout)
            self.blocks = nn.Sequential(*(Block(network) for _ in range(network.blocks)))
            self.dense = nn.Linear(network.width, num_classes)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.blocks(self.dropout(self.norm(self.embedding(tokens) + self.positions)))
            logits: Tensor = self.dense(self.dropout(x.mean(1)))
            return logits

    return Encoder
