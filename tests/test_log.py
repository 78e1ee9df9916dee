"""W&B's own client, offline: no account, no key."""

import json
import subprocess
import sys

from running import ENVIRONMENT, PICO, succeed, text_files


def test_a_run_is_kept_offline_with_its_curve_and_its_record(tmp_path):
    corpus = text_files(tmp_path)
    record = succeed(f"outputs={tmp_path}/outputs", *PICO, *corpus, "log=wandb", "export=none")
    (kept,) = record["folder"].glob("wandb/offline-run-*")
    assert kept.name.endswith(record["digest"])
    rows = inspect(kept)
    history = [row for row in rows if "heal/loss" in json.dumps(row)]
    assert len(history) >= 6
    assert "healed/validation/loss" in json.dumps(rows) and "keep_last" in json.dumps(rows)


def inspect(folder) -> list:
    call = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
