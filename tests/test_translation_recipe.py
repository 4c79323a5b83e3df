"""Translation: the recipe in a tiny form from end to end, the rules of numbers and dates, decoding, and the loader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl import pipeline, plugins, recipe
from edgedl.core import Bench, DataError, Limits
from edgedl.steps.quantize import Quantize
from edgedl.synthetic import number_words
from edgedl.synthetic.number_words import in_english, in_french
from edgedl.tasks import translation
from edgedl.tasks.translation import BEGIN, END, PADDING, UNKNOWN, Translation, split_words
from edgedl.torch_session import TorchSession


def tiny(name: str, task, root: Path, targets: tuple[str, ...], epochs: int, **network):
    """The report of a shipped recipe, its parts made small: no time is judged, and no score."""
    shipped = recipe.load(name)
    train, quantize = shipped.steps
    static = {"calibrator": "min-max", "corrections": ()} if "ptq" in quantize.methods else {}
    small = shipped.model_copy(
        update={
            "task": task,
            "model": shipped.model.model_copy(update=network),
            "steps": (
                train.model_copy(update={"epochs": epochs, "batch_size": 16}),
                Quantize.model_validate({"precision": "int8", "method": quantize.method, **static}),
            ),
            "targets": tuple(target for target in shipped.targets if target.use in targets),
            "limits": Limits(score_drop=1000, slower="allow", unlearned="allow"),
            "bench": Bench(min_seconds=0, rounds=2),
        }
    )
    run = pipeline.compress(small, recipe.find(name).read_text(encoding="utf-8"), root)
    return json.loads((run.folder / "report.json").read_text(encoding="utf-8"))


def check(report, graphs: tuple[str, ...], rate: str) -> None:
    for row in report["rows"]:
        assert row["status"] == ("built" if row["target"] == "tensorrt-rtx" else "ok"), row["reason"]
        assert tuple(row["graphs"]) == graphs
        if row["status"] == "ok":
            assert row["figures"][rate] > 0
    for entry in report["ladder"]:
        assert entry["agreement"]["same_decision"] > 0.98, entry
        for found in entry["graphs"].values():
            noise = found["quantization"]["sqnr_db"] if found["quantization"] else 85
            assert found["agreement"]["sqnr_db"] > noise + 10, entry


def pairs(file: Path, lines: list[str]) -> str:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def sentences(file: Path, num: int = 60) -> str:
    return pairs(file, [f"Go {in_english(number)}!\tVa {in_french(number)}\u202f!\tCC-BY" for number in range(num)])


def test_a_translator_of_a_file_comes_out_as_two_files_that_decode_alike(tmp_path):
    task = Translation(file=sentences(tmp_path / "fra.txt", 30), length=5)
    report = tiny("seq2seq-int8", task, tmp_path, ("tflite", "tensorrt-rtx"), 10, embedding=8, hidden=16)
    check(report, ("encoder", "decoder"), "words/s")


@pytest.mark.parametrize(
    ("number", "english", "french"),
    [
        (0, "zero", "zéro"),
        (17, "seventeen", "dix-sept"),
        (21, "twenty-one", "vingt et un"),
        (61, "sixty-one", "soixante et un"),
        (70, "seventy", "soixante-dix"),
        (71, "seventy-one", "soixante et onze"),
        (77, "seventy-seven", "soixante-dix-sept"),
        (80, "eighty", "quatre-vingts"),
        (81, "eighty-one", "quatre-vingt-un"),
        (91, "ninety-one", "quatre-vingt-onze"),
        (99, "ninety-nine", "quatre-vingt-dix-neuf"),
        (100, "one hundred", "cent"),
        (101, "one hundred and one", "cent un"),
        (200, "two hundred", "deux cents"),
        (280, "two hundred and eighty", "deux cent quatre-vingts"),
        (305, "three hundred and five", "trois cent cinq"),
        (1000, "one thousand", "mille"),
        (1080, "one thousand and eighty", "mille quatre-vingts"),
        (2000, "two thousand", "deux mille"),
        (21_000, "twenty-one thousand", "vingt et un mille"),
        (80_000, "eighty thousand", "quatre-vingt mille"),
        (200_000, "two hundred thousand", "deux cent mille"),
        (
            997_595,
            "nine hundred and ninety-seven thousand five hundred and ninety-five",
            "neuf cent quatre-vingt-dix-sept mille cinq cent quatre-vingt-quinze",
        ),
    ],
)
def test_numbers_are_written_as_in_grammars(number, english, french):
    assert (in_english(number), in_french(number)) == (english, french)


def test_all_numbers_differ_and_agree_with_things_and_years():
    for write in (in_english, in_french):
        assert len({write(number) for number in range(12_000)}) == 12_000
    feminine = {1: "une", 21: "vingt et une", 71: "soixante et onze", 81: "quatre-vingt-une", 301: "trois cent une"}
    assert {number: in_french(number, feminine=True) for number in feminine} == feminine
    years = {1900: "mille neuf cent", 1980: "mille neuf cent quatre-vingt", 2000: "deux mille"}
    assert {year: in_french(year, ordinal=True) for year in years} == years
    assert [number_words.english_year(year) for year in (1900, 1905, 1987, 2000, 2010)] == [
        "nineteen hundred", "nineteen oh five", "nineteen eighty-seven", "two thousand", "two thousand and ten",
    ]  # fmt: skip
    assert [number_words.nth(day) for day in (1, 2, 3, 5, 8, 9, 12, 20, 21, 30, 31)] == [
        *("first", "second", "third", "fifth", "eighth", "ninth", "twelfth"),
        *("twentieth", "twenty-first", "thirtieth", "thirty-first"),
    ]


def test_dates_are_said_as_people_say_them(monkeypatch):
    class Draw:
        def __init__(self, *chances):
            self.chances = list(chances)

        def randrange(self, end):
            return (number_words.datetime.date(1987, 3, 3) - number_words.datetime.date(1700, 1, 1)).days

        def random(self):
            return self.chances.pop(0)

    in_digits, in_words = Draw(0.1, 0.9), Draw(0.9, 0.1)
    french = "trois mars mille neuf cent quatre-vingt-sept"
    assert number_words.date_pair(in_digits) == ("the third of March 1987", f"le {french}")
    assert number_words.date_pair(in_words) == (
        "Tuesday the third of March nineteen eighty-seven", f"le mardi {french}",
    )  # fmt: skip


def test_words_are_split_and_joined_again():
    assert split_words("Le 3 mars, quatre-vingt-dix !") == [
        *("le", "3", "mars", ","),
        *("quatre", "-vingt", "-dix", "!"),
    ]
    assert split_words("J'ai l’eau.") == ["j'", "ai", "l’", "eau", "."]
    task = Translation()
    for split in ("train", "test"):
        for row, truth in zip(*(task.arrays(split)[name][:50] for name in ("source", "target")), strict=True):
            for numbers, source in ((row, True), (truth, False)):
                said = task._text(numbers, source=source)
                vocabulary = translation._vocabularies(None, 16, 4000)[0 if source else 1]
                found = [vocabulary[number] for number in numbers if number > END]
                assert split_words(said) == found
                assert UNKNOWN not in numbers


def test_what_is_decoded_at_each_step_stands_before_the_next(tmp_path):
    task = Translation(file=sentences(tmp_path / "fra.txt"), length=6)
    arrays = task.arrays("train")
    assert (arrays["before"][:, 0] == BEGIN).all()
    np.testing.assert_array_equal(arrays["before"][:, 1:][arrays["target"][:, 1:] > 0],
                                  arrays["target"][:, :-1][arrays["target"][:, 1:] > 0])  # fmt: skip
    assert ((arrays["target"] == END).sum(axis=1) == 1).all()
    assert (arrays["source"][:, -1] != PADDING).all()


class Scripted:
    """A decoder that says by the words so far how likely each next one is."""

    def __init__(self, table):
        self.table, self.graphs = table, {"encoder": self, "decoder": self}

    def run(self, batch):
        if "source" in batch:
            num = len(batch["source"])
            return {"memory": np.zeros((num, 1)), "h": np.zeros((num, 3), int), "c": np.zeros((num, 1))}
        h = np.concatenate([batch["h"][:, 1:], batch["word"]], axis=1)
        logits = np.log(np.array([self.table[tuple(row[row > END])] for row in h]) + 1e-9)[:, None]
        return {"logits": logits, "next_h": h, "next_c": batch["c"]}


def test_a_beam_finds_the_likeliest_sentence_where_greed_does_not():
    a, b, c = 4, 5, 6
    table = {
        (): [0, 0, 0, 0, 0.6, 0.4, 0],
        (a,): [0, 0, 0.4, 0, 0.3, 0.3, 0],
        (b,): [0, 0, 0.02, 0, 0, 0.0, 0.98],
        (b, c): [0, 0, 0.9, 0, 0.1, 0, 0],
    }
    other = [0, 0, 0.5, 0, 0.5, 0, 0]
    table |= {(a, second): other for second in (a, b)} | {(b, c, a): other} | {(a, x, a): other for x in (a, b)}
    table |= {(x, y, z): other for x in (a, b, c) for y in (a, b, c) for z in (a, b, c)}
    table |= {(a, c): other, (c,): other, (b, a): other, (b, b): other}
    batch = {"source": np.zeros((2, 4), np.int32)}
    greedy = Translation(length=4).predict(Scripted(table), batch)["decoded"]
    beam = Translation(length=4, beam=4).predict(Scripted(table), batch)["decoded"]
    assert greedy.tolist() == [[a, 0, 0, 0]] * 2  # 0.6 x 0.4
    assert beam.tolist() == [[b, c, 0, 0]] * 2  # 0.4 x 0.98 x 0.9


def test_a_beam_of_one_is_greedy_and_files_of_any_batch_size_decode_alike():
    torch.manual_seed(0)
    task = Translation()
    session = TorchSession(plugins.load("models", "seq2seq")(hidden=16).build(task), task)
    batch = {name: values[:5] for name, values in task.arrays("test").items()}
    memory = session.graphs["encoder"].run({"source": batch["source"]})
    word, said = np.full((5, 1), BEGIN, np.int32), []
    h, c = memory["h"], memory["c"]
    for _ in range(task.length):
        found = session.graphs["decoder"].run({"word": word, "memory": memory["memory"], "h": h, "c": c})
        word, h, c = found["logits"].argmax(-1).astype(np.int32), found["next_h"], found["next_c"]
        said.append(word)
    whole = np.concatenate(said, axis=1)
    whole[np.cumsum((whole == END) | (whole == PADDING), axis=1) > 0] = PADDING
    np.testing.assert_array_equal(task.predict(session, batch)["decoded"], whole)
    for size in (1, 4):
        wide = task.model_copy(update={"beam": size})
        together = wide.predict(session, batch)["decoded"]
        alone = [wide.predict(session, {n: v[i : i + 1] for n, v in batch.items()})["decoded"] for i in range(5)]
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_translations_are_scored_by_bleu_and_exact_match_and_shown():
    task, batch = Translation(), {name: values[:40] for name, values in Translation().arrays("test").items()}
    right = {"decoded": np.where(batch["target"] == END, PADDING, batch["target"])}
    wrong = {"decoded": right["decoded"].copy()}
    wrong["decoded"][3, 0] = wrong["decoded"][3, 0] + 1
    assert task.score(right, batch) == pytest.approx(100)
    assert 90 < task.score(wrong, batch) < 100
    assert task.score({"decoded": np.roll(right["decoded"], 1, axis=0)}, batch) < 50
    assert task.figures(None, right, batch) == {"exact match": 1.0}
    assert task.figures(None, wrong, batch) == {"exact match": 39 / 40}
    first, second, *_ = task.exhibits({"float": right, "compressed": wrong}, batch)
    assert list(first.panels) == ["input", "truth", "float", "compressed"]
    assert (first.caption, second.caption) == ("translated wrongly", "translated rightly")
    assert first.panels["truth"] == first.panels["float"] != first.panels["compressed"]
    assert second.panels["truth"] == second.panels["compressed"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["Go.\tVa !", "Hi."], r"fra\.txt:2: 'Hi\.' is no pair: there is no tab in it"),
        (["Go.\tVa !", "Hi.\t\tCC-BY"], r"fra\.txt:2: .* has no word after the tab"),
        (["\tVa !"], r"fra\.txt:1: .* has no word before the tab"),
        ([f"{'go ' * 20}\tVa"], r"fra\.txt: none of 1 pairs has less than 16 words on either side"),
        (["Go.\tVa !"], r"fra\.txt: 1 samples are too few"),
    ],
)
def test_a_damaged_file_of_pairs_is_named_with_the_line(lines, said, tmp_path):
    task = Translation(file=pairs(tmp_path / "fra.txt", lines))
    with pytest.raises(DataError, match=said):
        [task.arrays(split) for split in ("train", "validation", "test")]


def test_a_file_of_pairs_that_is_no_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: cannot be read: No such file"):
        Translation(file=str(tmp_path / "none.txt")).arrays("train")
    (tmp_path / "latin.txt").write_bytes("Go.\tÇa va".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt:1: no UTF-8: byte 4 is 0xc7"):
        Translation(file=str(tmp_path / "latin.txt")).arrays("train")
