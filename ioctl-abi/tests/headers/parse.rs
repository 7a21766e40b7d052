//! Enough of a C parser for the kernel's uAPI headers: structs with their fields, enums with their
//! values, and defines without arguments.

use std::collections::{BTreeMap, BTreeSet};

/// What a header declares.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// Structs by name, with the fields of anonymous members among theirs.
    pub(crate) structs: BTreeMap<String, Vec<CField>>,
    /// Enums with a name.
    pub(crate) enums: BTreeSet<String>,
    /// Values of enums, and defines.
    pub(crate) constants: BTreeSet<String>,
}

/// A field.
#[derive(Debug)]
pub(crate) struct CField {
    /// Its name; with a dot in it inside a named member without a type name.
    pub(crate) name: String,
    /// Its type's words.
    pub(crate) c_type: String,
}

impl Parsed {
    /// Reads a header.
    pub(crate) fn new(text: &str) -> Self {
        let mut parsed = Self::default();
        let text = without_comments(text).replace("\\\n", " ");
        let mut declarations = String::new();
        for line in text.lines() {
            match line.trim_start().strip_prefix('#') {
                None => declarations.extend([line, "\n"]),
                Some(directive) => parsed.constants.extend(define(directive)),
            }
        }
        let mut tokens = Tokens { rest: tokens(&declarations), at: 0 };
        while let Some(token) = tokens.next() {
            match token.as_str() {
                "struct" if tokens.peek(1) == "{" => {
                    let name = tokens.next().expect("a name");
                    let mut fields = Vec::new();
                    tokens.fields("", &mut fields);
                    parsed.structs.insert(name, fields);
                }
                "enum" => parsed.enumeration(&mut tokens),
                _ => {}
            }
        }
        parsed
    }

    fn enumeration(&mut self, tokens: &mut Tokens) {
        if tokens.peek(0) != "{" {
            self.enums.extend(tokens.next());
        }
        let mut names_follow = false;
        while let Some(token) = tokens.next() {
            match token.as_str() {
                "}" => break,
                "{" | "," => names_follow = true,
                _ if names_follow => {
                    self.constants.insert(token);
                    names_follow = false;
                }
                _ => {}
            }
        }
    }
}

/// The name that a directive defines, unless it takes arguments.
fn define(directive: &str) -> Option<String> {
    let definition = directive.trim_start().strip_prefix("define")?.trim_start();
    let end = definition.find(|c: char| !is_word(c)).unwrap_or(definition.len());
    let (name, rest) = definition.split_at(end);
    (!rest.starts_with('(')).then(|| name.to_owned())
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("/*") {
        kept.extend([&rest[..start], " "]);
        rest = rest[start..].split_once("*/").map_or("", |(_, after)| after);
    }
    kept + rest
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Words, and single characters of everything else.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        tokens.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    tokens
}

struct Tokens {
    rest: Vec<String>,
    at: usize,
}

impl Tokens {
    fn next(&mut self) -> Option<String> {
        let token = self.rest.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn peek(&self, ahead: usize) -> &str {
        self.rest.get(self.at + ahead).map_or("", String::as_str)
    }

    /// The fields from `{` to `}`, their names behind `prefix`.
    fn fields(&mut self, prefix: &str, into: &mut Vec<CField>) {
        assert_eq!(self.next().as_deref(), Some("{"));
        loop {
            match self.peek(0) {
                "}" | "" => break,
                "struct" | "union" if self.peek(1) == "{" => {
                    self.next();
                    let mut members = Vec::new();
                    self.fields("", &mut members);
                    let name = match self.peek(0) {
                        ";" => String::new(),
                        _ => self.next().expect("a name") + ".",
                    };
                    assert_eq!(self.next().as_deref(), Some(";"));
                    into.extend(members.into_iter().map(|member| CField {
                        name: format!("{prefix}{name}{}", member.name),
                        ..member
                    }));
                }
                _ => into.push(self.field(prefix)),
            }
        }
        self.next();
    }

    fn field(&mut self, prefix: &str) -> CField {
        let mut words = Vec::new();
        while self.peek(0) != ";" {
            words.push(self.next().expect("a semicolon"));
        }
        self.next();
        let bracket = words.iter().position(|word| word == "[").unwrap_or(words.len());
        let (c_type, name) = words[..bracket].split_at(bracket - 1);
        CField { name: format!("{prefix}{}", name[0]), c_type: c_type.join(" ") }
    }
}
