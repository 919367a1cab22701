"""What decides on this node: policy and mode, changed one at a time, each change a record.

A change is written down (memory), made (kernel), and told (records), in this order, under one lock. What is
refused changes nothing and is told, too. Which policy runs is asked of the datapath each time, for it may have gone
back to the one before: such a change waits for its confirmation, and until then no other is made.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from collector import lockout
from collector.errors import KernelError, RefusedError
from collector.kernel.interface import Datapath, Unconfirmed
from collector.lockout import Caution
from collector.memory import Kept, Memory
from collector.names import RevisionNames
from collector.policyfile import Wanted, compile_text
from collector.records import Records
from policy.builtin import IDENTITY_NAMES, switched
from policy.compile import compile_policy
from schemas.codes import IdentityId, Mode, word
from schemas.messages import IdentityInfo, PolicyRecord

if TYPE_CHECKING:
    from policy.compile import Compiled

log = logging.getLogger("ztlens.collector")

KernelCall = Callable[..., Awaitable[Any]]
"""`await call(function, *arguments)` runs it in the thread that owns the datapath."""
NatsPeer = Callable[[], tuple[str, int] | None]
"""Address and port of the NATS server in use."""
PENDING, CONFIRMED, FALLEN_BACK = "pending", "confirmed", "fallen_back"
"""PolicyRecord.state."""
HOST_CHANGED = "host addresses changed"
NO_CAUTION = Caution()


class Node:
    """Policy and mode of one datapath."""

    def __init__(  # noqa: PLR0917 – the parts of one collector
        self, datapath: Datapath, call: KernelCall, records: Records, memory: Memory, name: str, nats: NatsPeer
    ) -> None:
        self.names = RevisionNames()
        self.refusals = 0  # policies that changed nothing
        self._datapath, self._call, self._records, self._memory, self._name = datapath, call, records, memory, name
        self._nats = nats
        self._host: tuple[str, ...] = ()  # the node's addresses
        self._lock = asyncio.Lock()
        self._problem: RefusedError | None = None  # of the policy file at a start that went on without it

    @property
    def running(self) -> Kept | None:
        """None: no policy, or one whose text is unknown."""
        return self._memory.find(self._datapath.ring_id, self._datapath.revision)

    @property
    def compiled(self) -> "Compiled | None":
        """The policy in force; None: unknown."""
        return self.names.compiled(self._datapath.revision)

    @property
    def policy_hash(self) -> str:
        """SHA-256 of the running policy's text; "" when there is none."""
        return self._hash(self._datapath.revision)

    def _hash(self, revision: int) -> str:
        kept = self._memory.find(self._datapath.ring_id, revision)
        return kept.hash if kept is not None else ""

    # ── the start ───────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, wanted: Wanted | None, mode: Mode | None, predecessor: Datapath | None) -> None:
        """Give a new datapath its policy, then its mode, before it is attached. Called in the kernel thread.

        A predecessor's policy goes on when no file is named or the file is broken. Raises RefusedError (a broken
        file and nothing to go on with), KernelError.
        """
        self.names.remember(0, compile_policy(None))
        self._host = self._datapath.host.addresses()
        wanted = wanted.on(self._host) if wanted is not None else None
        self._problem = wanted.problem if wanted is not None else None
        if wanted is None or wanted.compiled is None:
            inherited = self._inherit(predecessor) if predecessor is not None else None
            if inherited is None and wanted is not None and wanted.problem is not None:
                raise wanted.problem
            wanted = inherited
        if wanted is not None and wanted.compiled is not None:
            kept = self._written_down(wanted.compiled, wanted.text, wanted.file, "policy file at start")
            self._datapath.apply(wanted.compiled, kept.revision)
        if mode is not None and mode != self._datapath.mode:
            self._datapath.set_mode(mode)

    async def begin(self, wanted: Wanted | None, mode: Mode | None) -> bool:
        """Publish `start`. What was adopted goes on; a file it has not had yet becomes a new revision, a broken one
        a `refused` record. False: the file has to wait, for a change is unconfirmed. Raises RefusedError, KernelError.
        """
        async with self._lock:
            if not self._datapath.adopted:
                self._tell("start", who="collector start")
                if self._problem is not None and wanted is not None:
                    self._refused(self._problem, wanted.text, f"policy file {wanted.file} at start")
                return True
            self.names.remember(0, compile_policy(None))
            self._host = await self._call(self._datapath.host.addresses)
            wanted = await asyncio.to_thread(wanted.on, self._host) if wanted is not None else None
            self._recall()
            await self._settle()
            waits = self._datapath.unconfirmed
            state = CONFIRMED if waits is None else PENDING
            self._tell("start", who="collector start, datapath adopted", state=state)
            dealt_with = True
            if wanted is not None and wanted.problem is not None:
                self._refused(wanted.problem, wanted.text, f"policy file {wanted.file} at start")
            elif wanted is not None and wanted.compiled is not None and not self._had(wanted):
                dealt_with = waits is None
                if dealt_with:
                    await self._switch(wanted.compiled, wanted.text, wanted.file, "policy file at start")
            if mode is not None and waits is None:
                await self._set_mode(mode, "collector start")
            await self._follow()
            return dealt_with

    def _had(self, wanted: Wanted) -> bool:
        """The file as it is was applied before, and since then another policy came to run: that one stays."""
        assert wanted.compiled is not None and wanted.compiled.policy is not None
        digest, running, revision = wanted.compiled.policy.hash, self.running, self._datapath.revision
        if not any((k.file, k.hash) == (wanted.file, digest) for k in self._memory.of(self._datapath.ring_id)):
            return False
        if running is None and revision:
            return False
        if running is None or running.hash != digest:
            log.warning("revision %d, in force since %s was applied, stays", revision, wanted.file)
        return True

    def _recall(self) -> None:
        """Names of the revisions an earlier collector applied."""
        revision = self._datapath.revision
        for kept in self._memory.of(self._datapath.ring_id):
            try:
                compiled = compile_text(kept.text, kept.file, kept.host)
            except RefusedError as error:
                log.warning("revision %d as kept cannot be read: %s", kept.revision, error)
                continue
            self.names.remember(kept.revision, compiled, revision)
        if revision and self.running is None:
            log.warning("revision %d runs, its text is unknown; `ztlens policy apply` gives it a known one", revision)

    def _inherit(self, predecessor: Datapath) -> Wanted | None:
        """The policy that the datapath of an older layout ran; not one that nobody has confirmed."""
        waits = predecessor.unconfirmed
        revision = waits.from_revision if waits is not None else predecessor.revision
        kept = self._memory.find(predecessor.ring_id, revision)
        return Wanted(kept.file, kept.text, compile_text(kept.text, kept.file, self._host)) if kept else None

    # ── the policy ──────────────────────────────────────────────────────────────────────────────────────────────

    async def apply(self, text: str, file: str, who: str, caution: Caution = NO_CAUTION) -> dict[str, Any]:
        """Make `text` the running policy. Raises RefusedError; then nothing has changed."""
        async with self._lock:
            try:
                await self._settle()
                compiled = await asyncio.to_thread(compile_text, text, file, self._host)
                before, warnings = self._datapath.revision, await self._switch(compiled, text, file, who, caution)
            except RefusedError as error:
                self._refused(error, text, who)
                raise
            changed = self._datapath.revision != before
            return {"revision": self._datapath.revision, "hash": self.policy_hash, "changed": changed,
                    "warnings": warnings, "unconfirmed": self.unconfirmed()}  # fmt: skip

    def _written_down(self, compiled: "Compiled", text: str, file: str, who: str) -> Kept:
        """Remember the policy as the next revision, before the first verdict of it can be read."""
        assert compiled.policy is not None
        revision, in_force = self._datapath.next_revision, self._datapath.revision
        kept = Kept(self._datapath.ring_id, revision, file, compiled.policy.hash, text, who, list(compiled.host))
        try:
            self._memory.keep(kept, in_force)
        except OSError as error:
            raise RefusedError(f"cannot keep the policy: {error}", "make room in the run directory") from error
        self.names.remember(kept.revision, compiled, in_force)
        return kept

    async def _switch(
        self, compiled: "Compiled", text: str, file: str, who: str, caution: Caution = NO_CAUTION, *, anew: bool = False
    ) -> list[str]:
        """Warnings. Nothing happens if it is the running one already, unless `anew`."""
        assert compiled.policy is not None
        before, before_hash = self._datapath.revision, self.policy_hash
        if before_hash == compiled.policy.hash and not anew:
            return []
        waits = self._datapath.unconfirmed
        if waits is not None and waits.kind == "revision" and self._hash(waits.from_revision) == compiled.policy.hash:
            await self._fall_back(waits, who)
            return []
        self._refuse_while(waits)
        warnings = await self._lockout(compiled, self._datapath.mode, caution)
        kept = self._written_down(compiled, text, file, who)
        try:
            await self._call(self._datapath.apply, compiled, kept.revision, caution.confirm_within)
        except KernelError as error:
            raise RefusedError(f"{file}: {error}", error.hint) from error
        log.info("policy %s is revision %d (%s)%s", file, kept.revision, who, _until(caution))
        state = PENDING if caution.confirm_within else CONFIRMED
        self._tell("revision", who=who, from_revision=before, from_hash=before_hash, state=state)
        return warnings

    async def follow(self) -> None:
        """The node's addresses may be others: if that changes the compiled policy, it is a revision. Raises
        KernelError."""
        async with self._lock:
            await self._settle()
            self._host = await self._call(self._datapath.host.addresses)
            await self._follow()

    async def _follow(self) -> None:
        running, compiled = self.running, self.compiled
        if running is None or compiled is None or compiled.host == self._host or self._datapath.unconfirmed:
            return
        try:
            now = await asyncio.to_thread(compile_text, running.text, running.file, self._host)
            if _same(now, compiled):
                self.names.remember(running.revision, now)
            else:
                await self._switch(now, running.text, running.file, HOST_CHANGED, anew=True)
        except RefusedError as error:
            self._refused(error, running.text, HOST_CHANGED)

    # ── the mode ────────────────────────────────────────────────────────────────────────────────────────────────

    async def set_mode(self, mode: Mode, who: str, caution: Caution = NO_CAUTION) -> dict[str, Any]:
        """Switch the mode. Raises RefusedError, KernelError."""
        async with self._lock:
            await self._settle()
            before = self._datapath.mode
            warnings = await self._set_mode(mode, who, caution)
            return {"mode": word(mode), "from": word(before), "changed": mode != before,
                    "warnings": warnings, "unconfirmed": self.unconfirmed()}  # fmt: skip

    async def _set_mode(self, mode: Mode, who: str, caution: Caution = NO_CAUTION) -> list[str]:
        """Warnings. Nothing happens if it is the mode already."""
        before = self._datapath.mode
        if mode == before:
            return []
        waits = self._datapath.unconfirmed
        if waits is not None and waits.kind == "mode":
            await self._fall_back(waits, who)
            return []
        self._refuse_while(waits)
        warnings = await self._lockout(self.compiled, mode, caution)
        await self._call(self._datapath.set_mode, mode, caution.confirm_within)
        log.info("mode %s, was %s (%s)%s", word(mode), word(before), who, _until(caution))
        state = PENDING if caution.confirm_within else CONFIRMED
        self._tell("mode", who=who, from_mode=word(before), state=state)
        return warnings

    # ── confirmation ────────────────────────────────────────────────────────────────────────────────────────────

    def unconfirmed(self) -> dict[str, Any] | None:
        """The change that waits, for `status` and answers."""
        waits = self._datapath.unconfirmed
        if waits is None:
            return None
        return {
            "kind": waits.kind, "seconds_left": round(waits.seconds_left, 1), "revision": waits.revision,
            "mode": word(waits.mode), "from_revision": waits.from_revision, "from_mode": word(waits.from_mode),
        }  # fmt: skip

    async def confirm(self, kind: str, who: str) -> dict[str, Any]:
        """What waits stays: a change of `kind` (`revision` or `mode`). Raises RefusedError when there is none."""
        async with self._lock:
            await self._settle()
            waits = self._datapath.unconfirmed
            if waits is None:
                hint = "what is not confirmed in time falls back: see `ztlens status` and the view `changes`"
                raise RefusedError("nothing waits for a confirmation", hint)
            if waits.kind != kind:
                raise RefusedError(f"it is {_described(waits)} that waits", f"confirm it with `{_command(waits)}`")
            try:
                await self._call(self._datapath.confirm)
            except KernelError as error:
                raise RefusedError(str(error), "try the change again") from error
            log.info("%s confirmed (%s)", _described(waits), who)
            self._tell(kind, who=who, state=CONFIRMED, from_revision=waits.from_revision,
                       from_mode=word(waits.from_mode), from_hash=self._hash(waits.from_revision))  # fmt: skip
            await self._follow()
            return {"revision": waits.revision, "mode": word(waits.mode), "confirmed": kind}

    async def settle(self) -> None:
        """Notice that the datapath has fallen back, and make it last. Raises KernelError."""
        if self._datapath.unconfirmed is not None:
            async with self._lock:
                await self._settle()

    async def _settle(self) -> None:
        waits = self._datapath.unconfirmed
        if waits is not None and not waits.seconds_left:
            ago = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - waits.until
            await self._fall_back(waits, "nobody confirmed in time", time=time.time_ns() - ago)

    async def _fall_back(self, waits: Unconfirmed, who: str, **fields: Any) -> None:
        """Go back, for good, to what was before; then to where the node's addresses are by now."""
        await self._call(self._datapath.fall_back)
        log.warning("%s fell back (%s)", _described(waits), who)
        self._tell(waits.kind, who=who, state=FALLEN_BACK, from_revision=waits.revision,
                   from_mode=word(waits.mode), from_hash=self._hash(waits.revision), **fields)  # fmt: skip
        await self._follow()

    def _refuse_while(self, waits: Unconfirmed | None) -> None:
        if waits is not None:
            raise RefusedError(
                f"{_described(waits)} waits for its confirmation",
                f"keep it with `{_command(waits)}`, or wait {waits.seconds_left:.0f} s until it falls back",
            )

    async def _lockout(self, compiled: "Compiled | None", mode: Mode, caution: Caution) -> list[str]:
        if mode is not Mode.ENFORCE or compiled is None or compiled.policy is None:
            return []
        host = self._datapath.host
        own = lockout.own_session(caution.ssh, await self._call(host.addresses))
        others = lockout.needed(await self._call(host.connections), self._nats())
        warnings = lockout.check(compiled, own, others, caution)
        for line in warnings:
            log.warning("%s", line)
        return warnings

    async def warn(self) -> None:
        """An interface came under what is in force, which nobody was asked about: say in the log whom that cuts off."""
        await self._lockout(self.compiled, self._datapath.mode, NO_CAUTION)

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def closed(self, who: str, ring: Datapath) -> None:
        """`ring` (this node's, or an older one) ends where it stands; nothing follows."""
        self._tell(
            "closed", who=who, bare=True, end=ring.produced, ring=ring.ring_id, revision=ring.revision,
            from_revision=ring.revision, from_hash=self.policy_hash if ring is self._datapath else "",
        )  # fmt: skip

    def refuse(self, error: RefusedError, who: str) -> None:
        """Tell of a policy that could not even be read."""
        self._refused(error, "", who)

    def _refused(self, error: RefusedError, text: str, who: str) -> None:
        self.refusals += 1
        log.warning("refused: %s (%s)", error, who)
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() if text else ""  # JSON may have those
        self._tell("refused", who=who, error=str(error), from_hash=self.policy_hash, hash=digest, bare=True)

    def _tell(self, kind: str, *, who: str, bare: bool = False, **fields: Any) -> None:
        """Queue a record of what is in force now; `bare` leaves out the policy itself."""
        revision, mode = self._datapath.revision, word(self._datapath.mode)
        policy: dict[str, Any] = {}
        compiled = self.compiled
        if compiled is not None and not bare:
            addresses = list(compiled.host if compiled.policy is not None else self._host)
            host = IdentityInfo(IdentityId.HOST, IDENTITY_NAMES[IdentityId.HOST], {}, addresses)
            policy = {"identities": [*([host] if addresses else []), *compiled.identity_infos()]}
        if compiled is not None and compiled.policy is not None and not bare:
            policy |= {
                "default": word(compiled.policy.default), "hash": compiled.policy.hash, "yaml": compiled.policy.text,
                "rules": compiled.rule_infos(),
            }  # fmt: skip
        told: dict[str, Any] = {"ring": self._datapath.ring_id, "revision": revision, "time": time.time_ns()}
        if kind != "start":
            told |= {"from_revision": revision, "from_mode": mode, "from_hash": self.policy_hash}
        record = PolicyRecord(v=1, kind=kind, node=self._name, mode=mode, who=who, **(told | policy | fields))
        self._records.put(record)

    def show(self) -> dict[str, Any]:
        """The running policy for `ztlens policy show`."""
        compiled, running = self.compiled, self.running
        policy = compiled.policy if compiled is not None else None
        out: dict[str, Any] = {
            "revision": self._datapath.revision, "mode": word(self._datapath.mode), "hash": self.policy_hash,
            "known": compiled is not None, "file": "", "who": "", "text": "", "default": "", "rules": [],
            "identities": [], "host": list(self._host), "unconfirmed": self.unconfirmed(),
            "builtins": switched(policy.builtins_off if policy is not None else frozenset()),
        }  # fmt: skip
        if running is not None:
            out |= {"file": running.file, "who": running.who, "text": running.text}
        if compiled is not None and policy is not None:
            out["default"] = word(policy.default)
            out["host"] = list(compiled.host)
            out["rules"] = compiled.rule_infos()
            out["identities"] = compiled.identity_infos()
        return out


def _described(waits: Unconfirmed) -> str:
    return f"revision {waits.revision}" if waits.kind == "revision" else f"mode {word(waits.mode)}"


def _command(waits: Unconfirmed) -> str:
    return "ztlens policy confirm" if waits.kind == "revision" else "ztlens mode confirm"


def _until(caution: Caution) -> str:
    return f", falls back in {caution.confirm_within:g} s unless confirmed" if caution.confirm_within else ""


def _same(one: "Compiled", other: "Compiled") -> bool:
    """Whether they decide and show the same: rules and ports come from one text."""
    names = ("prefixes", "source_rules", "destination_rules")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
