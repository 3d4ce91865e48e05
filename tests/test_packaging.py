"""What is published: the source archive, and the description of the package."""

import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The files of the source archive: name without the folder -> content."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "benchmarks/results")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        members = [member for member in opened.getmembers() if member.isfile()]
        return {m.name.split("/", 1)[1]: opened.extractfile(m).read() for m in members}


def test_the_archive_holds_what_is_built_from_and_no_test_at_all(archive):
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "googlenet_jax").rglob("*.py")}
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    wanted = {*package, *configs, "googlenet_jax/py.typed", "pyproject.toml", "setup.py", "LICENSE"}
    assert wanted <= archive.keys()
    assert not [name for name in archive if name.split("/")[0] in ("tests", "proofs", "benchmarks")]


def test_the_description_has_authors_links_and_no_link_into_the_repository(archive):
    about = archive["PKG-INFO"].decode()
    for field in ("Author: ", "Project-URL: ", "Keywords: ", "Classifier: Typing :: Typed"):
        assert f"\n{field}" in about
    text = about.split("\n\n", 1)[1]
    assert "text/markdown" in about and len(text) > 2000
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)


def test_a_link_keeps_its_text_and_a_picture_goes(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: made.update(options))
    (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
    readme = "![A run](docs/a.png)\n\nSee [the docs](docs/x.md), [it](https://example.org/x).\n"
    (tmp_path / "README.md").write_text(readme)
    runpy.run_path(str(tmp_path / "setup.py"))
    assert made["long_description"] == "See the docs, [it](https://example.org/x).\n"
