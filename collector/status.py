"""Everything `ztlens status` prints about a collector."""

import time
from typing import TYPE_CHECKING, Any

from policy.compile import room
from schemas.codes import word

if TYPE_CHECKING:
    from collector.service import Collector


def status(collector: "Collector") -> dict[str, Any]:
    """Plain data for JSON. Positions and sizes in bytes, rates per second, `outage_tolerance` in seconds or None."""
    datapath, accounts, node, bus = collector.datapath, collector.accounts, collector.node, collector.bus
    rates = accounts.rates()
    held = datapath.produced - datapath.consumed
    running = node.running
    return {
        "node": collector.settings.node,
        "instance": collector.settings.instance,
        "uptime": round(time.time() - collector.started, 1),
        "ring": datapath.ring_id,
        "adopted": datapath.adopted,
        "loader": datapath.loader,
        "ending": collector.ending,
        "mode": word(datapath.mode),
        "revision": datapath.revision,
        "unconfirmed": node.unconfirmed(),
        "policy_error": collector.file.error if collector.file is not None else "",
        "tables": _tables(collector),
        "policy": {
            "hash": node.policy_hash,
            "file": running.file if running else "",
            "who": running.who if running else "",
        },
        "interfaces": dict(datapath.interfaces),
        "held_by": dict(datapath.held_by),
        "notices": list(collector.notices),
        "rates": {key: round(value, 1) for key, value in rates.items()},
        "ring_bytes": datapath.ring_bytes,
        "ring_held": held,
        "ring_fill": round(held / datapath.ring_bytes, 4),
        "events_waiting": held // datapath.stride,
        "produced": datapath.produced,
        "consumed": datapath.consumed,
        "outage_tolerance": accounts.outage_tolerance(),
        "kernel": accounts.last.counters,
        "judged_packets": accounts.last.judged_packets,
        "collector": collector.counters(),
        "records_waiting": collector.records.waiting,
        "nats": {
            "url": bus.where,
            "connected": bus.connected,
            "connects": bus.connects,
            "retried": bus.retried,
            "error": bus.last_error,
        },
    }


def _tables(collector: "Collector") -> dict[str, dict[str, int]]:
    """What of the kernel's tables one policy may fill, and what the running one does; {}: unknown."""
    compiled = collector.node.compiled
    if compiled is None:
        return {}
    sizes, places = compiled.sizes(), room(collector.settings.knobs)
    return {name: {"used": sizes[name], "room": places[name]} for name in places}
