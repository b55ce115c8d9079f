"""What describes how it is run names things that exist: compose file, images, units, prefect.yaml."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamanager.domain.retention_rules import parse_rules
from datamanager.machines import load_machines
from datamanager.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
IMAGES = DEPLOYMENTS / "images"
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MOVER_HOST: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "compose.mover.yaml").read_text(encoding="utf-8"))
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}


def modules_run_by(command: list[str]) -> list[str]:
    """Return the modules that a command starts with `python -m`."""
    return [word for option, word in pairwise(command) if option == "-m"]


def assert_is_an_entry_point(module: str) -> None:
    """Fail unless `python -m module` finds something that runs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations is not None:  # a package runs its __main__
        spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec is not None, f"the package {module} does not run"
    if module.startswith("deployments."):
        assert spec.origin is not None
        assert 'if __name__ == "__main__":' in Path(spec.origin).read_text(encoding="utf-8"), f"{module} does nothing"


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if service.get("image") == "data-manager"])
def test_every_service_of_the_application_runs_an_entry_point(name: str) -> None:
    service = SERVICES[name]
    modules = modules_run_by(service["command"])
    assert modules, f"{name} runs no module"
    for module in modules:
        assert_is_an_entry_point(module)
    unknown = {key for key in service.get("environment", {}) if key.startswith(PREFIX)} - SETTINGS
    assert not unknown


def test_there_are_api_two_movers_and_what_they_need() -> None:
    assert {"api", "mover1", "mover2", "prefect", "postgres", "rabbitmq", "alpha", "beta"} <= set(SERVICES)


def test_a_mover_on_another_host_is_confined_as_those_beside_the_api_are() -> None:
    mover, other = MOVER_HOST["services"]["mover"], SERVICES["mover1"]
    same = ["image", "command", "stop_grace_period", "read_only", "tmpfs", "cap_drop", "security_opt"]
    assert {key: mover[key] for key in same} == {key: other[key] for key in same}
    assert mover["environment"].keys() == other["environment"].keys()
    assert "ports" not in mover


def test_what_a_mover_host_must_fill_in_is_asked_for() -> None:
    text = (DEPLOYMENTS / "compose.mover.yaml").read_text(encoding="utf-8")
    wanted = re.findall(r"\$\{(\w+):\?", text)
    example = (DEPLOYMENTS / "mover.env.example").read_text(encoding="utf-8")
    assert re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE) == [(name, "") for name in wanted]


def test_api_and_movers_read_the_same_rules_of_retention() -> None:
    for name in ("api", "mover1", "mover2"):
        mounted = [volume for volume in SERVICES[name]["volumes"] if volume.startswith("./retention.demo.toml:")]
        assert mounted == [f"./retention.demo.toml:{SERVICES[name]['environment']['DM_RETENTION']}:ro"]
    assert parse_rules((DEPLOYMENTS / "retention.demo.toml").read_text(encoding="utf-8")).rule == ()
    mover = MOVER_HOST["services"]["mover"]
    (mounted,) = (volume for volume in mover["volumes"] if "DM_RETENTION_FILE" in volume)
    assert mounted.endswith(f":{mover['environment']['DM_RETENTION']}:ro")


def test_services_depend_on_services_that_tell_their_health() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, f"{name} needs {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for {needed}, which has no health check"


def test_volumes_configs_and_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOYMENTS / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_password_has_a_default() -> None:
    text = (DEPLOYMENTS / "compose.yaml").read_text(encoding="utf-8")
    variables = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert {name for name, _ in variables} == {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "PREFECT_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in variables)
    values = re.findall(r"^(\w+)=(.*)$", (DEPLOYMENTS / "env.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(values) == {"POSTGRES_PASSWORD": "", "RABBITMQ_PASSWORD": "", "PREFECT_PASSWORD": ""}


def test_host_keys_are_never_left_unchecked() -> None:
    for path in DEPLOYMENTS.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"StrictHostKeyChecking[ =]*(no|off)", path.read_text(encoding="utf-8")), path


def test_the_demonstration_machines_are_those_of_the_compose_file() -> None:
    machines = load_machines(DEPLOYMENTS / "machines.demo.toml")
    assert {machine.host for machine in machines.values()} <= set(SERVICES)
    assert all(machine.known_hosts is not None for machine in machines.values())


@pytest.mark.parametrize("path", [IMAGES / "Dockerfile", IMAGES / "demo-machine" / "Dockerfile"], ids=str)
def test_what_an_image_copies_exists(path: Path) -> None:
    context = ROOT if path.parent == IMAGES else path.parent
    copied = re.findall(r"^COPY (.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert copied
    for names in copied:
        for name in names.split():
            assert (context / name).exists(), name


def test_the_image_runs_as_nobody_special_and_installs_the_lock_with_hashes() -> None:
    text = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER dm$", text, re.MULTILINE)
    assert "--require-hashes -r requirements.lock" in text


def read_unit(path: Path) -> list[tuple[str, str]]:
    """Return the `[Service]` lines of a unit; keys may come more than once."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's keys have capitals
    parser.read_string(path.read_text(encoding="utf-8"))
    assert {"Unit", "Service", "Install"} <= set(parser.sections())
    body = path.read_text(encoding="utf-8").partition("[Service]")[2].partition("[Install]")[0]
    return [(key, value) for key, _, value in (line.partition("=") for line in body.splitlines()) if value]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_entry_points_and_is_confined(path: Path) -> None:
    lines = read_unit(path)
    commands = [shlex.split(value) for key, value in lines if key.startswith("Exec")]
    modules = [module for command in commands for module in modules_run_by(command)]
    assert modules
    for module in modules:
        assert_is_an_entry_point(module)
    values = dict(lines)
    assert values["NoNewPrivileges"] == "yes"
    assert values["ProtectSystem"] == "strict"
    assert values["EnvironmentFile"] == "/etc/dm/dm.env"
    assert values["StateDirectory"]
    assert values["User"] == "dm"
    words = [word.split("=")[0] for key, value in lines if key == "Environment" for word in value.split()]
    assert {word for word in words if word.startswith(PREFIX)} <= SETTINGS


def test_all_three_units_are_there() -> None:
    assert [path.name for path in UNITS] == ["dm-api.service", "dm-mover@.service", "dm-prefect.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_understands_the_unit(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return  # a host without systemd has nobody to ask; the test above has read the unit
    # programs and users that this host does not have are replaced; everything else is systemd's to judge
    text = path.read_text(encoding="utf-8").replace("/opt/data-manager/.venv/bin/python", "/bin/true")
    name = path.name.replace("@.", "@1.")
    (tmp_path / name).write_text(text, encoding="utf-8")
    command = [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert name not in done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_leaves_little_to_whoever_breaks_in(path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_scripts_parse() -> None:
    for path in [*DEPLOYMENTS.rglob("*.sh"), *(ROOT / "tests").glob("*.sh")]:
        subprocess.run(["sh", "-n", str(path)], check=True)
