//! Runs one statement, from the first byte of its text to the last of its answer, on a thread that may block.
//!
//! Every statement gets a fresh session: settings, `USE`, temporary tables and a half-finished state of one request
//! cannot reach another, and closing the session is what takes the statement out of `system.processes`.
use bytes::Bytes;

use super::exception::{code, Exception};
use super::forms;
use super::framing::{Framing, Head};
use super::input::{Arrivals, Input};
use super::library::{Connection, Counters, Library, Parameters, StatementClass};
use super::request::Request;
use super::respond::{Dress, Responder, WriteError};
use super::sql::{self, Forbidden, Split};
use crate::parquet;

/// Longest text of a statement, in bytes, rows of an INSERT not counted. ClickHouse's own default is 256 KiB
/// (`max_query_size`); clients that bind long lists go beyond it.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Output when neither the statement nor the request names a format; the default of ClickHouse's HTTP interface.
const DEFAULT_FORMAT: &str = "TabSeparated";

/// A statement ends with an answer or without a reader for it.
enum Stop {
    Failed(Exception),
    Gone,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Failed(exception)
    }
}

impl From<WriteError> for Stop {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Gone => Self::Gone,
            WriteError::Failed(exception) => Self::Failed(exception),
        }
    }
}

/// Runs the request against the engine and answers it.
pub fn run(engine: &Library, request: Request, arrivals: Arrivals, mut responder: Responder) {
    match execute(engine, request, arrivals, &mut responder) {
        Ok(counters) => responder.finish(counters),
        Err(Stop::Failed(exception)) => {
            tracing::debug!(code = exception.code(), error = %exception, "statement failed");
            responder.fail(&exception);
        }
        Err(Stop::Gone) => tracing::debug!("client went away before its answer was whole"),
    }
}

fn execute(
    engine: &Library,
    mut request: Request,
    arrivals: Arrivals,
    responder: &mut Responder,
) -> Result<Counters, Stop> {
    let mut input = Input::new(arrivals, request.body_coding, request.decompress)?;
    if let Some(boundary) = request.form_boundary.take() {
        let form = read_to_end(&mut input, Vec::new())?;
        request.take_fields(forms::multipart(&form, &boundary)?)?;
        input = Input::Empty;
    }
    let mut text = std::mem::take(&mut request.query).into_bytes();
    let split = gather(&mut text, &mut input)?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(syntax_error("Empty query").into());
    }
    refuse_local_files(match &split {
        Split::Insert { statement, .. } => statement,
        _ => &text,
    })?;

    let mut connection =
        engine.connect().map_err(|error| Exception::internal(&format!("No session could be opened: {error}")))?;
    for statement in request.session_statements() {
        connection.query(statement.as_bytes(), DEFAULT_FORMAT, &Parameters::default())?;
    }
    let parameters = request.take_parameters();
    match split {
        Split::Insert { statement, format, data_at } => {
            if request.is_read_only {
                return Err(read_only().into());
            }
            let first_rows = Bytes::from(text).slice(data_at..);
            insert(&mut connection, &statement, &format, &parameters, first_rows, &mut input)
        }
        Split::Other | Split::Undecided => {
            let own_format = sql::output_format(&text);
            let format = request.default_format.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_FORMAT);
            let output_format = own_format.as_deref().unwrap_or(format);
            let is_native = output_format.eq_ignore_ascii_case("Native");
            let dress = Dress {
                native_revision: if is_native { request.client_revision } else { 0 },
                coding: request.answer_coding,
                in_native_blocks: request.compress,
                waits_for_the_end: request.wait_end_of_query,
            };
            responder.dress(dress, output_format)?;
            // Totals and extremes come after the rows, in a piece without the rows' head.
            let has_tail = sql::has_word(&text, "TOTALS") || sql::has_word(&text, "extremes");
            let is_plain = !has_tail && !request.settings.iter().any(|(name, _)| name == "extremes");
            let framing = if is_plain { Framing::of(output_format) } else { Framing::Document };
            let query = Query { text: &text, format, framing, parameters: &parameters };
            query.run(&mut connection, request.is_read_only, responder)
        }
    }
}

/// Reads as much of the body as is text: all of it, or up to where an INSERT's rows begin.
fn gather(text: &mut Vec<u8>, input: &mut Input) -> Result<Split, Exception> {
    if !text.is_empty() {
        // As ClickHouse joins the URL's text and the body.
        text.push(b'\n');
    }
    loop {
        let split = sql::split(text, false);
        if matches!(split, Split::Insert { .. }) {
            return Ok(split);
        }
        if split == Split::Other {
            *text = read_to_end(input, std::mem::take(text))?;
            return Ok(Split::Other);
        }
        match input.next_piece()? {
            Some(piece) => append(text, &piece)?,
            None => return Ok(sql::split(text, true)),
        }
    }
}

fn read_to_end(input: &mut Input, mut bytes: Vec<u8>) -> Result<Vec<u8>, Exception> {
    while let Some(piece) = input.next_piece()? {
        append(&mut bytes, &piece)?;
    }
    Ok(bytes)
}

fn append(text: &mut Vec<u8>, piece: &[u8]) -> Result<(), Exception> {
    text.extend_from_slice(piece);
    // A piece may hold an INSERT's text and megabytes of its rows, so the bound is on what came before it.
    if text.len() - piece.len() > MAX_TEXT_BYTES {
        let message = format!("The statement is longer than {MAX_TEXT_BYTES} bytes");
        return Err(Exception::new(code::QUERY_IS_TOO_LARGE, "QUERY_IS_TOO_LARGE", message));
    }
    Ok(())
}

/// The rows are appended as they arrive. Any way out but the last line drops the insert, which cancels it.
fn insert(
    connection: &mut Connection,
    statement: &[u8],
    format: &str,
    parameters: &Parameters,
    first_rows: Bytes,
    input: &mut Input,
) -> Result<Counters, Stop> {
    let mut insert = connection.insert(statement, format, parameters)?;
    if !first_rows.is_empty() {
        insert.append(&first_rows)?;
    }
    while let Some(rows) = input.next_piece()? {
        insert.append(&rows)?;
    }
    Ok(insert.finish()?)
}

/// A statement whose text is whole.
struct Query<'a> {
    text: &'a [u8],
    /// For the output, unless the text names one itself.
    format: &'a str,
    framing: Framing,
    parameters: &'a Parameters,
}

impl Query<'_> {
    fn run(
        &self,
        connection: &mut Connection,
        is_read_only: bool,
        responder: &mut Responder,
    ) -> Result<Counters, Stop> {
        let (count, class) = connection.classify(self.text);
        if count > 1 {
            return Err(syntax_error("Multi-statements are not allowed").into());
        }
        if count == 0 {
            return Err(parse_error(connection, self.text).into());
        }
        if is_read_only && class != StatementClass::ReadOnly {
            return Err(read_only().into());
        }
        if class == StatementClass::ReadOnly && self.framing != Framing::Document {
            match self.stream(connection, responder) {
                Err(Stop::Failed(exception)) if exception.is_streaming_unsupported() => {}
                Ok(None) => {}
                Ok(Some(counters)) => return Ok(counters),
                Err(stop) => return Err(stop),
            }
        }
        let output = connection.query(self.text, self.format, self.parameters)?;
        let counters = output.counters();
        responder.write(Bytes::from_owner(output))?;
        Ok(counters)
    }

    /// `None` when the first piece shows that the output cannot be joined; nothing was written then.
    fn stream(&self, connection: &mut Connection, responder: &mut Responder) -> Result<Option<Counters>, Stop> {
        let mut rows = connection.stream(self.text, self.format, self.parameters)?;
        let mut counters = Counters::default();
        let mut join = Join::new(self.framing);
        while let Some(chunk) = rows.next_chunk()? {
            counters.add(chunk.counters());
            match join.piece(Bytes::from_owner(chunk))? {
                Some(piece) => responder.write(piece)?,
                None => return Ok(None),
            }
        }
        responder.write(join.end()?)?;
        Ok(Some(counters))
    }
}

/// Puts the pieces of an output together.
enum Join {
    Rows,
    Headed { shape: Head, head: Option<Bytes> },
    Parquet(Box<parquet::Joiner>),
}

impl Join {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Headed(shape) => Self::Headed { shape, head: None },
            Framing::Parquet => Self::Parquet(Box::default()),
            Framing::Rows | Framing::Document => Self::Rows,
        }
    }

    /// What of the piece is to be sent; `None` when the first piece shows that the output cannot be joined.
    fn piece(&mut self, piece: Bytes) -> Result<Option<Bytes>, Exception> {
        match self {
            Self::Rows => Ok(Some(piece)),
            Self::Headed { shape, head } => match head {
                None => {
                    *head = head_of(*shape, &piece);
                    Ok(head.is_some().then_some(piece))
                }
                Some(head) if piece.starts_with(head) => Ok(Some(piece.slice(head.len()..))),
                Some(_) => Err(Exception::internal("A piece of the output lacks its head")),
            },
            Self::Parquet(joiner) => {
                joiner.take(&piece).map(Some).map_err(|error| Exception::internal(&error.to_string()))
            }
        }
    }

    /// What follows the last piece.
    fn end(self) -> Result<Bytes, Exception> {
        match self {
            Self::Parquet(joiner) => joiner.finish().map_err(|error| Exception::internal(&error.to_string())),
            Self::Rows | Self::Headed { .. } => Ok(Bytes::new()),
        }
    }
}

/// Copied, so that the first piece can be freed while the others are compared with it.
fn head_of(shape: Head, piece: &Bytes) -> Option<Bytes> {
    shape.length(piece).map(|length| Bytes::copy_from_slice(&piece[..length]))
}

/// The classifier only says that a text does not parse; opening an insert with it says why, and runs nothing.
fn parse_error(connection: &mut Connection, text: &[u8]) -> Exception {
    match connection.insert(text, "", &Parameters::default()) {
        Err(exception) if !exception.is_of_the_c_layer() => exception,
        _ => syntax_error("The statement is not one that can be run here"),
    }
}

fn refuse_local_files(text: &[u8]) -> Result<(), Exception> {
    match sql::forbidden(text) {
        None => Ok(()),
        Some(Forbidden::IntoOutfile) => Err(Exception::new(
            code::INTO_OUTFILE_NOT_ALLOWED,
            "INTO_OUTFILE_NOT_ALLOWED",
            "INTO OUTFILE is not allowed",
        )),
        Some(Forbidden::FromInfile) => Err(Exception::new(
            code::NOT_IMPLEMENTED,
            "NOT_IMPLEMENTED",
            "FROM INFILE is not allowed; send the rows in the body",
        )),
        Some(Forbidden::FileFunction) => Err(Exception::new(
            code::ACCESS_DENIED,
            "ACCESS_DENIED",
            "default: Not enough privileges. The function file is not available in the embedded engine",
        )),
    }
}

fn syntax_error(what: &str) -> Exception {
    Exception::new(code::SYNTAX_ERROR, "SYNTAX_ERROR", format!("Syntax error: {what}"))
}

fn read_only() -> Exception {
    let message = "default: Cannot execute query in readonly mode. GET requests may only read; use POST";
    Exception::new(code::READONLY, "READONLY", message)
}
