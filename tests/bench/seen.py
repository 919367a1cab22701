"""How late people see: a denied packet at a viewer of live verdicts and painted in a browser; a page's first view.

Packets are sent over a veth pair through `ztlens up`; each is late by the clock of who sees it, less its own time.
"""

import asyncio
import json
import socket
import time

import httpx

from schemas import times
from tests.bench.asking import asking, document
from tests.bench.installation import Installation, wait_until
from tests.bench.policies import DENIED_PORT
from tests.support.kernel import udp_frame
from tests.support.netns import call_in
from tests.support.pages import Browser, Published

PAUSE = 0.7
"""Seconds between two denied packets."""
FOLLOWED = "seen"
PAINTED = {
    "painted": ("/flows?decision=deny", """
        [...document.querySelectorAll("tbody tr[data-key]")].map((row) => row.dataset.key)"""),
    "in overview": ("/", """
        [...Array(Number(document.querySelector(
            "[aria-label='Pairs denied most'] tr[data-key] td:nth-child(5)").textContent)).keys()].map(String)"""),
}  # fmt: skip
"""Figure → address, and in JavaScript what is there of each denied flow: its id; its number, of those counted there."""


def seen(packets: int, openings: int) -> tuple[dict[str, list[float]], list[tuple[float, float]]]:
    """Figure → ms of each packet, `packets` a figure; and of each opening of the page, `first_view`."""
    with Installation(sample="1", web="127.0.0.1:0") as up:
        wire = call_in(up.outside, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        with wire, asking(up.run_dir / "sink.sock") as http:
            wire.bind((up.wire, 0))
            late = {FOLLOWED: _followed(http, wire, packets), **asyncio.run(_painted(up.page, http, wire, packets))}
        return late, [asyncio.run(first_view(up.page)) for _ in range(openings)]


def _followed(http: httpx.Client, wire: socket.socket, packets: int) -> list[float]:
    """ms from each denied packet's moment in the datapath to its event at a viewer."""
    late: list[float] = []
    with http.stream("GET", "verdicts/live", params={"decision": "deny"}) as answer:
        lines = answer.iter_lines()
        wait_until(lambda: next(lines) == ": ztlens", "the viewer follows", 10)
        for i in range(packets):
            time.sleep(PAUSE)
            wire.send(_frame(1024 + i))
            data = next(line for line in lines if line.startswith("data: "))
            now = time.time_ns()
            late += [(now - _nanoseconds(row["time"])) / 1e6 for row in json.loads(data[6:])]
    return late


async def _painted(page: Published, http: httpx.Client, wire: socket.socket, packets: int) -> dict[str, list[float]]:
    """ms from each denied packet's moment in the datapath to the frame that shows it, by figure."""
    painted: dict[str, dict[str, float]] = {}
    async with Browser(page) as browser:
        tab = await browser.tab()
        for number, (figure, (path, there)) in enumerate(PAINTED.items(), 2):
            await browser.to(tab, path)
            await tab.wait_for_selector("#app tr[data-key]")
            await tab.evaluate(_WATCH.replace("THERE", there))
            for i in range(packets):
                await asyncio.sleep(PAUSE)
                wire.send(_frame(1024 * number + i))
            await tab.wait_for_function(f"Object.keys(window.painted).length === {packets}")
            painted[figure] = await tab.evaluate("window.painted")
    flows = document(http, "flows", {"decision": "deny", "limit": "1000"})["flows"]
    begun = {flow["flow"]: _nanoseconds(flow["first_seen"]) / 1e6 for flow in flows}
    begun |= {str(number): moment for number, moment in enumerate(sorted(begun.values()))}
    return {figure: [moment - begun[one] for one, moment in found.items()] for figure, found in painted.items()}


async def first_view(page: Published) -> tuple[float, float]:
    """In a browser that was never there, ms from the navigation to the frame after the first row, and until it is
    alive: drawn by its scripts."""
    async with Browser(page) as browser:
        tab = await browser.tab()
        await tab.add_init_script(_PAINTED)
        await tab.goto(page.origin, wait_until="commit")
        await tab.wait_for_function("window.rows && window.alive")
        return float(await tab.evaluate("window.rows")), float(await tab.evaluate("window.alive"))


_WATCH = """() => {
    const there = () => THERE;
    const known = new Set(there());
    window.painted = {};
    new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
        for (const one of there())
            if (!known.has(one)) known.add(one), (window.painted[one] = performance.timeOrigin + performance.now());
    }))).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""
"""Notes when each that was not there was painted, in ms since 1970."""
_PAINTED = """(() => {
    const painted = (name, selector) => requestAnimationFrame(function look() {
        if (document.querySelector(selector)) setTimeout(() => (window[name] = performance.now()));
        else requestAnimationFrame(look);
    });
    painted("rows", "tbody tr[data-key]");
    painted("alive", "#app tbody tr[data-key]");
})()"""
"""Notes the ends of the frames, in ms since the navigation. The page looks itself: who asks it waits for scripts."""


def _frame(sport: int) -> bytes:
    return udp_frame("10.1.0.1", sport, "10.2.0.1", DENIED_PORT, bytes(18))


def _nanoseconds(moment: str) -> int:
    return times.nanoseconds(times.moment(moment))
