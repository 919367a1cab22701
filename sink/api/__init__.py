"""How the sink is asked: HTTP on a Unix socket."""

from sink.api.app import Api
from sink.api.asking import BODY_MAX
from sink.api.listening import Server, bind, server
from sink.api.streams import encoded

__all__ = ["BODY_MAX", "Api", "Server", "bind", "encoded", "server"]
