//! From a JSON body to what is asked for, or a refusal that names the field.
//! Unknown fields are ignored, as servers do; known ones that would change the
//! answer and are not supported are refused by name.

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::infer::{ChatMessage, SamplingParams, stop};

/// Most likely tokens that may be asked for with each drawn one.
const MAX_LOGPROBS: u64 = 20;
/// `/v1/completions` without `max_tokens`, as OpenAI and vLLM have it.
const DEFAULT_COMPLETION_TOKENS: usize = 16;

/// A request in our own terms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    pub(super) input: Input,
    /// `None`: as many as the context holds.
    pub(super) max_tokens: Option<usize>,
    /// Samples, at least one.
    pub(super) n: usize,
    /// The answer begins with the prompt.
    pub(super) echo: bool,
    /// `seed` is `None` where the client left it to us.
    pub(super) seed: Option<u64>,
    pub(super) sampling: SamplingParams,
    pub(super) ignore_eos: bool,
    pub(super) stop: Vec<String>,
    /// Most likely tokens to report; `None` for no log-probabilities.
    pub(super) logprobs: Option<usize>,
    /// The same for the tokens of the prompt, in vLLM's field.
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    Ids(Vec<u32>),
    Chat(Vec<ChatMessage>),
}

/// Fields that change the answer, with the value at which they change nothing.
const UNSUPPORTED: [(&str, &[Neutral]); 17] = [
    ("best_of", &[Neutral::Number(1.0)]),
    ("suffix", &[Neutral::Empty]),
    ("logit_bias", &[Neutral::Empty]),
    ("presence_penalty", &[Neutral::Number(0.0)]),
    ("frequency_penalty", &[Neutral::Number(0.0)]),
    ("repetition_penalty", &[Neutral::Number(1.0)]),
    ("min_p", &[Neutral::Number(0.0)]),
    ("use_beam_search", &[Neutral::False]),
    ("stop_token_ids", &[Neutral::Empty]),
    ("tools", &[Neutral::Empty]),
    ("functions", &[Neutral::Empty]),
    ("response_format", &[Neutral::TextFormat]),
    ("structured_outputs", &[Neutral::Empty]),
    ("guided_json", &[Neutral::Empty]),
    ("guided_regex", &[Neutral::Empty]),
    ("guided_choice", &[Neutral::Empty]),
    ("prompt_embeds", &[Neutral::Empty]),
];

#[derive(Debug, Clone, Copy)]
enum Neutral {
    Number(f64),
    False,
    Empty,
    TextFormat,
}

impl Neutral {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.as_f64() == Some(number),
            Self::False => value == &Value::Bool(false),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                Value::Null | Value::Bool(_) | Value::Number(_) => false,
            },
            Self::TextFormat => value.get("type").and_then(Value::as_str) == Some("text"),
        }
    }
}

impl Ask {
    /// Reads the body of `/v1/completions`.
    pub(super) fn completion(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::parse(body)?;
        let input = completion_input(fields.required("prompt")?)?;
        let echo = fields.boolean("echo")?;
        // With an echo there is an answer even if nothing is generated.
        let max_tokens = match fields.whole("max_tokens")? {
            Some(0) if echo => 0,
            _ => fields.count("max_tokens")?.unwrap_or(DEFAULT_COMPLETION_TOKENS),
        };
        let logprobs = fields.logprobs("logprobs")?;
        Ok(Ask { echo, ..fields.ask(input, Some(max_tokens), logprobs)? })
    }

    /// Reads the body of `/v1/chat/completions`.
    pub(super) fn chat(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::parse(body)?;
        if fields.boolean("echo")? {
            return Err(ApiError::bad_request("echo is supported for /v1/completions only"));
        }
        let input = Input::Chat(messages(fields.required("messages")?)?);
        let max_tokens = match fields.count("max_completion_tokens")? {
            Some(count) => Some(count),
            None => fields.count("max_tokens")?,
        };
        let top = fields.whole("top_logprobs")?;
        let logprobs = match (fields.boolean("logprobs")?, top) {
            (true, top) => Some(bounded_logprobs("top_logprobs", top.unwrap_or(0))?),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::bad_request("top_logprobs needs logprobs to be true"));
            }
        };
        fields.ask(input, max_tokens, logprobs)
    }
}

fn bounded_logprobs(name: &str, count: u64) -> Result<usize, ApiError> {
    if count > MAX_LOGPROBS {
        let message = format!("{name} is {count}, at most {MAX_LOGPROBS} are given");
        return Err(ApiError::bad_request(message));
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

fn completion_input(prompt: &Value) -> Result<Input, ApiError> {
    let expected = || {
        ApiError::bad_request(
            "prompt must be a string, an array of token ids, or an array with one of these",
        )
    };
    match prompt {
        Value::String(text) => Ok(Input::Text(text.clone())),
        Value::Array(items) => match items.as_slice() {
            [] => Err(ApiError::bad_request("prompt is empty")),
            [Value::String(text)] => Ok(Input::Text(text.clone())),
            [Value::Array(ids)] => token_ids(ids),
            [Value::Number(_), ..] => token_ids(items),
            [Value::String(_) | Value::Array(_), ..] => Err(ApiError::bad_request(format!(
                "prompt holds {} prompts, one a request is served",
                items.len()
            ))),
            _ => Err(expected()),
        },
        _ => Err(expected()),
    }
}

fn token_ids(items: &[Value]) -> Result<Input, ApiError> {
    if items.is_empty() {
        return Err(ApiError::bad_request("prompt is empty"));
    }
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = items.iter().map(id).collect();
    ids.map(Input::Ids).ok_or_else(|| {
        ApiError::bad_request("prompt holds something that is no token id (a whole number from 0)")
    })
}

fn messages(value: &Value) -> Result<Vec<ChatMessage>, ApiError> {
    let items = value
        .as_array()
        .filter(|items| !items.is_empty())
        .ok_or_else(|| ApiError::bad_request("messages must be an array that is not empty"))?;
    items.iter().enumerate().map(|(index, item)| message(index, item)).collect()
}

fn message(index: usize, item: &Value) -> Result<ChatMessage, ApiError> {
    let bad = |what: &str| ApiError::bad_request(format!("messages[{index}].{what}"));
    let role = item.get("role").and_then(Value::as_str).ok_or_else(|| bad("role is no string"))?;
    if !matches!(role, "system" | "user" | "assistant") {
        return Err(bad(&format!("role is `{role}`, expected system, user or assistant")));
    }
    let content = match item.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match part.get("type").and_then(Value::as_str) {
                Some("text") => part.get("text").and_then(Value::as_str),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| bad("content has a part that is no text, only texts are served"))?
            .concat(),
        _ => return Err(bad("content must be a string or an array of text parts")),
    };
    Ok(ChatMessage { role: role.to_owned(), content })
}

/// A body's fields; `null` counts as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::bad_request("the body is JSON, and no object")),
            Err(error) => Err(ApiError::bad_request(format!("the body is no JSON: {error}"))),
        }
    }

    /// The fields that both routes share.
    fn ask(
        &self,
        input: Input,
        max_tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> Result<Ask, ApiError> {
        self.refuse_unsupported()?;
        let ignore_eos = self.boolean("ignore_eos")?;
        // With ignore_eos every request runs to max_tokens, min_tokens says nothing more.
        if !ignore_eos && self.whole("min_tokens")?.is_some_and(|count| count > 0) {
            return Err(ApiError::bad_request("min_tokens is supported with ignore_eos only"));
        }
        let options = self.get("stream_options");
        let option = |name: &str| match options.and_then(|options| options.get(name)) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| wrong(&format!("stream_options.{name}"), "true or false", value)),
        };
        let stream = self.boolean("stream")?;
        let prompt_logprobs = match self.get("prompt_logprobs") {
            // vLLM's word for the whole vocabulary.
            Some(value) if value.as_i64() == Some(-1) => {
                let message = format!("prompt_logprobs is -1, at most {MAX_LOGPROBS} are given");
                return Err(ApiError::bad_request(message));
            }
            _ => self.logprobs("prompt_logprobs")?,
        };
        if stream && prompt_logprobs.is_some() {
            let message = "prompt_logprobs is supported without stream only";
            return Err(ApiError::bad_request(message));
        }
        Ok(Ask {
            model: self.text("model")?,
            input,
            max_tokens,
            n: self.count("n")?.unwrap_or(1),
            echo: false,
            seed: self.seed()?,
            sampling: self.sampling()?,
            ignore_eos,
            stop: self.stop()?,
            logprobs,
            prompt_logprobs,
            stream,
            include_usage: option("include_usage")?,
            continuous_usage: option("continuous_usage_stats")?,
        })
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        for (name, neutral) in UNSUPPORTED {
            if let Some(value) = self.get(name)
                && !neutral.iter().any(|neutral| neutral.holds(value))
            {
                return Err(ApiError::bad_request(format!("{name} is not supported")));
            }
        }
        Ok(())
    }

    fn sampling(&self) -> Result<SamplingParams, ApiError> {
        let temperature = self.float("temperature")?.unwrap_or(1.0);
        if temperature < 0.0 {
            return Err(ApiError::bad_request(format!(
                "temperature is {temperature}, expected 0 or more"
            )));
        }
        let top_p = self.float("top_p")?.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ApiError::bad_request(format!(
                "top_p is {top_p}, expected more than 0 and up to 1"
            )));
        }
        let top_k = match self.get("top_k") {
            None => None,
            // vLLM's words for all tokens.
            Some(value) if matches!(value.as_i64(), Some(-1 | 0)) => None,
            Some(value) => Some(
                value
                    .as_u64()
                    .and_then(|k| usize::try_from(k).ok())
                    .ok_or_else(|| wrong("top_k", "a whole number, -1 for all", value))?,
            ),
        };
        Ok(SamplingParams { temperature, top_p, top_k, seed: 0 })
    }

    fn seed(&self) -> Result<Option<u64>, ApiError> {
        self.get("seed")
            .map(|value| {
                // Negative seeds are as good as others: their bits are taken.
                let signed = value.as_i64().map(i64::cast_unsigned);
                value.as_u64().or(signed).ok_or_else(|| wrong("seed", "a whole number", value))
            })
            .transpose()
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stops = match self.get("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| ApiError::bad_request("stop holds something that is no string"))?,
            Some(other) => return Err(wrong("stop", "a string or an array of strings", other)),
        };
        stop::check(&stops)?;
        Ok(stops)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn required(&self, name: &str) -> Result<&Value, ApiError> {
        self.get(name).ok_or_else(|| ApiError::bad_request(format!("{name} is missing")))
    }

    fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        let text = |value: &Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| wrong(name, "a string", value))
        };
        self.get(name).map(text).transpose()
    }

    fn boolean(&self, name: &str) -> Result<bool, ApiError> {
        let boolean =
            |value: &Value| value.as_bool().ok_or_else(|| wrong(name, "true or false", value));
        self.get(name).map_or(Ok(false), boolean)
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let float = |value: &Value| value.as_f64().ok_or_else(|| wrong(name, "a number", value));
        self.get(name).map(float).transpose()
    }

    fn whole(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let whole = |value: &Value| {
            value.as_u64().ok_or_else(|| wrong(name, "a whole number from 0", value))
        };
        self.get(name).map(whole).transpose()
    }

    fn logprobs(&self, name: &str) -> Result<Option<usize>, ApiError> {
        self.whole(name)?.map(|count| bounded_logprobs(name, count)).transpose()
    }

    fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        match self.whole(name)? {
            None => Ok(None),
            Some(count) => match usize::try_from(count) {
                Ok(count) if count > 0 => Ok(Some(count)),
                _ => Err(ApiError::bad_request(format!("{name} is {count}, expected 1 or more"))),
            },
        }
    }
}

fn wrong(name: &str, expected: &str, value: &Value) -> ApiError {
    // Only small values are repeated: this goes into a response.
    let got = match value {
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    ApiError::bad_request(format!("{name} must be {expected}, got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<Ask, ApiError>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn prompts_in_every_form_are_read() {
        let input = |body: &str| Ask::completion(body.as_bytes()).unwrap().input;
        assert_eq!(input(r#"{"prompt":"a"}"#), Input::Text("a".to_owned()));
        assert_eq!(input(r#"{"prompt":["a"]}"#), Input::Text("a".to_owned()));
        assert_eq!(input(r#"{"prompt":[1,2]}"#), Input::Ids(vec![1, 2]));
        assert_eq!(input(r#"{"prompt":[[1,2]]}"#), Input::Ids(vec![1, 2]));
        for bad in
            ["[]", "[[]]", "3", "[1,\"a\"]", "[-1]", "[1.5]", "[\"a\",\"b\"]", "{}", "[null]"]
        {
            let body = format!("{{\"prompt\":{bad}}}");
            assert!(refused(Ask::completion(body.as_bytes())).contains("prompt"), "{bad}");
        }
    }

    #[test]
    fn wrong_types_and_values_name_their_field() {
        for (field, value) in [
            ("max_tokens", "\"x\""),
            ("max_tokens", "0"),
            ("temperature", "-1"),
            ("temperature", "\"hot\""),
            ("top_p", "0"),
            ("top_k", "1.5"),
            ("seed", "\"s\""),
            ("stream", "1"),
            ("ignore_eos", "\"yes\""),
            ("stop", "3"),
            ("stop", "[\"\"]"),
            ("logprobs", "21"),
            ("n", "0"),
            ("best_of", "2"),
            ("echo", "1"),
            ("prompt_logprobs", "21"),
            ("prompt_logprobs", "-1"),
            ("logit_bias", "{\"1\":5}"),
            ("min_tokens", "5"),
            ("stream_options", "{\"include_usage\":3}"),
            ("model", "7"),
        ] {
            let body = format!("{{\"prompt\":\"a\",\"{field}\":{value}}}");
            let message = refused(Ask::completion(body.as_bytes()));
            assert!(message.contains(field), "{field}={value}: {message}");
        }
    }

    #[test]
    fn unknown_and_null_fields_are_ignored() {
        let body = br#"{"prompt":"a","user":"x","cache_prompt":false,"max_tokens":null,"n":1,
            "tools":[],"response_format":{"type":"text"},"top_k":-1}"#;
        let ask = Ask::completion(body).unwrap();
        assert_eq!(ask.max_tokens, Some(DEFAULT_COMPLETION_TOKENS));
        assert_eq!(ask.sampling.top_k, None);
        assert!((ask.sampling.temperature - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn messages_are_texts_of_known_roles() {
        let body = br#"{"messages":[{"role":"system","content":"s"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "max_completion_tokens":5,"max_tokens":9,"logprobs":true,"top_logprobs":2}"#;
        let ask = Ask::chat(body).unwrap();
        let Input::Chat(messages) = ask.input else { panic!("{:?}", ask.input) };
        assert_eq!(messages[1].content, "ab");
        assert_eq!((ask.max_tokens, ask.logprobs), (Some(5), Some(2)));
        for bad in [
            r#"{"messages":[]}"#,
            r#"{"messages":[{"role":"robot","content":"x"}]}"#,
            r#"{"messages":[{"role":"user"}]}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
            r#"{"messages":["x"]}"#,
        ] {
            assert!(refused(Ask::chat(bad.as_bytes())).starts_with("messages"), "{bad}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for bad in ["", "{", "[]", "\"x\"", "\u{0}"] {
            assert!(refused(Ask::chat(bad.as_bytes())).contains("JSON"), "{bad:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(refused(Ask::chat(deep.as_bytes())).contains("JSON"));
    }
}
