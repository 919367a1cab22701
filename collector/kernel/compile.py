"""The child that imports BCC: compiles, loads, hands the descriptors over, exits.

    python -m collector.kernel.compile MAIN.c SOCKET_FD [CFLAG …]

BCC brings LLVM, 146 MB resident after a compile, so it never enters the collector. The answer on the socket is a list
of names (one JSON line) with as many descriptors; whatever goes wrong is said on stderr, and the exit status is 1.
"""

import json
import socket
import sys


def main() -> int:
    from collector.kernel.layout import MAPS, PROGRAMS  # noqa: PLC0415

    source, fd, cflags = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    try:
        from bcc import BPF, lib  # noqa: PLC0415
    except ImportError:
        sys.path.append("/usr/lib/python3/dist-packages")  # a virtual environment without the system's packages
        from bcc import BPF, lib  # noqa: PLC0415
    program = BPF(src_file=source, cflags=cflags)
    kinds = {"xdp": BPF.XDP, "tc": BPF.SCHED_CLS}
    names, fds = [], []
    for name, kind in PROGRAMS.items():
        names.append(name)
        fds.append(program.load_func(name, kinds[kind]).fd)
    for name in MAPS:
        number = lib.bpf_table_fd(program.module, name.encode())
        if number < 0:
            raise SystemExit(f"error: {source} has no map {name}")
        names.append(name)
        fds.append(number)
    with socket.socket(fileno=fd) as answer:
        socket.send_fds(answer, [json.dumps(names).encode()], fds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
