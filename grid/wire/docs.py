"""Write `docs/reference/protocol.md` from the table of messages, the table of states and the constants of this package.

    python -m grid.wire.docs [FILE]
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from grid.wire import args, codec, dtypes, frames, jobs, messages, records, session, window
from grid.wire.answers import MAX_ANSWER_BYTES, MAX_ANSWERS
from grid.wire.messages import MESSAGES, Message
from grid.wire.states import TRANSITIONS, Event, State

_HEAD = """\
# Protocol

Made from `grid/wire` by `make docs`. Version {newest}; the oldest version that is understood is {oldest}.

Peers exchange binary frames over a transport that keeps their order and boundaries. All integers of a frame's prefix are
little-endian. A message travels whole or in chunks.

## Whole frames

| bytes | |
|---|---|
| 4 | 1 |
| 4 | length of the header |
| length | header, in msgpack: `[tag, id, remaining_ms, field, field, ...]` |
| 0 to 7 | zeros up to a multiple of 8, where buffers follow |
| rest | buffers in the order of the fields that describe them, each followed by zeros up to a multiple of 8 |

`id` is 0 for a one-way message, the request's id (odd from the side that dialed, even from the other, rising) for a request,
and minus the request's id for the answer. `remaining_ms` is how long the sender of a request still waits, 0 for the receiver's
default.

A record is the list of its fields' values. Fields at the end that have defaults may be missing, and up to {newer} that are not
known are ignored: they come from a newer version. A `TensorFrame` stands in the header as `[dtype, shape]` and a `Buffer` as its
length; their bytes are among the buffers. Floats of fields are finite. Integers fit 64 bits with sign.

| dtype | bytes of an element |
|---|---|
{dtypes}

Arguments (`Arg`) are null, bool, integer, float, text, lists of these up to {depth} levels deep, and four extension types:

| type | content | meaning |
|---|---|---|
| 1 | 8 bytes | `Ref`: an object; in a plan, a value |
| 2 | 8 bytes | `Inline`: a tensor of the message |
| 3 | text | `DType` |
| 4 | text | `MemoryFormat`: {formats} |

## Chunks

A frame of more than {whole} bytes is cut into chunk frames:

| bytes | |
|---|---|
| 4 | 2 |
| 4 | number of the chunked message, counted from 0 by its sender |
| 8 | offset of the piece in the whole frame |
| 8 | length of the whole frame |
| rest | the piece, {chunk} bytes in all chunks but the last |

Pieces follow one another without a gap. Nothing comes between the chunks of one message but `ping`, `pong`, `credit` and
`goodbye`, which overtake all others at any time. Everything else arrives in the order in which it was sent.

## Credit

A frame of more than {small} bytes spends its length of the credit that its receiver gave. Each side gives `window_bytes`
(at least {window}) once both have said hello, and gives back what arrives while the work on large messages that it has
delivered fits one window.

## Limits

| what | at most |
|---|---|
| frame | {frame} bytes |
| header | {header} bytes |
| list in a header | {items} items |
| map in a header | {entries} entries |
| text | {text} characters |
| dimensions of a tensor | {dims} |
| product of a tensor's dimensions (0 counted as 1) | {elements} |
| answers kept for repeated requests | {answers}, of {answer} bytes each |

The sizes of messages and windows, the number of open requests and all times are in [settings.md](settings.md), in the tables
`session`. A frame that breaks a rule ends the session: `goodbye` with a `wire` error.

## States

```mermaid
stateDiagram-v2
    [*] --> NEW
{diagram}
```

{states}

{events}

## Messages
"""


def _table(rows: Iterator[str]) -> str:
    return "\n".join(rows)


def _diagram() -> Iterator[str]:
    for (state, event), target in TRANSITIONS.items():
        if target is not state:
            yield f"    {state.name} --> {target.name}: {event.name}"


def _text(cls: type) -> str:
    """A class's docstring in Markdown: its paragraphs, without the indentation of the source."""
    return inspect.cleandoc(cls.__doc__ or "")


def _fields(cls: type) -> Iterator[str]:
    for field in dataclasses.fields(cls):
        default = ""
        if field.default is not dataclasses.MISSING:
            default = f" = `{field.default!r}`"
        elif field.default_factory is not dataclasses.MISSING:
            default = f" = `{field.default_factory()!r}`"
        yield f"- `{field.name}`: `{field.type}`{default}"


def _records() -> Iterator[type]:
    """The classes that are parts of messages, in the order of the source."""
    for module in (messages, jobs):
        for value in vars(module).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and not issubclass(value, Message):
                if value.__module__ == module.__name__:
                    yield value


def _entries() -> Iterator[str]:
    for tag, cls in MESSAGES.items():
        yield "\n".join([f"### `{tag}` ({cls.__name__})", "", _text(cls), "", *_fields(cls)]).rstrip()
    yield "## Records"
    for record in _records():
        yield "\n".join([f"### {record.__name__}", "", _text(record), "", *_fields(record)]).rstrip()


def protocol_page() -> str:
    """The text of `docs/reference/protocol.md`."""
    head = _HEAD.format(
        newest=session.NEWEST_VERSION,
        oldest=session.OLDEST_VERSION,
        newer=records.MAX_NEWER_FIELDS,
        dtypes=_table(f"| {name} | {size} |" for name, size in dtypes.DTYPES.items()),
        depth=args.MAX_DEPTH,
        formats=", ".join(f"`{name}`" for name in sorted(args.MEMORY_FORMATS)),
        whole=frames.WHOLE_BYTES,
        chunk=frames.CHUNK_BYTES,
        small=frames.SMALL_BYTES,
        window=window.MIN_WINDOW_BYTES,
        frame=frames.MAX_FRAME_BYTES,
        header=codec.MAX_HEADER_BYTES,
        items=codec.MAX_LIST,
        entries=codec.MAX_MAP,
        text=messages.BOUNDED_TEXT,
        dims=dtypes.MAX_DIMS,
        elements=dtypes.MAX_ELEMENTS,
        answers=MAX_ANSWERS,
        answer=MAX_ANSWER_BYTES,
        diagram=_table(_diagram()),
        states=_table(f"- `{state.name}`: {state.value}" for state in State),
        events=_table(f"- `{event.name}`: {event.value}" for event in Event),
    )
    return re.sub(r"\n{3,}", "\n\n", head + "\n" + "\n\n".join(_entries())) + "\n"


def main(arguments: list[str]) -> None:
    """Write the page to the file named, or to `docs/reference/protocol.md`."""
    Path(arguments[0] if arguments else "docs/reference/protocol.md").write_text(protocol_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
