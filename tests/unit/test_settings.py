from pathlib import Path

import pytest

from hone.errors import ConfigError
from hone.settings import load_settings


def config(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "hone.toml"
    path.write_text(text)
    return {"HONE_CONFIG": str(path)}


def test_a_new_install_only_observes() -> None:
    assert load_settings({}).mode == "observe"


def test_the_file_sets_behaviour(tmp_path: Path) -> None:
    assert load_settings(config(tmp_path, "[trigger]\nmin_pairs = 7\n")).trigger.min_pairs == 7


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_TRIGGER__MIN_PAIRS", "9")
    assert load_settings(config(tmp_path, "[trigger]\nmin_pairs = 7\n")).trigger.min_pairs == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("[trigger]\nmin_pair = 7\n", ["min_pair", "7", "did you mean min_pairs"], id="a misspelt key"),
        pytest.param("[trigger]\nmin_pairs = 0\n", ["trigger.min_pairs", "0"], id="a value out of range"),
        pytest.param("[trigger\n", ["not valid TOML"], id="not TOML"),
        pytest.param("[colour]\nred = 1\n", ["colour", "not a setting"], id="an unknown table"),
    ],
)
def test_a_broken_file_is_named_with_key_value_and_remedy(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(config(tmp_path, text))
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_variable_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean HONE_DATABASE_URL"):
        load_settings({"HONE_DATABASE_URI": "x"})


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_settings({"HONE_CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "https://*.example", "null"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        load_settings(config(tmp_path, f'[gateway]\ncors_origins = ["{origin}"]\n'))


def test_an_empty_value_takes_an_optional_setting_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        'stable_model = "m"\nairflow_url = ""\n[gateway]\nresponse_hook_url = "http://hook"\n[ingest]\nstreams = "s"\n'
    )
    file = config(tmp_path, text)
    assert load_settings(file).airflow_url is None
    for name in ("STABLE_MODEL", "GATEWAY__RESPONSE_HOOK_URL", "INGEST__STREAMS"):
        monkeypatch.setenv(f"HONE_{name}", "")
    settings = load_settings(file)
    assert (settings.stable_model, settings.gateway.response_hook_url, settings.ingest.streams) == (None, None, None)
    monkeypatch.setenv("HONE_TRIGGER__MIN_PAIRS", "")
    with pytest.raises(ConfigError, match="min_pairs"):
        load_settings(file)
