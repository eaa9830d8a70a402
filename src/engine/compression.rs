//! HTTP content codings in both directions, by the libraries that are in the tree anyway.
use std::io::{self, Read, Write};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

/// A content coding that is understood. `deflate` is zlib's format (RFC 9110, 8.4.1.2), `lz4` its frame format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Lz4,
    Zstd,
    Gzip,
    Deflate,
}

impl Coding {
    /// In the order of preference: least CPU for a byte first, since this interface serves loopback.
    const ALL: [Self; 4] = [Self::Lz4, Self::Zstd, Self::Gzip, Self::Deflate];

    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|coding| coding.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The coding for an answer, from the request's `Accept-Encoding`; `None` sends it plain.
    pub fn accepted(accept_encoding: &str) -> Option<Self> {
        let is_offered = |coding: &Self| {
            accept_encoding.split(',').any(|offer| {
                let (name, parameters) = offer.split_once(';').unwrap_or((offer, ""));
                let is_refused = matches!(parameters.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
                name.trim().eq_ignore_ascii_case(coding.name()) && !is_refused
            })
        };
        Self::ALL.into_iter().find(is_offered)
    }

    pub fn reader(self, source: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(source)?),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
            Self::Deflate => Box::new(ZlibDecoder::new(source)),
        })
    }
}

/// A writer that compresses what goes through it into a vector.
pub enum Encoder {
    Plain(Vec<u8>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Deflate(Box<ZlibEncoder<Vec<u8>>>),
}

impl Encoder {
    pub fn new(coding: Option<Coding>) -> io::Result<Self> {
        // The level of ClickHouse's `http_zlib_compression_level`.
        let level = flate2::Compression::new(3);
        Ok(match coding {
            None => Self::Plain(Vec::new()),
            Some(Coding::Lz4) => Self::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(Vec::new()))),
            Some(Coding::Zstd) => Self::Zstd(Box::new(zstd::stream::write::Encoder::new(Vec::new(), 3)?)),
            Some(Coding::Gzip) => Self::Gzip(Box::new(GzEncoder::new(Vec::new(), level))),
            Some(Coding::Deflate) => Self::Deflate(Box::new(ZlibEncoder::new(Vec::new(), level))),
        })
    }

    /// The compressed bytes that are ready so far.
    pub fn take_ready(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Plain(bytes) => bytes,
            Self::Lz4(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Deflate(encoder) => encoder.get_mut(),
        })
    }

    /// Ends the stream; the rest of the compressed bytes.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain(bytes) => Ok(bytes),
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Deflate(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(ready) => ready.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Deflate(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Lz4(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Deflate(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coding_brings_its_bytes_back() {
        let plain: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for coding in Coding::ALL {
            let mut encoder = Encoder::new(Some(coding)).expect("an encoder");
            let mut packed = Vec::new();
            for piece in plain.chunks(70_000) {
                encoder.write_all(piece).expect("a vector takes all");
                packed.extend(encoder.take_ready());
            }
            packed.extend(encoder.finish().expect("a vector takes all"));
            assert!(packed.len() < plain.len(), "{coding:?} did not compress");
            let mut back = Vec::new();
            let source: Box<dyn Read> = Box::new(io::Cursor::new(packed));
            coding.reader(source).and_then(|mut reader| reader.read_to_end(&mut back)).expect("whole");
            assert_eq!(back, plain, "{coding:?}");
        }
    }

    #[test]
    fn the_cheapest_offered_coding_is_taken_and_a_refused_one_is_not() {
        assert_eq!(Coding::accepted("gzip, deflate, br"), Some(Coding::Gzip));
        assert_eq!(Coding::accepted("lz4;q=0, zstd;q=0.5"), Some(Coding::Zstd));
        assert_eq!(Coding::accepted("br, identity"), None);
    }
}
