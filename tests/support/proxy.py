"""A TCP proxy that can withhold the answers: what a client says arrives, and it never hears that it did."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class HeldReplies:
    """`with HeldReplies(port) as proxy:` – listens on `proxy.port`; after `hold()` replies are lost."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.port = int(self._listener.getsockname()[1])

    def hold(self) -> None:
        """From now on no byte goes back to any client."""
        self._held.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._open:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                return
            self._open += [client, server]
            threading.Thread(target=self._carry, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, True), daemon=True).start()

    def _carry(self, source: socket.socket, destination: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not (back and self._held.is_set()):
                    destination.sendall(data)
            destination.shutdown(socket.SHUT_RDWR)
