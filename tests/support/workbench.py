"""A loaded datapath on a bench: packets in, what happened out, and the books checked after every step.

With `sample=1` every packet of a flow and every untracked one has an event, so each judgement can be seen. `check`
holds invariants 1 and 2 of docs/architecture.md over everything since `fresh`.
"""

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.kernel import libbpf
from collector.kernel.private import PrivateDatapath, private_datapath
from schemas import codes
from schemas.codes import Mode
from schemas.structs import TIMEOUTS
from tests.support.rules import NO_POLICY, Rules, compile_rules

DROP, PASS = 1, 2
NS = 1_000_000_000
KNOBS = {"FLOWS_MAX": 1024, "RULES_MAX": 128, "CLASSES_MAX": 64, "PREFIXES_MAX": 1024, "RING_BYTES": 1 << 17,
         "FRAGMENTS_MAX": 1024}  # fmt: skip
UNTRACKED = ("untracked_unattributable", "untracked_table_full", "untracked_closing")
_WORDS = {"event": codes.EventKind, "decision": codes.Decision, "outcome": codes.Outcome, "reason": codes.Reason,
          "direction": codes.Direction}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What one packet caused: the program's return value and the events, decoded."""

    action: int
    events: list[dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        return [e["event"] for e in self.events]


class Workbench:
    """`datapath` must have been made with judge=True."""

    def __init__(self, datapath: PrivateDatapath) -> None:
        self.d = datapath
        self._rules: Rules | None = None
        self._per_slot = datapath.handle.layout.knobs["RULES_MAX"] + codes.RuleId.FIRST
        self.t0 = 0
        self.hold = False
        """True: `send` leaves the events in the ring, which fills."""
        self.fresh()

    def fresh(
        self,
        rules: Rules = NO_POLICY,
        mode: Mode = Mode.ENFORCE,
        *,
        sample: int = 1,
        budget: int = 1_000_000,
        capacity: int | None = None,
        midstream: int = 0,
        **config: Any,
    ) -> None:
        """An empty flow table, an empty ring, this policy. `midstream`: ns from t0 on."""
        for name in ("flows", "fragments"):
            table = self.d.map(name)
            keys = table.read()[0]
            if len(keys):
                table.remove(keys)
        totals = self.d.handle.totals.values
        totals["flows"][0] = totals["tentative"][0] = 0
        if rules is not self._rules:
            self.d.apply(compile_rules(rules), self.d.next_revision)
            self._rules = rules
        self.t0 = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        knobs = self.d.handle.layout.knobs
        defaults = {
            "epoch": self.d.revision << 32 | mode, "previous": 0, "confirm_until": 0, "flags": 0, "sample": sample,
            "budget": budget, "capacity": capacity or knobs["FLOWS_MAX"], "midstream_until": self.t0 + midstream,
            "timeouts": [s * NS for s in TIMEOUTS.values()],
        }  # fmt: skip
        self.d.set_config(**defaults | config)
        self._fill_buckets()
        self.events()
        self._base = self.d.counters()
        self._base_rules = self._rule_counters()
        self._base_ring = self.d.produced
        self.sent = 0
        self.hold = False

    def _fill_buckets(self) -> None:
        """Every CPU's event budget as after a second of quiet; flow ids go on."""
        states = self.d.handle.cpu_state
        one = states.read()
        one["tokens"] = one["refilled"] = 0
        libbpf.update(states.fd, np.zeros(1, np.uint32), one)

    def apply(self, rules: Rules, confirm_within: float = 0) -> None:
        """The next revision, under the flows that are there; mode and the rest of the configuration stay."""
        self.d.apply(compile_rules(rules), self.d.next_revision, confirm_within)
        self._rules = rules

    def fall_back(self) -> None:
        """What is unconfirmed is taken back."""
        self.d.fall_back()
        self._rules = None

    @property
    def revision(self) -> int:
        return self.d.revision

    def _rule_counters(self) -> np.ndarray:
        both = self.d.handle.rule_counters.sums()
        return both.view(np.uint64).reshape(2, self._per_slot, 4)

    def rules(self, slot: int | None = None) -> dict[int, tuple[int, int]]:
        """Rule number → (packets passed, packets dropped) since `fresh`; both slots unless one is given."""
        diff = self._rule_counters() - self._base_rules
        sums = diff.sum(axis=0) if slot is None else diff[slot]
        return {int(r): (int(sums[r, 0]), int(sums[r, 2])) for r in np.flatnonzero(sums.any(axis=1))}

    def counters(self) -> dict[str, int]:
        """Since `fresh`."""
        return {name: value - self._base[name] for name, value in self.d.counters().items()}

    def emitted(self) -> int:
        return (self.d.produced - self._base_ring) // self.d.stride

    def events(self, release: bool = True) -> list[dict[str, Any]]:
        """Events not read before, decoded."""
        out: list[dict[str, Any]] = []
        while (batch := self.d.read(4096)) is not None:
            out += [self.decode(row) for row in batch.rows]
            if release:
                self.d.release(batch.start + len(batch.rows) * self.d.stride)
        return out

    def send(self, packet: bytes, at: int = 0, **run: Any) -> Seen:
        """One packet at t0 + `at` ns through xdp_ingress."""
        self.sent += run.get("repeat", 1)
        action, _ = self.d.run(packet, time_ns=self.t0 + at, **run)
        return Seen(action, [] if self.hold else self.events())

    def egress(self, packet: bytes, **run: Any) -> Seen:
        """One packet through tc_egress, which runs on the machine's clock."""
        self.sent += max(1, run.get("gso_segs", 1))
        action, _ = self.d.run(packet, program="tc_egress", **run)
        return Seen(action, self.events())

    def decode(self, row: Any) -> dict[str, Any]:
        """An event as plain values: codes as words, pairs as (original, reply), `at` in ns since t0."""
        out: dict[str, Any] = {name: codes.words(kind)[int(row[name])] for name, kind in _WORDS.items()}
        for name in ("rule", "proto", "family", "sport", "dport", "flow_id", "ifindex", "src_identity", "dst_identity"):
            out[name] = int(row[name])
        for name in ("packets", "bytes", "tcp_flags"):
            out[name] = (int(row[f"{name}_original"]), int(row[f"{name}_reply"]))
        for name in ("src", "dst"):
            raw = row[name].tobytes()
            out[name] = str(ipaddress.ip_address(raw[12:] if row["family"] == 4 else raw))
        out["flags"] = {f.name.lower() for f in codes.Flag if int(row["flags"]) & f}
        out["at"] = int(row["time"]) - self.t0
        out["revision"] = int(row["revision"])
        return out

    def flows(self) -> np.ndarray:
        return self.d.flows()

    def check(self) -> None:
        """The books balance: nothing uncounted, nothing counted twice, no event unaccounted for."""
        c, flows = self.counters(), self.flows()
        rules = self._rule_counters() - self._base_rules
        untracked = sum(c[name] for name in UNTRACKED)
        live = int(flows["flow"]["packets"].sum())
        assert self.sent == c["parsed"] + c["non_ip"] + c["egress_skipped"], (self.sent, c)
        assert c["parsed"] == int(rules[:, :, [0, 2]].sum()), (c, self.rules())
        assert c["parsed"] == c["ended_packets"] + live + untracked, (c, live)
        if not untracked:
            assert int(rules[:, :, [1, 3]].sum()) == c["ended_bytes"] + int(flows["flow"]["bytes"].sum())
        due = int(np.bitwise_count(flows["flow"]["due"]).sum())
        assert c["events_due"] == self.emitted() + due + c["samples_lost"] + c["samples_held_back"], (c, due)
        totals = self.d.handle.totals.values
        assert int(totals["produced"][0]) * self.d.stride == self.d.produced
        assert int(totals["flows"][0]) == len(flows) == c["flows_created"] - c["flows_ended"], c
        assert int(totals["tentative"][0]) == int(flows["flow"]["tentative"].sum())

    def close(self) -> None:
        self.d.close()


def open_workbench(loader: str, **knobs: int) -> Workbench:
    """Close it."""
    return Workbench(private_datapath(KNOBS | knobs, judge=True, loader=loader))


def differences(event: dict[str, Any], expected: dict[str, Any]) -> dict[str, Sequence[Any]]:
    """{field: (is, should be)} of what differs."""
    return {name: (event[name], value) for name, value in expected.items() if event[name] != value}
