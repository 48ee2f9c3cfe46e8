"""What the documents name exists, and what they show runs."""

import dataclasses
import importlib
import re
import shutil
from pathlib import Path

import pytest

from tests.datasets import folders
from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests/fixtures/workdir"

# Blocks that this file does not run, by page: who does.
NOT_RUN = {"docs/huggingface.md": "tests/hf/test_export.py, with transformers"}

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))
] + ["benchmarks/results.md"]


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page: its info string, its text, the line of its first line."""

    info: str
    text: str
    line: int


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    found, opened = [], None
    for number, line in enumerate(read(page).splitlines(), 1):
        fence = re.fullmatch(r"\s*```(.*)", line)
        if fence and opened is None:
            opened = (fence[1].strip(), number + 1, [])
        elif fence:
            found.append(Block(opened[0], "\n".join(opened[2]), opened[1]))
            opened = None
        elif opened:
            opened[2].append(line)
    assert opened is None, f"{page}: a block that does not end"
    return found


def prose(page):
    """The page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def module_file(name):
    """The file of a module or package, None if there is none."""
    path = ROOT.joinpath(*name.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


# Names.


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    named = re.findall(
        r"(?<![\w/.-])(?:vimoe_jax|tests|configs|launch|benchmarks|docs)/[\w/.-]*\w/?", read(page)
    )
    wrong = [name for name in named if not (ROOT / name).exists()]
    # What a command writes, or what a rule calls any file.
    wrong = [name for name in wrong if not re.search(r"NAME|/a/b|/a/test_b", name)]
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_what_they_hold_exist(page):
    wrong = []
    for name in re.findall(r"(?<![\w/.-])vimoe_jax(?:\.\w+)+", read(page)):
        words = name.split(".")
        known = max(n for n in range(1, len(words) + 1) if module_file(".".join(words[:n])))
        found = importlib.import_module(".".join(words[:known])) if known < len(words) else None
        for word in words[known:]:
            if not hasattr(found, word):
                wrong.append(name)
                break
            found = getattr(found, word)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_take_their_options(page):
    words = "\n".join(block.text for block in blocks(page) if not block.info) + prose(page)
    # A command goes on after a backslash, and on indented lines of options.
    words = re.sub(r"\\?\n +(?=\[?--)|\\\n\s*", " ", words)
    for module, rest in re.findall(
        r"python -m ((?:vimoe_jax|benchmarks|tests)[\w.]*)([^\n`]*)", words
    ):
        file = module_file(module)
        assert file is not None, f"{page}: python -m {module}"
        if file.name == "__init__.py":
            file = file.with_name("__main__.py")
        assert "__main__" in file.read_text(encoding="utf-8"), f"{page}: python -m {module}"
        if module.startswith("vimoe_jax"):
            entry = module if file.name != "__main__.py" else f"{module}.__main__"
            check_options(importlib.import_module(entry).COMMAND, rest, f"{page}: {module}")


def check_options(command, words, where):
    text = command.help()
    for name in re.findall(r"--([\w.]+)", words.split(" -- ")[0]):
        if not name.startswith("config."):
            assert re.search(rf"--{name}\b", text), f"{where} --{name}"
        elif name != "config.FIELD":
            assert command.config is not None, f"{where} --{name}"
            schema.check_name(command.config, name.removeprefix("config."))


@pytest.mark.parametrize("page", PAGES)
def test_fields_of_the_configuration_exist(page):
    groups = "|".join(f.name for f in dataclasses.fields(Config) if f.name != "seed")
    wrong = []
    for config, name in re.findall(
        rf"`(?:--)?(config\.)?((?:{groups})\.\w[\w.]*\w)(?:`|=| =)", prose(page)
    ):
        parent = name.rpartition(".")[0]
        # Short names of modules, of what they hold, and of files.
        if not config and (
            name.endswith((".csv", ".npz"))
            or module_file(f"vimoe_jax.{name}")
            or ("." in parent and module_file(f"vimoe_jax.{parent}"))
        ):
            continue
        try:
            schema.check_name(Config, name)
        except UserError as e:
            wrong.append(str(e))
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page}: {target}#{anchor}"


def test_every_config_is_in_the_readme():
    named = set(re.findall(r"`(configs/\w+\.py)`", read("README.md")))
    assert named == {f"configs/{path.name}" for path in ROOT.glob("configs/*.py")}


def test_every_guide_is_in_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", read("README.md")))
    assert linked == {page for page in PAGES if re.fullmatch(r"docs/\w+\.md", page)}


def test_rooms_say_what_the_table_says():
    rows = re.findall(r"^\| `vimoe_jax/(\w+)` \| (.*?) \| .* \|$", read("CONTRIBUTING.md"), re.M)
    said = {}
    for path in ROOT.glob("vimoe_jax/*/__init__.py"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        said[path.parent.name] = first.strip('"').rstrip(".")
    assert said == {room: what[0].upper() + what[1:] for room, what in rows}


# Blocks.


def test_blocks_are_python_or_plain_and_few_are_not_run():
    infos = {page: [block.info for block in blocks(page)] for page in PAGES}
    assert {info for found in infos.values() for info in found} <= {"", "python", "python no-run"}
    excluded = {page: found.count("python no-run") for page, found in infos.items()}
    assert {page: n for page, n in excluded.items() if n} == dict.fromkeys(NOT_RUN, 1)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.info == "python" for b in blocks(page))]
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one namespace, in a folder with a run, a photograph and ViVQA's files."""
    shutil.copytree(FIXTURE / "run", tmp_path / "runs/moe_small")
    shutil.copy(FIXTURE / "data/train_0.png", tmp_path / "photo.jpg")
    folders.vivqa(tmp_path / "downloads/vivqa")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in blocks(page):
        if block.info == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
            exec(code, namespace)
