"""The configuration of this invocation: file < environment < `--set` < the command's own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natwork_ray.config import Config, load_config
from natwork_ray.errors import ConfigError, UsageError

_file: Path | None = None
_flags: dict[str, str] = {}


def remember(file: Path | None, assignments: list[str]) -> None:
    """Keep the options that stand before the command."""
    global _file
    _file = file
    _flags.clear()
    for text in assignments:
        key, equals, given = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: no value", hint="write --set KEY=VALUE, e.g. --set loop.mode=act")
        _flags[key.strip()] = given.strip()


def settle(**options: Any) -> Config:
    """The configuration, with the command's own options (section__key=value, None for not given) on top."""
    given = {key.replace("__", "."): item for key, item in options.items() if item is not None}
    config = load_config(file=_file, flags={**_flags, **given})
    folder = config.replay.folder
    return config.model_copy(
        update={
            "state_dir": whole(config.state_dir),
            "data_dir": whole(config.data_dir) if config.data_dir else None,
            "model": whole(config.model) if config.model else None,
            "replay": config.replay.model_copy(update={"folder": whole(folder) if folder else None}),
        }
    )


def whole(path: Path) -> Path:
    """The absolute path, with ~ resolved: the processes of a cluster have folders of their own to be in."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}", hint="write the path out") from error


def named(key: str) -> bool:
    """Whether file, environment or `--set` named the key, so that a command's own default must not override it."""
    section, _, inner = key.rpartition(".")
    config = load_config(file=_file, flags=_flags)
    return inner in (getattr(config, section) if section else config).model_fields_set
