"""Makes the seeds of the fuzz targets: small files that are whole.

    python fuzz/make_seeds.py

Needs nothing but Python. Weights are a repeated byte: what is fuzzed reads them,
it does not compute with them.
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
VOCAB, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 8, 32, 32, 2, 1, 8
TOKENS = ["<|begin|>", "<|end|>", "a", "b", "ab", "Ġ", "Ċ", "c"]
# GGML's number, elements and bytes of a block.
F32, F16, Q4_0, Q8_0, BF16 = (0, 1, 4), (1, 1, 2), (2, 32, 18), (8, 32, 34), (30, 1, 2)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def shapes(biases):
    """Hugging Face name, GGUF name, shape."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    yield "model.embed_tokens.weight", "token_embd.weight", [VOCAB, HIDDEN]
    for name, short, shape in [
        ("input_layernorm.weight", "attn_norm.weight", [HIDDEN]),
        ("self_attn.q_proj.weight", "attn_q.weight", [q, HIDDEN]),
        ("self_attn.k_proj.weight", "attn_k.weight", [kv, HIDDEN]),
        ("self_attn.v_proj.weight", "attn_v.weight", [kv, HIDDEN]),
        ("self_attn.o_proj.weight", "attn_output.weight", [HIDDEN, q]),
        ("post_attention_layernorm.weight", "ffn_norm.weight", [HIDDEN]),
        ("mlp.gate_proj.weight", "ffn_gate.weight", [INNER, HIDDEN]),
        ("mlp.up_proj.weight", "ffn_up.weight", [INNER, HIDDEN]),
        ("mlp.down_proj.weight", "ffn_down.weight", [HIDDEN, INNER]),
    ]:
        yield f"model.layers.0.{name}", f"blk.0.{short}", shape
    if biases:
        for part, rows in [("q", q), ("k", kv), ("v", kv)]:
            yield f"model.layers.0.self_attn.{part}_proj.bias", f"blk.0.attn_{part}.bias", [rows]
    yield "model.norm.weight", "output_norm.weight", [HIDDEN]


def count(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, item):
    formats = {4: "<I", 5: "<i", 6: "<f", 7: "<B"}
    return text(item) if kind == 8 else struct.pack(formats[kind], item)


def gguf(family, dtype, alignment=None, more=()):
    def entry(key, kind, item):
        return text(key) + struct.pack("<I", kind) + value(kind, item)

    def array(key, kind, items):
        head = struct.pack("<IIQ", 9, kind, len(items))
        return text(key) + head + b"".join(value(kind, item) for item in items)

    metadata = [
        entry("general.architecture", 8, family),
        entry(f"{family}.block_count", 4, 1),
        entry(f"{family}.context_length", 4, 64),
        entry(f"{family}.embedding_length", 4, HIDDEN),
        entry(f"{family}.feed_forward_length", 4, INNER),
        entry(f"{family}.attention.head_count", 4, HEADS),
        entry(f"{family}.attention.head_count_kv", 4, KV_HEADS),
        entry(f"{family}.attention.key_length", 4, HEAD_DIM),
        entry(f"{family}.attention.layer_norm_rms_epsilon", 6, 1e-5),
        entry(f"{family}.rope.freq_base", 6, 1e4),
        entry("tokenizer.ggml.model", 8, "gpt2"),
        entry("tokenizer.ggml.pre", 8, "qwen2" if family == "qwen2" else "gpt-2"),
        array("tokenizer.ggml.tokens", 8, TOKENS),
        array("tokenizer.ggml.token_type", 5, [3, 3, 1, 1, 1, 1, 1, 1]),
        array("tokenizer.ggml.merges", 8, ["a b"]),
        entry("tokenizer.ggml.eos_token_id", 4, 1),
        entry("tokenizer.ggml.add_bos_token", 7, 0),
        entry("tokenizer.chat_template", 8, "{{ messages[0]['content'] }}"),
    ]
    metadata.extend(more)
    if alignment:
        metadata.append(entry("general.alignment", 4, alignment))
    alignment = alignment or 32
    table, data = [], b""
    for _, name, shape in shapes(family == "qwen2"):
        number, block, size = F32 if len(shape) == 1 or shape[1] % dtype[1] else dtype
        table.append(text(name) + struct.pack("<I", len(shape)))
        table.append(b"".join(struct.pack("<Q", dim) for dim in reversed(shape)))
        table.append(struct.pack("<IQ", number, len(data)))
        data += b"\x01" * (count(shape) // block * size)
        data += b"\0" * (-len(data) % alignment)
    counts = struct.pack("<QQ", len(table) // 3, len(metadata))
    head = b"GGUF" + struct.pack("<I", 3) + counts + b"".join(metadata) + b"".join(table)
    return head + b"\0" * (-len(head) % alignment) + data


def nested():
    """An entry that is an array of two arrays, one of bytes and one of texts."""
    inner = struct.pack("<IQ", 0, 3) + b"abc" + struct.pack("<IQ", 8, 1) + text("d")
    return text("some.matrix") + struct.pack("<IIQ", 9, 9, 2) + inner


def safetensors(dtype, size):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, _, shape in shapes(False):
        end = len(data) + count(shape) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += b"\x01" * (end - len(data))
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + data


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "vocab": {token: index for index, token in enumerate(TOKENS)},
        "merges": [["a", "b"]],
    },
}


def write(target, name, raw):
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(raw)


def main():
    (HERE / "config.json").write_text(json.dumps(CONFIG) + "\n")
    (HERE / "tokenizer.json").write_text(json.dumps(TOKENIZER, ensure_ascii=False) + "\n")
    write("gguf", "q4_0", gguf("llama", Q4_0))
    write("gguf", "q8_0_aligned", gguf("llama", Q8_0, 8))
    write("gguf", "qwen2_bf16", gguf("qwen2", BF16))
    write("gguf", "f16_nested", gguf("llama", F16, more=[nested()]))
    write("safetensors", "bf16", safetensors("BF16", 2))
    write("safetensors", "f32", safetensors("F32", 4))
    fixtures = HERE.parent / "tests"
    for family in json.loads((fixtures / "fixtures/breadth.json").read_text())["families"]:
        write("config", family["name"], json.dumps(family["config"]).encode())
    for wire in sorted((fixtures / "it/support/wire").iterdir()):
        for target, suffix in [("sse", ".sse"), ("ndjson", ".ndjson")]:
            if wire.suffix == suffix:
                write(target, wire.stem, wire.read_bytes())
    for log in sorted((HERE.parent / "src/sizing/explain/logs").iterdir()):
        write("explain", log.stem, log.read_bytes())


if __name__ == "__main__":
    main()
