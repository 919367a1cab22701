"""Every metric that Prometheus reads of a collector or a sink, described once; docs/metrics.md is made from it.

Names follow Prometheus: base units, `_total` for counters. A counter never falls but when its process or the thing it
counts on is new; what can fall by itself is a gauge. A sum over a label means something, or the metric says that it
does not. `series` is the most there can be of it at one endpoint.
"""

from dataclasses import dataclass

RULES_MOST = 1000
"""Rules with series of their own: of the running revision in the policy's order, then those that left it, the latest
first; the others are `rule="other"`."""
OTHER = "other"
RESERVED = 9
"""Rules that are not in policy.yaml: `default`, `no_policy`, `builtin:ndp` …"""
NODES_MOST = 200
"""Nodes with series of their own at a sink, those heard of last."""
NODE_TOLD = 7 * 86_400
"""Seconds without a word after which a node has no series any more: it was taken out of service, or renamed."""
_RULES = RULES_MOST + RESERVED + 1
BOTH, COLLECTOR, SINK = ("collector", "sink"), ("collector",), ("sink",)


@dataclass(frozen=True)
class Metric:
    """`kind`: counter, gauge or histogram; `at`: whose endpoint has it; `buckets`: of a histogram, upper bounds."""

    at: tuple[str, ...]
    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    series: int | str = 1
    buckets: tuple[float, ...] = ()

    @property
    def most(self) -> str:
        """The bound of its series, for people."""
        return f"{self.series:,}" if isinstance(self.series, int) else self.series


METRICS: tuple[Metric, ...] = (
    Metric(BOTH, "ztlens_build_info", "gauge", "always 1", ("version",)),
    Metric(BOTH, "ztlens_nats_connected", "gauge", "1: connected to NATS"),

    # what was judged
    Metric(COLLECTOR, "ztlens_policy_verdicts_total", "counter",
           "verdicts read from the ring since the collector started, by what they say",
           ("decision", "reason", "direction", "rule"), 4 * _RULES + 12),
    Metric(COLLECTOR, "ztlens_rule_packets_total", "counter",
           "packets a rule decided, counted in the kernel; begins with what the running revision had when the "
           "collector started", ("rule", "outcome"), 2 * _RULES),
    Metric(COLLECTOR, "ztlens_rule_bytes_total", "counter", "their bytes, layer 2 without FCS",
           ("rule", "outcome"), 2 * _RULES),
    Metric(COLLECTOR, "ztlens_packets_total", "counter",
           "packets seen: `parsed` (IP, all of them judged), `non_ip`, `egress_skipped` (judged where they came in)",
           ("kind",), 3),
    Metric(COLLECTOR, "ztlens_untracked_packets_total", "counter",
           "packets judged alone: `unattributable`, `table_full`, `closing`", ("reason",), 3),

    # flows
    Metric(COLLECTOR, "ztlens_flows_created_total", "counter", "flows that began"),
    Metric(COLLECTOR, "ztlens_flows_ended_total", "counter", "flows that are over"),
    Metric(COLLECTOR, "ztlens_flows_live", "gauge", "flows in the table"),
    Metric(COLLECTOR, "ztlens_flow_table_use_ratio", "gauge", "live flows / room of the flow table"),

    # events, hop by hop
    Metric(COLLECTOR, "ztlens_events_due_total", "counter", "events of this ring that had to be emitted"),
    Metric(COLLECTOR, "ztlens_events_emitted_total", "counter", "of these put into the ring"),
    Metric(COLLECTOR, "ztlens_events_published_total", "counter", "of these acknowledged by JetStream and released"),
    Metric(BOTH, "ztlens_lost_events_total", "counter",
           "at the collector: ring `lost` (full) and `held_back` (over budget), both samples only, and live `capped` "
           "and `failed` (the batches have them: leave `live` out of a sum); at the sink: store `gap` (declared "
           "missing since the sink started)",
           ("stage", "reason"), 4),
    Metric(COLLECTOR, "ztlens_ring_bytes", "gauge", "size of the ring"),
    Metric(COLLECTOR, "ztlens_ring_held_bytes", "gauge", "of these not yet acknowledged by JetStream"),
    Metric(COLLECTOR, "ztlens_ring_fill_ratio", "gauge", "held / size"),
    Metric(COLLECTOR, "ztlens_outage_tolerance_seconds", "gauge",
           "until the ring is full at the present rate if NATS went away now; +Inf: nothing comes in"),
    Metric(COLLECTOR, "ztlens_drain_seconds", "histogram",
           "of a batch: from reading its first event until JetStream acknowledged it", (), 11,
           (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)),
    Metric(COLLECTOR, "ztlens_nats_retries_total", "counter", "batches and records sent again"),

    # what is in force
    Metric(COLLECTOR, "ztlens_mode", "gauge", "1 for the node's mode, 0 for the other", ("mode",), 2),
    Metric(COLLECTOR, "ztlens_revision", "gauge", "number of the running revision; 0: no policy yet"),
    Metric(COLLECTOR, "ztlens_policy_info", "gauge",
           "always 1; the node as the sink calls it; SHA-256 of the running policy's text, and its file",
           ("node", "revision", "hash", "file")),
    Metric(COLLECTOR, "ztlens_policy_rules", "gauge", "rules of the running policy"),
    Metric(COLLECTOR, "ztlens_policy_load_errors_total", "counter", "policies that were refused"),
    Metric(COLLECTOR, "ztlens_policy_file_broken", "gauge",
           "1: the policy file as it is cannot be loaded, an earlier one goes on"),
    Metric(COLLECTOR, "ztlens_confirmation_pending_seconds", "gauge",
           "until the change that nobody has confirmed falls back; 0: none waits", ("change",), 2),
    Metric(COLLECTOR, "ztlens_interface_watched", "gauge", "1: packets are seen there", ("interface",),
           "one an interface"),

    # the sink: what comes in
    Metric(SINK, "ztlens_sink_received_total", "counter",
           "`messages` of both streams, `verdicts` and `records` in them; not to be summed over `of`", ("of",), 3),
    Metric(SINK, "ztlens_sink_stored_total", "counter",
           "of these stored; `verdicts`: rows; not to be summed over `of`", ("of",), 3),
    Metric(SINK, "ztlens_sink_dropped_total", "counter",
           "of these not stored: `duplicate` (stored already), `dead` (no message of ours), `stride`, `late` "
           "(declared missing before, and counted so; what was behind them is deleted already: they stay a gap); not "
           "to be summed over `of`",
           ("of", "reason"), 5),
    Metric(SINK, "ztlens_sink_failed_total", "counter",
           "of these in attempts to store that failed and are tried again; not to be summed over `of`", ("of",), 3),
    Metric(SINK, "ztlens_commit_age_seconds", "gauge",
           "since the last commit; before the first: since the sink started"),
    Metric(SINK, "ztlens_stream_lag_messages", "gauge", "in the stream and not yet stored", ("stream",), 2),
    Metric(SINK, "ztlens_stream_lag_ratio", "gauge",
           "what is not yet stored / what the stream may hold (by bytes); at 1 the stream drops it unread",
           ("stream",), 2),

    # the sink: what it holds
    Metric(SINK, "ztlens_database_bytes", "gauge", "`database` file and its `wal`", ("file",), 2),
    Metric(SINK, "ztlens_rollup_lag_events", "gauge", "stored and not yet summed up", ("node",), NODES_MOST),
    Metric(SINK, "ztlens_gap_events", "gauge", "missing in the store", ("node",), NODES_MOST),
    Metric(SINK, "ztlens_node_silent", "gauge", "1: nothing heard for 15 s of a node whose ring was not closed",
           ("node",), NODES_MOST),
    Metric(SINK, "ztlens_node_heard_seconds", "gauge", "since its last record came; after a restart of the sink, since "
           "the last that is stored was written", ("node",), NODES_MOST),
    Metric(SINK, "ztlens_ledger_balanced", "gauge", "1: every packet and event of the node's newest ring accounted for",
           ("node",), NODES_MOST),
    Metric(SINK, "ztlens_ledger_packets", "gauge",
           "the ledger of the node's newest ring: `parsed`, `judged`, `flows`, `untracked`; not to be summed over "
           "`account`", ("node", "account"), 4 * NODES_MOST),
    Metric(SINK, "ztlens_ledger_events", "gauge",
           "the same: `due`, `emitted`, `pending`, `lost`, `held_back`, `published`, `stored`, `gaps`, `in_flight`; "
           "not to be summed over `account`", ("node", "account"), 9 * NODES_MOST),
    Metric(SINK, "ztlens_denied_pairs_total", "counter",
           "pairs (source, destination, protocol, port) denied for the first time in the history, since the sink "
           "started",
           ("node",), NODES_MOST),
    Metric(SINK, "ztlens_rule_idle_seconds", "gauge",
           "since the last event of this rule of the node's running revision, or, never hit, since the rule's name "
           "came into force; a flow has one in `sample` packets, with `sample` 0 none until it ends",
           ("node", "rule"), f"{RULES_MOST:,} a node"),
    Metric(SINK, "ztlens_figures_age_seconds", "gauge",
           "since the ledger, the denied pairs and the idle rules were last looked at; before the first time: since "
           "the sink started"),

    # the sink: what it is asked
    Metric(SINK, "ztlens_query_seconds", "histogram", "questions to the HTTP API, until their last byte",
           ("kind",), "11 a kind", (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)),
    Metric(SINK, "ztlens_queries_total", "counter",
           "questions `answered`, `refused` (wrong, or too many at once), `broken` (off, after they began)",
           ("result",), 3),
    Metric(SINK, "ztlens_queries_again_total", "counter",
           "questions that the store broke off and that were asked again: a write needed the `memory` they held, or "
           "the file was opened anew (`reopened`, after a full disk)", ("reason",), 2),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
PROCESS = "process_"
"""Prefix of what prometheus-client tells of either process: memory, CPU, descriptors, start."""


def of(place: str) -> list[Metric]:
    """The metrics at the endpoint of `collector` or `sink`."""
    return [metric for metric in METRICS if place in metric.at]
