"""From a record to its table. Pure: the same record gives the same text."""

import statistics
from dataclasses import dataclass

from works import ARMS, COLD_STARTS, IN_PROCESS, LLAMA, OURS, ROWS, VLLM, WORKS, Row

FLOOR, CANDLE = "floor", "stock candle"
# More than this share of one processor in use by others, and a number is not to be believed.
NOISE = 0.1


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of one value a round."""

    middle: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread | None":
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


def values(record: dict, row: Row, arm: str) -> dict[int, float]:
    """The row's metric by round."""
    return {
        sample["round"]: sample["values"][row.metric]
        for sample in record["samples"]
        if sample["work"] == row.work and sample["arm"] == arm and row.metric in sample["values"]
    }


def ratio(record: dict, row: Row, arm: str) -> Spread | None:
    """How many times as fast ours is, compared within each round; for times the inverse.

    vLLM starts once, so its start is held against the median of ours.
    """
    ours, theirs = values(record, row, OURS), values(record, row, arm)
    if row.work in COLD_STARTS and arm == VLLM and ours:
        ours = dict.fromkeys(theirs, statistics.median(ours.values()))
    pairs = [(ours[r], theirs[r]) for r in sorted(ours.keys() & theirs.keys())]
    return Spread.of([b / a if row.lower_is_better else a / b for a, b in pairs])


def floor(record: dict, row: Row) -> float | None:
    """The most that the machine allows: reading all weights once a token, or multiplying."""
    floors = record["floors"]
    precision = next((work.precision for work in WORKS if work.id == row.work), None)
    if row.metric == "decode_tok_s":
        rates = [sample["bytes_per_s"] for sample in floors["read"]
                 if sample["precision"] == precision]
        return max(rates) / record["weight_bytes"][precision] if rates else None
    if row.metric == "prefill_tok_s":
        rates = [sample["flop_per_s"] for sample in floors["multiply"]]
        return max(rates) / floors["flop_per_token"] if rates else None
    return None


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def cell(spread: Spread | None) -> str:
    if spread is None:
        return "—"
    if spread.n == 1:
        return number(spread.middle)
    return f"{number(spread.middle)} ({number(spread.low)}–{number(spread.high)})"


def times(spread: Spread | None) -> str:
    if spread is None:
        return "—"
    if spread.n == 1:
        return f"{spread.middle:.2f}×"
    return f"{spread.middle:.2f}× ({spread.low:.2f}–{spread.high:.2f})"


def share(record: dict, row: Row) -> float | None:
    most, ours = floor(record, row), Spread.of(list(values(record, row, OURS).values()))
    return ours.middle / most if most and ours else None


def verdict(record: dict, row: Row) -> str:
    """Each goal beside whether it was reached."""
    said = []
    for against, least in row.goals.items():
        if against == FLOOR:
            found, goal = share(record, row), f"{least:.0%} of the floor"
        else:
            spread = ratio(record, row, against)
            goal = f"{least:.2f}× {against}"
            found = spread.middle if spread else None
        outcome = "not measured" if found is None else "reached" if found >= least else "missed"
        said.append(f"{goal}: {outcome}")
    return "; ".join(said)


def columns(record: dict, row: Row) -> list[str]:
    extra = record.get("extra", {})
    most = floor(record, row)
    given = extra.get(FLOOR, {}).get(row.id, most)
    candle = extra.get(CANDLE, {}).get(row.id)
    measured = [cell(Spread.of(list(values(record, row, arm).values())))
                for arm in (LLAMA, VLLM, OURS, IN_PROCESS)]
    part = share(record, row)
    return [
        row.title, row.unit, number(given) if given else "—", number(candle) if candle else "—",
        *measured, times(ratio(record, row, LLAMA)), times(ratio(record, row, VLLM)),
        f"{part:.0%}" if part else "—", verdict(record, row),
    ]


HEAD = ["work", "unit", "floor", CANDLE, LLAMA, VLLM, OURS, IN_PROCESS, f"ours to {LLAMA}",
        f"ours to {VLLM}", "of the floor", "goal"]


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 2) + ["---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def noises(record: dict) -> list[str]:
    """Why the numbers may be wrong."""
    said = []
    busy = [r for r in record["rounds"] if r["busy_before"] > NOISE]
    if busy:
        worst = max(r["busy_before"] for r in busy)
        said.append(f"{len(busy)} of {len(record['rounds'])} rounds began with others using up to "
                    f"{worst:.2f} processors")
    samples = record["samples"]
    loud = [s for s in samples if s["others"] + s["stolen"] > NOISE]
    if loud:
        worst = max(s["others"] + s["stolen"] for s in loud)
        said.append(f"during {len(loud)} of {len(samples)} measurements others used up to "
                    f"{worst:.2f} processors")
    failed = [s for s in samples if s["error"]]
    said += [f"{s['arm']}, {s['work']}, round {s['round']}: {s['error']}" for s in failed]
    said += [f"{s['arm']}, {s['work']}, round {s['round']}: {note}"
             for s in samples for note in s["notes"]]
    said += [f"{name}: {reason}" for name, reason in sorted(record["absent"].items())]
    said += [f"{name} continues the prompt otherwise than the first: {text!r}"
             for name, text in strangers(record["answers"])]
    if not record["complete"]:
        said.append("the measurement was interrupted")
    return said


def strangers(answers: dict[str, str]) -> list[tuple[str, str]]:
    """bf16 servers whose greedy continuation differs: perhaps not the same weights.

    Quantized activations may change it, so other precisions are not held against each other.
    """
    plain = {name: text for name, text in answers.items() if name.endswith("bf16")}
    expected = next(iter(plain.values()), "")
    return [(name, text) for name, text in plain.items() if text != expected]


def markdown(record: dict) -> str:
    machine, rounds = record["machine"], record["rounds"]
    loads = [f"{r['load_average']:.2f}" for r in rounds]
    busy = [f"{r['busy_before']:.2f}" for r in rounds]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table = markdown_table(HEAD, [columns(record, row) for row in ROWS
                                  if row.work in record["works"]])
    wrong = noises(record)
    quiet = not any("others us" in text for text in wrong)
    parts = [
        f"# Peers: {machine['cpu']}, {record['started_at'][:10]}",
        f"{record['model']}, {record['threads']} threads each, {len(rounds)} rounds; "
        f"{machine['num_cpus']} processors ({' '.join(machine['cpu_features'])}), kernel "
        f"{machine['kernel']}. {versions}.",
        "Made by `python3 benches/peers/peers.py`; raw numbers in the JSON file of the same name.",
        table,
        "Median of the rounds (least–greatest). Every engine is driven over HTTP by one client, "
        "but for ours in process. A ratio says how many times as fast ours over HTTP is, compared "
        "within each round; for times it is theirs over ours, so that 0.8 of "
        "a time is 1.25×. The floor of decoding is the read bandwidth over the bytes of the "
        "weights, that of prefill the bf16 matrix product that oneDNN reaches over the "
        "multiply-adds of the layers. Load to first token counts from the spawn of the server, "
        "with its files in the page cache.",
        f"Processors used by others before each round: {', '.join(busy)}; one-minute load average "
        f"(earlier rounds are in it): {', '.join(loads)}. The machine was "
        + ("quiet." if quiet else "**not quiet**: neither numbers nor ratios are to be relied on."),
    ]
    if wrong:
        parts.append("\n".join(f"- {text}" for text in wrong))
    commands = "\n".join(f"{name}: {text}" for name, text in record["commands"].items())
    parts.append(f"```text\n{commands}\n```")
    return "\n\n".join(parts) + "\n"


assert set(ARMS) == {LLAMA, VLLM, OURS, IN_PROCESS}, "the table has a column for each arm"
