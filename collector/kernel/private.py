"""A datapath of one's own: loaded, never attached, pinned nowhere. For `judge` and for the kernel tests."""

import struct
from typing import Any

import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf, pins, probes
from collector.kernel.datapath import LoadedDatapath
from collector.kernel.handle import DEFAULT_BUDGET, DEFAULT_SAMPLE, AnyMap, Handle
from collector.kernel.layout import new_layout
from collector.kernel.loader import AUTO, load
from schemas.codes import Mode
from schemas.structs import TIMEOUTS

SMALL_KNOBS = {"FLOWS_MAX": 4096, "RING_BYTES": 1 << 20}
"""Enough for tests and quick to allocate."""
MAX_PACKET = 3520
"""Bytes a test-run takes: a page less what the kernel reserves around the packet."""
_SKB_INGRESS_IFINDEX, _SKB_IFINDEX, _SKB_WIRE_LEN, _SKB_GSO_SEGS, _SKB_SIZE = 36, 40, 160, 164, 192


class PrivateDatapath(LoadedDatapath):
    """Use as a context manager, or `close` it: then nothing of it remains."""

    def __init__(self, handle: Handle, judge: bool) -> None:
        super().__init__(handle)
        self.judge = judge

    def __enter__(self) -> "PrivateDatapath":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        packet: bytes,
        *,
        program: str = "xdp_ingress",
        time_ns: int | None = None,
        ifindex: int = 0,
        repeat: int = 1,
        gso_segs: int = 0,
        wire_len: int = 0,
        ingress_ifindex: int = 0,
    ) -> tuple[int, int]:
        """Judge one frame: (what the program returns, ns a run over `repeat` runs).

        `time_ns` is the capture's clock, for `judge` only. `ifindex` must exist (0: lo). The last three are what TC
        knows of an skb. Raises KernelError for a frame below 14 bytes or above MAX_PACKET.
        """
        if (time_ns is not None) != (self.judge and program == "xdp_ingress"):
            raise ValueError("time_ns goes with judge=True and xdp_ingress, and only with them")
        if not 14 <= len(packet) <= MAX_PACKET:
            raise KernelError(f"a frame of {len(packet)} bytes cannot be test-run", f"14 to {MAX_PACKET} bytes can")
        meta = b"" if time_ns is None else struct.pack("=Q", time_ns)
        data = np.frombuffer(meta + packet, np.uint8)
        if program == "tc_egress":
            context = np.zeros(_SKB_SIZE, np.uint8)
            words = context.view(np.uint32)
            words[_SKB_IFINDEX // 4], words[_SKB_INGRESS_IFINDEX // 4] = ifindex, ingress_ifindex
            words[_SKB_WIRE_LEN // 4], words[_SKB_GSO_SEGS // 4] = wire_len, gso_segs
        else:
            # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
            context = np.array([len(meta), len(data), 0, ifindex, 0, 0], np.uint32)
        return libbpf.test_run(self.handle.programs[program], data, context=context, repeat=repeat)

    def flows(self) -> np.ndarray:
        """The flow table: fields `key` (flow_key) and `flow`, shape (entries,)."""
        keys, values = self.handle.flows.read()
        out = np.zeros(len(keys), [("key", keys.dtype), ("flow", values.dtype)])
        out["key"], out["flow"] = keys, values
        return out

    def map(self, name: str) -> AnyMap:
        """A map by its name in schemas/maps.py."""
        return self.handle.map(name)

    def set_config(self, **fields: Any) -> None:
        """Write fields of struct config, as `set_config(sample=1, timeouts=[…6 ns])`; `epoch` is one store."""
        for name, value in fields.items():
            if name == "epoch":
                self.handle.config.words()[0] = value
            else:
                self.handle.config.values[name][0] = value


def private_datapath(
    knobs: dict[str, int] | None = None,
    *,
    judge: bool = False,
    loader: str = AUTO,
    sample: int = DEFAULT_SAMPLE,
    budget: int = DEFAULT_BUDGET,
) -> PrivateDatapath:
    """A datapath with maps of its own. `judge`: its clock is the capture's. Raises KernelError; BCC takes seconds."""
    pins.require_privilege()
    probes.require()
    choice, loaded = load(loader, knobs or {}, judge)
    handle = Handle.create(loaded, new_layout(knobs or {}, choice.name))
    handle.initialise(Mode.MONITOR, midstream_seconds=0)
    handle.configure(sample=sample, budget=budget, timeouts=TIMEOUTS)
    return PrivateDatapath(handle, judge)
