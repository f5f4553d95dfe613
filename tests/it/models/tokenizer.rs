//! Tokenizers: streams that never split a character, made-up vocabularies,
//! prompts of exact length, and chat templates out of files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::json;
use yardstick::catalog::find_card;
use yardstick::clock::Clock;
use yardstick::infer::weights;
use yardstick::infer::{
    ChatMessage, EngineConfig, EngineHost, GenerationEvent, InferRequest, ModelSource,
    SamplingParams, Tokenizer,
};

use super::forms::{default_gguf, tiny_config, write_tiny_folder, write_tiny_tokenizer};

fn smollm() -> &'static Tokenizer {
    static OPENED: OnceLock<Tokenizer> = OnceLock::new();
    OPENED.get_or_init(|| weights::open(&default_gguf()).unwrap().tokenizer)
}

/// The vocabulary of a model whose tokenizer is not at hand.
fn made_up() -> &'static Tokenizer {
    static MADE: OnceLock<Tokenizer> = OnceLock::new();
    MADE.get_or_init(|| Tokenizer::made_up(&find_card("llama-3.2-3b-instruct").unwrap().config))
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn characters_that_span_tokens_come_out_whole() {
    let text = "naïve 東京タワー 👩‍🚀 مرحبا";
    let ids = smollm().encode(text, false).unwrap();
    assert!(ids.len() > text.chars().count() / 2);
    let mut stream = smollm().stream();
    let mut so_far = String::new();
    for id in &ids {
        so_far.push_str(&stream.push(*id));
        assert!(text.starts_with(&so_far), "{so_far:?}");
    }
    assert_eq!(stream.finish(), "");
    assert_eq!(so_far, text);
}

#[test]
fn a_character_that_never_ends_is_replaced_at_the_end() {
    let mut ids = smollm().encode("ok 東", false).unwrap();
    ids.pop();
    let mut stream = smollm().stream();
    let text: String = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(text, "ok ");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn special_tokens_have_no_text_and_unknown_ids_are_named() {
    let ids = smollm().encode("<|im_start|>user\nhi<|im_end|>", false).unwrap();
    assert_eq!(smollm().decode(&ids).unwrap(), "user\nhi");
    assert_eq!(streamed(smollm(), &ids), "user\nhi");
    assert!(smollm().is_special(1) && smollm().is_special(2) && !smollm().is_special(504));
    assert!(!smollm().is_special(u32::MAX));
    let error = smollm().decode(&[1, 99_999_999]).unwrap_err();
    assert!(error.to_string().contains("99999999"), "{error}");
}

#[test]
fn a_made_up_vocabulary_gives_each_id_a_printable_word_of_its_own() {
    let tokenizer = Tokenizer::made_up(&tiny_config());
    let words: HashSet<String> = (0..288)
        .filter(|id| !tokenizer.is_special(*id))
        .map(|id| tokenizer.decode(&[id]).unwrap())
        .collect();
    assert_eq!(words.len(), 287);
    assert!(words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase())));
    assert_eq!(tokenizer.vocab_size(), 288);
}

#[test]
fn a_made_up_vocabulary_has_ids_for_any_text() {
    let ids = made_up().encode("why is the sky blue? 東京!", true).unwrap();
    assert!(ids.len() >= 6);
    assert!(ids.iter().all(|id| (*id as usize) < made_up().vocab_size()));
    assert!(ids.iter().all(|id| !made_up().is_special(*id)));
    assert_eq!(ids, made_up().encode("why is the sky blue? 東京!", true).unwrap());
    assert!(made_up().has_chat_template());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn made_up_ids_survive_text(ids in prop::collection::vec(0..128_000_u32, 0..50)) {
        let text = made_up().decode(&ids).unwrap();
        prop_assert_eq!(&made_up().encode(&text, true).unwrap(), &ids);
        let streamed = streamed(made_up(), &ids);
        prop_assert_eq!(streamed.trim_start(), text);
    }

    #[test]
    fn any_ids_stream_to_what_they_decode_to(ids in prop::collection::vec(0..49_152_u32, 0..80)) {
        prop_assert_eq!(streamed(smollm(), &ids), smollm().decode(&ids).unwrap());
    }

    #[test]
    fn any_text_survives_a_byte_level_tokenizer(text in "\\PC{0,40}") {
        prop_assume!(!text.contains("<|") && !text.contains('<'));
        let ids = smollm().encode(&text, true).unwrap();
        prop_assert_eq!(smollm().decode(&ids).unwrap(), text);
    }

    #[test]
    fn exact_prompts_are_exact(num_tokens in 1..600_usize, seed: u64, index: u64) {
        for tokenizer in [smollm(), made_up()] {
            let (ids, text) = tokenizer.exact_prompt(num_tokens, seed, index).unwrap();
            prop_assert_eq!(ids.len(), num_tokens);
            prop_assert_eq!(&tokenizer.encode(&text, false).unwrap(), &ids);
            prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)));
            prop_assert_eq!(text.trim(), &text);
            prop_assert_eq!(tokenizer.exact_prompt(num_tokens, seed, index).unwrap().0, ids);
        }
    }
}

#[test]
fn exact_prompts_of_a_seed_differ_from_their_first_token_on() {
    for tokenizer in [smollm(), made_up()] {
        let first: HashSet<u32> =
            (0..1000).map(|index| tokenizer.exact_prompt(1, 7, index).unwrap().0[0]).collect();
        assert_eq!(first.len(), 1000);
    }
}

#[test]
fn exact_prompts_of_many_seeds_share_no_block() {
    let mut blocks = HashSet::new();
    for seed in 0..20 {
        // Beyond the words that can begin a prompt, too.
        for index in [0, 1, 5000, u64::MAX] {
            assert!(blocks.insert(smollm().exact_prompt(4, seed, index).unwrap().0));
        }
    }
}

#[test]
fn impossible_prompts_are_refused() {
    assert!(smollm().exact_prompt(0, 1, 1).is_err());
    assert!(smollm().exact_prompt(usize::MAX, 1, 1).is_err());
    let folder = tempfile::tempdir().unwrap();
    let json = json!({
        "version": "1.0", "added_tokens": [], "decoder": {"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"1": 0, "2": 1}, "merges": []}
    });
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let error = Tokenizer::from_file(&path).unwrap().exact_prompt(4, 1, 1).unwrap_err();
    assert!(error.to_string().contains("0 words"), "{error}");
}

/// A SentencePiece-like vocabulary: words, letters, and a token for every byte.
pub(super) fn sentence_piece_json() -> serde_json::Value {
    let mut vocab = BTreeMap::from([("<unk>".to_owned(), 0_u32), ("<s>".to_owned(), 1)]);
    for byte in 0..=255_u32 {
        vocab.insert(format!("<0x{byte:02X}>"), byte + 2);
    }
    for (piece, id) in ["\u{2581}", "h", "i", "hi", "\u{2581}hi", "▁h"].iter().zip(258..) {
        vocab.insert((*piece).to_owned(), id);
    }
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["h i", "\u{2581} hi"]}
    })
}

fn sentence_piece() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, sentence_piece_json().to_string()).unwrap();
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn byte_fallback_streams_whole_characters() {
    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("hi hi 🚀", true).unwrap();
    // Neither cut to two tokens nor padded to 64, as the file asks for.
    assert_eq!(ids.len(), 1 + 2 + 1 + 4);
    assert_eq!(tokenizer.added_bos(), Some(1));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hi hi 🚀");
    let mut stream = tokenizer.stream();
    let texts: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(texts, ["", " hi", " hi", " ", "", "", "", "🚀"]);
    assert_eq!(tokenizer.decode(&ids[..6]).unwrap(), "hi hi \u{fffd}");
}

/// A byte-level tokenizer with a token for every byte, and the ids of those
/// bytes that occur in any text.
fn byte_level() -> (Tokenizer, HashMap<u8, u32>) {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(folder.path());
    let tokenizer = Tokenizer::from_file(&folder.path().join("tokenizer.json")).unwrap();
    let mut ids = HashMap::new();
    for c in ('\0'..'\u{800}').chain("\u{800}\u{d7ff}\u{ffff}\u{10000}\u{10ffff}".chars()) {
        let text = c.to_string();
        ids.extend(text.bytes().zip(tokenizer.encode(&text, false).unwrap()));
    }
    (tokenizer, ids)
}

#[test]
fn byte_tokens_that_are_no_utf_8_stream_to_the_lossy_text() {
    let (byte_level, ids) = byte_level();
    let sentence_piece = sentence_piece();
    for bytes in [
        // Lone continuations, cut and over-long characters, surrogates, beyond Unicode.
        &b"\x80\xbf"[..],
        b"ok \xe2\x82",
        b"\xf0\x90\x80x\xc3",
        b"\xc3\xc3\xa9",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\xe2\x82\xac\xe2",
        // Bytes that no UTF-8 has.
        b"\xff\xfe",
        b"\xc0\x80\xc1\xbf",
        b"\xf5\x80\x80\x80",
    ] {
        let expected = String::from_utf8_lossy(bytes);
        assert!(expected.contains('\u{fffd}'));
        // A SentencePiece vocabulary spells any byte.
        let spelt: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte) + 2).collect();
        assert_eq!(streamed(&sentence_piece, &spelt), expected);
        assert_eq!(sentence_piece.decode(&spelt).unwrap(), expected);
        let Some(spelt) = bytes.iter().map(|byte| ids.get(byte).copied()).collect() else {
            continue;
        };
        let spelt: Vec<u32> = spelt;
        assert_eq!(streamed(&byte_level, &spelt), expected);
        assert_eq!(byte_level.decode(&spelt).unwrap(), expected);
    }
}

#[test]
fn drawn_bytes_that_are_no_text_stream_as_the_lossy_text_of_all() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, false);
    let source = ModelSource::Folder(folder.path().to_owned());
    let host = EngineHost::open(&source, EngineConfig::default(), Clock::real()).unwrap();
    // So hot that any token is as likely as any other.
    let sampling = SamplingParams { temperature: 50.0, ..SamplingParams::default() };
    let never = vec!["\u{fffd}".repeat(20), "hello hello".to_owned()];
    let request =
        InferRequest { sampling, stop: never, ignore_eos: true, ..InferRequest::new(vec![7], 100) };
    let mut generation = host.submit(request).unwrap();
    let (mut ids, mut text) = (Vec::new(), String::new());
    while let Some(event) = generation.blocking_next() {
        if let GenerationEvent::Token { id, text: piece, .. } = event {
            ids.push(id);
            text.push_str(&piece);
        }
    }
    assert_eq!(ids.len(), 100);
    // The model has rows for which the tokenizer has no token, and draws them too.
    let num_tokens = host.tokenizer().vocab_size() as u32;
    assert!(ids.iter().any(|id| *id >= num_tokens), "{ids:?}");
    ids.retain(|id| *id < num_tokens);
    assert!(text.contains('\u{fffd}'), "{text:?}");
    assert_eq!(text, host.tokenizer().decode(&ids).unwrap());
}

#[test]
fn a_decoder_of_an_unknown_kind_is_refused_by_name() {
    let mut json = sentence_piece_json();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let error = Tokenizer::from_file(&path).err().unwrap().to_string();
    assert!(error.contains("decoder WordPiece is not supported"), "{error}");
}

#[test]
fn a_lone_huge_id_is_refused() {
    let mut json = sentence_piece_json();
    json["model"]["vocab"]["x"] = json!(u32::MAX - 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let error = Tokenizer::from_file(&path).err().unwrap().to_string();
    assert!(error.contains("ids up to 4294967294"), "{error}");
}

/// What a folder's chat template makes of one message.
fn rendered(write: impl FnOnce(&Path)) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(folder.path());
    write(folder.path());
    let message = ChatMessage { role: "user".to_owned(), content: "hello".to_owned() };
    Tokenizer::from_file(&folder.path().join("tokenizer.json"))
        .and_then(|tokenizer| tokenizer.apply_chat_template(&[message]))
        .map_err(|e| e.to_string())
}

fn write_tokenizer_config(folder: &Path, config: &serde_json::Value) {
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

#[test]
fn chat_templates_are_found_where_transformers_finds_them() {
    let one = json!({"chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "bos_token": {"content": "<|begin|>", "lstrip": false}});
    assert_eq!(rendered(|f| write_tokenizer_config(f, &one)).unwrap(), "<|begin|>hello");
    let named = json!({"chat_template": [{"name": "tool_use", "template": "no"},
        {"name": "default", "template": "yes"}]});
    assert_eq!(rendered(|f| write_tokenizer_config(f, &named)).unwrap(), "yes");
    let beside = rendered(|folder| {
        write_tokenizer_config(folder, &one);
        fs::write(folder.join("chat_template.jinja"), "{{ messages|length }}").unwrap();
    });
    assert_eq!(beside.unwrap(), "1");
    assert!(rendered(|_| ()).unwrap_err().contains("no chat template"));
}

#[test]
fn chat_templates_that_are_broken_or_endless_are_errors() {
    let broken = json!({"chat_template": "{% if %}"});
    let error = rendered(|folder| write_tokenizer_config(folder, &broken)).unwrap_err();
    assert!(error.contains("does not compile"), "{error}");
    let refused = json!({"chat_template": "{{ raise_exception('roles must alternate') }}"});
    let error = rendered(|folder| write_tokenizer_config(folder, &refused)).unwrap_err();
    assert!(error.contains("roles must alternate"), "{error}");
    let deep = json!({"chat_template": format!("{{{{ {}1 }}}}", "not ".repeat(100_000))});
    let error = rendered(|folder| write_tokenizer_config(folder, &deep)).unwrap_err();
    assert!(error.contains("does not compile") && error.contains("400007 bytes"), "{error}");
    let endless = json!({"chat_template":
        "{% for a in range(50000) %}{% for b in range(50000) %}{{ a }}{% endfor %}{% endfor %}"});
    let error = rendered(|folder| write_tokenizer_config(folder, &endless)).unwrap_err();
    assert!(error.contains("chat template failed"), "{error}");
}

#[test]
fn a_dummy_model_takes_a_tokenizer_that_is_at_hand() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(folder.path());
    let path = folder.path().join("tokenizer.json");
    let source = |vocab_size| {
        let mut config = tiny_config();
        config.vocab_size = vocab_size;
        config.eos_token_ids = vec![];
        ModelSource::Dummy { config: Box::new(config), seed: 1, tokenizer: Some(path.clone()) }
    };
    let tokenizer = weights::open(&source(288)).unwrap().tokenizer;
    assert_eq!(tokenizer.encode("hello", false).unwrap(), [261]);
    let error = weights::open(&source(100)).err().unwrap().to_string();
    assert!(error.contains("262 tokens") && error.contains("100 rows"), "{error}");
}
