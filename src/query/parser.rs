//! Reads a filter or an order:
//!
//! ```text
//! filter = and { "OR" and }
//! and    = not { "AND" not }
//! not    = { "NOT" } ( "(" filter ")" | test )
//! test   = field ":" ( [ ">" | ">=" | "<" | "<=" ] value | item { "," item } )
//! item   = "*" | [ "*" ] value [ "*" ]
//! value  = bare characters | '"' any characters, \" and \\ '"'
//! ```
//!
//! Keywords are AND, OR, NOT, ASC and DESC in upper or lower case. Recursion goes as deep as parentheses do, which
//! [`MAX_DEPTH`] bounds.
use std::cell::Cell;
use std::fmt;

use super::condition::Operator;
use super::error::{shown, QueryError};
use super::field::Field;
use super::filter::{Expr, Test};
use super::order::{Direction, SortKey};
use super::values::{self, Value};
use super::{MAX_DEPTH, MAX_QUERY_BYTES, MAX_SORT_KEYS, MAX_VALUES};

/// Characters of a field's name outside quotes.
pub(super) fn is_name_character(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | '/')
}

/// Characters of a value outside quotes: all but those that mean something.
pub(super) fn is_value_character(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !matches!(character, '(' | ')' | ',' | '"' | '*' | '\\')
}

/// Writes `word` so that it is read as it is: quoted unless it is all `is_bare`.
pub(super) fn write_word(f: &mut fmt::Formatter<'_>, word: &str, is_bare: fn(char) -> bool) -> fmt::Result {
    // What begins like an operator would be read as one.
    if !word.is_empty() && word.chars().all(is_bare) && !word.starts_with(['>', '<']) {
        return f.write_str(word);
    }
    f.write_str("\"")?;
    for character in word.chars() {
        if matches!(character, '"' | '\\') {
            f.write_str("\\")?;
        }
        write!(f, "{character}")?;
    }
    f.write_str("\"")
}

/// A filter; `None` when there is nothing in it.
pub(super) fn filter(text: &str) -> Result<Option<Expr>, QueryError> {
    let mut parser = Parser::new(text)?;
    parser.skip_space();
    if parser.is_at_end() {
        return Ok(None);
    }
    let expr = parser.or(0)?;
    match parser.rest().chars().next() {
        None => Ok(Some(expr)),
        Some(')') => Err(parser.error("found a ) that no ( opened".into())),
        Some(_) => Err(parser.error(format!("found {}, expected AND, OR or the end", shown(parser.word())))),
    }
}

/// The keys of an order.
pub(super) fn order(text: &str) -> Result<Vec<SortKey>, QueryError> {
    let mut parser = Parser::new(text)?;
    let mut keys: Vec<SortKey> = Vec::new();
    parser.skip_space();
    while !parser.is_at_end() {
        if keys.len() == MAX_SORT_KEYS {
            return Err(parser.error(format!("an order has at most {MAX_SORT_KEYS} keys")));
        }
        let column = parser.column();
        let field = parser.field()?;
        if keys.iter().any(|key| key.field == field) {
            return Err(QueryError { column, message: format!("{field} is in the order already") });
        }
        parser.skip_space();
        let direction = if parser.take_keyword("DESC") {
            Direction::Descending
        } else {
            parser.take_keyword("ASC");
            Direction::Ascending
        };
        keys.push(SortKey { field, direction });
        parser.skip_space();
        if parser.is_at_end() {
            break;
        }
        if !parser.take(",") {
            return Err(parser.error(format!("found {}, expected ASC, DESC, a comma or the end", shown(parser.word()))));
        }
        parser.skip_space();
        if parser.is_at_end() {
            return Err(parser.error("expected another field after the comma".into()));
        }
    }
    Ok(keys)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: usize,
    /// A place and its column, from which the column of a later place is counted.
    counted: Cell<(usize, usize)>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, QueryError> {
        if text.len() > MAX_QUERY_BYTES {
            let message = format!("{} bytes are too long; at most {MAX_QUERY_BYTES} are read", text.len());
            return Err(QueryError { column: 1, message });
        }
        Ok(Self { text, at: 0, values: 0, counted: Cell::new((0, 1)) })
    }

    fn or(&mut self, depth: usize) -> Result<Expr, QueryError> {
        let mut terms = vec![self.and(depth)?];
        while self.take_keyword("OR") {
            terms.push(self.and(depth)?);
        }
        Ok(one_or(terms, Expr::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Expr, QueryError> {
        let mut terms = vec![self.not(depth)?];
        while self.take_keyword("AND") {
            terms.push(self.not(depth)?);
        }
        Ok(one_or(terms, Expr::And))
    }

    fn not(&mut self, mut depth: usize) -> Result<Expr, QueryError> {
        let mut negations = 0;
        self.skip_space();
        while self.take_keyword("NOT") {
            negations += 1;
            depth += 1;
            self.check_depth(depth)?;
        }
        let column = self.column();
        let inner = if self.take("(") {
            self.check_depth(depth + 1)?;
            let inner = self.or(depth + 1)?;
            if !self.take(")") {
                let found = if self.is_at_end() { "the end".into() } else { shown(self.word()) };
                let message = format!("found {found}, expected AND, OR or the ) of the ( at column {column}");
                return Err(self.error(message));
            }
            self.skip_space();
            inner
        } else {
            Expr::Test(self.test()?)
        };
        Ok((0..negations).fold(inner, |inner, _| Expr::Not(Box::new(inner))))
    }

    fn check_depth(&self, depth: usize) -> Result<(), QueryError> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("parentheses and NOT are nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    fn test(&mut self) -> Result<Test, QueryError> {
        let field = self.field()?;
        if !self.take(":") {
            let found = if self.is_at_end() { "the end".into() } else { shown(self.word()) };
            return Err(self.error(format!("found {found}, expected a : and a value after the field {field}")));
        }
        let condition = match self.operator() {
            Some(operator) => {
                let value = self.value()?;
                values::compared(&field, operator, value)?
            }
            None => {
                let mut items = vec![self.value()?];
                while self.take(",") {
                    self.skip_space();
                    items.push(self.value()?);
                }
                values::one_of(&field, items)?
            }
        };
        self.skip_space();
        Ok(Test { field, condition })
    }

    fn operator(&mut self) -> Option<Operator> {
        let operators = [Operator::GreaterOrEqual, Operator::LessOrEqual, Operator::Greater, Operator::Less];
        operators.into_iter().find(|operator| self.take(operator.symbol()))
    }

    /// A field's name, whose key may be quoted: `labels."odd key"`.
    fn field(&mut self) -> Result<Field, QueryError> {
        let column = self.column();
        let start = self.at;
        self.skip_while(is_name_character);
        let mut name = self.text[start..self.at].to_owned();
        if name.is_empty() {
            let found = if self.is_at_end() { "the end".into() } else { shown(self.word()) };
            return Err(self.error(format!("found {found}, expected a field such as status:online")));
        }
        if name.ends_with('.') && self.rest().starts_with('"') {
            self.quoted(&mut name)?;
        }
        Field::named(&name).map_err(|message| QueryError { column, message })
    }

    fn value(&mut self) -> Result<Value, QueryError> {
        let column = self.column();
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.error(format!("more than {MAX_VALUES} values")));
        }
        let before = self.take("*");
        let mut text = String::new();
        let is_quoted = self.rest().starts_with('"');
        if is_quoted {
            self.quoted(&mut text)?;
        } else {
            let start = self.at;
            self.skip_while(is_value_character);
            text.push_str(&self.text[start..self.at]);
        }
        if text.is_empty() && !is_quoted && !before {
            let found = if self.is_at_end() { "the end".into() } else { shown(self.word()) };
            return Err(self.error(format!("found {found}, expected a value; \"\" is the empty one")));
        }
        let after = self.take("*");
        match self.rest().chars().next() {
            None | Some(')' | ',') => {}
            Some(next) if next.is_whitespace() => {}
            Some(next) => {
                let message = format!(
                    "found {:?} inside a value; a * stands first or last, and a value with other signs is \"quoted\"",
                    next.to_string()
                );
                return Err(self.error(message));
            }
        }
        Ok(Value { text, star: (before, after), column })
    }

    /// Appends a quoted text, whose first quote is next.
    fn quoted(&mut self, text: &mut String) -> Result<(), QueryError> {
        let column = self.column();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += at + 1;
                    return Ok(());
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                    _ => {
                        self.at += at;
                        return Err(self.error("after \\ in a quoted text only \" or \\ may follow".into()));
                    }
                },
                other => text.push(other),
            }
        }
        Err(QueryError { column, message: "this quote is not closed".into() })
    }

    fn take(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        if is_next {
            self.at += token.len();
        }
        is_next
    }

    /// Takes a keyword in either case, when it is next and a word of its own, and the space after it.
    fn take_keyword(&mut self, keyword: &str) -> bool {
        let is_next = self.rest().get(..keyword.len()).is_some_and(|next| next.eq_ignore_ascii_case(keyword))
            && !self.rest()[keyword.len()..].starts_with(|next| is_name_character(next) || next == ':');
        if is_next {
            self.at += keyword.len();
            self.skip_space();
        }
        is_next
    }

    fn skip_space(&mut self) {
        self.skip_while(char::is_whitespace);
    }

    fn skip_while(&mut self, belongs: fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|character| !belongs(character)).unwrap_or(rest.len());
    }

    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// What is next, up to a space, for errors.
    fn word(&self) -> &'a str {
        let rest = self.rest();
        let end = rest.char_indices().skip(1).find(|(_, character)| character.is_whitespace());
        &rest[..end.map_or(rest.len(), |(at, _)| at)]
    }

    /// Characters are counted once over the whole text: every value asks where it is.
    fn column(&self) -> usize {
        let (at, column) = self.counted.get();
        let column = column + self.text[at..self.at].chars().count();
        self.counted.set((self.at, column));
        column
    }

    fn error(&self, message: String) -> QueryError {
        QueryError { column: self.column(), message }
    }
}

fn one_or(mut terms: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match terms.len() {
        1 => terms.remove(0),
        _ => many(terms),
    }
}
