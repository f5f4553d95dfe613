"""Writes a Llama GGUF of bf16 weights as a Hugging Face folder with the same bits.

    python hf_folder.py MODEL.gguf FOLDER

Needs the packages gguf and tokenizers. Beside the usual files, tensor_bytes.json says how many
bytes of tensors each GGUF beside MODEL.gguf holds.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def name_of(tensor: str) -> str:
    if tensor in NAMES:
        return NAMES[tensor]
    _, layer, kind, suffix = tensor.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.{suffix}"


def as_bf16(tensor: gguf.ReaderTensor) -> np.ndarray:
    """Bits of a tensor as bf16 (u16), which must lose nothing."""
    wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    bits = wide.view(np.uint32)
    if np.any(bits & 0xFFFF):
        sys.exit(f"tensor `{tensor.name}` of type {tensor.tensor_type.name} does not fit bf16")
    return (bits >> 16).astype(np.uint16)


def heads_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the GGUF converter's interleaving of the two halves of each rotary head."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_weights(reader: gguf.GGUFReader, fields: dict, path: pathlib.Path) -> None:
    heads = {"attn_q": fields["llama.attention.head_count"],
             "attn_k": fields["llama.attention.head_count_kv"]}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for tensor in reader.tensors:
        bits = as_bf16(tensor)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            bits = heads_apart(bits, heads[kind])
        data = bits.tobytes()
        header[name_of(tensor.name)] = {
            "dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + len(data)]
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts)


def config(reader: gguf.GGUFReader, fields: dict) -> dict[str, object]:
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": fields["llama.context_length"],
        # GGUF holds it in f32; the decimal that was meant has seven digits.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in {t.name for t in reader.tensors},
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(fields: dict, folder: pathlib.Path) -> None:
    """Byte-level BPE with single digits: the pre-tokenizer that GGUF calls `smollm`."""
    if fields["tokenizer.ggml.pre"] != "smollm":
        sys.exit(f"pre-tokenizer is `{fields['tokenizer.ggml.pre']}`, expected smollm")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"]) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    source, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    write_weights(reader, fields, folder / "model.safetensors")
    write_tokenizer(fields, folder)
    sizes = {path.stem: sum(int(t.n_bytes) for t in gguf.GGUFReader(path).tensors)
             for path in sorted(source.parent.glob("*.gguf"))}
    (folder / "tensor_bytes.json").write_text(json.dumps(sizes, indent=2) + "\n")
    # Last: whoever finds it finds all of them.
    (folder / "config.json").write_text(json.dumps(config(reader, fields), indent=2) + "\n")


if __name__ == "__main__":
    main()
