"""Data sets in a run directory as tests need them: rows, a work list, and what commits and reads them."""

from pipeline.data.store import Store
from pipeline.schema import INSTRUCTIONS
from tests import scripted


def mistake(i: int, status: str = "ok", error: str | None = None) -> dict:
    row = {
        "id": f"r{i}",
        "instruction_id": f"r{i}",
        "instruction": f"ask {i}",
        "response": "bad",
        "analysis": "because",
        "status": status,
    }
    return row | {"error": error}


def work(store: Store, n: int, block_rows: int = 100) -> None:
    rows = [scripted.instruction(f"ask {i}", id=f"r{i}", instruction_id=f"r{i}") for i in range(n)]
    store.write_work(rows, INSTRUCTIONS, lambda: {"read": n}, block_rows=block_rows)


def block(store: Store, number: int = 0):
    return store.block(store.work_list, number)


def commit(store: Store, rows: list[dict], number: int = 0) -> None:
    block(store, number).commit(rows)


def made(store: Store, rows: list[dict], fingerprint: dict | None = None) -> dict:
    store.open(fingerprint or {"seed": 1})
    work(store, len(rows))
    commit(store, rows)
    return store.finish()


def ids(store: Store) -> list[str]:
    return sorted(row["id"] for row in store.dataset.rows(["id"]))


def sft(n: int) -> dict:
    return {
        "id": f"e{n}",
        "instruction_id": f"i{n}",
        "kind": "safe",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
