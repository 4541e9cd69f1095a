"""What the viewer of Inspect needs beyond its reader: times, or it shows NaN, and each score's answer."""

from tests.unit.commands.reports import SECRET, write_answers
from tests.unit.commands.test_inspect_logs import logs, read


def test_a_log_has_times_and_its_scores_have_the_answer(tmp_path):
    write_answers(tmp_path)
    written, _ = logs(tmp_path)
    log = read(written[1])
    assert log.stats.started_at == log.stats.completed_at == log.eval.created
    answers = {score.answer for sample in log.samples for score in sample.scores.values()}
    assert f"So. {SECRET}" in answers and None not in answers
