"""Where the programs are that the library only starts."""

from pathlib import Path

from hone.errors import ConfigError


def checkout() -> Path:
    """Return the checkout that this library runs from.

    Raises:
        ConfigError: it runs from an installed wheel, which holds no programs.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "serving").is_dir():
        raise ConfigError("this command starts programs that only a checkout or a hone image holds: run it there")
    return root
