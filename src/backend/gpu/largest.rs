//! The largest elements of rows.

use super::buffer::Storage;
use super::device::lock;
use super::kernels::Kernel;
use super::{Buffer, Gpu};
use crate::Result;
use crate::backend::Largest;
use crate::backend::device_largest::{decode, passes, takes};

impl Gpu {
    /// The `count` largest elements of each row, if so few are wanted that it pays.
    pub(super) fn find_largest(&self, x: &Buffer, count: usize) -> Result<Option<Vec<Largest>>> {
        if !takes(x.columns, count) {
            return Ok(None);
        }
        let mut scratch = lock(&self.scratch);
        let mut from: &Storage = x.storage();
        let passes = passes(x.columns, count);
        let [one, other] = &mut scratch.largest;
        self.ensure(one, x.rows * passes[0].1 * count * 2);
        self.ensure(other, x.rows * passes[0].1 * count * 2);
        let (Some(one), Some(other)) = (one, other) else {
            return self.device.fault.check().map(|()| None);
        };
        let (mut to, mut next) = (&*one, &*other);
        for (number, &(columns, chunks)) in passes.iter().enumerate() {
            let groups = [chunks as u32, x.rows as u32, 1];
            let kernel = Kernel::Largest { is_first: number == 0 };
            self.run(kernel, &[from, to], &[columns as u32, count as u32], groups, 0);
            (from, to, next) = (to, next, to);
        }
        let bytes = self.fetch(from, 0, (x.rows * count * 8) as u64)?;
        Ok(Some(decode(&bytes, count)))
    }
}
