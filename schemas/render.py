"""Writes bpf/types.h, bpf/maps.h, docs/schema.md and the tables of docs/metrics.md: `python -m schemas.render`.

With --check it only says which are not current.
"""

import sys
from enum import IntEnum, IntFlag
from pathlib import Path

from schemas import codes, structs
from schemas.document import metrics_md, schema_md
from schemas.maps import MAPS
from schemas.structs import Struct, dtype
from schemas.verdict import STRIDE, VERDICT_EVENT

ROOT = Path(__file__).resolve().parent.parent
TYPES_H = ROOT / "bpf" / "types.h"
MAPS_H = ROOT / "bpf" / "maps.h"
SCHEMA_MD = ROOT / "docs" / "schema.md"
METRICS_MD = ROOT / "docs" / "metrics.md"
ENUMS: tuple[tuple[str, type[IntEnum] | type[IntFlag]], ...] = (
    ("DECISION", codes.Decision), ("OUTCOME", codes.Outcome), ("MODE", codes.Mode), ("EVENT", codes.EventKind),
    ("DIRECTION", codes.Direction), ("REASON", codes.Reason), ("FLAG", codes.Flag), ("RULE", codes.RuleId),
    ("IDENTITY", codes.IdentityId), ("COUNTER", codes.Counter), ("TIMEOUT", codes.FlowClass),
)  # fmt: skip


def c_struct(struct: Struct) -> list[str]:
    """`struct` as C, followed by assertions on its size and every offset."""
    layout = dtype(struct)
    lines = [f"/* {struct.meaning} */", f"struct {struct.name} {{"]
    for f in struct.fields:
        array = f"[{f.count}]" if f.count > 1 else ""
        lines.append(f"\t{f.ctype} {f.name}{array};" + (f" /* {f.meaning} */" if f.meaning else ""))
    lines.append("};")
    for f in struct.fields:
        offset = layout.fields[f.name][1]  # type: ignore[index]
        lines.append(
            f'_Static_assert(__builtin_offsetof(struct {struct.name}, {f.name}) == {offset}, "{struct.name}.{f.name}");'
        )
    lines.append(f'_Static_assert(sizeof(struct {struct.name}) == {layout.itemsize}, "{struct.name}");')
    return [*lines, ""]


def types_h() -> str:
    """The whole of `bpf/types.h`."""
    out = [
        "/* The kernel/user contract. Made by `python -m schemas.render` from schemas/: change it there. */",
        "#ifndef ZTLENS_TYPES_H",
        "#define ZTLENS_TYPES_H",
        "",
    ]
    for prefix, kind in ENUMS:
        out.append(f"enum {prefix.lower()}_code {{")
        out += [f"\t{prefix}_{code.name} = {int(code)}," for code in kind]
        if kind is codes.Counter:
            out.append(f"\tCOUNTERS = {len(kind)},")
        out += ["};", ""]
    for group, (start, size) in structs.PORT_GROUPS.items():
        out.append(f"#define PORTS_{group} {start} /* {size} entries */")
    out.append(f"#define PORTS_PER_SLOT {structs.PORTS_PER_SLOT}")
    out.append(f"#define SUMMARY_RULES {structs.SUMMARY_RULES} /* rules a word of a vector's summary */")
    for prefix, table in (("VERDICT", structs.VERDICT_BITS), ("FLOW", structs.FLOW_STATES), ("DUE", structs.DUE_BITS)):
        out += [f"#define {prefix}_{name} {value}ULL" for name, value in table.items()]
    for name in ("REVISION_SHIFT", "RULE_SHIFT", "REASON_SHIFT"):
        out.append(f"#define {name} {getattr(structs, name)}")
    out.append("")
    for struct in structs.STRUCTS:
        out += c_struct(struct)
    out += c_struct(structs.CONSTANTS)
    out += c_struct(VERDICT_EVENT)
    out += [f"#define EVENT_STRIDE {STRIDE} /* bytes from one record of the ring to the next */", "", "#endif", ""]
    return "\n".join(out)


def maps_h() -> str:
    """The whole of `bpf/maps.h`."""
    out = [
        "/* Every map. Made by `python -m schemas.render` from schemas/: change it there.",
        " *",
        " *\tMAP(kind, KIND, key, value, name, flags)",
        " *\tRING(name)",
        " *",
        " * The front defines these two. The loader sets how many entries there are and how wide those of vectors are.",
        " */",
    ]
    for one in MAPS:
        out.append(f"/* {one.meaning} */")
        if one.kind == "ringbuf":
            out.append(f"RING({one.name})")
        else:
            flags = "BPF_F_MMAPABLE" if one.mmapable else "0"
            out.append(f"MAP({one.kind}, {one.kind.upper()}, {one.key}, {one.value}, {one.name}, {flags})")
    return "\n".join([*out, ""])


def main() -> int:
    """Write the files; with --check only say which are not current (exit status 1)."""
    files = {TYPES_H: types_h(), MAPS_H: maps_h(), SCHEMA_MD: schema_md()}
    files[METRICS_MD] = metrics_md(METRICS_MD.read_text())
    if "--check" not in sys.argv:
        for path, text in files.items():
            path.write_text(text)
        return 0
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path} is not what schemas/ says: run python -m schemas.render", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
