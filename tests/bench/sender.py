"""A process that sends frames at a steady rate: python -m tests.bench.sender NETNS INTERFACE FRAMES/S SECONDS FLOWS

A raw socket and a burst a millisecond: live frames by test-run cost 25 ms a call, too coarse for latencies.
Prints the number sent.
"""

import errno
import socket
import sys
import time

from tests.bench.policies import ALLOWED_PORT
from tests.support.kernel import udp_frame
from tests.support.netns import call_in

BURST_SECONDS = 0.001


def main() -> int:
    netns, interface = sys.argv[1:3]
    rate, seconds, flows = float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    wire = call_in(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    wire.bind((interface, 0))
    frames = [
        udp_frame(f"10.1.{i // 256 % 256}.{i % 256}", 1024 + i % 60_000, "10.2.0.1", ALLOWED_PORT, bytes(18))
        for i in range(flows)
    ]
    sent, begun = 0, time.monotonic()
    total = int(rate * seconds)
    while sent < total:
        due = min(total, int((time.monotonic() - begun) * rate) + 1)
        try:
            while sent < due:
                wire.send(frames[sent % flows])
                sent += 1
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # the other end's CPU is busy: the frame was not taken
                raise
        time.sleep(BURST_SECONDS)
    print(sent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
