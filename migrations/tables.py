"""Imports every package's tables, so that `core.database.metadata` is whole."""

import access.tables
import billing.payments.tables
import billing.tables
import catalog.tables
import core.audit
import core.changes
import metering.tables
import serving.online.tables
import serving.tables
import webhooks.tables
from core.database import metadata

TABLES = (
    access.tables,
    billing.payments.tables,
    billing.tables,
    catalog.tables,
    core.audit,
    core.changes,
    metering.tables,
    serving.online.tables,
    serving.tables,
    webhooks.tables,
)

__all__ = ["metadata"]
