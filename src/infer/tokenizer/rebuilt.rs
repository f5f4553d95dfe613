//! A tokenizer rebuilt from what GGUF keeps of it: byte-level BPE with one of
//! the pre-tokenizers whose exact form is known. Others are refused by name,
//! since a tokenizer that is nearly right measures the wrong prompt.

use std::collections::HashSet;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, NormalizerWrapper};

use super::Tokenizer;
use super::guard::guarded;
use super::template::ChatTemplate;

/// Token types of GGUF, from `llama_token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splits of Llama 3's and of Qwen2's tokenizer.json.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What llama.cpp does for `default`: each pattern cuts what the ones before left.
const DEFAULT_SPLITS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];

/// The tokenizer as GGUF metadata has it (`tokenizer.ggml.*`, model `gpt2`).
pub(crate) struct GgufVocabulary {
    /// Name of the pre-tokenizer.
    pub(crate) pre: String,
    /// Token texts in GPT-2's byte alphabet, by id.
    pub(crate) tokens: Vec<String>,
    /// What each token is.
    pub(crate) token_types: Vec<i64>,
    /// `left right`, by rank.
    pub(crate) merges: Vec<String>,
    /// Beginning of sequence.
    pub(crate) bos: Option<u32>,
    /// End of sequence.
    pub(crate) eos: Option<u32>,
    /// Whether encoding adds `bos`.
    pub(crate) add_bos: Option<bool>,
    /// Jinja source.
    pub(crate) chat_template: Option<String>,
}

impl Tokenizer {
    pub(crate) fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, String> {
        vocabulary.check()?;
        let pre = PreTokenizer::named(&vocabulary.pre)?;
        let vocab: Vocab = vocabulary.tokens.iter().cloned().zip(0..).collect();
        let merges = vocabulary.merges()?;
        let builder =
            BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges);
        let model = guarded(|| builder.build())
            .map_err(|e| format!("the merges do not fit the vocabulary: {e}"))?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        let failed = |e: tokenizers::Error| e.to_string();
        tokenizer.with_normalizer(pre.normalizer).map_err(failed)?;
        tokenizer.with_pre_tokenizer(Some(pre.splits));
        tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
        let bos = vocabulary.bos.filter(|_| vocabulary.add_bos.unwrap_or(pre.adds_bos));
        if let Some(bos) = bos {
            tokenizer.with_post_processor(Some(begin_with(vocabulary.token(bos), bos)?));
        }
        tokenizer.add_tokens(vocabulary.added_tokens()).map_err(failed)?;
        let text = |id: Option<u32>| id.map_or_else(String::new, |id| vocabulary.token(id));
        let (bos, eos) = (text(vocabulary.bos), text(vocabulary.eos));
        let template = vocabulary
            .chat_template
            .map(|source| ChatTemplate::compile(source, bos, eos))
            .transpose()
            .map_err(|e| format!("the chat template does not compile: {e}"))?;
        Self::real(tokenizer, template)
    }
}

impl GgufVocabulary {
    fn check(&self) -> Result<(), String> {
        if self.tokens.is_empty() || self.token_types.len() != self.tokens.len() {
            return Err(format!(
                "the vocabulary has {} tokens and {} token types",
                self.tokens.len(),
                self.token_types.len()
            ));
        }
        let mut seen = HashSet::with_capacity(self.tokens.len());
        if let Some(twice) = self.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(format!("token `{twice}` is in the vocabulary twice"));
        }
        for (what, id) in [("bos", self.bos), ("eos", self.eos)] {
            if let Some(id) = id.filter(|id| *id as usize >= self.tokens.len()) {
                return Err(format!(
                    "{what} token {id} is outside the vocabulary of {}",
                    self.tokens.len()
                ));
            }
        }
        Ok(())
    }

    fn token(&self, id: u32) -> String {
        self.tokens.get(id as usize).cloned().unwrap_or_default()
    }

    fn merges(&self) -> Result<Vec<(String, String)>, String> {
        // The library has room for the longest token, and no check.
        let longest = self.tokens.iter().map(String::len).max().unwrap_or(0);
        self.merges
            .iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) if left.len() + right.len() <= longest => {
                    Ok((left.to_owned(), right.to_owned()))
                }
                Some(_) => Err(format!("merge `{merge}` makes no token of the vocabulary")),
                None => Err(format!("merge `{merge}` has no two parts")),
            })
            .collect()
    }

    /// Tokens that are matched in the text before anything else.
    fn added_tokens(&self) -> Vec<AddedToken> {
        self.tokens
            .iter()
            .zip(&self.token_types)
            .filter_map(|(token, kind)| match *kind {
                CONTROL | UNKNOWN => Some(AddedToken::from(token, true).normalized(false)),
                USER_DEFINED => Some(AddedToken::from(token, false).normalized(false)),
                _ => None,
            })
            .collect()
    }
}

/// How text is cut before BPE, with what else a family fixes.
struct PreTokenizer {
    normalizer: Option<NormalizerWrapper>,
    splits: PreTokenizerWrapper,
    /// A word that is a token is taken whole, whatever the merges would make of it.
    ignore_merges: bool,
    /// Where the file does not say.
    adds_bos: bool,
}

impl PreTokenizer {
    fn named(name: &str) -> Result<Self, String> {
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes_only = ByteLevel::new(false, true, false);
        let (splits, ignore_merges): (PreTokenizerWrapper, bool) = match name {
            "smollm" => (sequence(vec![Digits::new(true).into(), gpt2.into()]), false),
            "gpt-2" => (gpt2.into(), false),
            "llama-bpe" => (sequence(vec![split(LLAMA3_SPLIT)?, bytes_only.into()]), true),
            "qwen2" => (sequence(vec![split(QWEN2_SPLIT)?, bytes_only.into()]), false),
            "default" => {
                let splits = DEFAULT_SPLITS.iter().map(|pattern| split(pattern));
                let mut steps = splits.collect::<Result<Vec<_>, _>>()?;
                steps.push(bytes_only.into());
                (sequence(steps), false)
            }
            other => {
                return Err(format!(
                    "pre-tokenizer `{other}` is not supported, expected smollm, llama-bpe, qwen2, \
                     gpt-2 or default"
                ));
            }
        };
        let normalizer = (name == "qwen2").then(|| NFC.into());
        Ok(Self { normalizer, splits, ignore_merges, adds_bos: name == "llama-bpe" })
    }
}

fn sequence(steps: Vec<PreTokenizerWrapper>) -> PreTokenizerWrapper {
    Sequence::new(steps).into()
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper, String> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map(Into::into)
        .map_err(|e| e.to_string())
}

fn begin_with(token: String, id: u32) -> Result<TemplateProcessing, String> {
    TemplateProcessing::builder()
        .try_single(vec![token.clone(), "$A".to_owned()])?
        .special_tokens(vec![(token, id)])
        .build()
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn splits(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        PreTokenizer::named(name).unwrap().splits.pre_tokenize(&mut cut).unwrap();
        let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
    }

    #[test]
    fn every_pre_tokenizer_cuts_as_its_patterns_do_elsewhere() {
        // Cut by the Python tokenizers 0.23.3 (another regex engine) with the same patterns.
        let text = "It's 12345 o'CLOCK'LL (x+y)\n\n  été";
        let cut = |pieces: &str| pieces.split('|').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            splits("llama-bpe", text),
            cut("It|'s|Ġ|123|45|Ġo|'CLOCK|'LL|Ġ(|x|+y|)ĊĊ|Ġ|ĠÃ©tÃ©")
        );
        assert_eq!(
            splits("qwen2", text),
            cut("It|'s|Ġ|1|2|3|4|5|Ġo|'CLOCK|'LL|Ġ(|x|+y|)ĊĊ|Ġ|ĠÃ©tÃ©")
        );
        assert_eq!(
            splits("default", text),
            cut("It|'|s|Ġ|123|45|Ġo|'|CLOCK|'|LL|Ġ|(|x|+|y|)|ĊĊĠ|ĠÃ©tÃ©")
        );
        assert_eq!(
            splits("gpt-2", text),
            cut("It|'s|Ġ12345|Ġo|'|CLOCK|'|LL|Ġ(|x|+|y|)|ĊĊĠ|ĠÃ©tÃ©")
        );
        assert_eq!(
            splits("smollm", text),
            cut("It|'s|Ġ|1|2|3|4|5|Ġo|'|CLOCK|'|LL|Ġ(|x|+|y|)|ĊĊĠ|ĠÃ©tÃ©")
        );
    }

    /// `a`, `b`, `ab` without a merge for it, and a control token.
    fn vocabulary(pre: &str) -> GgufVocabulary {
        GgufVocabulary {
            pre: pre.to_owned(),
            tokens: ["a", "b", "ab", "<|begin|>"].map(str::to_owned).to_vec(),
            token_types: vec![1, 1, 1, 3],
            merges: Vec::new(),
            bos: Some(3),
            eos: None,
            add_bos: None,
            chat_template: None,
        }
    }

    #[test]
    fn llama_takes_whole_words_and_adds_its_beginning_unless_told_otherwise() {
        let llama = Tokenizer::from_gguf(vocabulary("llama-bpe")).unwrap();
        assert_eq!(llama.encode("ab", true).unwrap(), [3, 2]);
        assert_eq!(llama.encode("ab", false).unwrap(), [2]);
        assert_eq!(llama.added_bos(), Some(3));
        let told = GgufVocabulary { add_bos: Some(false), ..vocabulary("llama-bpe") };
        assert_eq!(Tokenizer::from_gguf(told).unwrap().added_bos(), None);
        let qwen = Tokenizer::from_gguf(vocabulary("qwen2")).unwrap();
        assert_eq!(qwen.encode("ab", true).unwrap(), [0, 1]);
    }

    #[test]
    fn vocabularies_that_contradict_themselves_are_refused() {
        let refused = |change: fn(&mut GgufVocabulary)| {
            let mut vocabulary = vocabulary("gpt-2");
            change(&mut vocabulary);
            Tokenizer::from_gguf(vocabulary).err().unwrap()
        };
        assert!(refused(|v| v.token_types.truncate(2)).contains("4 tokens and 2 token types"));
        assert!(
            refused(|v| v.tokens[1] = "a".to_owned()).contains("`a` is in the vocabulary twice")
        );
        assert!(refused(|v| v.bos = Some(4)).contains("bos token 4"));
        assert!(refused(|v| v.merges = vec!["ab".to_owned()]).contains("merge `ab`"));
        assert!(refused(|v| v.merges = vec!["a c".to_owned()]).contains("do not fit"));
        let too_long = refused(|v| v.merges = vec!["ab <|begin|>".to_owned()]);
        assert!(too_long.contains("`ab <|begin|>` makes no token"), "{too_long}");
        assert!(refused(|v| v.pre = "deepseek-llm".to_owned()).contains("deepseek-llm"));
        assert!(refused(|v| v.chat_template = Some("{{".to_owned())).contains("does not compile"));
    }
}
