"""Somebody else's programs: an XDP program that passes everything, a TC filter that does nothing."""

import os

from collector.kernel import libbpf
from collector.kernel.attach import TC_HANDLE, TC_PRIORITY
from collector.kernel.netns import inside, links

_PASS = {"xdp": 2, "tc": 0}  # XDP_PASS, TC_ACT_OK


def _load(kind: str) -> int:
    code = b"\xb7\x00\x00\x00" + _PASS[kind].to_bytes(4, "little") + b"\x95" + bytes(7)  # r0 = …; exit
    return libbpf.program_load(libbpf.PROGRAM_TYPES[kind], "stranger", code)


def attach_xdp(netns: str, interface: str, *, generic: bool = False) -> int:
    """Put an XDP program on an interface, to stay until the interface goes; its id."""
    program = _load("xdp")
    flags = libbpf.XDP_FLAGS_SKB_MODE if generic else libbpf.XDP_FLAGS_DRV_MODE
    try:
        inside(netns, lambda: libbpf.xdp_attach(links()[interface].ifindex, program, flags))
        return libbpf.program_info(program).id
    finally:
        os.close(program)


def attach_tc(netns: str, interface: str, handle: int = 1, priority: int = 1) -> int:
    """Put a TC program on egress, on a clsact made for it if there is none; its id."""
    program = _load("tc")

    def attach() -> None:
        ifindex = links()[interface].ifindex
        libbpf.clsact_create(ifindex)
        libbpf.tc_attach(ifindex, program, handle, priority)

    try:
        inside(netns, attach)
        return libbpf.program_info(program).id
    finally:
        os.close(program)


def xdp_id(netns: str, interface: str) -> int:
    """Id of the XDP program on an interface, 0: none."""
    return inside(netns, lambda: libbpf.xdp_query(links()[interface].ifindex).any)


def tc_id(netns: str, interface: str, handle: int, priority: int) -> int:
    """Id of the TC program in that place on egress, 0: none."""
    return inside(netns, lambda: libbpf.tc_query(links()[interface].ifindex, handle, priority))


def watched(netns: str, interface: str) -> tuple[bool, bool]:
    """Whether an XDP program is there, and one of ztlens on egress, whatever holds it."""

    def look() -> tuple[bool, bool]:
        ifindex = links()[interface].ifindex
        found = {*libbpf.tcx_query(ifindex), libbpf.tc_query(ifindex, TC_HANDLE, TC_PRIORITY)}
        names = [libbpf.program_by_id(number) for number in found if number]
        return bool(libbpf.xdp_query(ifindex).any), "tc_egress" in [info.name for info in names if info is not None]

    return inside(netns, look)


def statistics(netns: str, interface: str) -> dict[str, int]:
    """Counters of the interface, as `ip -s link` shows them: the kernel's own, not ours."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    def read() -> dict[str, int]:
        with IPRoute() as route:
            (link,) = route.get_links(ifname=interface)
            return dict(link.get_attr("IFLA_STATS64"))

    return inside(netns, read)
