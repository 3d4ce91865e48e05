"""The index of a folder of scripts, read from their docstrings, and how one of them is started."""

import ast
import runpy
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Prints the index of `folder`, or starts the script that the command line names."""
    scripts = find_scripts(folder)
    if len(sys.argv) == 1:
        print(f"python -m {folder.name} NAME [--help | …]\n")
        width = max(map(len, scripts))
        for name, purpose in scripts.items():
            print(f"  {name:{width}}  {purpose}")
        return
    name = sys.argv[1]
    if name not in scripts:
        sys.exit(f"{name!r} is none of {', '.join(scripts)}")
    sys.argv = [f"{folder.name}/{name}.py", *sys.argv[2:]]
    runpy.run_module(f"{folder.name}.{name}", run_name="__main__")


def find_scripts(folder: Path) -> dict[str, str]:
    """Name → first sentence of the docstring, of each script that does something when started."""
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' in text:
            doc = ast.get_docstring(ast.parse(text)) or ""
            found[path.stem] = " ".join(doc.split("\n\n")[0].split())
    return found
