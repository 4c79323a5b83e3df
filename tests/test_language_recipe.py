"""Language models: the recipe in a tiny form from end to end, decoding with caches, and the loader of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl import plugins
from edgedl.core import DataError
from edgedl.synthetic.number_words import in_english
from edgedl.tasks import language
from edgedl.tasks.language import Language
from edgedl.torch_session import TorchSession
from tests.test_translation_recipe import check, tiny

TARGETS = ("onnxruntime", "tensorrt-rtx")


def texts(folder: Path, num: int = 2) -> str:
    folder.mkdir()
    for index in range(num):
        words = " ".join(in_english(number) for number in range(index, 400, num))
        (folder / f"{index}.txt").write_text(f"Numbers from {index}:\r\n{words}.\r\n", encoding="utf-8-sig")
    return str(folder)


def test_a_language_model_of_a_folder_comes_out_as_two_files_that_decode_alike(tmp_path):
    task = Language(folder=texts(tmp_path / "texts"), context=8, prompt=5)
    report = tiny("gpt-int8", task, tmp_path, TARGETS, 1, layers=2, width=16, heads=2)
    check(report, ("prefill", "step"), "tokens/s")
    assert [row["graphs"]["step"]["calls"] for row in report["rows"] if row["status"] == "ok"] == [5, 5, 5]
    forms = {target: {row["variant"] for row in report["rows"] if row["target"] == target} for target in TARGETS}
    assert forms == {
        "onnxruntime": {"float", "int8-dynamic", "int8-weights"},
        "tensorrt-rtx": {"float", "int8-weights"},
    }
    assert 1 < report["ladder"][0]["rungs"][0]["score"] < 30


@pytest.fixture(scope="module")
def gpt():
    """A network at its beginning, and its task."""
    torch.manual_seed(0)
    task = Language(context=12, prompt=5)
    net = plugins.load("models", "gpt")(width=16, heads=2).build(task).eval()
    for table in (net.letter, net.position):
        torch.nn.init.normal_(table.weight)  # else all that it says is much the same
    return net, task


def test_reading_step_by_step_says_what_reading_at_once_does(gpt):
    net, task = gpt
    batch = {name: values[:6] for name, values in task.arrays("test").items()}
    session = TorchSession(net, task)
    logits = session.run({"tokens": batch["tokens"]})["logits"]
    likelihood = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    wanted = -np.take_along_axis(likelihood, batch["target"][:, :, None], axis=2)[:, :, 0]
    found = task.predict(session, batch)
    np.testing.assert_allclose(found["surprise"], wanted, atol=2e-5)
    np.testing.assert_array_equal(found["likeliest"], logits.argmax(axis=2))
    assert task.score(found, batch) == pytest.approx(float(np.exp(wanted.mean())), rel=1e-4)
    assert task.figures(None, found, batch) == {
        "next character right": (logits.argmax(axis=2) == batch["target"]).mean()
    }


def test_what_comes_later_and_what_was_left_in_the_caches_changes_nothing(gpt):
    net, task = gpt
    tokens = task.arrays("test")["tokens"][:2].copy()
    session = TorchSession(net, task)
    logits = session.run({"tokens": tokens})["logits"]
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % task.num_letters
    again = session.run({"tokens": changed})["logits"]
    np.testing.assert_allclose(again[:, :7], logits[:, :7], atol=1e-5)
    assert np.abs(again[:, 7:] - logits[:, 7:]).max() > 0.1
    read = session.graphs["prefill"].run({"tokens": tokens[:, :5]})
    on = language._Cached(session, read, task.context)
    for cache in on.caches.values():
        cache[:, :, 6:] = 3.0
    np.testing.assert_allclose(on.step(tokens[:, 5])[:, 0], logits[:, 5], atol=1e-4)


def test_a_continuation_depends_on_the_prompt_alone_and_at_no_temperature_it_is_the_likeliest(gpt):
    net, task = gpt
    arrays = task.arrays("test")
    batch = {name: values[:4] for name, values in arrays.items()}
    session = TorchSession(net, task)
    together = task.predict(session, batch)["continuation"]
    alone = [task.predict(session, {n: v[i : i + 1] for n, v in batch.items()})["continuation"] for i in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    cold = task.model_copy(update={"temperature": 0.0}).predict(session, batch)["continuation"]
    tokens = np.concatenate([batch["tokens"][:, : task.prompt], cold], axis=1)
    said = session.run({"tokens": tokens})["logits"].argmax(axis=2)[:, task.prompt - 1 : -1]
    np.testing.assert_array_equal(cold, said)
    hot = task.model_copy(update={"temperature": 5.0}).predict(session, batch)["continuation"]
    assert (hot != cold).any()


def test_continuations_are_shown_beside_the_truth(gpt):
    net, task = gpt
    batch = {name: values[:9] for name, values in task.arrays("test").items()}
    found = task.predict(TorchSession(net, task), batch)
    shown = task.exhibits({"float": found, "compressed": found}, batch)
    assert len(shown) == 4
    text = task.text(batch["tokens"][0])
    assert (shown[0].panels["input"], shown[0].panels["truth"]) == (text[:5], text[5:])
    assert shown[0].panels["float"] == shown[0].panels["compressed"] == task.text(found["continuation"][0])
    assert task.rates({"prefill": 0.5, "step": 0.1}) == {"prompt tokens/s": 10_000, "tokens/s": 10_000}


def test_texts_of_a_folder_are_one_after_the_other(tmp_path):
    folder = texts(tmp_path / "texts")
    (tmp_path / "texts" / "other.md").write_text("nothing of this")
    task = Language(folder=folder, context=10, prompt=2)
    train, test = task.arrays("train"), task.arrays("test")
    whole = (tmp_path / "texts/0.txt").read_text(encoding="utf-8-sig")
    assert task.text(train["tokens"][:3].ravel()) == whole[:30]
    np.testing.assert_array_equal(train["tokens"][:, 1:], train["target"][:, :-1])
    np.testing.assert_array_equal(train["tokens"][1:, 0], train["target"][:-1, -1])
    assert "\r" not in language._letters(folder, "*.txt")
    assert task.text(test["tokens"][0]) in (tmp_path / "texts/1.txt").read_text(encoding="utf-8-sig")
    assert Language(folder=folder, pattern="0.txt", context=10, prompt=2).arrays("train")["tokens"].shape[0] < len(
        train["tokens"]
    )


def test_characters_that_were_not_learned_are_unknown(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100 + "äb" * 20, encoding="utf-8")
    task = Language(folder=str(tmp_path), context=4, prompt=2)
    assert task.num_letters == 5
    tokens = task.arrays("test")["tokens"]
    assert (tokens == language.UNKNOWN).any()
    assert language.SIGN in task.text(tokens[-1])


def test_damaged_folders_of_texts_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent: no such folder"):
        Language(folder=str(tmp_path / "absent")).arrays("train")
    for name in ("empty", "short", "latin"):
        (tmp_path / name).mkdir()
    (tmp_path / "short/a.txt").write_text("too short")
    (tmp_path / "latin/b.txt").write_bytes("un café".encode("latin-1"))
    with pytest.raises(DataError, match=r"empty: no \*\.txt in it"):
        Language(folder=str(tmp_path / "empty")).arrays("train")
    with pytest.raises(DataError, match=r"short: 0 characters are too few for the test split: it takes 97"):
        Language(folder=str(tmp_path / "short")).arrays("test")
    with pytest.raises(DataError, match=r"b\.txt:1: no UTF-8: byte 6 is 0xe9"):
        Language(folder=str(tmp_path / "latin")).arrays("train")
    with pytest.raises(ValueError, match="prompt = 8 leaves nothing of context = 8"):
        Language(context=8, prompt=8)
