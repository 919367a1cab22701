"""What tests of the views Policy and SQL share: two revisions, some traffic, and hands to write and copy with."""

import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.async_api import Locator, Page

from schemas.codes import Decision, EventKind, Outcome, Reason, RuleId
from schemas.messages import PolicyRecord, RuleInfo
from tests.support import batches
from tests.support.pages import Stage, addresses, now, staged
from tests.support.until import until
from ztlens.parts import clean_environment, ztlens_command

HOSTILE = '<img src=x onerror="window.bitten=1">'
OLD = """version: 1
default: deny
identities:
  frontend: {labels: {app: frontend}, addresses: [10.0.1.10]}
  database: {labels: {app: db}, addresses: [10.0.2.0/24, "fd00:2::/64"]}
rules:
  - {name: web-to-db, from: frontend, to: database, ports: [5432/tcp], action: allow}
"""
NEW = (
    OLD
    + f"""\
  - {{name: '{HOSTILE}', from: frontend, to: database, ports: [53/udp], action: allow}}
  - {{name: zz-again, from: frontend, to: database, ports: [5432/tcp], action: allow}}
"""
)
DRAFT = OLD.replace("5432/tcp", "22/tcp").replace("web-to-db", HOSTILE)


def conversation(number: int, *, ago: float, denied: bool = False) -> np.ndarray:
    """Ended `ago` seconds before now; a denied one would be dropped."""
    same: dict[str, Any] = {
        "flow_id": number, "src": addresses("10.0.1.10"), "dst": addresses("10.0.2.5"), "sport": 40000 + number,
        "dport": 5432, "revision": 2,
    }  # fmt: skip
    if denied:
        same |= {"decision": Decision.DENY, "reason": Reason.DEFAULT, "rule": RuleId.DEFAULT, "dport": 22,
                 "outcome": Outcome.PASSED}  # fmt: skip
    end = {"event": EventKind.END, "packets_original": 4, "bytes_original": 400}
    told = [batches.verdict(time=now(ago + 1), **same), batches.verdict(time=now(ago), **same, **end)]
    return np.concatenate(told)


def revision(number: int, text: str, names: list[str], ago: float) -> PolicyRecord:
    """It came into force `ago` seconds before now, by somebody with a hostile name."""
    rules = [RuleInfo(id=64 + i, name=name, action="allow", text=f"name: {name}") for i, name in enumerate(names)]
    return batches.policy_record(
        "start" if number == 1 else "revision", revision=number, yaml=text, rules=rules, who=HOSTILE,
        hash=hashlib.sha256(text.encode()).hexdigest(), time=now(ago) + batches.CLOCK,
    )  # fmt: skip


@asynccontextmanager
async def recorded(directory: Path) -> AsyncIterator[Stage]:
    """A stage with two revisions, five allowed conversations, and three that would be dropped."""
    async with staged(directory) as stage:
        await _record(stage)
        yield stage


async def _record(stage: Stage) -> None:
    await stage.record(revision(1, OLD, ["web-to-db"], 600))
    await stage.record(revision(2, NEW, ["web-to-db", HOSTILE, "zz-again"], 500))
    await stage.publish(
        *(conversation(i, ago=300 - 10 * i) for i in range(1, 6)),
        *(conversation(i, ago=120 - i, denied=True) for i in range(6, 9)),
    )


def shell(line: str, does: str) -> str:
    """What a shell prints for a line in which `ztlens` is a function that `does` something, and sudo does nothing."""
    functions = f'sudo() {{ "$@"; }}; ztlens() {{ {does}; }}'
    done = subprocess.run(["bash", "-c", f"{functions}\n{line}"], capture_output=True, text=True, check=True)
    return done.stdout


def command(stage: Stage, *words: str, given: str = "") -> str:
    """What `ztlens` prints about the same history."""
    where = ("--run-dir", str(stage.sink.settings.run_dir), "--config", os.devnull)
    done = subprocess.run(
        [*ztlens_command(*words), *where], input=given, env=clean_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


async def write(page: Page, label: str, given: str) -> None:
    """Paste over whatever is in an editor."""
    editor = page.get_by_role("textbox", name=label)
    await editor.click()
    await page.keyboard.press("Control+a")
    await editor.evaluate(
        """(editor, text) => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", text);
            editor.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        given,
    )


async def copied(page: Page, button: str, within: Locator | None = None) -> str:
    """What a button copies; it says so, for a moment."""
    pressed = (page if within is None else within).get_by_role("button", name=button, exact=True)
    await pressed.evaluate("""button => {
        window.said = [];
        new MutationObserver(() => window.said.push(button.innerText))
            .observe(button, { childList: true, characterData: true, subtree: true });
    }""")
    await pressed.click()
    await until(lambda: page.evaluate("window.said.includes('Copied')"), "the button to say it")
    await pressed.wait_for()  # it can be pressed again
    return str(await page.evaluate("navigator.clipboard.readText()"))


async def nothing_bit(page: Page) -> None:
    """No text became markup."""
    assert await page.evaluate("window.bitten") is None
    assert await page.locator("img").count() == 0


async def saved(page: Page, button: str, directory: Path) -> str:
    """What a button saves."""
    async with page.expect_download() as saving:
        await page.get_by_role("button", name=button, exact=True).click()
    await (await saving.value).save_as(directory / "saved")
    return (directory / "saved").read_text(encoding="utf-8")
