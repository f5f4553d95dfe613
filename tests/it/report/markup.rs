//! What must hold of every HTML report: well-formed, alone, accessible, harmless.

use std::collections::BTreeSet;

/// Elements without content.
const VOID: [&str; 2] = ["meta", "wbr"];

/// A tag with its attributes.
struct Tag<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
    closes: bool,
    empty: bool,
}

impl Tag<'_> {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// Fails unless the page is what it should be.
pub fn check(page: &str) {
    let tags = tags(page);
    balanced(&tags);
    loads_nothing(page, &tags);
    accessible(&tags);
}

#[test]
fn the_page_is_well_formed_alone_and_accessible() {
    check(&super::html(&super::fixture::run()));
}

#[test]
fn hostile_strings_are_shown_and_not_run() {
    let page = super::html(&super::fixture::run());
    assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;"));
    assert!(page.contains("&lt;script&gt;alert(2)&lt;/script&gt;"));
    assert!(!page.contains("<script>alert"));
    assert!(!page.contains('\x1b'));
    assert_eq!(page.matches("<script").count(), 1);
}

#[test]
fn settings_are_read_and_not_deciphered() {
    let page = super::html(&super::fixture::run());
    assert!(page.contains("<dt>max_<wbr>num_<wbr>seqs</dt><dd>16</dd>"));
    assert!(page.contains("<dt>kv_<wbr>bytes</dt><dd>180 MiB</dd>"));
}

#[test]
fn every_experiment_has_its_charts() {
    let page = super::html(&super::fixture::run());
    for id in [
        "e0-strip", "e0-itl", "e1-strip", "e1-itl", "e1-t0", "e1-t2", "e2-strip", "e2-itl",
        "e2-t3", "e3-c0", "e3-c1", "e3-c2", "e3-itl", "e3-t0", "e3-t3",
    ] {
        assert!(page.contains(&format!("<svg id=\"{id}\" role=\"img\"")), "{id}");
    }
}

fn balanced(tags: &[Tag<'_>]) {
    let mut open = Vec::new();
    for tag in tags {
        if tag.closes {
            assert_eq!(open.pop(), Some(tag.name), "closed out of order");
        } else if !tag.empty && !VOID.contains(&tag.name) {
            open.push(tag.name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

fn loads_nothing(page: &str, tags: &[Tag<'_>]) {
    for tag in tags {
        assert!(!["link", "img", "iframe", "object", "embed", "base"].contains(&tag.name));
        assert_eq!(tag.attribute("src"), None);
        for (name, value) in &tag.attributes {
            assert!(!name.starts_with("on"), "{name}");
            if matches!(*name, "href" | "xlink:href" | "action") {
                assert!(value.starts_with('#'), "{name}={value}");
            }
        }
    }
    assert!(!page.contains("@import") && !page.contains("url("));
}

fn accessible(tags: &[Tag<'_>]) {
    let ids: Vec<&str> = tags.iter().filter_map(|tag| tag.attribute("id")).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "ids are unique");
    for tag in tags {
        for name in ["aria-labelledby", "href"] {
            for target in tag.attribute(name).unwrap_or_default().split_whitespace() {
                assert!(unique.contains(target.trim_start_matches('#')), "{name} {target}");
            }
        }
    }
    let mut level = 0;
    for tag in tags.iter().filter(|tag| !tag.closes) {
        if let Some(heading) = tag.name.strip_prefix('h').and_then(|n| n.parse::<u8>().ok()) {
            assert!(heading <= level + 1, "h{heading} after h{level}");
            level = heading;
        }
        match tag.name {
            "svg" if tag.attribute("aria-hidden").is_none() => {
                assert_eq!(tag.attribute("role"), Some("img"));
                assert!(tag.attribute("aria-labelledby").is_some());
            }
            "th" => assert!(matches!(tag.attribute("scope"), Some("col" | "row"))),
            _ => {}
        }
    }
    let count = |name: &str| tags.iter().filter(|tag| !tag.closes && tag.name == name).count();
    assert_eq!(count("table"), count("caption"));
    assert_eq!(
        (count("h1"), count("main"), count("header"), count("footer"), count("nav")),
        (1, 1, 1, 1, 1)
    );
}

/// The page's tags in order. Text and attributes hold no `<` and no `>`: that
/// they do not is part of the claim.
fn tags(page: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    let mut rest = page.strip_prefix("<!doctype html>").unwrap();
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "a stray > in {:?}", &rest[..start]);
        let end = start + rest[start..].find('>').unwrap();
        let tag = tag(&rest[start + 1..end]);
        rest = &rest[end + 1..];
        if !tag.closes && matches!(tag.name, "style" | "script") {
            rest = &rest[rest.find(&format!("</{}>", tag.name)).unwrap()..];
        }
        tags.push(tag);
    }
    tags
}

fn tag(text: &str) -> Tag<'_> {
    assert!(!text.contains('<'), "a stray < in {text:?}");
    let (closes, text) = text.strip_prefix('/').map_or((false, text), |text| (true, text));
    let (empty, text) = text.strip_suffix('/').map_or((false, text), |text| (true, text));
    let (name, mut rest) = text.split_once([' ', '\n']).unwrap_or((text, ""));
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name:?}");
    let mut attributes = Vec::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"').unwrap();
        attributes.push((key.trim(), value));
        rest = after;
    }
    assert!(rest.trim().is_empty(), "{rest:?}");
    Tag { name, attributes, closes, empty }
}
