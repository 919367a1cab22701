"""What can be refused before anything is started: privilege, interfaces, policy."""

import errno
from pathlib import Path

from ztlens.config import Settings, split_interface
from ztlens.errors import BadInput, Missing


def pinned(settings: Settings) -> bool:
    """Whether a datapath of this instance is there, attached or not, with or without a collector."""
    name = settings.pins.name
    try:
        there = {path.name.partition("+")[0] for path in settings.pins.parent.iterdir()}
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise Missing(f"{settings.pins.parent}: {error.strerror}", "run it as root") from error
    return name in there


def before_start(settings: Settings, command: str) -> None:
    """Raises CliError, PolicyError, OSError: what the collector would say too, but later."""
    policy: Path | None = settings["policy"]
    if policy is not None:
        from policy.source import compile_text, read_text

        compile_text(read_text(policy), str(policy))
    place(settings, command)


def place(settings: Settings, command: str) -> None:
    """All of it but the policy, and no import that takes long. Raises CliError."""
    from collector.kernel.pins import missing_capabilities

    if not settings["interfaces"]:
        raise BadInput("no interface to watch", f"name one: `ztlens {command} -i eth0`; `ip -brief link` lists them")
    if missing_capabilities():
        raise Missing(f"ztlens {command} needs root: it loads programs into the kernel", "run it with sudo")
    if not pinned(settings):  # else what runs goes on with the interfaces that are there
        _interfaces(settings)


def _interfaces(settings: Settings) -> None:
    """A name that is not there is bad input; what the kernel makes of one that is, the collector finds out."""
    from collector.errors import KernelError
    from collector.kernel.attach import no_interface, wanted_links
    from collector.kernel.interface import Interface
    from collector.kernel.netns import inside, links

    wanted = [Interface(*split_interface(text)) for text in settings["interfaces"]]
    try:
        there = inside(settings["netns"], links)
        _, absent = wanted_links(wanted, there)
        if absent:
            raise no_interface(absent[0], there)
    except KernelError as error:
        if error.errno == errno.EPERM:  # to enter a namespace takes CAP_SYS_ADMIN, which loading does not
            raise
        raise BadInput(str(error), error.hint) from error
