"""Policy: what runs and what its rules did, the revisions before it, and drafts of the next one."""

from typing import Any

from web import answers, commands
from web.drafting import Drafting
from web.elements import Table, box, button, cell, choice, heading, panel, row, text
from web.meaning import meaning
from web.page import Page, view
from web.paged import Paged
from web.running import running
from web.show import amount, stamp

REVISIONS = 50
EVERY, EVERY_REVISIONS = 2.0, 5.0
"""Seconds between two looks for news, at least."""
PAST = "Rules, revision and mode are of now; what the rules decided is of the range above."
OTHER = {"monitor": ("enforce", *commands.WITHIN), "enforce": ("monitor",)}
"""Mode → the other, as `ztlens mode` is told."""
HASH = 12
"""Characters of a hash that tell policies apart."""


@view("policy", "Policy", filters=False)
def policy(page: Page) -> None:
    """Each part asks for itself."""
    _Running(page)
    Drafting(page)
    _Revisions(page)


class _Running:
    """The policy that runs on a node, and what each of its rules decided in the time that is shown."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._nodes: list[str] = []
        self._told: tuple[dict[str, Any], dict[str, Any] | None] | None = None
        self._unfolded: object = None
        with panel("Running policy", note="hits in the time above") as whole:
            self._past = text(PAST, "p", "notice")
            self._facts = box("div", "facts")
            self._pending = box("div", "notices")
            self._table = Table(
                "Rules of the running policy",
                [("rule", "Rule", ""), ("action", "Action", ""), ("marks", "Marks", ""), ("flows", "Flows", "num"),
                 ("packets", "Packets", "num"), ("bytes", "Bytes", "num"), ("last", "Last hit (UTC)", "mono")],
                choose=self._chosen,
                empty="No policy runs: everything is allowed. Write a draft below, or `ztlens policy suggest`.",
            )  # fmt: skip
        with heading(whole):
            self._choice = box("div")
        self._detail = box("div")
        page.shows(self._load, EVERY)

    async def _load(self) -> None:
        page = self._page
        nodes, one = await running(page)
        if nodes != self._nodes:
            self._nodes = nodes
            self._offer()
        if one is not None:
            self._show(one)

    def _offer(self) -> None:
        self._choice.clear()
        if len(self._nodes) > 1:
            names = {name: name for name in self._nodes}
            with self._choice:
                choice(
                    "Node", names, self._page.get("node") or self._nodes[0], lambda value: self._page.set(node=value)
                )

    def _show(self, found: dict[str, Any]) -> None:
        self._past.set_visibility(not self._page.span.live)
        if self._told != (found["running"], found["pending"]):
            self._told = (found["running"], found["pending"])
            self._show_facts(*self._told)
        ruled = [*found["rules"], *found["other"]]
        most = max((one["flows"] for one in ruled), default=1) or 1
        chosen = self._page.get("chosen")
        rows = [_rule(self._page, one, most, earlier=False) for one in found["rules"]]
        rows += [_rule(self._page, one, most, earlier=bool(one["action"])) for one in found["other"]]
        self._table.show(rows, chosen=chosen)
        one = next((one for one in ruled if one["name"] == chosen), None)
        shown = one and (one["name"], one["text"], one["shadowed"])
        if shown != self._unfolded:
            self._unfolded = shown
            self._detail.clear()
            if one is not None:
                self._show_text(one)

    def _show_facts(self, now: dict[str, Any], pending: dict[str, Any] | None) -> None:
        self._facts.clear()
        with self._facts:
            for label, value in (
                ("Node", now["node"]), ("Revision", str(now["revision"])), ("Mode", now["mode"]),
                ("Default", now["default"] or "no policy"), ("In force since (UTC)", stamp(now["time"])),
                ("By", now["who"]), ("Policy", now["hash"][:HASH] or "–"),
            ):  # fmt: skip
                with box("div", "fact"):
                    text(label, "span", "figure-label")
                    text(value, "span")
                    if label == "Mode":
                        other, *more = OTHER[now["mode"]]
                        command = self._page.settings.command("mode", other, *more)
                        commands.copy(f"Copy mode {other}", command, now["node"])
        self._pending.clear()
        if pending is not None:
            with self._pending:
                commands.pending(self._page, now["node"], pending)

    def _chosen(self, name: str) -> None:
        self._page.set(chosen=None if self._page.get("chosen") == name else name)

    def _show_text(self, one: dict[str, Any]) -> None:
        with self._detail, panel(f"Rule {one['name']}", "chosen-flow") as whole:
            text(one["text"] or "Not a rule of the policy: see docs/policy.md.", "pre", "source")
            if one["shadowed"]:
                text(one["shadowed"], "p", "notice")
        with heading(whole):
            button("Close", lambda: self._page.set(chosen=None), "quiet")


def _rule(page: Page, one: dict[str, Any], most: int, earlier: bool) -> dict[str, Any]:
    marks: list[str] = []
    if one["report_only"]:
        marks.append("report only")
    if one["shadowed"]:
        marks.append("shadowed")
    elif one["last_hit"] is None:
        marks.append("no event in this time" if one["last_ever"] else "never hit")
    if earlier:
        marks.append("of an earlier revision")
    idle = not {"shadowed", "never hit"}.isdisjoint(marks)
    action = {"allow": "allowed", "deny": "denied"}.get(one["action"], "dim")
    flows, last = page.address("flows", rule=one["name"]), one["last_hit"] or one["last_ever"]
    return row(
        one["name"],
        [
            cell(one["name"], href=flows, hint="its flows"), cell(one["action"] or "–", kind=action),
            cell(", ".join(marks), kind="warn" if idle else "dim", hint=one["shadowed"]),
            cell(one["flows"], share=one["flows"] / most), one["packets"],
            cell(amount(one["bytes"]), hint=f"{one['bytes']:,} B"), stamp(last) if last else "–",
        ],
    )  # fmt: skip


class _Revisions:
    """What was in force before, and what each changed, by meaning."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._shown: object = None
        self._paged = Paged(
            page, "policy/revisions", self._asked, self._show, every=EVERY_REVISIONS, enough=self._has_chosen
        )
        with panel("Revisions", note="a row shows what it changed"):
            self._table = Table(
                "Revisions",
                [("time", "In force (UTC)", "mono"), ("node", "Node", ""), ("revision", "Revision", "num"),
                 ("who", "By", ""), ("state", "State", ""), ("mode", "Mode", ""), ("default", "Default", ""),
                 ("hash", "Policy", "mono")],
                choose=self._chosen, empty="No policy was ever in force: `ztlens policy apply FILE` makes revision 1.",
            )  # fmt: skip
            with box("div", "more"):
                self._further = button("More", self._paged.more)
        self._further.set_visibility(False)
        self._detail = box("div")

    def _asked(self) -> dict[str, Any]:
        node = self._page.get("node")
        return {"limit": str(REVISIONS), **({"node": node} if node else {})}

    def _has_chosen(self, known: list[dict[str, Any]]) -> bool:
        """And the one before it, which it is compared with."""
        chosen = self._page.get("revision")
        at = next((i for i, one in enumerate(known) if _key(one) == chosen), None)
        return not chosen or (at is not None and any(one["node"] == known[at]["node"] for one in known[at + 1 :]))

    async def _show(self) -> None:
        self._table.show([_revision(one) for one in self._paged.rows], chosen=self._page.get("revision"))
        self._further.set_visibility(self._paged.next is not None)
        await self._show_detail()

    def _chosen(self, key: str) -> None:
        self._page.set(revision=None if self._page.get("revision") == key else key, against=None)

    async def _show_detail(self) -> None:
        """A revision beside the one before it on its node, or beside another that was chosen."""
        key = self._page.get("revision")
        known = self._paged.rows
        at = next((i for i, one in enumerate(known) if _key(one) == key), None)
        if at is None:
            self._detail.clear()
            self._shown = None
            return
        one = known[at]
        others = [other for other in known if other["node"] == one["node"] and other is not one]
        before = next((other for other in known[at + 1 :] if other["node"] == one["node"]), None)
        wanted = self._page.get("against")
        before = next((other for other in others if _key(other) == wanted), before)
        if self._shown == (key, before and _key(before), len(others)):
            return  # what is unfolded stays so
        page = self._page
        after = await self._text(one)
        found, earlier = None, await self._text(before) if before is not None else None
        if earlier is not None and after is not None:
            sides = [{"text": earlier}, {"text": after}]
            found = await page.source.post("policy/diff", {"before": sides[0], "after": sides[1]})
        self._shown = (key, before and _key(before), len(others))
        self._detail.clear()
        with self._detail, panel(f"Revision {one['revision']} of {one['node']}", "chosen-flow") as whole:
            if before is None:
                text("The first one that is recorded of this node.", "p", "note")
            else:
                names = {_key(other): f"{other['revision']}, {stamp(other['time'])[:19]}" for other in others}
                with box("div", "controls"):
                    choice("Compared with", names, _key(before), lambda value: page.set(against=value))
                if found is not None:
                    meaning(found, "Both mean the same.")
                else:
                    lost = " and ".join(
                        str(side["revision"]) for side, its in ((before, earlier), (one, after)) if its is None
                    )
                    text(f"Not compared: the text of revision {lost} was too long to be recorded.", "p", "note")
            with box("details"):
                text("The text", "summary")
                text(after if after is not None else "It was too long to be recorded.", "pre", "source")
            if after:
                commands.copy("Copy to apply it again", commands.applying(page.settings, after), one["node"])
        with heading(whole):
            button("Close", lambda: page.set(revision=None, against=None), "quiet")

    async def _text(self, one: dict[str, Any]) -> str | None:
        """Empty: no policy; None: it was too long to be recorded. A node's later ring may have the same number."""
        if not one["hash"]:
            return ""
        sql = "SELECT yaml FROM policy_revisions WHERE node = $node AND ring = $ring AND revision = $revision"
        found = await answers.ask(self._page.source, sql, {name: one[name] for name in ("node", "ring", "revision")})
        return next((str(values[0]) for values in found.rows if values[0]), None)


def _key(one: dict[str, Any]) -> str:
    return f"{one['node']}.{one['ring']}.{one['revision']}"


def _revision(one: dict[str, Any]) -> dict[str, Any]:
    state = {"confirmed": "good", "pending": "warn", "fallen_back": "bad"}.get(one["state"], "")
    return row(
        _key(one),
        [
            stamp(one["time"]), one["node"], one["revision"], one["who"],
            cell(one["state"].replace("_", " "), kind=state), one["mode"], one["default"] or "no policy",
            one["hash"][:HASH] or "–",
        ],
    )  # fmt: skip
