//! Launching kernels: their parameters, laid out as the sources in kernels/ have them.

use std::mem::offset_of;

use super::Cuda;
use super::driver::Pointer;
use super::modules::Module;
use crate::Result;

/// Bytes that parameters take at most.
const MOST_BYTES: usize = 1024;

/// Words that [`Put`] carries.
pub(super) const PUT: usize = 240;

/// Parameters of a kernel.
///
/// # Safety
/// Laid out as in C, and as the kernels of that name have them.
pub(super) unsafe trait Parameters: Field {}

/// What parameters are made of.
pub(super) trait Field {
    /// Writes it to the beginning of `to`; what is between fields stays as it is.
    fn write(&self, to: &mut [u8]);
}

macro_rules! numbers {
    ($($kind:ty),+) => {
        $(impl Field for $kind {
            fn write(&self, to: &mut [u8]) {
                to[..size_of::<Self>()].copy_from_slice(&self.to_ne_bytes());
            }
        })+
    };
}

numbers!(u32, f32, Pointer);

impl<const N: usize> Field for [u32; N] {
    fn write(&self, to: &mut [u8]) {
        to.as_chunks_mut().0.iter_mut().zip(self).for_each(|(to, word)| *to = word.to_ne_bytes());
    }
}

/// Declares parameters as a struct of C.
macro_rules! parameters {
    ($($name:ident { $($field:ident: $kind:ty),+ $(,)? })+) => {
        $(
            /// As in kernels/.
            #[repr(C)]
            #[derive(Clone, Copy)]
            pub(super) struct $name {
                $(pub $field: $kind),+
            }

            impl Field for $name {
                fn write(&self, to: &mut [u8]) {
                    $(self.$field.write(&mut to[offset_of!(Self, $field)..]);)+
                }
            }

            // Sound: the fields are those of the kernels' struct.
            unsafe impl Parameters for $name {}
        )+
    };
}

parameters! {
    Product {
        weights: Pointer,
        codebook: Pointer,
        x: Pointer,
        rounded: Rounded,
        bias: Pointer,
        out: Pointer,
        columns: u32,
        rows: u32,
        row_bytes: u32,
        tokens: u32,
        out_stride: u32,
        ending: u32,
        limit: f32,
        factor: f32,
        unscale: f32,
        to: Rounded,
        left: Pointer,
        blocks: u32,
    }
    Rounded { q: Pointer, scales: Pointer, halves: Pointer, factors: Pointer }
    Bound { weights: Pointer, codebook: Pointer, out: Pointer, columns: u32, row_bytes: u32 }
    Picked { product: Product, table: Pointer, routes: Pointer, picks: u32 }
    Route { scores: Pointer, routes: Pointer, rows: u32, experts: u32, closeness: f32 }
    Embed { weights: Pointer, codebook: Pointer, ids: Pointer, out: Pointer, columns: u32, row_bytes: u32 }
    Norm {
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        out: Pointer,
        to: Rounded,
        columns: u32,
        eps: f32,
    }
    Round { x: Pointer, to: Rounded, columns: u32, elements: u32 }
    GateRows { x: Pointer, out: Pointer, to: Rounded, columns: u32, kind: u32, limit: f32 }
    Elements {
        source: Pointer,
        rows: Pointer,
        to: Pointer,
        items: u32,
        columns: u32,
        source_columns: u32,
        offset: u32,
        factor: f32,
    }
    Largest { x: Pointer, out: Pointer, columns: u32, count: u32, is_first: u32 }
    Put { to: Pointer, count: u32, words: [u32; PUT] }
    Rows {
        qkv: Pointer,
        cosines: Pointer,
        sines: Pointer,
        heads: u32,
        kv_heads: u32,
        size: u32,
        padded: u32,
        pairs: u32,
        scale: f32,
    }
    Append {
        from: Rows,
        queries: Pointer,
        keys: Pointer,
        values: Pointer,
        first_row: u32,
        at: u32,
        key_kind: u32,
        value_kind: u32,
    }
    Attend {
        from: Rows,
        queries: Pointer,
        keys: Pointer,
        values: Pointer,
        out: Pointer,
        first_row: u32,
        rows: u32,
        position: u32,
        heads: u32,
        kv_heads: u32,
        size: u32,
        window: u32,
        length: u32,
        start: u32,
        splits: u32,
        block: u32,
        local: u32,
        stride: u32,
        head_step: u32,
        key_kind: u32,
        value_kind: u32,
        to: Rounded,
        members: Pointer,
        layer: u32,
    }
    Combine {
        splits: Pointer,
        out: Pointer,
        first_row: u32,
        heads: u32,
        size: u32,
        padded: u32,
        count: u32,
        to: Rounded,
    }
}

impl Rounded {
    /// Neither int8 nor halves.
    pub const NONE: Self = Self { q: 0, scales: 0, halves: 0, factors: 0 };
}

impl Cuda {
    /// Launches kernel `name` of `module` after everything before it: `groups` blocks of `threads` threads.
    pub(super) fn launch<P: Parameters>(
        &self,
        module: Module,
        name: &'static str,
        groups: [usize; 3],
        threads: u32,
        parameters: &P,
    ) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        let function = self.kernels.get(module, name)?;
        self.context.enter()?;
        const { assert!(size_of::<P>() <= MOST_BYTES) };
        let mut bytes = [0; MOST_BYTES];
        parameters.write(&mut bytes);
        let words = bytes.as_chunks().0.iter().map(|&bytes| u64::from_ne_bytes(bytes));
        let words = words.take(size_of::<P>().div_ceil(8));
        let added = self.context.launches().add(function, groups.map(|n| n as u32), threads, words);
        self.context.check(added.err().unwrap_or(0))
    }
}
