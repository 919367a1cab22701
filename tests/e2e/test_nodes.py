"""Two collectors at the ends of one wire, one NATS, one sink: what each saw, both together, and one that is killed."""

from pathlib import Path

from tests.support.installation import Installation
from tests.support.nats import NatsServer
from tests.support.netns import Lab, wait_for
from tests.support.until import PATIENCE

POLICY = """version: 1
default: deny
identities:
  client: {addresses: [10.7.0.1]}
  server: {addresses: [10.7.0.2]}
rules:
  - {name: web, from: client, to: server, ports: [8080/tcp], action: allow}
"""
CONNECTIONS = 5


def talk(lab: Lab, client: str, server: str, port: int) -> None:
    """CONNECTIONS conversations of a request and an answer, one after the other."""
    listener = lab.listen(server, "10.7.0.2", port)
    for _ in range(CONNECTIONS):
        near = lab.connect(client, "10.7.0.2", port)
        far, _ = listener.accept()
        near.sendall(b"question")
        assert far.recv(100) == b"question"
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        near.close()
        assert far.recv(100) == b""
        far.close()
    listener.close()


def sums(one: Installation, view: str, where: str = "dport = 8080") -> dict[str, tuple[int, int, int]]:
    """Flows, packets and bytes of each node."""
    rows = one.sql(
        f"SELECT node, sum(flows)::BIGINT AS flows, sum(packets)::BIGINT AS packets, sum(bytes)::BIGINT AS bytes"
        f" FROM {view} WHERE {where} GROUP BY node"
    )
    return {row["node"]: (row["flows"], row["packets"], row["bytes"]) for row in rows}


def states(one: Installation) -> dict[str, str]:
    """By node, as the sink sees it; a node that is silent for a moment on a busy machine is heard of again."""
    return {name: node["state"] for name, node in one.sink_status()["nodes"].items()}


def test_two_nodes(tmp_path: Path) -> None:
    with Lab() as lab, NatsServer(tmp_path / "nats") as server:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.7.0.1/24")
        lab.address(far, "eth0", "10.7.0.2/24")
        given = {"nats": server.url, "sample": 0}
        with (
            Installation(lab, tmp_path / "one", netns=near, timeouts={"tcp_closed": 1}, **given) as one,
            Installation(lab, tmp_path / "two", netns=far, interfaces=["eth0"], node="n2", timeouts={"tcp_closed": 1},
                         **given) as two,
        ):  # fmt: skip
            policy = one.policy(POLICY)
            sink = one.sink()
            here, there = one.collector("--policy", policy), two.collector("--policy", policy)
            talk(lab, near, far, 8080)
            talk(lab, near, far, 9090)  # denied, and passed: both monitor
            wait_for(lambda: one.value("SELECT count(*) FROM flows WHERE dport IN (8080, 9090) AND ended") == 20,
                     "both to have told of all")  # fmt: skip
            wait_for(lambda: states(one) == {"n1": "live", "n2": "live"}, "both to be live")

            there.kill()
            silent = "node n2 is silent: nothing heard of it"
            wait_for(lambda: [n.rpartition(" for ")[0] for n in one.sink_status()["notices"]] == [silent], "its notice")
            wait_for(lambda: "n1 live, n2 silent" in one.run("status").stdout, "status to say so")
            asked = "SELECT node, state FROM nodes ORDER BY node"
            told = [{"node": "n1", "state": "live"}, {"node": "n2", "state": "silent"}]
            wait_for(lambda: one.sql(asked) == told, "SQL to say so")
            assert states(one)["n2"] == "silent"

            there = two.collector("--policy", policy)  # takes over what its predecessor left
            wait_for(lambda: states(one)["n2"] == "live", "n2 to be heard of")
            one.run("down")
            two.run("down")
            assert here.popen.wait(PATIENCE) == there.popen.wait(PATIENCE) == 0
            wait_for(lambda: {*states(one).values()} == {"closed"}, "both rings to be closed")
            wait_for(lambda: one.ledger()["balanced"], "the ledger to balance")
            assert sink.end() == 0
            assert len(one.ledger()["rings"]) == 2 and one.ledger()["balanced"] is True

            seen = sums(one, "node_pairs_1m")
            total = one.sql("SELECT sum(packets)::BIGINT AS p, sum(bytes)::BIGINT AS b FROM flows WHERE dport = 8080")
            assert seen["n1"] == seen["n2"] == (CONNECTIONS, total[0]["p"] // 2, total[0]["b"] // 2)
            together = sums(one, "pairs_1m", "dport IN (8080, 9090)")
            assert [flows for flows, _, _ in together.values()] == [2 * CONNECTIONS]
            assert (
                sum(flows for flows, _, _ in sums(one, "node_pairs_1m", "duplicate AND dport IN (8080, 9090)").values())
                == 2 * CONNECTIONS
            )
