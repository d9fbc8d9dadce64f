"""Pico-dollars in SQL: exact whatever the size, on both databases.

2^63 pico-dollars are 9.2 million dollars, so BIGINT does not do. SQLite has nothing wider and would turn a
larger number into a float in silence; there the digits are kept as text. Hence no SUM over these columns:
quantities are summed in SQL (they fit), and multiplied and added up in Python.
"""

from typing import Any

from sqlalchemy import Dialect, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine


class Pico(TypeDecorator[int]):
    """An integer of up to 38 digits."""

    impl = Numeric(38, 0)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric(38, 0))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        assert value is None or type(value) is int, f"money is an integer, got {value!r}"
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)
