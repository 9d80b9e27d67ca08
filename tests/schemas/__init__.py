"""Whether an API server, strict as it can be asked to be, would take what we render: `valid` and `mistakes`."""

from tests.schemas.strict import documents, mistakes, valid

__all__ = ["documents", "mistakes", "valid"]
