"""Devices over ssh: a real OpenSSH server on loopback, connections that break, and machines that answer garbage."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgedl import devices
from edgedl.core import TargetError, UsageError
from edgedl.devices import ssh
from edgedl.links import arm64
from edgedl.links import ssh as ssh_link
from edgedl.remote import deploying, on_device, sending
from tests import made_run
from tests.ssh_server import HOST, Server

PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run")


class Board:
    """A device of the configuration file; `folder` is where it keeps what is sent, whose name is hostile to shells."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server, self.root, self.folder = server, root, root / "it's $(here); \"\\"
        self.folder.mkdir()
        self.set_up(sys.executable)

    def set_up(self, python: str) -> None:
        table = {"address": f"ssh://{HOST}", "python": python, "folder": str(self.folder)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        (self.root / "edgedl").mkdir(exist_ok=True)
        (self.root / "edgedl" / "devices.toml").write_text("\n".join(["[jetson]", *lines]))

    def wrapped(self, script: str) -> None:
        """Makes a program of a shell's lines the Python there."""
        file = self.root / "python there"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        self.set_up(str(file))

    def soon(self, when: Callable[[], Any], then: Callable[[], Any]) -> threading.Thread:
        """Does something as soon as something is so."""

        def waited() -> None:
            deadline = time.monotonic() + 60
            while not when() and time.monotonic() < deadline:
                time.sleep(0.005)
            then()

        thread = threading.Thread(target=waited)
        thread.start()
        return thread

    def holds(self, pattern: str) -> list[Path]:
        return list(self.folder.glob(f"edgedl-*/{pattern}"))

    def processes(self) -> list[int]:
        """Those there that a connection to this server has started."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                if re.search(rf"SSH_CONNECTION=[^\0]* {self.server.port}\0", file.read_text(errors="replace")):
                    found.append(int(file.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture
def board(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """Nothing is left on it, whatever happened."""
    monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(ssh, "PAUSES_S", (0.05, 0.1, 0.2))
    server.trust("host")
    server.allow()
    board = Board(server, tmp_path)
    yield board
    deadline = time.monotonic() + 60
    while (list(board.folder.iterdir()) or board.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(board.folder.iterdir()) == []
    assert board.processes() == []
    assert not list(tmp_path.rglob("pwned"))


def rows_by_variant(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in content["rows"] if row["target"] == "onnxruntime"}


def test_a_run_is_measured_there_whatever_becomes_of_the_connection(board, made):
    broken = []
    killer = board.soon(lambda: board.holds(".run-0"), lambda: broken.append(board.server.break_connections()))
    content = on_device.bench(made, "jetson", 0.02)
    killer.join()
    assert broken[0] > 0
    rows = rows_by_variant(content)
    assert set(rows) == {"float", "compressed"}
    for row in rows.values():
        assert (row["status"], row["score"]) == ("ok", row["score_here"])
        assert row["latency_ms"]["median"] > 0
        assert row["agreement"]["sqnr_db"] > 100
    assert rows["compressed"]["speedup"]["verdict"]
    assert {left["reason"] for left in content["left_out"]} == {sending.NO_TENSORRT}
    assert json.loads((made / "devices" / "jetson.json").read_text()) == content


def test_the_address_alone_will_do(board, tmp_path):
    (board.root / "edgedl" / "devices.toml").unlink()
    with devices.connect(f"ssh://{HOST}") as device:
        assert device.name.endswith(f"({os.uname().machine})")


def test_an_arm64_machine_is_measured_like_any_other(board, made, tmp_path):
    root = arm64.home()
    if not root.is_dir():
        pytest.skip(f"no emulated arm64 here: `{arm64.SETUP}` makes it")
    system, qemu = root / "system", shlex.quote(str(root / "qemu"))
    board.wrapped(
        f"PYTHONPATH={shlex.quote(str(root / 'packages'))} PYTHONNOUSERSITE=1 "
        f'exec {qemu} -L {shlex.quote(str(system))} {shlex.quote(str(system / "usr/bin/python3"))} "$@"'
    )
    run = shutil.copytree(made, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"rows": report["rows"][:1]}))
    content = on_device.bench(run, "jetson", 0.01)
    assert content["environment"]["machine"] == "aarch64"
    (row,) = content["rows"]
    assert (row["status"], row["score"]) == ("ok", row["score_here"])


def test_what_has_arrived_is_not_sent_again(board, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"small")
    large.write_bytes(os.urandom(1 << 20) * 24)
    broken = []
    with devices.connect("jetson") as device:
        device.push({"small": small})
        (there,) = board.holds("small")
        first = there.stat()
        killer = board.soon(
            lambda: any(file.stat().st_size for file in board.holds(".partial") if file.exists()),
            lambda: broken.append(board.server.break_connections()),
        )
        device.push({"small": small, "large": large})
        killer.join()
        assert broken[0] > 0
        assert (there.stat().st_ino, there.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
        (tmp_path / "back").mkdir()
        board.server.break_connections()
        device.pull(["large", "small", "nothing"], tmp_path / "back")
    assert (tmp_path / "back" / "large").read_bytes() == large.read_bytes()
    assert {file.name for file in (tmp_path / "back").iterdir()} == {"large", "small"}


def test_a_connection_that_stays_away_is_one_line_and_the_folder_goes_by_itself(board, tmp_path, monkeypatch):
    hasty = tmp_path / "far_end.py"
    code = ssh_link.FAR_END.read_text()
    hasty.write_text(code.replace("LEASE_S = 900", "LEASE_S = 5").replace("LOOKS_S = 10", "LOOKS_S = 0.1"))
    assert hasty.read_text() != code
    monkeypatch.setattr(ssh_link, "FAR_END", hasty)

    def vanish() -> None:
        board.server.allow("other")  # nobody comes in any more
        board.server.break_connections()

    killer = board.soon(lambda: board.holds(".run-0"), vanish)
    with pytest.raises(TargetError, match="it refuses the keys") as caught, devices.connect("jetson") as device:
        device.run(["-c", "import time; time.sleep(60)"])
    killer.join()
    assert PRINTABLE.fullmatch(str(caught.value))


def test_a_file_is_left_there_and_nothing_else(board, made, tmp_path):
    to = tmp_path / "it's left; $(touch pwned)"
    killer = board.soon(lambda: board.holds(".run-0"), board.server.break_connections)
    found = deploying.deploy(made, "jetson", "onnxruntime", None, str(to))
    killer.join()
    assert found["folder"] == str(to)
    assert {file.name for file in to.iterdir()} == set(found["files"])
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=to, check=False).returncode == 0
    done = subprocess.run(["sh", "-c", found["command"]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "right"), done.stderr
    (to / "SHA256SUMS").unlink()
    with pytest.raises(TargetError, match="is there already, and no folder of deployed files"):
        deploying.deploy(made, "jetson", "onnxruntime", None, str(to))
    assert {file.name for file in tmp_path.iterdir() if "left" in file.name} == {to.name}


def test_lost_for_good_says_how_often_it_was_tried(board):
    with devices.connect("jetson") as device:
        board.server.break_connections()
        board.server.be_at(port=1)
        with pytest.raises(TargetError, match=r"the connection broke, and 3 more tries .*: .*Connection refused"):
            device.run(["-c", "pass"])
        board.server.be_at()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda board: board.server.trust("other"), "host key is not the one that known_hosts has"),
        (lambda board: (board.server.folder / "known_hosts").write_text(""), "its host key is not in known_hosts"),
        (lambda board: board.server.allow("other"), "it refuses the keys that ssh has: ssh-copy-id"),
        (lambda board: board.set_up("/nowhere/python"), "there is no /nowhere/python there: name its Python in dev"),
        (lambda board: board.set_up(f"true; touch {board.root}/pwned"), "there is no true; touch "),
        (lambda board: board.wrapped(f'exec {sys.executable} -I -S "$@"'), "there is no numpy for .*python there"),
        (lambda board: board.wrapped("echo 'Segmentation fault' >&2; exit 139"), "status 139.*: Segmentation fault"),
        (lambda board: board.folder.rmdir(), "No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_or_used_is_one_line(change, said, board):
    change(board)
    with pytest.raises(TargetError, match=said) as caught, devices.connect("jetson"):
        pass
    assert PRINTABLE.fullmatch(str(caught.value))
    board.folder.mkdir(exist_ok=True)


OLD = "import sys; sys.version_info = (3, 8, 10); sys.version = '3.8.10 (old)'; exec(sys.argv[2])"


def test_a_python_that_is_too_old_is_told_with_its_version(board):
    board.wrapped(f'exec {sys.executable} -c "{OLD}" "$@"')
    with pytest.raises(TargetError, match=r"its Python is too old for edgedl: 3\.8\.10$"), devices.connect("jetson"):
        pass


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("ssh://nowhere.invalid", "Could not resolve hostname nowhere.invalid"),
        ("ssh://127.0.0.1:1", "connect to host 127.0.0.1 port 1: Connection refused"),
    ],
)
def test_a_host_that_is_none_is_one_line(where, said, board):
    with pytest.raises(TargetError, match=f"^{where}: .*{said}"), devices.connect(where):
        pass


@pytest.mark.parametrize(
    "which",
    ["", "-oProxyCommand=touch pwned", "x@-oProxyCommand=touch", "-lroot@host", "a b", "a;touch pwned",
     "$(touch pwned)", "a\nb", "a/b", "host:port", "host:22:22", "[::1", "a@b@c", "`x`", "%h", "host:-1"],
)  # fmt: skip
def test_an_address_that_is_none_reaches_no_shell(which, board):
    with pytest.raises(UsageError, match="no address of a machine"), devices.connect(f"ssh://{which}"):
        pass


LIAR = """
import json, re, sys
given = sys.stdin.buffer.read1(1 << 20)
asked = json.loads(given[given.index(b'{{"token"') :].split(b"\\n")[0])
print("Welcome!", flush=True)
honest = {{"open": {{"name": "x", "has": {{"numpy": True}}}}, "run": {{"status": 0, "out": "", "err": ""}}}}
lies = {lies}
answer = lies.get(asked["do"], honest.get(asked["do"], {{}}))
print(asked["mark"], answer if isinstance(answer, str) else json.dumps(answer), flush=True)
if asked["do"] == "pull":
    print(asked["mark"], json.dumps(lies.get("file")), flush=True)
print("x" * 100)
"""


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ("cat /dev/urandom", "answers garbage"),
        ("true", r"does not answer \(status 0\)"),
        ("echo This account is not available.; exit 1", "it said 'This account is not available.'"),
        ({"open": {"name": 5, "has": {"numpy": True}}}, "answers garbage: no name"),
        ({"open": {"error": "\x1b[2J\nno"}}, r"ssh://board: \[2J no"),
        ({"run": {"status": "0"}}, "does not say how x ended"),
        ({"file": {"size": 5000, "sha256": "0"}}, "result.json broke off"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_device_that_answers_garbage_is_one_line(lies, said, board, tmp_path):
    file = tmp_path / "liar.py"
    file.write_text(LIAR.format(lies=repr(lies)))
    liar = lies if isinstance(lies, str) else f"{sys.executable} {file}"
    board.server.allow(options=f'command="{liar}"')

    def talk() -> None:
        with devices.connect("jetson") as device:
            device.push({"x": file})
            device.run(["x"])
            device.pull(["result.json"], tmp_path)

    with pytest.raises(TargetError, match=said) as caught:
        talk()
    assert PRINTABLE.fullmatch(str(caught.value))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"y\n" * 100_000, "answers garbage: 'y'"),
        (b"x" * 100_000, "answers garbage: 'x"),
        (b"mark garbage\n", "answers garbage: 'mark garbage'"),
        (b"mark " + b"[" * 100_000 + b"\n", "answers garbage"),
        (b"mark " + b"[" * 2_000_000, "answers garbage"),
        (b"mark 7\n", "answers garbage"),
        (b'mark "\x1b[2J\xff"\n', "answers garbage"),
        (b'greeting\nmark null\nmark {"size": 9, "sha256": "0"}\n123', "broke off"),
        (b'mark {"size": 3, "sha256": "0"}\n123', "arrived otherwise than it was said to be"),
        (b'mark {"size": 1152921504606846976}\n123', "it has a file of 1152921504606846976 bytes"),
        (b'mark {"size": "3"}\n123', "it has a file of 3 bytes"),
        (b"greeting without an end", "no answer"),
        (None, "it has not said a word"),
    ],
)
def test_what_comes_back_is_not_trusted(said, error, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_link, "SILENCE_S", 0.05)
    here, there = os.pipe()
    writer = threading.Thread(target=lambda: said is None or write(there, said))
    writer.start()
    with os.fdopen(here, "rb") as stream:
        answers = ssh_link.Answers(stream, "mark", "ssh://board")

        def read() -> None:
            header = answers.next()
            if header is None:
                raise TargetError("no answer")
            ssh_link._receive(answers, header, tmp_path / "file")

        with pytest.raises((TargetError, ssh_link.Lost), match=error) as caught:
            read()
    writer.join()
    if said is None:
        os.close(there)
    assert PRINTABLE.fullmatch(str(caught.value))
    assert list(tmp_path.iterdir()) == []


def write(descriptor: int, said: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as stream:
        stream.write(said)


def test_a_shell_that_greets_is_no_garbage(board):
    board.server.allow(options='command="echo Welcome; echo; exec sh -c \\"$SSH_ORIGINAL_COMMAND\\""')
    with devices.connect("jetson") as device:
        assert device.run(["-c", "print('it ran')"]).stdout == "it ran\n"


def test_a_link_there_is_not_followed(board, tmp_path):
    with devices.connect("jetson") as device:
        device.run(["-c", "import os; os.symlink('/etc/passwd', 'result.json')"])
        device.pull(["result.json"], tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_line(board, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(board.folder)], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        large = tmp_path / "large"
        large.write_bytes(bytes(1_000_000))
        with devices.connect("jetson") as device, pytest.raises(TargetError, match=r"No space left .*0\.\d MB free\)"):
            device.push({"large": large})
        assert list(board.folder.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(board.folder)], check=True)


def test_a_disk_that_fills_up_while_it_runs_is_told(board):
    board.wrapped(f'ulimit -f 400; exec {sys.executable} "$@"')
    with devices.connect("jetson") as device:
        done = device.run(["-c", "open('answers', 'wb').write(bytes(1 << 20))"])
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
