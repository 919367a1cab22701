"""Flows: conversations of any time by the words of `observe`, sorted and paged by the sink, each with its reason."""

from datetime import datetime
from typing import Any
from urllib.parse import quote

from web import charts, words
from web.elements import Chart, Copy, Table, box, button, cell, heading, link, panel, row, text
from web.page import Page, view
from web.paged import Paged
from web.show import amount, endpoint, kind, stamp
from web.span import Span

LIMIT = 100
EVERY = 0.2
"""Seconds between two looks for news, at least."""
COLUMNS = (
    ("last_seen", "Last seen (UTC)", "mono"), ("decision", "Decision", ""), ("src_identity", "From", ""),
    ("src", "Address", "mono"), ("dst_identity", "To", ""), ("dst", "Address", "mono"), ("proto", "Proto", ""),
    ("rule", "Rule", ""), ("packets", "Packets", "num"), ("bytes", "Bytes", "num"), ("node", "Node", ""),
)  # fmt: skip
EMPTY = "No conversation in this time with these filters. Choose a longer time, or take a filter out."


@view("flows", "Flows")
def flows(page: Page) -> None:
    """The table, and above it the row that was chosen; both stand in the address."""
    _Detail(page)
    _Conversations(page)


class _Conversations:
    """Pages of flows, each asked for when somebody wants more."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._paged = Paged(page, "flows", self._asked, self._show, every=EVERY)
        with panel("Conversations", "flows") as whole:
            self._table = Table(
                "Flows", COLUMNS, choose=self._chosen, sort=self._sorted, sorts=[name for name, _, _ in COLUMNS],
                empty=EMPTY,
            )  # fmt: skip
            with box("div", "more"):
                self._further = button("More", self._paged.more)
        with heading(whole):
            self._command, self._question = Copy("Copy as observe", ""), Copy("Copy as SQL", "")

    def _asked(self) -> dict[str, Any]:
        return {**self._page.asked, "limit": str(LIMIT), "sort": self._sort, "order": self._order}

    @property
    def _sort(self) -> str:
        return self._page.get("sort", "last_seen")

    @property
    def _order(self) -> str:
        return self._page.get("order", "desc")

    def _show(self) -> None:
        page, paged = self._page, self._paged
        rows = [_row(flow) for flow in paged.rows]
        self._table.show(rows, sort=self._sort, order=self._order, chosen=page.get("flow"))
        self._further.set_visibility(paged.next is not None)
        self._command.holds(words.observe(page.settings, page.filters, page.span))
        self._question.holds(words.sql(page.filters, page.span))

    def _chosen(self, key: str) -> None:
        self._page.set(flow=None if self._page.get("flow") == key else key)

    def _sorted(self, name: str) -> None:
        """By this column; the other way round, if it is sorted by it already."""
        turned = self._sort == name and self._order == "desc"
        self._page.set(sort=None if name == "last_seen" else name, order="asc" if turned else None)


def _row(flow: dict[str, Any]) -> dict[str, Any]:
    verdict = kind(flow)
    why = [flow["reason"], *(name for name in ("midstream", "report_only", "untracked", "aggregated") if flow[name])]
    return row(
        flow["flow"] or "",
        [
            cell(stamp(flow["last_seen"])[5:], hint=flow["last_seen"]),
            cell(WORDS[verdict], kind=verdict, hint=", ".join(why)),
            flow["src_identity"], endpoint(flow["src"], flow["sport"], flow["proto"]), flow["dst_identity"],
            endpoint(flow["dst"], flow["dport"], flow["proto"]), flow["proto"], cell(flow["rule"], hint=flow["rule"]),
            flow["packets"], cell(amount(flow["bytes"]), hint=f"{flow['bytes']:,} B"), flow["node"],
        ],
        verdict,
    )  # fmt: skip


WORDS = {"allowed": "allow", "would-deny": "would drop", "denied": "dropped"}


class _Detail:
    """The conversation that the address names."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._shown: dict[str, Any] | None = None
        self._room = box("div")
        page.shows(self._load, 2.0)

    async def _load(self) -> None:
        chosen = self._page.get("flow")
        found = await self._page.ask(f"flows/{quote(chosen, safe='')}") if chosen else None
        if found == self._shown:
            return  # what is unfolded stays so
        taken = await self._rule_names(found["flow"]["node"]) if found else set()
        self._shown = found
        self._room.clear()
        if found is not None:
            with self._room:
                self._show(found, taken)

    async def _rule_names(self, node: str) -> set[str]:
        """Of the policy that runs there."""
        body = {"sql": words.RULE_NAMES, "parameters": {"node": node}, "format": "json"}
        return {one["name"] for one in await self._page.source.post("sql", body)}

    def _show(self, found: dict[str, Any], taken: set[str]) -> None:
        page, flow, revision, rule = self._page, found["flow"], found["revision"], found["rule"]
        source = endpoint(flow["src"], flow["sport"], flow["proto"])
        target = endpoint(flow["dst"], flow["dport"], flow["proto"])
        title = f"{flow['src_identity']} → {flow['dst_identity']}"
        with panel(title, "chosen-flow", f"{source} → {target} {flow['proto']}"):
            with box("div", "facts"):
                for label, value in _facts(flow, revision):
                    with box("div", "fact"):
                        text(label, "span", "figure-label")
                        text(value, "span", kind(flow) if label == "Decision" else "")
            with box("div", "actions"):
                given = words.of_flow(flow)
                its = Span.of(flow["first_seen"], flow["last_seen"])
                Copy("Copy as observe", words.observe(page.settings, given, its))
                Copy("Copy as SQL", _question(flow))
                if rule_line := words.rule(flow, taken):
                    Copy("Copy as a rule", rule_line)
                link("Conversations like this", page.address("flows", **given), "button")
                button("Close", lambda: page.set(flow=None), "quiet")
            with box("div", "grid"):
                with box("div"):
                    text("Packets and bytes over time", "h3")
                    _over_time(found["samples"], found["left_out"])
                with box("div"):
                    text(f"Rule {rule['name']}", "h3")
                    text(rule["text"] or NOT_A_RULE.get(flow["reason"], "No rule of the policy."), "pre", "source")
                    if revision:
                        _revision(revision)


NOT_A_RULE = {
    "default": "No rule matched: the policy's `default` decided.",
    "no_policy": "There was no policy: everything is allowed.",
    "builtin": "A rule that is built in, see docs/policy.md.",
    "malformed": "The packet is not what it claims to be.",
}


def _facts(flow: dict[str, Any], revision: dict[str, Any] | None) -> list[tuple[str, str]]:
    outcome = "dropped" if flow["outcome"] == "dropped" else "passed"
    flags = [
        name for name in ("egress", "midstream", "report_only", "untracked", "aggregated", "reversed") if flow[name]
    ]
    return [
        ("Decision", f"{flow['decision']}, {outcome}"), ("Reason", f"{flow['reason']}: {flow['rule']}"),
        ("Revision", f"{flow['revision']}" + (f" by {revision['who']}" if revision else "")),
        ("First seen (UTC)", stamp(flow["first_seen"])), ("Last seen (UTC)", stamp(flow["last_seen"])),
        ("Packets there, back", f"{flow['packets_original']:,}, {flow['packets_reply']:,}"),
        ("Bytes there, back", f"{flow['bytes_original']:,}, {flow['bytes_reply']:,}"),
        ("State", "ended" if flow["ended"] else "open"), ("Node", f"{flow['node']}, interface {flow['ifindex']}"),
        ("Marks", ", ".join(flags) or "–"),
    ]  # fmt: skip


def _question(flow: dict[str, Any]) -> str:
    number = flow["flow"].partition("-")[2]
    ring = "'" + flow["ring"].replace("'", "''") + "'"
    return f"SELECT * FROM verdicts WHERE ring = {ring} AND flow_id = {number} ORDER BY position"


def _over_time(samples: list[dict[str, Any]], left_out: int) -> None:
    series = [
        charts.line(
            name, [[sample["time"], sum(sample[f"{of}_{way}"] for way in ("original", "reply"))] for sample in samples],
            colour, dash, yAxisIndex=index, showSymbol=True, symbolSize=4,
        )
        for name, of, index, dash, colour in (
            ("Packets", "packets", 0, "solid", "allowed"), ("Bytes", "bytes", 1, "dashed", "accent")
        )
    ]  # fmt: skip
    options = {
        "grid": {"left": 48, "right": 64, "top": 26, "bottom": 22}, "legend": charts.LEGEND, "useUTC": True,
        "tooltip": {"trigger": "axis"}, "xAxis": charts.moments(**_bounds(samples)),
        "yAxis": [charts.numbers(), charts.numbers(splitLine={"show": False})], "series": series,
    }  # fmt: skip
    Chart("Packets and bytes of this flow over time, totals so far", options, height="200px")
    if left_out:
        text(f"The newest {len(samples):,} events; {left_out:,} before them are left out.", "p", "note")


def _bounds(samples: list[dict[str, Any]]) -> dict[str, int]:
    """What lies within a millisecond has the whole second to lie in, where a chart would take days."""
    first, last = (samples[i]["time"][:23] for i in (0, -1)) if samples else ("", " ")
    if first != last:
        return {}
    begin = int(datetime.fromisoformat(f"{first[:19]}Z").timestamp()) * 1000
    return {"min": begin, "max": begin + 1000}


def _revision(revision: dict[str, Any]) -> None:
    with box("details"):
        text(f"Revision {revision['revision']} of {stamp(revision['time'])} by {revision['who']}", "summary")
        text(
            revision["text"] if revision["text"] is not None else "Its text was too long to be recorded.",
            "pre",
            "source",
        )
