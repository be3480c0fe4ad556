"""The documents say what the code does."""

import re
from pathlib import Path

import edgekit.errors as errors
from edgekit.artifact import Scheme
from edgekit.converters.capabilities import TABLE
from edgekit.recipe import Recipe

ROOT = Path(__file__).parents[2]


def every_error(base: type[errors.EdgekitError] = errors.EdgekitError) -> set[type[errors.EdgekitError]]:
    return {base}.union(*(every_error(sub) for sub in base.__subclasses__() if sub.__module__ == errors.__name__))


def test_every_error_code_is_documented() -> None:
    """docs/errors.md lists each code there is, and no other."""
    listed = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    assert listed == {error.code for error in every_error()}


def _names_a_next_step(text: str) -> bool:
    return re.search(r"`[^`]+`|the same(?: command)?\b", text) is not None


def test_every_error_says_what_to_do_next() -> None:
    """Each class has a hint that names a command, each row of docs/errors.md a next step; no error lacks a hint."""
    hints = {error.code: error.usual_hint for error in every_error()}
    assert {code: hint for code, hint in hints.items() if not _names_a_next_step(hint)} == {}
    rows = re.findall(r"^\| `([A-Z_]+)` \|.*\| ([^|]+) \|$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert {code: told for code, told in rows if not _names_a_next_step(told)} == {}
    assert errors.DeviceLost("gone", device="d").hint == errors.DeviceLost.usual_hint
    assert errors.DeviceLost("gone", device="d", hint="other").hint == "other"


def test_the_failures_documented_are_the_classes() -> None:
    """docs/failures.md gives each mode the blame and the `retryable` that its error class has."""
    known = {error.code: error for error in every_error()}
    page = (ROOT / "docs" / "failures.md").read_text()
    rows = re.findall(r"\| `([A-Z_]+)`[^|]*\| (\w+) \| (yes|no) \| [^|]+\|$", page, re.MULTILINE)
    assert len(rows) >= 16
    for code, blame, again in rows:
        assert (known[code].blame.value, known[code].retryable) == (blame, again == "yes"), code


def test_every_recipe_key_is_documented() -> None:
    """docs/recipes.md names every top-level key, plan value and gate."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    keys = set(Recipe.model_fields)
    for name in ("convert", "plan", "gates"):
        annotation = Recipe.model_fields[name].annotation
        assert annotation is not None
        keys |= set(annotation.model_fields)
    assert {key for key in keys if f"`{key}" not in text and f"`convert.{key}" not in text} == set()


def test_the_table_of_schemes_is_the_codes() -> None:
    """docs/converting.md says yes exactly where the code's own table does."""
    text = (ROOT / "docs" / "converting.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| scheme |"))
    backends = [cell.strip().strip("`") for cell in head.strip("|").split("|")[1:]]
    assert set(backends) == set(TABLE)
    for scheme in Scheme:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{scheme}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")[1:]]
        assert cells == ["yes" if TABLE[backend][scheme][0] else "–" for backend in backends], scheme


def test_every_link_in_the_documents_leads_somewhere() -> None:
    """Relative links in README, ARCHITECTURE and docs/ name files that exist."""
    broken = []
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_readme_shows_a_model_in_fifteen_lines() -> None:
    """The README's own workload, blank lines and the file's name aside, has at most fifteen lines."""
    block = re.search(r"```python\n# workload.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 15
