"""Passages of text to tell apart: the documentation of installed libraries by subject, film reviews, or a CSV file."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from edgedl import files
from edgedl.classes import Classes
from edgedl.core import Batch, DataError, Session, Split, TensorSpec

Passages = list[tuple[list[str], int]]
"""Words and the number of the class."""
Corpus = dict[str, Passages]
"""The passages of "train", "validation" and "test"."""

SUBJECTS = {
    "statistics": ("scipy/stats",),
    "signals": ("scipy/signal", "scipy/ndimage"),
    "optimization": ("scipy/optimize",),
    "matrices": ("scipy/linalg", "scipy/sparse"),
    "graphs": ("networkx/algorithms",),
    "learning": tuple(f"sklearn/{part}" for part in ("cluster", "decomposition", "ensemble", "linear_model", "svm")),
    "calculus": ("scipy/interpolate", "scipy/integrate"),
    "networks": ("torch/nn", "torch/optim"),
}
"""Folders of packages whose documentation is about one subject; edgedl[train] brings them all."""
GIVEAWAYS = {"scipy", "numpy", "np", "sklearn", "scikit", "networkx", "nx", "torch", "pytorch", "nn"}
"""Names of libraries, which would tell the subject by themselves."""
PER_SUBJECT = {"test": 100, "validation": 60, "train": 2000}
PER_FILE = 200
"""At most so many passages from one file, evenly spread: subjects are wider than their longest file."""
PADDING, UNKNOWN = 0, 1


class Text(Classes):
    """Batches hold `tokens` (N, words) int32 and `label` (N,) int64; networks answer `logits` (N, classes).

    Without `folder` and `csv`: passages of `words` words from docstrings of SciPy, scikit-learn, NetworkX and PyTorch,
    of which eight subjects they are about; without code examples and names of libraries, no file in two splits.
    The text is that of the installed versions.

    `folder` is that of the Large Movie Review Dataset (A. Maas et al., Learning Word Vectors for Sentiment Analysis,
    2011): `train` and `test` with `neg` and `pos`, a text file a review. `csv` is a file with the columns `text` and
    `label`; a fifth of it tests. Of both, a tenth of what is left validates. Texts are cut to their first `words`
    words. The `vocabulary` commonest words of the training split have tokens from 2 on; 1 is any other word, 0 fills
    up in front.
    """

    use: str = "text"
    folder: str | None = None
    csv: str | None = None
    words: PositiveInt = 32
    vocabulary: Annotated[int, Field(ge=3)] = 4000

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"tokens": TensorSpec((self.words,), "int32")}

    @property
    def classes(self) -> tuple[str, ...]:
        return _corpus(self.folder, self.csv, self.words)[0]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_tokens(self) -> int:
        """One more than the largest token."""
        return self.vocabulary

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """F1 of each class, their mean."""
        import torch
        from torchmetrics.functional.classification import multiclass_f1_score

        pair = (torch.from_numpy(values) for values in (self.decisions(outputs), batch["label"]))
        return {"F1 (macro)": float(multiclass_f1_score(*pair, num_classes=self.num_classes, average="macro"))}

    def class_name(self, label: int) -> str:
        return self.classes[label]

    def shown(self, batch: Batch, index: int) -> str:
        """The passage as the network sees it, words that have no token of their own as dots."""
        words = _vocabulary(self.folder, self.csv, self.words, self.vocabulary)
        return " ".join(
            words[token - 2] if token > UNKNOWN else "…" for token in batch["tokens"][index] if token != PADDING
        )

    def arrays(self, split: Split) -> Batch:
        """`tokens` (N, words) int32 and `label` (N,) int64. Raises `DataError`."""
        return _encoded(self.folder, self.csv, self.words, self.vocabulary)[split]


def split_words(text: str) -> list[str]:
    """Lower-case words of letters; HTML's line breaks, digits and punctuation are left out."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.replace("<br />", " ").lower())


@lru_cache(maxsize=2)
def _vocabulary(folder: str | None, file: str | None, length: int, size: int) -> list[str]:
    """The words that have tokens, from 2 on."""
    counts = Counter(word for words, _ in _corpus(folder, file, length)[1]["train"] for word in words)
    return sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]


@lru_cache(maxsize=2)
def _encoded(folder: str | None, file: str | None, length: int, size: int) -> dict[Split, Batch]:
    _, corpus = _corpus(folder, file, length)
    number = {word: place for place, word in enumerate(_vocabulary(folder, file, length, size), start=2)}
    encoded: dict[Split, Batch] = {}
    seen: set[bytes] = set()
    splits: tuple[Split, ...] = ("test", "validation", "train")
    for split in splits:
        tokens = np.full((len(corpus[split]), length), PADDING, np.int32)
        for row, (words, _) in zip(tokens, corpus[split], strict=True):
            row[length - len(words) :] = [number.get(word, UNKNOWN) for word in words]
        labels = np.array([label for _, label in corpus[split]], np.int64)
        if folder is None and file is None:  # what is written of one function is often copied to another
            new = np.array([row.tobytes() not in seen for row in tokens])
            tokens, labels = tokens[new], labels[new]
            seen.update(row.tobytes() for row in tokens)
        encoded[split] = {"tokens": tokens, "label": labels}
    encoded["calibration"] = {name: values[:256] for name, values in encoded["train"].items()}
    return encoded


@lru_cache(maxsize=2)
def _corpus(folder: str | None, file: str | None, length: int) -> tuple[tuple[str, ...], Corpus]:
    """Names of the classes and the passages of each split, in random but always the same order."""
    if folder is not None and file is not None:
        raise DataError("text: folder and csv are both given; only one of them can be read")
    if folder is not None:
        classes: Sequence[str] = ("neg", "pos")
        train, test = (_reviews(Path(folder) / part, classes) for part in ("train", "test"))
    elif file is not None:
        classes, whole = _table(Path(file))
        whole = _shuffled(whole)
        test, train = whole[: len(whole) // 5], whole[len(whole) // 5 :]
    else:
        return tuple(SUBJECTS), _documentation(length)
    train = _shuffled(train)
    num_validation = len(train) // 10
    corpus = {"train": train[num_validation:], "validation": train[:num_validation], "test": _shuffled(test)}
    for split, passages in corpus.items():
        if not passages:
            raise DataError(f"text: the {split} split of {folder or file} is empty")
    return tuple(classes), {
        split: [(words[:length], label) for words, label in found] for split, found in corpus.items()
    }


def _documentation(length: int) -> Corpus:
    corpus: Corpus = {split: [] for split in PER_SUBJECT}
    for label, parts in enumerate(SUBJECTS.values()):
        files = [file for part in parts for file in _sources(part)]
        passages = (_passages(files[index], length) for index in np.random.default_rng(label).permutation(len(files)))
        for split, wanted in PER_SUBJECT.items():
            found: list[list[str]] = []
            while len(found) < wanted and (more := next(passages, None)) is not None:
                found += more
            corpus[split] += [(words, label) for words in found[:wanted]]
    return {split: _shuffled(passages) for split, passages in corpus.items()}


def _sources(part: str) -> list[Path]:
    package, _, folder = part.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise DataError(f"task text reads the documentation of {package}: pip install 'edgedl[train]'")
    root = Path(found.origin).parent / folder
    return sorted(file for file in root.rglob("*.py") if "tests" not in file.relative_to(root).parts)


def _passages(file: Path, length: int) -> list[list[str]]:
    """Runs of `length` words of a file's docstrings, the last of each at least half as long."""
    found = []
    for docstring in re.findall(r'"""(.*?)"""', files.read_text(file), re.DOTALL):
        prose = "\n".join(line for line in docstring.splitlines() if not line.lstrip().startswith((">>>", "...")))
        words = [word for word in re.findall("[a-z]+", prose.lower()) if word not in GIVEAWAYS]
        found += [words[start : start + length] for start in range(0, len(words) - length // 2 + 1, length)]
    return found[:: max(1, -(-len(found) // PER_FILE))]


def _reviews(folder: Path, classes: Sequence[str]) -> Passages:
    found: Passages = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise DataError(
                f"{folder / name}: no such folder; the folder of aclImdb has train/neg, train/pos, test/..."
            )
        found += [(split_words(files.read_text(file)), label) for file in sorted((folder / name).glob("*.txt"))]
    return found


def _table(file: Path) -> tuple[list[str], Passages]:
    rows = list(_rows(file))
    classes = sorted({label for _, label in rows})
    if len(classes) < 2:
        raise DataError(f"{file}: {len(rows)} records with {len(classes)} different labels; two are needed at least")
    return classes, [(words, classes.index(label)) for words, label in rows]


def _rows(file: Path) -> Iterator[tuple[list[str], str]]:
    reader = csv.DictReader(io.StringIO(files.read_text(file), newline=""), strict=True)
    if lacking := {"text", "label"} - set(reader.fieldnames or ()):
        raise DataError(
            f"{file}: no column {' or '.join(sorted(lacking))}; it has {', '.join(reader.fieldnames or ())}"
        )
    record = 0
    try:
        for record, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise DataError(f"{file}: record {record} has more or fewer values than the {len(row)} columns")
            if not row["label"].strip() or row["label"].strip().lower() == "nan":
                raise DataError(f"{file}: record {record} has label {row['label']!r}, which is none")
            yield split_words(row["text"]), row["label"].strip()
    except csv.Error as error:
        raise DataError(f"{file}: what follows record {record} is no CSV: {error}") from error


def _shuffled(passages: Passages) -> Passages:
    return [passages[index] for index in np.random.default_rng(0).permutation(len(passages))]
