"""Policy and loss records, msgpack maps on `ztlens.policy.v1.<node>` and `ztlens.loss.v1.<node>`; replay progress."""

from typing import TypeVar

import msgspec

from schemas.errors import EnvelopeError


class RuleInfo(msgspec.Struct, frozen=True):
    """A rule as history needs it: `id` is what verdicts carry."""

    id: int
    name: str
    action: str
    report_only: bool = False
    text: str = ""


class IdentityInfo(msgspec.Struct, frozen=True):
    """An identity as history needs it: `id` is what verdicts carry. `host` (IdentityId.HOST) is one of them."""

    id: int
    name: str
    labels: dict[str, str] = {}
    addresses: list[str] = []


class PolicyRecord(msgspec.Struct, frozen=True):
    """A change of what decides on a node.

    `kind`: `start` (a ring was made or adopted; `revision` and `mode` are what is in force), `revision`, `mode`,
    `refused` (a policy that changed nothing; `error` says why), `closed` (the ring ends at position `end`).
    `state`: `confirmed`; `pending` (the kernel side goes back to `from_*` unless confirmed); `fallen_back` (it has).
    """

    v: int
    kind: str
    node: str
    ring: str
    time: int  # ns since 1970 UTC
    revision: int
    mode: str
    default: str = ""  # allow | deny; "" without a policy
    hash: str = ""  # SHA-256 of `yaml`; "" without a policy
    yaml: str = ""
    rules: list[RuleInfo] = []
    identities: list[IdentityInfo] = []
    who: str = ""  # user, uid and the socket or file the change came through
    from_revision: int = 0
    from_mode: str = ""
    from_hash: str = ""
    state: str = "confirmed"
    error: str = ""
    end: int = 0


class FlowSums(msgspec.Struct, frozen=True):
    """The flow table at one moment."""

    live: int
    packets: int
    bytes: int
    due: int  # events still owed


class LossRecord(msgspec.Struct, frozen=True):
    """Every hop's counters at one moment, cumulative since the ring was made (collector_*: since it started)."""

    v: int
    node: str
    ring: str
    time: int  # ns since 1970 UTC
    revision: int
    mode: str
    stride: int
    produced: int  # ring position behind the last record
    consumed: int  # ring position up to which JetStream acknowledged
    ring_bytes: int
    counters: dict[str, int]  # by the words of schemas.codes.Counter
    judged_packets: int  # sum of all rule counters
    judged_bytes: int
    flows: FlowSums | None  # None: not scanned this time (once every 10 s; exact when the node is quiet)
    interfaces: dict[str, str]  # name → native | generic | egress …
    collector: dict[str, int]  # received, sent, acknowledged, retried, live_sent, live_capped, live_failed
    final: bool = False  # taken after the programs were detached: exact


class ReplayRecord(msgspec.Struct, frozen=True):
    """How far a replay is: each second and, with `done`, at its end. Counts are of this session so far."""

    v: int
    replay: str  # session
    speed: float  # times as fast as recorded; 0: as fast as it goes
    verdicts: int  # sent in batches
    first: int  # ns since 1970 UTC, the first stamp sent; 0: none yet
    last: int
    live_sent: int
    live_capped: int  # held back by the cap of the live subjects; the batches had them
    late: int  # messages sent more than 10 ms after they were due
    done: bool = False


T = TypeVar("T", PolicyRecord, LossRecord, ReplayRecord)
_encoder = msgspec.msgpack.Encoder()


def encode(record: PolicyRecord | LossRecord | ReplayRecord) -> bytes:
    """A record as msgpack."""
    return _encoder.encode(record)


def encode_replayed(record: PolicyRecord, session: str) -> bytes:
    """A recorded one, for a replay: with the key `replay`."""
    return _encoder.encode(msgspec.to_builtins(record) | {"replay": session})


def decode(data: bytes, kind: type[T]) -> T:
    """The record in `data`. Raises EnvelopeError; unknown keys are skipped."""
    try:
        record = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvelopeError(f"not a {kind.__name__}: {error}") from error
    if record.v != 1:
        raise EnvelopeError(f"{kind.__name__} version {record.v}, this reader knows 1")
    return record
