"""overheard: what a speech recogniser's training updates give away about the people who spoke, and what stops it.

`overheard.audit(model, utterances)` is the whole of it on what is in memory; see `overheard.notebook.audit`.

Dimension key, used in every annotation: `N` batch, `T` frames, `T_out` output frames, `F` features, `V` symbols,
`L` labels, `S` samples. Lengths are integers in frames or samples, never fractions.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from overheard.notebook import audit as audit
else:
    import overheard.audit

    class _AuditPackage(ModuleType):
        """The package `overheard.audit`, which is also the function of that name: importing a part of the package
        puts the package where the function would stand, so the package itself is called."""

        def __call__(self, *positional: Any, **settings: Any) -> Any:
            from overheard.notebook import audit

            return audit(*positional, **settings)

    overheard.audit.__class__ = _AuditPackage
