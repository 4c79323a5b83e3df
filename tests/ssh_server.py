"""A real OpenSSH server on loopback with a key of its own, and an `ssh` in PATH that knows it and no other."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
KEYGEN, SSH = shutil.which("ssh-keygen"), shutil.which("ssh")
NOT_HERE = "no OpenSSH server here: apt-get install openssh-server"
HOST = "board"
"""What the client's configuration calls it."""


class Server:
    """sshd as a child of the tests; `folder` has its keys and what the client knows of it, `bin` belongs into PATH."""

    def __init__(self, folder: Path) -> None:
        if not (SSHD and KEYGEN and SSH):
            pytest.skip(NOT_HERE)
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("host", "user", "other"):
            subprocess.run([KEYGEN, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.trust("host")
        self.allow()
        self._write("sshd_config", f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {folder}/host
            AuthorizedKeysFile {folder}/authorized_keys
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            MaxStartups 100
            """)  # fmt: skip
        self.be_at()
        self._write("bin/ssh", f'#!/bin/sh\nexec {SSH} -F {shlex.quote(str(folder / "config"))} "$@"\n')
        (self.bin / "ssh").chmod(0o755)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # which the package's service would have made
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        deadline = time.monotonic() + 60
        while "listening" not in (folder / "log").read_text():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)

    def close(self) -> None:
        self._process.terminate()
        self.break_connections()
        self._process.wait()

    def trust(self, key: str) -> None:
        """What the client's known hosts have for this server."""
        public = (self.folder / f"{key}.pub").read_text()
        self._write("known_hosts", "".join(f"{host} {public}" for host in (HOST, f"[127.0.0.1]:{self.port}")))

    def be_at(self, port: int | None = None) -> None:
        """Where the client looks for it."""
        self._write("config", f"""
            Host {HOST}
                HostName 127.0.0.1
                Port {port or self.port}
                IdentityFile {self.folder}/user
            Host *
                IdentitiesOnly yes
                IdentityAgent none
                IdentityFile {self.folder}/user
                GlobalKnownHostsFile none
                UserKnownHostsFile {self.folder}/known_hosts
            """)  # fmt: skip

    def allow(self, key: str = "user", options: str = "") -> None:
        """Who may come in."""
        self._write("authorized_keys", f"{options}{' ' if options else ''}{(self.folder / f'{key}.pub').read_text()}")

    def break_connections(self) -> int:
        """Ends the processes that serve connections, as if the cable had been pulled; says how many."""
        found = [process for parent in _children(self._process.pid) for process in (parent, *_children(parent))]
        for process in found:
            if _name(process) in ("sshd", "sshd-session", "sshd-auth"):
                os.kill(process, signal.SIGKILL)
        return len(found)

    def _write(self, name: str, text: str) -> None:
        lines = [line.removeprefix(" " * 12) for line in text.splitlines()]
        (self.folder / name).write_text("\n".join(lines) + "\n")


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [int(child) for child in tasks.read_text().split()]
    except OSError:
        return []


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
