"""Question sets: deterministic, balanced, and usable by lm-eval."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from depthcut.data import questions
from depthcut.data.demo import HELD_OUT_SPAN, Demo, read_articles

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "outputs/cache"
MADE = ("capitals", "topics")
SIZES = {
    "capitals": 197,
    "topics": 507,
    "boolq_local": 3270,
    "openbookqa_local": 500,
    "piqa_local": 1500,
    "commonsenseqa_local": 1220,
    "mmlu_local": 14042,
}


@pytest.fixture(scope="module", params=questions.SET_NAMES)
def name(request):
    return request.param


def test_every_item_is_answerable(name):
    items = questions.load_questions(name, CACHE)
    assert len(items) == SIZES[name]
    for item in items:
        assert 0 <= item["answer"] < len(item["choices"])
        assert all(isinstance(choice, str) and choice.strip() == choice != "" for choice in item["choices"])
        assert len(set(item["choices"])) == len(item["choices"])
        assert item["prompt"].strip() == item["prompt"] != ""


def test_answer_positions_are_balanced(name):
    counts = Counter(item["answer"] for item in questions.load_questions(name, CACHE))
    assert set(counts) == set(range(len(counts)))
    if name in MADE:
        assert max(counts.values()) - min(counts.values()) <= 1
    else:
        assert max(counts.values()) < 1.7 * min(counts.values())


def test_first_questions_mix_subjects():
    subjects = {item["prompt"].splitlines()[0] for item in questions.load_questions("mmlu_local", CACHE)[:200]}
    assert len(subjects) > 40


def test_topics_asks_about_held_out_articles_only():
    held_out = set(Demo(span=HELD_OUT_SPAN, sequences=1, length=2, pack=True).documents(CACHE))
    extracts = {article["title"]: article["extract"] for article in read_articles(CACHE)}
    titles = {choice for item in questions.load_questions("topics", CACHE) for choice in item["choices"]}
    assert all(extracts[title] in held_out for title in titles)


def test_known_items():
    albania = next(i for i in questions.load_questions("capitals", CACHE) if i["prompt"] == "The capital of Albania is")
    assert albania["choices"][albania["answer"]] == "Tirana"
    prompts = {i["prompt"]: i["choices"][i["answer"]] for i in questions.load_questions("topics", CACHE)}
    assert prompts["Description: 1878 novel by Leo Tolstoy. \nTopic:"] == "Anna Karenina"
    assert not any(name in prompt for prompt in prompts for name in ("Tunisia", "Kuwait"))


def test_questions_do_not_depend_on_hash_seed(tmp_path):
    script = (
        "import sys, shutil; from pathlib import Path; from depthcut.data import questions\n"
        "into = Path(sys.argv[2]); shutil.copytree(Path(sys.argv[1]) / 'wheels', into / 'wheels')\n"
        "for name in questions.SET_NAMES: questions.load_questions(name, into)\n"
    )
    for name in questions.SET_NAMES:
        questions.load_questions(name, CACHE)
    seen = []
    for seed in ("1", "2"):
        into = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([sys.executable, "-c", script, str(CACHE), str(into)], check=True, env=environment)
        files = sorted((into / "questions").glob("*/items.jsonl"))
        seen.append([(file.parent.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert seen[0] == seen[1]
    assert {name.rpartition("-")[0] for name, _ in seen[0]} == set(questions.SET_NAMES)


def test_identities_differ():
    assert len({questions.questions_digest(name) for name in questions.SET_NAMES}) == len(questions.SET_NAMES)


def test_unknown_set_names_the_choices():
    with pytest.raises(ValueError, match=r"hellaswag: no such question set\. Available: capitals, topics, "):
        questions.load_questions("hellaswag", CACHE)


def test_lm_eval_accepts_the_task():
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([questions.lm_eval_task("capitals", CACHE)])
    task = loaded["tasks"]["capitals"]
    items = questions.load_questions("capitals", CACHE)
    task.build_all_requests(limit=2, rank=0, world_size=1)
    arguments = [instance.args for instance in task.instances]
    assert arguments == [(item["prompt"], f" {choice}") for item in items[:2] for choice in item["choices"]]
    right = {"lls": [(0.0 if at == items[0]["answer"] else -9.0, False) for at in range(4)]}
    assert task.process_results(items[0], right["lls"]) == {"acc": 1.0, "acc_norm": 1.0}
