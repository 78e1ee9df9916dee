"""Compose a config with Hydra under depthcut's rules, which are checked before anything of the config takes effect.

The ``hydra`` section belongs to ``conf/config.yaml`` and ``conf/hydra``; on the command line only the launcher and its
options can be set. No experiment, model or other chosen file may change it: Hydra would run what it names.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, flag_override

from depthcut.cli.refusals import UnknownKeyError, refuse_foreign_launcher, refuse_hydra_setting, refuse_idle
from depthcut.config import errors, values
from depthcut.config.values import CONF
from depthcut.runtime import validation
from depthcut.runtime.errors import UserError

OURS = re.compile(r"config|hydra/.*")
"""Files that may set the ``hydra`` section."""


class Loader(ConfigLoaderImpl):
    """Hydra's config loader, which refuses what a config may not say, in one line.

    Attributes:
        composed: the configs of points that were composed and not yet asked for.
    """

    def __init__(self, folder: str | None = None) -> None:
        """Read ``conf``, and ``folder`` (``--config-dir``) after it."""
        setbase("1.3")
        setup_globals()
        path = create_config_search_path(str(CONF))
        if folder is not None:
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir={folder}: no such folder")
            path.prepend("command-line", f"file://{Path(folder).resolve()}", SearchPathQuery(provider="schema"))
        super().__init__(path)
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.files = CachingConfigRepository(self.repository)

    def parse(self, overrides: Iterable[str]) -> list[Override]:
        """Read the override grammar.

        Raises:
            UserError: for a word that is no override, or one of Hydra's own settings.
        """
        parsed: list[Override] = []
        for word in overrides:
            key, _, value = word.partition("=")
            if values.calls_resolver(value):
                raise UserError(values.RESOLVER.format(validation.clip_text(key.lstrip("+~"))))
            try:
                parsed += OverridesParser.create(config_loader=self).parse_overrides([word])
            except Exception as error:  # Hydra's grammar, or Python's, refuses what the user typed
                raise UserError(errors.describe_override_error(word, error)) from error
        for each in parsed:
            refuse_hydra_setting(each)
        return parsed

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config.

        Raises:
            UnknownKeyError: for an override of a key that is not in the config, or that nothing in it reads.
            UserError: for anything else that cannot be composed, or that a config may not say.
        """
        parsed = self.parse(overrides)
        checks = from_shell, validate_sweep_overrides
        try:
            cfg = super().load_configuration(config_name, overrides, run_mode, *checks)
        except UserError:
            raise
        except Exception as error:  # whatever Hydra and OmegaConf raise, the user's words are the cause
            if key := errors.unknown_override_key(error):
                raise UnknownKeyError(key, errors.describe_hydra_error(error)) from error
            word = self.culprit(str(error), config_name, overrides, run_mode)
            raise UserError(errors.describe_composition_error(error, word)) from error
        refuse_foreign_launcher(cfg.hydra.launcher)
        values.check_config_values(cfg)
        refuse_idle(parsed, cfg)
        return cfg

    def culprit(self, text: str, config_name: str | None, overrides: Sequence[str], run_mode: RunMode) -> str:
        """Return the override that an error's ``text`` names, or else the first with which they do not compose."""
        for word in overrides:
            if word in text or f"'{word.partition('=')[0].lstrip('+~')}'" in text:
                return word
        for count in range(1, len(overrides) + 1):
            try:
                super().load_configuration(config_name, list(overrides[:count]), run_mode, True, False)
            except Exception:
                return overrides[count - 1]
        return "config"

    def is_group(self, override: Override) -> bool:
        """Return whether an override chooses a file of a group."""
        return self.files.group_exists(override.key_or_group)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose the config of a point; one that was composed already is handed out, once."""
        ready = self.composed.pop(tuple(sweep_overrides), None)
        return super().load_sweep_config(master_config, sweep_overrides) if ready is None else ready

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        """Read each file once, however many points are composed."""
        del config_name
        return OverridesParser.create().parse_overrides(overrides), self.files

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        """Load one file of the defaults list.

        Raises:
            UserError: if it sets the ``hydra`` section and may not.
        """
        loaded: Any = super()._load_single_config(default, repo)
        ours = OURS.fullmatch(default.config_path) and loaded.provider != "command-line"
        if "hydra" in loaded.config and not ours:
            raise UserError(
                f"{default.config_path}.yaml must not set hydra.*: set the launcher's options on the command line "
                "or in conf/hydra/launcher"
            )
        return replace(loaded, config=copy.deepcopy(loaded.config))  # which overrides change; the file is read once


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the config that a point's task gets."""
    with flag_override(cfg, ["readonly", "struct"], False):
        del cfg["hydra"]
    return cfg
