"""Distillation by sequences: what a teacher decodes is what its student learns, and who has none is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl import recipe, stages
from edgedl.core import Model, RecipeError, UsageError
from edgedl.models.conv_recurrent import ConvRecurrent
from edgedl.models.seq2seq import Seq2Seq
from edgedl.run import Run
from edgedl.steps.distill import Distill
from edgedl.synthetic.number_words import in_english, in_french
from edgedl.tasks import transcription
from edgedl.tasks.digits import Digits
from edgedl.tasks.transcription import LETTERS, Transcription
from edgedl.tasks.translation import BEGIN, END, PADDING, Translation
from edgedl.torch_session import TorchSession
from edgedl.training import loop, teachers

NETWORK = Seq2Seq(embedding=8, hidden=16)
ALONE = {"sequences": True, "weight": 0.0, "batch_size": 16, "lr": 0.02}
"""Nothing but the teacher's sequences."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Translation:
    file = tmp_path_factory.mktemp("pairs") / "fra.txt"
    lines = [f"Go {in_english(number)}!\tVa {in_french(number)} !\n" for number in range(80)]
    file.write_text("".join(lines), encoding="utf-8")
    return Translation(file=str(file), length=6)


def saying(word: int, task: Translation) -> torch.nn.Module:
    """A network that says one word, whatever it reads, and never ends."""
    net = NETWORK.build(task).eval()
    with torch.no_grad():
        net.decoder.dense.weight.zero_()
        net.decoder.dense.bias.copy_(9 * torch.eye(task.num_target_words)[word])
    return net


def decoded(net: torch.nn.Module, task: Translation) -> np.ndarray:
    return task.predict(TorchSession(net, task), task.arrays("test"))["decoded"]


def test_what_a_right_teacher_says_is_what_the_task_has(task):
    batch = task.arrays("train")
    said = np.where(batch["target"] == END, PADDING, batch["target"])
    again = task.retold({"decoded": said}, batch)
    assert again.keys() == batch.keys()
    for name, values in batch.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype


def test_a_sentence_that_never_ends_is_told_without_an_end_and_an_empty_one_with_nothing_else(task):
    said = np.array([[7, 8, 9, 7, 8, 9], [0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0]], np.int32)
    told = task.retold({"decoded": said}, {"source": np.zeros((3, 6), np.int32)})
    assert told["target"].tolist() == [[7, 8, 9, 7, 8, 9], [END, 0, 0, 0, 0, 0], [7, END, 0, 0, 0, 0]]
    assert told["before"].tolist() == [[BEGIN, 7, 8, 9, 7, 8], [BEGIN, 0, 0, 0, 0, 0], [BEGIN, 7, 0, 0, 0, 0]]


def test_a_teacher_that_always_says_the_same_word_teaches_that_word(task):
    loop.seed(0)
    teacher, net = saying(9, task), NETWORK.build(task)
    taught = Distill(epochs=3, **ALONE).apply(Model(net=net, teacher=teacher), task)
    assert (decoded(taught.net, task) == 9).all()
    labelled = Distill(epochs=3, **ALONE | {"sequences": False}).apply(Model(net=net, teacher=teacher), task)
    assert not (decoded(labelled.net, task) == 9).all(axis=1).any()
    assert taught.lineage[-1].step["sequences"]
    assert taught.lineage[-1].metrics["teacher_score"] == labelled.lineage[-1].metrics["teacher_score"]


def test_outputs_are_imitated_along_the_teachers_sequences(task, monkeypatch):
    """Whatever is learned from, the teacher's own words stand before each."""
    seen = []
    fit = loop.fit

    def watched(net, task, loss, **options):
        return fit(net, task, lambda outputs, batch: seen.append(batch) or loss(outputs, batch), **options)

    monkeypatch.setattr(loop, "fit", watched)
    net = NETWORK.build(task)
    for extra in ({}, {"features": 1.0, "layers": (("decoder.join", "decoder.join"),)}):
        seen.clear()
        step = Distill(epochs=1, **ALONE | {"weight": 0.5} | extra)
        taught = step.apply(Model(net=net, teacher=saying(9, task)), task).net
        assert type(taught) is type(net)
        assert len(torch.cat([batch["source"] for batch in seen])) == len(task.arrays("train")["source"])
        assert all((batch["target"] == 9).all() and (batch["before"][:, 1:] == 9).all() for batch in seen)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_teacher_decodes_as_the_task_does(beam, task):
    torch.manual_seed(4)
    wide = task.model_copy(update={"beam": beam})
    net = NETWORK.build(wide).eval()
    with torch.no_grad():
        net.decoder.dense.weight.mul_(6)  # so that what is likeliest depends on what was said
    told = teachers.retold(teachers.of_network(net, wide), wide)
    said = wide.predict(TorchSession(net, wide), wide.arrays("train"))["decoded"]
    np.testing.assert_array_equal(np.where(told["target"] == END, PADDING, told["target"]), said)
    np.testing.assert_array_equal(told["source"], wide.arrays("train")["source"])
    other = task.model_copy(update={"beam": 4 - beam}).predict(TorchSession(net, wide), wide.arrays("train"))
    assert (said != other["decoded"]).any()


# Transcripts


@pytest.fixture
def few(monkeypatch):
    """Utterances by the dozen."""
    monkeypatch.setattr(transcription, "NUM_STRINGS", {"train": 48, "validation": 8, "test": 8})
    transcription._spoken.cache_clear()
    yield
    transcription._spoken.cache_clear()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", ["network", "file"])
def test_what_a_teacher_hears_is_the_transcript(kind):
    task = Transcription(seconds=0.4)
    loop.seed(0)
    teacher, net = (ConvRecurrent(widths=(8,), hidden=8).build(task).eval() for _ in range(2))
    with torch.no_grad():
        teacher.dense.weight.zero_()
        teacher.dense.bias.copy_(9 * torch.eye(task.num_classes)[1 + LETTERS.index("b")])
    found = teachers.of_network(teacher, task)
    if kind == "file":
        found = teachers.of_session(TorchSession(teacher, task), task)
    told = teachers.retold(found, task)
    assert transcription._texts(told["text"]) == ["b"] * 48
    assert told["frames"] is task.arrays("train")["frames"]
    taught = Distill(epochs=10, **ALONE).apply(Model(net=net, teacher=teacher), task).net
    logits = TorchSession(taught, task).run(task.arrays("test"))["logits"]
    assert (logits[:, :, 1:].argmax(2) == LETTERS.index("b")).all()  # whenever it is no blank


@pytest.mark.usefixtures("few")
def test_a_teacher_that_hears_nothing_teaches_silence():
    task = Transcription(seconds=0.4)
    net = ConvRecurrent(widths=(8,), hidden=8).build(task).eval()
    with torch.no_grad():
        net.dense.weight.zero_()
        net.dense.bias.copy_(9 * torch.eye(task.num_classes)[0])
    batch = teachers.retold(teachers.of_network(net, task), task)
    assert transcription._texts(batch["text"]) == [""] * 48
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    assert 0 <= task.loss({"logits": net(tensors["frames"])}, tensors).item() < 0.2


# Recipes

RECIPE = """
task = {{ {task} }}
model = {{ {model} }}
steps = [
  {{ use = "train", epochs = 2, batch_size = 16, lr = 0.02 }},
  {{ use = "distill", epochs = 2, batch_size = 16, sequences = true }},
]
targets = [ {{ use = "onnxruntime" }} ]
"""


def test_a_task_without_sequences_is_refused_before_anything_is_built():
    said = "sequences = true, and task digits decodes none to learn from; leave it out"
    with pytest.raises(RecipeError) as caught:
        recipe.parse(RECIPE.format(task='use = "digits"', model='use = "cnn"'), Path("own.toml"))
    assert str(caught.value) == f"own.toml:6: steps[1]: distill: {said}"
    with pytest.raises(UsageError, match=f"distill: {said}"):
        Distill(sequences=True).apply(Model(net=torch.nn.Identity()), Digits())


def test_a_run_that_goes_on_ends_like_one_that_was_never_interrupted(task, tmp_path):
    text = RECIPE.format(
        task=f'use = "translation", file = "{task.file}", length = {task.length}, beam = 2',
        model='use = "seq2seq", embedding = 8, hidden = 16',
    )
    whole = recipe.parse(text, Path("own.toml"))
    begun = whole.model_copy(update={"steps": whole.steps[:1]})
    weights = {}
    for root, parts in (("once", [whole]), ("twice", [begun, whole, whole])):
        for part in parts:
            run = Run.create(part, text, tmp_path / root)
            variants = stages.apply_steps(part, run, tmp_path / root, fresh=False)
        weights[root] = (run.folder / "steps/01-distill/weights.safetensors").read_bytes()
        metrics = [record.metrics for record in variants[1].model.lineage]
        assert ["reused" in found for found in metrics] == [root == "twice"] * 2
    assert weights["once"] == weights["twice"]
