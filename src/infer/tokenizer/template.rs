//! Chat templates: Jinja as transformers renders it, from untrusted files, so
//! that a template which loops, nests or writes for ever ends in an error.

use std::thread;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::ChatMessage;
use crate::clock::Clock;
use crate::infer::error::panic_message;

/// Longest template. Those of the models that can be opened take a tenth.
const MAX_SOURCE_BYTES: usize = 64 << 10;
/// What one rendering may take: an instruction costs one, and so do 64 bytes of
/// whatever text or list it makes, which bounds its memory by 64 MB. A long
/// conversation takes thousands, its text at 64 bytes each a few times over.
const FUEL: u64 = 1_000_000;
/// The library goes a level down for each that an expression or a value nests,
/// and sets no bound to most of them. The two bounds above bound these too: this
/// many bytes hold them, of which only those are real that are used.
const STACK_BYTES: usize = 128 << 20;
/// Longest format of a date: a directive may widen what it prints manyfold.
const MAX_DATE_FORMAT_BYTES: usize = 256;
/// Depth of macros and includes.
const MAX_RECURSION: usize = 100;
/// The only template of each environment.
const NAME: &str = "chat";
/// For models without a vocabulary: roles and texts, each on its line.
const PLAIN: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
                     {% endfor %}assistant:";

/// A compiled chat template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template with the settings and functions of transformers.
    pub(super) fn compile(source: String, bos: String, eos: String) -> Result<Self, String> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(format!(
                "it has {} bytes, at most {MAX_SOURCE_BYTES} may be",
                source.len()
            ));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        let environment = on_a_deep_stack(|| {
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        })?;
        Ok(Self { environment, bos_token: bos, eos_token: eos })
    }

    /// The template of models that have none of their own.
    pub(super) fn plain() -> Self {
        let environment = Environment::new();
        let mut plain = Self { environment, bos_token: String::new(), eos_token: String::new() };
        let added = plain.environment.add_template(NAME, PLAIN);
        debug_assert!(added.is_ok(), "a constant that compiles");
        plain
    }

    /// Renders a conversation, up to where the assistant begins.
    pub(super) fn render(&self, messages: &[ChatMessage]) -> Result<String, String> {
        let message = |message: &ChatMessage| {
            context! { role => message.role.as_str(), content => message.content.as_str() }
        };
        on_a_deep_stack(|| {
            let context = context! {
                messages => messages.iter().map(message).collect::<Vec<Value>>(),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            };
            self.environment.get_template(NAME)?.render(context)
        })
    }
}

/// What `work` returns, from a thread whose stack it cannot overflow. Errors
/// come out as texts: they hold values, which nest as deep when they are dropped.
fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("yardstick-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || work().map_err(|e| e.to_string()))
            .map_err(|e| format!("no thread for it: {e}"))?
            .join()
            .unwrap_or_else(|panic| Err(panic_message(&*panic).to_owned()))
    })
}

/// Today, for templates that tell the model the date (UTC).
fn strftime_now(format: &str) -> Result<String, Error> {
    let refused = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    if format.len() > MAX_DATE_FORMAT_BYTES {
        return Err(refused(format!("a date format of {} bytes", format.len())));
    }
    let invalid = |e: jiff::Error| refused(e.to_string());
    let now = Timestamp::try_from(Clock::wall()).map_err(invalid)?;
    jiff::fmt::strtime::format(format, now).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let messages = [
            ChatMessage { role: "system".to_owned(), content: "  be brief ".to_owned() },
            ChatMessage { role: "user".to_owned(), content: "why?".to_owned() },
        ];
        ChatTemplate::compile(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?
            .render(&messages)
    }

    #[test]
    fn templates_render_as_in_transformers() {
        let source = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'system' %}\n\
                      <<{{ m['content'].strip() | upper }}>>\n    {% else %}\n\
                      {{ m.role.title() }}: {{ m.content }}{{ eos_token }}\n    {% endif %}\n\
                      {% endfor %}{% if add_generation_prompt %}A:{% endif %}";
        assert_eq!(render(source).unwrap(), "<s><<BE BRIEF>>\nUser: why?</s>\nA:");
    }

    #[test]
    fn loop_controls_and_dates_are_known() {
        let source = "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}x\
                      {% endfor %}{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}";
        let text = render(source).unwrap();
        assert!(text.starts_with("x2") && text.len() == 5, "{text}");
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(error.contains("roles must alternate"));
    }

    #[test]
    fn endless_templates_end_in_an_error() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}\
                      {% endfor %}{% endfor %}";
        assert!(render(nested).is_err());
        assert!(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").is_err());
        assert!(render("{% for a in range(9999) %}{{ 'x' * 90000 }}{% endfor %}").is_err());
    }

    #[test]
    fn a_template_that_doubles_a_text_ends_before_memory_does() {
        let out_of_fuel = |source: &str| render(source).unwrap_err().contains("out of fuel");
        let doubled = "{% set s = namespace(t='xxxxxxxx') %}{% for i in range(60) %}";
        assert!(out_of_fuel(&format!("{doubled}{{% set s.t = s.t ~ s.t %}}{{% endfor %}}")));
        assert!(out_of_fuel(&format!("{doubled}{{% set s.t = s.t + s.t %}}{{% endfor %}}")));
        let copied = "{% set s.t = s.t.replace('x', 'xx') %}{% endfor %}";
        assert!(out_of_fuel(&format!("{doubled}{copied}")));
        let squared = "{% set s.t = s.t.replace('x', s.t) %}{% endfor %}";
        assert!(out_of_fuel(&format!("{doubled}{squared}")));
        assert!(out_of_fuel("{{ 'x' * 4000000000 }}"));
        assert!(render("{{ [1] * 4000000000 }}").is_err());
        assert!(render("{{ strftime_now('%255Y' * 9000) }}").is_err());
    }

    #[test]
    fn a_conversation_as_long_as_any_context_renders() {
        let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}";
        let message = |i| ChatMessage { role: "user".to_owned(), content: format!("{i:>2000}") };
        let messages: Vec<_> = (0..2000).map(message).collect();
        let template = ChatTemplate::compile(source.to_owned(), String::new(), String::new());
        assert!(template.unwrap().render(&messages).unwrap().starts_with("<|user|>0\n<|user|>1\n"));
    }

    #[test]
    fn templates_that_nest_for_ever_overflow_no_stack() {
        // As deep as a template may be long.
        let deep = |before: &str, level: &str, after: &str| {
            let levels = (MAX_SOURCE_BYTES - before.len() - after.len()) / level.len();
            let _ = render(&[before, &level.repeat(levels), after].concat());
        };
        deep("{{ ", "-", "1 }}");
        deep("{{ ", "not ", "1 }}");
        deep("{{ a", ".b", " }}");
        deep("{{ 1", "+1", " }}");
        deep("{{ 1", "**1", " }}");
        deep("{{ 1", "|abs", " }}");
        deep("{{ 1", " if 1 else 1", " }}");
        deep("{% if 0 %}", "{%elif 0%}", "{% endif %}");
        deep("", "{% if 1 %}", "");
        deep("{{ ", "(", "1 }}");
        // As deep as the fuel allows.
        let nested = |end: &str| {
            let nest = "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}\
                        {% set ns.v = [ns.v] %}{% endfor %}";
            render(&format!("{nest}{nest}{end}"))
        };
        let _ = nested("x");
        let _ = nested("{{ ns.v }}");
        let _ = nested("{{ ns.v == [ns.v] }}");
        let _ = nested("{{ ns.v | tojson }}");
        let error = render(&" ".repeat(MAX_SOURCE_BYTES + 1)).unwrap_err();
        assert!(error.contains("65537 bytes, at most 65536"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_parse_is_refused() {
        assert!(render("{% for %}").is_err());
    }

    #[test]
    fn the_plain_template_names_each_role() {
        let messages = [ChatMessage { role: "user".to_owned(), content: "hello".to_owned() }];
        assert_eq!(ChatTemplate::plain().render(&messages).unwrap(), "user: hello\nassistant:");
    }
}
