"""What a page is started with."""

import shlex
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from web.errors import SettingsError


@dataclass(frozen=True)
class WebSettings:
    """`listen` is HOST:PORT. `names`: by what else browsers may reach it; empty: it listens on loopback only.

    `program`: how a shell of this host says `ztlens` so that it reaches the installation of this page.
    """

    socket: Path  # the sink's API
    run_dir: Path  # where the link is written while it runs
    state: Path  # where the token is kept
    listen: str = "127.0.0.1:7420"
    names: tuple[str, ...] = ()
    program: tuple[str, ...] = ("sudo", "ztlens")

    @property
    def host(self) -> str:
        """Without the brackets of an IPv6 address."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """0: any free one."""
        return int(self.listen.rpartition(":")[2])

    def command(self, *words: str) -> str:
        """A line to copy into a shell."""
        return shlex.join((*self.program, *words))

    def __post_init__(self) -> None:
        """Raises SettingsError: everybody who reaches an address that is not loopback could try the token."""
        if not self.names and not is_loopback(self.host):
            raise SettingsError(
                f"the page would listen on {self.host}, where others reach it: the traffic of this host, unencrypted,"
                " to whoever has the link",
                "if that is meant, name it as browsers will: --web-names NAME",
            )


def is_loopback(host: str) -> bool:
    """Whether only this host reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
