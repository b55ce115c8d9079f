"""What FastAPI's tutorial makes of a catalogue (https://fastapi.tiangolo.com/tutorial/sql-databases/): a model, a
session for each request, an insert that is committed. It looks at no file, claims nothing and notifies nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import JSON, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    """The tables."""


class Item(Base):
    """A row with the fields that a registration has."""

    __tablename__ = "items"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    machine: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    filename: Mapped[str] = mapped_column(index=True)
    size: Mapped[int]
    description: Mapped[str]
    originator: Mapped[str]
    group: Mapped[str] = mapped_column(index=True)
    meta: Mapped[dict[str, Any]] = mapped_column(JSON)


class NewItem(BaseModel):
    """The body of a request."""

    machine: str
    path: str
    filename: str
    size: int
    description: str
    originator: str
    group: str
    metadata: dict[str, Any]


class Created(BaseModel):
    """The answer."""

    uuid: UUID


engine = create_engine(f"sqlite:///{os.environ['ITEMS_DB']}", connect_args={"check_same_thread": False})
Base.metadata.create_all(engine)
app = FastAPI()


def session_of_request() -> Iterator[Session]:
    """Give a request its session."""
    with Session(engine) as session:
        yield session


@app.put("/items", status_code=201)
def create(item: NewItem, session: Annotated[Session, Depends(session_of_request)]) -> Created:
    """Insert a row."""
    row = Item(**item.model_dump(exclude={"metadata"}), meta=item.metadata)
    session.add(row)
    session.commit()
    session.refresh(row)
    return Created(uuid=row.id)


@app.get("/health")
def health() -> str:
    """Say that it serves."""
    return "ok"
