"""The wall clock of a host is set an hour forward and back while it is watched.

`tests/support/wallclock.c` stands before that clock in every process of the installation and in nothing else; the
kernel's monotonic clock, which stamps events, is the real one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests import support
from tests.support.installation import Installation
from tests.support.nats import NatsServer
from tests.support.netns import Lab, wait_for
from tests.support.until import PATIENCE

HOUR = 3600
POLICY = "version: 1\ndefault: deny\nrules:\n  - {{name: web, from: any, to: any, ports: [{}/tcp], action: allow}}\n"


class Clocked(Installation):
    """An installation whose wall clock can be set."""

    def set_clock(self, ahead: int) -> None:
        """Seconds that its wall clock is ahead of the real one, from now on."""
        if not (library := self.directory / "wallclock.so").exists():
            source = Path(support.__file__).with_name("wallclock.c")
            subprocess.run(["clang", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, source], check=True)
        with (self.directory / "clock").open("r+b" if (self.directory / "clock").exists() else "xb") as clock:
            clock.write(ahead.to_bytes(8, sys.byteorder, signed=True))

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "LD_PRELOAD": str(self.directory / "wallclock.so"), "WALLCLOCK": str(self.directory / "clock"),
        }  # fmt: skip


def converse(lab: Lab, near: str, far: str, port: int) -> None:
    """One connection with a request."""
    listener = lab.listen(far, "10.7.0.2", port)
    client = lab.connect(near, "10.7.0.2", port)
    server, _ = listener.accept()
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    for one in (client, server, listener):
        one.close()


def ports(one: Installation, *asked: str) -> list[int]:
    """Of the conversations whose `new` is found."""
    shown = one.run("observe", *asked, "--event", "new", "-o", "json").stdout
    return sorted(row["dport"] for row in map(json.loads, shown.splitlines()) if 8080 <= row["dport"] <= 8082)


def test_a_clock_set_forward_and_back_an_hour(tmp_path: Path) -> None:
    with Lab() as lab, NatsServer(tmp_path / "nats") as server:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.7.0.1/24")
        lab.address(far, "eth0", "10.7.0.2/24")
        with Clocked(lab, tmp_path / "one", netns=near, nats=server.url, timeouts={"tcp_closed": 1}) as one:
            one.set_clock(0)
            sink, collector = one.sink(), one.collector("--policy", one.policy(POLICY.format("8080-8082")))
            spans = {}
            for port, ahead in ((8080, 0), (8081, HOUR), (8082, 0)):
                one.set_clock(ahead)
                begun = time.time_ns() + ahead * 10**9
                converse(lab, near, far, port)
                ended = f"SELECT count(*) FROM flows WHERE dport = {port} AND ended"
                wait_for(lambda ended=ended: one.value(ended) == 1, f"the end of {port}")
                spans[port] = begun, time.time_ns() + ahead * 10**9
                if ahead:  # on this host it is later by an hour now
                    assert ports(one, "--since", "50m") == [8081]
                    assert ports(one, "--since", "2h") == [8080, 8081]

            told = one.sql("SELECT dport, time FROM verdicts WHERE dport BETWEEN 8080 AND 8082 ORDER BY position")
            assert [row["dport"] for row in told] == sorted(row["dport"] for row in told)
            for row in told:
                assert spans[row["dport"]][0] <= row["time"] <= spans[row["dport"]][1], row
            assert ports(one, "--since", "50m", "--until", "now") == [8080, 8082]
            assert ports(one, "--since", "50m") == [8080, 8081, 8082]  # one of them is still to come
            wait_for(lambda: one.value("SELECT state FROM nodes") == "live", "the node to be heard of")
            assert abs(one.value("SELECT epoch_ns(last) FROM nodes") - time.time_ns()) < PATIENCE * 10**9

            one.run("down")
            assert collector.popen.wait(PATIENCE) == 0
            wait_for(lambda: one.settled() and one.ledger()["balanced"], "a balance")
            (ring,) = one.ledger()["rings"]
            assert [round(step["seconds"]) for step in ring["clock_steps"]] == [HOUR, -HOUR]
            lines = [line for line in one.run("ledger").stdout.splitlines() if " clock set " in line]
            assert [line.partition(": ")[2].partition(" before")[0] for line in lines] == [
                "clock set forward 3,600.0 s", "clock set back 3,600.0 s",
            ]  # fmt: skip

            flows = one.sql("SELECT sum(packets)::BIGINT AS packets, sum(bytes)::BIGINT AS bytes FROM flows")[0]
            candidate = tmp_path / "candidate.yaml"
            candidate.write_text(POLICY.format("8080"))
            audits = [one.json("audit", str(candidate))]
            assert sink.end() == 0

            one.set_clock(HOUR)  # and what is older than half an hour goes: all but the hour to come
            one.file.write_text('keep_age = "30m"\n' + one.file.read_text())
            sink = one.sink()
            wait_for(lambda: one.value("SELECT count(*) FROM retention") > 0, "retention")
            assert ports(one, "--since", "1d") == [8081]
            audits.append(one.json("audit", str(candidate)))
            for found in audits:
                assert {name: found[name] for name in flows} == flows
                denied = [(entry["dport"], entry["flows"]) for entry in found["newly_denied"]]
                assert sorted(denied) == [(8081, 1), (8082, 1)]
            assert one.ledger()["balanced"] is True
            assert sink.end() == 0
