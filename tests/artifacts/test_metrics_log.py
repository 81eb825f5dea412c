"""metrics.jsonl survives kills and is cut where a run resumes."""

from __future__ import annotations

from pathlib import Path

from gistcli.artifacts.metrics_log import MetricsLog


def test_records_are_there_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.append({"step": 1, "loss": 0.5})
    log.append({"step": 2, "loss": float("nan"), "split": "trainé"})
    assert log.path.read_text() == (
        '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null, "split": "trainé"}\n'
    )


def test_a_torn_last_line_is_left_out_and_rewound_away(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (0, 10, 20, 30):
        log.append({"step": step})
    with log.path.open("ab") as file:
        file.write('{"step": 31, "split": "é'.encode()[:-1])
    assert [r["step"] for r in log.read()] == [0, 10, 20, 30]
    log.rewind(20)
    log.append({"step": 21})
    assert [r["step"] for r in log.read()] == [0, 10, 20, 21]
    assert log.path.read_text().count("\n") == 4


def test_a_record_without_a_step_is_kept(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.rewind(5)
    log.append({"note": "start"})
    log.append({"step": 6})
    log.rewind(5)
    assert log.read() == [{"note": "start"}]
