//! ClickHouse's C interface (`chdb.h` of the chDB project), loaded at run time and made safe.
//!
//! What the wrappers guarantee: a handle is destroyed exactly once and never outlives what it points into; a
//! connection runs one statement at a time, because every statement borrows it mutably; an insert that is not
//! finished is cancelled, so that it commits nothing. The library is loaded once and never unloaded: its threads
//! and its exit handlers would point into unmapped memory.
use std::ffi::{c_char, c_int, c_void, CStr, CString, NulError};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use super::exception::Exception;

/// Why the library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot load the ClickHouse library {}; fetch it again with `make engine`", path.display())]
    Load {
        path: PathBuf,
        #[source]
        source: libloading::Error,
    },
    #[error("the library {} lacks the function {symbol}; fetch the pinned version with `make engine`", path.display())]
    Symbol {
        path: PathBuf,
        symbol: &'static str,
        #[source]
        source: libloading::Error,
    },
    #[error("an argument for the engine holds a zero byte")]
    Argument(#[from] NulError),
    #[error("ClickHouse refused to open its data directory; its own messages are on standard error")]
    Connect,
}

#[repr(C)]
struct RawConnection {
    _opaque: [u8; 0],
}
#[repr(C)]
struct RawResult {
    _opaque: [u8; 0],
}
#[repr(C)]
struct RawInsert {
    _opaque: [u8; 0],
}

/// `chdb_query_analysis_v1`.
#[repr(C)]
#[derive(Default)]
struct RawAnalysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    query_class: u32,
}

/// Names, their lengths, values, their lengths, how many: the tail of every `_with_params_n` function.
type OpenWithParams<T> = unsafe extern "C" fn(
    *mut RawConnection,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> *mut T;

macro_rules! c_interface {
    ($($symbol:ident: $signature:ty,)*) => {
        /// The functions that are used, resolved once.
        struct Api { $($symbol: $signature,)* }

        impl Api {
            fn load(path: &Path) -> Result<Self, LibraryError> {
                // SAFETY: the file is the pinned ClickHouse library, whose initialisers are made for being loaded.
                let library = unsafe { libloading::Library::new(path) }
                    .map_err(|source| LibraryError::Load { path: path.to_path_buf(), source })?;
                // Never unloaded, see the module's comment; so the function pointers below stay valid.
                let library: &'static libloading::Library = Box::leak(Box::new(library));
                Ok(Self {
                    $(
                        // SAFETY: the signature is the one that chdb.h of this version declares.
                        $symbol: *unsafe { library.get::<$signature>(stringify!($symbol).as_bytes()) }.map_err(
                            |source| LibraryError::Symbol {
                                path: path.to_path_buf(),
                                symbol: stringify!($symbol),
                                source,
                            },
                        )?,
                    )*
                })
            }
        }
    };
}

c_interface! {
    chdb_set_signal_handlers_enabled: unsafe extern "C" fn(c_int),
    chdb_connect: unsafe extern "C" fn(c_int, *const *const c_char) -> *mut *mut RawConnection,
    chdb_close_conn: unsafe extern "C" fn(*mut *mut RawConnection),
    chdb_shutdown: unsafe extern "C" fn() -> c_int,
    chdb_classify_query_n:
        unsafe extern "C" fn(*mut RawConnection, *const c_char, usize, *const c_char, usize, *mut RawAnalysis) -> c_int,
    chdb_query_with_params_n: OpenWithParams<RawResult>,
    chdb_stream_query_with_params_n: OpenWithParams<RawResult>,
    chdb_stream_fetch_result: unsafe extern "C" fn(*mut RawConnection, *mut RawResult) -> *mut RawResult,
    chdb_stream_cancel_query: unsafe extern "C" fn(*mut RawConnection, *mut RawResult),
    chdb_stream_insert_with_params_n: OpenWithParams<RawInsert>,
    chdb_stream_append: unsafe extern "C" fn(*mut RawInsert, *const c_void, usize) -> c_int,
    chdb_stream_done: unsafe extern "C" fn(*mut RawInsert) -> *mut RawResult,
    chdb_stream_insert_error: unsafe extern "C" fn(*mut RawInsert) -> *const c_char,
    chdb_destroy_insert_stream: unsafe extern "C" fn(*mut RawInsert),
    chdb_destroy_query_result: unsafe extern "C" fn(*mut RawResult),
    chdb_result_buffer: unsafe extern "C" fn(*mut RawResult) -> *const u8,
    chdb_result_length: unsafe extern "C" fn(*mut RawResult) -> usize,
    chdb_result_error: unsafe extern "C" fn(*mut RawResult) -> *const c_char,
    chdb_result_rows_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    chdb_result_bytes_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    chdb_result_storage_rows_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    chdb_result_storage_bytes_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    chdb_result_rows_written: unsafe extern "C" fn(*mut RawResult) -> u64,
    chdb_result_bytes_written: unsafe extern "C" fn(*mut RawResult) -> u64,
}

/// A running ClickHouse on one data directory. There can be one a process.
pub struct Library {
    api: Arc<Api>,
    arguments: Vec<CString>,
    /// Held open for as long as the engine shall run: ClickHouse stops when its last connection is closed.
    anchor: Option<Connection>,
}

impl Library {
    /// Loads the library and starts ClickHouse. `arguments` are `--name=value`; `--path` among them is the data
    /// directory. Blocks while tables are loaded.
    ///
    /// # Errors
    /// The library cannot be loaded or lacks a function, or ClickHouse cannot open its data directory.
    pub fn start(path: &Path, arguments: &[String]) -> Result<Self, LibraryError> {
        let api = Arc::new(Api::load(path)?);
        // SAFETY: called before the first connection, as the header asks. Signals belong to this program.
        unsafe { (api.chdb_set_signal_handlers_enabled)(0) };
        let arguments = std::iter::once("clickhouse")
            .chain(arguments.iter().map(String::as_str))
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()?;
        let mut library = Self { api, arguments, anchor: None };
        library.anchor = Some(library.connect()?);
        Ok(library)
    }

    /// Opens a connection: a session of its own, with default settings and no temporary tables. Takes some 0.2 ms.
    ///
    /// # Errors
    /// [`LibraryError::Connect`] when ClickHouse is out of memory or stopping.
    pub fn connect(&self) -> Result<Connection, LibraryError> {
        let pointers: Vec<*const c_char> = self.arguments.iter().map(|argument| argument.as_ptr()).collect();
        // SAFETY: the array and its strings live through the call; the library copies them.
        let handle = unsafe { (self.api.chdb_connect)(pointers.len() as c_int, pointers.as_ptr()) };
        let handle = NonNull::new(handle).ok_or(LibraryError::Connect)?;
        Ok(Connection { api: Arc::clone(&self.api), handle })
    }

    /// Closes ClickHouse: its tables are shut down when the last connection is closed. Call it when no other
    /// connection is open. Some threads of the library may go on (seen with every MergeTree table), so the process
    /// should end without running exit handlers.
    pub fn close(mut self) {
        self.anchor = None;
        // SAFETY: no handle of this object is left; the library itself refuses while others have connections.
        let state = unsafe { (self.api.chdb_shutdown)() };
        tracing::debug!(state, "engine closed");
    }
}

/// What a text would do if it was run; the values of `chdb_query_class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementClass {
    /// SELECT, SHOW, DESCRIBE, EXPLAIN, EXISTS, CHECK.
    ReadOnly,
    /// Changes data or schema.
    Changing,
    /// SET, USE, SYSTEM, KILL and the like.
    Control,
    /// Does not parse, or parses into something the classifier does not know.
    Unknown,
}

/// One session of ClickHouse. It can move between threads, and runs one statement at a time.
pub struct Connection {
    api: Arc<Api>,
    handle: NonNull<*mut RawConnection>,
}

// SAFETY: the library locks each connection and ties none of its state to the calling thread.
unsafe impl Send for Connection {}
// SAFETY: every call into the library takes `&mut self`; a shared reference gives nothing.
unsafe impl Sync for Connection {}

impl Connection {
    fn raw(&self) -> *mut RawConnection {
        // SAFETY: the pointer came from chdb_connect and is freed only in Drop.
        unsafe { *self.handle.as_ptr() }
    }

    /// How many statements `text` holds and the most far-reaching class among them, by ClickHouse's own parser.
    pub fn classify(&mut self, text: &[u8]) -> (u32, StatementClass) {
        let size = size_of::<RawAnalysis>() as u32;
        let mut analysis = RawAnalysis { struct_size: size, query_class: u32::MAX, ..RawAnalysis::default() };
        // SAFETY: `text` and `analysis` live through the call; no target database is asked about.
        unsafe {
            (self.api.chdb_classify_query_n)(
                self.raw(),
                text.as_ptr().cast(),
                text.len(),
                std::ptr::null(),
                0,
                &mut analysis,
            )
        };
        let class = match analysis.query_class {
            0 => StatementClass::ReadOnly,
            1 | 2 => StatementClass::Changing,
            3 => StatementClass::Control,
            _ => StatementClass::Unknown,
        };
        (analysis.statement_count, class)
    }

    /// Runs a statement to its end and returns its whole output.
    ///
    /// # Errors
    /// ClickHouse's exception.
    pub fn query(&mut self, text: &[u8], format: &str, parameters: &Parameters) -> Result<Chunk, Exception> {
        let result = self.open(self.api.chdb_query_with_params_n, text, format, parameters);
        Chunk::take(&self.api, result)
    }

    /// Starts a SELECT whose output is fetched piece by piece.
    ///
    /// # Errors
    /// ClickHouse's exception; see [`Exception::is_streaming_unsupported`] for statements that cannot be streamed.
    pub fn stream(&mut self, text: &[u8], format: &str, parameters: &Parameters) -> Result<Rows<'_>, Exception> {
        let result = self.open(self.api.chdb_stream_query_with_params_n, text, format, parameters);
        let head = Chunk::take(&self.api, result)?;
        Ok(Rows { connection: self, head, is_finished: false })
    }

    /// Starts an insert. `text` ends before its FORMAT clause, `format` is that of the bytes to be appended.
    ///
    /// # Errors
    /// ClickHouse's exception: no such table, a syntax error, not an insert.
    pub fn insert(&mut self, text: &[u8], format: &str, parameters: &Parameters) -> Result<Insert<'_>, Exception> {
        let stream = self.open(self.api.chdb_stream_insert_with_params_n, text, format, parameters);
        let Some(stream) = NonNull::new(stream) else {
            return Err(Exception::internal("the engine opened no insert"));
        };
        let insert = Insert { api: Arc::clone(&self.api), stream, _connection: PhantomData };
        match insert.error() {
            Some(exception) => Err(exception),
            None => Ok(insert),
        }
    }

    fn open<T>(&mut self, function: OpenWithParams<T>, text: &[u8], format: &str, parameters: &Parameters) -> *mut T {
        let names: Vec<*const c_char> = parameters.0.iter().map(|(name, _)| name.as_ptr().cast()).collect();
        let name_lengths: Vec<usize> = parameters.0.iter().map(|(name, _)| name.len()).collect();
        let values: Vec<*const c_char> = parameters.0.iter().map(|(_, value)| value.as_ptr().cast()).collect();
        let value_lengths: Vec<usize> = parameters.0.iter().map(|(_, value)| value.len()).collect();
        // SAFETY: all slices live through the call and are passed with their lengths; the library copies them.
        unsafe {
            function(
                self.raw(),
                text.as_ptr().cast(),
                text.len(),
                format.as_ptr().cast(),
                format.len(),
                names.as_ptr(),
                name_lengths.as_ptr(),
                values.as_ptr(),
                value_lengths.as_ptr(),
                names.len(),
            )
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: closed once; statements borrow the connection, so none is open.
        unsafe { (self.api.chdb_close_conn)(self.handle.as_ptr()) };
    }
}

/// Values for `{name:Type}` placeholders, as ClickHouse's HTTP interface takes them: escaped like TabSeparated.
#[derive(Clone, Debug, Default)]
pub struct Parameters(pub Vec<(String, String)>);

/// What a statement read and wrote, as far as the library counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub read_rows: u64,
    pub read_bytes: u64,
    pub written_rows: u64,
    pub written_bytes: u64,
    pub result_rows: u64,
    pub result_bytes: u64,
}

impl Counters {
    pub fn add(&mut self, other: Self) {
        self.read_rows += other.read_rows;
        self.read_bytes += other.read_bytes;
        self.written_rows += other.written_rows;
        self.written_bytes += other.written_bytes;
        self.result_rows += other.result_rows;
        self.result_bytes += other.result_bytes;
    }
}

/// A piece of output in the library's memory, freed on drop. It does not depend on its connection.
pub struct Chunk {
    api: Arc<Api>,
    result: NonNull<RawResult>,
}

// SAFETY: the result owns its buffer, which nobody changes; freeing it is a plain deallocation on any thread.
unsafe impl Send for Chunk {}
// SAFETY: only read access is given.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn take(api: &Arc<Api>, result: *mut RawResult) -> Result<Self, Exception> {
        let Some(result) = NonNull::new(result) else {
            return Err(Exception::internal("the engine returned no result"));
        };
        let chunk = Self { api: Arc::clone(api), result };
        // SAFETY: the result is alive; a non-null error is a C string inside it.
        match unsafe { text_of((api.chdb_result_error)(result.as_ptr())) } {
            Some(message) => Err(Exception::parse(&message)),
            None => Ok(chunk),
        }
    }

    pub fn counters(&self) -> Counters {
        let (api, result) = (&self.api, self.result.as_ptr());
        // SAFETY: the result is alive.
        unsafe {
            Counters {
                read_rows: (api.chdb_result_storage_rows_read)(result),
                read_bytes: (api.chdb_result_storage_bytes_read)(result),
                written_rows: (api.chdb_result_rows_written)(result),
                written_bytes: (api.chdb_result_bytes_written)(result),
                result_rows: (api.chdb_result_rows_read)(result),
                result_bytes: (api.chdb_result_bytes_read)(result),
            }
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: buffer and length belong together and live as long as the result.
        unsafe {
            let length = (self.api.chdb_result_length)(self.result.as_ptr());
            let buffer = (self.api.chdb_result_buffer)(self.result.as_ptr());
            if length == 0 || buffer.is_null() {
                return &[];
            }
            std::slice::from_raw_parts(buffer, length)
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { (self.api.chdb_destroy_query_result)(self.result.as_ptr()) };
    }
}

/// The output of a running SELECT. Dropping it early cancels the statement.
pub struct Rows<'connection> {
    connection: &'connection mut Connection,
    head: Chunk,
    is_finished: bool,
}

impl Rows<'_> {
    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// ClickHouse's exception; the statement is over then.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, Exception> {
        if self.is_finished {
            return Ok(None);
        }
        // SAFETY: both handles are alive, and the exclusive borrow serialises the calls.
        let result =
            unsafe { (self.connection.api.chdb_stream_fetch_result)(self.connection.raw(), self.head.result.as_ptr()) };
        let chunk = Chunk::take(&self.connection.api, result).inspect_err(|_| self.is_finished = true)?;
        if chunk.as_ref().is_empty() {
            self.is_finished = true;
            return Ok(None);
        }
        Ok(Some(chunk))
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // SAFETY: both handles are alive.
            unsafe { (self.connection.api.chdb_stream_cancel_query)(self.connection.raw(), self.head.result.as_ptr()) };
        }
    }
}

/// An insert that takes bytes. Dropped before [`finish`](Self::finish), it commits nothing of what is not yet written.
///
/// ClickHouse writes a part for each block it forms (`max_insert_block_size`, about a million rows): an insert of
/// several blocks that is cancelled late may leave whole blocks, as with any ClickHouse server.
pub struct Insert<'connection> {
    api: Arc<Api>,
    stream: NonNull<RawInsert>,
    _connection: PhantomData<&'connection mut Connection>,
}

impl Insert<'_> {
    /// Appends bytes; blocks while ClickHouse is behind.
    ///
    /// # Errors
    /// ClickHouse's exception when the insert already failed.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        // SAFETY: the stream is alive; the bytes are copied in the call.
        let state = unsafe { (self.api.chdb_stream_append)(self.stream.as_ptr(), bytes.as_ptr().cast(), bytes.len()) };
        if state == 0 {
            return Ok(());
        }
        // The error text is complete only after the stream is finished, which also joins the failed worker.
        match self.complete() {
            Err(exception) => Err(exception),
            Ok(_) => Err(Exception::internal("the insert stopped without an error")),
        }
    }

    /// Ends the input and commits.
    ///
    /// # Errors
    /// ClickHouse's exception; the block that failed is not written.
    pub fn finish(self) -> Result<Counters, Exception> {
        self.complete()
    }

    fn complete(&self) -> Result<Counters, Exception> {
        // SAFETY: the stream is alive. A second call is answered with an error by the library.
        let result = unsafe { (self.api.chdb_stream_done)(self.stream.as_ptr()) };
        Ok(Chunk::take(&self.api, result)?.counters())
    }

    fn error(&self) -> Option<Exception> {
        // SAFETY: the stream is alive; a non-null error is a C string inside it.
        let text = unsafe { text_of((self.api.chdb_stream_insert_error)(self.stream.as_ptr())) }?;
        Some(Exception::parse(&text))
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        // SAFETY: destroyed once; the library cancels first when the stream was not finished.
        unsafe { (self.api.chdb_destroy_insert_stream)(self.stream.as_ptr()) };
    }
}

/// # Safety
/// `pointer` is null or a C string that lives through the call.
unsafe fn text_of(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}
