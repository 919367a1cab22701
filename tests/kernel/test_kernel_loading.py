"""What goes wrong before a packet is judged is said in one line with a hint; and the ring's fine print."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from collector.errors import KernelError, VerifierError
from collector.kernel import features, libbpf, loader_bcc, maps, probes
from collector.kernel.layout import Layout, new_layout
from collector.kernel.loader import load
from collector.kernel.loader_bcc import explain
from collector.kernel.private import MAX_PACKET, private_datapath
from collector.kernel.ring import Ring
from collector.kernel.sources import PROGRAMS
from schemas.structs import FLOW, FLOW_KEY, dtype
from schemas.verdict import DTYPE, STRIDE
from tests.support.kernel import KNOBS, udp_frame

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("ModuleNotFoundError: No module named 'bcc'", "BCC is not installed", "scripts/setup.sh"),
        ("Unable to find kernel headers. Try rebuilding", "kernel headers for", "scripts/setup.sh"),
        ("chdir(/lib/modules/6.18.44/build): No such file or directory", "kernel headers for", "scripts/setup.sh"),
        ("could not open bpf map: events, error: Invalid argument", "map type", "Linux 5.8"),
        ("could not open bpf map: flows, error: Cannot allocate memory", "not enough memory", "FLOWS_MAX"),
        ("/x/bcc.c:3:1: error: unknown type name 'foo'\n1 error generated.", "unknown type name 'foo'", "doctor"),
        ("", "status 139", "doctor"),
    ],
)
def test_a_complaint_of_the_child_is_one_line_and_a_hint(output: str, message: str, hint: str) -> None:
    error = explain(output, 139)
    assert message in str(error)
    assert hint in error.hint
    assert "\n" not in str(error) + error.hint
    assert error.__notes__ == [output]


def test_clang_says_nothing_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bcc.c").write_text("int xdp_ingress(struct xdp_md *ctx) { return nonsense; }\n")
    monkeypatch.setattr(loader_bcc, "BPF_DIR", tmp_path)
    with pytest.raises(KernelError, match="undeclared identifier 'nonsense'"):
        load("bcc", {})
    assert capfd.readouterr() == ("", "")


def test_the_verifier_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads behind the packet: BCC compiles it, the kernel refuses it."""
    lines = "int {}(struct xdp_md *ctx) {{ return *(u8 *)(long)ctx->data; }}\n"
    (tmp_path / "bcc.c").write_text("#include <uapi/linux/bpf.h>\n" + "".join(map(lines.format, PROGRAMS)))
    monkeypatch.setattr(loader_bcc, "BPF_DIR", tmp_path)
    with pytest.raises(VerifierError) as caught:
        load("bcc", {})
    assert str(caught.value) == "the verifier refused the program xdp_ingress: R1 offset is outside of the packet"
    assert "invalid access to packet, off=0 size=1, R1(id=0,off=0,r=0)" in caught.value.__notes__[0]


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv(loader_bcc.CACHE, str(tmp_path))
    with pytest.raises(KernelError, match="writable by others"):
        load("bcc", {})


def test_without_privilege_nothing_is_tried(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from collector.errors import KernelError\n"
        "from collector.kernel import DatapathSettings, Interface, open_datapath, features\n"
        "try:\n    open_datapath(DatapathSettings(Path('/sys/fs/bpf/ztlens/x'), (Interface('eth0'),)))\n"
        "except KernelError as error:\n    print(error, '|', error.hint)\n"
        "print([f.name for f in features.probe() if not f.ok])\n"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("loading programs into the kernel needs root | run it with sudo (missing: CAP_BPF")
    assert "'root'" in second


def test_this_machine_has_every_feature() -> None:
    found = features.probe()
    assert [f.name for f in found] == [
        "root", "kernel", "bpffs", "jit", "libbpf", *probes.PROBES, "membarrier", "loader", "headers", "bcc",
    ]  # fmt: skip
    assert [f for f in found if not f.ok or f.hint] == []


def test_a_description_survives_its_map() -> None:
    layout = new_layout({"RING_BYTES": 8192}, "core")
    assert Layout.decode(layout.encode()) == layout
    assert layout.same_program(new_layout({"RING_BYTES": 8192}, "bcc"))
    assert not layout.same_program(new_layout({}, "core"))
    assert new_layout({}, "core").ring_id != new_layout({}, "core").ring_id


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"v":1,"ring_id":3}'])
def test_a_broken_description_is_an_error(data: bytes) -> None:
    with pytest.raises(KernelError, match="not one"):
        Layout.decode(data)


@pytest.mark.parametrize("size", [13, MAX_PACKET + 1])
def test_frames_that_cannot_be_test_run_are_named(size: int) -> None:
    with private_datapath(KNOBS) as datapath, pytest.raises(KernelError, match=f"{size} bytes"):
        datapath.run(bytes(size))


def test_judges_clock_is_the_captures() -> None:
    with private_datapath(KNOBS, judge=True) as datapath:
        for i, size in enumerate((42, MAX_PACKET)):
            datapath.run(
                udp_frame("10.0.0.1", 1 + i, "10.0.0.2", 53, bytes(size - 42)), time_ns=1_000_000_000 * (i + 1)
            )
        events = datapath.read(10)
        assert events is not None
        assert events.rows["time"].tolist() == [1_000_000_000, 2_000_000_000]
        with pytest.raises(ValueError, match="time_ns"):
            datapath.run(bytes(60))


def test_a_closed_private_datapath_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for judge in (False, True):
        private_datapath(KNOBS, judge=judge).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_map_of_another_version_is_not_misread() -> None:
    fd = libbpf.map_create("flows", 1, 40, 8, entries=16)
    try:
        with pytest.raises(KernelError, match=r"40 \+ 8 bytes"):
            maps.HashMap(fd, dtype(FLOW_KEY), dtype(FLOW))
    finally:
        os.close(fd)


def test_a_hash_is_read_whole_even_if_a_bucket_overflows_the_batch() -> None:
    fd = libbpf.map_create("some", 1, 4, 8, entries=4096)
    some = maps.HashMap(fd, np.dtype("<u4"), np.dtype("<u8"))
    keys = np.arange(4000, dtype=np.uint32)
    some.put(keys, keys.astype(np.uint64) * 3)
    seen = [(k.copy(), v.copy()) for k, v in some.batches(size=1)]
    got = dict(
        zip(np.concatenate([k for k, _ in seen]).tolist(), np.concatenate([v for _, v in seen]).tolist(), strict=True)
    )
    assert got == {k: 3 * k for k in range(4000)}
    some.close()


class TestRingMemory:
    """A ring whose memory a test writes: what the kernel does between two of our loads."""

    @pytest.fixture
    def memory(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ring, np.ndarray, np.ndarray]]:
        """(ring, producer position, headers and rows as the kernel writes them)."""
        fd = os.memfd_create("ring")
        os.ftruncate(fd, 2 * PAGE + 2 * PAGE)
        monkeypatch.setattr(libbpf, "map_info", lambda _: libbpf.MapInfo(27, 0, 0, PAGE, "events", 0))
        raw = np.memmap(f"/proc/self/fd/{fd}", np.uint8, "r+")
        records = np.dtype(
            {"names": ["header", "row"], "formats": ["<u4", DTYPE], "offsets": [0, 8], "itemsize": STRIDE}
        )
        data = np.ndarray(PAGE // STRIDE, records, raw, 2 * PAGE)
        ring = Ring(fd)
        yield ring, raw[PAGE : PAGE + 8].view(np.uint64), data
        ring.close()

    def test_reading_stops_at_the_first_record_being_written(self, memory: tuple[Ring, np.ndarray, np.ndarray]) -> None:
        ring, producer, data = memory
        data["row"]["flow_id"] = np.arange(len(data))
        data["header"] = DTYPE.itemsize
        data["header"][3] |= 1 << 31
        data["header"][5] |= 1 << 31
        producer[0] = 7 * STRIDE
        events = ring.read(100)
        assert events is not None
        assert events.rows["flow_id"].tolist() == [0, 1, 2]
        assert ring.read(100) is None
        data["header"][3] &= ~np.uint32(1 << 31)
        events = ring.read(100)
        assert events is not None
        assert (events.start, events.rows["flow_id"].tolist()) == (3 * STRIDE, [3, 4])

    def test_what_was_read_is_a_copy(self, memory: tuple[Ring, np.ndarray, np.ndarray]) -> None:
        ring, producer, data = memory
        data["row"]["flow_id"], data["header"] = 5, DTYPE.itemsize
        producer[0] = STRIDE
        events = ring.read(1)
        data["row"]["flow_id"] = 6
        assert events is not None
        assert events.rows["flow_id"].tolist() == [5]

    def test_a_position_between_records_is_not_ours(self, memory: tuple[Ring, np.ndarray, np.ndarray]) -> None:
        ring, _, _ = memory
        ring._consumer[0] = STRIDE + 8
        with pytest.raises(KernelError, match="not our records"):
            Ring(os.dup(ring.fd))
