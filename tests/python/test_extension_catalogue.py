"""What Slicer's extension catalogue checks by machine, and what its reviewers look at first, without the network."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import struct
import sys
import xml.etree.ElementTree as xml

import pytest

from extension import EXTENSION

MODULE = EXTENSION / "Fewlabel"
SOURCES = sorted(path for path in MODULE.rglob("*.py"))
# The categories that the catalogue takes, as far as they come near.
CATEGORIES = {"Active Learning", "Segmentation", "Informatics", "Quantification"}
PARTS_OF_SLICER = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "scipy", "FewlabelLib"}


def cmake(name: str) -> str:
    return (EXTENSION / name).read_text()


def setting(name: str) -> str:
    found = re.search(rf'set\({name} "([^"]*)"\)', cmake("CMakeLists.txt"))
    assert found, name
    return found[1]


def test_catalogue_entry() -> None:
    entries = list(EXTENSION.glob("*.json"))
    assert [path.stem for path in entries] == ["Fewlabel"]
    entry = json.loads(entries[0].read_text())
    assert set(entry) <= {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory", "enabled", "tier", "dicom_support_rule"}
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1\.0\.[0-2]\.json#", entry["$schema"])
    assert entry["category"] in CATEGORIES
    assert entry["scm_type"] == "git" and entry["build_dependencies"] == [] and entry["tier"] == 1
    repository = entry["scm_url"].removesuffix(".git").rsplit("/", 1)[-1]
    assert repository.startswith("Slicer"), "names of repositories start so, names of extensions do not"
    assert not entries[0].stem.startswith("Slicer")


def test_project_and_metadata() -> None:
    text = cmake("CMakeLists.txt")
    assert re.search(r"^project\(Fewlabel\)", text, re.M), "the name of the catalogue entry"
    assert setting("EXTENSION_DEPENDS") == "NA"
    assert 40 < len(setting("EXTENSION_DESCRIPTION")) < 300
    assert setting("EXTENSION_CONTRIBUTORS") and setting("EXTENSION_HOMEPAGE").startswith("https://")
    assert text.index("find_package(Slicer REQUIRED)") < text.index("add_subdirectory(Fewlabel)") < text.index("Slicer_EXTENSION_CPACK")
    for url in [setting("EXTENSION_ICONURL"), *setting("EXTENSION_SCREENSHOTURLS").split()]:
        base, _, path = url.partition("/main/")
        assert base.endswith(setting("EXTENSION_HOMEPAGE").split("github.com/")[1])
        size(EXTENSION / path)


def size(path: pathlib.Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n", path
    return struct.unpack(">II", head[16:24])


def test_icons() -> None:
    assert size(EXTENSION / "Fewlabel.png") == (128, 128)
    assert size(MODULE / "Resources" / "Icons" / "Fewlabel.png")[0] >= 48


def test_every_file_is_listed() -> None:
    """A file that CMake does not know is missing in the installed extension."""
    text = cmake("Fewlabel/CMakeLists.txt").replace("${MODULE_NAME}", "Fewlabel")
    listed = set(re.findall(r"^\s+(\S+\.(?:py|png|ui))$", text, re.M))
    there = {path.relative_to(MODULE).as_posix() for path in SOURCES if "Testing" not in path.parts}
    there |= {path.relative_to(MODULE).as_posix() for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert listed == there
    assert [path.name for path in MODULE.glob("*.py")] == ["Fewlabel.py"], "Slicer takes every script there for a module"
    tests = set(re.findall(r"SCRIPT (\S+\.py)", cmake("Fewlabel/Testing/Python/CMakeLists.txt")))
    assert tests == {path.name for path in (MODULE / "Testing" / "Python").glob("*.py")}


def test_licence_and_readme() -> None:
    assert "Apache License" in (EXTENSION / "LICENSE").read_text()[:500]
    readme = (EXTENSION / "README.md").read_text()
    for words in ("Apache", "## Tutorial", "not a medical device", "## Privacy", "not the 3D Slicer application"):
        assert words in readme, words
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert pictures
    for picture in pictures:
        size(EXTENSION / picture)
    assert sum(path.stat().st_size for path in EXTENSION.rglob("*") if path.is_file()) < 2_000_000
    for path in [*SOURCES, *EXTENSION.rglob("CMakeLists.txt"), EXTENSION / "README.md"]:
        assert b"\r" not in path.read_bytes(), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_installed_and_nothing_runs_at_import(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            root = name.split(".")[0]
            assert root in sys.stdlib_module_names | PARTS_OF_SLICER, f"{name} is no part of Slicer or Python"
    # Slicer loads every module when it starts: definitions only.
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_text or isinstance(node, allowed), f"line {node.lineno} runs at import"
    text = path.read_text()
    for word in ("pip_install", "pip_main", "subprocess", "os.system", "eval(", "exec("):
        assert word not in text, word


def test_layers_know_only_what_is_below_them() -> None:
    """Qt and MRML stay in two files; everything else can be tested without Slicer."""
    allowed = {"mrml": {"slicer", "vtk"}, "panel": {"slicer", "qt"}}
    for path in (MODULE / "FewlabelLib").glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {str(name).split(".")[0] for name in names} & {"slicer", "vtk", "qt", "ctk"}
        assert found <= allowed.get(path.stem, set()), path.name


def test_names_in_the_panel_exist() -> None:
    """Every widget that the code uses is in the form, none is there twice, and every button does something."""
    form = xml.parse(MODULE / "Resources" / "UI" / "Fewlabel.ui")
    names = [widget.get("name") for widget in form.iter("widget")]
    assert len(names) == len(set(names))
    code = (MODULE / "FewlabelLib" / "panel.py").read_text()
    used = set(re.findall(r"\bui\.(\w+)\.", code)) | set(re.findall(r'"(\w+(?:Button|Box|Table|List))"', code))
    assert used <= set(names), used - set(names)
    buttons = {name for name in names if name.endswith("Button")}
    assert buttons <= used, buttons - used
    stops = [element.text for element in form.iter("tabstop")]
    assert set(stops) <= set(names)
