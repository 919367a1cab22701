"""The programs ztlens is compared with: tests/bench/programs/peers.c and Debian's xdp-filter."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from collector.kernel import libbpf
from collector.kernel.loader_bcc import load_source
from collector.kernel.maps import MappedArray, PerCpuArray
from collector.kernel.netns import inside, links
from tests.support.netns import Lab

SOURCE = Path(__file__).parent / "programs" / "peers.c"
PROGRAMS = ("pass", "drop", "lookup", "count", "stir", "deal")
TUPLE = np.dtype([("saddr", ">u4"), ("daddr", ">u4"), ("sport", ">u2"), ("dport", ">u2"), ("proto", "<u4")])
FILTER_PINS, LIBXDP_PINS = Path("/sys/fs/bpf/xdp-filter"), Path("/sys/fs/bpf/xdp")


class Peers:
    """The loaded programs; `fds` by name. `close` it."""

    def __init__(self) -> None:
        version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
        self._loaded = load_source(SOURCE, dict.fromkeys(PROGRAMS, "xdp"), ["-w"], version)
        self.fds = self._loaded.programs
        self._stirred = MappedArray(os.dup(self._loaded.maps["stirred"]), np.dtype("<u8"))
        self.dealt = MappedArray(os.dup(self._loaded.maps["dealt"]), TUPLE)
        """Tuples that `deal` writes into its frames, one after the other."""
        self.seen = PerCpuArray(os.dup(self._loaded.maps["seen"]), np.dtype("<u8"))

    def known(self, frame: bytes) -> None:
        """Put the key that `lookup` will ask for into its map."""
        key = np.zeros(40, np.uint8)
        key[:8], key[8:12] = np.frombuffer(frame[26:34], np.uint8), np.frombuffer(frame[34:38], np.uint8)
        libbpf.update(self._loaded.maps["floor_map"], key, np.zeros(16, np.uint8))

    def stir(self, program: int, flows: int = 0) -> int:
        """A program that makes each run another flow (`flows` in turn, 0: always new), then calls `program`."""
        self._target(program)
        self._stirred.values[1] = flows
        if flows:
            self._stirred.values[0] = 0
        return self.fds["stir"]

    def deal(self, program: int) -> int:
        """A program that makes each run the next of `dealt`, then calls `program`."""
        self._target(program)
        return self.fds["deal"]

    def _target(self, program: int) -> None:
        libbpf.update(self._loaded.maps["target"], np.zeros(1, np.uint32), np.array([program], np.uint32))

    def forget(self) -> None:
        """Empty the table of `count`."""
        fd = self._loaded.maps["tuples"]
        keys, values, behind = np.zeros((262_144, 16), np.uint8), np.zeros((262_144, 16), np.uint8), np.zeros(4, "u1")
        n = libbpf.lookup_batch(fd, None, behind, keys, values)
        libbpf.delete_batch(fd, keys[: n if n >= 0 else -n - 1])

    def close(self) -> None:
        self._stirred.close()
        self.dealt.close()
        self.seen.close()
        self._loaded.close()


class XdpFilter:
    """Debian's xdp-filter on a veth of its own, with 100 ports and an address; `fd` is what the kernel runs there.

    `missing` says why there is none: it is compared with where it can be, and is no requirement.
    """

    def __init__(self) -> None:
        self.fd, self.missing = -1, ""
        self._lab: Lab | None = None
        self._enter: list[str] = []

    def __enter__(self) -> Self:
        if not shutil.which("xdp-filter"):
            self.missing = "xdp-filter is not installed (package xdp-tools)"
        elif FILTER_PINS.exists():
            self.missing = f"xdp-filter is in use on this machine ({FILTER_PINS}): left alone"
        else:
            self._lab = Lab().__enter__()
            self._libxdp_was = LIBXDP_PINS.exists()
            try:
                self._load(self._lab)
            except (subprocess.SubprocessError, OSError) as error:
                said = getattr(error, "stderr", "") or str(error)
                self.missing = f"xdp-filter does not load here: {' '.join(said.split())[:200]}"
        return self

    def _load(self, lab: Lab) -> None:
        netns = lab.namespace("filter")
        lab.link(netns, "veth0", netns, "veth1")
        # `ip netns exec` would hide bpffs behind a new /sys.
        self._enter = ["nsenter", f"--net=/run/netns/{netns}", "xdp-filter"]
        self._run("load", "veth0", "--mode", "native")
        for port in range(7000, 7100):
            self._run("port", str(port), "--proto", "udp", "--mode", "dst")
        self._run("ip", "10.9.9.9", "--mode", "src")
        program = inside(netns, lambda: libbpf.xdp_query(links()["veth0"].ifindex)).any
        self.fd = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_prog_get_fd_by_id(program)
        if self.fd < 0:
            raise OSError(f"its program {program} cannot be opened")

    def _run(self, *arguments: str) -> None:
        subprocess.run([*self._enter, *arguments], check=True, capture_output=True, text=True, timeout=20)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        if self._lab is not None:
            subprocess.run([*self._enter, "unload", "veth0"], check=False, capture_output=True, timeout=20)
            self._lab.__exit__(kind, error, trace)
            if not self._libxdp_was and LIBXDP_PINS.exists() and not any(LIBXDP_PINS.iterdir()):
                LIBXDP_PINS.rmdir()
