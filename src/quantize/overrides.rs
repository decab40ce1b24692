//! The textual options of llama-quantize: KEY=TYPE:VALUE, NAME=TYPE, lists of layers.

use std::path::Path;

use regex::Regex;

use crate::gguf::{TensorType, Value};
use crate::{Error, Result};

/// Parses "KEY=int:1", "KEY=float:0.5", "KEY=bool:true" or "KEY=str:text" into a metadata entry.
///
/// Integers become UINT32 of their absolute value and floats FLOAT32, as llama-quantize writes them.
pub fn parse_key_value(text: &str) -> Result<(String, Value)> {
    let wrong = |what: &str| {
        Error::Usage(format!(
            "--override-kv {text:?} {what}; expected KEY=TYPE:VALUE with TYPE int, float, bool or str"
        ))
    };
    let (key, typed) = text.split_once('=').ok_or_else(|| wrong("has no '='"))?;
    let (kind, value) = typed.split_once(':').ok_or_else(|| wrong("has no ':' after the type"))?;
    if key.is_empty() || key.len() > 127 {
        return Err(wrong("has a key that is empty or longer than 127 bytes"));
    }
    let value = match kind {
        "int" => {
            let number = value.parse::<i64>().map_err(|_| wrong("has a value that is no integer"))?;
            let number = u32::try_from(number.unsigned_abs());
            Value::U32(number.map_err(|_| wrong("has an integer beyond 32 bits"))?)
        }
        "float" => {
            let number = value.parse::<f64>().map_err(|_| wrong("has a value that is no number"))?;
            Value::F32(number as f32)
        }
        "bool" => Value::Bool(value.parse().map_err(|_| wrong("has a value that is not true or false"))?),
        "str" if value.len() > 127 => return Err(wrong("has a text longer than 127 bytes")),
        "str" => Value::String(value.to_owned()),
        _ => return Err(wrong("has an unknown type")),
    };
    Ok((key.to_owned(), value))
}

/// Parses "attn_q=q8_0": a regular expression that tensor names are searched for, and their type.
pub fn parse_tensor_type(text: &str) -> Result<(Regex, TensorType)> {
    let (name, kind) = text
        .split_once('=')
        .filter(|(name, kind)| !name.is_empty() && !kind.is_empty())
        .ok_or_else(|| Error::Usage(format!("--tensor-type {text:?} is not of the form NAME=TYPE")))?;
    // Tensor names are lower case, and so llama-quantize makes the expression lower case.
    let pattern = Regex::new(&name.to_ascii_lowercase()).map_err(|error| {
        Error::Usage(format!("--tensor-type {text:?}: {name:?} is no regular expression: {error}"))
    })?;
    Ok((pattern, parse_kind(kind)?))
}

/// The tensor type with this name, in any case.
pub fn parse_kind(name: &str) -> Result<TensorType> {
    let kind = TensorType::from_name(name).filter(|&kind| super::can_encode(kind));
    kind.ok_or_else(|| {
        let known: Vec<_> =
            TensorType::all().filter(|&kind| super::can_encode(kind)).map(TensorType::name).collect();
        Error::Usage(format!("{name:?} is no type to quantize to; there are {}", known.join(", ")))
    })
}

/// Parses a file of "NAME=TYPE" entries separated by white space.
pub fn parse_tensor_type_file(path: &Path) -> Result<Vec<(Regex, TensorType)>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    let entries = text.split_ascii_whitespace().map(parse_tensor_type).collect::<Result<_>>();
    entries.map_err(|error| Error::invalid(path, error.to_string()))
}

/// Parses "3,5,7" into layer numbers, ascending and without repetition.
pub fn parse_layers(text: &str) -> Result<Vec<u32>> {
    let layers: Result<Vec<u32>, _> = text.split(',').map(|layer| layer.trim().parse()).collect();
    let mut layers = layers.map_err(|_| {
        Error::Usage(format!("--prune-layers {text:?} is no list of layer numbers such as 3,5,7"))
    })?;
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_have_the_types_llama_quantize_gives_them() {
        let parse = |text: &str| parse_key_value(text).unwrap().1;
        assert_eq!(parse_key_value("a.b=int:7").unwrap(), ("a.b".to_owned(), Value::U32(7)));
        assert_eq!(parse("k=int:-7"), Value::U32(7));
        assert_eq!(parse("k=float:0.1"), Value::F32(0.1));
        assert_eq!(parse("k=bool:false"), Value::Bool(false));
        assert_eq!(parse("k=str:a=b:c"), Value::String("a=b:c".into()));
        for wrong in ["k", "k=7", "=int:7", "k=int:x", "k=int:4294967296", "k=bool:1", "k=u8:1", "k=float:"] {
            assert!(parse_key_value(wrong).is_err(), "{wrong}");
        }
        assert!(parse_key_value(&format!("k=str:{}", "x".repeat(128))).is_err());
    }

    #[test]
    fn tensor_types_are_searched_for_in_lower_case() {
        let (name, kind) = parse_tensor_type("FFN_(up|down)=f16").unwrap();
        assert!(name.is_match("blk.0.ffn_down.weight") && kind == TensorType::F16);
        for wrong in ["x", "=q8_0", "x=", "x=q9", "(=q8_0", "x=i8"] {
            assert!(parse_tensor_type(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layers_are_sorted() {
        assert_eq!(parse_layers("7,3, 3").unwrap(), [3, 7]);
        assert!(parse_layers("").is_err() && parse_layers("1,-2").is_err() && parse_layers("a").is_err());
    }
}
