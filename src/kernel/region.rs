//! Memory for many arrays that are read one after the other, as those of a KV cache are: mapped as a whole
//! ([`crate::machine::map_zeros`]), it can lie in large pages, which no array of some tens of KiB fills by itself.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

/// Where an array begins: at a line of the caches.
const LINE: usize = 64;

/// Memory that arrays are cut from, in order.
pub struct Region {
    memory: Arc<MmapMut>,
    /// The first byte of `memory` that belongs to no array yet.
    next: *mut u8,
    /// Bytes from there to the end.
    left: usize,
}

impl Region {
    /// Room for arrays of as many bytes as `memory` has, each but the last rounded up to whole lines.
    pub fn new(mut memory: MmapMut) -> Self {
        let (next, left) = (memory.as_mut_ptr(), memory.len());
        Self { memory: Arc::new(memory), next, left }
    }

    /// The next `length` elements, as they are in memory.
    ///
    /// # Panics
    /// If there are not so many left.
    pub fn take<T: Plain>(&mut self, length: usize) -> Piece<T> {
        let bytes = length.saturating_mul(size_of::<T>());
        assert!(bytes <= self.left, "a region holds what it was made for");
        let bytes = bytes.next_multiple_of(LINE).min(self.left);
        let piece = Piece { first: self.next.cast(), length, memory: Arc::clone(&self.memory) };
        self.next = self.next.wrapping_add(bytes);
        self.left -= bytes;
        piece
    }
}

/// An array that is part of a [`Region`], whole lines.
#[derive(Debug)]
pub struct Piece<T> {
    first: *mut T,
    length: usize,
    /// What keeps it mapped.
    #[expect(dead_code)]
    memory: Arc<MmapMut>,
}

// Sound: a piece is the only way to its bytes, as a `Box<[T]>` is.
unsafe impl<T: Plain> Send for Piece<T> {}
unsafe impl<T: Plain> Sync for Piece<T> {}

/// What a piece may be of.
///
/// # Safety
/// All bytes make one of its values, it needs no more than a line's alignment, and nothing happens when it is dropped.
pub unsafe trait Plain: Copy + Send + Sync {}
unsafe impl Plain for f32 {}
unsafe impl Plain for i32 {}
unsafe impl Plain for i8 {}
unsafe impl Plain for u8 {}
unsafe impl Plain for u16 {}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // Sound: `Region::take` gave these bytes, which are mapped and begin a line, to this piece alone.
        unsafe { std::slice::from_raw_parts(self.first, self.length) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // Sound: as above.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::map_zeros;

    fn region(bytes: usize) -> Region {
        Region::new(map_zeros(bytes).unwrap())
    }

    #[test]
    fn pieces_are_zeros_apart_and_outlive_their_region() {
        let mut region = region(3 * LINE);
        let mut bytes = region.take::<u8>(5);
        let mut words = region.take::<i32>(20);
        assert_eq!(region.left, 0);
        drop(region);
        assert!(bytes.iter().all(|&byte| byte == 0) && words.iter().all(|&word| word == 0));
        bytes.fill(u8::MAX);
        assert!(words.iter().all(|&word| word == 0));
        words.fill(-1);
        assert_eq!((&bytes[..], words.len()), (&[u8::MAX; 5][..], 20));
        for address in [bytes.as_ptr().addr(), words.as_ptr().addr()] {
            assert!(address.is_multiple_of(LINE));
        }
        drop(bytes);
        assert_eq!(words.iter().sum::<i32>(), -20);
    }

    #[test]
    #[should_panic(expected = "a region holds what it was made for")]
    fn no_more_is_taken_than_there_is() {
        region(LINE).take::<f32>(17);
    }

    #[test]
    fn an_empty_region_has_empty_pieces() {
        assert!(region(0).take::<f32>(0).is_empty());
    }
}
