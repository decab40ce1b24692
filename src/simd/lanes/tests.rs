//! Every operation of every token against plain `f32` arithmetic, one lane at a time.

use super::*;

const SPECIAL: [f32; 20] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.5,
    -3.5,
    0.499_999_97,
    1e-42,
    -1e-42,
    3.4e38,
    -3.4e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    4_194_303.0,
    4_194_304.5,
    -5e6,
    3e9,
    1.0 / 3.0,
];

/// Every pair of special values, in two arrays.
fn pairs() -> (Vec<f32>, Vec<f32>) {
    let pair = |i: usize| (SPECIAL[i / SPECIAL.len()], SPECIAL[i % SPECIAL.len()]);
    (0..SPECIAL.len() * SPECIAL.len()).map(pair).unzip()
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Checks `vector` against `scalar` for every pair of special values.
#[track_caller]
fn check<L: Lanes>(
    lanes: L,
    name: &str,
    scalar: impl Fn(f32, f32) -> f32,
    vector: impl Fn(L::F, L::F) -> L::F,
) {
    let (a, b) = pairs();
    for (a, b) in a.chunks_exact(L::WIDTH).zip(b.chunks_exact(L::WIDTH)) {
        let mut got = [f32::NAN; MAX_WIDTH];
        lanes.store(vector(lanes.load(a), lanes.load(b)), &mut got);
        for i in 0..L::WIDTH {
            let want = scalar(a[i], b[i]);
            assert!(same(got[i], want), "{name}({}, {}): {} not {want}", a[i], b[i], got[i]);
        }
    }
}

struct Operations;

impl Kernel for Operations {
    type Output = ();

    fn run<L: Lanes>(self, lanes: L) {
        let l = lanes;
        check(l, "add", |a, b| a + b, |a, b| l.add(a, b));
        check(l, "sub", |a, b| a - b, |a, b| l.sub(a, b));
        check(l, "mul", |a, b| a * b, |a, b| l.mul(a, b));
        check(l, "div", |a, b| a / b, |a, b| l.div(a, b));
        check(l, "sqrt", |a, _| a.sqrt(), |a, _| l.sqrt(a));
        check(l, "abs", |a, _| a.abs(), |a, _| l.abs(a));
        check(l, "min", |a, b| if a < b { a } else { b }, |a, b| l.min(a, b));
        check(l, "max", |a, b| if a > b { a } else { b }, |a, b| l.max(a, b));
        check(l, "lt", |a, b| if a < b { a } else { b }, |a, b| l.select(l.lt(a, b), a, b));
        check(l, "gt", |a, b| if a > b { a } else { b }, |a, b| l.select(l.gt(a, b), a, b));
        check(l, "eq", |a, b| if a == b { a } else { b }, |a, b| l.select(l.eq(a, b), a, b));
        check(l, "not", |a, b| if a == b { b } else { a }, |a, b| l.select(l.not(l.eq(a, b)), a, b));
        let both = |a: f32, b: f32| a < b && a == a.abs();
        check(
            l,
            "and",
            |a, b| if both(a, b) { a } else { b },
            |a, b| l.select(l.and(l.lt(a, b), l.eq(a, l.abs(a))), a, b),
        );
        check(l, "nearest", |a, _| nearest(a) as f32, |a, _| l.to_float(l.nearest(a)));
        let fits = |v: f32| if v.abs() < 2_147_483_648.0 { v as i32 } else { i32::MIN };
        check(l, "truncate", |a, _| fits(a) as f32, |a, _| l.to_float(l.truncate(a)));
        let clamp = |a: f32| (nearest(a) & 0xff).clamp(3, 9) as f32;
        let clamp_lanes = |a| {
            let byte = l.and_i(l.nearest(a), l.splat_i(0xff));
            l.to_float(l.max_i(l.splat_i(3), l.min_i(l.splat_i(9), byte)))
        };
        check(l, "integers", |a, _| clamp(a), |a, _| clamp_lanes(a));
    }
}

#[test]
fn operations_are_those_of_plain_floats() {
    for path in Path::available() {
        path.run(Operations);
    }
}

#[test]
fn small_numbers_round_as_any_do() {
    struct Small;
    impl Kernel for Small {
        type Output = ();
        fn run<L: Lanes>(self, lanes: L) {
            for k in -4000..4000 {
                let v = k as f32 * 0.125;
                let mut got = [f32::NAN; MAX_WIDTH];
                lanes.store(lanes.nearest_small(lanes.splat(v)), &mut got);
                assert_eq!(got[L::WIDTH - 1].to_bits(), (nearest(v) as f32).to_bits(), "{v}");
                assert_eq!(nearest(v) as f32, v.round_ties_even(), "{v}");
            }
        }
    }
    for path in Path::available() {
        path.run(Small);
    }
}

#[test]
fn columns_are_transposed_rows() {
    struct Columns(usize);
    impl Kernel for Columns {
        type Output = ();
        fn run<L: Lanes>(self, lanes: L) {
            let stride = self.0 + 3;
            let rows: Vec<f32> = (0..L::WIDTH * stride).map(|i| i as f32).collect();
            let mut columns = vec![lanes.splat(f32::NAN); self.0];
            lanes.columns(&rows, stride, &mut columns);
            for (c, column) in columns.into_iter().enumerate() {
                let mut got = [f32::NAN; MAX_WIDTH];
                lanes.store(column, &mut got);
                for r in 0..L::WIDTH {
                    assert_eq!(got[r], rows[r * stride + c], "row {r} of column {c}, {} columns", self.0);
                }
            }
        }
    }
    for path in Path::available() {
        for columns in [1, 4, 8, 11, 16, 32, 37] {
            path.run(Columns(columns));
        }
    }
}

#[test]
fn bytes_are_the_low_ones() {
    struct Bytes;
    impl Kernel for Bytes {
        type Output = ();
        fn run<L: Lanes>(self, lanes: L) {
            let values: Vec<f32> = (0..L::WIDTH).map(|i| i as f32 * 77.0 - 300.0).collect();
            let mut got = [0xa5; MAX_WIDTH + 1];
            lanes.store_bytes(lanes.truncate(lanes.load(&values)), &mut got);
            for (byte, v) in got.iter().zip(&values) {
                assert_eq!(*byte, *v as i32 as u8);
            }
            assert_eq!(got[L::WIDTH], 0xa5, "nothing beyond the lanes is written");
        }
    }
    for path in Path::available() {
        path.run(Bytes);
    }
}

#[test]
fn halves_convert_as_the_half_crate_does() {
    for bits in 0..=u16::MAX {
        let (got, want) = (half_value(bits), half::f16::from_bits(bits).to_f32_const());
        assert_eq!(got.to_bits(), want.to_bits(), "{bits:04x}");
    }
    for high in 0..=u16::MAX {
        for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0xffff] {
            let v = f32::from_bits(u32::from(high) << 16 | low);
            let want = half::f16::from_f32_const(v).to_bits();
            let nan = if v.is_sign_negative() { 0xfe00 } else { 0x7e00 };
            assert_eq!(half_bits(v), if v.is_nan() { nan } else { want }, "{v:e}");
        }
    }
}

#[test]
fn every_path_has_a_name_and_runs() {
    struct Which;
    impl Kernel for Which {
        type Output = Path;
        fn run<L: Lanes>(self, _: L) -> Path {
            L::PATH
        }
    }
    for path in Path::available() {
        assert_eq!(path.run(Which), path, "{}", path.name());
    }
    assert!(Path::best().is_available());
}
