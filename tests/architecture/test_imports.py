"""Importing a module does nothing: no connection, no thread, no process, no file written, no environment read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ["datamanager", "models", "api", "flows", "deployments"]

# Runs in an interpreter of its own. First the libraries, which may do as they like; then ours, watched.
SCRIPT = """
import ast, importlib, json, os, pathlib, sys, threading

ROOT, packages = pathlib.Path(sys.argv[1]), sys.argv[2:]
ours = []
for package in packages:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" not in parts and parts[-1] != "__main__":
            ours.append((".".join(parts).removesuffix(".__init__"), path))

def statements(body):
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):  # what is imported there is not imported now
            yield node
            yield from statements([one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)])

for _, path in ours:
    for node in statements(ast.parse(path.read_text()).body):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            module, _, attribute = name.rpartition(".")
            if name.partition(".")[0] not in packages and not hasattr(sys.modules.get(module), attribute):
                try:
                    importlib.import_module(name)
                except ImportError:
                    pass  # a name for type checkers, or a module of another Python

seen = []
WATCHED = ("socket.connect", "socket.bind", "socket.__new__", "subprocess.Popen", "os.fork", "os.mkdir", "os.remove",
           "os.putenv", "sqlite3.connect")
importing = False

def hook(event, args):
    if importing and event in WATCHED:
        seen.append(f"{event} {args!r}"[:200])
    elif importing and event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open {args!r}"[:200])

class Environment(dict):
    def __getitem__(self, key):
        self.look(key)
        return super().__getitem__(key)
    def get(self, key, default=None):
        self.look(key)
        return super().get(key, default)
    def __contains__(self, key):
        self.look(key)
        return super().__contains__(key)
    def __iter__(self):
        self.look("(all)")
        return super().__iter__()
    def look(self, key):
        callers = [sys._getframe(2).f_code.co_filename, sys._getframe(3).f_code.co_filename]  # os.getenv stands between
        if importing and any(caller.startswith(folders) for caller in callers):
            seen.append(f"environment {key} read in {callers}")

folders = tuple(f"{ROOT / package}/" for package in packages)
sys.addaudithook(hook)
os.environ = Environment(os.environ)
threads = threading.active_count()
importing = True
for name, _ in ours:
    importlib.import_module(name)
importing = False
new = [thread.name for thread in threading.enumerate()][threads:]
print(json.dumps({"modules": len(ours), "seen": seen, "threads": new}))
"""


def python(tmp_path: Path, script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own, with next to nothing in its environment; return what it prints."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-B", "-c", script, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    answer = json.loads(python(tmp_path, SCRIPT, str(ROOT), *PACKAGES))
    assert answer["modules"] > len(PACKAGES)
    assert answer["seen"] == []
    assert answer["threads"] == []


def test_the_library_needs_nothing_of_the_application(tmp_path: Path) -> None:
    """The wheel's users have neither Prefect nor FastAPI."""
    script = """
import importlib, pkgutil, sys, datamanager
for module in pkgutil.walk_packages(datamanager.__path__, "datamanager."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
application = {"prefect", "fastapi", "alembic", "psycopg", "api", "flows", "models", "deployments"}
print(sorted(application & set(sys.modules)))
"""
    assert python(tmp_path, script) == "[]\n"
