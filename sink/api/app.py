"""The query API: HTTP on a Unix socket, answered while the store is being written. Paths: `sink.api.endpoints`.

A question holds one of `settings.readers` until its answer's last byte is sent.
"""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import duckdb
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from policy.errors import PolicyError
from schemas import http
from sink.api import asking, openapi
from sink.api.ahead import Ahead
from sink.api.endpoints import ENDPOINTS, PREFIX, Endpoint, Question
from sink.api.live import Live
from sink.api.readers import LEFT, WAITING, Few, Readers
from sink.api.refusing import REFUSED, broken, http_error, refusal
from sink.api.shared import Shared
from sink.api.streams import TYPES, Streamed, encoded
from sink.errors import AbsentError, BusyError, QueryError, SinkError
from sink.history import asked as times
from sink.history import audit, overview, policies, records, suggest
from sink.history.apart import apart
from sink.history.flows import flows
from sink.history.ledger import ledger
from sink.history.query import Answer
from sink.history.reading import Reading
from sink.settings import SinkSettings
from sink.store import Store

log = logging.getLogger("ztlens.sink")

Progress = Callable[[int], None]
Handler = Callable[[Request], Awaitable[Response]]
_CHECKED = 64
"""Policies whose rules that never decide are remembered."""
SMALL = 16 << 10
"""Characters of policies that are looked at in a thread: starting a process would take most of the time."""
CHECKS = 2
"""Questions that ask the policy engine alone, at a time: a large one takes a process each. No reader waits for them."""
_encoder = msgspec.json.Encoder(decimal_format="number")


class Api:
    """Answers over `store`; `status` gives the document of `status`, `behind` says whether more waits to be stored."""

    def __init__(
        self, store: Store, settings: SinkSettings, status: Callable[[], Awaitable[dict[str, Any]]],
        behind: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._store = store
        self._settings = settings
        self._told = status
        self._readers = Readers(store, settings, behind)
        self._checks = Few("check", CHECKS, WAITING * settings.query_timeout)
        self._shared = Shared(store, self._readers)
        self._ahead = Ahead(_encoder)
        self._never: OrderedDict[str, dict[str, str]] = OrderedDict()
        self.live = Live(store)
        self._counters = {"questions": 0, "answered": 0, "refused": 0, "broken": 0}
        routes = [Route(f"{PREFIX}/{one.path}", self._handler(one), methods=[one.method]) for one in ENDPOINTS]
        self.app = Starlette(
            routes=[Route(f"{PREFIX}/openapi.json", self._openapi), *routes],
            exception_handlers={HTTPException: http_error, Exception: broken},
        )

    @property
    def counters(self) -> dict[str, int]:
        """Questions by what became of them."""
        repeated = {f"again_{why}": n for why, n in self._store.counters.again.items()}
        return self._counters | {"busy": self._readers.busy + self._checks.busy} | repeated | self.live.counters

    def _handler(self, endpoint: Endpoint) -> Handler:
        """Decodes, counts, and turns what was raised into an answer."""
        work = self._read if endpoint.work is not None else getattr(self, f"_{endpoint.name}")

        async def handle(request: Request) -> Response:
            self._counters["questions"] += 1
            try:
                asked: Any = None
                if endpoint.body is None:
                    asked = asking.parameters(request, endpoint.asked)
                answer: Response = await work(request, endpoint, asked)
            except REFUSED as error:
                self._counters["refused"] += 1
                return refusal(error)
            if not isinstance(answer, Streamed):
                self._counters["answered"] += 1
            return answer

        return handle

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi.document())

    async def _read(self, request: Request, endpoint: Endpoint, asked: Any) -> Response:
        """What reads the store and needs nothing else."""
        work = endpoint.work
        assert work is not None
        given = [] if endpoint.name == "schema" else [asked]
        if "id" in request.path_params:
            given = [request.path_params["id"]]
        elif "revision" in request.path_params:
            given = [_number(request.path_params["revision"]), asked]
        made: bytes = await self._shared.read(request, lambda reading: _encoder.encode(work(reading, *given)), asked)
        return Response(made, media_type="application/json")

    async def _flows(self, request: Request, endpoint: Endpoint, asked: http.FlowsAsked) -> Response:
        def read(reading: Reading) -> bytes:
            return self._ahead.keep(asked, flows(reading, asked))

        found = self._ahead.get(asked) or await self._shared.read(request, read, asked)
        return Response(found, media_type="application/json")

    # -- verdicts --------------------------------------------------------------------------------------------------

    async def _verdicts(self, request: Request, endpoint: Endpoint, asked: http.VerdictsAsked) -> Response:
        if "text/event-stream" in request.headers.get("accept", ""):
            if asked.since or asked.until or asked.cursor:
                raise QueryError("what is live has no time range and no pages", "leave since, until and cursor out")
            return await self._followed(request, asked)
        return _json(await self._shared.read(request, lambda reading: records.verdicts(reading, asked), asked))

    async def _live(self, request: Request, endpoint: Endpoint, asked: http.LiveAsked) -> Response:
        return await self._followed(request, asked)

    async def _followed(self, request: Request, asked: http.Filters) -> Response:
        words = times.words(asked)
        if asked.where:
            tried = f"SELECT 1 FROM verdicts WHERE {words} LIMIT 0"
            await self._readers.read(request.is_disconnected, lambda reading: reading.table(tried), asked)
        viewer = self.live.join(words)
        return Streamed(viewer.events(), "text/event-stream", functools.partial(self.live.leave, viewer))

    # -- policy ----------------------------------------------------------------------------------------------------

    async def _policy(self, request: Request, endpoint: Endpoint, asked: http.PolicyAsked) -> Response:
        nodes = await self._shared.read(request, lambda reading: policies.policies(reading, asked), asked)
        for node in nodes:
            never = await self._never_of(request, node["running"]["hash"], node["running"]["text"] or "")
            for rule in node["rules"]:
                rule["shadowed"] = never.get(rule["name"], "")
        return _json({"nodes": nodes})

    async def _never_of(self, request: Request, digest: str, text: str) -> dict[str, str]:
        """Rules of a policy that can never decide, and why."""
        if digest not in self._never:
            self._never[digest] = await self._policed(request, policies.never, text) if text else {}
            while len(self._never) > _CHECKED:
                self._never.popitem(last=False)
        return self._never.get(digest, {})

    async def _policed(self, request: Request, work: Callable[..., Any], *texts: str, **how: bool) -> Any:
        """What the policy engine says of texts, of large ones in a process. Raises PolicyError, SinkError."""
        left = threading.Event()
        asks: Callable[[], Any] = functools.partial(work, *texts, **how)
        if sum(map(len, texts)) > SMALL:
            asks = functools.partial(apart, self._settings.query_timeout, _stopping(left), work, *texts, **how)
        return await self._checks.attended(request.is_disconnected, asks, left.set)

    async def _check(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        question = asking.decoded(
            await asking.raw(request, asking.POLICY_MAX), http.CheckAsked, "not a draft", 'send {"text": …}'
        )
        return _json(await self._policed(request, policies.checked, question.text))

    async def _diff(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        question = asking.decoded(
            await asking.raw(request, asking.POLICY_MAX), http.DiffAsked, "not a question of a difference",
            'send {"before": {"node": …}, "after": {"text": …}}',
        )  # fmt: skip
        texts = await self._readers.read(request.is_disconnected, lambda reading: policies.texts(reading, question))
        return _json(await self._policed(request, policies.difference, *texts, rules=question.rules))

    async def _audit(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        def work(body: bytes, progress: Progress) -> dict[str, Any]:
            question = asking.decoded(body, audit.Question, "not an audit", 'send {"candidate": {"text": …}}')
            return audit.audit(self._store.cursor(), question, self._settings.audit_timeout, progress)

        return await self._judged(request, work)

    async def _suggest(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        def work(body: bytes, progress: Progress) -> dict[str, Any]:
            hint = 'send {"generality": "service"}'
            question = asking.decoded(body, suggest.Question, "not a question of a suggestion", hint)
            return suggest.suggested(self._store.cursor(), question, self._settings.audit_timeout, progress)

        return await self._judged(request, work)

    async def _judged(self, request: Request, answer: Callable[[bytes, Progress], dict[str, Any]]) -> Response:
        """What takes long. It holds a reader, and ends when who asked has left."""
        left = threading.Event()

        def work() -> dict[str, Any]:
            try:
                return answer(body, _stopping(left))
            except PolicyError as error:
                raise QueryError(str(error), error.hint) from error

        body = await asking.raw(request, asking.POLICY_MAX)
        return JSONResponse(await self._readers.attended(request.is_disconnected, work, left.set))

    # -- SQL -------------------------------------------------------------------------------------------------------

    async def _sql(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        body = await asking.raw(request, asking.BODY_MAX)
        question = asking.decoded(body, Question, "not a question", 'send {"sql": "SELECT …", "format": "json"}')
        if question.format not in TYPES:
            raise QueryError(f"format {question.format!r}", f"one of {', '.join(TYPES)}")
        answer = await self._readers.ask(request.is_disconnected, functools.partial(self._asked, question), keep=True)
        return Streamed(self._stream(answer, question.format), TYPES[question.format], lambda: self._done(answer))

    def _asked(self, question: Question, cursor: duckdb.DuckDBPyConnection) -> Answer:
        return Answer(
            cursor, question.sql, question.parameters, self._settings.query_timeout,
            rows=0 if question.streamed else self._settings.answer_rows, limit=question.limit,
        )  # fmt: skip

    def _done(self, answer: Answer) -> None:
        """Also when the client left before the first byte: the thread at work stops, the reader is free again."""
        self._readers.submit(answer.close)
        self._readers.give()

    async def _stream(self, answer: Answer, form: str) -> AsyncIterator[bytes]:
        chunks = encoded(answer, form, self._broken)
        while (chunk := await self._readers.run(next, chunks, None)) is not None:
            yield chunk
        self._counters["answered"] += 1

    def _broken(self, error: SinkError) -> None:
        self._counters["broken"] += 1
        log.warning("an answer broke off: %s", error)

    # -- the sink --------------------------------------------------------------------------------------------------

    async def _status(self, request: Request, endpoint: Endpoint, asked: None) -> Response:
        return JSONResponse(await self._told())

    async def _ledger(self, request: Request, endpoint: Endpoint, asked: http.LedgerAsked) -> Response:
        since = times.moment(asked.since)
        return JSONResponse(await self._shared.read(request, lambda reading: ledger(reading.cursor, since), asked))

    async def _overview(self, request: Request, endpoint: Endpoint, asked: http.OverviewAsked) -> Response:
        document = await self._shared.read(request, lambda reading: overview.overview(reading, asked), asked)
        told = await self._told()
        lags = [stream.get("lag") for stream in told.get("streams", {}).values()]
        lag = None if None in lags else sum(lags)
        return _json(document | {"lag": lag, "notices": told.get("notices", [])})

    def close(self) -> None:
        """Let the threads go."""
        self.live.close()
        self._readers.close()
        self._checks.close()


def _stopping(left: threading.Event) -> Progress:
    """Ends what tells of its progress when who asked has left."""

    def progress(_: int) -> None:
        if left.is_set():
            raise BusyError(*LEFT)

    return progress


def _json(document: Any) -> Response:
    return Response(_encoder.encode(document), media_type="application/json")


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 1 << 32:
        return int(text)
    raise AbsentError(f"{text[:100]!r} is no revision", "a revision is a number")
