"""A hostile policy file on its way through the node: what is refused changes nothing, what is taken changes all."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from collector.kernel.interface import Datapath
from collector.memory import Memory
from collector.node import Node
from collector.policyfile import PolicyFile
from collector.records import Records
from schemas import messages, subjects
from schemas.messages import PolicyRecord
from tests.support.fake_bus import FakeBus
from tests.support.hostile_policies import REFUSED, TAKEN, Hostile

START = "version: 1\nrules: [{name: first, from: 10.0.0.0/8, ports: [80/tcp], action: allow}]\n"


class Followed:
    """A node that follows a policy file. `tables()`: everything of policy that the datapath has, to be compared."""

    def __init__(self, datapath: Datapath, directory: Path, tables: Callable[[], Any]) -> None:
        self.datapath, self.bus, self._tables = datapath, FakeBus(), tables
        self._records = Records(self.bus, "n1")  # type: ignore[arg-type]
        self._memory = Memory(directory)
        self.node = Node(datapath, self._call, self._records, self._memory, "n1", lambda: None)
        self.path = directory / "policy.yaml"
        self.file = PolicyFile(self.path, self._apply, lambda error: self.node.refuse(error, "file"), lambda: False)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def _apply(self, text: str) -> None:
        await self.node.apply(text, str(self.path), "file")

    async def begin(self) -> None:
        """In force from here on: START."""
        self.node.prepare(None, None, None)
        await self.node.begin(None, None)
        self.path.write_text(START)
        await self.file.reload()
        assert self.file.error == ""

    def state(self) -> dict[str, Any]:
        """Whatever a change of policy changes."""
        kept = self._memory.find(self.datapath.ring_id, self.datapath.revision)
        return {
            "revision": self.datapath.revision, "mode": self.datapath.mode, "unconfirmed": self.datapath.unconfirmed,
            "shown": self.node.show(), "kept": kept, "tables": self._tables(),
        }  # fmt: skip

    async def told(self) -> list[PolicyRecord]:
        """The records since the last call."""
        publishing = asyncio.create_task(self._records.run())
        assert await self._records.flush(60)
        publishing.cancel()
        sent, self.bus.delivered = self.bus.delivered, []
        return [messages.decode(raw, PolicyRecord) for subject, raw, _ in sent if subject == subjects.policy("n1")]


async def follow(one: Followed, files: Iterable[Hostile]) -> dict[str, int]:
    """How many files were refused and taken; every promise about them is asserted."""
    counts = {"refused": 0, "taken": 0}
    await one.begin()
    for file in files:
        before = one.state()
        await one.told()
        one.path.write_bytes(file.raw)
        await one.file.reload()
        (record,) = await one.told() or [None]
        if one.file.error:
            counts["refused"] += 1
            assert file.fate != TAKEN, (file.family, one.file.error)
            assert one.state() == before, file.family
            assert record is not None and (record.kind, record.error) == ("refused", one.file.error)
            assert record.error.startswith(str(one.path))
        elif file.raw.decode() != before["shown"]["text"]:
            counts["taken"] += 1
            assert file.fate != REFUSED, file.family
            assert record is not None and (record.kind, record.revision) == ("revision", one.datapath.revision)
            assert one.datapath.revision > before["revision"]
            assert one.node.show()["text"] == file.raw.decode()
    return counts
