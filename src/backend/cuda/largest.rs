//! The largest elements of rows.

use super::device::lock;
use super::launch;
use super::modules::Module;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::Largest;
use crate::backend::device_largest::{decode, passes, takes};

impl Cuda {
    /// The `count` largest elements of each row, if so few are wanted that it pays.
    pub(super) fn find_largest(&self, x: &Buffer, count: usize) -> Result<Option<Vec<Largest>>> {
        if !takes(x.columns, count) {
            return Ok(None);
        }
        let mut scratch = lock(&self.scratch);
        let passes = passes(x.columns, count);
        let mut room = [0; 2];
        for (storage, room) in scratch.largest.iter_mut().zip(&mut room) {
            self.ensure(storage, x.rows * passes[0].1 * count * 2)?;
            *room = storage.as_ref().map_or(0, |storage| storage.pointer());
        }
        let mut from = x.pointer();
        for (number, &(columns, chunks)) in passes.iter().enumerate() {
            let parameters = launch::Largest {
                x: from,
                out: room[number % 2],
                columns: columns as u32,
                count: count as u32,
                is_first: u32::from(number == 0),
            };
            self.launch(Module::elementwise(), "largest", [chunks, x.rows, 1], 256, &parameters)?;
            from = parameters.out;
        }
        let mut bytes = vec![0; x.rows * count * 8];
        self.fetch(from, &mut bytes)?;
        Ok(Some(decode(&bytes, count)))
    }
}
