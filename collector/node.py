"""What decides on this node: policy and mode, changed one at a time, each change a record.

A change is written down (memory), made (kernel), and told (records), in this order, under one lock. What is
refused changes nothing and is told, too.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.errors import KernelError, RefusedError
from collector.kernel.interface import Datapath
from collector.memory import Kept, Memory
from collector.names import RevisionNames
from collector.records import Records
from policy.compile import compile_policy
from policy.errors import PolicyError
from policy.parse import parse
from schemas.codes import Mode, word
from schemas.messages import PolicyRecord

if TYPE_CHECKING:
    from policy.compile import Compiled

log = logging.getLogger("ztlens.collector")

KernelCall = Callable[..., Awaitable[Any]]
"""`await call(function, *arguments)` runs it in the thread that owns the datapath."""


def compile_text(text: str, file: str) -> "Compiled":
    """Parse and compile. Raises RefusedError with the place of the fault."""
    try:
        return compile_policy(parse(text, file))
    except PolicyError as error:
        raise RefusedError(str(error), error.hint) from error


def read_policy(path: Path) -> str:
    """The file's text. Raises RefusedError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}", "name a readable policy file, or none") from error


@dataclass(frozen=True)
class Wanted:
    """The policy file as found at the start: `compiled`, or why there is none."""

    file: str
    text: str = ""
    compiled: "Compiled | None" = None
    problem: RefusedError | None = None

    @classmethod
    def read(cls, path: Path) -> "Wanted":
        """Read and compile; never raises for what is in the file."""
        text = ""
        try:
            text = read_policy(path)
            return cls(str(path), text, compile_text(text, str(path)))
        except RefusedError as error:
            return cls(str(path), text, None, error)


class Node:
    """Policy and mode of one datapath."""

    def __init__(self, datapath: Datapath, call: KernelCall, records: Records, memory: Memory, name: str) -> None:
        self.names = RevisionNames()
        self.running: Kept | None = None  # None: no policy, or one whose text is unknown
        self._compiled: Compiled | None = None  # of the revision in force; None: unknown
        self._datapath, self._call, self._records, self._memory, self._name = datapath, call, records, memory, name
        self._lock = asyncio.Lock()
        self._problem: RefusedError | None = None  # of the policy file at a start that went on without it

    @property
    def policy_hash(self) -> str:
        """SHA-256 of the running policy's text; "" when there is none."""
        return self.running.hash if self.running is not None else ""

    def prepare(self, wanted: Wanted | None, mode: Mode | None, predecessor: Datapath | None) -> None:
        """Give a new datapath its policy, then its mode, before it is attached. Called in the kernel thread.

        A predecessor's policy goes on when no file is named or the file is broken. Raises RefusedError (a broken
        file and nothing to go on with), KernelError.
        """
        self.names.remember(0, compile_policy(None))
        self._compiled = compile_policy(None)
        self._problem = wanted.problem if wanted is not None else None
        if wanted is None or wanted.compiled is None:
            inherited = self._inherit(predecessor) if predecessor is not None else None
            if inherited is None and wanted is not None and wanted.problem is not None:
                raise wanted.problem
            wanted = inherited
        if wanted is not None and wanted.compiled is not None:
            kept = self._written_down(wanted.compiled, wanted.text, wanted.file, "policy file at start")
            self._datapath.apply(wanted.compiled, kept.revision)
            self.running, self._compiled = kept, wanted.compiled
        if mode is not None and mode != self._datapath.mode:
            self._datapath.set_mode(mode)

    async def begin(self, wanted: Wanted | None, mode: Mode | None) -> None:
        """Publish `start`. What was adopted goes on; a file it has not had yet becomes a new revision, a broken one
        a `refused` record. Raises RefusedError, KernelError.
        """
        async with self._lock:
            if not self._datapath.adopted:
                self._tell("start", who="collector start")
                if self._problem is not None and wanted is not None:
                    self._refused(self._problem, wanted.text, f"policy file {wanted.file} at start")
                return
            self.names.remember(0, compile_policy(None))
            self._recall()
            self._tell("start", who="collector start, datapath adopted")
            if wanted is not None and wanted.problem is not None:
                self._refused(wanted.problem, wanted.text, f"policy file {wanted.file} at start")
            elif wanted is not None and wanted.compiled is not None and not self._had(wanted):
                await self._switch(wanted.compiled, wanted.text, wanted.file, "policy file at start")
            if mode is not None:
                await self._set_mode(mode, "collector start")

    def _had(self, wanted: Wanted) -> bool:
        """The file as it is was applied before, and since then somebody applied another policy: that one stays."""
        assert wanted.compiled is not None and wanted.compiled.policy is not None
        digest = wanted.compiled.policy.hash
        if not any((k.file, k.hash) == (wanted.file, digest) for k in self._memory.of(self._datapath.ring_id)):
            return False
        if self.running is None:
            return False
        if self.running.hash != digest:
            log.warning("revision %d, applied after %s, stays", self.running.revision, wanted.file)
        return True

    def _recall(self) -> None:
        """Names of the revisions an earlier collector applied, and which of them runs."""
        revision = self._datapath.revision
        for kept in self._memory.of(self._datapath.ring_id):
            try:
                compiled = compile_text(kept.text, kept.file)
            except RefusedError as error:
                log.warning("revision %d as kept cannot be read: %s", kept.revision, error)
                continue
            self.names.remember(kept.revision, compiled)
            if kept.revision == revision:
                self.running, self._compiled = kept, compiled
        if revision == 0:
            self._compiled = compile_policy(None)
        elif self.running is None:
            log.warning("revision %d runs, its text is unknown; `ztlens policy apply` gives it a known one", revision)

    def _inherit(self, predecessor: Datapath) -> Wanted | None:
        """The policy that the datapath of an older layout ran."""
        for kept in self._memory.of(predecessor.ring_id):
            if kept.revision == predecessor.revision:
                return Wanted(kept.file, kept.text, compile_text(kept.text, kept.file))
        return None

    async def apply(self, text: str, file: str, who: str) -> dict[str, Any]:
        """Make `text` the running policy. Raises RefusedError; then nothing has changed."""
        async with self._lock:
            try:
                compiled = await asyncio.to_thread(compile_text, text, file)
                changed = await self._switch(compiled, text, file, who)
            except RefusedError as error:
                self._refused(error, text, who)
                raise
            return {"revision": self._datapath.revision, "hash": self.policy_hash, "changed": changed}

    def _written_down(self, compiled: "Compiled", text: str, file: str, who: str) -> Kept:
        """Remember the policy as the next revision, before the first verdict of it can be read."""
        assert compiled.policy is not None
        kept = Kept(self._datapath.ring_id, self._datapath.revision + 1, file, compiled.policy.hash, text, who)
        try:
            self._memory.keep(kept)
        except OSError as error:
            raise RefusedError(f"cannot keep the policy: {error}", "make room in the run directory") from error
        self.names.remember(kept.revision, compiled)
        return kept

    async def _switch(self, compiled: "Compiled", text: str, file: str, who: str) -> bool:
        """False: it is the running one already."""
        assert compiled.policy is not None
        if self.running is not None and self.running.hash == compiled.policy.hash:
            return False
        before, before_hash = self._datapath.revision, self.policy_hash
        kept = self._written_down(compiled, text, file, who)
        try:
            await self._call(self._datapath.apply, compiled, kept.revision)
        except KernelError as error:
            raise RefusedError(f"{file}: {error}", error.hint) from error
        self.running, self._compiled = kept, compiled
        log.info("policy %s is revision %d (%s)", file, kept.revision, who)
        self._tell("revision", who=who, from_revision=before, from_hash=before_hash)
        return True

    async def set_mode(self, mode: Mode, who: str) -> dict[str, Any]:
        """Switch the mode. Raises KernelError."""
        async with self._lock:
            before = self._datapath.mode
            await self._set_mode(mode, who)
            return {"mode": word(mode), "from": word(before), "changed": mode != before}

    async def _set_mode(self, mode: Mode, who: str) -> None:
        before = self._datapath.mode
        if mode == before:
            return
        await self._call(self._datapath.set_mode, mode)
        log.info("mode %s, was %s (%s)", word(mode), word(before), who)
        self._tell("mode", who=who, from_mode=word(before))

    def closed(self, who: str, ring: Datapath) -> None:
        """`ring` (this node's, or an older one) ends where it stands; nothing follows."""
        self._tell(
            "closed", who=who, bare=True, end=ring.produced, ring=ring.ring_id, revision=ring.revision,
            from_revision=ring.revision, from_hash=self.policy_hash if ring is self._datapath else "",
        )  # fmt: skip

    def _refused(self, error: RefusedError, text: str, who: str) -> None:
        log.warning("refused: %s (%s)", error, who)
        digest = hashlib.sha256(text.encode()).hexdigest() if text else ""
        self._tell("refused", who=who, error=str(error), from_hash=self.policy_hash, hash=digest, bare=True)

    def _tell(self, kind: str, *, who: str, bare: bool = False, **fields: Any) -> None:
        """Queue a record of what is in force now; `bare` leaves out the policy itself."""
        revision, mode = self._datapath.revision, word(self._datapath.mode)
        policy: dict[str, Any] = {}
        compiled = self._compiled
        if compiled is not None and compiled.policy is not None and not bare:
            policy = {
                "default": word(compiled.policy.default), "hash": compiled.policy.hash, "yaml": compiled.policy.text,
                "rules": compiled.rule_infos(), "identities": compiled.identity_infos(),
            }  # fmt: skip
        told: dict[str, Any] = {"ring": self._datapath.ring_id, "revision": revision}
        if kind != "start":
            told |= {"from_revision": revision, "from_mode": mode, "from_hash": self.policy_hash}
        self._records.put(
            PolicyRecord(
                v=1, kind=kind, node=self._name, time=time.time_ns(), mode=mode, who=who,
                **(told | policy | fields),
            )
        )  # fmt: skip

    def show(self) -> dict[str, Any]:
        """The running policy for `ztlens policy show`."""
        compiled = self._compiled
        out: dict[str, Any] = {
            "revision": self._datapath.revision, "mode": word(self._datapath.mode), "hash": self.policy_hash,
            "known": compiled is not None, "file": "", "who": "", "text": "", "default": "", "rules": [],
            "identities": [],
        }  # fmt: skip
        if self.running is not None:
            out |= {"file": self.running.file, "who": self.running.who, "text": self.running.text}
        if compiled is not None and compiled.policy is not None:
            out["default"] = word(compiled.policy.default)
            out["rules"] = compiled.rule_infos()
            out["identities"] = compiled.identity_infos()
        return out
