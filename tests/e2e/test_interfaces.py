"""Interfaces as they come and go: large frames, deleted and made anew while watched, in the end as they were found."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.kernel.probes import PRETEND
from tests.support import programs
from tests.support.installation import Installation
from tests.support.nats import NatsServer
from tests.support.netns import Lab, ip, wait_for
from tests.support.until import PATIENCE

LACKING = {"link": "", "netlink": "xdp_link,tcx_link"}
"""What holds the programs → what the kernel lacks then."""


class Pair:
    """`near` with two links to `far`: veth0 (10.79.0.1) has room for 9,000 bytes, veth1 (10.79.1.1) for 1,500."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.near, self.far = lab.namespace("near"), lab.namespace("far")
        self.link(0, mtu=9000)
        self.link(1)

    def link(self, number: int, mtu: int = 1500) -> None:
        self.lab.link(self.near, f"veth{number}", self.far, f"eth{number}", mtu=mtu)
        self.lab.address(self.near, f"veth{number}", f"10.79.{number}.1/24")
        self.lab.address(self.far, f"eth{number}", f"10.79.{number}.2/24")
        wait_for(lambda: "state UP" in ip("link", "show", f"veth{number}", netns=self.near), "the link to be up")

    def send(self, number: int, port: int, count: int) -> None:
        """Datagrams of 100 bytes to `near`, each received before the next goes out."""
        receiver = self.lab.udp(self.near, f"10.79.{number}.1", port)
        sender: socket.socket = self.lab.udp(self.far, f"10.79.{number}.2", 0)
        for _ in range(count):
            sender.sendto(bytes(100), (f"10.79.{number}.1", port))
            assert len(receiver.recv(1000)) == 100
        receiver.close()
        sender.close()

    def tc(self, *what: str) -> str:
        return subprocess.check_output(["tc", "-n", self.near, *what], text=True)

    def as_found(self) -> str:
        """What a start may not leave changed: links and their programs, qdiscs, filters."""
        links = ip("-o", "link", netns=self.near)
        names = [line.split(":")[1].split("@")[0].strip() for line in links.splitlines()]
        filters = [self.tc("filter", "show", "dev", name, side) for name in names for side in ("egress", "ingress")]
        return "\n".join([links, self.tc("qdisc"), *filters])


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return Pair(lab)


@pytest.fixture
def one(lab: Lab, pair: Pair, tmp_path: Path) -> Iterator[Installation]:
    with Installation(lab, tmp_path / "one", netns=pair.near, interfaces=["veth0", "veth1"]) as one:
        yield one


def test_large_frames_take_generic_xdp_and_say_so(lab: Lab, pair: Pair, tmp_path: Path) -> None:
    with Installation(lab, tmp_path / "one", netns=pair.near) as one:
        up = one.up()
        assert (
            "collector: veth0: generic XDP, the driver refused native (Numerical result out of range); "
            "counts are of merged packets (flag aggregated) and slower; a smaller MTU often helps\n"
        ) in up.said()
        assert "watching veth0 (generic+egress) as node" in up.said()
        assert "xdpgeneric" in ip("link", "show", "veth0", netns=pair.near)
        pair.send(0, 7001, 20)
        one.down(up)
        (flow,) = one.flows("dport = 7001")
        assert (flow["packets"], flow["bytes"], flow["aggregated"]) == (20, 20 * 142, True)
        assert "xdp" not in ip("link", "show", "veth0", netns=pair.near)


@pytest.mark.parametrize("held", LACKING)
@pytest.mark.parametrize("how", ["down", "Ctrl-C", "killed"])
def test_everything_is_as_it_was_found(
    pair: Pair, one: Installation, how: str, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """veth1 has a clsact before, and a filter of somebody else's: both stay, as do all links without ours.

    `held`: by links, or by netlink as on older kernels.
    """
    monkeypatch.setenv(PRETEND, LACKING[held])
    theirs = programs.attach_tc(pair.near, "veth1", handle=7, priority=9)
    before = pair.as_found()
    up = one.up()
    assert set(one.status()["held_by"].values()) == {held}
    assert pair.tc("qdisc").count("clsact") == (1 if held == "link" else 2)
    assert pair.as_found() != before
    if how == "Ctrl-C":
        one.down(up)
    elif how == "down":
        one.run("down")
        assert up.popen.wait(PATIENCE) == 0, up.said()
    else:
        up.kill()
        wait_for(lambda: not one.processes(), "its children to end")
        for name in ("veth0", "veth1"):  # still judged: an upgrade does not fail open
            assert programs.watched(pair.near, name) == (True, True)
        one.run("down")
    assert pair.as_found() == before
    assert programs.tc_id(pair.near, "veth1", 7, 9) == theirs
    assert [path for path in one.leftovers() if not path.endswith((".lock", "up.json", "up.toml"))] == []


def test_deleted_and_made_anew_while_watched(pair: Pair, one: Installation) -> None:
    up = one.up()
    pair.send(1, 7001, 10)
    ip("link", "delete", "veth1", netns=pair.near)
    up.until_said("collector: veth1 is gone; what passes it is not seen")
    assert one.status()["interfaces"] == {"veth0": "generic+egress", "veth1": "not watched"}
    pair.send(0, 7002, 10)  # the other one goes on
    pair.link(1)
    up.until_said("collector: veth1 was made anew, and is watched again")
    assert one.status()["interfaces"] == {"veth0": "generic+egress", "veth1": "native+egress"}
    pair.send(1, 7003, 10)
    one.down(up)
    flows = one.sql("SELECT dport, packets FROM flows WHERE dport BETWEEN 7001 AND 7003 ORDER BY dport")
    assert flows == [{"dport": port, "packets": 10} for port in (7001, 7002, 7003)]
    assert one.leftovers() == [] and "clsact" not in pair.tc("qdisc")
    assert "xdp" not in ip("link", netns=pair.near)


def test_a_program_taken_off_by_somebody_is_told(
    pair: Pair, one: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRETEND, LACKING["netlink"])
    up = one.up()
    ip("link", "set", "dev", "veth1", "xdp", "off", netns=pair.near)
    up.until_said("collector: veth1 is without its program: somebody took it off; what passes it is not seen")
    assert one.status()["interfaces"]["veth1"] == "not watched"
    one.down(up)
    assert one.leftovers() == [] and "clsact" not in pair.tc("qdisc")


def test_a_restart_goes_on_without_an_interface_that_is_gone(pair: Pair, one: Installation) -> None:
    with NatsServer(one.directory.parent / "nats") as server:
        collector = one.collector("--nats", server.url)
        collector.kill()
        ip("link", "delete", "veth1", netns=pair.near)
        collector = one.collector("--nats", server.url)
        assert "there is no interface veth1: it is watched once it comes" in collector.said()
        pair.link(1)
        collector.until_said("veth1 was made anew, and is watched again")
        wait_for(lambda: one.status()["nats"]["connected"], "NATS")
        one.run("down")
        assert collector.popen.wait(PATIENCE) == 0
        assert "clsact" not in pair.tc("qdisc") and "xdp" not in ip("link", netns=pair.near)


def test_a_namespace_that_goes_away(lab: Lab, tmp_path: Path) -> None:
    """Its interfaces go with it; the history is closed in order all the same."""
    with Lab() as other:
        pair = Pair(other)
        with Installation(lab, tmp_path / "one", netns=pair.near) as one:
            up = one.up()
            pair.send(0, 7001, 10)
            ip("netns", "delete", pair.near)
            up.until_said("what passes it is not seen")
            one.down(up)
            assert one.value("SELECT packets FROM flows WHERE dport = 7001") == 10
            assert one.leftovers() == []


def test_egress_alone_and_ingress_alone(lab: Lab, pair: Pair, tmp_path: Path) -> None:
    interfaces = ["veth0:ingress", "veth1:egress"]
    with Installation(lab, tmp_path / "one", netns=pair.near, interfaces=interfaces) as one:
        before = pair.as_found()
        up = one.up()
        assert one.status()["interfaces"] == {"veth0": "generic", "veth1": "egress"}
        pair.send(0, 7001, 5)
        pair.send(1, 7002, 5)
        back = lab.udp(pair.near, "10.79.1.1", 7003)
        there = lab.udp(pair.far, "10.79.1.2", 7004)
        for _ in range(7):
            back.sendto(bytes(100), ("10.79.1.2", 7004))
            assert there.recv(1000)
        one.down(up)
        assert [row["packets"] for row in one.flows("dport = 7001")] == [5]
        assert one.flows("dport = 7002") == []
        assert [(row["packets"], row["egress"]) for row in one.flows("dport = 7004")] == [(7, True)]
        assert pair.as_found() == before


def test_interfaces_by_pattern_that_come_later(lab: Lab, tmp_path: Path) -> None:
    """Nothing matches at first: `up` waits, and says so. Then links of a hundred containers come at once, and go."""
    near = lab.namespace("host")
    with Installation(lab, tmp_path / "one", netns=near, interfaces=["veth*", "tap?:ingress"]) as one:
        up = one.up()
        assert "no interface is veth* yet: those that come are watched" in up.said()
        assert "watching nothing yet as node" in up.said()
        assert "watching nothing yet" in one.run("status").stdout
        far = lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.80.0.1/24")
        lab.address(far, "eth0", "10.80.0.2/24")
        up.until_said("watching veth0 (native+egress)")
        receiver, sender = lab.udp(near, "10.80.0.1", 7001), lab.udp(far, "10.80.0.2")
        for _ in range(12):
            sender.sendto(bytes(100), ("10.80.0.1", 7001))
            assert receiver.recv(1000)
        lines = [f"link add veth{i} type veth peer name other{i}" for i in range(1, 101)]
        ip("-batch", "-", netns=near, lines=lines)
        wait_for(lambda: len(one.status()["interfaces"]) == 101, "all to be watched")
        assert set(one.status()["interfaces"].values()) == {"native+egress"}
        assert "and 93 more" in one.run("status").stdout
        ip("-batch", "-", netns=near, lines=[f"link delete veth{i}" for i in range(1, 101)])
        ip("link", "set", "veth0", "down", netns=near)
        ip("link", "set", "veth0", "name", "tap0", netns=near)
        wait_for(lambda: one.status()["interfaces"] == {"tap0": "native"}, "the others to be let go")
        ip("link", "delete", "tap0", netns=near)
        wait_for(lambda: one.status()["interfaces"] == {}, "the last to be let go")
        one.down(up)
        assert one.value("SELECT packets FROM flows WHERE dport = 7001") == 12
        assert one.leftovers() == []


def test_without_a_coarse_clock_the_books_are_the_same(
    lab: Lab, pair: Pair, tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRETEND, "coarse_clock")
    with Installation(lab, tmp_path / "one", netns=pair.near, interfaces=["veth1"], loader=loader) as one:
        up = one.up("--policy", one.policy("version: 1\ndefault: allow\nrules: []\n"))
        pair.send(1, 7001, 30)
        pair.send(1, 7002, 20)
        ledger = one.down(up)
        flows = one.sql("SELECT dport, packets, bytes FROM flows WHERE dport BETWEEN 7001 AND 7002 ORDER BY dport")
        assert flows == [
            {"dport": 7001, "packets": 30, "bytes": 30 * 142},
            {"dport": 7002, "packets": 20, "bytes": 20 * 142},
        ]
        assert ledger["balanced"] is True


def test_a_kernel_without_what_there_is_no_way_round(pair: Pair, one: Installation) -> None:
    name = "ringbuf"
    done = one.run("up", status=3, **{PRETEND: name})
    assert done.stderr.splitlines()[-2].startswith("error: ") and "this kernel has no " in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    assert one.leftovers() == [] and "xdp" not in ip("link", netns=pair.near)
    doctor = one.run("doctor", status=3, **{PRETEND: name})
    assert f"error: this machine lacks: {name}" in doctor.stderr


def test_doctor_says_what_a_missing_feature_costs(one: Installation) -> None:
    lacking = ("coarse_clock", "batch", "percpu_batch", "xdp_link", "tcx_link")
    out = one.run("doctor", **{PRETEND: ",".join(lacking)}).stdout
    for name in lacking:
        (line,) = [line for line in out.splitlines() if line.startswith(f"ok  {name} ")]
        assert ": " in line.partition(" no ")[2]
