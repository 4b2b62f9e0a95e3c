"""What a run leaves beside its model: certificate, card and curves."""

import json
from pathlib import Path

import pytest

from hone.canonical import sha256_file
from hone.weights import weights_digest
from tests.support.training import make_job, row
from training.birth import card, draw_curves
from training.run import run_job

pytestmark = pytest.mark.slow


def test_a_run_leaves_a_certificate_a_card_and_curves(tiny_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_job(make_job(run, tiny_base, [row(k) for k in range(12)]))
    found = json.loads((run / "birth_certificate.json").read_text())
    assert found["weights_digest"] == weights_digest(run / "model")
    assert found["model_version"] == f"m-{found['weights_digest'][:12]}"
    assert found["dataset"]["files"]["train.jsonl"] == sha256_file(run / "data" / "train.jsonl")
    assert found["files"]["model.safetensors"] == sha256_file(run / "model" / "model.safetensors")
    assert found["versions"]["torch"].startswith("2.")
    assert found["spec"]["lora"]["rank"] == 4
    assert {gate["gate"] for gate in found["gates"]} >= {"win_rate", "stop_rules"}
    text = (run / "MODEL_CARD.md").read_text()
    assert text.startswith(f"# {found['model_version']}")
    assert "lora, rank 4, merged" in text
    assert "| win_rate | inconclusive |" in text
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert text == card(found), "the card is a function of the certificate"


def test_figures_that_never_change_have_no_panel(tmp_path: Path) -> None:
    draw_curves([{"loss": 1.0}, {"loss": 1.0}], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
