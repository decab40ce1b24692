//! Launching kernels: their parameters, laid out as the sources in kernels/ have them.

use std::ffi::c_void;

use super::Cuda;
use super::driver::Pointer;
use super::modules::Module;
use crate::Result;

/// Parameters of a kernel.
///
/// # Safety
/// Laid out as in C, and as the kernels of that name have them.
pub(super) unsafe trait Parameters {}

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
        q: Pointer,
        scales: Pointer,
        bias: Pointer,
        out: Pointer,
        columns: u32,
        rows: u32,
        row_bytes: u32,
        tokens: u32,
        out_stride: u32,
        ending: u32,
        limit: f32,
    }
    Picked { product: Product, table: Pointer, routes: Pointer, picks: u32 }
    Route { scores: Pointer, routes: Pointer, rows: u32, experts: u32, closeness: f32 }
    Embed { weights: Pointer, codebook: Pointer, ids: Pointer, out: Pointer, columns: u32, row_bytes: u32 }
    Norm {
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        out: Pointer,
        q: Pointer,
        scales: Pointer,
        columns: u32,
        eps: f32,
    }
    Quantize { x: Pointer, q: Pointer, scales: Pointer, elements: u32 }
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
    Append {
        qkv: Pointer,
        cosines: Pointer,
        sines: Pointer,
        queries: Pointer,
        keys: Pointer,
        values: Pointer,
        first_row: u32,
        at: u32,
        heads: u32,
        kv_heads: u32,
        size: u32,
        padded: u32,
        pairs: u32,
        scale: f32,
        key_kind: u32,
        value_kind: u32,
    }
    Attend {
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
    }
    Combine { splits: Pointer, out: Pointer, first_row: u32, heads: u32, size: u32, padded: u32, count: u32 }
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
        let [x, y, z] = groups.map(|n| n as u32);
        let mut list = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let stream = self.context.stream;
        // Sound: the driver copies the parameters before it returns, and reads as many bytes as the kernel has: P's.
        let code = unsafe {
            (self.context.driver.launch)(
                function,
                x,
                y,
                z,
                threads,
                1,
                1,
                0,
                stream,
                list.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check(code)
    }
}
