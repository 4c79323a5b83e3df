"""The small causal language model: a Transformer that sees what was before, exported to decode with its caches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field, PositiveInt, model_validator

from edgedl.core import Graph, Network, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

UNSEEN = -16.0
"""What is added to the score of a place that is not read yet: e^-16 is a ten-millionth."""


class Letters(Protocol):
    """What is asked of a task: how long its pieces of text are, and their prompts, and how many letters there are."""

    @property
    def context(self) -> int: ...
    @property
    def prompt(self) -> int: ...
    @property
    def num_letters(self) -> int: ...


class GPT(Network):
    """Letters, embedded in `width` values with their positions, go through `layers` blocks of causal attention with
    `heads` and two dense layers with GELU, four times as wide between, each with a layer norm before.

    It is exported as two graphs. The prefill reads a whole prompt and returns the keys and values of all its letters.
    The step reads one letter, and sees the keys and values of all before it, which whoever decodes keeps: so it returns
    those of one letter only. Sources: A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """

    use: str = "gpt"
    layers: PositiveInt = 2
    width: PositiveInt = 96
    heads: PositiveInt = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of values that training leaves out."""

    @model_validator(mode="after")
    def _heads_share(self) -> GPT:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} cannot be shared by heads = {self.heads}")
        return self

    def build(self, task: Letters) -> nn.Module:  # type: ignore[override]
        """A module (N, context) int32 -> logits (N, context, letters)."""
        return _whole()(task.num_letters, task.context, task.prompt, self)


@cache
def _whole() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """x (N, T, C) with the keys and values (N, P, C) of what was before -> x and its own keys and values."""

        def __init__(self, network: GPT) -> None:
            super().__init__()
            width = network.width
            self.heads = network.heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.out = nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.dropout = nn.Dropout(network.dropout)

        def forward(self, x: Tensor, mask: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, ...]:
            seen = self.norm1(x)
            key, value = self.key(seen), self.value(seen)
            all_keys = key if keys is None else torch.cat([keys, key], 1)
            all_values = value if values is None else torch.cat([values, value], 1)
            query, all_keys, all_values = map(self._heads, (self.query(seen), all_keys, all_values))
            attended = functional.scaled_dot_product_attention(query, all_keys, all_values, attn_mask=mask)
            x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
            x = x + self.dropout(self.down(functional.gelu(self.up(self.norm2(x)))))
            return x, key, value

        def _heads(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    class Whole(nn.Module):
        unseen: Tensor

        def __init__(self, num_letters: int, context: int, prompt: int, network: GPT) -> None:
            super().__init__()
            self.prompt, self.context, self.width = prompt, context, network.width
            self.letter = nn.Embedding(num_letters, network.width)
            self.position = nn.Embedding(context, network.width)
            self.blocks = nn.ModuleList(Block(network) for _ in range(network.layers))
            self.norm = nn.LayerNorm(network.width)
            self.dense = nn.Linear(network.width, num_letters)
            for table in (self.letter, self.position):
                nn.init.normal_(table.weight, std=0.1)
            # For each position, whether it may see the others: those before it, in the cache, and itself, behind that.
            unseen = torch.ones(context, context).triu() * UNSEEN
            self.register_buffer("unseen", torch.cat([unseen, torch.zeros(context, 1)], 1), persistent=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.read(tokens)[0]

        def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """tokens (N, T) from the start of the context -> logits (N, T, letters), keys and values (N, L, T, C)."""
            length = tokens.shape[1]
            x = self.letter(tokens) + self.position.weight[:length]
            causal = torch.full((length, length), UNSEEN).triu(1)
            return self._through(x, causal, None, None)

        def step(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            """token and position (N, 1), caches (N, L, context, C) -> logits (N, 1, letters), key, value (N, L, C)."""
            x = self.letter(token) + self.position(position)
            mask = functional.embedding(position, self.unseen)[:, None]
            logits, key, value = self._through(x, mask, keys, values)
            return logits, key[:, :, 0], value[:, :, 0]

        def _through(
            self, x: Tensor, mask: Tensor, keys: Tensor | None, values: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor]:
            found = []
            for index, block in enumerate(self.blocks):
                before = [None if cached is None else cached[:, index] for cached in (keys, values)]
                x, *own = block(x, mask, *before)
                found.append(own)
            key, value = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
            return self.dense(self.norm(x)), key, value

        def graphs(self) -> Mapping[str, Graph]:
            cache = TensorSpec((len(self.blocks), self.context, self.width))
            one = TensorSpec((1,), "int32")
            return {
                "prefill": Graph(
                    Method(self, "read"), {"tokens": TensorSpec((self.prompt,), "int32")}, ("logits", "keys", "values")
                ),
                "step": Graph(
                    Method(self, "step"),
                    {"token": one, "position": one, "keys": cache, "values": cache},
                    ("logits", "key", "value"),
                ),
            }

    class Method(nn.Module):
        """Calls a method of another module, of which it shares the parameters."""

        def __init__(self, net: nn.Module, name: str) -> None:
            super().__init__()
            self.net, self.name = net, name

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            answers: tuple[Tensor, ...] = getattr(self.net, self.name)(*inputs)
            return answers

    return Whole
