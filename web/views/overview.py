"""Overview: what happens, what is denied most, what decides most, and how every hop does."""

from typing import Any

from web import charts, commands
from web.elements import Chart, Table, box, cell, panel, row, text
from web.page import Page, view
from web.show import LINES, ago, amount, clock, denied_word, service, short

TOP = 8
EVERY = 1.0
"""Seconds between two looks for news, at least."""


@view("overview", "Overview", filters=False)
def overview(page: Page) -> None:
    """One question a second answers all of it; the sink's own health comes with it."""
    figures = {}
    with box("div", "figures"):
        for key, label in FIGURES.items():
            with box("div", "figure"):
                text(label, "span", "figure-label")
                figures[key] = text("–", "span", "figure-value")
    notices = _Notices(page)
    with box("div", "grid"):
        with panel("Verdicts a second", "wide", "the last minute of the time above"):
            rates = Chart("Verdicts a second over the last minute of the time above", _rates(), height="180px")
        with panel("Denied most", "", "by pair"):
            denied = Table(
                "Pairs denied most",
                [("from", "From", ""), ("to", "To", ""), ("port", "Port", "mono"), ("outcome", "Outcome", ""),
                 ("flows", "Flows", "num"), ("last", "Last", "num")],
                empty="Nothing was denied in this time. `ztlens observe -f --decision deny` waits for it.",
            )  # fmt: skip
        with panel("Rules that decide most"):
            rules = Table(
                "Rules that decide most",
                [("rule", "Rule", ""), ("decision", "Decision", ""), ("flows", "Flows", "num"),
                 ("packets", "Packets", "num"), ("bytes", "Bytes", "num")],
                empty="No verdicts in this time: choose a longer one, or make some traffic.",
            )  # fmt: skip
        with panel("Health and loss", "wide", "each hop, now and of all time"):
            nodes = Table(
                "Health and loss of each node",
                [("node", "Node", ""), ("state", "State", ""), ("mode", "Mode", ""), ("revision", "Revision", "num"),
                 ("flows", "Live flows", "num"), ("lost", "Samples lost", "num"), ("held", "Held back", "num"),
                 ("flight", "In flight", "num"), ("gaps", "Gaps", "num"), ("balanced", "Ledger", ""),
                 ("last", "Heard", "num")],
                empty="No node has told anything yet. Start with `ztlens up -i INTERFACE`.",
            )  # fmt: skip

    async def load() -> None:
        found = await page.ask("overview", {"since": "0", **page.span.query, "top": str(TOP)})
        for key, value in _figures(found).items():
            figures[key].set_text(value)
        notices.show(found)
        rates.show(**_series(found["rates"]))
        denied.show([_pair(page, pair, found) for pair in found["top_denied"]])
        most = max((rule["flows"] for rule in found["top_rules"]), default=1) or 1
        rules.show([_rule(page, rule, most) for rule in found["top_rules"]])
        nodes.show([_node(node, found["time"]) for node in found["nodes"]])

    page.shows(load, EVERY)


PAST = "Live flows, mode, revision, ledger, waiting and health are of now, all else is of the range above."
FIGURES = {
    "rate": "Verdicts a second", "flows": "Live flows", "allowed": "Flows allowed", "would_deny": "Would be denied",
    "denied": "Denied", "mode": "Mode", "revision": "Revision", "ledger": "Ledger", "lag": "Waiting",
}  # fmt: skip


def _figures(found: dict[str, Any]) -> dict[str, str]:
    rates, totals, live = found["rates"], found["totals"], [node for node in found["nodes"] if node["state"] == "live"]
    last = [sum(rates[key][-6:-1]) / 5 for key, _, _ in LINES]
    modes = sorted({node["mode"] for node in live if node["mode"]})
    revisions = sorted({str(node["revision"]) for node in live if node["revision"] is not None})
    return {
        "rate": f"{sum(last):,.1f}",
        "flows": f"{sum(node['flows_live'] or 0 for node in live):,}" if live else "–",
        **{key: short(totals[key]["flows"]) for key in ("allowed", "would_deny", "denied")},
        "mode": " + ".join(modes) or "–",
        "revision": " ".join(revisions) + (" pending" if any(node["pending"] for node in live) else "") or "–",
        "ledger": "balanced" if found["balanced"] else "off",
        "lag": "NATS away" if found["lag"] is None else f"{found['lag']:,}",
    }


class _Notices:
    """Changes that wait, above all for their button, and sentences: each made anew when they are others only."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._changes, self._sentences = box("div", "notices"), box("div", "notices")
        self._waiting: list[Any] = []
        self._said: list[str] = []

    def show(self, found: dict[str, Any]) -> None:
        waiting = [(node["node"], node["pending"]) for node in found["nodes"] if node["pending"]]
        if self._waiting != waiting:
            self._waiting = waiting
            self._changes.clear()
            with self._changes:
                for node, change in waiting:
                    commands.pending(self._page, node, change)
        said = [*([] if self._page.span.live else [PAST]), *found["notices"]]
        if self._said != said:
            self._said = said
            self._sentences.clear()
            with self._sentences:
                for notice in said:
                    text(notice, "p", "notice")


def _rates() -> dict[str, Any]:
    return {
        "grid": {"left": 40, "right": 8, "top": 26, "bottom": 20}, "legend": charts.LEGEND,
        "tooltip": {"trigger": "axis"}, "xAxis": charts.names([]), "yAxis": charts.numbers(), "series": [],
    }  # fmt: skip


def _series(rates: dict[str, Any]) -> dict[str, Any]:
    return {
        "xAxis": charts.names([clock(time) for time in rates["times"]]),
        "series": [
            charts.line(word, rates[key], key.replace("_", "-"), dash, areaStyle={"opacity": 0.12})
            for key, word, dash in LINES
        ],
    }


def _pair(page: Page, pair: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    port = service(pair["dport"], pair["proto"])
    flows = page.address(
        "flows", decision="deny", outcome=pair["outcome"], rule=pair["rule"], from_identity=pair["src_identity"],
        to_identity=pair["dst_identity"], port=f"{pair['dport']}/{pair['proto']}",
    )  # fmt: skip
    most = found["top_denied"][0]["flows"] or 1
    return row(
        "|".join([pair["src_identity"], pair["dst_identity"], port, pair["rule"], pair["outcome"]]),
        [
            cell(pair["src_identity"], href=flows), pair["dst_identity"], cell(port, hint=f"rule {pair['rule']}"),
            cell(denied_word(pair["outcome"]), kind="denied" if pair["outcome"] == "dropped" else "would-deny"),
            cell(pair["flows"], share=pair["flows"] / most), ago(pair["last_seen"], found["time"]),
        ],
    )  # fmt: skip


def _rule(page: Page, rule: dict[str, Any], most: int) -> dict[str, Any]:
    return row(
        f"{rule['rule']}|{rule['decision']}",
        [
            cell(rule["rule"], href=page.address("flows", rule=rule["rule"])),
            cell(rule["decision"], kind="allowed" if rule["decision"] == "allow" else "denied"),
            cell(rule["flows"], share=rule["flows"] / most), short(rule["packets"]), amount(rule["bytes"]),
        ],
    )  # fmt: skip


def _node(node: dict[str, Any], now: str) -> dict[str, Any]:
    def loss(count: int | None) -> dict[str, Any]:
        return cell("–" if count is None else count, kind="bad" if count else "")

    return row(
        node["ring"],
        [
            cell(node["node"], hint=f"ring {node['ring']}"),
            cell(node["state"], kind={"live": "good", "silent": "bad"}.get(node["state"], "")), node["mode"] or "–",
            cell("–" if node["revision"] is None else f"{node['revision']}{' pending' if node['pending'] else ''}"),
            "–" if node["flows_live"] is None else node["flows_live"],
            loss(node["samples_lost"]), loss(node["held_back"]),
            "–" if node["in_flight"] is None else node["in_flight"], loss(node["gaps"]),
            cell("balanced" if node["balanced"] else "off", kind="" if node["balanced"] else "bad"),
            ago(node["last"], now) if node["last"] else "–",
        ],
    )  # fmt: skip
