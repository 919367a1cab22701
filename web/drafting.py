"""A draft of a policy: checked as it is typed, compared with what runs, audited against what was recorded.

Nothing of it leaves the page's process but as questions to the sink, which change nothing.
"""

import asyncio
import json
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from nicegui import context

from schemas import times
from web import commands
from web.draft import DRAFTS, LISTS, SHOWN, Audited, Draft, Sums, audited
from web.editor import Editor, Save
from web.elements import Copy, Table, box, button, cell, heading, link, panel, row, text
from web.errors import AwayError, WebError
from web.meaning import meaning
from web.page import AGAIN, Page
from web.running import running
from web.show import amount, service, short, stamp

log = logging.getLogger("ztlens.web")
CAUSES = {
    "midstream": "begun before it was seen", "headless_fragment": "a fragment without its first",
    "icmp_unrelated": "an ICMP error without its flow", "builtin": "a built-in rule that was off may allow it",
    "host_unknown": "the node's addresses were not recorded", "rolled_up": "of an hour that the span cuts",
    "untracked": "a packet without a flow, maybe a reply",
}  # fmt: skip
"""`cause` of what cannot be told, in words."""
STYLES = {"newly_denied": "lost", "newly_allowed": "gained", "uncertain": "warn"}


class Drafting:
    """The panel of the draft, and below it what is known of it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._checking: asyncio.Task[None] | None = None
        self._auditing: asyncio.Task[None] | None = None
        self._sound = False  # it can be applied, by the last check
        self._chosen, self._node = page.get("node"), ""
        """What the address says, and the node whose policy the draft was compared with last."""
        draft = self._draft()
        with panel("Draft", note="it stays in this page; nothing changes on the node") as whole:
            self._editor = Editor("Draft of a policy", draft.text if draft else "", "YAML", self._typed, self._audit_of)
            self._state = text("", "p", "note", role="status")
            self._found = box("div", "diagnostics")
            with box("div", "actions"):
                button("Audit against the time above", self._audit, "primary", title="Ctrl+Enter")
                self._stop = button("Stop", self._stopped, "quiet")
                self._with_text = Copy("Copy the command", "")
                self._with_file = Copy("Copy it for a file", "")
                self._place = text("", "span", "note")
                self._saved = Save("Save draft.yaml", "draft.yaml", lambda *_: None)
            self._command = text("", "pre", "source")
        with heading(whole):
            button("Start from what runs", lambda: self._begin(self._running()), "quiet")
            button("Suggest from what was recorded", lambda: self._begin(self._suggested()), "quiet")
            button("Discard", self._discarded, "quiet")
        self._meaning = box("div")
        self._audited = box("div")
        self._stop.set_visibility(False)
        context.client.on_delete(self._close)
        page.moved.append(self._moved)
        self._show_commands()
        if draft is not None:
            self._begin_check()
            self._show_audit()
        elif page.get("draft"):
            self._state.set_text("This draft is no longer kept: the page was restarted, or others were written since.")

    def _draft(self) -> Draft | None:
        return DRAFTS.get(self._page.get("draft"))

    def _close(self) -> None:
        for task in (self._checking, self._auditing):
            if task is not None:
                task.cancel()

    def _moved(self) -> None:
        """Another node was chosen: the draft is compared with what runs there."""
        if self._chosen != self._page.get("node"):
            self._chosen, self._node = self._page.get("node"), ""
            if self._draft() is not None:
                self._begin_check()

    # ---- writing

    def _typed(self, given: str) -> None:
        draft = self._draft()
        if draft is None:
            name = DRAFTS.new()
            self._page.set(draft=name)
            draft = DRAFTS.get(name)
        if draft is not None:
            draft.text = given
        self._begin_check()
        self._show_audit()

    def _put(self, given: str) -> None:
        self._editor.put(given)
        self._typed(given)

    def _discarded(self) -> None:
        self._close()
        DRAFTS.discard(self._page.get("draft"))
        self._editor.put("")
        self._editor.show_marks([])
        for room in (self._found, self._meaning, self._audited):
            room.clear()
        self._state.set_text("")
        self._page.set(draft=None)
        self._sound = False
        self._show_commands()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """What takes a while, one at a time."""
        self._stopped()
        self._page.complain(None)
        self._auditing = asyncio.create_task(self._watched(work))

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        self._stop.set_visibility(True)
        try:
            await work
        except WebError as error:
            self._state.set_text("")
            self._page.complain(error)
        except Exception as error:
            log.exception("a draft")
            self._page.complain(WebError(f"This failed: {type(error).__name__}", "The log of `ztlens web` says where."))
        finally:
            if self._auditing is asyncio.current_task():  # a later one may be under way already
                self._stop.set_visibility(False)

    def _stopped(self) -> None:
        if self._auditing is not None and not self._auditing.done():
            self._auditing.cancel()
            self._state.set_text("Stopped.")

    def _text(self) -> str:
        draft = self._draft()
        return draft.text if draft else ""

    def _replace(self, before: str, given: str) -> None:
        if self._text() != before:
            raise WebError("The draft was written on meanwhile, and stays as it is", "Press the button again.")
        self._put(given)

    async def _running(self) -> None:
        before = self._text()
        _, one = await running(self._page)
        if one is None or not one["running"]["text"]:
            raise WebError("No policy runs whose text is recorded", "Suggest one from what was recorded.")
        self._replace(before, one["running"]["text"])

    async def _suggested(self) -> None:
        before = self._text()
        self._state.set_text("finding the smallest policy that allows what was recorded …")
        since, until = self._span()
        found = await self._page.source.post("suggest", {"generality": "service", "since": since, "until": until})
        if found["policy"] is None:
            raise WebError("Nothing was recorded in this time", "Choose a longer time.")
        self._replace(before, found["policy"])

    # ---- checking

    def _begin_check(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
        self._checking = asyncio.create_task(self._check())

    async def _check(self) -> None:
        while True:
            try:
                return await self._checked()
            except WebError as error:
                self._meaning.clear()
                self._state.set_text(f"{error}. {error.hint}")
                if not isinstance(error, AwayError):
                    return None
            await asyncio.sleep(AGAIN)

    async def _checked(self) -> None:
        draft = self._draft()
        self._sound = False
        self._show_commands()  # those of the text before are none of this one
        if draft is None or not draft.text.strip():
            self._editor.show_marks([])
            for room in (self._found, self._meaning):
                room.clear()
            self._state.set_text("Nothing to check: write a policy, paste one, or begin with one of the buttons above.")
            return
        self._state.set_text("checking …")
        found = await self._page.source.post("policy/check", {"text": draft.text})
        self._show_check(found)
        if found["ok"]:
            await self._compare(draft.text)

    async def _compare(self, content: str) -> None:
        """With what runs, by meaning; with no policy, where none does."""
        _, one = await running(self._page)
        self._node = one["running"]["node"] if one else ""
        before = {"node": self._node} if one else {"text": ""}
        changed = await self._page.source.post("policy/diff", {"before": before, "after": {"text": content}})
        self._meaning.clear()
        place = f" on {self._node}" if one else ""
        with self._meaning, panel("What it changes", note=f"against what runs{place}, by meaning"):
            meaning(changed, "The draft means the same as what runs.")
        self._show_commands()

    def _show_check(self, found: dict[str, Any]) -> None:
        self._sound = found["ok"]
        self._show_commands()
        told = found["diagnostics"]
        self._editor.show_marks([{**one, "message": f"{one['message']}. {one['hint']}"} for one in told])
        count = f"{len(told)} warning{'' if len(told) == 1 else 's'}" if told else "no warnings"
        self._state.set_text(
            f"It can be applied: {count}, default {found['default']}, {found['rules']:,} rules,"
            f" {found['identities']:,} identities."
            if found["ok"]
            else "It cannot be applied."
        )
        self._found.clear()
        with self._found:
            for one in told:
                self._diagnostic(one)
        if not found["ok"]:
            self._meaning.clear()

    def _diagnostic(self, one: dict[str, Any]) -> None:
        with box("p", f"diagnostic {one['severity']}"):
            if one["line"]:
                place = f"line {one['line']}, column {one['column']}"
                button(place, lambda: self._editor.reveal(one["line"], one["column"]), "chip")
            text(one["kind"].replace("_", " "), "span", "warn" if one["severity"] == "warning" else "bad")
            text(one["message"], "span")
            text(one["hint"], "span", "note")

    # ---- auditing

    def _span(self) -> tuple[int | None, int | None]:
        """The time that is shown, in ns; what is live ends now. Raises WebError."""
        bounds = self._page.span.bounds(datetime.now(UTC))
        if bounds is None:
            raise WebError("The time above is not one", "Choose one of the list, or write it as 2h.")
        begin, end = bounds
        return None if begin is None else times.nanoseconds(begin), times.nanoseconds(end)

    def _audit_of(self, given: str) -> None:
        self._typed(given)
        self._audit()

    def _audit(self) -> None:
        self._begin(self._judged())

    async def _judged(self) -> None:
        draft = self._draft()
        if draft is None or not draft.text.strip():
            raise WebError("There is no draft to audit", "Write one, or begin with what runs.")
        self._state.set_text("judging what was recorded …")
        content = draft.text
        since, until = self._span()
        answer = await self._page.source.raw("audit", self._question(content, since, until))
        draft.audited = await asyncio.to_thread(lambda: audited(content, since, until, json.loads(answer)))
        self._state.set_text("Audited.")
        self._show_audit()

    def _question(self, content: str, since: int | None, until: int | None) -> dict[str, Any]:
        node = self._page.get("node")
        return {"candidate": {"text": content, "file": "draft.yaml"}, "since": since, "until": until,
                **({"node": node} if node else {})}  # fmt: skip

    def _show_audit(self) -> None:
        draft = self._draft()
        self._audited.clear()
        if draft is None or draft.audited is None:
            return
        done = draft.audited
        with self._audited, panel("Audit", "chosen-flow", _span_word(done)) as whole:
            if done.text != draft.text:
                text("The draft was changed since: this is of what it was.", "p", "notice")
            with box("div", "figures"):
                _figure("Flows judged", done.judged, "")
                _figure("Decided the same", done.unchanged, "")
                for name, word in LISTS.items():
                    _figure(word, done.sums[name], STYLES[name] if done.sums[name].entries else "dim")
            for name, word in LISTS.items():
                if done.entries[name]:
                    _entries(self._page, name, word, done)
        with heading(whole):
            name = self._page.get("draft")
            link("Draw it on the map", self._page.address("map", draft=name), "button")
            link("On the matrix", self._page.address("matrix", draft=name), "button")
            saved = Save("Save as JSON", "audit.json", lambda error, hint: self._page.complain(WebError(error, hint)))
            saved.answer("/api/v1/audit", json.dumps(self._question(done.text, done.since, done.until)))
            Copy("Copy as command", self._audit_command(done))

    def _audit_command(self, done: Audited) -> str:
        given = [("--since", done.since), ("--until", done.until)]
        options = [word for name, at in given if at is not None for word in (name, times.rfc3339(at))]
        node = self._page.get("node")
        named = ["--node", node] if node else []
        return commands.holding(self._page.settings, done.text, "audit", "-", *options, *named)

    # ---- commands

    def _show_commands(self) -> None:
        content = self._text()
        there = self._sound
        for element in (self._with_text, self._with_file, self._saved, self._command):
            element.set_visibility(there)
        self._place.set_text(commands.run_on(self._node) if there and self._node else "")
        command = self._page.settings.command
        apply = command("policy", "apply", "draft.yaml", *commands.WITHIN)
        self._command.set_text(
            f"{apply}\n{command('policy', 'confirm')}     # within 60 s, else it falls back by itself"
        )
        self._with_file.holds(apply)
        self._with_text.holds(commands.applying(self._page.settings, content) if there else "")
        self._saved.text(content)


def _span_word(done: Audited) -> str:
    begin, end = (None if at is None else stamp(times.rfc3339(at))[:19] for at in (done.since, done.until))
    return f"{begin or 'the beginning'} … {end or 'now'} (UTC)"


def _figure(label: str, sums: Sums, kind: str) -> None:
    with box("div", "figure"):
        text(label, "span", "figure-label")
        text(short(sums.flows), "span", f"figure-value {kind}")
        text(f"{short(sums.packets)} packets, {amount(sums.bytes)}", "span", "figure-label")


def _entries(page: Page, name: str, word: str, done: Audited) -> None:
    entries = done.entries[name]
    text(f"{word}: {done.sums[name].entries:,}", "h3", STYLES[name])
    table = Table(
        word,
        [("from", "From", ""), ("to", "To", ""), ("port", "Port", "mono"), ("before", "Rule before", ""),
         ("after", "Rule after", ""), ("flows", "Flows", "num"), ("packets", "Packets", "num"),
         ("bytes", "Bytes", "num"), ("last", "Last seen (UTC)", "mono"), ("note", "Note", "")],
    )  # fmt: skip
    table.show([_entry(page, i, one) for i, one in enumerate(entries)])
    if done.sums[name].entries > SHOWN:
        text(f"… and {done.sums[name].entries - SHOWN:,} more: save it as JSON.", "p", "note")


def _entry(page: Page, number: int, one: dict[str, Any]) -> dict[str, Any]:
    notes = [CAUSES.get(one["cause"], one["cause"])] if "cause" in one else []
    notes += ["report only"] if one["report_only_after"] else []
    notes += ["at least"] if one["lower_bound"] else []
    notes += [f"{one['crossing']:,} begun before"] if one["crossing"] else []
    flows = page.address(
        "flows", from_identity=one["src_identity"], to_identity=one["dst_identity"], rule=one["rule_before"],
        port=f"{one['dport']}/{one['proto']}" if one["proto"] in ("tcp", "udp", "sctp") else "",
    )  # fmt: skip
    return row(
        number,
        [
            cell(one["src_identity"], href=flows, hint="its flows"), one["dst_identity"],
            service(one["dport"], one["proto"]), one["rule_before"], one["rule_after"], one["flows"], one["packets"],
            cell(amount(one["bytes"]), hint=f"{one['bytes']:,} B"), stamp(one["last_seen"]), ", ".join(notes),
        ],
    )  # fmt: skip
