"""The triggers that keep the totals of objects (`models.tables.totals`).

Migration 0019 makes them; those that 0015 makes know no persons. A change is new statements beside these, and a new
migration. A migration that has SQLite make `objects` anew (Alembic's batch mode) must make them again.
"""

from __future__ import annotations

_KEY = {"machine": "{row}machine", '"group"': '{row}"group"', "status": "{row}status"}
_PERSONS = {"person": "coalesce({row}created_by, '')"}
"""By the columns of totals, what they are of a row of objects."""


def _sqlite(key: dict[str, str]) -> dict[str, str]:
    """Return SQLite's triggers, by name. They run once a row, and change the totals."""

    def of(row: str) -> list[str]:
        return [value.format(row=f"{row}.") for value in key.values()]

    def mine(row: str) -> str:
        return " AND ".join(f"{name} = {value}" for name, value in zip(key, of(row), strict=True))

    add = f"""
  UPDATE object_totals
     SET objects = objects + 1, bytes = bytes + coalesce(NEW.size, 0), hashed = hashed + (NEW.checksum IS NOT NULL)
   WHERE {mine("NEW")};
  INSERT INTO object_totals ({", ".join(key)}, objects, bytes, hashed)
    SELECT {", ".join(of("NEW"))}, 1, coalesce(NEW.size, 0), NEW.checksum IS NOT NULL
     WHERE changes() = 0;"""  # noqa: S608  # of the names above
    take = f"""
  UPDATE object_totals
     SET objects = objects - 1, bytes = bytes - coalesce(OLD.size, 0), hashed = hashed - (OLD.checksum IS NOT NULL)
   WHERE {mine("OLD")};"""  # noqa: S608
    watched = [*(name for name in key if name != "person"), *(["created_by"] if "person" in key else []), "size"]
    before, after = ([*of(row), f"{row}.size", f"{row}.checksum IS NULL"] for row in ("OLD", "NEW"))
    return {
        "objects_added": f"CREATE TRIGGER objects_added AFTER INSERT ON objects BEGIN{add} END",
        "objects_removed": f"CREATE TRIGGER objects_removed AFTER DELETE ON objects BEGIN{take} END",
        "objects_changed": f"""
CREATE TRIGGER objects_changed AFTER UPDATE OF {", ".join(watched)}, checksum ON objects
  WHEN ({", ".join(before)})
    IS NOT ({", ".join(after)})
BEGIN{take}{add} END""".strip(),
    }


def _postgresql_function(key: dict[str, str]) -> str:
    names, values = ", ".join(key), ", ".join(value.format(row="") for value in key.values())
    columns = ", ".join(f"{value.format(row='')} AS {name}" for name, value in key.items())
    return f"""
CREATE FUNCTION dm_note_objects() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO object_changes ({names}, objects, bytes, hashed)
      SELECT {values}, count(*), coalesce(sum(size), 0), count(checksum)
        FROM new_rows GROUP BY {values};
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO object_changes ({names}, objects, bytes, hashed)
      SELECT {values}, -count(*), -coalesce(sum(size), 0), -count(checksum)
        FROM old_rows GROUP BY {values};
  ELSE
    INSERT INTO object_changes ({names}, objects, bytes, hashed)
      SELECT {names}, sum(sign), sum(sign * coalesce(size, 0)), sum(sign * hashed)
        FROM (SELECT {columns}, size, (checksum IS NOT NULL)::integer AS hashed, 1 AS sign FROM new_rows
              UNION ALL
              SELECT {columns}, size, (checksum IS NOT NULL)::integer, -1 FROM old_rows) AS changed
       GROUP BY {names}
      HAVING sum(sign) <> 0 OR sum(sign * coalesce(size, 0)) <> 0 OR sum(sign * hashed) <> 0;
  END IF;
  RETURN NULL;
END $$""".strip()  # noqa: S608  # of the names above


POSTGRESQL = {
    "objects_added": """
CREATE TRIGGER objects_added AFTER INSERT ON objects
  REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dm_note_objects()""".strip(),
    "objects_removed": """
CREATE TRIGGER objects_removed AFTER DELETE ON objects
  REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION dm_note_objects()""".strip(),
    "objects_changed": """
CREATE TRIGGER objects_changed AFTER UPDATE ON objects
  REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
  EXECUTE FUNCTION dm_note_objects()""".strip(),
}
"""By name. They run once a statement, however many rows that touches, and note what it changed."""


def _statements(key: dict[str, str]) -> dict[str, list[str]]:
    return {
        "sqlite": [*_sqlite(key).values()],
        "postgresql": [_postgresql_function(key), *POSTGRESQL.values()],
    }


SQLITE = _sqlite(_KEY | _PERSONS)
STATEMENTS_0015, STATEMENTS = _statements(_KEY), _statements(_KEY | _PERSONS)
"""What makes them on each kind of database, in order: by machine, group and status, and by person too."""
