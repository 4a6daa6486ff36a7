"""What lets a result on shares leave a node: the rules of all owners behind it."""

from __future__ import annotations

from collections.abc import Callable

from grid.errors import ReleaseDenied
from grid.ids import PeerId
from grid.node.party_messages import ShareOffer
from grid.policy.rules import OPEN
from grid.wire.messages import ShareValue


def released(offer: ShareOffer, name_of: Callable[[PeerId], str]) -> ShareValue:
    """The party's part of a result, for the client that asked. Raises `ReleaseDenied` unless all owners' rules let it go.

    `name_of` says what a node is called.
    """
    for owner in offer.owners:
        if owner.rule.release != OPEN:
            name = name_of(owner.node)
            raise ReleaseDenied(
                f"the result depends on rows of dataset {owner.rule.dataset!r} of node {name}, whose owner's rule for"
                f" releases is {owner.rule.release!r}; results on shares leave under \"open\" alone for now. Results of plans"
                " that the owner lists in `allow` come in a later version",
                rule="committee.release",
                dataset=owner.rule.dataset,
                node=name,
                instead="pointers, plans and grid.sum on that dataset, under its own rules",
            )
    return ShareValue(words=offer.words, digest=offer.digest)
