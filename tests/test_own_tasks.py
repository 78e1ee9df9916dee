"""User-defined tasks: a yaml by path, or by name in a folder; identified by content, including code."""

import json
from pathlib import Path
from typing import Any

import pytest

from depthcut.data.text.parts import Texts
from depthcut.eval.harness import Harness
from depthcut.eval.likelihood import task_files
from depthcut.runtime.errors import UserError
from depthcut.study import digests
from depthcut.study.standalone import Standalone
from running import UNHEALED, run, text_files

YAML = """
include: shared.yaml
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
process_docs: !function helpers.shorter
"""
SHARED = """
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
HELPERS = "def shorter(rows):\n    return rows.select(range(6))\n"


@pytest.fixture
def task(tmp_path):
    """Write a task of eight questions, of which its code selects six."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    row = {"prompt": "The cat sees the", "choices": ["dog.", "sky."], "answer": 0}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    (folder / "shared.yaml").write_text(SHARED)
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "mine.yaml").write_text(YAML.format(data=folder / "rows.jsonl"))
    return folder / "mine.yaml"


def harness(*tasks: str, include_path: str | None = None) -> Harness:
    return Harness(tasks=list(tasks), limit=None, include_path=include_path, batch=1)


def digest(*tasks: str, include_path: str | None = None) -> str:
    here: Any = Standalone(texts=Texts({}, Standalone(), Path("nowhere"), 0))
    return digests.evaluation_digest(harness(*tasks, include_path=include_path), here)


def test_task_files_are_in_the_digest_by_content(task):
    folder = task.parent
    named = {name.rpartition("/")[2] for name in task_files.task_content(f"{task}@2", None)}
    assert named == {"mine.yaml", "shared.yaml", "helpers.py", "rows.jsonl"}
    by_path, by_name = digest(str(task)), digest("mine", include_path=str(folder))
    for file in ("mine.yaml", "shared.yaml", "helpers.py"):
        (folder / file).write_text((folder / file).read_text() + "\n# another\n")
        assert by_path != (by_path := digest(str(task)))
        assert by_name != (by_name := digest("mine", include_path=str(folder)))
    (folder / "rows.jsonl").write_text("{}")
    assert by_path != digest(str(task))


def test_other_tasks_keep_their_digest(task, monkeypatch):
    folder = str(task.parent)
    assert digest("capitals", include_path=folder) == digest("capitals")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.13")
    assert digest("capitals") == "38d5e8718e7a5357"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gone.yaml", None, r"no file at .*gone\.yaml"),
        ("a.yaml", "- 1", r"a\.yaml is not an lm-eval task"),
        ("a.yaml", "task: [", r"a\.yaml is not YAML"),
        ("a.yaml", "include: none.yaml", r"no file at .*none\.yaml"),
    ],
)
def test_invalid_task_file_fails_in_one_line(tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        digest(str(tmp_path / file))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"eval\.include_path: no folder at .*nowhere"):
        digest("mine", include_path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"^eval\.include_path: no folder at .*nowhere"):
        harness("capitals", include_path=str(tmp_path / "nowhere")).check()


def test_task_paths_come_only_from_command_line():
    named = ["eval.tasks=[/x/mine.yaml@5,capitals]", "eval.include_path=/x/tasks"]
    task_files.require_command_line(["/x/mine.yaml@5", "capitals"], "/x/tasks", named)
    for overrides, key in (([], "tasks"), (named[:1], "include_path"), (["experiment=/x/mine.yaml"], "tasks")):
        with pytest.raises(UserError, match=rf"eval\.{key}: /x/.* comes from a config file\. A task's yaml"):
            task_files.require_command_line(["/x/mine.yaml@5"], "/x/tasks", overrides)


def test_run_measures_a_task_by_path_and_name(tmp_path, task):
    corpus = text_files(tmp_path)
    base = (f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "heal=none", "export=none", "stages=[pruned]")
    done = run(*base, "eval=[harness]", f"eval.tasks=[{task}]")
    assert done.returncode == 0, done.stderr
    assert "mine/acc (6 items)" in done.stdout
    other = tmp_path / "tasks/other.yaml"
    other.write_text(task.read_text().replace("task: mine", "task: other"))
    done = run(*base, "eval=[harness]", "eval.tasks=[other]", f"eval.include_path={tmp_path}/tasks")
    assert done.returncode == 0, done.stderr
    assert "other/acc (6 items)" in done.stdout
