//! Just enough of ClickHouse's lexer to split a request: where an INSERT's rows begin, and in which format.
//!
//! Everything else about SQL is left to ClickHouse's own parser. The rules are those of its `Lexer.cpp` and
//! `ParserInsertQuery.cpp`; what they do not decide here is refused there.

/// What a request's text turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Split {
    /// An INSERT whose rows follow: its text without the FORMAT clause, their format, where in the text they begin.
    Insert { statement: Vec<u8>, format: String, data_at: usize },
    /// Anything else; complete only at the end of the input.
    Other,
    /// The text may become an INSERT with rows, but stops too early to tell.
    Undecided,
}

/// What must not run here although ClickHouse's library would do it, because the library's client part reads or
/// writes local files with this process's rights.
#[derive(Debug, PartialEq, Eq)]
pub enum Forbidden {
    IntoOutfile,
    FromInfile,
    FileFunction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    /// Quoted with backticks or double quotes.
    QuotedWord,
    Literal,
    Sign(u8),
    /// A string, comment or quoted word that the text ends within.
    Unterminated,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn word(&self, token: Token) -> &'a [u8] {
        &self.text[token.start..token.end]
    }

    fn is_keyword(&self, token: Token, keyword: &str) -> bool {
        token.kind == Kind::Word && self.word(token).eq_ignore_ascii_case(keyword.as_bytes())
    }

    fn rest(&self) -> &'a [u8] {
        &self.text[self.at..]
    }

    /// Moves past `pattern`, or to the end of the text; false when it is not there.
    fn skip_past(&mut self, pattern: &[u8]) -> bool {
        match self.rest().windows(pattern.len()).position(|window| window == pattern) {
            Some(found) => {
                self.at += found + pattern.len();
                true
            }
            None => {
                self.at = self.text.len();
                false
            }
        }
    }

    fn skip_space_and_comments(&mut self) -> Result<(), Token> {
        loop {
            let start = self.at;
            let rest = self.rest();
            match rest {
                [byte, ..] if byte.is_ascii_whitespace() || *byte == 0x0b => self.at += 1,
                [b'-', b'-', ..] | [b'#', b' ', ..] | [b'#', b'!', ..] => {
                    self.skip_past(b"\n");
                }
                [b'/', b'*', ..] => {
                    self.at += 2;
                    if !self.skip_past(b"*/") {
                        return Err(Token { kind: Kind::Unterminated, start, end: self.at });
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// Moves past a string or quoted word: backslash escapes, and the quote doubled.
    fn skip_quoted(&mut self, quote: u8) -> bool {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == b'\\' {
                self.at += 1;
            } else if byte == quote {
                if self.text.get(self.at) != Some(&quote) {
                    return true;
                }
                self.at += 1;
            }
        }
        self.at = self.text.len();
        false
    }

    /// Moves past `$tag$ … $tag$`; `None` when this dollar opens no heredoc.
    fn skip_heredoc(&mut self) -> Option<bool> {
        let rest = self.rest();
        let tag = rest[1..].iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')?;
        if rest[1 + tag] != b'$' {
            return None;
        }
        let mark = rest[..tag + 2].to_vec();
        self.at += mark.len();
        Some(self.skip_past(&mark))
    }

    fn next(&mut self) -> Option<Token> {
        if let Err(token) = self.skip_space_and_comments() {
            return Some(token);
        }
        let start = self.at;
        let first = *self.text.get(start)?;
        let is_word_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'$';
        let kind = match first {
            b'\'' if self.skip_quoted(b'\'') => Kind::Literal,
            b'`' | b'"' if self.skip_quoted(first) => Kind::QuotedWord,
            b'\'' | b'`' | b'"' => Kind::Unterminated,
            b'$' => match self.skip_heredoc() {
                Some(true) => Kind::Literal,
                Some(false) => Kind::Unterminated,
                None => {
                    self.at += 1;
                    Kind::Sign(first)
                }
            },
            _ if is_word_byte(&first) => {
                self.at += self.rest().iter().position(|byte| !is_word_byte(byte)).unwrap_or(self.rest().len());
                if first.is_ascii_digit() {
                    Kind::Literal
                } else {
                    Kind::Word
                }
            }
            _ => {
                self.at += 1;
                Kind::Sign(first)
            }
        };
        Some(Token { kind, start, end: self.at })
    }
}

/// Splits the beginning of a request. `is_complete` says that `text` is all there is.
pub fn split(text: &[u8], is_complete: bool) -> Split {
    let undecided = if is_complete { Split::Other } else { Split::Undecided };
    let mut lexer = Lexer::new(text);
    match lexer.next() {
        Some(token) if lexer.is_keyword(token, "INSERT") => {}
        Some(token) if token.kind != Kind::Unterminated && (token.end < text.len() || is_complete) => {
            return Split::Other
        }
        _ => return undecided,
    }
    let mut depth = 0_usize;
    let mut previous_was_dot = false;
    let mut is_after_table = false;
    while let Some(token) = lexer.next() {
        let may_grow = token.end == text.len() && !is_complete;
        match token.kind {
            Kind::Unterminated => return undecided,
            Kind::Sign(b'(') => depth += 1,
            Kind::Sign(b')') => depth = depth.saturating_sub(1),
            // The word after INSERT INTO [TABLE] or after a dot is a name, whatever it spells.
            Kind::Word if depth == 0 && is_after_table && !previous_was_dot && !may_grow => {
                if lexer.is_keyword(token, "VALUES") {
                    return insert(text, token.start, None, "Values".to_owned(), lexer.at);
                }
                if lexer.is_keyword(token, "FORMAT") {
                    return after_format(text, &mut lexer, token, is_complete);
                }
                if ["SELECT", "WITH", "FROM", "WATCH"].iter().any(|keyword| lexer.is_keyword(token, keyword)) {
                    return Split::Other;
                }
            }
            _ => {}
        }
        is_after_table |= is_table_name(&lexer, token, depth, may_grow);
        previous_was_dot = token.kind == Kind::Sign(b'.');
    }
    undecided
}

/// The first word that is not INTO, TABLE or FUNCTION names the table (or begins its name).
fn is_table_name(lexer: &Lexer<'_>, token: Token, depth: usize, may_grow: bool) -> bool {
    let is_noise = ["INTO", "TABLE", "FUNCTION"].iter().any(|keyword| lexer.is_keyword(token, keyword));
    depth == 0 && !may_grow && matches!(token.kind, Kind::Word | Kind::QuotedWord | Kind::Sign(b'}')) && !is_noise
}

fn after_format(text: &[u8], lexer: &mut Lexer<'_>, keyword: Token, is_complete: bool) -> Split {
    let undecided = if is_complete { Split::Other } else { Split::Undecided };
    let Some(name) = lexer.next() else { return undecided };
    if name.kind != Kind::Word {
        return if name.kind == Kind::Unterminated { undecided } else { Split::Other };
    }
    // One more byte tells that the name is over.
    if name.end == text.len() && !is_complete {
        return Split::Undecided;
    }
    let format = String::from_utf8_lossy(lexer.word(name)).into_owned();
    let after_name = lexer.at;
    // ClickHouse takes SETTINGS after FORMAT too; they are moved to before it.
    let settings = match settings_clause(lexer, is_complete, text.len()) {
        Ok(clause) => clause,
        Err(()) => return undecided,
    };
    let end = match settings {
        Some(end) => end,
        None => after_name,
    };
    insert(text, keyword.start, settings.map(|end| (after_name, end)), format, end)
}

/// The end of `SETTINGS a = 1, b = 'x'` if it comes next; `Err` when the text stops too early to tell.
fn settings_clause(lexer: &mut Lexer<'_>, is_complete: bool, length: usize) -> Result<Option<usize>, ()> {
    // Rows may begin with anything, also with the word SETTINGS: only on the same line is it a clause.
    let line_end = lexer.rest().iter().position(|byte| *byte == b'\n').map(|found| lexer.at + found);
    if line_end.is_none() && !is_complete && lexer.rest().len() < "SETTINGS".len() + 1 {
        let so_far = lexer.rest().trim_ascii_start();
        let could_be =
            so_far.len() < "SETTINGS".len() && "SETTINGS".as_bytes()[..so_far.len()].eq_ignore_ascii_case(so_far);
        if could_be {
            return Err(());
        }
    }
    let mut probe = Lexer { text: lexer.text, at: lexer.at };
    match probe.next() {
        Some(token) if probe.is_keyword(token, "SETTINGS") && line_end.is_none_or(|end| token.end <= end) => {}
        _ => return Ok(None),
    }
    loop {
        let name = probe.next().ok_or(())?;
        let equals = probe.next().ok_or(())?;
        let mut value = probe.next().ok_or(())?;
        if value.kind == Kind::Sign(b'-') {
            value = probe.next().ok_or(())?;
        }
        if name.kind != Kind::Word || equals.kind != Kind::Sign(b'=') {
            return Ok(None);
        }
        if value.kind == Kind::Unterminated || (value.end == length && !is_complete) {
            return Err(());
        }
        let mut end = value.end;
        // Decimal point of a number.
        if probe.rest().first() == Some(&b'.') {
            probe.next();
            end = probe.next().map_or(end, |fraction| fraction.end);
        }
        let mut after = Lexer { text: probe.text, at: end };
        match after.next() {
            Some(token) if token.kind == Kind::Sign(b',') => probe = after,
            None if !is_complete => return Err(()),
            _ => return Ok(Some(end)),
        }
    }
}

/// `cut` is where the FORMAT or VALUES clause begins, `moved` what of the text after it belongs to the statement.
fn insert(text: &[u8], cut: usize, moved: Option<(usize, usize)>, format: String, after: usize) -> Split {
    let mut statement = text[..cut].to_vec();
    if let Some((start, end)) = moved {
        statement.extend_from_slice(&text[start..end]);
    }
    // As ClickHouse does: blanks, then one line break, belong to the statement.
    let mut data_at = after;
    while matches!(text.get(data_at), Some(b' ' | b'\t' | 0x0c)) {
        data_at += 1;
    }
    if text.get(data_at) == Some(&b'\r') {
        data_at += 1;
    }
    if text.get(data_at) == Some(&b'\n') {
        data_at += 1;
    }
    Split::Insert { statement, format, data_at }
}

/// The format that the statement itself asks for: `… FORMAT name`, outside of parentheses.
pub fn output_format(text: &[u8]) -> Option<String> {
    let mut lexer = Lexer::new(text);
    let mut depth = 0_usize;
    let mut found = None;
    while let Some(token) = lexer.next() {
        match token.kind {
            Kind::Sign(b'(') => depth += 1,
            Kind::Sign(b')') => depth = depth.saturating_sub(1),
            Kind::Word if depth == 0 && lexer.is_keyword(token, "FORMAT") => {
                let Some(name) = lexer.next() else { break };
                if name.kind == Kind::Word {
                    found = Some(String::from_utf8_lossy(lexer.word(name)).into_owned());
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether `word` stands in the text, outside of strings and comments.
pub fn has_word(text: &[u8], word: &str) -> bool {
    let mut lexer = Lexer::new(text);
    while let Some(token) = lexer.next() {
        if lexer.is_keyword(token, word) {
            return true;
        }
    }
    false
}

/// Whether the text reaches for local files, see [`Forbidden`].
pub fn forbidden(text: &[u8]) -> Option<Forbidden> {
    let mut lexer = Lexer::new(text);
    let mut previous: Option<Token> = None;
    while let Some(token) = lexer.next() {
        if let Some(before) = previous {
            if lexer.is_keyword(before, "INTO") && lexer.is_keyword(token, "OUTFILE") {
                return Some(Forbidden::IntoOutfile);
            }
            if lexer.is_keyword(before, "FROM") && lexer.is_keyword(token, "INFILE") {
                return Some(Forbidden::FromInfile);
            }
        }
        let name = lexer.word(token);
        let is_file = match token.kind {
            Kind::Word => name.eq_ignore_ascii_case(b"file"),
            Kind::QuotedWord => name[1..name.len() - 1].eq_ignore_ascii_case(b"file"),
            _ => false,
        };
        // `INSERT INTO file (a)` and `db.file (…)` name a table.
        let names_a_table = previous.is_some_and(|before| {
            before.kind == Kind::Sign(b'.') || lexer.is_keyword(before, "INTO") || lexer.is_keyword(before, "TABLE")
        });
        if is_file && !names_a_table {
            let mut after = Lexer { text, at: lexer.at };
            if after.next().is_some_and(|next| next.kind == Kind::Sign(b'(')) {
                return Some(Forbidden::FileFunction);
            }
        }
        previous = Some(token);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert_of(text: &str) -> (String, String, String) {
        match split(text.as_bytes(), true) {
            Split::Insert { statement, format, data_at } => {
                (String::from_utf8(statement).expect("text"), format, text[data_at..].to_owned())
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn rows_begin_after_the_format_name_and_one_line_break() {
        assert_eq!(
            insert_of("INSERT INTO t FORMAT CSV\n\n1,2\n"),
            ("INSERT INTO t ".into(), "CSV".into(), "\n1,2\n".into())
        );
        assert_eq!(
            insert_of("insert into db.`a b` (x, y) format RowBinary \r\n\0\u{1}"),
            ("insert into db.`a b` (x, y) ".into(), "RowBinary".into(), "\0\u{1}".into())
        );
    }

    #[test]
    fn values_are_rows_of_the_format_values() {
        assert_eq!(
            insert_of("/* c */ INSERT INTO t (a) VALUES (1), ('FORMAT x')"),
            ("/* c */ INSERT INTO t (a) ".into(), "Values".into(), "(1), ('FORMAT x')".into())
        );
    }

    #[test]
    fn settings_after_the_format_move_before_it() {
        assert_eq!(
            insert_of("INSERT INTO t FORMAT CSV SETTINGS a = 1.5, b='x,y'\n1\n"),
            ("INSERT INTO t  SETTINGS a = 1.5, b='x,y'".into(), "CSV".into(), "1\n".into())
        );
        assert_eq!(
            insert_of("INSERT INTO t SETTINGS a=1 FORMAT CSV\nSETTINGS b=2\n").2,
            "SETTINGS b=2\n",
            "on a line of its own it is a row"
        );
    }

    #[test]
    fn keywords_in_strings_comments_and_names_do_not_count() {
        for text in [
            "INSERT INTO t SELECT 'FORMAT CSV'",
            "INSERT INTO t /* FORMAT CSV */ SELECT 1",
            "INSERT INTO t -- VALUES\n SELECT 1",
            "INSERT INTO t SELECT $x$ FORMAT CSV $x$",
            "SELECT 1 FORMAT CSV",
            "INSERT INTO t WITH x AS (SELECT 1) SELECT * FROM x",
        ] {
            assert_eq!(split(text.as_bytes(), true), Split::Other, "{text}");
        }
        assert_eq!(insert_of("INSERT INTO `VALUES` (format) FORMAT CSV\n1").1, "CSV");
        assert_eq!(insert_of("INSERT INTO db.values FORMAT CSV\n1").1, "CSV");
        assert_eq!(insert_of("INSERT INTO {t:Identifier} FORMAT CSV\n1").1, "CSV");
    }

    #[test]
    fn every_prefix_is_undecided_or_already_right() {
        let text =
            "INSERT /* x */ INTO db.`t` (a, b) SETTINGS s = 'v' FORMAT TabSeparated SETTINGS b = 22 , c = 3\n1\t2\n";
        let whole = split(text.as_bytes(), true);
        for end in 0..text.len() {
            let part = split(&text.as_bytes()[..end], false);
            if part == Split::Undecided {
                continue;
            }
            let (Split::Insert { statement, format, data_at }, Split::Insert { statement: s, format: f, data_at: d }) =
                (&part, &whole)
            else {
                panic!("{end}: {part:?}")
            };
            assert_eq!((statement, format), (s, f), "decided wrongly at {end}");
            assert!(data_at <= d, "{end}");
        }
    }

    #[test]
    fn a_select_is_known_from_its_first_word() {
        assert_eq!(split(b"SELECT 1", false), Split::Other);
        assert_eq!(split(b"INS", false), Split::Undecided);
        assert_eq!(split(b"-- only a comment", false), Split::Undecided);
    }

    #[test]
    fn the_last_format_outside_parentheses_is_the_outputs() {
        assert_eq!(output_format(b"SELECT 1 FORMAT JSON"), Some("JSON".into()));
        assert_eq!(output_format(b"SELECT (SELECT 'FORMAT CSV') -- FORMAT XML"), None);
        assert_eq!(output_format(b"SELECT 1 FORMAT JSONEachRow SETTINGS max_threads = 1"), Some("JSONEachRow".into()));
    }

    #[test]
    fn local_files_are_out_of_reach() {
        assert_eq!(forbidden(b"SELECT 1 INTO /* */ OUTFILE '/x'"), Some(Forbidden::IntoOutfile));
        assert_eq!(forbidden(b"INSERT INTO t FROM INFILE '/x' FORMAT CSV"), Some(Forbidden::FromInfile));
        assert_eq!(forbidden(b"SELECT file ('/etc/passwd')"), Some(Forbidden::FileFunction));
        assert_eq!(forbidden(b"SELECT `file`('/etc/passwd')"), Some(Forbidden::FileFunction));
        assert_eq!(forbidden(b"SELECT 'into outfile file(1)', file FROM t"), None);
        assert_eq!(forbidden(b"INSERT INTO file (a) SELECT 1"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_lexer_panic_or_hang(text: Vec<u8>, is_complete: bool) {
            let _ = split(&text, is_complete);
            let _ = (output_format(&text), forbidden(&text));
        }

        #[test]
        fn no_text_of_sql_pieces_makes_it_panic(pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "INSERT", " INTO ", "t", "FORMAT ", "CSV", "\n", "VALUES", "(", ")", "'", "\\", "`", "$a$", "$",
                "SETTINGS ", "a=1", ",", "--", "/*", "*/", ".", "-", "file",
            ]), 0..24)) {
            let text = pieces.concat();
            for end in 0..=text.len() {
                let _ = split(&text.as_bytes()[..end], end == text.len());
            }
            let _ = (output_format(text.as_bytes()), forbidden(text.as_bytes()));
        }
    }
}
