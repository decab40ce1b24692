//! What is asked of every kind of device alike.

use super::{Backend, Largest};

/// A device, and how a buffer gets there.
pub struct Subject<'a, B: Backend> {
    pub device: &'a B,
    /// Elements and columns.
    pub write: &'a dyn Fn(&[f32], usize) -> B::Buffer,
}

/// As the definition has it: the `count` largest, NaN first, -0 as 0, of equals the lower number first.
fn largest(row: &[f32], count: usize) -> Largest {
    let mut all: Largest =
        (0..).zip(row.iter().map(|x| if x.is_nan() { f32::NAN } else { x + 0.0 })).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

/// Bits, so that NaN is equal to itself.
fn bits(rows: &[Largest]) -> Vec<Vec<(u32, u32)>> {
    rows.iter().map(|row| row.iter().map(|(id, x)| (*id, x.to_bits())).collect()).collect()
}

pub fn the_largest_elements_are_found<B: Backend>(subject: &Subject<'_, B>) {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Few distinct values, so that there are ties.
        (state >> 20) as f32 / 16.0 - 128.0
    };
    for (rows, columns) in [(1, 5000), (3, 700), (2, 512), (1, 300)] {
        let mut data: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        (data[17], data[40], data[41]) = (-0.0, f32::NEG_INFINITY, 0.0);
        if rows == 3 {
            (data[5], data[columns + 3], data[columns + 9]) = (f32::INFINITY, f32::NAN, -f32::NAN);
        }
        let x = (subject.write)(&data, columns);
        for count in [1, 2, 40, 255, 256] {
            let want: Vec<Largest> = data.chunks_exact(columns).map(|row| largest(row, count)).collect();
            let found = subject.device.largest(&x, count).unwrap().expect("so few are looked for there");
            assert_eq!(bits(&found), bits(&want), "{count} of {rows} rows of {columns}");
        }
        assert_eq!(subject.device.largest(&x, 257).unwrap(), None, "the host is as fast");
        assert_eq!(subject.device.largest(&x, columns).unwrap(), None, "all are wanted");
    }
    let nothing = [f32::NEG_INFINITY, f32::NEG_INFINITY, -0.0, 0.0].repeat(40);
    let found = subject.device.largest(&(subject.write)(&nothing, 160), 90).unwrap().unwrap();
    assert_eq!(bits(&found), bits(&[largest(&nothing, 90)]));
}
