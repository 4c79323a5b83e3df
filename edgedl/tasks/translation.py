"""Sentences to translate: numbers, quantities and dates in words, English to French, or pairs from a file with tabs."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from edgedl import files
from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import splits
from edgedl.synthetic.number_words import PAIRS, Pair

if TYPE_CHECKING:
    import torch

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("", "", "", "<unknown>")
NUM_PAIRS, MAX_SCORED, NUM_EXHIBITS = 16_000, 600, 6


class Translation(Task):
    """Batches hold `source` (N, length) and, for training, `before` and `target` (N, length), all int32.

    Networks answer `logits` (N, length, target words), given the true words `before` each. They are an encoder, of
    `source` -> `memory`, `h`, `c`, and a decoder, of `word`, `memory`, `h`, `c` -> `logits`, `next_h`, `next_c`.
    Decoding is greedy or, with `beam` above 1, keeps as many of the likeliest beginnings at each step.

    Without `file`: 16,000 different numbers below a million, quantities and dates in words, English to French, of which
    a fifth tests. French as it is written in France before the reform of 1990: "soixante et onze", "quatre-vingts", but
    "quatre-vingt mille"; years are ordinals, and their hundreds and twenties have no plural. `file` is one of text, a
    pair a line with a tab between (what follows a second tab is left out), as of the Tatoeba project; pairs of more
    than `length` - 1 words are left out, words beyond the `vocabulary` commonest are unknown.
    Score: BLEU of the decoded sentences (K. Papineni et al., 2002), by sacrebleu (M. Post, 2018).
    """

    use: str = "translation"
    file: str | None = None
    length: Annotated[int, Field(ge=2)] = 16
    vocabulary: PositiveInt = 4000
    beam: PositiveInt = 1
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="BLEU", unit="points", higher_is_better=True)
    graphs: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec((self.length,), "int32") for name in ("source", "before")}

    @property
    def num_source_words(self) -> int:
        return len(_vocabularies(self.file, self.length, self.vocabulary)[0])

    @property
    def num_target_words(self) -> int:
        return len(_vocabularies(self.file, self.length, self.vocabulary)[1])

    def arrays(self, split: Split) -> Batch:
        """`source`, filled up in front, `before` and `target` (N, length) int32. Raises `DataError`."""
        return _encoded(self.file, self.length, self.vocabulary, split)

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of each word, up to the end of the sentence."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"].transpose(1, 2), batch["target"].long(), ignore_index=PADDING)

    def imitate(
        self,
        outputs: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        temperature: float,
        batch: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Divergence of the softened probabilities of each word, up to the end of the sentence."""
        from edgedl.training.imitation import divergence

        counts = None if batch is None else batch["target"] != PADDING
        return divergence(outputs["logits"], taught["logits"], temperature, counts)

    def retold(self, said: Batch, batch: Batch) -> Batch:
        return {"source": batch["source"], **_labels(said["decoded"])}

    def predict(self, session: Session, batch: Batch) -> Batch:
        """`decoded` (N, length) int32: the words up to the end, then zeros."""
        state = session.graphs["encoder"].run({"source": batch["source"]})
        memory, h, c = (state[name] for name in ("memory", "h", "c"))
        num, width = len(memory), self.beam
        rows = np.arange(num)[:, None]
        # One beginning is alive at first: all others would be the same.
        scores = np.where(np.arange(width) == 0, 0.0, -np.inf) * np.ones((num, 1))
        decoded = np.full((num, width, self.length), PADDING, np.int32)
        words = np.full((num, width), BEGIN, np.int32)
        h, c = (np.repeat(values[:, None], width, axis=1) for values in (h, c))
        ended = np.zeros((num, width), bool)
        for step in range(self.length):
            likelihoods = []
            for hypothesis in range(width):
                given = {"word": words[:, hypothesis, None], "memory": memory}
                found = session.graphs["decoder"].run(given | {"h": h[:, hypothesis], "c": c[:, hypothesis]})
                h[:, hypothesis], c[:, hypothesis] = found["next_h"], found["next_c"]
                likelihoods.append(_log_softmax(found["logits"][:, 0]))
            totals = np.stack(likelihoods, axis=1)
            num_words = totals.shape[2]
            totals[ended] = np.where(np.arange(num_words) == PADDING, 0.0, -np.inf)
            best = np.argsort(-(scores[:, :, None] + totals).reshape(num, -1), axis=1, kind="stable")[:, :width]
            parents, words = best // num_words, (best % num_words).astype(np.int32)
            scores = scores[rows, parents] + totals[rows, parents, words]
            h, c, decoded = h[rows, parents], c[rows, parents], decoded[rows, parents]
            decoded[:, :, step] = np.where(words == END, PADDING, words)
            ended = ended[rows, parents] | (words == END) | (words == PADDING)
            if ended[:, 0].all() if width == 1 else ended.all():
                break
        return {"decoded": decoded[:, 0]}

    def score(self, outputs: Batch, batch: Batch) -> float:
        from sacrebleu.metrics import BLEU

        truths = [self._text(row, "(unknown)") for row in batch["target"]]  # which no network can say
        return float(BLEU().corpus_score([self._text(row) for row in outputs["decoded"]], [truths]).score)

    @property
    def baseline(self) -> Baseline:
        """Of the translation of the training sentence whose words are most alike (the cosine between sets of them)."""
        train = {name: values[:NUM_PAIRS] for name, values in self.arrays("train").items()}
        batch = self.arrays("test")
        known = np.zeros((self.num_source_words, len(train["source"])), np.uint8)
        for place, words in enumerate(train["source"]):
            known[words, place] = 1
        known[: UNKNOWN + 1] = 0
        lengths = np.sqrt(np.maximum(known.sum(axis=0), 1))
        nearest = [int((known[np.unique(words)].sum(axis=0) / lengths).argmax()) for words in batch["source"]]
        decoded = _without_end(train["target"][nearest])
        return Baseline(self.score({"decoded": decoded}, batch), "translating the most similar training sentence")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        return {"exact match": float((outputs["decoded"] == _without_end(batch["target"])).all(axis=1).mean())}

    def rates(self, latency_ms: Mapping[str, float]) -> Mapping[str, float]:
        """Words a second of the decoder, one call after the other; of a beam that is as many calls a word."""
        return {"words/s": 1000 / latency_ms["decoder"] / self.beam}

    def decisions(self, outputs: Batch) -> np.ndarray:
        return outputs["decoded"]

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The first sentences, those first that some variant gets wrong."""
        truth = _without_end(batch["target"])
        wrong = [(found["decoded"] != truth).any(axis=1) for found in answers.values()]
        order = np.argsort(~np.any(wrong, axis=0), kind="stable")[:NUM_EXHIBITS]
        return [
            Exhibit(
                "translated rightly" if not any(row[index] for row in wrong) else "translated wrongly",
                {
                    "input": self._text(batch["source"][index], source=True),
                    "truth": self._text(truth[index]),
                    **{name: self._text(found["decoded"][index]) for name, found in answers.items()},
                },
            )
            for index in order
        ]

    def _text(self, numbers: np.ndarray, unknown: str = SPECIAL[UNKNOWN], source: bool = False) -> str:
        """A sentence from its words' numbers, with spaces between all but after hyphens and apostrophes."""
        words = _vocabularies(self.file, self.length, self.vocabulary)[0 if source else 1]
        said = (unknown if number == UNKNOWN else words[number] for number in numbers if number > END or number < 0)
        return re.sub(r" (?=-\w)|(?<=['’]) |(?<=\d) (?=\d)", "", " ".join(said))


def split_words(text: str) -> list[str]:
    """Lower-case words, with a hyphen before or an apostrophe behind, single digits and single signs."""
    return re.findall(r"-?[^\W\d_]+['’]?|\d|[^\w\s]", text.lower())


@lru_cache(maxsize=2)
def _pairs(file: str | None, length: int) -> list[tuple[list[str], list[str]]]:
    """Words of all different pairs that are short enough, those of a file in its order."""
    found = _drawn() if file is None else _read(Path(file))
    pairs = [(split_words(source), split_words(target)) for source, target in dict.fromkeys(found)]
    short = [pair for pair in pairs if max(map(len, pair)) < length]
    if file is not None and not short:
        raise DataError(f"{file}: none of {len(pairs)} pairs has less than {length} words on either side")
    return short


def _drawn() -> Iterator[Pair]:
    draw, seen = random.Random(0), set[str]()
    while len(seen) < NUM_PAIRS:
        pair = draw.choice(PAIRS)(draw)
        if pair[0] not in seen:
            seen.add(pair[0])
            yield pair


def _read(file: Path) -> Iterator[Pair]:
    for number, line in enumerate(files.read_text(file).splitlines(), start=1):
        source, tab, rest = line.partition("\t")
        target = rest.partition("\t")[0]
        if not tab:
            raise DataError(f"{file}:{number}: {line!r} is no pair: there is no tab in it")
        if not split_words(source) or not split_words(target):
            raise DataError(
                f"{file}:{number}: {line!r} has no word {'after' if split_words(source) else 'before'} the tab"
            )
        yield source, target


@lru_cache(maxsize=2)
def _vocabularies(file: str | None, length: int, size: int) -> tuple[list[str], list[str]]:
    """Of source and target, the commonest words of the training split behind the special ones."""
    pairs = _pairs(file, length)
    trained = [pairs[index] for index in splits.chosen(len(pairs), "train", file or "translation")]
    found = []
    for side in (0, 1):
        counts = Counter(word for pair in trained for word in pair[side])
        found.append([*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))[:size]])
    return found[0], found[1]


@lru_cache(maxsize=8)
def _encoded(file: str | None, length: int, size: int, split: Split) -> Batch:
    pairs = _pairs(file, length)
    numbers = [{word: place for place, word in enumerate(words)} for words in _vocabularies(file, length, size)]
    chosen = splits.chosen(len(pairs), split, file or "translation")
    if file is None and split != "train":  # enough of them to tell networks apart
        chosen = chosen[:MAX_SCORED]
    source, decoded = (np.full((len(chosen), length), PADDING, np.int32) for _ in range(2))
    for row, index in enumerate(chosen):
        read, said = (
            [known.get(word, UNKNOWN) for word in words] for known, words in zip(numbers, pairs[index], strict=True)
        )
        source[row, length - len(read) :] = read
        decoded[row, : len(said)] = said
    return {"source": source, **_labels(decoded)}


def _labels(decoded: np.ndarray) -> Batch:
    """`before` and `target` of sentences (N, length); one that fills all places has no end."""
    before = np.concatenate([np.full((len(decoded), 1), BEGIN, np.int32), decoded[:, :-1]], axis=1)
    lengths = (decoded != PADDING).sum(axis=1, keepdims=True)
    return {"before": before, "target": np.where(np.arange(decoded.shape[1]) == lengths, END, decoded)}


def _without_end(target: np.ndarray) -> np.ndarray:
    return np.where(target == END, PADDING, target)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)
