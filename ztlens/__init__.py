"""The front door: the `ztlens` command, `up` (everything on one host) and `demo`.

`main` (the command tree), `config` (settings and where each came from), `errors` (one line, one hint, an exit
status), `up`, `parts`, `nats` (the supervisor and what it runs), `filters` (options → one SQL predicate), `live`
(batches as they come), `show` (tables, lines, JSON), `capture` (pcap files). Other rooms are imported inside the
commands that need them, so that `ztlens version` stays quick.
"""

__version__ = "0.1.0"
