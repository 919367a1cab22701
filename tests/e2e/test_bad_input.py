"""What people get wrong and what machines lack: one line of error, one of hint, the exit status; nothing left behind.

And what goes wrong later: what can go on goes on, and nothing is lost beyond what the ledger says.
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import pytest

from collector.errors import KernelError
from collector.kernel import loader_bcc, loader_core
from collector.kernel.sources import constants
from schemas import subjects
from sink.store.database import open_writer
from tests.support import programs
from tests.support.installation import Done, Installation, Process
from tests.support.kernel import udp_frame
from tests.support.nats import NatsServer
from tests.support.netns import Lab, ip, wait_for
from tests.support.until import PATIENCE

RELEASE = os.uname().release
POLICY = """version: 1
rules:
  - {name: names, from: any, to: any, ports: [53/udp], action: allow}
"""
BROKEN = POLICY.replace("action: allow", "action: maybe")
HINT = "docs/policy.md says what may stand there"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NO_HEADERS = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none /lib/modules/{RELEASE} && exec "$@"', "sh")
NO_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full to the last block."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        os.close(descriptor)


def refused(done: Done, status: int, error: str, hint: str) -> None:
    """Exactly two lines; both patterns are of the whole line."""
    assert done.told[0] == status, done
    assert re.fullmatch(error, done.told[1]), done
    assert re.fullmatch(hint, done.told[2]), done


def untouched(one: Installation, netns: str) -> None:
    """No trace of a start that failed."""
    assert one.leftovers() == [] and not one.run_dir.exists()
    assert programs.xdp_id(netns, "veth0") == 0
    assert "clsact" not in subprocess.check_output(["tc", "-n", netns, "qdisc"], text=True)


def send(wire: socket.socket, first: int, count: int, port: int = 53) -> None:
    """One datagram each of `count` flows."""
    for number in range(first, first + count):
        wire.send(udp_frame("10.0.0.1", number, "10.0.0.2", port, bytes(18)))


def stored(one: Installation) -> int:
    return int(one.sink_status()["counters"]["verdicts"]["stored"])


def closed(one: Installation, collector: Process, sink: Process) -> dict[str, int]:
    """`down` of lone services: all is stored, the books balance; the events of the ledger."""
    wait_for(lambda: one.status()["nats"]["connected"], "NATS")
    one.run("down")
    assert collector.popen.wait(PATIENCE) == 0, collector.said()
    wait_for(one.settled, "the end")
    assert sink.end() == 0, sink.said()
    ledger = one.ledger()
    assert ledger["balanced"] is True and ledger["rings"][0]["events"]["gaps"] == [], ledger
    assert "Traceback" not in collector.said() + sink.said()
    assert one.leftovers() == []
    return dict(ledger["rings"][0]["events"])


# ── refused at the start ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "status", "error", "hint"),
    [
        (["-i", "nosuch"], 2, "there is no interface nosuch", "those here: veth0"),
        (["-i", "veth0:sideways"], 2, "--interfaces: 'veth0:sideways' is not an interface", "write NAME, .*"),
        (["-i", "lo"], 2, "lo is loopback, which is not watched", "traffic of a host with itself never leaves it; .*"),
        (["--netns", "nosuch"], 2, "there is no network namespace nosuch", "those here: .*"),
        (["--nats", "nats://127.0.0.1:1"], 3, "no NATS server answers at nats://127.0.0.1:1: Connection refused",
         "start it, or leave --nats out"),
        (["--nats", "http://127.0.0.1:1"], 2, "'http://127.0.0.1:1' is not a NATS URL", "write nats://host:4222"),
        (["--policy", "/nowhere.yaml"], 2, "/nowhere.yaml: No such file or directory", "check the name"),
        (["--policy", "/proc"], 2, "/proc: Is a directory", "check the name"),
        (["--policy", "/bin/true"], 2, r"/bin/true:\d+:\d+: not UTF-8 text", "save it as UTF-8"),
        (["--policy", "broken"], 2, r".*/broken:3:\d+: `action`: expected allow or deny, found 'maybe'", HINT),
        (["--policy", "yaml"], 2, r".*/yaml:3:1: not valid YAML: .*", "check indentation, colons and brackets .*"),
    ],
)  # fmt: skip
def test_refused_at_the_start(  # noqa: PLR0917 (the row)
    one: Installation, wired: tuple[str, socket.socket], arguments: list[str], status: int, error: str, hint: str
) -> None:
    files = {"broken": BROKEN, "yaml": "version: 1\nrules: [{\n"}
    for i, argument in enumerate(arguments):
        if argument in files:
            arguments[i] = str(one.directory / argument)
            Path(arguments[i]).write_text(files[argument])
    refused(one.run("up", *arguments, status=None), status, error, hint)
    untouched(one, wired[0])


def test_a_port_in_use(one: Installation, wired: tuple[str, socket.socket]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            one.run("up", "--nats-port", str(port), status=None),
            3, f"port {port} on 127.0.0.1 is in use", "choose another --nats-port, or leave it out for any free one",
        )  # fmt: skip
    untouched(one, wired[0])


@pytest.mark.parametrize("command", ["up", "collector"])
def test_without_root(one: Installation, wired: tuple[str, socket.socket], command: str) -> None:
    for path in (one.directory, *one.directory.parents):  # pytest's own directories are private
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    done = one.run(command, "--nats", "nats://127.0.0.1:1", prefix=AS_NOBODY, status=None)
    refused(done, 3, f"ztlens {command} needs root: it loads programs into the kernel", "run it with sudo")
    untouched(one, wired[0])


@pytest.mark.parametrize("command", ["up", "collector"])
def test_without_the_privilege_to_enter_a_namespace(
    one: Installation, wired: tuple[str, socket.socket], command: str
) -> None:
    done = one.run(command, "--nats", "nats://127.0.0.1:1", prefix=NO_ADMIN, status=None)
    refused(done, 3, "entering the network namespace: Operation not permitted", r"run as root \(CAP_SYS_ADMIN\)")
    untouched(one, wired[0])


@pytest.mark.parametrize("command", ["collector", "sink"])
def test_a_lone_service_and_a_server_that_cannot_be_one(
    one: Installation, wired: tuple[str, socket.socket], command: str
) -> None:
    done = one.run(command, "--nats", "http://127.0.0.1:1", status=None)
    refused(done, 2, "'http://127.0.0.1:1' is not a NATS URL", "write nats://host:4222")
    untouched(one, wired[0])


def test_missing_headers(one: Installation, wired: tuple[str, socket.socket], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    done = one.run("up", "--loader", "bcc", prefix=NO_HEADERS, status=None, ZTLENS_BYTECODE_CACHE=str(cache))
    refused(done, 3, f"kernel headers for {RELEASE} are missing", r"scripts/setup\.sh installs them")
    untouched(one, wired[0])
    doctor = one.run("doctor", prefix=NO_HEADERS)
    assert f"none at /lib/modules/{RELEASE}/build; needed by --loader bcc alone" in doctor.stdout
    doctor = one.run("doctor", prefix=NO_HEADERS, status=3, ZTLENS_LOADER="bcc")
    assert doctor.stderr.startswith("error: this machine lacks: headers\n")


def test_no_bpffs_and_not_allowed_to_mount_it(lab: Lab, wired: tuple[str, socket.socket], tmp_path: Path) -> None:
    """`ip netns exec` shows a /sys of its own, without a bpffs."""
    with Installation(lab, tmp_path / "one") as one:
        done = one.run("up", prefix=("ip", "netns", "exec", wired[0], *NO_ADMIN), status=None)
        refused(
            done, 3, "mounting bpffs at /sys/fs/bpf: Operation not permitted",
            "let root do it once: mount -t bpf bpf /sys/fs/bpf",
        )  # fmt: skip
        untouched(one, wired[0])


def test_no_bpffs_is_mounted(lab: Lab, wired: tuple[str, socket.socket], tmp_path: Path) -> None:
    netns, wire = wired
    with Installation(lab, tmp_path / "one") as one:
        up = one.start("up", prefix=("ip", "netns", "exec", netns))
        up.until_said("Ctrl-C ends it")
        send(wire, 1000, 5)
        wait_for(lambda: stored(one) == 5, "verdicts")
        one.down(up)
        untouched(one, netns)


@pytest.mark.parametrize("loader", ["core", "bcc"])
def test_a_kernel_without_ring_buffers(loader: str) -> None:
    """It answers EINVAL to the map's creation, as every kernel does to a table of no entries."""
    loaders = {"core": loader_core.load, "bcc": loader_bcc.load}
    with pytest.raises(KernelError) as caught:
        loaders[loader](constants({}, judge=False) | {"FLOWS_MAX": 0})
    assert str(caught.value) == "the kernel does not know a map type or flag we need"
    assert caught.value.hint == "ring buffers need Linux 5.8 or later" and caught.value.exit_status == 3


@pytest.mark.parametrize(
    ("kind", "error", "hint"),
    [
        ("xdp", r"veth0 already has an XDP program \(id \d+, name stranger\)",
         "it is left alone; if nobody needs it: ip link set dev veth0 xdp off"),
        ("tc", r"veth0 already has a TC egress program \(id \d+, name stranger\)",
         "it is left alone; if nobody needs it: tc filter del dev veth0 egress prio 1 handle 0x7a746c bpf"),
    ],
)  # fmt: skip
def test_somebody_elses_program(
    one: Installation, wired: tuple[str, socket.socket], kind: str, error: str, hint: str
) -> None:
    netns, _ = wired
    if kind == "xdp":
        theirs = programs.attach_xdp(netns, "veth0")
    else:
        theirs = programs.attach_tc(netns, "veth0", handle=0x7A746C, priority=1)
    refused(one.run("up", status=None), 3, error, hint)
    assert one.leftovers() == [] and not one.run_dir.exists()
    found = programs.xdp_id(netns, "veth0") if kind == "xdp" else programs.tc_id(netns, "veth0", 0x7A746C, 1)
    assert found == theirs


@pytest.mark.parametrize("command", ["up", "sink"])
def test_a_database_from_a_newer_version(one: Installation, wired: tuple[str, socket.socket], command: str) -> None:
    one.state.mkdir()
    connection = open_writer(one.database, "256MB", 1)
    connection.execute("INSERT INTO store.schema_version VALUES (99, now())")
    connection.close()
    before = one.database.read_bytes()
    done = one.run(command, *(["--nats", "nats://127.0.0.1:1"] if command == "sink" else []), status=None)
    refused(
        done, 3, rf"{one.database} was written by a newer ztlens \(tables of version 99, this program knows \d+\)",
        "update ztlens, or name another file with --database; the file was not touched",
    )  # fmt: skip
    assert one.database.read_bytes() == before
    if command == "up":
        untouched(one, wired[0])


def test_a_full_disk_at_the_start(one: Installation, wired: tuple[str, socket.socket]) -> None:
    with small_disk(one.state, "20m"):
        fill(one.state / "filler")
        (one.state / "filler").open("r+b").truncate((one.state / "filler").stat().st_size - 65_536)
        refused(one.run("up", status=None), 3, f".*{one.database}.*No space left on device.*", ".*free space.*")
        untouched(one, wired[0])


# ── a second one ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_of_a_kind(one: Installation, tmp_path: Path) -> None:
    up = one.up()
    refused(
        one.run("up", status=None), 2, rf"instance {one.name} is already up \(process {up.pid}\)",
        "stop it with `ztlens down`, or start another with --instance NAME",
    )  # fmt: skip
    elsewhere = ("--nats", "nats://127.0.0.1:1", "--run-dir", str(tmp_path / "elsewhere"))
    refused(
        one.run("collector", *elsewhere, status=None), 3, rf"a collector \(process \d+\) already owns {one.pins}",
        "stop it with `ztlens down`, or use another instance",
    )  # fmt: skip
    refused(
        one.run("sink", *elsewhere, status=None), 3, f"{one.database} is in use by another process",
        "stop the other sink, or ask it over its socket",
    )  # fmt: skip
    assert one.json("status")["healthy"] is True
    one.down(up)
    assert one.leftovers() == []


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_broken_policy_never_replaces_a_running_one(one: Installation, wired: tuple[str, socket.socket]) -> None:
    path, wire = one.policy(POLICY), wired[1]
    with NatsServer(one.directory.parent / "nats") as server:
        sink = one.sink("--nats", server.url)
        collector = one.collector("--nats", server.url, "--policy", path)
        broken = one.directory / "broken.yaml"
        broken.write_text(BROKEN)
        fault = r":3:\d+: .*maybe.*"
        refused(one.run("policy", "apply", str(broken), status=None), 2, f"{broken}{fault}", HINT)
        refused(one.run("policy", "apply", "/nowhere", status=None), 2, "/nowhere: No such file or directory", ".*")

        def hang_up(said: str) -> None:
            os.kill(collector.pid, signal.SIGHUP)
            wait_for(lambda: re.search(said, collector.said()), f"{said!r} on SIGHUP")

        one.policy(BROKEN)
        hang_up(rf"refused: {path}{fault} \(policy file {path} changed\)")
        Path(path).unlink()
        hang_up(rf"refused: {path}: No such file or directory \(policy file {path} changed\)")
        assert one.status()["revision"] == 1 and one.json("policy", "show")["text"] == POLICY
        send(wire, 1000, 10)
        wait_for(lambda: stored(one) == 10, "verdicts")
        one.policy(POLICY.replace("names", "others"))
        hang_up(rf"policy {path} is revision 2 \(policy file {path} changed\)")
        closed(one, collector, sink)
        assert one.sql("SELECT DISTINCT decision, rule, revision FROM verdicts WHERE event = 'new'") == [
            {"decision": "allow", "rule": "names", "revision": 1}
        ]
        kinds = [row["kind"] for row in one.sql("SELECT kind FROM changes ORDER BY time")]
        assert kinds == ["start", "refused", "refused", "revision", "closed"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Not started yet."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.kill()


def test_nats_away_at_the_start_and_in_the_middle(
    one: Installation, wired: tuple[str, socket.socket], server: NatsServer
) -> None:
    """The ring holds 8,738 events; what has no room is late (`new`, `end`) or lost and counted (`sample`)."""
    wire = wired[1]
    arguments = ("--nats", server.url)
    collector, sink = one.collector(*arguments), one.sink(*arguments)
    send(wire, 1000, 300)
    wait_for(lambda: one.status()["events_waiting"] == 300, "events to wait in the ring")
    away = one.run("down", status=None)
    refused(away, 3, "NATS at .* is away: 300 events and the last state of every flow would be lost", "bring NATS.*")
    server.start()
    wait_for(lambda: stored(one) == 300 and one.status()["events_waiting"] == 0, "the events to be stored")
    server.kill()
    wait_for(lambda: not one.status()["nats"]["connected"], "NATS to be missed")
    for first in range(2000, 3500, 500):
        send(wire, first, 500)
    wait_for(lambda: one.status()["events_waiting"] == 1500, "the new ones in the ring")
    one_in = 1000
    assert one.json("status")["collector"]["nats"]["connected"] is False
    for _ in range(one_in):
        send(wire, 2000, 10)  # 10 flows, 1,000 packets each: a sample of each
    server.start()
    wait_for(lambda: stored(one) >= 1800, "the events to be stored")
    events = closed(one, collector, sink)
    assert events["stored"] == 300 + 1500 + 10 + 1800 - events["lost"]
    assert one.value("SELECT sum(packets) FROM flows") == 300 + 1500 + 10_000


def test_the_ring_overflows_while_nats_is_away(
    lab: Lab, wired: tuple[str, socket.socket], server: NatsServer, tmp_path: Path
) -> None:
    netns, wire = wired
    with Installation(lab, tmp_path / "one", netns=netns, nats=server.url, sample=1) as one:
        collector, sink = one.collector(), one.sink()
        for _ in range(24):
            send(wire, 1000, 500)  # 12,000 events: more than the ring holds, samples stop at its half
        status = wait_for(lambda: (s := one.status())["kernel"]["parsed"] == 12_000 and s, "all packets")
        assert 0.45 < status["ring_fill"] < 0.55 and status["kernel"]["samples_lost"] > 7000
        server.start()
        events = closed(one, collector, sink)
        assert events["lost"] == 12_500 - events["stored"] and events["stored"] > 4000
        assert one.value("SELECT count(*) FROM flows WHERE packets = 24 AND ended") == 500


def test_corrupt_messages_are_dead_letters(one: Installation, wired: tuple[str, socket.socket]) -> None:
    wire = wired[1]
    with NatsServer(one.directory.parent / "nats") as server:
        collector, sink = one.collector("--nats", server.url), one.sink("--nats", server.url)
        send(wire, 1000, 100)
        wait_for(lambda: stored(one) == 100, "verdicts")

        async def corrupt() -> None:
            client = await nats.connect(server.url)
            js = client.jetstream(timeout=PATIENCE)
            await js.publish(subjects.verdicts("n1"), b"no msgpack at all")
            await js.publish(subjects.loss("n1"), b"\xc1")
            await js.publish(subjects.policy("n1"), b"")
            await client.close()

        asyncio.run(corrupt())
        send(wire, 2000, 100)
        wait_for(lambda: stored(one) == 200, "what came behind the corrupt message")
        wait_for(lambda: one.sink_status()["counters"]["messages"]["dropped"] == {"dead": 3}, "3 counted")
        streams = one.sink_status()["streams"]
        assert (streams[subjects.VERDICTS_STREAM]["dead"], streams[subjects.RECORDS_STREAM]["dead"]) == (1, 2)
        closed(one, collector, sink)
        assert len(re.findall(r"message \d+ of stream \w+ is a dead letter: ", sink.said())) == 3

        async def dead() -> list[tuple[str, bytes, str]]:
            client = await nats.connect(server.url)
            js = client.jetstream(timeout=PATIENCE)
            letters = [await js.get_msg(subjects.DEAD_STREAM, number) for number in (1, 2, 3)]
            await client.close()
            return [(m.subject, m.data or b"", (m.headers or {})["ztlens-reason"]) for m in letters]

        letters = asyncio.run(dead())
        assert {data for _, data, _ in letters} == {b"", b"\xc1", b"no msgpack at all"}
        assert all(reason for _, _, reason in letters)


def test_the_disk_fills_up_and_has_room_again(lab: Lab, wired: tuple[str, socket.socket], tmp_path: Path) -> None:
    """NATS and the store share it. nats-server stores nothing after that until it is started anew: `up` does it."""
    netns, wire = wired
    with Installation(lab, tmp_path / "one", netns=netns) as one, small_disk(one.state, "64m"):
        up = one.up()
        send(wire, 1000, 200)
        wait_for(lambda: stored(one) == 200, "verdicts")
        fill(one.state / "filler")
        send(wire, 2000, 200)
        up.until_said("no space left on device")
        send(wire, 3000, 200)  # nats acknowledges before it writes: the first it could not write need not wait
        wait_for(lambda: one.status()["events_waiting"] >= 200, "the events to wait in the ring")
        # Questions are answered all the time. The rest of a file's last block may have had room for an event more.
        assert one.value("SELECT count(*) FROM verdicts WHERE sport < 2000") == 200
        (one.state / "filler").unlink()
        up.until_said("nats is back (restart 1)")
        wait_for(lambda: stored(one) >= 600, "the events to be stored")  # more: flows that have ended
        ledger = one.down(up)
        assert "Traceback" not in up.said()
        events = ledger["rings"][0]["events"]
        assert (events["stored"], events["lost"], events["gaps"]) == (1200, 0, [])
        assert one.value("SELECT sum(packets) FROM flows") == 600
        untouched(one, netns)


def test_a_stranger_at_tc_and_his_clsact_stay(one: Installation, wired: tuple[str, socket.socket]) -> None:
    netns, wire = wired
    theirs = programs.attach_tc(netns, "veth0", handle=7, priority=9)
    up = one.up()
    assert programs.tc_id(netns, "veth0", 7, 9) == theirs
    send(wire, 1000, 5)
    one.down(up)
    assert programs.tc_id(netns, "veth0", 7, 9) == theirs
    assert programs.xdp_id(netns, "veth0") == 0 and "xdp" not in ip("link", "show", "veth0", netns=netns)
