"""docs/subscribing.md does what it says: its programs run against a real nats-server and print what it shows."""

import asyncio
import http.server
import json
import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nats
import numpy as np
import pytest

from collector.live import Live
from schemas import messages, streams, subjects
from schemas.codes import Decision, EventKind, Outcome, Reason, RuleId
from schemas.verdict import STRIDE
from tests.support.batches import CLOCK, packed, policy_record, verdict
from tests.support.docs import DOCS, ROOT, Block, marked
from tests.support.nats import NatsServer, free_port
from tests.support.until import until

DOCUMENT = DOCS / "subscribing.md"
PROGRAMS = marked(DOCUMENT, "run")
PRINTS = marked(DOCUMENT, "prints")
POSTS = marked(DOCUMENT, "posts")
MODULES = ROOT / "tests/integration/javascript/node_modules"
SAME = {"live.mjs": "live.py"}
"""Programs whose output is shown once."""
T = 1_790_003_600_000_000_000 - CLOCK
"""2026-09-21T15:13:20 on the made-up node's clock."""


def v4(text: str) -> bytes:
    return bytes(12) + bytes(int(part) for part in text.split("."))


V6 = [bytes.fromhex("fd000001000000000000000000000010"), bytes.fromhex("fd000002000000000000000000000005")]


class Names:
    """What the numbers of the made-up policy are called."""

    def rule(self, revision: int, number: int) -> str | None:
        return {0: "default", 64: "no-shortcut"}.get(number)

    def identity(self, revision: int, number: int) -> str | None:
        return {0: "world", 16: "frontend", 17: "database", 18: "db.prod"}.get(number)


def live_rows() -> np.ndarray:
    """An allowed verdict, which nobody asked for, and the two denials of the document."""
    return np.concatenate([
        verdict(time=T, src=v4("10.0.1.10"), dst=v4("10.0.2.5")),
        verdict(time=T + 7, flow_id=(1 << 48) + 1, src=v4("10.0.1.10"), dst=v4("10.0.2.5"), dport=5432,
                decision=Decision.DENY, outcome=Outcome.DROPPED),
        verdict(time=T + 8, flow_id=2, src=V6[0], dst=V6[1], family=6, proto=17, dport=5353, src_identity=0,
                dst_identity=18, decision=Decision.DENY, reason=Reason.DEFAULT, rule=RuleId.DEFAULT,
                packets_original=2, packets_reply=1),
    ])  # fmt: skip


def batch_rows() -> np.ndarray:
    """The document's batch: a number beyond 2**53, IPv6, and a rule that has no name."""
    return np.concatenate([
        verdict(time=T + 7, flow_id=(1 << 48) + 1, src=v4("10.0.1.10"), dst=v4("10.0.2.5"), packets_original=7,
                packets_reply=5, bytes_original=(1 << 53) - 9, bytes_reply=10),
        verdict(time=T + 8, flow_id=2, src=V6[0], dst=V6[1], family=6, proto=17, dport=5353, packets_original=2,
                packets_reply=1, bytes_original=148, bytes_reply=74, decision=Decision.DENY, rule=65),
        verdict(time=T + 9, flow_id=3, src=v4("10.0.1.11"), dst=v4("10.0.2.5"), dport=22, decision=Decision.DENY,
                reason=Reason.DEFAULT, rule=RuleId.DEFAULT),
    ])  # fmt: skip


class Server(NatsServer):
    """With a password, as `ztlens up` starts it, and with monitoring, which tells who is subscribed."""

    def __init__(self, directory: Path) -> None:
        self.monitor = free_port()
        super().__init__(
            directory, f'http: "127.0.0.1:{self.monitor}"\nauthorization {{ user: ztlens, password: "s3-cret" }}'
        )

    @property
    def url(self) -> str:
        return f"nats://ztlens:s3-cret@127.0.0.1:{self.port}"

    def subscribed(self, subject: str) -> bool:
        """Whether some client listens on exactly this subject."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/connz?subs=1", timeout=5) as answer:
            connections = json.load(answer)["connections"]
        return any(subject in (connection.get("subscriptions_list") or []) for connection in connections)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with Server(tmp_path / "nats") as running:
        yield running


@asynccontextmanager
async def program(block: Block, directory: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of the document as a file of its own, running; killed at the end."""
    file = directory / block.value
    file.write_text(block.text, encoding="utf-8")
    if block.language == "javascript":
        assert MODULES.is_dir(), "npm packages are missing: run scripts/setup.sh --test"
        node = shutil.which("node")
        assert node, "node is missing: run scripts/setup.sh --test"
        (directory / "node_modules").symlink_to(MODULES)
        command = [node, str(file)]
    else:
        command = [sys.executable, "-I", str(file)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env=os.environ | {"NATS_URL": url}, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def lines(process: asyncio.subprocess.Process, count: int) -> str:
    """The next `count` lines that it prints."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return b"".join([await process.stdout.readline() for _ in range(count)]).decode()


def unbuffered(block: Block) -> Block:
    """Python keeps what it prints to a pipe for itself; a person's terminal gets each line."""
    if block.language != "python":
        return block
    text = "import functools\nprint = functools.partial(print, flush=True)\n" + block.text
    return Block(block.file, block.line, block.language, text, block.key, block.value)


def shown(name: str) -> str:
    return PRINTS[SAME.get(name, name)].text


@pytest.mark.parametrize("name", ["live.py", "live.mjs"])
async def test_live(name: str, server: Server, tmp_path: Path) -> None:
    client = await nats.connect(server.url)
    async with program(unbuffered(PROGRAMS[name]), tmp_path, server.url) as process:
        await until(lambda: server.subscribed("ztlens.live.v1.*.deny.>"), "the program's subscription")
        publisher = Live(SimpleNamespace(client=client), "gw1.example.org", 1000, Names())  # type: ignore[arg-type]
        await publisher.offer(live_rows(), clock=CLOCK, ring="r1")
        assert publisher.sent == 3
        assert await lines(process, shown(name).count("\n")) == shown(name)
    await client.close()


class Receiver:
    """A tiny HTTP server that refuses the first post and keeps the others."""

    def __init__(self) -> None:
        self.refused = 0
        self.posts: list[Any] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = 200 if receiver.refused else 503
                receiver.refused += not receiver.refused
                if status == 200:
                    receiver.posts.append(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self._thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


async def test_webhook(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused comes again, once; new flows only."""
    client = await nats.connect(server.url)
    with Receiver() as receiver:
        monkeypatch.setenv("WEBHOOK", receiver.url)
        async with program(PROGRAMS["webhook.py"], tmp_path, server.url):
            await until(lambda: server.subscribed("ztlens.live.v1.*.deny.>"), "the program's subscription")
            publisher = Live(SimpleNamespace(client=client), "gw1", 1000, Names())  # type: ignore[arg-type]
            await publisher.offer(live_rows(), clock=CLOCK, ring="r1")
            await until(lambda: receiver.posts, "the post")
            later = live_rows()[1:2]
            later["flow_id"] = 77
            end = later.copy()
            end["event"] = EventKind.END
            await publisher.offer(np.concatenate([end, later]), clock=CLOCK, ring="r1")
            await until(lambda: len(receiver.posts) == 2, "the next post")
    first, second = receiver.posts
    assert (receiver.refused, first["text"] + "\n") == (1, POSTS["webhook.py"].text)
    assert [(v["rule"], v["flow_id"]) for v in first["verdicts"]] == [("no-shortcut", (1 << 48) + 1), ("default", 2)]
    assert [(v["event"], v["flow_id"]) for v in second["verdicts"]] == [("new", 77)]
    await client.close()


async def _streams(client: Any) -> None:
    for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM):
        await streams.ensure(client, name, max_bytes=1 << 20)


async def _publish(client: Any) -> None:
    await client.jetstream().publish(subjects.verdicts("n1"), packed(batch_rows()))


async def test_batches_kept_by_jetstream(server: Server, tmp_path: Path) -> None:
    """The Python program starts after the fact, reads what is kept, and goes on with what comes."""
    client = await nats.connect(server.url)
    await _streams(client)
    await client.jetstream().publish(subjects.policy("n1"), messages.encode(policy_record()))
    await _publish(client)
    name = "batches.py"
    async with program(unbuffered(PROGRAMS[name]), tmp_path, server.url) as process:
        assert await lines(process, shown(name).count("\n")) == shown(name)
        await client.jetstream().publish(subjects.verdicts("n1"), packed(batch_rows()[:1], 3 * STRIDE))
        assert await lines(process, 2) == "".join(["n1 r1 360 480 rows 1\n", shown(name).splitlines(keepends=True)[1]])
    await client.close()


async def test_batches_in_javascript(server: Server, tmp_path: Path) -> None:
    client = await nats.connect(server.url)
    await _streams(client)
    name = "batches.mjs"
    async with program(PROGRAMS[name], tmp_path, server.url) as process:
        await until(lambda: server.subscribed("ztlens.verdicts.v1.*"), "the program's subscription")
        await _publish(client)
        assert await lines(process, shown(name).count("\n")) == shown(name)
    await client.close()


def test_every_program_is_run_here() -> None:
    assert set(PROGRAMS) == {"live.py", "live.mjs", "webhook.py", "batches.py", "batches.mjs"}
    assert set(PRINTS) | set(SAME) | set(POSTS) == set(PROGRAMS)
    assert STRIDE == 120  # the document's ranges


def test_tokens_of_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ("db.prod", "gw1.example.org"):
        assert f"`{subjects.token(name)}`" in text
