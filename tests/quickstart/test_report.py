import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.report.logs import read_run
from mindspeed_llm.tasks.quickstart.logs import read_accuracy, read_times
from mindspeed_llm.tasks.quickstart.report import check_accuracy, collect, summary_lines, write_report


def _line(iteration, total, loss, speed=True):
    tail = " tokens/s: 5012.3 | peak memory (MB): 812.0 |" if speed else ""
    return (f" [2026-11-24 02:00:00] iteration {iteration:8d}/{total:8d} | consumed samples: {iteration * 16:12d} | "
            f"elapsed time per iteration (ms): 1234.5 | learning rate: 6.250000E-08 | global batch size:    16 | "
            f"lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 7.123 | number of skipped iterations:   0 | "
            f"number of nan iterations:   0 |{tail}\n")


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "pretrain.log").write_text("start\n" + "".join(_line(i, 3, 7.0 - 2 * i) for i in (1, 2, 3)))
    (tmp_path / "tune.log").write_text("".join(_line(i, 2, 4.0 / i, speed=False) for i in (1, 2)))
    name = "INFO:mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval:mmlu acc = "
    (tmp_path / "before.log").write_text(f"{name}96/384=0.25\n")
    (tmp_path / "after.log").write_text(f"{name}80/96=0.8333333333333334\n{name}360/384=0.9375\n")
    (tmp_path / "times.tsv").write_text("pre-training\t90.0\nfine-tuning\t30.5\npre-training\t95.5\n")
    (tmp_path / "generate.log").write_text(
        "INFO:root:loading\nYou:\nA Kreglutrar is a\n\nMindSpeed-LLM:\n bird.\nINFO:x:y\n")
    return tmp_path


def _collect(logs, **changes):
    names = {"pretrain_log": "pretrain.log", "tune_log": "tune.log", "before_log": "before.log",
             "after_log": "after.log", "times": "times.tsv", "generate_log": "generate.log"} | changes
    return collect(**{key: logs / name for key, name in names.items()})


def test_iterations(logs):
    found = read_run(logs / "pretrain.log").iterations
    assert [line.number for line in found] == [1, 2, 3]
    assert [line.loss for line in found] == [5.0, 3.0, 1.0]
    assert found[0].seconds == 1.2345 and found[0].tokens_per_second == 5012.3
    assert read_run(logs / "tune.log").iterations[0].tokens_per_second is None


def test_resumed_log_counts_the_later_line(logs):
    with open(logs / "pretrain.log", "a") as file:
        file.write(_line(2, 3, 2.5) + _line(3, 3, 0.5))
    assert [line.loss for line in read_run(logs / "pretrain.log").iterations] == [5.0, 2.5, 0.5]


def test_last_accuracy_is_the_total(logs):
    score = read_accuracy(logs / "after.log")
    assert (score.right, score.questions, score.share) == (360, 384, 0.9375)


def test_summary_wording(logs):
    lines = summary_lines(_collect(logs))
    assert lines[-3:] == ["accuracy before fine-tuning: 0.25", "accuracy after fine-tuning: 0.94", "total minutes: 2.1"]
    assert lines[0] == "pre-training loss: 5.0000 (iteration 1) -> 1.0000 (iteration 3), 5012 tokens/s"
    assert lines[1] == "fine-tuning loss: 4.0000 (iteration 1) -> 2.0000 (iteration 2)"


def test_report_files(logs):
    path = write_report(logs / "out", _collect(logs))
    text = path.read_text()
    assert path.name == "report.md" and "](loss.png)" in text
    assert "| pre-training | 95.5 |" in text and "| fine-tuned | 360 | 384 | 0.9375 |" in text
    assert "MindSpeed-LLM:\n bird.\n```" in text and "INFO" not in text
    picture = (logs / "out" / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82")
    assert sorted(file.name for file in (logs / "out").iterdir()) == ["loss.png", "report.md"]


def test_bounds(logs):
    results = _collect(logs)
    check_accuracy(results, 0.35, 0.8)
    check_accuracy(results, None, None)
    with pytest.raises(UserError, match="after fine-tuning is 0.9375, at least 0.95"):
        check_accuracy(results, 0.35, 0.95)
    with pytest.raises(UserError, match="before fine-tuning is 0.2500, at most 0.2"):
        check_accuracy(results, 0.2, 0.8)


def test_missing_and_incomplete_logs(logs):
    with pytest.raises(FileNotFoundError, match="nothing.log is missing"):
        _collect(logs, tune_log="nothing.log")
    (logs / "empty.log").write_text("")
    with pytest.raises(UserError, match="empty.log has no iteration lines"):
        _collect(logs, pretrain_log="empty.log")
    with pytest.raises(UserError, match="empty.log has no line 'mmlu acc"):
        _collect(logs, before_log="empty.log")
    with pytest.raises(UserError, match="empty.log has no generated text"):
        _collect(logs, generate_log="empty.log")
    (logs / "bad.tsv").write_text("pre-training 90\n")
    with pytest.raises(UserError, match="bad.tsv line 1 is 'pre-training 90'"):
        read_times(logs / "bad.tsv")
