"""The control socket: who may talk, what garbage gets, and that nobody takes it down."""

import asyncio
import json
import os
import pwd
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from collector.control import server as server_module
from collector.control.client import request
from collector.control.server import ControlServer
from collector.errors import CollectorError, KernelError, RefusedError
from tests.support.until import until


async def echo(args: dict[str, Any], who: str) -> Any:
    return {"args": args, "who": who}


async def fail(args: dict[str, Any], who: str) -> Any:
    raise {"refused": RefusedError("no", "do this"), "kernel": KernelError("gone", "load it"), "bug": KeyError("x")}[
        args["how"]
    ]


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    server = ControlServer(tmp_path / "run" / "control.sock", {"echo": echo, "fail": fail})
    await server.start()
    yield tmp_path / "run" / "control.sock"
    await server.stop()
    assert not (tmp_path / "run" / "control.sock").exists()


async def ask(path: Path, op: str, **args: Any) -> Any:
    return await asyncio.to_thread(request, path.parent, op, **args)


async def raw(path: Path, data: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
    writer.close()
    return answer


async def test_an_answer_and_who_asked(path: Path) -> None:
    result = await ask(path, "echo", text="žluť", n=1)
    name = pwd.getpwuid(os.getuid()).pw_name
    assert result == {"args": {"text": "žluť", "n": 1}, "who": f"{name}({os.getuid()}) via control socket"}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116


@pytest.mark.parametrize(
    ("how", "kind", "hint"), [("refused", RefusedError, "do this"), ("kernel", CollectorError, "load it")]
)
async def test_errors_keep_their_hint_and_status(path: Path, how: str, kind: type, hint: str) -> None:
    with pytest.raises(kind) as caught:
        await ask(path, "fail", how=how)
    assert caught.value.hint == hint
    assert caught.value.exit_status == kind.exit_status


async def test_a_fault_of_ours_is_an_answer(path: Path) -> None:
    with pytest.raises(CollectorError, match="KeyError"):
        await ask(path, "fail", how="bug")
    assert (await ask(path, "echo"))["args"] == {}


@pytest.mark.parametrize(
    "line",
    [b"\n", b"hello\n", b"[]\n", b'{"op": 3}\n', b'{"op": "echo", "args": 1}\n', b"\xff\xfe\n", b'{"op": "rm -rf"}\n'],
)
async def test_garbage_is_refused_and_the_connection_goes_on(path: Path, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line + b'{"op": "echo"}\n')
    refused = json.loads(await reader.readline())
    assert (refused["ok"], refused["exit"]) == (False, 2)
    assert refused["error"] and refused["hint"]
    assert json.loads(await reader.readline())["ok"] is True
    writer.close()


async def test_a_line_without_end_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server_module, "LINE_MAX", 1000)
    server = ControlServer(tmp_path / "small.sock", {"echo": echo})
    await server.start()
    answer = await raw(tmp_path / "small.sock", b"x" * 5000 + b"\n")
    assert "exceeds 1000 bytes" in answer["error"]
    await server.stop()


async def test_a_policy_of_megabytes_passes(path: Path) -> None:
    text = "10.0.0.1, " * 300_000
    assert (await ask(path, "echo", text=text))["args"] == {"text": text}


async def test_clients_that_vanish_or_stay_silent_harm_nobody(path: Path) -> None:
    for _ in range(20):
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(str(path))
        gone.sendall(b'{"op": "echo"')
        gone.close()
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(server_module.CLIENTS_MAX - 1)]
    await until(lambda: _answers(path), "the silent ones leave one place")
    extra = await asyncio.open_unix_connection(str(path))
    extra[1].write(b'{"op": "echo"}\n')
    await extra[0].readline()
    refused = await raw(path, b'{"op": "echo"}\n')
    assert "clients are connected" in refused["error"]
    for _, writer in [*silent, extra]:
        writer.close()
    await until(lambda: _answers(path), "places are free again")


async def _answers(path: Path) -> bool:
    return bool((await raw(path, b'{"op": "echo"}\n'))["ok"])


async def test_a_dead_collectors_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = ControlServer(path, {"echo": echo})
    await server.start()
    second = ControlServer(path, {})
    with pytest.raises(CollectorError, match=r"listens at .* already"):
        await second.start()
    await second.stop()
    assert (await ask(path, "echo"))["args"] == {}
    await server.stop()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="no collector listens") as caught:
        request(tmp_path, "status")
    assert caught.value.exit_status == 3
    assert "ztlens up" in caught.value.hint


async def test_a_run_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CollectorError, match="control socket") as caught:
        await ControlServer(tmp_path / "file" / "control.sock", {}).start()
    assert caught.value.hint
