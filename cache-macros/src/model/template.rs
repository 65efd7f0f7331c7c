//! The grammar of `key = "…"`: segments between `:`, in each literal text and at most one `{placeholder}`.
//!
//! One placeholder per segment keeps keys apart: with `{a}{b}` the values "1", "23" and "12", "3" would meet.

use std::iter::Peekable;
use std::str::Chars;

/// A template in parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Vec<Part>>,
}

/// A part of one segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text that is in every key.
    Text(String),
    /// A value.
    Placeholder(Placeholder),
}

/// `{root.field.0}`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placeholder {
    /// An argument of the function.
    pub(crate) root: String,
    /// Fields on the way to the value.
    pub(crate) fields: Vec<String>,
}

impl Template {
    /// Reads a template, or says everything that is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<String>> {
        if text.is_empty() {
            return Err(vec![String::from("`key` is empty: name what tells two calls apart, as in `key = \"{id}\"`")]);
        }
        let mut reader = Reader::default();
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            reader.step(letter, &mut letters);
        }
        reader.end_segment();
        if !reader.mistakes.is_empty() {
            return Err(reader.mistakes);
        }
        Ok(Self { segments: reader.segments })
    }

    /// The placeholders in their order.
    pub(crate) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        let parts = self.segments.iter().flatten();
        parts.filter_map(|part| match part {
            Part::Placeholder(placeholder) => Some(placeholder),
            Part::Text(_) => None,
        })
    }
}

#[derive(Default)]
struct Reader {
    segments: Vec<Vec<Part>>,
    segment: Vec<Part>,
    text: String,
    mistakes: Vec<String>,
}

impl Reader {
    fn step(&mut self, letter: char, rest: &mut Peekable<Chars<'_>>) {
        match letter {
            ':' => self.end_segment(),
            '{' | '}' if rest.next_if_eq(&letter).is_some() => self.text.push(letter),
            '{' => self.placeholder(rest),
            '}' => self.mistakes.push(String::from("`}` in `key` closes nothing: write `}}` for the character itself")),
            other => self.text.push(other),
        }
    }

    fn placeholder(&mut self, rest: &mut Peekable<Chars<'_>>) {
        let mut inside = String::new();
        loop {
            match rest.next() {
                Some('}') => break,
                Some(letter) => inside.push(letter),
                None => {
                    let message =
                        format!("`{{{inside}` in `key` is not closed: write `}}`, or `{{{{` for the character itself");
                    return self.mistakes.push(message);
                }
            }
        }
        self.end_text();
        match placeholder(&inside) {
            Ok(placeholder) => self.segment.push(Part::Placeholder(placeholder)),
            Err(message) => self.mistakes.push(message),
        }
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.segment.push(Part::Text(text));
        }
    }

    fn end_segment(&mut self) {
        self.end_text();
        let segment = std::mem::take(&mut self.segment);
        let placeholders = segment.iter().filter(|part| matches!(part, Part::Placeholder(_))).count();
        if segment.is_empty() && self.mistakes.is_empty() {
            self.mistakes
                .push(String::from("`key` has an empty segment: put text or a placeholder on both sides of each `:`"));
        }
        if placeholders > 1 {
            self.mistakes.push(String::from(
                "two placeholders in one segment of `key` could give two calls the same key: \
                 put `:` between them, as in \"{a}:{b}\"",
            ));
        }
        self.segments.push(segment);
    }
}

fn placeholder(inside: &str) -> Result<Placeholder, String> {
    let mut names = inside.split('.').map(str::trim);
    let root = names.next().unwrap_or_default();
    let fields: Vec<&str> = names.collect();
    let is_index = |name: &&str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_digit());
    let well_formed = is_name(root) && fields.iter().all(|name| is_name(name) || is_index(name));
    if !well_formed {
        return Err(format!(
            "`{{{inside}}}` in `key` is no placeholder: write the name of an argument, `{{id}}`, or of a field of it, \
             `{{user.id}}`; values are written in canonical form, without format options"
        ));
    }
    Ok(Placeholder { root: String::from(root), fields: fields.into_iter().map(String::from).collect() })
}

fn is_name(name: &str) -> bool {
    // Keywords are allowed: an argument may be a raw identifier.
    name != "_" && {
        let mut letters = name.chars();
        letters.next().is_some_and(|c| c == '_' || c.is_alphabetic())
            && letters.all(|c| c == '_' || c.is_alphanumeric())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(String::from(text))
    }

    fn value(root: &str, fields: &[&str]) -> Part {
        Part::Placeholder(Placeholder {
            root: String::from(root),
            fields: fields.iter().map(|field| String::from(*field)).collect(),
        })
    }

    #[test]
    fn a_template_is_segments_of_text_and_one_placeholder() {
        let template = Template::parse("v1:{user.id}:p{pair.0}:{{x}}").unwrap();
        let expected =
            [vec![text("v1")], vec![value("user", &["id"])], vec![text("p"), value("pair", &["0"])], vec![text("{x}")]];
        assert_eq!(template.segments, expected);
    }

    #[test]
    fn a_wrong_template_says_what_is_wrong() {
        let cases = [
            ("", "is empty"),
            ("a::b", "empty segment"),
            (":a", "empty segment"),
            ("a:", "empty segment"),
            ("{a}{b}", "put `:` between"),
            ("{a}-{b}", "put `:` between"),
            ("{a", "is not closed"),
            ("a}", "closes nothing"),
            ("{}", "is no placeholder"),
            ("{0}", "is no placeholder"),
            ("{a:?}", "is no placeholder"),
            ("{a.}", "is no placeholder"),
            ("{f(x)}", "is no placeholder"),
        ];
        for (template, expected) in cases {
            let found = Template::parse(template).unwrap_err();
            assert_eq!(found.len(), 1, "{template}: {found:?}");
            assert!(found[0].contains(expected), "{template}: {found:?}");
        }
    }

    #[test]
    fn all_mistakes_of_a_template_are_reported() {
        assert_eq!(Template::parse("{a}{b}:}:{1}").unwrap_err().len(), 3);
    }
}
