"""`policy`, `mode`, `status` and `down` by the command line, against a real collector (with a fake datapath)."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from collector.kernel.interface import Connection
from schemas.codes import Mode
from tests.support.collectors import BROKEN, OTHER, POLICY, Opener, collecting, settings_for
from tests.support.fake_datapath import FakeKernel, make_rows
from tests.support.nats import NatsServer
from ztlens.main import main


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("policy", POLICY), ("other", OTHER), ("broken", BROKEN)):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "ztlens.toml").write_text(
        f'run_dir = "{tmp_path / "run"}"\nstate = "{tmp_path / "state"}"\npins = "{tmp_path / "pins"}"\n'
    )
    monkeypatch.setenv("ZTLENS_CONFIG", str(tmp_path / "ztlens.toml"))
    return tmp_path


class Shell:
    """Runs command lines in a thread: the collector has the loop."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    async def __call__(self, *arguments: str | Path, status: int = 0) -> tuple[str, str]:
        self._capfd.readouterr()
        assert await asyncio.to_thread(main, list(map(str, arguments))) == status
        return self._capfd.readouterr()

    async def json(self, *arguments: str | Path) -> Any:
        return json.loads((await self(*arguments, "-o", "json"))[0])


async def test_a_life(nats_server: NatsServer, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kernel, ztlens = FakeKernel(4096), Shell(capfd)
    settings = settings_for(files, nats_server.url, policy_file=files / "policy.yaml", mode=Mode.MONITOR)
    async with collecting(settings, Opener(kernel)) as running:
        await running.connected()
        assert (await ztlens("mode"))[0] == "monitor\n"
        assert (await ztlens("mode", "enforce"))[0] == "enforce\n"
        assert await ztlens.json("mode") == {
            "mode": "enforce", "from": "enforce", "changed": False, "warnings": [], "unconfirmed": None,
        }  # fmt: skip
        assert kernel.mode == Mode.ENFORCE

        assert (await ztlens.json("policy", "apply", files / "other.yaml"))["revision"] == 2
        assert "in force already" in (await ztlens("policy", "apply", files / "other.yaml"))[1]
        shown = await ztlens.json("policy", "show")
        assert (shown["text"], shown["file"], shown["revision"]) == (OTHER, str(files / "other.yaml"), 2)
        out, _ = await ztlens("policy", "show")
        assert out.startswith("# revision 2, mode enforce, by ") and out.endswith(OTHER)
        assert "\n# built-in rules: ndp, mld, dhcp, dhcpv6 on\n" in out

        # `running` is what runs, for questions.
        same = await ztlens.json("policy", "diff", "running", files / "other.yaml")
        assert (same["a"], same["same"]) == ("running", True)
        out, _ = await ztlens("policy", "diff", "running", files / "policy.yaml", status=1)
        assert "5433/tcp" in out and "5432/tcp" in out
        question = ("--from", "web", "--to", "db", "--port", "5433/tcp", "--no-kernel")
        assert (await ztlens.json("policy", "explain", *question))["rule"] == "web-to-db"

        out, err = await ztlens("policy", "apply", files / "broken.yaml", status=2)
        assert out == "" and err.startswith(f"error: {files / 'broken.yaml'}:") and err.count("\n") == 2
        assert kernel.revision == 2

        kernel.push(make_rows(250, revision=2))
        await running.drained()
        # The sink is away: what is known is said, and that it is not all.
        out, err = await ztlens("status", "-o", "json", status=3)
        state = json.loads(out)
        assert (state["healthy"], state["sink"], state["up"], state["web"]) == (False, None, None, None)
        collector = state["collector"]
        assert (collector["mode"], collector["revision"], collector["node"]) == ("enforce", 2, state["node"])
        assert err.count("\n") == 2
        out, _ = await ztlens("status", status=3)
        assert "mode enforce" in out and "revision 2" in out and "does not answer" in out
        assert "\nweb          no page\n" in out

        assert (await ztlens("down"))[0] == ""
        await running.ended()
    assert (kernel.attached, kernel.pinned) == (False, False)
    (files / "pins").rmdir()  # the stand-in's
    assert "down already" in (await ztlens("down"))[1]
    await ztlens("mode", status=3)


async def test_a_change_is_tried_and_confirmed(
    nats_server: NatsServer, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel, ztlens = FakeKernel(4096), Shell(capfd)
    settings = settings_for(files, nats_server.url, policy_file=files / "policy.yaml")
    async with collecting(settings, Opener(kernel)):
        _, err = await ztlens("mode", "enforce", "--confirm-within", "60s")
        waits = (
            r"mode enforce is not confirmed: it falls back to mode monitor in \w+; keep it with `ztlens mode confirm`\n"
        )
        assert re.fullmatch(waits, err)
        _, err = await ztlens("policy", "apply", files / "other.yaml", status=2)
        assert err.startswith(
            "error: mode enforce waits for its confirmation\nhint: keep it with `ztlens mode confirm`, or wait "
        )
        _, err = await ztlens("policy", "confirm", status=2)
        assert err == "error: it is mode enforce that waits\nhint: confirm it with `ztlens mode confirm`\n"
        assert "it falls back to mode monitor in" in (await ztlens("status", status=3))[0]
        assert await ztlens.json("mode", "confirm") == {"revision": 1, "mode": "enforce", "confirmed": "mode"}
        assert (await ztlens("mode", "confirm", status=2))[1].startswith("error: nothing waits for a confirmation\n")

        begin = time.monotonic()
        answer = await ztlens.json("policy", "apply", files / "other.yaml", "--confirm-within", "5m")
        least = 300 - (time.monotonic() - begin)
        left = answer["unconfirmed"].pop("seconds_left")
        assert answer["unconfirmed"] == {
            "kind": "revision", "revision": 2, "mode": "enforce", "from_revision": 1, "from_mode": "enforce",
        }  # fmt: skip
        assert round(least - 0.1, 1) <= left <= 300  # it is told in tenths
        assert "# revision 2 is not confirmed: it falls back to revision 1 in " in (await ztlens("policy", "show"))[0]
        # What it would fall back to, asked for, is had at once.
        assert (await ztlens.json("policy", "apply", files / "policy.yaml"))["revision"] == 1
        assert kernel.revision == 1
        await ztlens("policy", "apply", files / "other.yaml", "--confirm-within", "5m")
        assert (await ztlens("policy", "confirm"))[1] == "confirmed: revision 4, mode enforce\n"
        for wrong in ("0", "-1s", "soon", "2d"):
            await ztlens("mode", "monitor", "--confirm-within", wrong, status=2)
        await ztlens("mode", "--confirm-within", "60s", status=2)
        await ztlens("mode", "confirm", "--force", status=2)


async def test_nobody_cuts_off_his_own_session(
    nats_server: NatsServer, files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "203.0.113.7 51234 10.0.2.5 22")
    kernel, ztlens = FakeKernel(4096), Shell(capfd)
    kernel.host.move("10.0.2.5")
    kernel.host.established = [Connection("10.0.2.5", 22, who, 51234) for who in ("203.0.113.7", "10.0.0.8")]
    line = "your SSH session from 203.0.113.7 would be cut (rule default)"
    other = "warning: the SSH session from 10.0.0.8 would be cut (rule default)\n"
    settings = settings_for(files, nats_server.url, policy_file=files / "policy.yaml")
    async with collecting(settings, Opener(kernel)):
        _, err = await ztlens("mode", "enforce", status=2)
        assert err.startswith(f"error: {line}\nhint: allow it; or try with --confirm-within 60s")
        assert kernel.mode == Mode.MONITOR
        assert (await ztlens("mode", "enforce", "--confirm-within", "60s"))[1].startswith(f"warning: {line}\n{other}")
        assert (await ztlens.json("mode", "monitor"))["unconfirmed"] is None
        assert (await ztlens("mode", "enforce", "--force"))[1] == f"warning: {line}\n{other}"

        await ztlens("policy", "apply", files / "other.yaml", status=2)
        (files / "ssh.yaml").write_text(POLICY + "  - {name: ssh, to: host, ports: [22/tcp], action: allow}\n")
        assert "warning" not in (await ztlens("policy", "apply", files / "ssh.yaml"))[1]
        await ztlens("policy", "apply", files / "other.yaml", "--yes")
        assert kernel.revision == 3
