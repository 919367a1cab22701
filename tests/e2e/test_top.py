"""`ztlens top` and `observe` on a terminal and in a pipe, over real traffic."""

import codecs
import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.netns import Lab, wait_for
from tests.support.until import PATIENCE
from ztlens.parts import ztlens_command

POLICY = """version: 1
default: deny
identities:
  near: {addresses: [10.77.0.1]}
  far: {addresses: [10.77.0.2]}
rules:
  - {name: web, from: far, to: near, ports: [8080/udp], action: allow}
"""
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>])")


class Terminal:
    """A command on a pseudo-terminal of 120 × 30."""

    def __init__(self, one: Installation, *arguments: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(30, 120)
        self._settings = termios.tcgetattr(self._master)
        self._process = subprocess.Popen(
            ztlens_command(*arguments), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (Ctrl-C comes from the terminal)
            env=one.environment() | {"TERM": "xterm-256color"} | environment,
        )  # fmt: skip
        os.close(slave)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # a character may come in two pieces
        self.raw = ""

    @property
    def text(self) -> str:
        """All it has written, without escape sequences."""
        return ESCAPE.sub("", self.raw)

    def read(self) -> None:
        """What there is now."""
        with contextlib.suppress(OSError):
            while select.select([self._master], [], [], 0.1)[0]:
                data = os.read(self._master, 65536)
                if not data:
                    return
                self.raw += self._decode(data)

    def until(self, *texts: str) -> None:
        def there() -> bool:
            self.read()
            return all(text in self.text for text in texts)

        try:
            wait_for(there, repr(texts))
        except AssertionError as error:
            self._process.kill()
            raise AssertionError(self.text[-4000:]) from error

    def resize(self, lines: int, columns: int) -> None:
        """As a window does that is dragged: the kernel sends SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def drawings(self) -> list[list[str]]:
        """The lines of each whole screen it has drawn."""
        self.read()
        drawings = (ESCAPE.sub("", drawing) for drawing in self.raw.split("\x1b[H")[1:])
        return [drawing.split("\r\n") for drawing in drawings if drawing]

    def press(self, key: bytes) -> int:
        """Press a key that ends it; the exit status."""
        os.write(self._master, key)
        return self.ended(f"its end after {key!r}")

    def terminate(self) -> int:
        self._process.terminate()
        return self.ended("its end after SIGTERM")

    def ended(self, what: str) -> int:
        """The exit status; it gave the terminal back as it was."""
        try:
            wait_for(lambda: (self.read(), self._process.poll())[1] is not None, what)
            assert termios.tcgetattr(self._master) == self._settings
        finally:
            self._process.kill()
            os.close(self._master)
        return self._process.wait(PATIENCE)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Installation]:
    """An installation that sees three allowed and one denied UDP flow, again and again."""
    with Lab() as lab:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.77.0.1/24")
        lab.address(far, "eth0", "10.77.0.2/24")
        with Installation(lab, tmp_path, netns=near) as one:
            up = one.up("--policy", one.policy(POLICY))
            stop = threading.Event()

            def talk() -> None:
                while not stop.wait(0.2):
                    for port in (8080, 8080, 8080, 53):
                        sender = lab.open(far, socket.AF_INET, socket.SOCK_DGRAM)  # another flow
                        sender.sendto(b"x", ("10.77.0.1", port))
                        sender.close()

            talking = threading.Thread(target=talk)
            talking.start()
            try:
                yield one
            finally:
                stop.set()
                talking.join()
            one.down(up)


def test_top_and_observe(busy: Installation) -> None:
    wait_for(lambda: busy.value("SELECT count(*) FROM verdicts") > 20, "verdicts")
    on_a_terminal(busy)
    at_other_sizes(busy)
    over_a_restart(busy)
    in_a_pipe(busy)
    followed(busy)


def on_a_terminal(one: Installation) -> None:
    for by, shown in (("pair", ("far", "near", "8080", "web", "53", "default")), ("rule", ("web", "default"))):
        top = Terminal(one, "top", "--by", by)
        top.until("node n1, mode monitor, revision 1;", "live flows", "sink 0 messages behind", *shown, "allow", "deny")
        assert "\x1b[32mallow" in top.raw and "\x1b[33mdeny" in top.raw
        assert top.press(b"q" if by == "pair" else b"\x03") == 0
        assert "Traceback" not in top.text
        assert top.raw.endswith("\x1b[?25h\x1b[?1049l")  # the cursor is back, and what was there before
    top = Terminal(one, "top", NO_COLOR="1")
    top.until("web", "allow")
    assert top.press(b"q") == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7][;m]", top.raw)


def at_other_sizes(one: Installation) -> None:
    """Every drawing is as high and wide as the terminal was, the newest as it is; names are cut before numbers."""
    top = Terminal(one, "top")
    top.until("web", "53", "q ends")
    sizes = [(30, 120), (12, 70), (5, 20), (1, 1), (40, 160)]
    for lines, columns in sizes[1:]:
        before = len(top.drawings())
        top.resize(lines, columns)

        def drawn(before: int = before, size: tuple[int, int] = (lines, columns)) -> list[str]:
            return next((found for found in top.drawings()[before:] if shape(found) == size and shows_web(found)), [])

        found = [line.strip() for line in wait_for(drawn, f"a drawing of {lines} lines of {columns}")]
        if columns >= 70:
            assert "by pair, over 10 s; q ends" in found
            head, _, first = (line.split() for line in found[found.index("") + 1 :][:3])
            assert head[2:4] == ["proto", "dport"] and head[5:] == ["decision", "verdicts/s", "flows/s", "dropped/s"]
            assert head[0] == ("src_identity" if columns > 70 else "src_…")
            assert first[:6] == ["far", "near", "udp", "8080", "web", "allow"]
            assert all(re.fullmatch(r"[0-9]+[.][0-9]", number) for number in first[6:]) and len(first) == 9
    assert {shape(found) for found in top.drawings()[:-1]} <= {*sizes}
    assert top.terminate() == 0
    assert "Traceback" not in top.text and top.raw.endswith("\x1b[?25h\x1b[?1049l")


def shows_web(drawing: list[str]) -> bool:
    """Where there is room: whoever sends may have stood still for as long as rates look back."""
    return len(drawing[0]) < 70 or any(" web " in line for line in drawing)


def shape(drawing: list[str]) -> tuple[int, int]:
    """Lines and columns; no columns where they differ."""
    columns = {len(line) for line in drawing}
    return len(drawing), columns.pop() if len(columns) == 1 else 0


def over_a_restart(one: Installation) -> None:
    """The sink dies under it: it says so, shows what it saw last, and goes on by itself."""
    top = Terminal(one, "top")
    top.until("web")
    up = json.loads((one.run_dir / "up.json").read_text())
    os.kill(up["pid"], signal.SIGSTOP)  # else the sink may be back before anybody misses it
    try:
        os.kill(up["parts"]["sink"], signal.SIGKILL)
        top.until("; as it was at")
    finally:
        os.kill(up["pid"], signal.SIGCONT)
    wait_for(lambda: one.answers("sink"), "the sink")

    def recovered() -> bool:
        top.raw = ""
        top.until("q ends")
        return "as it was at" not in top.text

    wait_for(recovered, "a look without trouble")
    assert top.press(b"q") == 0


def in_a_pipe(one: Installation) -> None:
    done = wait_for(lambda: (d := one.run("top", "--by", "port")) and " 53 " in d.stdout and d, "rates of both ports")
    assert "\x1b" not in done.stdout and done.stderr == ""
    head, _, *rest = done.stdout.splitlines()
    assert head.startswith("node n1, mode monitor, revision 1; ")
    assert rest[0].split() == ["proto", "dport", "decision", "verdicts/s", "flows/s", "dropped/s"]
    assert [line.split()[:3] for line in rest[1:3]] == [["udp", "8080", "allow"], ["udp", "53", "deny"]]
    process = subprocess.Popen(
        ztlens_command("top", "-o", "json", "-n", "1"), env=one.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    looks = list(itertools.islice((look for line in process.stdout if (look := json.loads(line))["top"]), 2))
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""
    assert looks[0]["time"] < looks[1]["time"]
    for found in looks:
        (row,) = found["top"]
        assert {name: row[name] for name in ("src_identity", "dst_identity", "proto", "dport", "rule", "decision")} == {
            "src_identity": "far", "dst_identity": "near", "proto": "udp", "dport": 8080, "rule": "web",
            "decision": "allow",
        }  # fmt: skip
        assert row["flows"] > 0 and row["verdicts"] >= row["flows"] and row["dropped"] == 0
        assert found["collector"]["mode"] == "monitor" and found["nodes"] == {"n1": "live"}


def followed(one: Installation) -> None:
    """`observe -f`: coloured and aligned on a terminal, plain and line by line in a pipe."""
    live = Terminal(one, "observe", "-f", "--last", "3")
    live.until("ALLOW", "DENY  WOULD BE dropped")
    assert live.press(b"\x03") == 130
    assert "\x1b[32mALLOW" in live.raw and "\x1b[33mDENY" in live.raw
    lines = [line for line in live.text.splitlines() if " → " in line]
    assert len({line.index(" → ") for line in lines}) == 1, lines
    process = subprocess.Popen(
        ztlens_command("observe", "-f"),
        env=one.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert "\x1b" not in line and " → " in line
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""


def test_top_without_a_sink_and_with_wrong_words(tmp_path: Path) -> None:
    with Lab() as lab, Installation(lab, tmp_path) as one:
        _, error, hint = one.run("top", status=3).told
        assert "sink" in error + hint
        assert one.run("top", "--by", "colour", status=2).told[2] == "one of pair, rule, port, source"
        assert one.run("top", "-o", "csv", status=2).told[2] == "one of table, json"
