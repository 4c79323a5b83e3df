"""The encoder-decoder with attention: one LSTM reads a sentence both ways, another writes one, word by word."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pydantic import PositiveInt, model_validator

from edgedl.core import Graph, Network, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


class Sentences(Protocol):
    """What is asked of a task: numbers of words in and out, in sentences of one length."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def num_source_words(self) -> int: ...
    @property
    def num_target_words(self) -> int: ...


class Seq2Seq(Network):
    """Words, embedded in `embedding` values, are read by a bidirectional LSTM and written by one of `hidden` units.

    What is written attends to all that was read, by dot products. It is exported as two graphs: the encoder reads a
    whole sentence, the decoder writes one word. Sources: I. Sutskever et al., Sequence to Sequence Learning with Neural
    Networks, 2014; T. Luong et al., Effective Approaches to Attention-based Neural Machine Translation, 2015.
    """

    use: str = "seq2seq"
    embedding: PositiveInt = 64
    hidden: PositiveInt = 128

    @model_validator(mode="after")
    def _directions_share(self) -> Seq2Seq:
        if self.hidden % 2:
            raise ValueError(f"hidden = {self.hidden} cannot be shared by the two directions of the encoder")
        return self

    def build(self, task: Sentences) -> nn.Module:  # type: ignore[override]
        """A module (N, S), (N, T) int32 -> logits (N, T, target words), given the true word before each."""
        length = next(iter(task.inputs.values())).shape[0]
        return _whole()(task.num_source_words, task.num_target_words, length, self)


@cache
def _whole() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        """source (N, S) -> memory (N, S, H), and the state to begin with, h and c (N, H)."""

        def __init__(self, num_words: int, embedding: int, hidden: int) -> None:
            super().__init__()
            self.embedding = nn.Embedding(num_words, embedding)
            self.recurrent = nn.LSTM(embedding, hidden // 2, batch_first=True, bidirectional=True)

        def forward(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            memory, (h, c) = self.recurrent(self.embedding(source))
            return memory, torch.cat([h[0], h[1]], 1), torch.cat([c[0], c[1]], 1)

    class Decoder(nn.Module):
        """Words (N, T) before each, memory, h and c -> logits (N, T, words) and the next h and c."""

        def __init__(self, num_words: int, embedding: int, hidden: int) -> None:
            super().__init__()
            self.embedding = nn.Embedding(num_words, embedding)
            self.recurrent = nn.LSTM(embedding, hidden, batch_first=True)
            self.join = nn.Linear(2 * hidden, hidden)
            self.dense = nn.Linear(hidden, num_words)

        def forward(self, words: Tensor, memory: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            said, (h, c) = self.recurrent(self.embedding(words), (h[None], c[None]))
            weights = torch.softmax(torch.bmm(said, memory.transpose(1, 2)), -1)
            joined = torch.tanh(self.join(torch.cat([said, torch.bmm(weights, memory)], 2)))
            return self.dense(joined), h[0], c[0]

    class Whole(nn.Module):
        def __init__(self, num_source: int, num_target: int, length: int, network: Seq2Seq) -> None:
            super().__init__()
            self.length = length
            self.encoder = Encoder(num_source, network.embedding, network.hidden)
            self.decoder = Decoder(num_target, network.embedding, network.hidden)

        def forward(self, source: Tensor, before: Tensor) -> Tensor:
            logits: Tensor = self.decoder(before, *self.encoder(source))[0]
            return logits

        def graphs(self) -> Mapping[str, Graph]:
            width = self.decoder.recurrent.hidden_size
            state = {"h": TensorSpec((width,)), "c": TensorSpec((width,))}
            memory = {"memory": TensorSpec((self.length, width))}
            return {
                "encoder": Graph(self.encoder, {"source": TensorSpec((self.length,), "int32")}, ("memory", "h", "c")),
                "decoder": Graph(
                    self.decoder,
                    {"word": TensorSpec((1,), "int32"), **memory, **state},
                    ("logits", "next_h", "next_c"),
                ),
            }

    return Whole
