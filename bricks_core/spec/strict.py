"""The two kinds of models that the contract is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

HOLDS_SECRET = "holds_secret"
"""The type of a validator's error about what must not be repeated in its message."""


class Strict(BaseModel):
    """A part of the run file: frozen, and a key it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Row(BaseModel):
    """A row of a table. Its fields are the table's columns, their types the columns' types (storage/tables.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    """Names the row for good; made from content, so the same thing has the same id everywhere."""
