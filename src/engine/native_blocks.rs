//! ClickHouse's own compressed blocks (`compress=1`, `decompress=1`): checksum, method, sizes, payload.
//!
//! Layout, little-endian, as `CompressedReadBufferBase.cpp` reads it: CityHash128 (version 1.0.2) of all that
//! follows, one byte of method, four bytes of compressed size (these nine bytes included), four of plain size.
use std::io::{self, Read, Write};

const CHECKSUM_BYTES: usize = 16;
const HEAD_BYTES: usize = 9;
const METHOD_NONE: u8 = 0x02;
const METHOD_LZ4: u8 = 0x82;
const METHOD_ZSTD: u8 = 0x90;

/// Plain bytes a written block holds; ClickHouse's `max_compress_block_size`.
const WRITE_BLOCK_BYTES: usize = 1 << 20;

/// Largest block that is read, compressed or plain, in bytes: clients write about 1 MiB, and a head that claims
/// more than this would only make the server allocate.
const MAX_BLOCK_BYTES: usize = 128 << 20;

/// The hash as it lies on the wire: ClickHouse writes the low half first.
fn checksum(block: &[u8]) -> [u8; CHECKSUM_BYTES] {
    cityhash_rs::cityhash_102_128(block).rotate_right(64).to_le_bytes()
}

/// Why a block cannot be read; carried inside [`io::Error`] through the reader.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("Checksum doesn't match: corrupted data in a compressed block of {0} bytes")]
    Checksum(usize),
    #[error("Too large size of a compressed block: {0} bytes, at most {MAX_BLOCK_BYTES} are read")]
    TooLarge(usize),
    #[error("Unknown compression method 0x{0:02x}")]
    Method(u8),
    #[error("Cannot decompress a block: {0}")]
    Payload(String),
}

impl From<BlockError> for io::Error {
    fn from(error: BlockError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Plain bytes out of compressed blocks.
pub struct BlockReader<R> {
    source: R,
    plain: Vec<u8>,
    taken: usize,
}

impl<R: Read> BlockReader<R> {
    pub fn new(source: R) -> Self {
        Self { source, plain: Vec::new(), taken: 0 }
    }

    /// Reads the next block into `plain`; false at a clean end.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut start = [0_u8; CHECKSUM_BYTES + HEAD_BYTES];
        if !self.read_start(&mut start)? {
            return Ok(false);
        }
        let (expected, head) = start.split_at(CHECKSUM_BYTES);
        let size = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (method, compressed, plain) = (head[0], size(1), size(5));
        if compressed > MAX_BLOCK_BYTES || plain > MAX_BLOCK_BYTES || compressed < HEAD_BYTES {
            return Err(BlockError::TooLarge(compressed.max(plain)).into());
        }
        let mut block = head.to_vec();
        // Grows with what arrives, not with what the head claims.
        let wanted = (compressed - HEAD_BYTES) as u64;
        if (&mut self.source).take(wanted).read_to_end(&mut block)? as u64 != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if checksum(&block) != expected {
            return Err(BlockError::Checksum(compressed).into());
        }
        self.taken = 0;
        self.plain = decompress(method, &block[HEAD_BYTES..], plain)?;
        Ok(true)
    }

    /// False when the source ends before the first byte; an error when it ends later.
    fn read_start(&mut self, start: &mut [u8]) -> io::Result<bool> {
        loop {
            match self.source.read(&mut start[..1]) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.source.read_exact(&mut start[1..])?;
        Ok(true)
    }
}

fn decompress(method: u8, payload: &[u8], plain_bytes: usize) -> Result<Vec<u8>, BlockError> {
    let plain = match method {
        METHOD_NONE => payload.to_vec(),
        METHOD_LZ4 => {
            lz4_flex::block::decompress(payload, plain_bytes).map_err(|error| BlockError::Payload(error.to_string()))?
        }
        METHOD_ZSTD => {
            zstd::bulk::decompress(payload, plain_bytes).map_err(|error| BlockError::Payload(error.to_string()))?
        }
        other => return Err(BlockError::Method(other)),
    };
    if plain.len() != plain_bytes {
        return Err(BlockError::Payload(format!("it holds {} bytes, its head says {plain_bytes}", plain.len())));
    }
    Ok(plain)
}

impl<R: Read> Read for BlockReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.plain.len() {
            if buffer.is_empty() || !self.next_block()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.plain.len() - self.taken);
        buffer[..count].copy_from_slice(&self.plain[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Writes LZ4 blocks. What is buffered is written by [`Write::flush`].
pub struct BlockWriter<W> {
    sink: W,
    plain: Vec<u8>,
}

impl<W: Write> BlockWriter<W> {
    pub fn new(sink: W) -> Self {
        Self { sink, plain: Vec::new() }
    }

    pub fn into_inner(mut self) -> io::Result<W> {
        self.write_block()?;
        Ok(self.sink)
    }

    fn write_block(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let block = block(&self.plain);
        self.plain.clear();
        self.sink.write_all(&block)
    }
}

impl BlockWriter<Vec<u8>> {
    /// The blocks that are complete so far.
    pub fn take_ready(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sink)
    }
}

/// One compressed block, checksum first.
fn block(plain: &[u8]) -> Vec<u8> {
    let payload = lz4_flex::block::compress(plain);
    let compressed = (payload.len() + HEAD_BYTES) as u32;
    let mut block = vec![0; CHECKSUM_BYTES];
    block.push(METHOD_LZ4);
    block.extend_from_slice(&compressed.to_le_bytes());
    block.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    block.extend_from_slice(&payload);
    let hash = checksum(&block[CHECKSUM_BYTES..]);
    block[..CHECKSUM_BYTES].copy_from_slice(&hash);
    block
}

impl<W: Write> Write for BlockWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(WRITE_BLOCK_BYTES - self.plain.len());
        self.plain.extend_from_slice(&bytes[..count]);
        if self.plain.len() == WRITE_BLOCK_BYTES {
            self.write_block()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_block()?;
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(plain: &[u8]) -> Vec<u8> {
        let mut writer = BlockWriter::new(Vec::new());
        writer.write_all(plain).expect("a vector takes all");
        writer.into_inner().expect("a vector takes all")
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        BlockReader::new(bytes).read_to_end(&mut plain).map(|_| plain)
    }

    #[test]
    fn several_blocks_come_back_whole() {
        let plain: Vec<u8> = (0..3 * WRITE_BLOCK_BYTES + 17).map(|n| (n % 251) as u8).collect();
        assert_eq!(read(&compressed(&plain)).expect("whole"), plain);
        assert!(read(&[]).expect("empty").is_empty());
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let whole = compressed(b"some rows, some more rows, some more rows");
        for bit in 0..whole.len() * 8 {
            let mut torn = whole.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&torn).is_err(), "bit {bit} was not noticed");
        }
    }

    #[test]
    fn every_cut_is_found() {
        let whole = compressed(b"some rows, some more rows");
        for end in 1..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end} was not noticed");
        }
    }

    #[test]
    fn a_head_that_claims_too_much_is_refused_before_any_allocation() {
        let mut lie = vec![0; CHECKSUM_BYTES];
        lie.push(METHOD_LZ4);
        lie.extend_from_slice(&u32::MAX.to_le_bytes());
        lie.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&lie).expect_err("a lie").to_string().contains("Too large"));
    }

    #[test]
    fn zstd_blocks_are_read_too() {
        let payload = zstd::bulk::compress(b"rows rows rows rows", 1).expect("compresses");
        let mut block = vec![METHOD_ZSTD];
        block.extend_from_slice(&((payload.len() + HEAD_BYTES) as u32).to_le_bytes());
        block.extend_from_slice(&19_u32.to_le_bytes());
        block.extend_from_slice(&payload);
        let whole = [checksum(&block).to_vec(), block].concat();
        assert_eq!(read(&whole).expect("whole"), b"rows rows rows rows");
    }
}
