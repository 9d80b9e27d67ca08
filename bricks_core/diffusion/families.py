"""The families there are, and which one a network is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bricks_core.diffusion.family import Family
from bricks_core.errors import SpecError
from bricks_core.spec.train import ModelSpec, STDiT2Spec, WanSpec


def family_of(about: ModelSpec | Mapping[str, Any]) -> Family:
    """The family that a run file's train.model names, or the config.json of a checkpoint.

    Raises SpecError: a config.json of a network that we have no family for.
    """
    # A family brings its libraries with it, so it is loaded when it is needed.
    names = [about.family] if isinstance(about, STDiT2Spec | WanSpec) else _networks_named(about)
    if "wan" in names or "WanTransformer3DModel" in names:
        from bricks_core.diffusion.family_wan import WanFamily

        return WanFamily(about.shift) if isinstance(about, WanSpec) else WanFamily()
    if "stdit2" in names or "STDiT2" in names:
        from bricks_core.diffusion.family_stdit2 import STDiT2Family

        return STDiT2Family()
    raise SpecError(
        f"The checkpoint's config.json names {', '.join(names) or 'no network'}, and those that can be used are STDiT2 "
        "and WanTransformer3DModel: take a checkpoint of one of these."
    )


def _networks_named(config: Mapping[str, Any]) -> list[str]:
    """As transformers and as diffusers write it."""
    return [str(name) for name in (config.get("_class_name"), *(config.get("architectures") or ())) if name]
