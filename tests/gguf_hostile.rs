//! Damaged and malicious GGUF files: each fault has its error, and nothing panics, loops or allocates at will.

use std::time::{Duration, Instant};

use phi::Error;
use phi::gguf::{Array, Fault, Gguf, Metadata, Output, TensorDecl, TensorType, Value, Writer};

/// Builds GGUF files by hand, so that nothing is checked on the way.
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        Self(bytes)
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let raw = self.text(name).u32(shape.len() as u32);
        let raw = shape.iter().fold(raw, |raw, dim| raw.u64(*dim));
        raw.u32(kind).u64(offset)
    }

    /// Pads to 32 and appends `bytes` of tensor data.
    fn data(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self
    }

    fn open(self) -> Result<Gguf, Fault> {
        open(self.0)
    }

    fn fault(self) -> Fault {
        self.open().map(|_| ()).unwrap_err()
    }
}

fn open(bytes: Vec<u8>) -> Result<Gguf, Fault> {
    Gguf::from_bytes(bytes, "test.gguf").map_err(|error| match error {
        Error::Invalid { path, fault } => {
            assert_eq!(path.to_str(), Some("test.gguf"));
            fault.downcast_ref::<Fault>().expect("a GGUF fault").clone()
        }
        other => panic!("{other}"),
    })
}

/// A small, valid file with every kind of thing in it.
fn valid() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::from("phi3"));
    metadata.set("texts", Value::Array(Array::String(vec!["a".into(), String::new(), "▁b".into()])));
    metadata.set("nested", Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::Bool(vec![true])])));
    metadata.set("number", Value::F64(1.5));
    let declare =
        |name: &str, shape: &[u64], kind| TensorDecl { name: name.into(), shape: shape.into(), kind };
    let tensors = [declare("a", &[32, 2], TensorType::Q8_0), declare("b", &[3], TensorType::F32)];
    let mut writer = Writer::in_memory("valid", &metadata, &tensors).unwrap();
    writer.write(&[1; 80]).unwrap();
    match writer.finish().unwrap() {
        Output::Memory(image) => image,
        Output::File(_) => unreachable!(),
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = valid();
    let gguf = open(whole.clone()).unwrap();
    let last = gguf.tensors().last().unwrap();
    let end = (gguf.file_offset(last) + last.bytes()) as usize;
    for length in 0..end {
        assert!(open(whole[..length].to_vec()).is_err(), "cut at byte {length}");
    }
    // Behind the last tensor's bytes there is only padding.
    assert!(open(whole[..end].to_vec()).is_ok());
}

#[test]
fn a_changed_byte_never_panics() {
    let whole = valid();
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] = byte;
            if let Ok(gguf) = open(changed) {
                gguf.tensors()
                    .iter()
                    .for_each(|tensor| assert_eq!(gguf.data(tensor).len() as u64, tensor.bytes()));
            }
        }
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    assert_eq!(
        open(b"PK\x03\x04 a zip".to_vec()).err(),
        Some(Fault::NotGguf { found: "PK\u{3}\u{4}".into() })
    );
    assert_eq!(open(b"GG".to_vec()).err(), Some(Fault::NotGguf { found: "GG".into() }));
    assert!(matches!(open(Vec::new()).err(), Some(Fault::NotGguf { .. })));
    for version in [0, 1, 4, 1 << 20] {
        let mut file = valid();
        file[4..8].copy_from_slice(&u32::to_le_bytes(version));
        assert_eq!(open(file).err(), Some(Fault::Version(version)));
    }
    let mut file = valid();
    file[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert_eq!(open(file).err(), Some(Fault::BigEndian));
    let mut file = valid();
    file[4..8].copy_from_slice(&2_u32.to_le_bytes());
    assert_eq!(open(file).unwrap().version(), 2);
}

#[test]
fn counts_beyond_the_file_are_refused_at_once() {
    for count in [3, 1 << 20, 1 << 40, u64::MAX] {
        let counts = |what: &str, fault| match fault {
            Fault::Count { what: found, count: n, .. } => assert_eq!((found, n), (what, count)),
            other => panic!("{other}"),
        };
        counts("tensors", Raw::new(count, 0).fault());
        counts("metadata entries", Raw::new(0, count).fault());
    }
}

/// CVE-2025-49847 and its like: lengths of texts that the file does not have.
#[test]
fn text_lengths_beyond_the_file_are_refused() {
    for length in [100, 1 << 40, u64::MAX, i64::MAX as u64] {
        let key = Raw::new(0, 1).u64(length).bytes(b"key").u64(0).u64(0);
        assert!(matches!(key.fault(), Fault::StringLength { length: found, .. } if found == length));
        let value = Raw::new(0, 1).text("key").u32(8).u64(length).bytes(b"abc");
        assert!(matches!(value.fault(), Fault::StringLength { what: "a metadata text", .. }));
        let in_array = Raw::new(0, 1).text("key").u32(9).u32(8).u64(1).u64(length).bytes(b"abc");
        assert!(matches!(in_array.fault(), Fault::StringLength { what: "a text in an array", .. }));
        let name = Raw::new(1, 0).u64(length).bytes(&[b'a'; 40]);
        assert!(matches!(name.fault(), Fault::StringLength { what: "a tensor's name", .. }));
    }
}

#[test]
fn array_lengths_beyond_the_file_are_refused() {
    for element in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] {
        for length in [1000, 1 << 33, 1 << 61, u64::MAX] {
            let array = Raw::new(0, 1).text("key").u32(9).u32(element).u64(length).bytes(&[0; 100]);
            assert!(matches!(array.fault(), Fault::ArrayLength { length: found, .. } if found == length));
        }
    }
}

#[test]
fn value_and_element_types_are_checked() {
    for id in [13, 99, u32::MAX] {
        let key = "key".to_owned();
        assert_eq!(
            Raw::new(0, 1).text("key").u32(id).u64(0).fault(),
            Fault::ValueType { key: key.clone(), id }
        );
        let array = Raw::new(0, 1).text("key").u32(9).u32(id).u64(0);
        assert_eq!(array.fault(), Fault::ValueType { key, id });
    }
    let flag = Raw::new(0, 1).text("key").u32(7).bytes(&[2]);
    assert_eq!(flag.fault(), Fault::BoolValue { key: "key".into(), found: 2 });
    let flags = Raw::new(0, 1).text("key").u32(9).u32(7).u64(2).bytes(&[1, 9]);
    assert_eq!(flags.fault(), Fault::BoolValue { key: "key".into(), found: 9 });
}

#[test]
fn nesting_of_arrays_is_bounded() {
    let nested =
        |depth| (1..depth).fold(Raw::new(0, 1).text("key").u32(9), |raw, _| raw.u32(9).u64(1)).u32(0).u64(0);
    assert!(nested(4).open().is_ok());
    for depth in [5, 6, 100_000] {
        assert_eq!(nested(depth).fault(), Fault::ArrayNesting { key: "key".into(), limit: 4 });
    }
}

/// A file of 43 bytes with arrays of empty arrays must not keep a reader busy.
#[test]
fn a_tiny_file_cannot_make_the_reader_loop() {
    let started = Instant::now();
    let fault = Raw::new(0, 1).bytes(&[1, 0, 0, 0, 0, 0, 0, 0, b'k']).u32(9).u32(9).u64(u64::MAX / 2).0;
    let mut file = fault;
    file.truncate(43);
    assert!(open(file).is_err());
    let many =
        (0..50_000).fold(Raw::new(0, 1).text("k").u32(9).u32(9).u64(50_000), |raw, _| raw.u32(0).u64(0));
    assert!(many.open().is_ok());
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn keys_are_named_once() {
    assert_eq!(Raw::new(0, 1).text("").u32(4).u32(0).fault(), Fault::EmptyKey { index: 0 });
    let twice = Raw::new(0, 2).text("key").u32(4).u32(0).text("key").u32(0).bytes(&[0]);
    assert_eq!(twice.fault(), Fault::DuplicateKey { key: "key".into() });
    let latin1 = Raw::new(0, 1).u64(3).bytes(&[b'k', 0xe4, b'x']).u32(4).u32(0);
    assert!(matches!(latin1.fault(), Fault::Utf8 { what: "a metadata key", .. }));
}

#[test]
fn alignment_is_a_power_of_two_of_the_right_type() {
    const KEY: &str = "general.alignment";
    for alignment in [0, 3, 33, u32::MAX] {
        assert_eq!(Raw::new(0, 1).text(KEY).u32(4).u32(alignment).fault(), Fault::AlignmentValue(alignment));
    }
    let typed = [
        Raw::new(0, 1).text(KEY).u32(8).text("32"),
        Raw::new(0, 1).text(KEY).u32(10).u64(32),
        Raw::new(0, 1).text(KEY).u32(9).u32(4).u64(1).u32(32),
    ];
    for raw in typed {
        assert!(matches!(raw.fault(), Fault::AlignmentType { .. }));
    }
    let one = Raw::new(1, 1).text(KEY).u32(4).u32(1).tensor("t", &[3], 24, 0).bytes(&[1, 2, 3]);
    let gguf = one.open().unwrap();
    assert_eq!(gguf.data(&gguf.tensors()[0]), [1, 2, 3]);
    let huge = Raw::new(1, 1).text(KEY).u32(4).u32(1 << 31).tensor("t", &[3], 24, 0).data(96);
    assert!(matches!(huge.fault(), Fault::PastEnd { .. }));
}

#[test]
fn tensors_have_one_to_four_dimensions_and_none_of_zero() {
    let tensor = || "t".to_owned();
    for shape in [vec![], vec![1; 5], vec![1; 8]] {
        let fault = Raw::new(1, 0).tensor("t", &shape, 0, 0).data(64).fault();
        assert_eq!(fault, Fault::DimensionCount { tensor: tensor(), count: shape.len() as u32 });
    }
    let many = Raw::new(1, 0).text("t").u32(u32::MAX).bytes(&[1; 100]);
    assert_eq!(many.fault(), Fault::DimensionCount { tensor: tensor(), count: u32::MAX });
    let zero = Raw::new(1, 0).tensor("t", &[4, 0], 0, 0).data(64).fault();
    assert_eq!(zero, Fault::ZeroDimension { tensor: tensor(), shape: vec![4, 0] });
}

/// CVE-2025-53630, CVE-2026-27940: products of dimensions that overflow to something small.
#[test]
fn sizes_that_overflow_are_refused() {
    let shapes: [&[u64]; 5] = [
        &[1 << 32, 1 << 32],
        &[1 << 62, 4],
        &[u64::MAX],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        &[32, u64::MAX / 32 + 2],
    ];
    for shape in shapes {
        let fault = Raw::new(1, 0).tensor("t", shape, 0, 0).data(64).fault();
        assert_eq!(fault, Fault::SizeOverflow { tensor: "t".into(), shape: shape.to_vec() });
    }
    // Fits 64 bits in elements of 8 bits, but not in elements of 32 bits.
    let fault = Raw::new(1, 0).tensor("t", &[1 << 61, 2], 0, 0).data(64).fault();
    assert!(matches!(fault, Fault::SizeOverflow { .. }));
}

/// CVE-2026-7482: ranges past the end of the file.
#[test]
fn ranges_past_the_end_are_refused() {
    let fits = |offset, length| Raw::new(1, 0).tensor("t", &[16], 0, offset).data(length).open();
    assert!(fits(0, 64).is_ok());
    assert!(fits(64, 128).is_ok());
    for (offset, length) in [(0, 63), (32, 64), (1 << 40, 64), (u64::MAX - 31, 64), (u64::MAX - 63, 64)] {
        assert!(matches!(fits(offset, length).err(), Some(Fault::PastEnd { .. })), "offset {offset}");
    }
    let headless = Raw::new(1, 0).tensor("t", &[16], 0, 0);
    assert!(matches!(headless.fault(), Fault::PastEnd { end: 0, .. }));
}

#[test]
fn offsets_are_aligned_and_disjoint() {
    let fault = Raw::new(1, 0).tensor("t", &[4], 0, 16).data(64).fault();
    assert_eq!(fault, Fault::Misaligned { tensor: "t".into(), offset: 16, alignment: 32 });
    let fault = Raw::new(2, 0).tensor("a", &[16], 0, 32).tensor("b", &[16], 0, 0).data(128).fault();
    assert_eq!(fault, Fault::Overlap { first: "b".into(), second: "a".into() });
}

#[test]
fn tensors_are_named_once_and_of_a_known_type() {
    let fault = Raw::new(2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64).fault();
    assert_eq!(fault, Fault::DuplicateTensor { tensor: "t".into() });
    assert_eq!(Raw::new(1, 0).tensor("", &[4], 0, 0).data(64).fault(), Fault::EmptyTensorName { index: 0 });
    for id in [4, 5, 31, 38, 43, u32::MAX] {
        let fault = Raw::new(1, 0).tensor("t", &[32], id, 0).data(64).fault();
        assert_eq!(fault, Fault::UnknownTensorType { tensor: "t".into(), id });
    }
    let fault = Raw::new(1, 0).tensor("t", &[100], 12, 0).data(640).fault();
    assert_eq!(fault, Fault::PartialBlock { tensor: "t".into(), row: 100, kind: "Q4_K", block: 256 });
}

#[test]
fn large_vocabularies_are_read_quickly() {
    let tokens = (0..200_000).map(|id| format!("token {id}")).collect();
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.5; 200_000])));
    let Output::Memory(image) = Writer::in_memory("vocabulary", &metadata, &[]).unwrap().finish().unwrap()
    else {
        unreachable!()
    };
    let started = Instant::now();
    let gguf = open(image).unwrap();
    let took = started.elapsed();
    assert_eq!(gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 200_000);
    // 6 ms on an idle machine; the limit leaves room for a busy one.
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[test]
fn messages_name_the_file_the_fault_and_what_to_do() {
    let error = Gguf::from_bytes(valid()[..200].to_vec(), "models/x.gguf").unwrap_err().to_string();
    assert!(error.starts_with("models/x.gguf: ") && error.contains("get it again"), "{error}");
    let missing = Gguf::open(std::path::Path::new("no/such.gguf")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot open no/such.gguf: "), "{missing}");
    let folder = Gguf::open(std::path::Path::new(".")).unwrap_err().to_string();
    assert!(folder.contains("directory"), "{folder}");
}
