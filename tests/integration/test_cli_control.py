"""`policy`, `mode`, `status` and `down` by the command line, against a real collector (with a fake datapath)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

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
        assert await ztlens.json("mode") == {"mode": "enforce", "from": "enforce", "changed": False}
        assert kernel.mode == Mode.ENFORCE

        assert (await ztlens.json("policy", "apply", files / "other.yaml"))["revision"] == 2
        assert "in force already" in (await ztlens("policy", "apply", files / "other.yaml"))[1]
        shown = await ztlens.json("policy", "show")
        assert (shown["text"], shown["file"], shown["revision"]) == (OTHER, str(files / "other.yaml"), 2)
        out, _ = await ztlens("policy", "show")
        assert out.startswith("# revision 2, mode enforce, by ") and out.endswith(OTHER)

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
        assert (state["healthy"], state["sink"], state["up"]) == (False, None, None)
        collector = state["collector"]
        assert (collector["mode"], collector["revision"], collector["node"]) == ("enforce", 2, state["node"])
        assert err.count("\n") == 2
        out, _ = await ztlens("status", status=3)
        assert "mode enforce" in out and "revision 2" in out and "does not answer" in out

        assert (await ztlens("down"))[0] == ""
        await running.ended()
    assert (kernel.attached, kernel.pinned) == (False, False)
    (files / "pins").rmdir()  # the stand-in's
    assert "down already" in (await ztlens("down"))[1]
    await ztlens("mode", status=3)
