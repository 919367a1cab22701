"""Millions of frames a second into one end of a veth pair, without any tool: BPF_PROG_TEST_RUN with live frames.

    source = TrafficGen(netns, "veth1")       # the end whose peer is watched
    source.send(100_000, flows=1_000)         # returns when all have left

Every call costs ~25 ms to set up, so send chunks of 16,384 or more. None are lost as long as the peer has an XDP
program (native): score against what `send` was asked for.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from collector.kernel import libbpf
from collector.kernel.loader_bcc import load_source
from collector.kernel.maps import MappedArray, PerCpuArray
from collector.kernel.netns import inside, links
from tests.support.kernel import udp_frame

SOURCE = Path(__file__).parent / "bpf" / "trafficgen.c"
_SETTING = np.dtype([("flows", "<u4"), ("first", "<u4"), ("drop", "<u4"), ("pad", "<u4")])


class TrafficGen:
    """Sends UDP over IPv4 from 10.0.x.x (many ports) to `destination`. `close` it."""

    def __init__(
        self, netns: str, interface: str, *, size: int = 60, destination: str = "10.1.0.2", dport: int = 53
    ) -> None:
        """`size`: bytes of each frame, at least 42."""
        self.size = size
        self._netns, self._frame = (
            netns,
            np.frombuffer(udp_frame("10.0.0.0", 1024, destination, dport, bytes(size - 42)), np.uint8),
        )
        loaded = load_source(SOURCE, {"send": "xdp"}, ["-w"], hashlib.sha256(SOURCE.read_bytes()).hexdigest())
        self._program = loaded.programs["send"]
        self._setting = MappedArray(loaded.maps["setting"], _SETTING)
        self._sent = PerCpuArray(loaded.maps["sent"], np.dtype("<u8"))
        ifindex = inside(netns, links)[interface].ifindex
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        self._context = np.array([0, size, 0, ifindex, 0, 0], np.uint32)

    def send(self, n: int, *, flows: int = 1, first: int = 0, drop: bool = False) -> None:
        """n frames, round robin over `flows` flows numbered from `first`, on the calling CPU. Returns when they left.

        Threads may send side by side: each CPU goes round on its own.
        """
        self._setting.values[0] = (flows, first, drop, 0)
        inside(
            self._netns,
            lambda: libbpf.test_run(
                self._program, self._frame, context=self._context, repeat=n, flags=libbpf.TEST_LIVE_FRAMES
            ),
        )

    @property
    def sent(self) -> int:
        """Frames so far."""
        return int(self._sent.sums()[0])

    def close(self) -> None:
        self._setting.close()
        self._sent.close()
        os.close(self._program)
