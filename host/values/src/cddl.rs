//! The subset of CDDL (RFC 8610) for the types of parameters and replies.

use ciborium::Value;

/// The type of a parameter or a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// `text`, `tstr`.
    Text,
    /// `bytes`, `bstr`.
    Bytes,
    /// `int`.
    Int,
    /// `uint`.
    Uint,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `null`, `nil`.
    Null,
    /// `any`, and every type that cannot be parsed.
    Any,
    /// `[* T]`.
    Array(Box<Type>),
    /// `{* text => T}`.
    Map(Box<Type>),
    /// `T / U`: the first type that fits.
    Choice(Vec<Type>),
    /// A literal, as `"on"`, `7` or `true`.
    Literal(Value),
}

/// Deepest nesting that is parsed; a deeper type is `any`.
const MAX_DEPTH: u8 = 16;

impl Type {
    /// Parse a type. A type outside the subset becomes `any`.
    pub fn parse(text: &str) -> Self {
        let mut parser = Parser { rest: text };
        match parser.choice(0) {
            Some(ty) if parser.rest.trim_start().is_empty() => ty,
            _ => Self::Any,
        }
    }

    /// Return true if the value is of this type.
    pub fn admits(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Any, _)
            | (Self::Text, Value::Text(_))
            | (Self::Bytes, Value::Bytes(_))
            | (Self::Int, Value::Integer(_))
            | (Self::Float, Value::Float(_))
            | (Self::Bool, Value::Bool(_))
            | (Self::Null, Value::Null) => true,
            (Self::Uint, Value::Integer(number)) => i128::from(*number) >= 0,
            (Self::Array(item), Value::Array(values)) => values.iter().all(|value| item.admits(value)),
            (Self::Map(item), Value::Map(entries)) => {
                entries.iter().all(|(key, value)| key.is_text() && item.admits(value))
            }
            (Self::Choice(types), value) => types.iter().any(|ty| ty.admits(value)),
            (Self::Literal(literal), value) => literal == value,
            _ => false,
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Bytes => f.write_str("bytes"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Float => f.write_str("float"),
            Self::Bool => f.write_str("bool"),
            Self::Null => f.write_str("null"),
            Self::Any => f.write_str("any"),
            Self::Array(item) => write!(f, "[* {item}]"),
            Self::Map(item) => write!(f, "{{* text => {item}}}"),
            Self::Choice(types) => {
                for (i, ty) in types.iter().enumerate() {
                    write!(f, "{}{ty}", if i == 0 { "" } else { " / " })?;
                }
                Ok(())
            }
            Self::Literal(value) => write!(f, "{}", super::json::to_json(value)),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn choice(&mut self, depth: u8) -> Option<Type> {
        let mut types = vec![self.one(depth)?];
        while self.eat("/") {
            types.push(self.one(depth)?);
        }
        if types.len() == 1 { types.pop() } else { Some(Type::Choice(types)) }
    }

    fn one(&mut self, depth: u8) -> Option<Type> {
        if depth >= MAX_DEPTH {
            return None;
        }
        if self.eat("[") {
            self.eat("*").then_some(())?;
            let item = self.choice(depth + 1)?;
            return self.eat("]").then(|| Type::Array(Box::new(item)));
        }
        if self.eat("{") {
            self.eat("*").then_some(())?;
            matches!(self.one(depth + 1)?, Type::Text).then_some(())?;
            self.eat("=>").then_some(())?;
            let item = self.choice(depth + 1)?;
            return self.eat("}").then(|| Type::Map(Box::new(item)));
        }
        if self.eat("(") {
            let inner = self.choice(depth + 1)?;
            return self.eat(")").then_some(inner);
        }
        self.rest = self.rest.trim_start();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            let end = quoted.find('"')?;
            let literal = quoted[..end].to_owned();
            self.rest = &quoted[end + 1..];
            return (!literal.contains('\\')).then_some(Type::Literal(Value::Text(literal)));
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+')))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(match word {
            "text" | "tstr" => Type::Text,
            "bytes" | "bstr" => Type::Bytes,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "float" | "float16" | "float32" | "float64" => Type::Float,
            "bool" => Type::Bool,
            "null" | "nil" => Type::Null,
            "any" => Type::Any,
            "true" => Type::Literal(Value::Bool(true)),
            "false" => Type::Literal(Value::Bool(false)),
            number => {
                if let Ok(number) = number.parse::<i64>() {
                    Type::Literal(Value::Integer(number.into()))
                } else {
                    let number: f64 = number.parse().ok()?;
                    number.is_finite().then_some(Type::Literal(Value::Float(number)))?
                }
            }
        })
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::document::document;
    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(
            text in "[a-z0-9 .:*/?+=>{}\\[\\]\"-]{0,40}", any in any::<String>(), cut in 0usize..40,
        ) {
            let valid = "{* text => [* int / \"on\" / {* text => bool}]}";
            for text in [&text, &any, &valid[..cut.min(valid.len())]] {
                let ty = Type::parse(text);
                prop_assert!(ty.admits(&Value::Null) || !ty.admits(&Value::Null));
                let _ = (document(text, true), document(text, false));
            }
        }
    }

    #[test]
    fn types_of_the_subset_are_parsed() {
        let array = |ty| Type::Array(Box::new(ty));
        for (text, ty) in [
            ("text", Type::Text),
            (" uint ", Type::Uint),
            ("[* bytes]", array(Type::Bytes)),
            ("{* text => [* int]}", Type::Map(Box::new(array(Type::Int)))),
            ("text / null", Type::Choice(vec![Type::Text, Type::Null])),
            ("[* (int / text)]", array(Type::Choice(vec![Type::Int, Type::Text]))),
            ("\"on\" / \"off\"", {
                let literal = |text: &str| Type::Literal(Value::Text(text.into()));
                Type::Choice(vec![literal("on"), literal("off")])
            }),
            ("-7", Type::Literal(Value::Integer((-7).into()))),
            ("true", Type::Literal(Value::Bool(true))),
        ] {
            assert_eq!(Type::parse(text), ty, "{text}");
            assert_eq!(Type::parse(&ty.to_string()), ty, "{text}");
        }
    }

    #[test]
    fn types_outside_the_subset_are_any() {
        let deep = format!("{}int{}", "[* ".repeat(100), "]".repeat(100));
        for text in
            ["", "text text", "[* int", "{* int => text}", "tdate", "text .size 3", "\"a", "[]", "nan", &deep]
        {
            assert_eq!(Type::parse(text), Type::Any, "{text}");
        }
    }
}
