"""Weights & Biases: online with an API key, offline without; ``wandb sync`` uploads an offline run later."""

import csv
import io
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.log import Log
from depthcut.runtime import progress, ranks
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from depthcut.log import RunInfo

SAVED_FILES = ("plan.json", "heal.csv", "record.json")
log = logging.getLogger("depthcut")


@strict
class Wandb(Log):
    """One W&B run per point. Its id is the point's digest, so a resumed point continues the same run.

    The agent of a W&B sweep sets the run's id itself, because the sweep tracks the run by it.

    Attributes:
        project: name of the W&B project.
        entity: account or team; None: the default of the API key.
        wait: seconds that W&B gets to start a run, and to finish it, before the point continues without it.
    """

    project: str
    entity: str | None
    wait: Annotated[float, Field(gt=0)]

    def loggers(self, point: "RunInfo") -> list[Any]:
        """Return Lightning's logger on this run."""
        if ranks.global_rank():
            return []
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(experiment=self.start(point))]

    def finish(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Log the record's numbers as the run's summary, the point's small files, and the report's figures."""
        run = self.start(point)
        report_record(run, point, record)
        log_figures(run, point.study)
        finish_run(run, 0)

    def again(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Log the record if an agent of a W&B sweep chose the point; without an agent nothing is repeated."""
        if os.environ.get("WANDB_SWEEP_ID"):
            run = self.start(point)
            report_record(run, point, record)
            finish_run(run, 0)

    def start(self, point: "RunInfo") -> Any:
        """Start or resume the W&B run of this point; offline if W&B is unreachable."""
        import wandb

        if wandb.run is not None:
            if wandb.run.config.get("digest") == point.digest:
                return wandb.run
            finish_run(wandb.run, 1)  # of an earlier failed point in this process
        about = self.about(point)
        try:
            run = wandb.init(**about, mode=wandb_mode())
        except Exception as error:
            how = f"upload it with wandb sync {point.folder}/wandb"
            log.warning("W&B: %s; this run stays offline, %s", one_line_error(error), how)
            wandb.teardown()  # otherwise its service considers the run in use
            run = wandb.init(**about, mode="offline")
        run.define_metric("heal/*", step_metric="heal/step")
        log_curve(run, point.folder / "heal.csv")
        mark_superseded(run, point.folder)
        return run

    def about(self, point: "RunInfo") -> dict[str, Any]:
        """Return the settings of the run: project, group, tags, config."""
        import wandb

        knobs = run_config(point)
        words = [str(knobs[key])[:64] for key in ("model.name", "metric", "prune", "replace", "heal")]
        drawn = bool(os.environ.get("WANDB_SWEEP_ID"))
        place = {} if drawn else {"project": self.project, "entity": self.entity, "id": point.digest}
        return place | {
            "name": f"{point.study.name}-{point.digest[:8]}",
            "group": point.study.name,
            "job_type": knobs["heal"],
            "tags": sorted({word for word in words if word != "none"}),
            "dir": point.folder,
            "resume": "allow",
            "config": knobs,
            "settings": wandb.Settings(
                init_timeout=self.wait, finish_timeout=self.wait, finish_timeout_raises=True, quiet=True
            ),
        }


def run_config(point: "RunInfo") -> dict[str, Any]:
    """Return the composed config under the names of overrides: ``prune`` is the method, ``prune.frac`` its option.

    A sweep's own parameters have the same names, so both kinds of runs share their axes.
    """
    from depthcut.report import table

    knobs = flatten_knobs(point.config)
    if not point.scored:
        knobs = {key: value for key, value in knobs.items() if not key.startswith("metric.")} | {"metric": "none"}
    return knobs | {"model.name": table.model_name({"config": point.config}), "digest": point.digest}


def flatten_knobs(node: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted ones; a method's class becomes the word that selects it."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{path}.{key}" if path else key
        if key == "_target_":
            found[path] = value.split(".")[-2]
        elif isinstance(value, dict):
            found |= flatten_knobs(value, name)
        else:
            found[name] = value
    return found


def report_record(run: Any, point: "RunInfo", record: dict[str, Any]) -> None:
    """Add the record's numbers to the run's summary, and the point's small files to its files."""
    run.summary.update(record_summary(record))
    save_files(run, point.folder)


def record_summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a record, and its plan in words."""
    plan = Plan.from_dict(record["plan"])
    numbers = {key: value for key, value in record.items() if "/" in key}
    return numbers | {
        "fraction": record["fraction"],
        "layers": len(plan.drop),
        "plan": plan.words,
        "drop": record["plan"]["drop"],
    }


def log_curve(run: Any, curve: Path) -> None:
    """Log the rows of a curve that the run does not have yet; offline runs and runs of an agent start without any."""
    if not curve.exists():
        return
    heard = run.summary.get("heal/step") or 0
    with curve.open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["step"]) > heard:
                numbers = {f"heal/{name}": float(value) for name, value in row.items()}
                run.log(numbers | {"trainer/global_step": int(row["step"])})


def save_files(run: Any, folder: Path) -> None:
    """Copy the point's small files to the run's files, which it uploads; do nothing if W&B is disabled."""
    for name in SAVED_FILES:
        if (folder / name).exists() and not run.disabled:
            copy = shutil.copy(folder / name, run.dir)
            run.save(copy, base_path=run.dir, policy="now")


def log_figures(run: Any, folder: Path) -> None:
    """Log the report's figures of the study so far; an error only logs a warning, because the point is done."""
    if run.offline or run.disabled:
        return
    from depthcut.report import figures, study

    try:
        made = figures.draw_figures(study.read_studies([folder]).points)
        run.log({f"report/{name}": wandb_image(figure) for name, figure in made.items()})
    except Exception as error:
        log.warning("W&B: the report's figures were not uploaded: %s", one_line_error(error))


def wandb_image(figure: "Figure") -> Any:
    """Return a figure as a W&B image. W&B's own conversion would import ``matplotlib.pyplot``, which opens windows."""
    import wandb
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png")
    return wandb.Image(Image.open(file))


def finish_run(run: Any, status: int) -> None:
    """Finish a run; files that W&B does not upload in time stay on disk."""

    where = f"offline; upload it with wandb sync {Path(run.dir).parent}" if run.offline else run.url
    try:
        run.finish(exit_code=status)
        progress.print_line(f"W&B run: {where}")
    except TimeoutError:
        log.warning("W&B: the upload timed out; finish it with wandb sync --include-online %s", Path(run.dir).parent)


def mark_superseded(run: Any, folder: Path) -> None:
    """Mark offline files of earlier attempts as synced, because ``wandb sync`` would repeat what this run has."""
    for file in folder.glob(f"wandb/offline-run-*-{run.id}/run-{run.id}.wandb"):
        if file.parent != Path(run.dir).parent:
            file.with_name(f"{file.name}.synced").touch()


def one_line_error(error: Exception) -> str:
    """Return the message of W&B's client in one line, without the stack of its retries."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def wandb_mode() -> Literal["offline"] | None:
    """Return ``offline`` without an API key; otherwise W&B's own settings apply (``WANDB_MODE``, ``wandb offline``)."""
    return None if has_api_key() or os.environ.get("WANDB_MODE") else "offline"


def has_api_key() -> bool:
    """Return whether a W&B API key is in the environment or in the netrc file."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and host in netrc.read_text(errors="replace"))
