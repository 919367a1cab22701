"""What runs on the node that is looked at."""

from typing import Any

from web.page import Page


async def running(page: Page) -> tuple[list[str], dict[str, Any] | None]:
    """All nodes by name, and http.NodePolicy of the one that the address names, else of the first; None: of no node."""
    found = (await page.ask("policy", page.span.query))["nodes"]
    wanted = page.get("node")
    one = next((one for one in found if one["running"]["node"] == wanted), found[0] if found else None)
    return [one["running"]["node"] for one in found], one
