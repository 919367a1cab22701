"""Mode enforce on real connections: what is denied fails, what is allowed works, nobody is locked out for good.

`near` is the watched host, `far` its neighbour; IPv4 and IPv6.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.netns import Lab, ip, wait_for

POLICY = """version: 1
default: deny
identities:
  near: {addresses: [10.77.0.1, "fd77::1"]}
  far: {addresses: [10.77.0.2, "fd77::2"]}
rules:
  - {name: web, from: far, to: near, ports: [8080/tcp], action: allow}
  - {name: outward, from: near, to: far, ports: [9090/tcp], action: allow}
  - {name: trial, from: far, to: near, ports: [8081/tcp], action: deny, report_only: true}
"""
RENAMED = POLICY.replace("name: web", "name: shop").replace("name: outward", "name: abroad")
NOTHING = "version: 1\ndefault: deny\n"
UNCONFIRMED = 20
"""Seconds after which a change is taken back: all that asks for it is dead by then."""
NEAR, FAR = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")


@dataclass
class Pair:
    """Two hosts, of which one is watched."""

    lab: Lab
    near: str
    far: str
    one: Installation

    def serve(self, netns: str, address: str, port: int) -> socket.socket:
        return self.lab.listen(netns, address, port)

    def reaches(self, netns: str, address: str, port: int, seconds: float = 0.7) -> bool:
        """Whether a connection is made; a SYN that is dropped gets no answer."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.closing(self.lab.open(netns, family, socket.SOCK_STREAM)) as client:
            client.settimeout(seconds)
            try:
                client.connect((address, port))
            except TimeoutError:
                return False
            return True

    def echoes(self, server: socket.socket, netns: str) -> None:
        """A connection from `netns`, 100 kB in either direction."""
        address, port = server.getsockname()[:2]
        with contextlib.closing(self.lab.connect(netns, address, port)) as client:
            accepted, _ = server.accept()
            with accepted:
                for sender, receiver in ((client, accepted), (accepted, client)):
                    sender.sendall(b"x" * 100_000)
                    left = 100_000
                    while left:
                        left -= len(receiver.recv(left))

    def forget_neighbours(self) -> None:
        for netns, interface in ((self.near, "veth0"), (self.far, "eth0")):
            ip("neigh", "flush", "dev", interface, netns=netns)
            ip("-6", "neigh", "flush", "dev", interface, netns=netns)


@pytest.fixture
def pair(tmp_path: Path, loader: str) -> Iterator[Pair]:
    with Lab() as lab:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", *(f"{a}/{n}" for a, n in zip(NEAR, (24, 64), strict=True)))
        lab.address(far, "eth0", *(f"{a}/{n}" for a, n in zip(FAR, (24, 64), strict=True)))
        with Installation(lab, tmp_path, netns=near, loader=loader) as one:
            yield Pair(lab, near, far, one)


def test_denied_allowed_and_told(pair: Pair) -> None:
    one = pair.one
    up = one.up("--policy", one.policy(POLICY), "--mode", "enforce")
    web = [pair.serve(pair.near, address, 8080) for address in NEAR]
    tried = [pair.serve(pair.near, address, 8081) for address in NEAR]
    closed = [(pair.serve(pair.near, address, 8082), pair.far) for address in NEAR]
    closed += [(pair.serve(pair.far, address, 9091), pair.near) for address in FAR]
    abroad = [pair.serve(pair.far, address, 9090) for address in FAR]
    for server in (*web, *tried):
        pair.echoes(server, pair.far)
    for server in abroad:
        pair.echoes(server, pair.near)
    for server, netns in closed:
        assert not pair.reaches(netns, *server.getsockname()[:2])
    pair.forget_neighbours()
    for server in web:
        pair.echoes(server, pair.far)
    assert one.json("policy", "apply", one.policy(RENAMED))["revision"] == 2
    for server in web:
        pair.echoes(server, pair.far)
    assert one.down(up)["balanced"] is True

    judged = {
        (f["family"], f["dport"], f["rule"], f["decision"], f["outcome"], f["report_only"])
        for f in one.flows("proto = 'tcp' AND revision = 1")
    }
    for family in (4, 6):
        assert (family, 8080, "web", "allow", "passed", False) in judged
        assert (family, 9090, "outward", "allow", "passed", False) in judged
        assert (family, 8081, "trial", "deny", "passed", True) in judged
        assert (family, 8082, "default", "deny", "dropped", False) in judged
        assert (family, 9091, "default", "deny", "dropped", False) in judged
    assert len(judged) == 10
    assert one.value("SELECT count(*) FROM verdicts WHERE rule = 'builtin:ndp' AND outcome = 'passed'") > 0
    assert one.value("SELECT count(*) FROM verdicts WHERE reason = 'builtin' AND outcome = 'dropped'") == 0
    # Each verdict is read by the rules of its day.
    then = one.sql("""SELECT DISTINCT v.revision, v.rule, r.text AS rule_text, p.yaml FROM verdicts AS v
        JOIN rules AS r ON (r.ring, r.revision, r.name) = (v.ring, v.revision, v.rule)
        JOIN policy_revisions AS p ON (p.ring, p.revision) = (v.ring, v.revision)
        WHERE v.dport = 8080 AND v.proto = 'tcp' ORDER BY v.revision""")
    assert {(row["revision"], row["rule"], row["yaml"]) for row in then} == {(1, "web", POLICY), (2, "shop", RENAMED)}
    assert all(f"name: {row['rule']}," in row["rule_text"] for row in then)


def test_the_rules_of_a_large_policy_are_kept_whole(pair: Pair) -> None:
    """4,000 rules and their file: more than a NATS server's own limit of 1 MB a message."""
    rules = "".join(
        f"  - {{name: rule-{n}, from: 10.{n % 250}.0.0/16, ports: [{n % 500 + 1}/udp], action: deny}} # {'x' * 99}\n"
        for n in range(4000)
    )
    one, text = pair.one, POLICY + rules
    assert len(text) < 1_000_000 < 2 * len(text)
    up = one.up("--policy", one.policy(text), "--mode", "enforce")
    for address in NEAR:
        pair.echoes(pair.serve(pair.near, address, 8080), pair.far)
    assert one.down(up)["balanced"] is True
    kept = one.sql("SELECT p.yaml, count(*) AS rules, min(length(r.text)) AS shortest FROM policy_revisions AS p "
                   "JOIN rules AS r USING (ring, revision) WHERE p.revision = 1 GROUP BY ALL")  # fmt: skip
    assert [(row["yaml"], row["rules"]) for row in kept] == [(text, 4003)]
    assert kept[0]["shortest"] > 50


@pytest.mark.parametrize("change", ["mode", "policy"])
def test_a_change_that_locks_out_is_taken_back_with_everything_dead(pair: Pair, change: str) -> None:
    one = pair.one
    up = one.up("--policy", one.policy(POLICY))
    servers = [pair.serve(pair.near, address, 8080) for address in NEAR]
    nothing = one.directory / "nothing.yaml"
    nothing.write_text(NOTHING)
    if change == "policy":
        assert one.json("mode", "enforce")["mode"] == "enforce"
        begin = time.time_ns()
        answer = one.json("policy", "apply", str(nothing), "--confirm-within", f"{UNCONFIRMED}s")
    else:
        assert one.json("policy", "apply", str(nothing))["revision"] == 2
        begin = time.time_ns()
        answer = one.json("mode", "enforce", "--confirm-within", f"{UNCONFIRMED}s")
    end = time.time_ns()
    assert answer["unconfirmed"]["kind"] == {"mode": "mode", "policy": "revision"}[change]
    wait_for(lambda: one.value("SELECT count(*) FROM changes WHERE state = 'pending'") == 1, "it to be told")
    for pid in (up.pid, *json.loads((one.run_dir / "up.json").read_text())["parts"].values()):
        with contextlib.suppress(ProcessLookupError):  # they end with `up`, too
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not one.processes(), "collector, sink and NATS to be dead")
    assert not any(pair.reaches(pair.far, address, 8080, 0.3) for address in NEAR), "nobody is left to undo it"
    wait_for(lambda: all(pair.reaches(pair.far, address, 8080) for address in NEAR), "access restored")
    assert not one.processes()
    for server in servers:
        while True:  # the attempts' connections
            server.settimeout(0.1)
            try:
                server.accept()[0].close()
            except TimeoutError:
                break

    up = one.up("--policy", one.policy(POLICY))
    status = one.status()
    assert status["adopted"] is True and status["unconfirmed"] is None
    assert (status["mode"], status["revision"]) == {"mode": ("monitor", 2), "policy": ("enforce", 1)}[change]
    one.down(up)
    kind = {"mode": "mode", "policy": "revision"}[change]
    rows = one.sql(f"SELECT * FROM changes WHERE kind = '{kind}' AND state <> 'confirmed' ORDER BY time")
    assert [row["state"] for row in rows] == ["pending", "fallen_back"]
    assert rows[0]["who"] == "root(0) via control socket" and rows[1]["who"] == "nobody confirmed in time"
    assert [rows[1][f"from_{x}"] for x in ("revision", "mode")] == [rows[0][f"to_{x}"] for x in ("revision", "mode")]
    assert begin + UNCONFIRMED * 1e9 <= rows[1]["time"] <= end + UNCONFIRMED * 1e9
