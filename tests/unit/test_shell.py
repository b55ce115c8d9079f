"""The shell programs as they reach a machine: one line that a POSIX shell reads, and that a csh passes on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from datamanager.transports.remote import running
from datamanager.transports.remote.running import joined, script, shell_words

SCRIPTS = sorted((Path(running.__file__).parent / "scripts").glob("*.sh"))
NAMES = [path.stem for path in SCRIPTS]


def output(program: str, *words: str) -> str:
    ran = subprocess.run(["sh", "-c", program, "sh", *words], check=True, capture_output=True, text=True)
    return ran.stdout


@pytest.mark.parametrize(
    "program",
    [
        "#!/bin/sh\n# a comment; it goes\n\necho a\n    echo b\n",
        "if [ $# = 1 ]; then\n    echo one\nelse\n    echo none\nfi\necho after\n",
        "for x in 1 2; do\n    echo $x\ndone\n",
        "for x in 1 2\ndo\n    echo $x\ndone\n",
        "case $1 in\n    a) echo is a\n        echo still ;;\n    *) echo other ;;\nesac\n",
        "{\n    echo a\n    echo b\n} |\n# between\nsort -r\n",
        "x=$( {\n    echo a\n    (echo b)\n} )\necho $x\n",
        "true &&\n    echo and\nfalse ||\n    echo or\n",
        "sleep 0 &\np=$!\nwait $p\necho $?\n",
        "echo do\necho in\necho then\n",
    ],
)
def test_joined_does_what_the_lines_do(program: str) -> None:
    line = joined(program)
    assert "\n" not in line
    for words in ([], ["a"]):
        assert output(line, *words) == output(program, *words)


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_script_is_one_line_for_any_login_shell(path: Path) -> None:
    line = script(path.stem)
    assert "\n" not in line
    assert not re.search(r"!(?! )", line), "a csh takes it for its history"
    assert not re.search(r"(^|\s)#", line), "a comment would hide what follows"
    for program in (line, path.read_text(encoding="utf-8")):
        subprocess.run(["sh", "-n", "-c", program], check=True)


def test_shell_words_are_a_command_line() -> None:
    words = shell_words("run", ["printf", "%s|", "a b", "$(id)", ""])
    ran = subprocess.run(words, check=True, capture_output=True, text=True)
    pid, said = ran.stdout.split("\n", 1)
    assert re.fullmatch(r"dm-pid \d+", pid)
    assert said == "a b|$(id)||"
