"""How far a payer goes ahead of a node with one voucher. Pure; amounts in base units.

With a stranger one voucher covers what was charged and the maxima in flight, no more (W = 1). With
a node that has delivered, it covers the next W maxima and is sent again as it is until they are
used up: no signature on either side. What lies beyond the maxima in flight, the slack, is what the
node could claim without work. So it never exceeds what the payer allows for one node, nor what
this node has honestly earned from it before: a node that runs off gains no more than it gave up.
"""

from __future__ import annotations

from typing import Final

from inferpool.protocol.value import value


@value
class Window:
    """`maxima` (W) of one request, and at most `units` base units of slack."""

    maxima: int = 1
    units: int = 0

    def limit(self, earned: int) -> int:
        """The most slack with a node that earned so much from this payer without a fault."""
        return min(self.units, earned) if self.maxima > 1 else 0

    def slack(self, maximum: int, earned: int) -> int:
        """What a new voucher covers beyond the request that it is signed for."""
        return min((self.maxima - 1) * maximum, self.limit(earned))


STRANGER: Final = Window()
