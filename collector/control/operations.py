"""What the control socket may be asked: each operation takes the request's arguments and who asks."""

import asyncio
from typing import TYPE_CHECKING, Any

from collector.control.server import Handler
from collector.errors import RefusedError
from collector.lockout import Caution
from collector.status import status
from schemas.codes import Mode, word

if TYPE_CHECKING:
    from collector.service import Collector

CONFIRM_SECONDS = (1.0, 86400.0)  # least and most to wait for a confirmation


class _Operations:
    def __init__(self, collector: "Collector") -> None:
        self._collector = collector

    async def status(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        if args.get("fresh"):
            await self._collector.tick(fresh=True)
        return status(self._collector)

    async def show(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        return self._collector.node.show()

    async def apply(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        text, file = args.get("text"), args.get("file", "policy.yaml")
        if not isinstance(text, str) or not isinstance(file, str):
            raise RefusedError("policy.apply needs text and file", "both are strings")
        self._not_ending()
        return await self._collector.node.apply(text, file, who, _caution(args))

    async def confirm_policy(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        return await self._collector.node.confirm("revision", who)

    async def mode(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        wanted, node = args.get("mode"), self._collector.node
        if wanted is None:
            now = word(self._collector.datapath.mode)
            return {"mode": now, "from": now, "changed": False, "warnings": [], "unconfirmed": node.unconfirmed()}
        try:
            mode = Mode[str(wanted).upper()]
        except KeyError:
            raise RefusedError(f"unknown mode {wanted!r}", "monitor or enforce") from None
        self._not_ending()
        return await node.set_mode(mode, who, _caution(args))

    async def confirm_mode(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        return await self._collector.node.confirm("mode", who)

    async def down(self, args: dict[str, Any], who: str) -> dict[str, Any]:
        result = await self._collector.down(force=args.get("force") is True, who=who)
        asyncio.get_running_loop().call_later(0.1, self._collector.stop)  # the answer goes first
        return result

    def _not_ending(self) -> None:
        if self._collector.ending:
            raise RefusedError("the collector is ending", "")


def handlers(collector: "Collector") -> dict[str, Handler]:
    """Operation → what answers it."""
    o = _Operations(collector)
    return {
        "status": o.status, "policy.show": o.show, "policy.apply": o.apply, "policy.confirm": o.confirm_policy,
        "mode": o.mode, "mode.confirm": o.confirm_mode, "down": o.down,
    }  # fmt: skip


def _caution(args: dict[str, Any]) -> Caution:
    """From a request. Raises RefusedError."""
    within, ssh = args.get("confirm_within") or 0, args.get("ssh") or ""
    least, most = CONFIRM_SECONDS
    if not isinstance(within, int | float) or (within and not least <= within <= most):
        raise RefusedError("the time to confirm is out of range", f"{least:g} s to {most / 3600:g} h")
    return Caution(within, args.get("force") is True, str(ssh))
