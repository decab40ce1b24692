//! Memory on a device, and the way there.

use std::ffi::c_void;
use std::sync::Arc;

use super::device::Context;
use super::driver::Pointer;
use super::rounding::Rounded;
use crate::Result;

/// A piece of a device's memory.
pub(super) struct Storage {
    context: Arc<Context>,
    pointer: Pointer,
    bytes: usize,
}

impl Storage {
    /// # Errors
    /// Too little memory on the device.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let bytes = bytes.next_multiple_of(16).max(16);
        Ok(Self { pointer: context.allocate(bytes)?, context: Arc::clone(context), bytes })
    }

    /// Bytes it has.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Where it begins on the device.
    pub fn pointer(&self) -> Pointer {
        self.pointer
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.context.free(self.pointer);
    }
}

/// `[rows, columns]` of f32 on a device.
#[derive(Default)]
pub struct Buffer {
    /// Keeps the size of the largest use.
    pub(super) storage: Option<Storage>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) rounded: Option<Rounded>,
    /// Whether `rounded` is of what the buffer holds now.
    pub(super) is_rounded: bool,
}

impl Buffer {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Where its elements are.
    ///
    /// # Panics
    /// If it was never written to.
    pub(super) fn pointer(&self) -> Pointer {
        self.storage.as_ref().expect("a buffer is written before it is read").pointer
    }
}

/// Host memory that the device can read by itself: small uploads need not wait for the device.
pub(super) struct Ring {
    context: Arc<Context>,
    memory: *mut c_void,
    bytes: usize,
    /// Bytes in use since the device was last waited for.
    used: usize,
}

// Sound: the memory is the ring's own.
unsafe impl Send for Ring {}

impl Ring {
    /// # Errors
    /// Too little memory.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        let mut memory = std::ptr::null_mut();
        // Sound: the pointer is to a pointer.
        context.check(unsafe { (context.driver.allocate_host)(&mut memory, bytes, 0) })?;
        Ok(Self { context: Arc::clone(context), memory, bytes, used: 0 })
    }

    /// Writes `bytes` to `to` after everything that was launched; `to` has room for them.
    pub fn send(&mut self, bytes: &[u8], to: Pointer) -> Result<()> {
        self.put(bytes.len(), to, |start, piece| piece.copy_from_slice(&bytes[start..start + piece.len()]))
    }

    /// The same of floats.
    pub fn send_floats(&mut self, floats: &[f32], to: Pointer) -> Result<()> {
        self.put(floats.len() * 4, to, |start, piece| {
            let words = piece.as_chunks_mut().0.iter_mut();
            words.zip(&floats[start / 4..]).for_each(|(word, float)| *word = float.to_le_bytes());
        })
    }

    /// Writes `count` bytes to `to`, piece by piece as `fill` makes them, from the byte on that it is told.
    fn put(&mut self, count: usize, to: Pointer, fill: impl Fn(usize, &mut [u8])) -> Result<()> {
        for start in (0..count).step_by(self.bytes) {
            let piece = self.bytes.min(count - start);
            if self.used + piece > self.bytes {
                self.context.wait()?;
                self.used = 0;
            }
            self.context.queue_up()?;
            // Sound: the piece fits between `used` and the end, where the device reads nothing at the moment.
            let code = unsafe {
                let from = self.memory.cast::<u8>().add(self.used);
                fill(start, std::slice::from_raw_parts_mut(from, piece));
                (self.context.driver.to_device)(
                    to + start as Pointer,
                    from.cast(),
                    piece,
                    self.context.stream,
                )
            };
            self.context.check(code)?;
            self.used += piece.next_multiple_of(16);
        }
        Ok(())
    }

    /// Reads what is at `from` after everything that was launched.
    pub fn fetch(&mut self, from: Pointer, to: &mut [u8]) -> Result<()> {
        self.context.queue_up()?;
        self.context.faultless()?;
        // Sound: the device writes as many bytes as `to` has, and is waited for.
        let code = unsafe {
            (self.context.driver.to_host)(to.as_mut_ptr().cast(), from, to.len(), self.context.stream)
        };
        self.context.check(code)?;
        self.context.wait()?;
        self.used = 0;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What is on its way must arrive first; a device that failed reads nothing any more.
        let _ = self.context.wait();
        // Sound: it is the driver's, and nobody else's.
        unsafe { (self.context.driver.free_host)(self.memory) };
    }
}
