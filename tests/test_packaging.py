"""The recipes of other package managers say what pyproject.toml says; none of these managers is
needed to know it.
"""

import ast
import re
import sys

import pytest
import yaml

from .test_project import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib needs Python 3.11", allow_module_level=True)

import tomllib  # noqa: E402

PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def bounds(requirement: str) -> tuple[str, str]:
    """Name and versions: `torch>=2.11,<2.14` -> ("torch", ">=2.11,<2.14")."""
    name, versions = re.fullmatch(r"([\w-]+) ?(.*)", requirement).groups()
    return name.lower().replace("pytorch", "torch"), versions


def wanted() -> dict[str, str]:
    python = PROJECT["project"]["requires-python"]
    return {"python": python} | dict(map(bounds, PROJECT["project"]["dependencies"]))


def test_conda():
    # Its Jinja is no YAML
    text = re.sub(r"\$\{\{.*?\}\}", "x", (PACKAGING / "recipe.yaml").read_text())
    recipe = yaml.safe_load(text)
    assert recipe["context"]["version"] == PROJECT["project"]["version"]
    assert dict(map(bounds, recipe["requirements"]["run"])) == wanted()
    assert recipe["about"]["summary"] == PROJECT["project"]["description"]
    assert (ROOT / recipe["about"]["license_file"]).exists()


def test_spack():
    tree = ast.parse((PACKAGING / "package.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {
        ast.literal_eval(call.args[0]): ast.literal_eval(call.keywords[0].value)
        for call in calls
        if getattr(call.func, "id", "") in ("depends_on", "version")
    }
    assert PROJECT["project"]["version"] in named
    run = {spec.removeprefix("py-") for spec, kind in named.items() if "run" in kind}
    want = {
        name + re.sub(r">=([\d.]+).*", r"@\1:", versions) for name, versions in wanted().items()
    }
    assert {spec.replace("@2.11:2.13", "@2.11:") for spec in run} == want


def test_containers_are_made_alike():
    docker = (PACKAGING / "Dockerfile").read_text()
    commands = re.findall(r"^RUN (.*)$", docker, flags=re.M)
    definition = (PACKAGING / "race.def").read_text()
    post = re.search(r"%post\n(.*?)\n\n", definition, flags=re.S)[1]
    lines = [line.strip() for line in post.splitlines() if not line.strip().startswith("cd ")]
    assert lines == commands and len(commands) == 2
    (image,) = re.findall(r"^FROM (.*)$", docker, flags=re.M)
    assert f"From: {image}\n" in definition
    # What they call is there
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), flags=re.M)
