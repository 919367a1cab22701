"""Names on NATS. The major version stands in the subject; within it contracts only grow."""

import re

PREFIX = "ztlens"
VERDICTS_STREAM = "VERDICTS"
RECORDS_STREAM = "RECORDS"
"""Policy and loss records: few and small, kept apart so that verdicts never push them out."""
DEAD_STREAM = "DEAD"

ALL_VERDICTS = f"{PREFIX}.verdicts.v1.*"
ALL_POLICY = f"{PREFIX}.policy.v1.*"
ALL_LOSS = f"{PREFIX}.loss.v1.*"
ALL_LIVE = f"{PREFIX}.live.v1.>"
ALL_DEAD = f"{PREFIX}.dead.v1.>"
ALL_REPLAY = f"{PREFIX}.replay.v1.>"

_SAFE = re.compile(r"[A-Za-z0-9_-]")


def token(text: str) -> str:
    """`text` as one subject token: other characters become `=` and two hex digits a UTF-8 byte; "" becomes `=`.

    Reversible by `untoken`, so that `db.prod` and `db_prod` never share a subject.
    """
    if not text:
        return "="
    return "".join(c if _SAFE.match(c) else "".join(f"={b:02x}" for b in c.encode()) for c in text)


def untoken(subject_token: str) -> str:
    """The text that `token` wrote."""
    if subject_token == "=":
        return ""
    out = re.sub(r"=([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), subject_token)
    return out.encode("latin-1").decode()


def verdicts(node: str) -> str:
    """Batches of verdicts (`schemas.envelope`), in stream VERDICTS."""
    return f"{PREFIX}.verdicts.v1.{token(node)}"


def policy(node: str) -> str:
    """Each revision and mode change (`schemas.messages.PolicyRecord`), in stream RECORDS."""
    return f"{PREFIX}.policy.v1.{token(node)}"


def loss(node: str) -> str:
    """Counters of every hop, each second (`schemas.messages.LossRecord`), in stream RECORDS."""
    return f"{PREFIX}.loss.v1.{token(node)}"


def live(  # noqa: PLR0917 (the tokens, in their order)
    node: str, decision: str, source: str, destination: str, proto: str, port: int
) -> str:
    """One verdict as a map, core NATS, best effort; the subject is the filter."""
    return f"{PREFIX}.live.v1.{token(node)}.{decision}.{token(source)}.{token(destination)}.{token(proto)}.{port}"


def replay(session: str, subject: str) -> str:
    """Where a replay sends what `subject` (of this module, wildcards too) carries live: nothing else starts so.

    `ztlens.live.v1.n1.deny.>` → `ztlens.replay.v1.<session>.live.n1.deny.>`.
    """
    kind, _, rest = subject.removeprefix(f"{PREFIX}.").partition(".v1.")
    return f"{PREFIX}.replay.v1.{token(session)}.{kind}.{rest}"


def replay_progress(session: str, node: str) -> str:
    """How far the replay that `node` sends is (`schemas.messages.ReplayRecord`), each second and at its end."""
    return replay(session, f"{PREFIX}.progress.v1.{token(node)}")


def replay_whole(session: str) -> str:
    """All batches, policy records and progress of a replay, in order on one subscription; no maps."""
    return f"{PREFIX}.replay.v1.{token(session)}.*.*"


def kind(subject: str) -> str:
    """What a subject carries, live or replayed: `verdicts`, `policy`, `loss`, `live`, `dead`, `progress`."""
    _, first, _, *rest = subject.split(".")
    return rest[1] if first == "replay" else first


def dead(reason: str) -> str:
    """Messages the sink could not decode, whole, with headers saying where they stood; in stream DEAD."""
    return f"{PREFIX}.dead.v1.{token(reason)}"
