//! A request's body as a statement's thread reads it: blocking, decoded, and aware that a client can go away.
use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::compression::Coding;
use super::exception::{code, Exception};
use super::native_blocks::{BlockError, BlockReader};

/// Decoded bytes handed on at once: large enough that a call into the library costs nothing beside the copy.
const READ_BYTES: usize = 256 << 10;

/// Why a body cannot be read to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InputError {
    #[error("the client went away before the body was whole: {0}")]
    Gone(String),
    #[error("the client sent nothing for {0} s")]
    Stalled(u64),
}

impl InputError {
    pub fn exception(&self) -> Exception {
        match self {
            Self::Gone(_) => Exception::new(code::NETWORK_ERROR, "NETWORK_ERROR", self.to_string()),
            Self::Stalled(_) => Exception::new(code::SOCKET_TIMEOUT, "SOCKET_TIMEOUT", self.to_string()),
        }
    }
}

/// Pieces of the body as they arrive; the channel's end without an error is the body's end.
pub type Arrivals = mpsc::Receiver<Result<Bytes, InputError>>;

/// The decoded body.
pub enum Input {
    /// Nothing to decode: pieces pass without a copy.
    Plain(Arrivals),
    Decoded(Box<dyn Read>),
    Empty,
}

impl Input {
    /// Undoes first the HTTP content coding, then ClickHouse's blocks.
    ///
    /// # Errors
    /// A decoder cannot be made (out of memory).
    pub fn new(arrivals: Arrivals, coding: Option<Coding>, in_native_blocks: bool) -> Result<Self, Exception> {
        if coding.is_none() && !in_native_blocks {
            return Ok(Self::Plain(arrivals));
        }
        let mut reader: Box<dyn Read> = Box::new(ArrivalReader { arrivals, piece: Bytes::new() });
        if let Some(coding) = coding {
            reader = coding.reader(reader).map_err(|error| undecodable(&error))?;
        }
        if in_native_blocks {
            reader = Box::new(BlockReader::new(reader));
        }
        Ok(Self::Decoded(reader))
    }

    /// The next bytes, never empty; `None` at the end. Must not be called on an asynchronous thread.
    ///
    /// # Errors
    /// The client went away, or its compression is broken.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, Exception> {
        match self {
            Self::Plain(arrivals) => loop {
                match arrivals.blocking_recv() {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    Some(Ok(piece)) => return Ok(Some(piece)),
                    Some(Err(error)) => return Err(error.exception()),
                    None => return Ok(None),
                }
            },
            Self::Decoded(reader) => {
                let mut buffer = BytesMut::zeroed(READ_BYTES);
                let mut filled = 0;
                while filled < buffer.len() {
                    match reader.read(&mut buffer[filled..]) {
                        Ok(0) => break,
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(undecodable(&error)),
                    }
                }
                buffer.truncate(filled);
                Ok((filled > 0).then(|| buffer.freeze()))
            }
            Self::Empty => Ok(None),
        }
    }
}

fn undecodable(error: &io::Error) -> Exception {
    let inner = error.get_ref();
    if let Some(input) = inner.and_then(|inner| inner.downcast_ref::<InputError>()) {
        return input.exception();
    }
    if let Some(BlockError::Checksum(_)) = inner.and_then(|inner| inner.downcast_ref::<BlockError>()) {
        return Exception::new(code::CHECKSUM_DOESNT_MATCH, "CHECKSUM_DOESNT_MATCH", error.to_string());
    }
    let message = format!("The compressed body cannot be read: {error}");
    Exception::new(code::CANNOT_DECOMPRESS, "CANNOT_DECOMPRESS", message)
}

struct ArrivalReader {
    arrivals: Arrivals,
    piece: Bytes,
}

impl Read for ArrivalReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.arrivals.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(pieces: Vec<Result<Bytes, InputError>>, coding: Option<Coding>) -> Input {
        let (sender, receiver) = mpsc::channel(16);
        for piece in pieces {
            sender.try_send(piece).expect("room");
        }
        Input::new(receiver, coding, false).expect("an input")
    }

    #[test]
    fn a_client_that_goes_away_is_an_error_and_never_an_end() {
        for coding in [None, Some(Coding::Gzip), Some(Coding::Zstd), Some(Coding::Lz4)] {
            let mut input = input(vec![Err(InputError::Gone("reset".to_owned()))], coding);
            assert_eq!(input.next_piece().expect_err("gone").code(), code::NETWORK_ERROR, "{coding:?}");
        }
    }

    #[test]
    fn a_compressed_body_that_is_cut_is_an_error() {
        for coding in [Coding::Gzip, Coding::Zstd, Coding::Lz4, Coding::Deflate] {
            let mut encoder = super::super::compression::Encoder::new(Some(coding)).expect("an encoder");
            io::Write::write_all(&mut encoder, &[7; 100_000]).expect("a vector takes all");
            let whole = Bytes::from(encoder.finish().expect("a vector takes all"));
            let mut input = input(vec![Ok(whole.slice(..whole.len() - 5))], Some(coding));
            let end = std::iter::repeat_with(|| input.next_piece()).find(|piece| !matches!(piece, Ok(Some(_))));
            assert!(matches!(end, Some(Err(_))), "{coding:?}: {end:?}");
        }
    }
}
