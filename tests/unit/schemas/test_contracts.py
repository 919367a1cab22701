"""The contracts hold together: generated files are current, layouts have no hidden padding, envelopes come back."""

import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codes, envelope, messages, render, structs, subjects
from schemas.errors import EnvelopeError
from schemas.verdict import DTYPE, FIELDS, SIZE, STRIDE


def test_generated_files_are_current():
    assert render.TYPES_H.read_text() == render.types_h()
    assert render.SCHEMA_MD.read_text() == render.schema_md()


def test_the_event_is_112_bytes_every_120():
    assert (SIZE, STRIDE) == (112, 120)


@pytest.mark.parametrize("struct", [*structs.STRUCTS, render.VERDICT_EVENT], ids=lambda s: s.name)
def test_no_struct_needs_implicit_padding(struct):
    layout = structs.dtype(struct)
    size = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
    largest = max(size[f.ctype] for f in struct.fields)
    for field in struct.fields:
        assert layout.fields[field.name][1] % size[field.ctype] == 0, field.name
    assert layout.itemsize % largest == 0


def test_codes_fit_their_columns_and_are_unique():
    for kind in (codes.Decision, codes.Outcome, codes.EventKind, codes.Direction, codes.Reason, codes.FlowClass):
        assert len({int(c) for c in kind}) == len(kind)
        assert max(kind) < 256
    assert sorted(codes.Counter) == list(range(len(codes.Counter)))
    assert sum(codes.Flag) < 256


def test_port_groups_tile_the_table():
    at = 0
    for start, size in structs.PORT_GROUPS.values():
        assert start == at
        at += size
    assert at == structs.PORTS_PER_SLOT
    assert list(structs.PORT_GROUPS) == [group.name for group in codes.PortGroup]
    assert list(structs.TIMEOUTS) == [kind.name for kind in codes.FlowClass]


def batch(n: int = 5) -> np.ndarray:
    rows = np.zeros(n, DTYPE)
    for i, field in enumerate(FIELDS):
        if field.count == 16:
            rows[field.name] = np.array([bytes([i + j] * 16) for j in range(n)], "V16")
        else:
            rows[field.name] = np.arange(n) + i
    return rows


def pack(rows: np.ndarray, start: int = 240) -> bytes:
    return envelope.encode(rows, node="n", ring="r", start=start, clock=-5, rev=3)


def test_an_envelope_comes_back():
    rows = batch()
    back = envelope.decode(pack(rows))
    assert (back.node, back.ring, back.start, back.end, back.n) == ("n", "r", 240, 240 + 5 * STRIDE, 5)
    assert (back.clock, back.rev, back.stride) == (-5, 3, STRIDE)
    assert (back.rows() == rows).all()


def test_a_reader_skips_unknown_columns_and_defaults_missing_ones():
    raw = msgspec.msgpack.decode(pack(batch()))
    raw["c"]["colour"], raw["t"]["colour"] = b"12345", "|u1"
    del raw["c"]["sport"], raw["t"]["sport"]
    back = envelope.decode(msgspec.msgpack.encode(raw))
    assert back.columns()["sport"].tolist() == [0] * 5
    assert set(back.columns()) == set(DTYPE.names)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "version 2"),
        ({"n": 6}, "does not hold 6 records"),
        ({"n": 0, "end": 240}, "does not hold 0 records"),
        ({"start": -120, "end": 480}, "does not hold"),
        ({"stride": 0}, "does not hold"),
        ({"c": {"sport": b"123"}}, "column sport: 3 bytes"),
        ({"t": {}}, "column time: no usable type"),
        ({"node": 7}, "not a batch"),
    ],
)
def test_a_broken_envelope_says_what_is_wrong(change, says):
    raw = msgspec.msgpack.decode(pack(batch())) | change
    with pytest.raises(EnvelopeError, match=re.escape(says)):
        envelope.decode(msgspec.msgpack.encode(raw))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    for read in (envelope.decode, lambda d: messages.decode(d, messages.LossRecord)):
        with pytest.raises(EnvelopeError):
            read(data)


@given(st.integers(0, 1017), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_still_a_whole_batch(at, value):
    data = bytearray(pack(batch()))
    data[at % len(data)] = value
    try:
        back = envelope.decode(bytes(data))
    except EnvelopeError:
        return
    assert len(back.rows()) == back.n


@given(st.text())
def test_a_token_is_safe_and_comes_back(text):
    token = subjects.token(text)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert subjects.untoken(token) == text


def test_different_names_never_share_a_subject():
    assert len({subjects.token(t) for t in ("db.prod", "db_prod", "db prod", "db*prod", "db>prod", "db-prod", "")}) == 7


def test_records_come_back_and_unknown_keys_are_skipped():
    record = messages.PolicyRecord(v=1, kind="start", node="n", ring="r", time=1, revision=0, mode="monitor")
    raw = msgspec.msgpack.decode(messages.encode(record)) | {"later": [1, 2]}
    assert messages.decode(msgspec.msgpack.encode(raw), messages.PolicyRecord) == record
    with pytest.raises(EnvelopeError, match="version 2"):
        messages.decode(msgspec.msgpack.encode(raw | {"v": 2}), messages.PolicyRecord)
