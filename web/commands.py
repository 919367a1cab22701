"""Commands to copy: whatever changes a node is one of them, and each says on which node it is to be run."""

from typing import Any

from web.elements import Copy, box, text
from web.page import Page
from web.settings import WebSettings
from web.show import stamp

WITHIN = ("--confirm-within", "60s")
"""A change that nobody confirms falls back."""


def copy(label: str, command: str, node: str) -> None:
    """A button, and where what it copies belongs: the page may be seen from another host, and show several nodes."""
    with box("div", "actions"):
        Copy(label, command)
        text(run_on(node), "span", "note")


def run_on(node: str) -> str:
    """Which node's shell is meant."""
    return f"to be run on {node}"


def holding(settings: WebSettings, content: str, *words: str) -> str:
    """A command with a policy in it, as a shell takes it."""
    end = "POLICY"
    while end in content.splitlines():
        end += "_"
    return f"{settings.command(*words)} <<'{end}'\n{content.rstrip(chr(10))}\n{end}"


def applying(settings: WebSettings, content: str) -> str:
    """The command that makes a policy the running one."""
    return holding(settings, content, "policy", "apply", "-", *WITHIN)


def pending(page: Page, node: str, waits: dict[str, Any]) -> None:
    """A notice of a change (http.Pending) that nobody has confirmed yet."""
    kind = "policy" if waits["kind"] == "revision" else "mode"
    command = page.settings.command(kind, "confirm")
    with box("div", "notice"):
        text(
            f"The {kind} of {node}, by {waits['who']} at {stamp(waits['time'])}, falls back to what was before"
            f" unless it is confirmed there: {command}"
        )
        Copy("Copy the command", command)
