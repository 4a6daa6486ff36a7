"""The sum of what P0 knows and what P1 and P2 know, bit by bit, begun with groups of planes.

P0 knows m = x0 + x1, and P1 and P2 know n = x2. For groups of planes of m + n two rounds give the carry out of a group, G, and
whether it hands on a carry, P: both are linear in the products of m's bits in the group, with coefficients that P1 and P2 know.

    round 1   of the products M: s0 = F(k0) [P0, P2], P0 -> P1: s1 = M xor s0, which shares M by XOR as (s0, s1, 0)
    round 2   P1 takes the linear map of s1, P2 that of s0: P1 -> P2: eB = L(s1) xor F(k1); P2 -> P1: eH = L(s0) xor F(k0);
              L(M) = (F(k0), F(k1), eB xor eH)

Groups of four planes have 15 products in the place of four bits, and then need two levels of a tree less: fewer rounds, and fewer
bytes too. p = m xor n is local: (s0, s1, n), of the rows that are single bits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from grid.smpc.kernels import bits, groups
from grid.smpc.link import Words
from grid.smpc.party import A, B, H, Party
from grid.smpc.replicated import networks
from grid.smpc.shares import Bits

GROUP = networks.GROUP

SHARE, CARRY, TREE = 16, 17, 18
"""Purposes of keystreams."""

SHARE_STEP, CARRY_STEP, TREE_STEP = 0, 1, 2
"""Steps of messages."""

_NOTHING = np.empty(0, np.uint64)


class Wanted(NamedTuple):
    """The rows in which G and P come, by the plane up to which they are: -1 where they do not."""

    g_rows: bits.Indices
    p_rows: bits.Indices

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.g_rows >= 0) + np.count_nonzero(self.p_rows >= 0))


class Addends(NamedTuple):
    """What a party has of m and n after the first round: of the products of m one component (two for P0), and n's planes."""

    rows: tuple[Words, ...]
    known: Words


@cache
def whole(planes: int, group: int, with_g: bool = True) -> Wanted:
    """Of whole groups: G of all, then P of all but the lowest one; or P of all of them alone."""
    g_rows, p_rows = np.full(planes, -1), np.full(planes, -1)
    last = np.minimum(np.arange(0, planes, group) + group, planes) - 1
    if not with_g:
        p_rows[last] = np.arange(last.size)
        return Wanted(g_rows, p_rows)
    g_rows[last] = np.arange(last.size)
    p_rows[last[1:]] = last.size + np.arange(last.size - 1)
    return Wanted(g_rows, p_rows)


@cache
def every(planes: int, group: int) -> Wanted:
    """Up to each plane: G, then P of all groups but the lowest one."""
    p_rows = np.full(planes, -1)
    p_rows[group:] = np.arange(planes, max(planes, 2 * planes - group))
    return Wanted(np.arange(planes), p_rows)


def product_rows(planes: int, group: int) -> int:
    """How many products the groups of so many planes have."""
    return planes // group * ((1 << group) - 1) + (1 << planes % group) - 1


def single_rows(planes: int, group: int) -> bits.Indices:
    """The rows of single bits of so many planes, and of one plane after them, which is no part of a group."""
    j = np.arange(planes)
    return np.append(j // group * ((1 << group) - 1) + (1 << j % group) - 1, product_rows(planes, group))


async def addends(party: Party, operation: int, x: tuple[Words, Words], planes: int, grouped: int) -> Addends:
    """m by the products of its lowest `grouped` planes in groups, and by further planes up to `planes`; and n. 1 round."""
    role, words = party.role(operation), x[0].size // 64
    known = np.empty((planes, words), np.uint64)
    shape = (product_rows(grouped, GROUP) + planes - grouped, words)
    count = shape[0] * words
    if role == A:
        bits.slice_bits(*x, known)
        s0 = party.draw(0, operation, SHARE, count).reshape(shape)
        s1 = np.empty(shape, np.uint64)
        groups.products(known, grouped, GROUP, s0, s1)
        party.send(party.at(operation, B), operation, SHARE_STEP, s1.reshape(-1))
        return Addends((s0, s1), known)
    bits.slice_bits(x[1 if role == B else 0], _NOTHING, known)
    if role == B:
        s1 = await party.receive(party.at(operation, A), operation, SHARE_STEP, count)
        return Addends((s1.reshape(shape),), known)
    return Addends((party.draw(0, operation, SHARE, count).reshape(shape),), known)


def sums(party: Party, operation: int, given: Addends, rows: bits.Indices | slice, planes: bits.Indices | slice) -> Bits:
    """p = m xor n of these planes, whose bits of m stand in these rows. No message."""
    role, own = party.role(operation), [part[rows] for part in given.rows]
    if role == A:
        return Bits(*own)
    return Bits(own[0], given.known[planes]) if role == B else Bits(given.known[planes], own[0])


async def carries(party: Party, operation: int, given: Addends, wanted: Wanted) -> Bits:
    """G and P of groups, or within them. 1 round."""
    role, shape = party.role(operation), (wanted.rows, given.known.shape[1])
    if role == A:
        return Bits(*(_hidden(party, operation, component, shape) for component in (0, 1)))
    other = party.at(operation, H if role == B else B)
    hidden = _hidden(party, operation, 1 if role == B else 0, shape)
    one = np.uint64(0xFFFFFFFFFFFFFFFF if role == B else 0)
    ours = np.empty(shape, np.uint64)
    groups.carries(given.rows[0], given.known, one, GROUP, *wanted, hidden, ours)
    party.send(other, operation, CARRY_STEP, ours.reshape(-1))
    joint = ours ^ (await party.receive(other, operation, CARRY_STEP, ours.size)).reshape(shape)
    return Bits(hidden, joint) if role == B else Bits(joint, hidden)


def _hidden(party: Party, operation: int, component: int, shape: tuple[int, int]) -> Words:
    return party.draw(component, operation, CARRY, shape[0] * shape[1]).reshape(shape)


def tree_draws(party: Party, operation: int, rows: int, words: int) -> tuple[Words, Words]:
    """F(k_i) and F(k_(i+1)) for all levels of a tree, each of which takes the next rows."""
    role, count = party.role(operation), rows * words
    own, following = (party.draw(component, operation, TREE, count) if count else _NOTHING for component in (role, role + 1))
    return own.reshape(rows, words), following.reshape(rows, words)
