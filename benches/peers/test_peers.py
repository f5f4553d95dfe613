"""The pure parts, without a server: python3 -m unittest discover benches/peers"""

import pathlib
import tempfile
import unittest

import client
import harnesses
import install
import machine
import servers
import table
import works
from works import IN_PROCESS, LLAMA, OURS, ROWS, VLLM, WORKS


def sample(round_index, work, arm, **metrics):
    return client.Sample(round_index, work, arm, metrics).plain()


def record(samples):
    return {
        "schema_version": 1, "started_at": "2026-11-24T08:00:00+00:00", "complete": True,
        "machine": {"cpu": "Some CPU", "num_cpus": 2, "cpu_features": ["avx2"], "kernel": "6.1"},
        "model": "m", "threads": 2, "versions": {"yardstick": "0.1.0"}, "commands": {},
        "works": [work.id for work in WORKS] + list(works.COLD_STARTS),
        "weight_bytes": {"bf16": 100, "Q8_0": 50, "Q4_1": 30}, "answers": {}, "absent": {},
        "rounds": [{"round": 1, "load_average": 0.5, "busy_before": 0.01}],
        "floors": {"flop_per_token": 10, "multiply": [{"flop_per_s": 1000.0}],
                   "read": [{"precision": "bf16", "bytes_per_s": 9000.0},
                            {"precision": "bf16", "bytes_per_s": 10000.0}]},
        "samples": samples,
    }


def row(name):
    return next(row for row in ROWS if row.id == name)


class TableTest(unittest.TestCase):
    def test_ratios_are_taken_within_a_round(self):
        taken = record([
            sample(1, "decode-bf16", OURS, decode_tok_s=80.0),
            sample(1, "decode-bf16", LLAMA, decode_tok_s=40.0),
            # The machine was slower for both: the ratio holds.
            sample(2, "decode-bf16", OURS, decode_tok_s=20.0),
            sample(2, "decode-bf16", LLAMA, decode_tok_s=10.0),
            # Without a partner.
            sample(3, "decode-bf16", LLAMA, decode_tok_s=1.0),
        ])
        spread = table.ratio(taken, row("decode-bf16"), LLAMA)
        self.assertEqual(spread, table.Spread(2.0, 2.0, 2.0, 2))

    def test_half_the_time_is_twice_as_fast(self):
        taken = record([sample(1, "burst-bf16", OURS, ttft_ms=50.0),
                        sample(1, "burst-bf16", VLLM, ttft_ms=100.0)])
        self.assertEqual(table.ratio(taken, row("ttft10-bf16"), VLLM).middle, 2.0)
        self.assertEqual(table.verdict(taken, row("ttft10-bf16")), "1.25× vLLM: reached")

    def test_the_one_start_of_vllm_meets_the_median_of_ours(self):
        starts = [sample(i, "start-bf16", OURS, start_s=s) for i, s in enumerate((1, 2, 9), 1)]
        taken = record([*starts, sample(0, "start-bf16", VLLM, start_s=60.0)])
        self.assertEqual(table.ratio(taken, row("start-bf16"), VLLM).middle, 30.0)

    def test_the_floor_is_the_best_bandwidth_over_the_weights(self):
        taken = record([sample(1, "decode-bf16", OURS, decode_tok_s=79.0)])
        self.assertEqual(table.floor(taken, row("decode-bf16")), 100.0)
        self.assertIn("80% of the floor: missed", table.verdict(taken, row("decode-bf16")))
        self.assertEqual(table.floor(taken, row("prefill-bf16")), 100.0)
        self.assertIsNone(table.floor(taken, row("burst-bf16")))

    def test_what_was_not_measured_is_no_number(self):
        text = table.markdown(record([]))
        self.assertIn("1.30× llama.cpp: not measured", text)
        self.assertNotIn("nan", text.lower())
        self.assertIn("The machine was quiet.", text)

    def test_a_busy_machine_is_said_to_be_one(self):
        noisy = sample(1, "decode-bf16", OURS, decode_tok_s=80.0) | {"others": 0.4}
        text = table.markdown(record([noisy]))
        self.assertIn("not quiet", text)
        self.assertIn("during 1 of 1 measurements others used up to 0.40 processors", text)

    def test_numbers_from_elsewhere_fill_their_columns(self):
        taken = record([]) | {"extra": {"stock candle": {"decode-bf16": 36.6}}}
        cells = table.columns(taken, row("decode-bf16"))
        self.assertEqual(cells[table.HEAD.index("stock candle")], "36.6")

    def test_other_weights_are_noticed_by_their_answer(self):
        answers = {"ours bf16": " Paris.", "vLLM bf16": " London.", "ours Q4_1": " Rome."}
        self.assertEqual(table.strangers(answers), [("vLLM bf16", " London.")])

    def test_numbers_have_three_digits(self):
        shown = [table.number(value) for value in (0.2871, 66.54, 246.4, 4292.1)]
        self.assertEqual(shown, ["0.287", "66.5", "246", "4,292"])


class WorksTest(unittest.TestCase):
    def test_each_round_begins_with_another_arm(self):
        firsts = [works.order(works.ARMS, index)[0] for index in range(4)]
        self.assertEqual(sorted(firsts), sorted(works.ARMS))

    def test_no_prompts_are_asked_twice(self):
        seeds = [works.seed(7, index, number) for index in range(9) for number in range(len(WORKS))]
        self.assertEqual(len(seeds), len(set(seeds)))

    def test_every_row_has_its_work(self):
        known = {work.id for work in WORKS} | works.COLD_STARTS.keys()
        self.assertLessEqual({row.work for row in ROWS}, known)


class ClientTest(unittest.TestCase):
    work = WORKS[0]

    def summary(self, **changes):
        case = {"n": 1, "num_ok": 1, "errors": {}, "ttft_ms": {"p50": 50.0},
                "decode_tokens_per_s": {"p50": 80.0}, "output_tokens_per_s": 70.0}
        return {"cases": [case | changes], "absent": [], "warnings": []}

    def request(self, **changes):
        return {"num_output_tokens": 128, "num_prompt_tokens": 63, "num_cached_tokens": 0} | changes

    def test_a_short_answer_is_a_failure_and_no_fast_one(self):
        with self.assertRaisesRegex(client.RunFailed, r"\(63, 9\).+expected \(63, 128\)"):
            client.read(self.summary(), [self.request(num_output_tokens=9)], self.work)

    def test_failed_requests_fail_the_work(self):
        with self.assertRaisesRegex(client.RunFailed, "0 of 1 requests"):
            client.read(self.summary(num_ok=0), [], self.work)

    def test_prefill_is_prompt_tokens_over_the_time_to_the_first(self):
        work = next(work for work in WORKS if work.max_tokens == 1)
        request = self.request(num_prompt_tokens=512, num_output_tokens=1)
        values, notes = client.read(self.summary(ttft_ms={"p50": 100.0}), [request], work)
        self.assertEqual((values["prefill_tok_s"], notes), (5120.0, []))

    def test_a_prefix_cache_hit_is_noted(self):
        _, notes = client.read(self.summary(), [self.request(num_cached_tokens=48)], self.work)
        self.assertEqual(notes, ["48 prompt tokens came from a prefix cache"])

    def test_what_engine_and_client_used_is_not_of_others(self):
        before, after = machine.Ticks(0, 10, 1), machine.Ticks(10, 30, 2)
        self.assertEqual(client.others(before, after, 19), (0.1, 0.1))


class SetupTest(unittest.TestCase):
    def test_torch_is_left_out_but_not_what_begins_like_it(self):
        text = ("Requires-Dist: torch==2.13.0+cpu\nRequires-Dist: torchaudio\n"
                "Requires-Dist: torch-thing\nRequires-Dist: numpy\nRequires-Dist: x; extra == 'a'\n")
        self.assertEqual(install.requirements_without_torch(text), ["torch-thing", "numpy"])

    def test_libraries_get_the_names_that_programs_ask_for(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "libggml.so.0.26.0").touch()
            install.link_libraries(folder)
            install.link_libraries(folder)
            found = sorted(path.name for path in folder.iterdir())
        self.assertEqual(found, ["libggml.so", "libggml.so.0", "libggml.so.0.26.0"])

    def test_published_commands_name_no_folder_of_this_machine(self):
        launch = servers.Launch(OURS, "bf16", ["/opt/x/bin/yardstick", "--model", "/opt/x/m/hf"])
        folders = [pathlib.Path("/opt/x"), pathlib.Path("/opt/x/bin")]
        self.assertEqual(launch.shown(folders), "yardstick --model m/hf")

    def test_processor_names_become_file_names(self):
        self.assertEqual(machine.slug("Intel(R) Xeon(R) 6975P @ 2.0GHz"), "intel-xeon-6975p-2-0ghz")

    def test_stat_counts_what_is_busy_and_stolen(self):
        ticks = machine.TICKS
        line = f"cpu {ticks} {ticks} {ticks} 900 900 0 0 {2 * ticks} 0 0"
        self.assertEqual(machine.parse_stat(line), (3.0, 2.0))

    def test_in_process_is_an_arm_of_every_precision(self):
        self.assertTrue(all(IN_PROCESS in arms for arms in works.ARMS_OF.values()))

    def test_a_token_through_the_layers_costs_two_operations_a_weight(self):
        self.assertEqual(install.flop_per_token(), 212_406_912)


class Harnesses(unittest.TestCase):
    """Clients against the scripted server."""

    def test_truth_is_of_the_measured_requests_and_not_of_those_before(self):
        def truth(received_ms, ttft_ms):
            events = f'[[{ttft_ms}000000,"empty",0],[{ttft_ms}000000,"content",1]]'
            return f'{{"received_at_ns":{received_ms}000000,"events":{events}}}'

        load = harnesses.Load(2, 2, 20, 5)
        result = harnesses.Result("x", str(load))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "truth.jsonl"
            # A warm-up, an answer without a stream, and the measured ones, in no order.
            lines = [truth(30, 22), '{"received_at_ns":5,"events":[]}', truth(1, 90), truth(33, 20)]
            path.write_text("\n".join(lines))
            harnesses.add_truth(path, load, result)
        self.assertEqual((result.true_ttft_p50, result.spread_ms), (21.0, 3.0))
        self.assertEqual(result.notes, [])

    def test_table_shows_what_failed_and_what_is_absent(self):
        load = str(harnesses.Load(10, 100, 20, 5))
        good = harnesses.Result("a", load, ttft_p50=20.1, ttft_p99=20.5, cpu_us_per_token=4.26)
        good.notes.append("its mean")
        bad = harnesses.Result("b", load, error="ended with 1")
        text = harnesses.table([good, bad], {"started_at": "2026-01-01", "cpu": "c", "num_cpus": 2})
        self.assertIn("| a | 20.10 / 20.50 | – / – | – | – | – | 4.3 | – |", text)
        self.assertIn("| b | ended with 1 |", text)
        self.assertIn("- a: its mean", text)

    def test_percentiles_interpolate(self):
        self.assertEqual(harnesses.rank([3.0, 1.0], 0.5), 2.0)
        self.assertIsNone(harnesses.rank([], 0.5))


if __name__ == "__main__":
    unittest.main()
