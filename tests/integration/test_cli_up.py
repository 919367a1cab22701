"""`ztlens up` and `ztlens down` on real packets: everything on one host, parts that die, starts that fail."""

import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.netns import Lab, call_in, wait_for
from tests.support.until import PATIENCE
from ztlens.config import PINS
from ztlens.parts import clean_environment, ztlens_command

POLICY = """
version: 1
default: deny
identities:
  near: {addresses: [10.77.0.1]}
  far: {addresses: [10.77.0.2]}
rules:
  - {name: far-to-near, from: far, to: near, ports: [7001/udp], action: allow}
"""


@dataclass
class Installation:
    """One instance on a veth pair; `ztlens` runs a command line for it."""

    lab: Lab
    directory: Path
    name: str
    near: str
    far: str
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return clean_environment() | {"ZTLENS_CONFIG": str(self.directory / "ztlens.toml")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        errors = (self.directory / "errors").open("a")
        process = subprocess.Popen(
            ztlens_command(*arguments), env=self.environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        errors.close()
        self.running.append(process)
        return process

    def up(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and wait until it tells what to try next."""
        (self.directory / "errors").unlink(missing_ok=True)
        process = self.start("up", "-i", "veth0", *arguments)
        wait_for(lambda: "Ctrl-C ends it" in self.errors() or process.poll() is not None, "`up` to be up")
        assert process.poll() is None, self.errors()
        return process

    def errors(self) -> str:
        return (self.directory / "errors").read_text()

    def ztlens(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            ztlens_command(*arguments), env=self.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, done.stderr
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ztlens(*arguments, "-o", "json"))

    def send(self, count: int, port: int) -> None:
        """Datagrams from `far` to `near`, each received before the next goes out."""
        receiver, sender = (
            self.lab.udp(self.near, "10.77.0.1", port),
            self.lab.udp(self.far, "10.77.0.2", 40_000 + port % 100),
        )
        for _ in range(count):
            sender.sendto(b"x" * 58, ("10.77.0.1", port))
            assert receiver.recv(100)
        receiver.close()
        sender.close()

    def parts(self) -> dict[str, int]:
        """Process ids by the part's name, as the kernel has them: up.json tells the same."""
        info = json.loads((self.directory / "run" / "up.json").read_text())
        out: dict[str, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
                command = (path.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(fields[1]) == info["pid"]:
                name = "nats" if command[0].endswith(b"nats-server") else command[3].decode()
                out[name] = int(path.parent.name)
        assert info["parts"] == out
        return out


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with Lab() as lab:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.77.0.1/24")
        lab.address(far, "eth0", "10.77.0.2/24")
        one = Installation(lab, tmp_path, lab.prefix, near, far)
        (tmp_path / "policy.yaml").write_text(POLICY)
        (tmp_path / "ztlens.toml").write_text(
            f'instance = "{one.name}"\nnode = "n1"\nstate = "{tmp_path / "state"}"\nrun_dir = "{tmp_path / "run"}"\n'
            f'netns = "{near}"\nweb = "off"\n[knobs]\nring_bytes = "1MiB"\nflows_max = 4096\n'
        )
        yield one
        for process in one.running:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            if process.stdout is not None:
                process.stdout.close()
        one.ztlens("down")
        assert not (PINS / one.name).exists()


def privileges(pid: int) -> tuple[set[str], set[str]]:
    """What the kernel says of all its threads: capabilities in any set, as hexadecimal, and no_new_privs."""
    found = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    capabilities = re.findall(r"^Cap\w+:\s+0*([0-9a-f]+)$", found, re.MULTILINE)
    return set(capabilities), set(re.findall(r"^NoNewPrivs:\s+(\d)$", found, re.MULTILINE))


def settled(one: Installation, packets: int) -> bool:
    """Whether all UDP to ports 7001 and 7002 is in the store: flows are told again when they end or are sampled."""
    found = one.json("sql", "SELECT coalesce(sum(packets), 0) AS n FROM flows WHERE dport IN (7001, 7002)")
    return bool(found[0]["n"] == packets)


def test_a_life(installation: Installation) -> None:
    one = installation
    process = one.up("--policy", str(one.directory / "policy.yaml"), "--observe", "-o", "json")
    assert "watching veth0" in one.errors() and "mode monitor, revision 1" in one.errors()
    follower = one.start("observe", "-f", "-o", "json", "--port", "7002", "--event", "new")
    one.send(12, 7001)

    # Live: sent again and again until the follower, which may just be starting, shows one.
    assert follower.stdout is not None
    port = iter(range(41_000, 42_000))

    def live() -> str:
        with call_in(one.far, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.bind(("10.77.0.2", next(port)))
            sender.sendto(b"x", ("10.77.0.1", 7002))
        return follower.stdout.readline() if select.select([follower.stdout], [], [], 0.05)[0] else ""

    row = json.loads(wait_for(live, "a live verdict"))
    assert (row["decision"], row["outcome"], row["reason"]) == ("deny", "passed", "default")
    assert (row["src_identity"], row["dst_identity"], row["dport"]) == ("far", "near", 7002)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(20) == 130

    assert one.json("status")["healthy"] is True
    assert one.json("mode")["mode"] == "monitor"
    one.ztlens("up", "-i", "veth0", status=2)
    assert "already up" in one.said

    one.ztlens("down")
    assert process.wait(PATIENCE) == 0
    assert "the ledger is balanced" in one.errors()
    live_rows = [json.loads(line) for line in process.communicate()[0].splitlines()]
    assert {row["rule"] for row in live_rows if row["dport"] == 7001} == {"far-to-near"}
    assert not (one.directory / "run").exists() and not (PINS / one.name).exists()

    # With nothing running, the file answers: the same commands.
    (flow,) = one.json("sql", "SELECT packets, bytes, decision, rule, ended FROM flows WHERE dport = 7001")
    assert flow == {"packets": 12, "bytes": 1200, "decision": "allow", "rule": "far-to-near", "ended": True}
    account = one.json("ledger")
    assert account["balanced"] is True and account["rings"][0]["final"] is True
    assert "down already" in (one.ztlens("down") or one.said)


def test_parts_that_die_come_back_and_nothing_is_lost(installation: Installation) -> None:
    one = installation
    process = one.up("--policy", str(one.directory / "policy.yaml"))
    one.send(10, 7001)
    for name in ("sink", "nats", "collector"):
        before = one.parts()
        os.kill(before[name], signal.SIGKILL)
        one.send(10, 7002)
        wait_for(lambda name=name: f"{name} is back" in one.errors(), f"{name} to come back")
        assert {other for other, pid in one.parts().items() if before[other] != pid} == {name}
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert "the ledger is balanced" in one.errors(), one.errors()
    assert settled(one, 40)
    assert one.json("ledger")["balanced"] is True


def test_up_killed_leaves_the_datapath_to_the_next_up(installation: Installation) -> None:
    """With a state directory of somebody else, in which root without capabilities would be a stranger."""
    one = installation
    (one.directory / "state").mkdir(0o700)
    os.chown(one.directory / "state", 65534, 65534)
    process = one.up("--policy", str(one.directory / "policy.yaml"))
    parts = one.parts()
    assert privileges(parts["sink"]) == ({"0", "2"}, {"1"})  # CAP_DAC_OVERRIDE
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in parts.values()), "its children to end")
    assert (PINS / one.name).exists()
    one.send(5, 7001)  # judged, counted and kept in the ring with nobody there
    process = one.up()
    assert "adopted" in one.errors()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert settled(one, 5)


def test_down_after_a_crash_takes_the_programs_away(installation: Installation) -> None:
    one = installation
    process = one.up()
    assert "no policy yet" in one.errors()
    process.kill()
    process.wait()
    wait_for(lambda: not (one.directory / "run" / "control.sock").exists(), "the collector to end")
    one.ztlens("down")
    assert "took away the kernel side" in one.said
    assert not (PINS / one.name).exists()


def test_starts_that_fail_say_why_and_leave_nothing(installation: Installation, tmp_path: Path) -> None:
    one = installation
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for arguments, status, says in (
        (["-i", "nosuch"], 2, "there is no interface nosuch"),
        (["-i", "veth0", "--netns", "nosuch"], 2, "no network namespace nosuch"),
        (["-i", "veth0", "--nats-port", port], 3, f"port {port} on 127.0.0.1 is in use"),
        (["-i", "veth0", "--nats", f"nats://127.0.0.1:{port}"], 3, "NATS server"),
        (["-i", "veth0", "--state", "/proc/nowhere"], 2, "/proc/nowhere"),
    ):
        assert one.ztlens("up", *arguments, status=status) == ""
        assert says in one.said and len(one.said.splitlines()) == 2, one.said
        assert not (one.directory / "run" / "up.json").exists()
    taken.close()
    # The sink and the collector are started as children: what they say is what is said.
    (one.directory / "state").mkdir(exist_ok=True)
    (one.directory / "state" / "ztlens.duckdb").write_text("this is no database, but somebody's text" * 1000)
    one.ztlens("up", "-i", "veth0", status=3)
    assert "ztlens.duckdb" in one.said and len(one.said.splitlines()) == 2, one.said
    assert not (PINS / one.name).exists()


def test_the_page_is_a_part_of_it(installation: Installation) -> None:
    """It answers who has the link; killed, it is back with the same token, and nobody else was touched."""
    up = installation.up("--web", "127.0.0.1:0")
    file = installation.directory / "run/web.url"
    link = file.read_text()
    address, _, secret = link.partition("?token=")
    assert f"web: {address} (`ztlens status` shows the link that lets you in)" in installation.errors()
    assert secret not in installation.errors()  # a file here, else the journal: others read it, too
    assert link in installation.ztlens("status")
    assert file.stat().st_mode & 0o777 == 0o600
    assert httpx.get(link).status_code == 303
    parts = installation.parts()
    for name, pid in parts.items():
        assert (name, *privileges(pid)) == (name, {"0"}, {"1"}) or name == "collector"
    assert privileges(parts["collector"]) == privileges(up.pid)
    os.kill(parts["web"], signal.SIGKILL)
    wait_for(lambda: "web is back (restart 1)" in installation.errors(), "the page to be back")
    assert file.read_text().rpartition("?")[2] == link.rpartition("?")[2]
    assert httpx.get(file.read_text()).status_code == 303
    after = installation.parts()
    assert after["web"] != parts["web"] and after == parts | {"web": after["web"]}
    up.send_signal(signal.SIGTERM)
    assert up.wait(60) == 0
    assert not file.exists()


def test_a_page_that_cannot_be_had_stops_nothing(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        installation.up("--web", f"127.0.0.1:{port}")
        assert f"no page: the page cannot listen on 127.0.0.1:{port}: Address already in use" in installation.errors()
    assert json.loads(installation.ztlens("status", "-o", "json"))["healthy"]


@pytest.mark.parametrize("address", ["7420", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ":1"])
def test_an_address_that_is_none(installation: Installation, address: str) -> None:
    installation.ztlens("web", "--web", address, status=2)
    installation.ztlens("web", "--web", "off", status=2)
    installation.ztlens("web", "--web", "0.0.0.0:0", status=2)
