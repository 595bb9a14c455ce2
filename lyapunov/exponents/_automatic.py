"""The default: whatever method the declared structure allows."""

from ._method import AbstractChoice
from ._qr import QR


class Automatic(AbstractChoice):
    """Choose the method that the recurrence's structure allows; this is the default.

    - Diagonal: `ClosedForm()`, the means of the log decays.
    - One decay a head: `ClosedForm()`, once a head.
    - On the keys of each head: `OnKeys()`, once for all rows of its state.
    - Block triangular: `ByBlocks()`, each diagonal block by its own method.
    - Nothing declared, or a plain step: `QR()`.

    `SpectrumResult.method` names the one that was chosen.
    """

    def dense(self):
        """Make `QR()`."""
        return QR()

    def name(self, system):
        """Tell which method was chosen."""
        return self.chosen(system).name(system)
