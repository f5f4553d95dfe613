"""What is measured: the works, the arms that do them, and the goals. Knows no process and no file."""

from dataclasses import dataclass, field

OURS, IN_PROCESS, LLAMA, VLLM = "ours", "ours in process", "llama.cpp", "vLLM"
ARMS = (OURS, LLAMA, VLLM, IN_PROCESS)
PRECISIONS = ("bf16", "Q8_0", "Q4_1")
# vLLM's CPU backend has no GGUF kernels, so it takes part where the weights are bf16.
ARMS_OF = {"bf16": ARMS, "Q8_0": (OURS, LLAMA, IN_PROCESS), "Q4_1": (OURS, LLAMA, IN_PROCESS)}


@dataclass(frozen=True)
class Work:
    """One load, as the client drives it in every round."""

    id: str
    precision: str
    prompt_tokens: int
    max_tokens: int
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Row:
    """One line of the table: a metric of a work. Goals say how many times as fast ours must be."""

    id: str
    title: str
    work: str
    metric: str
    unit: str
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        return self.unit in ("ms", "s")


WORKS = (
    Work("decode-bf16", "bf16", 63, 128, 1, 3),
    Work("decode-q8_0", "Q8_0", 63, 128, 1, 3),
    Work("decode-q4_1", "Q4_1", 63, 128, 1, 3),
    Work("burst-bf16", "bf16", 63, 64, 10, 10),
    Work("burst-q4_1", "Q4_1", 63, 64, 10, 10),
    Work("prefill-bf16", "bf16", 512, 1, 1, 5),
)

# Not driven by the client but timed from the spawn of a process.
COLD_STARTS = {"start-bf16": "bf16", "start-q4_1": "Q4_1"}

# A time of at most 0.8 of vLLM's is 1.25 times as fast.
ROWS = (
    Row("decode-bf16", "decode, 1 stream, bf16", "decode-bf16", "decode_tok_s", "tok/s",
        {LLAMA: 1.3, "floor": 0.8}),
    Row("decode-q8_0", "decode, 1 stream, Q8_0", "decode-q8_0", "decode_tok_s", "tok/s",
        {LLAMA: 1.0}),
    Row("decode-q4_1", "decode, 1 stream, Q4_1", "decode-q4_1", "decode_tok_s", "tok/s",
        {LLAMA: 1.0}),
    Row("burst-bf16", "10 streams, with prefill, bf16", "burst-bf16", "output_tok_s", "tok/s",
        {VLLM: 1.3}),
    Row("burst-q4_1", "10 streams, with prefill, Q4_1", "burst-q4_1", "output_tok_s", "tok/s",
        {LLAMA: 1.3}),
    Row("prefill-bf16", "prefill 512, bf16", "prefill-bf16", "prefill_tok_s", "tok/s",
        {VLLM: 1.1}),
    Row("ttft-bf16", "TTFT, 63-token prompt, 1 stream, bf16", "decode-bf16", "ttft_ms", "ms",
        {VLLM: 1.25}),
    Row("ttft10-bf16", "TTFT, 63-token prompt, 10 at once, bf16", "burst-bf16", "ttft_ms", "ms",
        {VLLM: 1.25}),
    Row("start-bf16", "load to first token, bf16", "start-bf16", "start_s", "s", {LLAMA: 1.0}),
    Row("start-q4_1", "load to first token, Q4_1", "start-q4_1", "start_s", "s", {LLAMA: 1.0}),
)


def order(arms: tuple[str, ...], round_index: int) -> list[str]:
    """The arms in turn, begun one later in each round, so that none always follows the same one."""
    start = round_index % len(arms)
    return list(arms[start:] + arms[:start])


def seed(base: int, round_index: int, work_index: int) -> int:
    """Distinct for each round and work, the same for all arms: equal prompts, and none asked twice."""
    return base + round_index * len(WORKS) + work_index
