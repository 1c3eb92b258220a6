"""Damage done to valid files: to their bytes, and to what they say in JSON or YAML, or in a safetensors header.

Bytes alone seldom get past a parser. Where a file can be parsed, one of its values is replaced by something nasty and
the file is put together again, so that the code behind the parser is reached.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "x", "mini", "prefix", "suffix", "/etc", "../../x", "~",
    ".", "/dev/zero", "a/b", "owner/name", "\0", "\n", "\x1b[31m", "\u202e", "e\u0301" * 3, "\ud800", "\udfff\ud800",
    "<script>", "{{x}}", "%s", "$(x)", "x" * 300, "é" * 5000, [], [[]], [None], ["a", 1], {}, {"": None},
    {"a": {"b": []}}, "5e-3", "nan", "1_000", "0x", "2026-02-30", "acc,none", "acc_stderr,none", "sib200_eng_Latn",
]  # fmt: skip

YAML_TOKENS = [
    "&a [", "*a", "*a, *a, *a", "!!int ''", "!!bool x", "!!timestamp x", "!!python/object/apply:os.getcwd []",
    "!!binary x", "!!float '.'", "!!set {a}", "? [a]", "{", "}", "[", "]", ": ", "- ", "| ", "> ", "---\n", "...",
    "%YAML 1.1\n", "<<: *a", "2026-02-30", "190:20:30", "0b_", "0x_", ".nan", "-.inf", "1e999", "9" * 5000, "'", '"',
    "\t", "# ", "\ufeff", "on", "[" * 200, "{a: " * 200, "~", "null", "5e-3", "lr", "seed", "shots", "preset", "model",
    "0x" + "f" * 5000, "..", ".x", "&a {b: *a}", "&a [&b [&c [x, x, x, x], *c, *c, *c], *b, *b, *b], *a, *a",
    "\"\\ud800\"", "\"\\0\"", "[1, 2]", "{lr: 1}", "seed: [0, 1]", "arms", "axes",
]  # fmt: skip

DTYPES = ["F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "X", ""]

Mutation = Callable[[bytes, random.Random], bytes]


def mutate(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Return `data` with one to four things wrong with it.

    Args:
        data: a file's content, which need not be valid any more.
        kind: ``json``, ``jsonl``, ``yaml``, ``safetensors``, ``text``; any other is damaged byte by byte.
        rng: decides.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        structured = STRUCTURED.get(kind)
        if structured is not None and rng.random() < 0.7:
            try:
                data = structured(data, rng)
                continue
            except (LookupError, ValueError, RecursionError, TypeError, AttributeError, struct.error):
                pass  # not to be parsed any more
        data = _bytes(data, rng)
    return data


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    where = rng.randrange(len(changed) + 1)
    end = min(len(changed), where + rng.choice((1, 2, 4, 8, 64)))
    how = rng.randrange(7)
    if how == 0 and where < len(changed):
        changed[where] ^= 1 << rng.randrange(8)
    elif how == 1:
        changed[where:end] = rng.randbytes(end - where)
    elif how == 2:
        del changed[where:end]
    elif how == 3:
        changed[where:where] = changed[where:end] * rng.choice((1, 2, 50))
    elif how == 4:
        del changed[where:]
    elif how == 5:
        changed[where:end] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1)))
    else:
        changed[where:where] = str(rng.choice(NASTY)).encode("utf-8", "surrogatepass")
    return bytes(changed)


def _change_value(value: Any, rng: random.Random) -> Any:
    """Return parsed JSON with one place in it changed: replaced, removed, renamed, repeated or nested."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(NASTY)
    holder, key = rng.choice(places)
    how = rng.randrange(8)
    if how < 4:
        holder[key] = copy.deepcopy(rng.choice(NASTY))
    elif how == 4:
        del holder[key]
    elif how == 5 and isinstance(holder, dict):
        holder[str(rng.choice(NASTY))] = holder.pop(key)
    elif how == 6:
        other, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    else:
        for _ in range(rng.choice((1, 3, 70, 400))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
    return value


def _places(value: Any) -> Any:
    """Yield every list or object with each of its positions or keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _json(data: bytes, rng: random.Random) -> bytes:
    changed = _change_value(json.loads(data), rng)
    return json.dumps(changed, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")


def _jsonl(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    index = rng.randrange(len(lines))
    how = rng.randrange(5)
    if how < 3:
        lines[index] = _json(lines[index], rng)
    elif how == 3:
        lines[index:index] = [lines[rng.randrange(len(lines))]]
    else:
        del lines[index]
    return b"\n".join(lines) + b"\n"


def _yaml(data: bytes, rng: random.Random) -> bytes:
    """Return the lines of a YAML file with a value, a line or a few characters changed."""
    lines = data.decode().split("\n")
    index = rng.randrange(len(lines))
    key, colon, _ = lines[index].partition(":")
    token = rng.choice((rng.choice(YAML_TOKENS), json.dumps(rng.choice(NASTY))))
    how = rng.randrange(4)
    if how < 2 and colon:
        lines[index] = f"{key}: {token}"
    elif how == 2:
        lines.insert(index, f"{rng.choice((token, 'a'))}: {token}")
    else:
        where = rng.randrange(len(lines[index]) + 1)
        lines[index] = lines[index][:where] + token + lines[index][where:]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file: a JSON object whose metadata holds JSON of its own."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.randrange(6)
    if how < 3 and header.get("__metadata__"):
        key = rng.choice(list(header["__metadata__"]))
        inner = _change_value(json.loads(header["__metadata__"][key]), rng)
        header["__metadata__"][key] = json.dumps(inner)
    elif how == 3:
        tensor = header[rng.choice([name for name in header if name != "__metadata__"])]
        what = rng.choice(("dtype", "shape", "data_offsets"))
        tensor[what] = (
            rng.choice(DTYPES)
            if what == "dtype"
            else [rng.choice((0, 1, 2, 24, 2**40)) for _ in range(rng.randrange(4))]
        )
    elif how == 4:
        header = _change_value(header, rng)
    else:
        rest = _bytes(rest, rng)
    text = json.dumps(header).encode()
    claimed = len(text) if rng.random() < 0.95 else rng.choice((0, len(text) - 1, 2**24 + 1, 2**40, 2**64 - 1))
    return struct.pack("<Q", claimed) + text + rest


STRUCTURED: dict[str, Mutation] = {"json": _json, "jsonl": _jsonl, "yaml": _yaml, "safetensors": _safetensors}
