"""A real Prometheus asks a real `ztlens up` about real traffic: every number is what the ledger and SQL say.

Each panel of the dashboards and each alert is evaluated over what was scraped.
"""

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.metrics import BY_NAME, PROCESS, of
from tests.support.installation import Installation
from tests.support.netns import Lab, wait_for
from tests.support.prometheus import Prometheus, alerts, free_ports, panels, promtool, scrape

POLICY = """version: 1
default: deny
identities:
  near: {addresses: [10.77.0.1]}
  far: {addresses: [10.77.0.2]}
rules:
  - {name: web, from: far, to: near, ports: [8080/tcp], action: allow}
  - {name: never, from: near, to: far, ports: [1/tcp], action: allow}
  - {name: trial, from: far, to: near, ports: [8081/udp], action: deny, report_only: true}
"""
NEAR = "10.77.0.1"
DENIED_PORTS = (9001, 9002, 9003)
RARE = {"ztlens_sink_dropped_total", "ztlens_gap_events"}
"""Metrics without a sample while nothing is dropped."""


@pytest.fixture
def near(tmp_path: Path) -> Iterator[tuple[Lab, str, str, Installation]]:
    with Lab() as lab:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.77.0.1/24")
        lab.address(far, "eth0", "10.77.0.2/24")
        with Installation(lab, tmp_path, netns=near) as one:
            yield lab, near, far, one


def traffic(lab: Lab, far: str, near: str) -> None:
    server = lab.listen(near, NEAR, 8080)
    for _ in range(5):
        with contextlib.closing(lab.connect(far, NEAR, 8080)) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"x" * 1000)
                assert accepted.recv(1000)
    sender = lab.open(far, socket.AF_INET, socket.SOCK_DGRAM)
    for port in (*DENIED_PORTS, 8081):
        for _ in range(3):
            sender.sendto(b"hello", (NEAR, port))


def test_prometheus_scrapes_what_is_true(near: tuple[Lab, str, str, Installation], tmp_path: Path) -> None:
    lab, watched, far, one = near
    first, second = free_ports(2)
    targets = {"ztlens-collector": f"127.0.0.1:{first}", "ztlens-sink": f"127.0.0.1:{second}"}
    policy = one.policy(POLICY)
    up = one.up("--policy", policy, "--metrics", targets["ztlens-collector"])
    collector, sink = (targets[f"ztlens-{part}"] for part in ("collector", "sink"))
    assert f"metrics at http://{collector}/metrics (collector), http://{sink}/metrics (sink)" in up.said()
    with Prometheus(tmp_path, targets) as prometheus:
        wait_for(lambda: prometheus.value("ztlens_denied_pairs_total") == 0, "the first figures")
        traffic(lab, far, watched)
        exact(prometheus, one)
        wait_for(lambda: prometheus.value("ztlens_denied_pairs_total") == len(DENIED_PORTS) + 1, "pairs")
        wait_for(lambda: "ZtlensNewDeniedPair" in prometheus.firing(), "the alert of new pairs")
        Path(policy).write_text("version: 1\nrules: [{from: nobody}]\n")
        for name in ("ztlens_policy_file_broken", "ztlens_policy_load_errors_total"):
            wait_for(lambda name=name: prometheus.value(name) == 1, name)
        shown(prometheus)
        catalogued(collector, sink)
    one.down(up)


def exact(prometheus: Prometheus, one: Installation) -> None:
    """What the collector counts is what the sink stored."""
    rows = "SELECT decision, reason, direction, rule, count(*) AS n FROM verdicts GROUP BY ALL"
    labels = ("decision", "reason", "direction", "rule")

    def settled() -> bool:
        stored = {tuple(row[name] for name in labels): row["n"] for row in one.sql(rows)}
        told = prometheus.by("ztlens_policy_verdicts_total", *labels)
        return len(told) >= 3 and told == stored and quiet()

    def quiet() -> bool:
        (ring,) = one.ledger()["rings"]
        packets, events = ring["packets"], ring["events"]
        return (
            prometheus.value("sum(ztlens_rule_packets_total)") == packets["judged"]
            and prometheus.value('ztlens_packets_total{kind="parsed"}') == packets["parsed"] == packets["judged"]
            and prometheus.value("sum(ztlens_policy_verdicts_total)") == events["emitted"] == events["stored"]
            and prometheus.value('ztlens_sink_stored_total{of="verdicts"}') == events["stored"]
            and prometheus.value("ztlens_events_published_total") == events["published"]
        )

    wait_for(settled, "verdicts, packets and events to be those of the ledger")
    # A figure is missing for a moment whenever a look of Prometheus took longer than the second it has.
    hits = wait_for(lambda: prometheus.by("ztlens_rule_packets_total", "rule", "outcome"), "hits")
    assert {"web", "trial", "default"} <= {rule for (rule, _), packets in hits.items() if packets}
    assert (hits["never", "passed"], hits["trial", "passed"]) == (0, 3)
    wait_for(
        lambda: prometheus.by("ztlens_ledger_packets", "account").get(("judged",))
        == prometheus.value('ztlens_packets_total{kind="parsed"}'),
        "the ledger's figures",
    )  # fmt: skip
    wait_for(lambda: prometheus.value("ztlens_ledger_balanced") == 1, "a balanced ledger")
    idle = wait_for(lambda: prometheus.by("ztlens_rule_idle_seconds", "rule"), "idle rules")
    assert {rule for (rule,) in idle} == {"web", "never", "trial"}
    modes = wait_for(lambda: prometheus.by("ztlens_mode", "mode"), "the mode")
    assert modes == {("monitor",): 1, ("enforce",): 0}
    assert wait_for(lambda: prometheus.value("ztlens_revision"), "the revision") == 1


def shown(prometheus: Prometheus) -> None:
    """Every panel shows something; of the alerts only those that should fire have samples."""
    for title, query in panels():
        wait_for(lambda: prometheus.ask(query), f"samples for {title}: {query}")  # noqa: B023
    due = {"ZtlensNewDeniedPair", "ZtlensPolicyFileBroken"}
    asked = alerts().items()
    late = {"ZtlensTargetDown", "ZtlensNodeSilent"}  # of a machine that stands still for seconds they are true then

    def only_due() -> bool:
        found = {name for name, expression in asked if prometheus.ask(expression)}
        assert found <= due | late
        return found == due

    wait_for(only_due, f"samples of {due} alone")


def catalogued(collector: str, sink: str) -> None:
    """What is told is what the catalogue says, with its labels; promtool finds nothing to complain of."""
    for place, address in (("collector", collector), ("sink", sink)):
        text = scrape(address)
        checked = promtool("check", "metrics", stdin=text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), checked
        families = set(re.findall(r"^# TYPE (\S+)", text, re.M))
        known = {metric.name for metric in of(place)}
        told = {name for name in families if not name.startswith(PROCESS) and not name.endswith("_created")}
        assert told <= known and known - told <= RARE, (place, told ^ known)
        for name, labels in re.findall(r"^(ztlens_\w+?)(?:_bucket|_count|_sum|_created)?(?:\{(.*)\})? ", text, re.M):
            metric = BY_NAME[name]
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == set(metric.labels), (name, labels)


def test_a_busy_port_is_one_line(near: tuple[Lab, str, str, Installation]) -> None:
    one = near[-1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = one.run("up", "--metrics", address, status=3)
    assert done.told[1:] == (
        f"metrics: cannot listen on {address}: Address already in use",
        "name another one with --metrics",
    )
    done = one.run("up", "--metrics", "9975", status=2)
    assert "HOST:PORT" in done.told[1]
