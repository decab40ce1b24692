//! What is written is read back; split models open as one.

use std::path::Path;

use super::*;
use crate::Error;

fn every_value() -> Metadata {
    let mut metadata = Metadata::new();
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("ein Wört".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(0.1),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![1])),
        Value::Array(Array::I16(vec![-1])),
        Value::Array(Array::U32(vec![1])),
        Value::Array(Array::I32(vec![-1, 7])),
        Value::Array(Array::F32(vec![1.5, -0.0])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::String(vec!["▁a".into(), String::new()])),
        Value::Array(Array::U64(vec![1])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F64(vec![0.1])),
        Value::Array(Array::Array(vec![Array::U8(vec![]), Array::String(vec!["x".into()])])),
    ];
    for (index, value) in values.into_iter().enumerate() {
        metadata.set(format!("key.{index}"), value);
    }
    metadata
}

fn declare(name: &str, shape: &[u64], kind: TensorType) -> TensorDecl {
    TensorDecl { name: name.into(), shape: shape.into(), kind }
}

fn write(metadata: &Metadata, tensors: &[(TensorDecl, Vec<u8>)], chunk: usize) -> Vec<u8> {
    let declarations: Vec<_> = tensors.iter().map(|(declaration, _)| declaration.clone()).collect();
    let mut writer = Writer::in_memory("memory", metadata, &declarations).unwrap();
    let bytes: Vec<u8> = tensors.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    bytes.chunks(chunk).for_each(|chunk| writer.write(chunk).unwrap());
    match writer.finish().unwrap() {
        Output::Memory(image) => image,
        Output::File(_) => unreachable!(),
    }
}

#[test]
fn what_is_written_is_read_back() {
    let metadata = every_value();
    let tensors = [
        (declare("norm", &[3], TensorType::F32), (0..12).collect::<Vec<u8>>()),
        (declare("matrix", &[32, 3], TensorType::Q8_0), (0..102).collect()),
        (declare("last", &[2, 2, 2], TensorType::F16), (7..23).collect()),
    ];
    for chunk in [1, 13, 1000] {
        let image = write(&metadata, &tensors, chunk);
        assert_eq!(image.len() % 32, 0, "the last tensor is padded too");
        let gguf = Gguf::from_bytes(image, "memory").unwrap();
        assert_eq!(gguf.metadata(), &metadata);
        assert_eq!(gguf.tensors().len(), 3);
        for (index, (declaration, bytes)) in tensors.iter().enumerate() {
            let info = gguf.tensor(&declaration.name).unwrap();
            assert_eq!(&info.declaration(), declaration);
            assert_eq!(gguf.data(info), bytes);
            assert_eq!(gguf.raw(index), Some(bytes.as_slice()));
        }
        let mut rows = [0; 68];
        gguf.bytes(1, 1..3, &mut rows).unwrap();
        assert_eq!(rows, tensors[1].1[34..]);
        assert!(gguf.bytes(1, 1..4, &mut rows).is_err(), "there are three rows");
        assert!(gguf.bytes(3, 0..1, &mut rows).is_err(), "there are three tensors");
    }
}

#[test]
fn the_writer_refuses_too_few_and_too_many_bytes() {
    let declarations = [declare("t", &[4], TensorType::I8)];
    let mut writer = Writer::in_memory("memory", &Metadata::new(), &declarations).unwrap();
    writer.write(&[1, 2, 3]).unwrap();
    assert!(writer.write(&[4, 5]).unwrap_err().to_string().contains("1 bytes too many"));
    let mut writer = Writer::in_memory("memory", &Metadata::new(), &declarations).unwrap();
    writer.write(&[1, 2, 3]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("lacks 1 bytes"));
}

fn write_part(folder: &Path, no: u32, count: u32, tensors: u64, name: &str) {
    let mut metadata = Metadata::new();
    if no == 0 {
        metadata.set("general.architecture", Value::from("phi3"));
    }
    metadata.set("split.no", Value::U16(no as u16));
    metadata.set("split.count", Value::U16(count as u16));
    metadata.set("split.tensors.count", Value::I32(tensors as i32));
    let path = folder.join(part_name("model", no, count));
    let mut writer = Writer::create(&path, &metadata, &[declare(name, &[4], TensorType::I8)]).unwrap();
    writer.write(&[no as u8; 4]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn any_part_of_a_split_model_opens_all() {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|no| write_part(folder.path(), no, 3, 3, &format!("t{no}")));
    for no in 0..3 {
        let gguf = Gguf::open(&folder.path().join(part_name("model", no, 3))).unwrap();
        assert_eq!(gguf.metadata().iter().map(|(key, _)| key).collect::<Vec<_>>(), ["general.architecture"]);
        assert_eq!(gguf.files().len(), 3);
        for part in 0..3 {
            assert_eq!(gguf.data(gguf.tensor(&format!("t{part}")).unwrap()), [part as u8; 4]);
        }
    }
}

fn fault(error: Error) -> Fault {
    match error {
        Error::Invalid { fault, .. } => fault.downcast_ref::<Fault>().expect("a GGUF fault").clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn faults_of_split_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |no| folder.path().join(part_name("model", no, 3));
    (0..3).for_each(|no| write_part(folder.path(), no, 3, 3, &format!("t{no}")));
    std::fs::remove_file(path(1)).unwrap();
    let error = Gguf::open(&path(2)).unwrap_err();
    assert!(error.to_string().contains("model-00002-of-00003.gguf: part 2 of 3"), "{error}");

    write_part(folder.path(), 1, 3, 3, "t0");
    assert_eq!(fault(Gguf::open(&path(0)).unwrap_err()), Fault::DuplicateTensor { tensor: "t0".into() });

    (0..3).for_each(|no| write_part(folder.path(), no, 3, 5, &format!("t{no}")));
    let found = fault(Gguf::open(&path(0)).unwrap_err());
    assert_eq!(found, Fault::SplitTensorCount { found: 3, expected: 5 });

    std::fs::copy(path(0), path(1)).unwrap();
    let found = fault(Gguf::open(&path(0)).unwrap_err());
    assert_eq!(found, Fault::SplitNumber { name_no: 2, name_count: 3, no: 1, count: 3 });

    let renamed = folder.path().join("renamed.gguf");
    std::fs::copy(path(0), &renamed).unwrap();
    assert_eq!(fault(Gguf::open(&renamed).unwrap_err()), Fault::SplitName { count: 3 });
    let image = std::fs::read(path(0)).unwrap();
    assert_eq!(fault(Gguf::from_bytes(image, "memory").unwrap_err()), Fault::SplitName { count: 3 });
}
