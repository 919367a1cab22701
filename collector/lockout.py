"""Who would be cut off: TCP connections that a node needs, judged by a policy before it is enforced.

Each is judged as the conversation it is: opened by the SSH client towards the server, by us towards NATS.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import RefusedError
from collector.kernel.interface import Connection
from policy.evaluate import evaluate
from schemas.codes import Decision

if TYPE_CHECKING:
    from policy.compile import Compiled

SSH_PORT = 22
MOST = 5  # lines of warning


@dataclass(frozen=True)
class Caution:
    """How a change is asked for. `confirm_within`: seconds until it falls back unless confirmed, 0: never.

    `force`: do it even if it cuts the SSH session it comes through, which is `ssh`, as SSH_CONNECTION has it.
    """

    confirm_within: float = 0
    force: bool = False
    ssh: str = ""


@dataclass(frozen=True)
class Session:
    """A TCP connection that somebody needs. `what` names it; the responder's port is `port`."""

    what: str
    opener: str
    responder: str
    port: int


def own_session(ssh: str, host: Sequence[str]) -> Session | None:
    """The session that SSH_CONNECTION (`client port server port`) tells of, if it ends at an address of `host`."""
    parts = ssh.split()
    try:
        client, server = (_plain(parts[i]) for i in (0, 2))
        port = int(parts[3])
    except (ValueError, IndexError):
        return None
    if server not in host:
        return None
    return Session(f"your SSH session from {client}", client, server, port)


def needed(connections: Iterable[Connection], nats: tuple[str, int] | None) -> list[Session]:
    """SSH sessions into this host, and the connection to NATS at `nats` (address, port)."""
    out = []
    for c in connections:
        if c.local_port == SSH_PORT:
            out.append(Session(f"the SSH session from {c.remote}", c.remote, c.local, c.local_port))
        elif nats is not None and (c.remote, c.remote_port) == nats:
            out.append(Session(f"the connection to NATS at {c.remote}", c.local, c.remote, c.remote_port))
    return out


def cut(compiled: "Compiled", sessions: Sequence[Session]) -> list[tuple[Session, str]]:
    """Those that `compiled` would drop under enforce, each with the rule that does it."""
    if not sessions:
        return []
    opener, responder = ([ipaddress.ip_address(getattr(s, end)) for s in sessions] for end in ("opener", "responder"))
    src, dst = (np.frombuffer(b"".join(a.packed.rjust(16, b"\0") for a in side), "V16") for side in (opener, responder))
    judged = evaluate(
        compiled, src, dst, np.array([a.version for a in opener], "u1"), np.full(len(sessions), 6, "u1"),
        np.array([s.port for s in sessions], "<u2"),
    )  # fmt: skip
    dropped = (judged["decision"] == Decision.DENY) & ~judged["report_only"]
    return [(sessions[i], compiled.rule_name(int(judged["rule"][i]))) for i in np.flatnonzero(dropped).tolist()]


def check(compiled: "Compiled", own: Session | None, others: Sequence[Session], caution: Caution) -> list[str]:
    """What to warn of before `compiled` is enforced, a line each.

    Raises RefusedError if the session that asks would be cut, and would stay so.
    """
    rest = [s for s in others if own is None or (s.opener, s.responder) != (own.opener, own.responder)]
    lost = cut(compiled, list(dict.fromkeys([*([own] if own is not None else []), *rest])))
    lines = [f"{session.what} would be cut (rule {rule})" for session, rule in lost]
    if own is not None and lost and lost[0][0] is own and not (caution.confirm_within or caution.force):
        raise RefusedError(lines[0], "allow it; or try with --confirm-within 60s, which falls back; or give --force")
    return lines if len(lines) <= MOST else [*lines[: MOST - 1], f"and {len(lines) - MOST + 1} more would be cut"]


def _plain(text: str) -> str:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
