"""The recurrent classifier of texts: an embedding, LSTM or GRU in one direction or both, a mean, dense classes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tokens(Protocol):
    """What is asked of a task: tokens below `num_tokens`, to be told apart into `num_classes`."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_classes(self) -> int: ...


class RecurrentClassifier(Network):
    """Tokens, embedded in `embedding` values, are read by a layer of `hidden` units of a `cell`.

    With `bidirectional`, a second one reads backwards. The mean of their outputs over all steps goes to the dense
    classes. `dropout` is that of the embedded tokens and of the mean. Sources: S. Hochreiter and J. Schmidhuber, Long
    Short-Term Memory, 1997; K. Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014.
    """

    use: str = "recurrent-classifier"
    cell: Literal["lstm", "gru"] = "lstm"
    embedding: PositiveInt = 64
    hidden: PositiveInt = 64
    bidirectional: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4

    def build(self, task: Tokens) -> nn.Module:  # type: ignore[override]
        """A module (N, T) int32 -> logits (N, classes); its layers are `embedding`, `recurrent`, `dense`."""
        return _classifier()(task.num_tokens, task.num_classes, self)


@cache
def _classifier() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self, num_tokens: int, num_classes: int, network: RecurrentClassifier) -> None:
            super().__init__()
            self.embedding = nn.Embedding(num_tokens, network.embedding)
            # PyTorch's own begins 20 times as wide: what is read of rare words would stay noise.
            nn.init.normal_(self.embedding.weight, std=0.05)
            layer = {"lstm": nn.LSTM, "gru": nn.GRU}[network.cell]
            self.recurrent = layer(
                network.embedding, network.hidden, batch_first=True, bidirectional=network.bidirectional
            )
            self.dropout = nn.Dropout(network.dropout)
            self.dense = nn.Linear(network.hidden * (2 if network.bidirectional else 1), num_classes)

        def forward(self, tokens: Tensor) -> Tensor:
            outputs, _ = self.recurrent(self.dropout(self.embedding(tokens)))
            logits: Tensor = self.dense(self.dropout(outputs.mean(1)))
            return logits

    return Classifier
