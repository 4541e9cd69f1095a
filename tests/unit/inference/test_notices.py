"""Notices of engines: each reaches the person watching, once, whoever says it how often."""

import io

from rich.console import Console

from pipeline.inference import notices
from pipeline.inference.progress import Counter, Progress


def test_a_notice_is_told_once_per_process():
    said: list[str] = []
    notices.send_to(said.append)
    for text in ("a", "b", "a"):
        notices.tell(text)
    assert said == ["a", "b"]


def test_without_a_driver_notices_go_to_stderr(capsys):
    notices.send_to(notices._to_stderr)
    notices.tell("seed is left out")
    assert capsys.readouterr().err == "seed is left out\n"


def test_the_driver_prints_each_notice_of_several_engines_once():
    counter, out = Counter(), io.StringIO()
    for notice in ("[b]one[/b]", "two", "[b]one[/b]"):
        counter.tell(notice)
    progress = Progress.__new__(Progress)
    progress.label, progress._notices, progress._notices_told = "generate", counter.read()["notices"], 0
    for _ in range(2):
        progress._tell_notices(Console(file=out, width=200))
    assert out.getvalue() == "generate: [b]one[/b]\ngenerate: two\n"
