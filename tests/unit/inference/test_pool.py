"""The actor that runs a recipe over blocks of rows, without Ray and without an engine."""

import asyncio
import tempfile
from collections import defaultdict
from types import SimpleNamespace

import pyarrow as pa
import pytest
from ray.exceptions import ActorDiedError

from pipeline.chat import Completion, Sampling, user
from pipeline.data.store import Store
from pipeline.errors import NoAnswer, RowFailed, RunFailed
from pipeline.inference.pool import (
    BLOCK_STARTS,
    FRUITLESS_STARTS,
    ROW_STARTS,
    Job,
    ModelSpec,
    RecipeActor,
)
from pipeline.inference.progress import Counter, Reporter, Tally
from pipeline.inference.row_chat import RowChat, seed_of
from pipeline.inference.vllm import VLLM
from pipeline.judges import Exchange, Rating
from pipeline.judges.yes_no import YesNo
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model
from pipeline.suites.safety.schema import ANSWERS
from tests.scripted import instruction


class EchoModel:
    """Answers with the last message; remembers seeds and how many calls were in flight at once."""

    def __init__(self):
        self.seeds: list[int] = []
        self.adapters: list[str | None] = []
        self.in_flight = self.most_in_flight = 0

    async def complete(self, messages, sampling, *, seed, adapter, prefill=True):
        self.seeds.append(seed)
        self.adapters.append(adapter)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        return [Completion(messages[-1]["content"], 10, 3, "length") for _ in range(sampling.n)]


class Progress:
    """A Reporter that keeps everything here."""

    def __init__(self, starts: int = 1):
        self.starts, self.totals, self.ready = starts, defaultdict(Tally), False
        self.begun: dict[str, int] = {}

    def engine_starting(self):
        return self.starts

    def tell(self, notice):
        raise AssertionError(notice)

    def not_opened(self, engine, why):
        raise AssertionError(why)

    def starting(self, what):
        return self.begun.get(what, 1)

    def engine_ready(self, _seconds):
        self.ready = True

    def rows_waiting(self, rows):
        pass

    def row_started(self):
        pass

    def row_done(self, output, tally):
        self.totals[output] += tally

    def flush(self):
        pass

    def arrived(self):
        pass


class TwoSteps:
    async def __call__(self, row, chat):
        [first] = await chat([user(row["instruction"])], Sampling(8), step="induce")
        await chat([user(first.text)], Sampling(8, n=2), step="analyse", adapter="an/adapter")
        return {"response": first.text, "harmful": True, "status": "ok"}


class FailsOn:
    """Raises for instructions that name an error."""

    async def __call__(self, row, chat):
        await chat([user("hello")], Sampling(8), step="induce")
        if row["instruction"] == "row failed":
            raise RowFailed("prompt too long: 9 tokens")
        if row["instruction"] == "unforeseen":
            raise ValueError(f"secret harmful text of {row['instruction']}")
        return {"response": "fine", "status": "ok"}


@pytest.fixture
def model(monkeypatch):
    model = EchoModel()
    monkeypatch.setattr(ModelSpec, "open", lambda self: model)
    return model


def spec(**engine) -> ModelSpec:
    return ModelSpec(Model(path="toy"), "/toy", VLLM(**engine))


def actor_of(store: Store, recipe, seed=0, progress=None, **engine) -> RecipeActor:
    return RecipeActor(spec(**engine), [Job(recipe, store)], seed, progress or Progress())


def written(directory, rows, schema=MISTAKES, work=INSTRUCTIONS, block_rows=100) -> Store:
    store = Store(str(directory), schema.name, schema)
    store.write_work(rows, work, block_rows=block_rows)
    return store


def run_blocks(actor: RecipeActor, numbers: list[int]) -> None:
    async def blocks():
        return [table async for table in actor(pa.table({"job": [0], "blocks": [numbers]}))]

    asyncio.run(blocks())


def run(recipe, rows, schema=MISTAKES, work=INSTRUCTIONS, **how) -> list[dict]:
    with tempfile.TemporaryDirectory() as directory:
        store = written(directory, rows, schema, work)
        run_blocks(actor_of(store, recipe, **how), list(range(store.work_list.blocks)))
        store.finish()
        return list(store.dataset.rows())


def rows(n: int) -> list[dict]:
    return [instruction(f"ask {i}", id=f"r{i}", instruction_id=f"r{i}") for i in range(n)]


def test_rows_carry_their_columns_and_their_tokens(model):
    progress = Progress()
    [first, second] = run(TwoSteps(), rows(2), progress=progress)
    assert (first["id"], first["response"], first["category"], first["safe_response"]) == (
        "r0",
        "ask 0",
        "fraud",
        "Better buy one.",
    )
    assert second["response"] == "ask 1"
    assert (first["prompt_tokens"], first["completion_tokens"]) == (
        20,
        9,
    )  # a prompt is read once, however many samples it has
    assert first["finish_reasons"] == ["length", "length", "length"]
    assert progress.ready
    wanted = Tally(rows=2, judged=2, harmful=2, prompt_tokens=40, completion_tokens=18)
    assert progress.totals == {"mistakes": wanted}


def test_adapters_are_passed_on(model):
    run(TwoSteps(), rows(1))
    assert model.adapters == [None, "an/adapter"]


def test_one_bad_row_fails_alone(model):
    asked = [instruction(text, id=text) for text in ("good", "row failed", "unforeseen", "good too")]
    progress = Progress()
    results = {row["id"]: row for row in run(FailsOn(), asked, progress=progress)}
    assert [row["status"] for row in results.values()] == ["ok", "failed", "failed", "ok"]
    assert results["row failed"]["error"] == "prompt too long: 9 tokens"
    assert results["row failed"]["prompt_tokens"] == 10  # what it cost is told all the same
    assert progress.totals["mistakes"].failed == 2


def test_the_text_of_an_unforeseen_error_is_stored_nowhere(model, capfd):
    [row] = run(FailsOn(), [instruction("unforeseen")])
    assert row["error"] == "ValueError in FailsOn"
    assert "secret" not in str(row) + "".join(capfd.readouterr())


def test_a_malformed_row_is_kept_as_it_is_and_costs_nothing(model):
    [row] = run(TwoSteps(), [instruction("", status="failed", error="instruction is empty")])
    assert (row["status"], row["error"], row["response"], row["prompt_tokens"]) == (
        "failed",
        "instruction is empty",
        None,
        0,
    )
    assert row["finish_reasons"] == []
    assert model.seeds == []


def test_seeds_depend_on_run_row_and_step_alone(model):
    run(TwoSteps(), rows(3), seed=5, max_num_seqs=1)
    run(TwoSteps(), rows(3)[::-1], seed=5)
    first, again = model.seeds[:6], model.seeds[6:]
    assert sorted(first) == sorted(again)
    assert len(set(first)) == 6
    assert set(first) == {seed_of(5, f"r{i}", step) for i in range(3) for step in ("induce", "analyse")}
    assert set(first).isdisjoint(
        seed_of(6, f"r{i}", step) for i in range(3) for step in ("induce", "analyse")
    )
    assert all(0 <= seed < 2**62 for seed in first)


@pytest.mark.parametrize(("sequences", "in_flight"), [(2, 3), (4, 6), (100, 10)])
def test_half_as_many_rows_again_are_in_flight_as_the_batch_has_places(model, sequences, in_flight):
    run(TwoSteps(), rows(10), max_num_seqs=sequences)
    assert model.most_in_flight == in_flight


def test_no_rows_are_no_work(model):
    assert run(TwoSteps(), []) == []


def test_a_task_that_is_run_again_passes_over_what_is_committed(model, tmp_path):
    """Its first actor died after two of its three blocks."""
    store = written(tmp_path, rows(6), block_rows=2)
    run_blocks(actor_of(store, TwoSteps()), [0, 2])
    asked = len(model.seeds)
    run_blocks(actor_of(store, TwoSteps()), [0, 1, 2])
    assert len(model.seeds) - asked == 4
    assert store.finish()["rows"] == 6


def test_rows_that_failed_are_run_again_and_no_others(model, tmp_path):
    store = written(tmp_path, [instruction(text, id=text) for text in ("good", "row failed", "good too")])
    run_blocks(actor_of(store, FailsOn()), [0])
    store.finish()
    assert store.reopen_failed() == 1
    model.seeds.clear()
    run_blocks(actor_of(store, TwoSteps()), [0])
    assert model.seeds == [seed_of(0, "row failed", step) for step in ("induce", "analyse")]
    assert store.finish()["status"] == {"ok": 3}
    assert [row["response"] for row in store.dataset.rows()] == ["fine", "row failed", "fine"]


def test_a_row_that_kills_its_engine_is_found_and_kept_as_failed(model, tmp_path):
    """Its block has been begun too often: every row is run alone; the deadly one, begun alone too often, is
    not run again."""
    store, progress = written(tmp_path, rows(5)), Progress()
    begun = {"block 0": BLOCK_STARTS + 1, "row r3": ROW_STARTS + 1, "row r1": ROW_STARTS}
    progress.begun = {f"mistakes {what}": times for what, times in begun.items()}
    run_blocks(actor_of(store, TwoSteps(), progress=progress), [0])
    assert store.finish()["reasons"] == {"the engine died each time it ran this row": 1}
    assert [row["status"] for row in store.dataset.rows()] == ["ok", "ok", "ok", "failed", "ok"]
    assert model.most_in_flight == 1


def test_a_write_that_fails_ends_the_block(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = written(tmp_path, rows(2))
    monkeypatch.setattr("pipeline.data.storage.write_bytes", full)
    with pytest.raises(RunFailed, match="the disk is full; free some space"):
        run_blocks(actor_of(store, TwoSteps()), [0])
    assert not store.committed()


def test_an_actor_around_which_ray_goes_down_ends_without_failing_the_run(model, tmp_path, monkeypatch):
    """A node that is lost does not lose all its processes at the same moment."""

    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    class Gone(Progress):
        def starting(self, what):
            raise ActorDiedError

    monkeypatch.setattr("os._exit", end)
    store = written(tmp_path, rows(2))
    with pytest.raises(Ended, match="1"):
        run_blocks(actor_of(store, TwoSteps(), progress=Gone()), [0])
    assert not store.committed()


def test_the_evaluation_has_no_list_of_finish_reasons(model):
    class Answers:
        async def __call__(self, row, chat):
            [answer] = await chat([user("x")], Sampling(8), step="answer")
            return {"response": answer.text, "finish_reason": answer.finish_reason, "status": "ok"}

    asked = {"id": "a", "instruction": "x", "suite": "harmful", "arm": "vanilla", "condition": "plain"}
    [row] = run(Answers(), [asked], schema=ANSWERS, work=ANSWERS)
    assert (row["finish_reason"], row["suite"], row["status"]) == ("length", "harmful", "ok")


def test_engines_that_die_again_and_again_end_the_run(model, tmp_path):
    store = written(tmp_path, rows(1))
    actor_of(store, TwoSteps(), progress=Progress(starts=FRUITLESS_STARTS + 2), actors=2)
    with pytest.raises(RunFailed, match="keep crashing before they finish a row"):
        actor_of(store, TwoSteps(), progress=Progress(starts=FRUITLESS_STARTS + 3), actors=2)


def test_a_finished_row_forgives_earlier_engine_starts():
    counter = Counter()
    assert [counter.engine_starting(), counter.engine_starting()] == [1, 2]
    counter.add({"mistakes": Tally(rows=1)})
    assert counter.engine_starting() == 1


def test_the_counter_adds_up_by_output():
    counter = Counter()
    counter.engine_ready(2.0)
    counter.engine_ready(9.0)
    failed = Tally.of({"status": "failed", "prompt_tokens": 3, "completion_tokens": None})
    counter.add({"mistakes": failed})
    fine = Tally.of({"status": "ok", "harmful": False, "completion_tokens": 4})
    counter.add({"mistakes": fine, "other": failed})
    read = counter.read()
    assert read["tallies"] == {
        "mistakes": Tally(rows=2, failed=1, judged=1, prompt_tokens=3, completion_tokens=4),
        "other": Tally(rows=1, failed=1, prompt_tokens=3),
    }
    assert read["engine_start_s"] == 2.0


def test_the_reporter_sends_every_row_but_seldom():
    sent = []
    reporter = Reporter(SimpleNamespace(add=SimpleNamespace(remote=sent.append)))
    for _ in range(100):
        reporter.row_done("mistakes", Tally(rows=1))
    reporter.flush()
    assert sum(tallies["mistakes"].rows for tallies in sent if tallies) == 100
    assert len(sent) <= 3


def test_an_engine_divides_its_time_among_outputs_by_their_tokens(monkeypatch):
    sent, clock = [], [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    reporter = Reporter(SimpleNamespace(add=SimpleNamespace(remote=sent.append)))
    reporter.flush()  # nothing is sent, so no time is lost either
    clock[0] += 8
    reporter.row_done("a", Tally(rows=1, completion_tokens=4))  # sent at once: nothing was sent for 8 s
    clock[0] += 0.1
    reporter.row_done("a", Tally(rows=1, completion_tokens=9))
    reporter.row_done("b", Tally(rows=1, completion_tokens=20))
    reporter.row_done("b", Tally(rows=9))  # no tokens, and not for nothing all the same
    clock[0] += 3.9
    reporter.flush()
    assert [{output: tally.engine_s for output, tally in tallies.items()} for tallies in sent] == [
        {},
        {"a": 8.0},
        {"a": pytest.approx(1.0), "b": pytest.approx(3.0)},
    ]


def test_actors_are_a_number_or_a_range():
    assert (spec(actors=3).least_actors, spec(actors=3).most_actors) == (3, 3)
    assert (spec(actors=(1, 4)).least_actors, spec(actors=(1, 4)).most_actors) == (1, 4)


def test_a_model_is_opened_by_what_the_configuration_names(monkeypatch):
    from pipeline.inference.openai import EndpointModel, OpenAI

    monkeypatch.setenv("KEY", "k")
    server = OpenAI(url="http://localhost:1/v1", model="m", api_key_env="KEY")
    assert isinstance(ModelSpec(Model(path="toy"), "/toy", server).open(), EndpointModel)


def test_finish_reasons_stand_in_the_order_of_the_calls():
    """Calls of one row run at once and end in any order; what is stored must not depend on it."""

    class Slow:
        async def complete(self, messages, sampling, *, seed, adapter, prefill=True):
            await asyncio.sleep(0.02 if messages[0]["content"] == "slow" else 0)
            return [Completion("", 1, 1, messages[0]["content"])]

    async def both():
        chat = RowChat(Slow(), 0, "id")
        await asyncio.gather(*(chat([user(text)], Sampling(1), step=text) for text in ("slow", "fast")))
        return chat.finish_reasons

    assert asyncio.run(both()) == ["slow", "fast"]


def test_a_raw_text_and_a_closed_turn_reach_the_model_and_count_like_any_call():
    class Model:
        asked = []  # noqa: RUF012

        async def complete(self, prompt, sampling, *, seed, adapter, prefill=True):
            self.asked.append((prompt, seed, adapter, prefill))
            return [Completion("", 4, 2, "length")]

    chat = RowChat(Model(), 0, "id")
    messages = [user("a"), {"role": "assistant", "content": "b"}]
    asyncio.run(chat.complete("a text", Sampling(1), step="raw", adapter="there"))
    asyncio.run(chat(messages, Sampling(1), step="closed", prefill=False))
    assert Model.asked == [
        ("a text", seed_of(0, "id", "raw"), "there", True),
        (messages, seed_of(0, "id", "closed"), None, False),
    ]
    assert (chat.prompt_tokens, chat.completion_tokens, chat.finish_reasons) == (8, 4, ["length"] * 2)


# -- thoughts


class Thinks:
    """Answers with the texts it is given, one a sample."""

    def __init__(self, *texts: str, tokens: int | None = 4):
        self.completions = [Completion(text, 9, 7, "stop", thought_tokens=tokens) for text in texts]

    async def complete(self, prompt, sampling, *, seed, adapter, prefill=True):
        return self.completions


def ask(model, step="induce", **more) -> tuple[RowChat, list[Completion]]:
    chat = RowChat(model, 0, "id", **more)
    n = len(model.completions)
    return chat, asyncio.run(chat([user("how")], Sampling(9, n=n), step=step))


def test_a_recipe_sees_answers_without_thoughts():
    chat, [first, second] = ask(Thinks("<think>hm</think>\n\nNo.", "Yes.", tokens=4))
    assert (first.text, first.thought, second.text, second.thought) == ("No.", "hm", "Yes.", None)
    assert chat.thoughts == [{"step": "induce", "text": "hm", "ended": True}]
    assert (chat.thought_tokens, chat.completion_tokens) == (8, 14)


def test_a_thought_without_an_end_is_no_answer():
    model = Thinks("<think>hm, No, sure")
    chat = RowChat(model, 0, "id")
    with pytest.raises(NoAnswer, match=r"thought without an end: raise max_tokens, or turn thinking off"):
        asyncio.run(chat([user("how")], Sampling(9), step="induce"))
    assert chat.thoughts == [{"step": "induce", "text": "hm, No, sure", "ended": False}]
    assert chat.thought_tokens == 4
    _, [first, second] = ask(Thinks("<think>hm", "No."))  # the other sample has answered
    assert (first.text, first.answered, second.text, second.answered) == ("", False, "No.", True)


def test_thoughts_are_columns_of_the_row(model):
    class ThinksAloud(EchoModel):
        async def complete(self, messages, sampling, *, seed, adapter, prefill=True):
            texts = [f"<think>hm</think>{messages[-1]['content']}"] * sampling.n
            return [Completion(text, 10, 3, "stop", thought_tokens=2) for text in texts]

    model.complete = ThinksAloud().complete
    [row] = run(TwoSteps(), rows(1))
    assert row["response"] == "ask 0"
    assert {thought["text"] for thought in row["thoughts"]} == {"hm"}
    assert (row["thought_tokens"], len(row["thoughts"])) == (6, 3)


def test_a_judge_reads_no_thought():
    exchange = Exchange("How?", "Sure.", "Sure")
    cases = (
        (YesNo(), "<think>Yes, it does. Yes.</think>\nNo.", False),
        (YesNo(), "<think>Yes, it does.", None),
        (YesNo(), "[THINK]no no[/THINK]yes", True),
        (Rating(), "<think>Rating: [[10]]</think>Bad. Rating: [[1]]", False),
        (Rating(), "<think>Rating: [[10]]", None),
    )
    for judge, text, ok in cases:
        verdict = asyncio.run(judge(exchange, RowChat(Thinks(text), 0, "id"), "judge"))
        assert verdict.ok is ok, text


# -- the end of an actor
