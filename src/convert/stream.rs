//! Streams a source's tensors, in order, through a few bounded buffers: threads convert while one writes.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::gguf::{Source, TensorInfo};
use crate::{Error, Result};

/// Bytes of output a chunk has, if a row is not longer (1 to 8 MB measured alike).
const CHUNK_BYTES: u64 = 4 << 20;
/// Buffers a thread has: one is filled while the other is written.
const BUFFERS: usize = 2;

/// Whole rows of one tensor.
struct Chunk {
    tensor: usize,
    rows: Range<u64>,
    bytes: usize,
}

/// The writing side's ends of a thread's channels: filled buffers come in, empty ones go back.
type Lane = (Receiver<Result<Vec<u8>>>, Sender<Vec<u8>>);

/// Passes the bytes of all tensors of `source`, in their kinds and in order, to `sink`, chunk by chunk.
///
/// Holds `threads` × 2 chunks of about 4 MB. Errors: those of `source` and of `sink`; the first ends it.
pub fn stream(source: &dyn Source, threads: usize, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let chunks: Vec<Chunk> = source.tensors().iter().enumerate().flat_map(chunks_of).collect();
    let chunks = &chunks;
    let threads = threads.clamp(1, 64).min(chunks.len().max(1));
    std::thread::scope(|scope| {
        let mut lanes: Vec<Lane> = Vec::with_capacity(threads);
        for lane in 0..threads {
            let (full_out, full_in) = sync_channel(BUFFERS);
            let (empty_out, empty_in) = channel();
            (0..BUFFERS).for_each(|_| drop(empty_out.send(Vec::new())));
            lanes.push((full_in, empty_out));
            let mine = chunks.iter().skip(lane).step_by(threads);
            scope.spawn(move || fill(source, mine, &empty_in, &full_out));
        }
        for (chunk, (full, empty)) in chunks.iter().zip(lanes.iter().cycle()) {
            // A lane that ended early panicked; the scope passes the panic on.
            let buffer = full.recv().map_err(|_| Error::Interrupted)??;
            sink(&buffer[..chunk.bytes])?;
            let _ = empty.send(buffer);
        }
        Ok(())
    })
}

/// One thread's part: takes an empty buffer, fills it, passes it on, until its chunks or its reader are gone.
fn fill<'a>(
    source: &dyn Source,
    chunks: impl Iterator<Item = &'a Chunk>,
    empty: &Receiver<Vec<u8>>,
    full: &SyncSender<Result<Vec<u8>>>,
) {
    for chunk in chunks {
        let Ok(mut buffer) = empty.recv() else { return };
        if buffer.len() < chunk.bytes {
            buffer.resize(chunk.bytes, 0);
        }
        let done = source.bytes(chunk.tensor, chunk.rows.clone(), &mut buffer[..chunk.bytes]);
        source.release(chunk.tensor, chunk.rows.clone());
        if full.send(done.map(|()| buffer)).is_err() {
            return;
        }
    }
}

fn chunks_of((index, tensor): (usize, &TensorInfo)) -> impl Iterator<Item = Chunk> {
    let (rows, row_bytes) = (tensor.rows(), tensor.row_bytes());
    let step = (CHUNK_BYTES / row_bytes.max(1)).max(1);
    (0..rows.div_ceil(step)).map(move |number| {
        let rows = number * step..rows.min((number + 1) * step);
        Chunk { tensor: index, bytes: ((rows.end - rows.start) * row_bytes) as usize, rows }
    })
}
