"""The architecture's registration with SAELens, when SAELens is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_with_saelens"]

_SAELENS = "sae_lens"
_REGISTERING = "sae_lens_hierarchical.saes"


def register_with_saelens() -> None:
    """Register now if SAELens is loaded, and otherwise right after it has been.

    Loading SAELens takes seconds: ``--help`` and the loss alone need not wait for it.
    """
    if sys.modules.get(_SAELENS) is not None:
        import_module(_REGISTERING)
    elif not any(isinstance(finder, _AfterSAELens) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterSAELens())


class _AfterSAELens(MetaPathFinder):
    """Finds SAELens as the other finders do, and has it followed by us."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _SAELENS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _AfterSAELens):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ThenRegister(spec.loader)
                return spec
        return None


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on nothing shows that another loader was in between.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        import_module(_REGISTERING)
        # Not before: SAELens may be looked for only, or fail to load at first.
        sys.meta_path[:] = [
            finder for finder in sys.meta_path if not isinstance(finder, _AfterSAELens)
        ]
