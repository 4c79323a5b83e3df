"""What `benchmarks.fuzz` damages: a sound file of every kind that edgedl reads, and what reads it."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

RECIPE = """\
description = "A small network."
seed = 0
task = { use = "digits" }
model = { use = "cnn", widths = [8, 16], hidden = 32 }
steps = [
  { use = "train", epochs = 3, lr = 3e-3, optimizer = "adam" },
  { use = "prune", ratio = 0.4, round_to = 8, epochs = 1 },
  { use = "distill", student = { use = "cnn", widths = [4] }, epochs = 1 },
  { use = "quantize", precision = "int8", method = "ptq", corrections = ["headroom"] },
]
targets = [ { use = "tflite", threads = 1 }, { use = "onnxruntime", max_batch = 4 }, { use = "tensorrt" } ]
limits = { score_drop = 0.05, slower = "allow", build_minutes = 2.5 }
bench = { batch_size = 1, min_seconds = 0.1, rounds = 5 }
"""
SMALL = """\
task = { use = "digits" }
model = { use = "mlp", widths = [4] }
steps = [
  { use = "train", epochs = 1 },
  { use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] },
]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 1.0, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }
"""
DEVICES = """\
[jetson]
address = "ssh://me@jetson.local"
python = "python3.11"

[phone]
address = "adb://R58N123"
"""
PRINTED = """\
INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.
INFO: The input model file size (MB): 1.69
INFO: Initialized session in 3.511ms.
INFO: count=50 first=119 curr=115 min=111 max=119 avg=115.2 std=3 p5=112 median=115 p95=116
INFO: count=200 first=115 curr=116 min=110 max=131 avg=114.8 std=2 p5=112 median=114 p95=118
INFO: Inference timings in us: Init: 3511, First inference: 119, Warmup (avg): 115.2, Inference (avg): 114.8
INFO: Memory footprint delta from the start of the tool (MB): init=2.4 overall=4.9
INFO: Overall peak memory footprint (MB) via periodic monitoring: 9.1
"""
TEGRASTATS = (
    "RAM 4722/7772MB (lfb 2x4MB) CPU [12%@1510,8%@1510,off,off] EMC_FREQ 1%@2133 GR3D_FREQ 99%@[1300,1300] "
    "CPU@48.5C soc2@47.1C tj@49C VDD_IN 5100mW/5000mW VDD_CPU_GPU_CV 1200mW/1100mW\n"
)
ODD = (
    *("-1", "0", "1e400", "nan", "-inf", "9" * 400, "true", '""', "[]", "{}", "[[[]]]", '"\\u0000"', "1979-05-27"),
    *('"../../../../etc/passwd"', f'"{"a" * 5000}"', '"ı̈😀\\u202e"', "[" * 500 + "]" * 500, "0x7fffffffffffffff"),
)
"""Values that may stand for any other in a recipe."""
GIVEN = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "nan",
        "1e999",
        "9" * 400,
        "None",
        "[]",
        "{",
        "a,b,,",
        "1,2,x",
        "\x1b[2J",
        "*",
        "~",
    ),
    *(
        "../../../../etc/passwd",
        "/dev/null",
        "/proc/self/mem",
        "a" * 5000,
        "a/" * 3000,
        "\udcff\udcfe.onnx",
        "ı̈😀\u202e",
    ),
    *(
        "nowhere.tflite",
        "nowhere.rtx",
        "nowhere.pt2",
        "nowhere.csv",
        "hub:",
        "ssh:",
        "ssh://",
        "x://y",
        "nowhere:thing",
    ),
    *("latency<", "score>=x", "size<1e400kB", "30d", "-5h", "{model}", "{run}", "{data}", "cnn-int8", "digits", "int8"),
)
"""What may stand for any argument of a command; what is in braces is there."""
COMMANDS = (
    "report ?", "report ? --out ?", "inspect ?", "inspect ? --json", "compare ?", "compare ? ? --pick ? --format ?",
    "compare {run} --pick ?", "compare {run} --target ? --device ?", "recipes show ?", "recipes list --out ?",
    "runs list --out ?", "runs clean --dry-run --out {runs} --older ?", "runs clean --dry-run --out {runs} --keep ?",
    "compress --recipe ? --out {runs}/new --? ?", "compress --model ? --data ? --weights ? --out ?",
    "compress --model {model} --data {data} --label ? --epochs ? --prune ?",
    "compress --model {model} --size ? ? --mean ?",
    "compress --model {model} --data {data} --target ?", "compress --model {model} --data {data} --dynamic ?",
    "compress --model {model} --data {data} --metric ? --score-drop ?", "bench ? --seconds ?", "bench ? --vs ?",
    "bench nowhere.onnx --threads ? --batches ?", "bench {run} --on ?", "bench {model} --recipe ?", "analyze ? --out ?",
    "bench {model} --target ? --threads ?", "deploy ? --on ?", "deploy {run} --on local --to ? --variant ?",
    "deploy {run} --on ? --target ?", "search ? --trials ?", "search ? --budget ? --objective ? --limit ?",
    "init {runs}/new --data ? --label ? --yes", "init {runs}/new --precision ? --target ? --yes", "devices setup ?",
    "doctor ?", "targets ?", "? ? ?", "? --help ?", "--? ?",
)  # fmt: skip
SHOWING = ("report", "inspect", "compare")
TEXTS = ("csv", "jsonl", "txt", "toml")
BOMB_BYTES = 100 << 20
LABELS = ["no", "yes"]

Reader = Callable[[Path], object]


class Sample(NamedTuple):
    """A sound file, and what reads it; or what makes a hostile one."""

    content: bytes
    reader: Reader
    made: Callable[[random.Random], bytes] | None = None
    is_slow: bool = False


def samples(folder: Path, whole: bool = True) -> dict[str, Sample]:
    """All of them by name; not `whole`, those alone that take no run to be made."""
    for place in ("runs", "config"):
        (folder / place).mkdir()
    of_runs = runs(folder) if whole else {}
    found = models(folder) | data(folder) | archives() | answers(folder) | of_runs
    return found | commands(folder) if whole else found


def models(folder: Path) -> dict[str, Sample]:
    """Model files, weights, and recipes."""
    import torch
    from safetensors.torch import save

    from edgedl import api, child, inspecting, measure, plugins, recipe
    from edgedl.core import Model
    from edgedl.models.exported import Exported
    from edgedl.models.keras_file import KerasFile
    from edgedl.models.mlp import MLP
    from edgedl.models.onnx_file import OnnxFile
    from edgedl.own import weights
    from edgedl.targets.onnxruntime import OnnxRuntime
    from edgedl.targets.tensorrt_rtx import TensorRTRTX
    from edgedl.targets.tflite import TFLite
    from edgedl.tasks.digits import Digits

    task = Digits()
    net = MLP(widths=(8,)).build(task).eval()
    for target in (OnnxRuntime(), TFLite()):
        target.build(Model(net=net), task, folder, 1)
    torch.save(net.state_dict(), folder / "weights.pt")
    example = (torch.zeros(2, *next(iter(task.inputs.values())).shape),)
    torch.export.save(torch.export.export(net, example), folder / "model.pt2")

    def opened(file: Path) -> None:
        """As `api.open`, with a copy of this process for the fresh one, which takes seconds to start."""
        target = plugins.target_for(file, 1)
        child.call(
            f"{file}: its runtime",
            lambda: measure.first_run(lambda: target.open(file)) and None,
            child.Bounds(measure.MAX_OPENING_SECONDS),
        )
        session = target.open(file)
        session.run(measure.random_inputs(session.inputs))

    def looked_into(file: Path) -> None:
        inspecting.of_file(file)
        api.open(file)

    def beside(file: Path) -> None:
        engine = file.with_suffix("")
        shutil.copy(folder / "model.rtx", engine)
        try:
            looked_into(engine)
        finally:
            engine.unlink()

    def parsed(file: Path) -> None:
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:  # told where the file is read
            return
        recipe.parse(text, file)

    readers: dict[str, Reader] = {
        "model.onnx": opened,
        "model.tflite": opened,
        "graph.tflite": inspecting.of_file,
        "network.onnx": lambda file: OnnxFile(source=str(file)).build(task),
        "model.pt2": lambda file: Exported(source=str(file)).build(task),
        "weights.pt": lambda file: weights.read(str(file)),
        "weights.safetensors": lambda file: weights.read(str(file)),
        "recipe.toml": parsed,
    }
    contents = {
        "graph.tflite": (folder / "model.tflite").read_bytes(),
        "network.onnx": (folder / "model.onnx").read_bytes(),
        "weights.safetensors": save(net.state_dict()),
        "recipe.toml": RECIPE.encode(),
    }
    if not plugins.missing(TensorRTRTX(), "build"):
        TensorRTRTX().build(Model(net=net), task, folder, 1)
        readers |= {"model.rtx": looked_into, "model.rtx.json": beside}
    if plugins.installed("keras"):
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        shape = next(iter(task.inputs.values())).shape
        layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)]
        keras.Sequential(layers).save(folder / "model.keras")
        readers["model.keras"] = lambda file: KerasFile(source=str(file)).build(task)
    return {
        name: Sample(contents.get(name) or (folder / name).read_bytes(), reader) for name, reader in readers.items()
    }


def data(folder: Path) -> dict[str, Sample]:
    """Data sets of one file."""
    from edgedl import plugins
    from edgedl.data import image_files, sound_files
    from edgedl.tasks.data import Data

    table = np.random.default_rng(0).normal(size=(40, 3)).round(3)
    np.savez(folder / "data.npz", x=table.astype(np.float32), label=np.arange(40) % 3)
    lines = [",".join(map(str, row)) + f",{LABELS[index % 2]}" for index, row in enumerate(table)]
    (folder / "data.csv").write_text("\n".join(["a,b,c,label", *lines]) + "\n")
    rows = [{"a": row[0], "b": row[1], "label": LABELS[index % 2]} for index, row in enumerate(table)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")

    def read(file: Path) -> None:
        found = Data(source=str(file))
        for split in ("train", "test"):
            found.arrays(split)

    names = ["data.npz", "data.csv", "data.jsonl"]
    if plugins.installed("pyarrow"):
        from pyarrow import Table, parquet

        columns = {"a": table[:, 0], "b": table[:, 1], "label": LABELS * 20}
        parquet.write_table(Table.from_pydict(columns), folder / "data.parquet")
        names.append("data.parquet")
    found = {name: Sample((folder / name).read_bytes(), read) for name in names}
    if plugins.installed("PIL"):
        from PIL import Image

        image = Image.fromarray((np.random.default_rng(0).random((24, 24, 3)) * 255).astype(np.uint8))
        for ending in ("png", "jpg", "tiff"):
            image.save(folder / f"image.{ending}")
            content = (folder / f"image.{ending}").read_bytes()
            found[f"image.{ending}"] = Sample(content, lambda file: image_files.picture(file, (3, 16, 16)))
    if plugins.installed("scipy"):
        from scipy.io import wavfile

        wavfile.write(folder / "sound.wav", 8000, (table[:, 0].repeat(20) * 1000).astype(np.int16))
        found["sound.wav"] = Sample((folder / "sound.wav").read_bytes(), lambda file: sound_files.sound(file, 4000))
    return found


def archives() -> dict[str, Sample]:
    """Archives that lead elsewhere, or hold more than they seem to."""
    from edgedl.models.exported import Exported
    from edgedl.tasks.cifar10 import Cifar10
    from edgedl.tasks.data import Data
    from edgedl.tasks.digits import Digits
    from edgedl.tasks.mnist import MNIST
    from edgedl.tasks.xray import Xray

    bomb = gzip.compress(bytes(BOMB_BYTES), 1)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x.npy", "label.npy", "train_images.npy", "train_labels.npy"):
            with archive.open(name, "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "|u1", "fortran_order": False, "shape": (BOMB_BYTES,)}
                )
                member.write(bytes(BOMB_BYTES >> 2))

    def of_tar(dice: random.Random) -> bytes:
        if dice.random() < 0.1:
            return bomb
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz", compresslevel=1) as archive:
            for number in (1, 2, 3, 4, 5, 1):
                name = f"cifar-10-batches-bin/data_batch_{number}.bin"
                member = tarfile.TarInfo(_led_elsewhere(name, dice))
                kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
                member.type = dice.choice((*[tarfile.REGTYPE] * 8, *kinds))
                member.linkname = dice.choice(("/etc/passwd", "../../outside", name))
                member.size = dice.choice((3073, 3073, 3073, 0, 5)) if member.isreg() else 0
                archive.addfile(member, io.BytesIO(dice.randbytes(member.size)))
        return held.getvalue()

    def of_idx(dice: random.Random) -> bytes:
        size = dice.choice((1, 3, 2**31, 2**32 - 1))
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (size, 28, 28))
        return bomb if dice.random() < 0.2 else gzip.compress(header + bytes(784 * min(size, 3)))

    def of_zip(dice: random.Random) -> bytes:
        if dice.random() < 0.1:
            return zipped.getvalue()
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("x.npy", "label.npy", "test_images.npy", "archive/version", "archive/models/model.json"):
                values = io.BytesIO()
                shape = dice.choice(((3,), (2**40,), (0,), (3, 0, 2**33), ()))
                kind = dice.choice(("<f4", "|u1", "|O", "<U5", "<i8"))
                np.lib.format.write_array_header_1_0(values, {"descr": kind, "fortran_order": False, "shape": shape})
                archive.writestr(_led_elsewhere(name, dice), values.getvalue() + dice.randbytes(24))
        return held.getvalue()

    def mnist(file: Path) -> None:
        place = file.parent / "given.folder"
        place.mkdir(exist_ok=True)
        shutil.copy(file, place / "train-images-idx3-ubyte.gz")
        try:
            MNIST(folder=str(place)).arrays("train")
        finally:
            shutil.rmtree(place)

    readers: dict[str, tuple[Reader, Callable[[random.Random], bytes]]] = {
        "hostile.tar.gz": (lambda file: Cifar10(folder=str(file)).arrays("train"), of_tar),
        "hostile.gz": (mnist, of_idx),
        "hostile.npz": (lambda file: Data(source=str(file)).arrays("train"), of_zip),
        "hostile.medmnist.npz": (lambda file: Xray(file=str(file)).arrays("train"), of_zip),
        "hostile.pt2": (lambda file: Exported(source=str(file)).build(Digits()), of_zip),
    }
    return {name: Sample(b"", reader, made) for name, (reader, made) in readers.items()}


def _led_elsewhere(name: str, dice: random.Random) -> str:
    return dice.choice(("", "", "", "", "../../", "/tmp/", "a/" * 90, "\\\\host\\", "ü", "./")) + name


def answers(folder: Path) -> dict[str, Sample]:
    """What devices say, and which there are."""
    from subprocess import CompletedProcess

    from edgedl import devices
    from edgedl.links import android
    from edgedl.probes import jetson
    from edgedl.remote import answers as checked
    from edgedl.remote import benchmark_model

    network = {
        "error": None, "runtime": "onnxruntime 1.20", "init_ms": 3.1, "peak_memory_bytes": 100, "not_timed": None,
        "blocks_ms": [[0.1, 0.2], [0.1, 0.3]], "calls_ms": {}, "built": None, "benchmarked": None,
        "answers": {"error": None, "throughput": None, "cold_start": None, "sustained": None, "energy": None},
    }  # fmt: skip
    said = {"device": {"name": "board", "cores": 4, "versions": {"numpy": "2"}}, "networks": {"float": network}}
    told = "prop ro.product.model=Pixel\nprop ro.build.version.sdk=34\nclock 0 1800000\nMemTotal: 7000000 kB\n"
    told += "kernel 5.10\nthermal status: 0\ntemperature: 281\nlevel: 77\nzone cpu-0-0 41000\nAC powered: true\n"

    class Shell:
        def __init__(self, file: Path) -> None:
            self.text = file.read_bytes().decode(errors="replace")

        def script(self, text: str) -> CompletedProcess[str]:
            return CompletedProcess([], 0, self.text, "")

    def configured(file: Path) -> None:
        before = os.environ.get("XDG_CONFIG_HOME")
        place = folder / "config"
        (place / "edgedl").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / "edgedl" / "devices.toml")
        os.environ["XDG_CONFIG_HOME"] = str(place)
        try:
            devices.check("jetson")
        finally:
            os.environ.pop("XDG_CONFIG_HOME")
            if before is not None:
                os.environ["XDG_CONFIG_HOME"] = before

    def phone(file: Path) -> None:
        json.dumps([android.passport(Shell(file)), android.state(Shell(file))], allow_nan=False)  # type: ignore[arg-type]

    def tegrastats(file: Path) -> None:
        sample = jetson.parse(file.read_bytes().decode(errors="replace"))
        json.dumps(sample and vars(sample), allow_nan=False)

    return {
        "result.json": Sample(json.dumps(said).encode(), lambda file: checked.read(file, "board", ["float"], 2)),
        "devices.toml": Sample(DEVICES.encode(), configured),
        "benchmark_model.txt": Sample(
            PRINTED.encode(), lambda file: benchmark_model.read(file.read_bytes().decode(errors="replace"))
        ),
        "tegrastats.txt": Sample(TEGRASTATS.encode(), tegrastats),
        "phone.txt": Sample(told.encode(), phone),
    }


def runs(folder: Path) -> dict[str, Sample]:
    """Files of a run folder, and what looks at runs or goes on with them."""
    import torch

    from edgedl import api, checkpoint, housekeeping, pipeline, progress, recipe, stages
    from edgedl.remote import answers as checked
    from edgedl.run import Run
    from edgedl.training import teachers

    root, wanted = folder / "runs", recipe.parse(SMALL, Path("small.toml"))
    before, checkpoint.EVERY_SECONDS = checkpoint.EVERY_SECONDS, 0.0
    try:
        sound = pipeline.compress(wanted, SMALL, folder / "sound").folder
    finally:
        checkpoint.EVERY_SECONDS = before
    (sound / "devices").mkdir()
    report = json.loads((sound / "report.json").read_text())
    device = {"schema": 1, "device": "board", "timed": True, "environment": {}, "left_out": [], "warnings": []}
    told = dict.fromkeys(("agreement", "engine", "built", "unanswered", "energy_mj", *checked.KEYS))
    told |= {"score_here": 0.5, "score_here_by": "onnxruntime", "figures": {}, "graphs": {}, "device": "board"}
    (sound / "devices" / "board.json").write_text(json.dumps(device | {"rows": [report["rows"][-1] | told]}))

    @contextmanager
    def placed(file: Path, where: str, finished: bool) -> Iterator[Path]:
        """A copy of the run with the file in its place."""
        shutil.rmtree(root, ignore_errors=True)
        place = root / "small" / sound.name
        shutil.copytree(sound, place)
        shutil.copy(file, place / where)
        if not finished:
            (place / "report.json").unlink(missing_ok=True)
        yield place

    def shown(where: str) -> Reader:
        def look(file: Path) -> None:
            with placed(file, where, finished=True) as place:
                housekeeping.as_rows(housekeeping.runs(root))
                _each(*(partial(_invoked, [said, str(place), "--out", str(root)]) for said in SHOWING))

        return look

    def loaded(file: Path) -> None:
        with placed(file, "recipe.toml", finished=True) as place:
            housekeeping.as_rows(housekeeping.runs(root))
            api.load_run(place)

    def gone_on(where: str) -> Reader:
        def go_on(file: Path) -> None:
            with placed(file, where, finished=False), progress.diverted(Path(os.devnull)):
                housekeeping.as_rows(housekeeping.runs(root))
                with Run.started(wanted, SMALL, root) as run:
                    for variant in stages.apply_steps(wanted, run, root, False):
                        run.built(variant.name, wanted.targets[0], json.loads(built)["key"])
                    learned = run.folder / "steps/00-train/weights.safetensors"
                    assert learned.read_bytes() == weights, "it went on to other weights"

        return go_on

    def taught(where: str) -> Reader:
        def teach(file: Path) -> None:
            with placed(file, where, finished=True) as place:
                teachers.load(str(place), wanted.task)

        return teach

    def unsealed(file: Path) -> None:
        with placed(file, "steps/00-train/structure.json", finished=True) as place:
            (place / "steps/00-train/step.json").unlink()
            teachers.load(str(place), wanted.task)

    state = {"state": {"done": 3, "net": [torch.arange(50.0)]}, "streams": {}}
    checkpoint._write(folder / "state.safetensors", state)

    def remembered(file: Path) -> None:
        assert repr(checkpoint._read(file)) in (repr(state), "None"), "another state"

    weights = (sound / "steps/00-train/weights.safetensors").read_bytes()
    built = (sound / "targets/compressed/onnxruntime/built.json").read_bytes()
    at: dict[str, tuple[str, Reader]] = {
        "report.json": ("report.json", shown("report.json")),
        "devices.json": ("devices/board.json", shown("devices/board.json")),
        "artifact.json": ("targets/float/onnxruntime/artifact.json", shown("targets/float/onnxruntime/artifact.json")),
        "run.toml": ("recipe.toml", loaded),
        "run.json": ("run.json", gone_on("run.json")),
        "step.json": ("steps/00-train/step.json", gone_on("steps/00-train/step.json")),
        "metrics.json": ("steps/00-train/metrics.json", gone_on("steps/00-train/metrics.json")),
        "structure.json": ("steps/00-train/structure.json", gone_on("steps/00-train/structure.json")),
        "run.safetensors": ("steps/00-train/weights.safetensors", gone_on("steps/00-train/weights.safetensors")),
        "built.json": (
            "targets/compressed/onnxruntime/built.json",
            gone_on("targets/compressed/onnxruntime/built.json"),
        ),
        "teacher.safetensors": ("steps/00-train/weights.safetensors", taught("steps/00-train/weights.safetensors")),
        "teacher.json": ("steps/00-train/structure.json", unsealed),
    }
    found = {name: Sample((sound / where).read_bytes(), reader, is_slow=True) for name, (where, reader) in at.items()}
    return found | {"state.safetensors": Sample((folder / "state.safetensors").read_bytes(), remembered)}


def commands(folder: Path) -> dict[str, Sample]:
    """Command lines, of which some arguments are odd."""
    root = folder / "runs"
    (sound,) = (folder / "sound").glob("small/*")
    place = {
        "run": str(sound),
        "runs": str(root),
        "model": str(folder / "model.onnx"),
        "data": str(folder / "data.csv"),
    }

    def line(dice: random.Random) -> bytes:
        arguments = dice.choice(COMMANDS).split()
        said = [part.replace("?", dice.choice(GIVEN)) if "?" in part else part for part in arguments]
        for name, there in place.items():
            said = [part.replace("{" + name + "}", there) for part in said]
        return json.dumps(said).encode()

    def read(file: Path) -> None:
        try:
            arguments = json.loads(file.read_bytes())
        except ValueError:
            return
        if isinstance(arguments, list) and all(isinstance(part, str) and "\0" not in part for part in arguments):
            here = Path.cwd()
            os.chdir(file.parent)
            try:
                _invoked(arguments)
            finally:
                os.chdir(here)

    return {"command line": Sample(b"", read, line, is_slow=True)}


def _each(*looks: Callable[[], None]) -> None:
    """All of them, whatever one refuses; then raises what the first has refused."""
    from edgedl.core import EdgedlError

    refused = []
    for look in looks:
        try:
            look()
        except EdgedlError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _invoked(arguments: Sequence[str]) -> None:
    """Runs the program in this process. Raises what it ends by, `UsageError` for a status that is not 0."""
    from typer.testing import CliRunner

    from edgedl.cli.main import app
    from edgedl.core import UsageError

    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code:
        raise UsageError(f"status {done.exit_code}")


def by_ending(found: Mapping[str, Sample]) -> dict[str, Reader]:
    """What reads files of each ending."""
    return {Path(name).suffix: sample.reader for name, sample in reversed(found.items())}
