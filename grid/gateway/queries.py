"""What a reader asks for in an address: pages, words, tags, choices. Everything is bounded, and errors name what is wrong."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from grid.display import printable
from grid.errors import InvalidRequest
from grid.gateway.announcements import MAX_TAG, MAX_TAGS
from grid.gateway.index import MAX_QUERY

MAX_NUMBER = 9
"""Digits of a number."""


def number_of(request: web.Request, name: str, default: int, most: int) -> int:
    """A number from 1 to `most`; raises `InvalidRequest` for anything else."""
    text = request.query.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER and int(text) > 0):
        raise InvalidRequest(f"{name} is a number of 1 or more, not {printable(text[:40])!r}")
    return min(int(text), most)


def page_number(request: web.Request) -> int:
    """`page`, from 1."""
    return number_of(request, "page", 1, 10**MAX_NUMBER)


def query_of(request: web.Request) -> str:
    """`q`, what a person typed into a search field."""
    return request.query.get("q", "")[:MAX_QUERY].strip()


def tags_of(request: web.Request) -> list[str]:
    """Every `tag` by which the reader filters, once."""
    return list(dict.fromkeys(tag[: MAX_TAG + 1] for tag in request.query.getall("tag", [])[:MAX_TAGS]))


def choice_of(request: web.Request, name: str, choices: Collection[str]) -> str:
    """One of the choices, "" where nothing was chosen; raises `InvalidRequest` for anything else."""
    chosen = request.query.get(name, "")
    if chosen and chosen not in choices:
        raise InvalidRequest(f"{name} is one of {', '.join(choices)}, not {printable(chosen[:40])!r}")
    return chosen
