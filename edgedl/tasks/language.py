"""Text to go on with, character by character: the source of Python's standard library, or text files."""

from __future__ import annotations

import sysconfig
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, model_validator

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.files import read_text

if TYPE_CHECKING:
    import torch

UNKNOWN = 0
"""The number of a character that is not in the alphabet, and the sign that is shown for it."""
SIGN = "\N{REPLACEMENT CHARACTER}"
NUM_LETTERS = 100
MAX_TRAINED, MAX_SCORED, NUM_EXHIBITS = 2_500_000, 128, 4
"""Characters of the standard library to learn from, pieces of any text to validate and test on, continuations shown."""


class Language(Task):
    """Batches hold `tokens`, pieces of text, and `target`, the next character of each, (N, context) int32.

    Networks answer `logits` (N, context, letters). They are a prefill, which reads a prompt of `prompt` characters
    (`tokens` -> `logits`, `keys`, `values`), and a step, which reads one more (`token`, `position`, `keys`, `values` ->
    `logits`, `key`, `value`); whoever decodes puts `key` and `value` into the caches at `position`. The score is the
    perplexity of one character, over prompts and, step by step, over the rest of each piece. Of each prompt there is a
    continuation, too, drawn at a `temperature` by numbers that depend on the prompt alone.

    Without `folder`: the source of the standard library of the Python that runs, its top-level modules in an order
    drawn at random, of which 2.5 million characters are learned. `folder` is one of text files, all of those below it
    whose names match `pattern`. The last tenth of the text tests, the tenth before it validates. Characters beyond the
    99 commonest that were learned are one more, unknown.
    """

    use: str = "language"
    folder: str | None = None
    pattern: str = "*.txt"
    context: Annotated[int, Field(ge=2)] = 96
    """How many tokens the network sees."""
    prompt: Annotated[int, Field(ge=1)] = 48
    temperature: NonNegativeFloat = 0.5
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="perplexity", unit="", higher_is_better=False)
    graphs: ClassVar[tuple[str, ...]] = ("prefill", "step")

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"tokens": TensorSpec((self.context,), "int32")}

    @property
    def num_letters(self) -> int:
        """How many characters are told apart, the unknown one among them."""
        return len(_letters(self.folder, self.pattern))

    @model_validator(mode="after")
    def _leaves_something(self) -> Language:
        if self.prompt >= self.context:
            raise ValueError(f"prompt = {self.prompt} leaves nothing of context = {self.context} to decode")
        return self

    def arrays(self, split: Split) -> Batch:
        """`tokens` and `target` (N, context) int32. Raises `DataError`."""
        return _pieces(self.folder, self.pattern, self.context, split)

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of each next character."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"].transpose(1, 2), batch["target"].long())

    def imitate(
        self,
        outputs: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        temperature: float,
        batch: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Divergence of the softened probabilities of each next character."""
        from edgedl.training.imitation import divergence

        return divergence(outputs["logits"], taught["logits"], temperature)

    def predict(self, session: Session, batch: Batch) -> Batch:
        """What is said of each next character of the text, (N, context): `surprise`, minus the logarithm of its
        likelihood, and `likeliest`, int32; and a `continuation` of the prompt (N, context - prompt) int32."""
        tokens, prompt = batch["tokens"], self.prompt
        read = session.graphs["prefill"].run({"tokens": np.ascontiguousarray(tokens[:, :prompt])})
        drawn = np.stack(
            [
                np.random.default_rng(zlib.crc32(row[:prompt].tobytes())).gumbel(
                    size=(self.context - prompt, self.num_letters)
                )
                for row in tokens
            ]
        )

        def chosen(logits: np.ndarray, place: int) -> np.ndarray:
            return np.asarray((logits + self.temperature * drawn[:, place]).argmax(axis=1), np.int32)

        on = _Cached(session, read, self.context)
        found = [read["logits"], *(on.step(tokens[:, place]) for place in range(prompt, self.context))]
        logits = np.concatenate(found, axis=1)
        again = _Cached(session, read, self.context)
        said = [chosen(read["logits"][:, -1], 0)]
        for place in range(1, self.context - prompt):
            said.append(chosen(again.step(said[-1])[:, 0], place))
        return {
            "surprise": _surprise(logits, batch["target"]),
            "likeliest": logits.argmax(axis=2).astype(np.int32),
            "continuation": np.stack(said, axis=1),
        }

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float(np.exp(outputs["surprise"].mean()))

    @property
    def baseline(self) -> Baseline:
        counts = np.bincount(self.arrays("train")["target"].ravel(), minlength=self.num_letters) + 1
        surprise = -np.log(counts / counts.sum())[self.arrays("test")["target"]]
        return Baseline(self.score({"surprise": surprise}, {}), "guessing by how common each character is")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        return {"next character right": float((outputs["likeliest"] == batch["target"]).mean())}

    def rates(self, latency_ms: Mapping[str, float]) -> Mapping[str, float]:
        """Tokens are characters: those of a prompt, and those that are decoded one by one."""
        return {
            "prompt tokens/s": 1000 * self.prompt / latency_ms["prefill"],
            "tokens/s": 1000 / latency_ms["step"],
        }

    def decisions(self, outputs: Batch) -> np.ndarray:
        return outputs["likeliest"]

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """How the first prompts go on."""
        shown = []
        for index, row in enumerate(batch["tokens"][:NUM_EXHIBITS]):
            said = {name: self.text(found["continuation"][index]) for name, found in answers.items()}
            panels = {"input": self.text(row[: self.prompt]), "truth": self.text(row[self.prompt :]), **said}
            shown.append(Exhibit(f"continuation at temperature {self.temperature:g}", panels))
        return shown

    def text(self, tokens: np.ndarray) -> str:
        """Characters from their numbers."""
        letters = _letters(self.folder, self.pattern)
        return "".join(letters[token] for token in tokens)


class _Cached:
    """Decoding step by step, with the keys and values of all that was read."""

    def __init__(self, session: Session, read: Batch, context: int) -> None:
        self.session, self.place = session, read["logits"].shape[1]
        room = [(0, 0), (0, 0), (0, context - self.place), (0, 0)]
        self.caches = {name: np.pad(read[name], room) for name in ("keys", "values")}

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """The logits (N, 1, letters) of what follows tokens (N,)."""
        place = np.full((len(tokens), 1), self.place, np.int32)
        found = self.session.graphs["step"].run({"token": tokens[:, None], "position": place, **self.caches})
        self.caches["keys"][:, :, self.place], self.caches["values"][:, :, self.place] = found["key"], found["value"]
        self.place += 1
        return found["logits"]


def _surprise(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=2, keepdims=True)
    of_target = np.take_along_axis(shifted, target[:, :, None], axis=2)[:, :, 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=2)) - of_target)


@lru_cache(maxsize=2)
def _text(folder: str | None, pattern: str) -> str:
    if folder is None:
        root, pattern = Path(sysconfig.get_paths()["stdlib"]), "*.py"
        files = sorted(root.glob(pattern))
        files = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
    else:
        root = Path(folder)
        files = sorted(root.rglob(pattern))
    if not files:
        raise DataError(f"{root}: no {pattern} in it" if root.is_dir() else f"{root}: no such folder")
    return "\n".join(read_text(file).replace("\r\n", "\n") for file in files)


def _part(folder: str | None, pattern: str, split: Split) -> str:
    text = _text(folder, pattern)
    first, second = (len(text) - count * (len(text) // 10) for count in (2, 1))
    if split in ("test", "validation"):
        return text[second:] if split == "test" else text[first:second]
    return text[:first][: MAX_TRAINED if folder is None else None]


@lru_cache(maxsize=2)
def _letters(folder: str | None, pattern: str) -> list[str]:
    counts = Counter(_part(folder, pattern, "train"))
    return [SIGN, *sorted(counts, key=lambda letter: (-counts[letter], letter))[: NUM_LETTERS - 1]]


@lru_cache(maxsize=8)
def _pieces(folder: str | None, pattern: str, length: int, split: Split) -> Batch:
    numbers = {letter: number for number, letter in enumerate(_letters(folder, pattern))}
    text = _part(folder, pattern, split)
    tokens = np.array([numbers.get(letter, UNKNOWN) for letter in text], np.int32)
    num = (len(tokens) - 1) // length
    if num < 1:
        source = folder or "the standard library"
        raise DataError(f"{source}: {len(text)} characters are too few for the {split} split: it takes {length + 1}")
    chosen = np.arange(num)
    if split != "train":  # evenly spread
        chosen = np.unique(np.linspace(0, num - 1, MAX_SCORED).astype(int))
    starts = length * chosen[:, None] + np.arange(length)
    return {"tokens": tokens[starts], "target": tokens[starts + 1]}
