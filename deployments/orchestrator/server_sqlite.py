"""Prefect's SQLite database, with writing transactions that wait for each other instead of failing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WritesImmediately(AioSqliteConfiguration):
    """Every explicit transaction begins IMMEDIATE; what only reads begins none, as before."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - Prefect's signature
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction that has the right to write from its start (https://sqlite.org/lang_transaction.html)."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # it begins now
            token = SQLITE_BEGIN_MODE.set(None)  # not what reads beside it: that would wait for this one for ever
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(token)
