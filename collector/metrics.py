"""What Prometheus reads of a collector (the catalogue is schemas/metrics.py).

`look` runs in the loop once a tick and takes what only the loop may ask for. A scrape runs in a thread of its own and
reads what is there: it asks nothing of the kernel and waits for nobody, so it never holds up the drain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import CollectorError
from collector.tally import PacketTally, VerdictTally
from schemas.codes import Mode, word
from schemas.exposition import Endpoint, Page, histogram
from schemas.structs import KNOBS

if TYPE_CHECKING:
    from collector.service import Collector


@dataclass(frozen=True)
class Seen:
    """At one tick."""

    waits: tuple[str, float] | None  # kind of the change that nobody has confirmed, and its seconds left
    interfaces: dict[str, str]
    hash: str
    file: str
    rules: int
    tolerance: float


class Metrics:
    """Of one collector. `listen` before anything else, `begin` when there is a datapath, then `look` at each tick."""

    def __init__(self, collector: "Collector") -> None:
        self._collector = collector
        self._drain = histogram("ztlens_drain_seconds")
        self._endpoint = Endpoint(self._fill, self._drain)
        self._verdicts = VerdictTally()
        self._packets: PacketTally | None = None
        self._seen: Seen | None = None
        self._revision: int | None = None

    def listen(self, address: str) -> None:
        """Answer scrapes at HOST:PORT. Raises CollectorError."""
        try:
            self._endpoint.listen(address)
        except OSError as error:
            raise CollectorError(
                f"metrics: cannot listen on {address}: {error.strerror or error}", "name another one with --metrics"
            ) from error

    def begin(self) -> None:
        """The datapath is there."""
        self._packets = PacketTally(self._collector.datapath, self._collector.node.names.rule, self._rules)

    def _rules(self, revision: int) -> list[str]:
        compiled = self._collector.node.names.compiled(revision)
        return [rule.name for rule in compiled.policy.rules] if compiled is not None and compiled.policy else []

    def count(self, rows: np.ndarray) -> None:
        """Verdicts read from the ring."""
        self._verdicts.count(rows)

    def drained(self, seconds: float) -> None:
        """How long a batch was under way."""
        self._drain.observe(seconds)

    def rules(self, tables: Sequence[np.ndarray]) -> None:
        """The rule counters of both slots; in the kernel thread."""
        if self._packets is not None:
            self._packets.look(tables)

    def look(self) -> None:
        """What the loop knows."""
        one = self._collector
        node, datapath = one.node, one.datapath
        if datapath.revision != self._revision:
            self._revision = datapath.revision
            self._verdicts.sums.keep(self._rules(self._revision))
        self._verdicts.name(node.names.rule)
        waits, running, compiled = datapath.unconfirmed, node.running, node.compiled
        tolerance = one.accounts.outage_tolerance()
        self._seen = Seen(
            waits=(waits.kind, waits.seconds_left) if waits is not None else None,
            interfaces=dict(datapath.interfaces),
            hash=running.hash if running is not None else "",
            file=running.file if running is not None else "",
            rules=len(compiled.rules) if compiled is not None else 0,
            tolerance=math.inf if tolerance is None else tolerance,
        )

    def close(self) -> None:
        """The end."""
        self._endpoint.close()

    # ── a scrape ────────────────────────────────────────────────────────────────────────────────────────────────

    def _fill(self, page: Page) -> None:
        bus = self._collector.bus
        page.put("ztlens_nats_connected", bus.connected)
        page.put("ztlens_nats_retries_total", bus.retried)
        if self._seen is not None and self._packets is not None:
            self._judged(page, self._packets)
            self._counted(page)
            self._in_force(page, self._seen)

    def _judged(self, page: Page, packets: PacketTally) -> None:
        for (rule, decision, reason, direction), n in self._verdicts.sums.items():
            page.put("ztlens_policy_verdicts_total", n, decision, reason, direction, rule)
        for (rule, outcome), n in packets.packets.items():
            page.put("ztlens_rule_packets_total", n, rule, outcome)
        for (rule, outcome), n in packets.bytes.items():
            page.put("ztlens_rule_bytes_total", n, rule, outcome)

    def _counted(self, page: Page) -> None:
        one, last = self._collector, self._collector.accounts.last
        counters, stride, size = last.counters, one.datapath.stride, one.datapath.ring_bytes
        for kind in ("parsed", "non_ip", "egress_skipped"):
            page.put("ztlens_packets_total", counters[kind], kind)
        for reason in ("unattributable", "table_full", "closing"):
            page.put("ztlens_untracked_packets_total", counters[f"untracked_{reason}"], reason)
        created, ended = counters["flows_created"], counters["flows_ended"]
        page.put("ztlens_flows_created_total", created)
        page.put("ztlens_flows_ended_total", ended)
        live = max(0, created - ended)  # read one after the other
        page.put("ztlens_flows_live", live)
        page.put("ztlens_flow_table_use_ratio", live / self._room("FLOWS_MAX"))
        page.put("ztlens_events_due_total", counters["events_due"])
        page.put("ztlens_events_emitted_total", last.produced // stride)
        page.put("ztlens_events_published_total", last.consumed // stride)
        live_counters = one.counters()
        for stage, reason, lost in (
            ("ring", "lost", counters["samples_lost"]), ("ring", "held_back", counters["samples_held_back"]),
            ("live", "capped", live_counters["live_capped"]), ("live", "failed", live_counters["live_failed"]),
        ):  # fmt: skip
            page.put("ztlens_lost_events_total", lost, stage, reason)
        held = last.produced - last.consumed
        page.put("ztlens_ring_bytes", size)
        page.put("ztlens_ring_held_bytes", held)
        page.put("ztlens_ring_fill_ratio", held / size)

    def _in_force(self, page: Page, seen: Seen) -> None:
        one, last = self._collector, self._collector.accounts.last
        page.put("ztlens_outage_tolerance_seconds", seen.tolerance)
        for mode in Mode:
            page.put("ztlens_mode", last.mode == word(mode), word(mode))
        page.put("ztlens_revision", last.revision)
        page.put("ztlens_policy_info", 1, one.settings.node, str(last.revision), seen.hash, seen.file)
        page.put("ztlens_policy_rules", seen.rules)
        page.put("ztlens_policy_load_errors_total", one.node.refusals)
        page.put("ztlens_policy_file_broken", one.file is not None and bool(one.file.error))
        for change in ("mode", "revision"):
            left = seen.waits[1] if seen.waits is not None and seen.waits[0] == change else 0.0
            page.put("ztlens_confirmation_pending_seconds", left, change)
        for interface, how in seen.interfaces.items():
            page.put("ztlens_interface_watched", how != "not watched", interface)

    def _room(self, knob: str) -> int:
        return self._collector.settings.knobs.get(knob) or next(one.default for one in KNOBS if one.name == knob)
