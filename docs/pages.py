"""Pages that `mkdocs build` makes: one a family, from docstrings, and READMEs.

A hook of mkdocs; see `mkdocs.yml`. Nothing that it makes is committed.
"""

import ast
import csv
import pathlib
import re
from collections.abc import Callable, Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

from reslab.core import registry

ROOT = pathlib.Path(__file__).parents[1]
OPS = sorted(path.parent.name for path in (ROOT / "reslab" / "ops").glob("*/api.py"))
STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/study.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation."""
    families = [{title(name): f"families/{name}.md"} for name in registry.FAMILIES]
    studies = [{title(path.name[11:]): f"studies/{path.name}.md"} for path in STUDIES]
    config.nav += [
        {"Families": [*families, {"Ops": "families/ops.md"}]},
        {"Studies": studies},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the pictures that they show."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for name in registry.FAMILIES:
        add(f"families/{name}.md", family(name))
    add("families/ops.md", ops())
    add("index.md", readme(ROOT, "index.md", add))
    add("tutorial.md", readme(ROOT / "experiments" / "tutorial", "tutorial.md", add))
    for path in STUDIES:
        name = f"studies/{path.name}.md"
        add(name, readme(path, name, add))
    add("site.css", HtmlFormatter().get_style_defs(".highlight") + STYLE)
    return files


def title(name: str) -> str:
    """Returns a heading for the name of a folder."""
    return name.replace("_", " ").replace("-", " ").capitalize()


def family(name: str) -> str:
    """Writes the page of one family.

    Args:
      name: A key of `registry.FAMILIES`.
    """
    package = registry.FAMILIES[name]
    lines = [f"# {title(name)}", "", docstring(folder(package) / "__init__.py"), ""]
    lines += [f"`reslab show {name}/NAME` also prints defaults and parameters.", ""]
    for variant in registry.names(name):
        path = registry.file(name, variant)
        shown = f"{package}.{variant}.{definition(path)}"
        lines += [f"## {variant}", "", docstring(path), "", f"::: {shown}", ""]
        lines += cost(name, variant)
    return "\n".join(lines)


# Committed measurements of a family: the file, and what its columns are. Those of time
# compare with plain, AdamW and Flax's RMSNorm.
COSTS = {
    "residuals": (
        "depth_memory.csv",
        {
            "residual": "residual",
            "layers": "layers",
            "temporaries_mib": "temporaries (MiB)",
            "hbm_gib": "HBM (GiB)",
            "step_to_plain": "estimated step / plain",
            "topology": "compiled for",
        },
    ),
    "optimizers": (
        "optimizers.csv",
        {
            "optimizer": "optimizer",
            "config": "config",
            "target": "on",
            "state_mib": "state (MiB)",
            "over_adamw": "measured step / AdamW",
            "estimate_over_adamw": "estimated step / AdamW",
        },
    ),
    "norms": (
        "norms.csv",
        {
            "norm": "norm",
            "target": "on",
            "dtype": "dtype",
            "over_flax_rms": "time / Flax RMSNorm",
            "over_least": "bytes / least",
            "shape": "shape",
        },
    ),
}


def cost(family: str, variant: str) -> list[str]:
    """Writes what was measured or estimated of a variant, as a table."""
    if family not in COSTS:
        return []
    file, columns = COSTS[family]
    with open(ROOT / "experiments" / "bench" / file, newline="") as lines:
        found = list(csv.DictReader(lines))
    own = next(iter(columns))
    rows = [row for row in found if re.match(rf"{variant}(\(|$)", row[own])]
    if not rows:
        return []
    kept = [key for key in columns if any(row[key] for row in rows)]
    cells = [[f"`{row[own]}`", *(row[key] for key in kept[1:])] for row in rows]
    head = [[columns[key] for key in kept], ["---"] * len(kept)]
    table = ["| " + " | ".join(line) + " |" for line in [*head, *cells]]
    return [f"Cost (`experiments/bench/{file}`):", "", *table, ""]


def ops() -> str:
    """Writes the page of the operations with several implementations."""
    lines = ["# Ops", "", "Pure functions: `reslab/ops/<op>/api.py`.", ""]
    for op in OPS:
        path = ROOT / "reslab" / "ops" / op / "api.py"
        lines += [f"## {op}", "", docstring(path.with_name("__init__.py")), ""]
        lines += [f"::: reslab.ops.{op}.api.{name}\n" for name in functions(path)]
    return "\n".join(lines)


def folder(package: str) -> pathlib.Path:
    """Returns the folder of a package of the repository."""
    return ROOT.joinpath(*package.split("."))


def docstring(path: pathlib.Path) -> str:
    """Returns a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def definition(path: pathlib.Path) -> str:
    """Returns the name of the class or function that a variant's `build` is."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build":
            names = [n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)]
            return names[-1]
    return "build"


def functions(path: pathlib.Path) -> Iterator[str]:
    """Yields the public functions of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def readme(
    path: pathlib.Path, page: str, add: Callable[[str, str | bytes], None]
) -> str:
    """Makes a page of a README: pictures are copied, links beyond `docs` are text.

    Args:
      path: Folder of the README.
      page: Name of the page.
      add: Adds a file to the site, by name and content.
    """

    def link(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        if "://" in target:
            return match[0]
        if bang:
            name = f"pictures/{path.name}.png"
            add(name, (path / target).read_bytes())
            return f"![{text}]({'../' * page.count('/')}{name})"
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')})"
        return PAGES.get(target, "{text}").format(text=text)

    return re.sub(r"(!?)\[([^]]*)\]\(([^)]+)\)", link, (path / "README.md").read_text())


PAGES = {"experiments/tutorial/README.md": "[{text}](tutorial.md)"} | {
    f"experiments/{path.name}/README.md": f"[{{text}}](studies/{path.name}.md)"
    for path in STUDIES
}
STYLE = """
.wy-nav-content { max-width: 60rem; }
.rst-content .highlight pre { border: 0; font-size: 0.85rem; margin: 0; padding: 0; }
.doc-contents details { margin-bottom: 1.5rem; }
"""
