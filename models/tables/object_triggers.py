"""The triggers that keep the totals of objects (`models.tables.totals`).

Migration 0015 makes them. A change is a new statement beside these, and a new migration. A migration that has SQLite
make `objects` anew (Alembic's batch mode) must make them again.
"""

from __future__ import annotations

_SQLITE_ADD = """
  UPDATE object_totals
     SET objects = objects + 1, bytes = bytes + coalesce(NEW.size, 0), hashed = hashed + (NEW.checksum IS NOT NULL)
   WHERE machine = NEW.machine AND "group" = NEW."group" AND status = NEW.status;
  INSERT INTO object_totals (machine, "group", status, objects, bytes, hashed)
    SELECT NEW.machine, NEW."group", NEW.status, 1, coalesce(NEW.size, 0), NEW.checksum IS NOT NULL
     WHERE changes() = 0;"""
_SQLITE_TAKE = """
  UPDATE object_totals
     SET objects = objects - 1, bytes = bytes - coalesce(OLD.size, 0), hashed = hashed - (OLD.checksum IS NOT NULL)
   WHERE machine = OLD.machine AND "group" = OLD."group" AND status = OLD.status;"""
SQLITE = {
    "objects_added": f"CREATE TRIGGER objects_added AFTER INSERT ON objects BEGIN{_SQLITE_ADD} END",
    "objects_removed": f"CREATE TRIGGER objects_removed AFTER DELETE ON objects BEGIN{_SQLITE_TAKE} END",
    "objects_changed": f"""
CREATE TRIGGER objects_changed AFTER UPDATE OF machine, "group", status, size, checksum ON objects
  WHEN (OLD.machine, OLD."group", OLD.status, OLD.size, OLD.checksum IS NULL)
    IS NOT (NEW.machine, NEW."group", NEW.status, NEW.size, NEW.checksum IS NULL)
BEGIN{_SQLITE_TAKE}{_SQLITE_ADD} END""".strip(),
}
"""By name. They run once a row, and change the totals."""

POSTGRESQL_FUNCTION = """
CREATE FUNCTION dm_note_objects() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO object_changes (machine, "group", status, objects, bytes, hashed)
      SELECT machine, "group", status, count(*), coalesce(sum(size), 0), count(checksum)
        FROM new_rows GROUP BY machine, "group", status;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO object_changes (machine, "group", status, objects, bytes, hashed)
      SELECT machine, "group", status, -count(*), -coalesce(sum(size), 0), -count(checksum)
        FROM old_rows GROUP BY machine, "group", status;
  ELSE
    INSERT INTO object_changes (machine, "group", status, objects, bytes, hashed)
      SELECT machine, "group", status, sum(sign), sum(sign * coalesce(size, 0)), sum(sign * hashed)
        FROM (SELECT machine, "group", status, size, (checksum IS NOT NULL)::integer AS hashed, 1 AS sign FROM new_rows
              UNION ALL
              SELECT machine, "group", status, size, (checksum IS NOT NULL)::integer, -1 FROM old_rows) AS changed
       GROUP BY machine, "group", status
      HAVING sum(sign) <> 0 OR sum(sign * coalesce(size, 0)) <> 0 OR sum(sign * hashed) <> 0;
  END IF;
  RETURN NULL;
END $$""".strip()
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

STATEMENTS = {"sqlite": [*SQLITE.values()], "postgresql": [POSTGRESQL_FUNCTION, *POSTGRESQL.values()]}
"""What makes them on each kind of database, in order."""
