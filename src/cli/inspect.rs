//! `phi inspect`: what is in a model file.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

mod machine;
mod table;

use machine::Machine;
use table::{bits_per_weight, columns, human_count, plain, shorten};

use super::hub::{Access, Outline, Spec};
use crate::checkpoint::{self, Weights};
use crate::fs::human_bytes;
use crate::gguf::{Array, Gguf, Value};

/// Elements of an array that are shown, unless all are asked for.
const ARRAY_HEAD: usize = 6;

/// Show the metadata and the tensors of a GGUF file, a checkpoint folder or a safetensors file; of the first two also
/// which model it is and the memory that it takes, of a checkpoint as a GGUF file of each of the usual types.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  phi inspect model.gguf
  phi inspect model-00001-of-00003.gguf        any part of a split model shows all of it
  phi inspect Phi-3.5-mini-instruct            a checkpoint, and what it would be as GGUF
  phi inspect -hf microsoft/phi-4              before its weights are downloaded, or after
  phi inspect model.gguf --json --full | jq '.metadata.\"tokenizer.ggml.tokens\".value[32000]'")]
pub struct Args {
    /// GGUF file (any part of a split one), checkpoint folder or .safetensors file
    #[arg(value_name = "MODEL", required_unless_present = "hf_repo", conflicts_with = "hf_repo")]
    model: Option<PathBuf>,

    /// The same as JSON
    #[arg(long)]
    json: bool,

    /// Arrays and texts in full instead of their beginnings
    #[arg(long)]
    full: bool,

    /// -hf: a model on the Hugging Face hub: one of its GGUF files, or its checkpoint, or with a TYPE what that was
    /// quantized to. Weights that are not there are not downloaded
    #[arg(long, value_name = "USER/MODEL[:TYPE]", help_heading = "Hub")]
    hf_repo: Option<Spec>,

    /// -hff: the GGUF file to take from there
    #[arg(long, value_name = "FILE", requires = "hf_repo", help_heading = "Hub")]
    hf_file: Option<String>,

    #[command(flatten, next_help_heading = "Hub")]
    access: Access,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let report = match (&args.model, &args.hf_repo) {
        (Some(path), _) => Report::of(path)?,
        (None, Some(spec)) => {
            let found = Outline::of(spec, args.hf_file.as_deref(), &args.access)?;
            Report::of(&found.path)?
        }
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let text = if args.json { report.json(args.full)? } else { report.table(args.full) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough (head, less) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// What is shown of a model, whatever format it is in.
struct Report {
    format: String,
    files: Vec<String>,
    file_bytes: u64,
    entries: Vec<Entry>,
    tensors: Vec<Row>,
    /// What running it takes; not of a safetensors file, which is no model by itself.
    machine: Option<Machine>,
    /// How `Row::shape` is to be read.
    shape_order: &'static str,
}

/// A metadata key.
struct Entry {
    key: String,
    kind: String,
    value: Json,
}

/// A tensor.
struct Row {
    name: String,
    kind: String,
    shape: Vec<u64>,
    bytes: u64,
    /// Where it starts in its file, in bytes.
    offset: u64,
    file: String,
}

impl Row {
    fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, dim| product.saturating_mul(*dim))
    }
}

impl Report {
    fn of(path: &Path) -> crate::Result<Self> {
        if path.is_dir() {
            return Self::of_checkpoint(path);
        }
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let weights = Weights::from_files(vec![path.to_owned()])?;
            return Ok(Self::of_weights("safetensors".into(), &weights, Vec::new()));
        }
        Ok(Self::of_gguf(&Gguf::open(path)?))
    }

    fn of_gguf(gguf: &Gguf) -> Self {
        let files: Vec<String> = gguf.files().map(file_name).collect();
        let entries = gguf.metadata().iter().map(|(key, value)| Entry {
            key: key.to_owned(),
            kind: value.type_name(),
            value: value_json(value),
        });
        let tensors = gguf.tensors().iter().map(|tensor| Row {
            name: tensor.name.clone(),
            kind: tensor.kind.to_string(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes(),
            offset: gguf.file_offset(tensor),
            file: files.get(tensor.file).cloned().unwrap_or_default(),
        });
        Self {
            format: format!("GGUF version {}", gguf.version()),
            file_bytes: gguf.file_bytes(),
            entries: entries.collect(),
            tensors: tensors.collect(),
            machine: Some(Machine::of(gguf)),
            shape_order: "row length first",
            files,
        }
    }

    fn of_checkpoint(folder: &Path) -> crate::Result<Self> {
        let config = checkpoint::config_json(folder)?;
        let weights = Weights::open(folder)?;
        let mut entries = Vec::new();
        flatten("", &config, &mut entries);
        let report = Self::of_weights("Hugging Face checkpoint".into(), &weights, entries);
        Ok(Self { machine: Some(Machine::of_checkpoint(folder)), ..report })
    }

    fn of_weights(format: String, weights: &Weights, entries: Vec<Entry>) -> Self {
        let tensors = weights.tensors().iter().map(|tensor| Row {
            name: tensor.name.clone(),
            kind: tensor.dtype_name.clone(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes(),
            offset: tensor.file_offset(),
            file: file_name(weights.file_of(tensor)),
        });
        Self {
            format,
            files: weights.files().map(file_name).collect(),
            file_bytes: weights.file_bytes(),
            entries,
            tensors: tensors.collect(),
            machine: None,
            shape_order: "rows first",
        }
    }

    fn parameters(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Tensors, elements and bytes by type, most bytes first.
    fn sums(&self) -> Vec<(&str, usize, u64, u64)> {
        let mut sums: Vec<(&str, usize, u64, u64)> = Vec::new();
        for tensor in &self.tensors {
            let at = sums.iter().position(|(kind, ..)| *kind == tensor.kind).unwrap_or_else(|| {
                sums.push((&tensor.kind, 0, 0, 0));
                sums.len() - 1
            });
            let (_, count, elements, bytes) = &mut sums[at];
            *count += 1;
            *elements = elements.saturating_add(tensor.elements());
            *bytes += tensor.bytes;
        }
        sums.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        sums
    }

    fn json(&self, full: bool) -> serde_json::Result<String> {
        let metadata: serde_json::Map<String, Json> =
            self.entries.iter().map(|entry| (entry.key.clone(), entry.json(full))).collect();
        let tensors = self.tensors.iter().map(|tensor| {
            json!({
                "name": tensor.name, "type": tensor.kind, "shape": tensor.shape, "elements": tensor.elements(),
                "bytes": tensor.bytes, "offset": tensor.offset, "file": tensor.file,
            })
        });
        let types = self.sums().into_iter().map(|(kind, tensors, elements, bytes)| {
            json!({ "type": kind, "tensors": tensors, "elements": elements, "bytes": bytes })
        });
        let report = json!({
            "format": self.format,
            "files": self.files,
            "file_bytes": self.file_bytes,
            "model": self.machine.as_ref().map(Machine::json),
            "metadata": metadata,
            "shape_order": self.shape_order,
            "tensors": tensors.collect::<Vec<_>>(),
            "types": types.collect::<Vec<_>>(),
            "parameters": self.parameters(),
            "tensor_bytes": self.tensor_bytes(),
            "bits_per_weight": bits_per_weight(self.tensor_bytes(), self.parameters()),
        });
        serde_json::to_string_pretty(&report).map(|text| text + "\n")
    }

    fn table(&self, full: bool) -> String {
        let mut out = String::new();
        let names = match &self.files[..] {
            [first, .., last] => format!("{first} … {last} ({} files)", self.files.len()),
            files => files.concat(),
        };
        let _ = writeln!(out, "{}: {}, {}", plain(&names), self.format, human_bytes(self.file_bytes));
        if !self.entries.is_empty() {
            let _ = writeln!(out, "\nMetadata: {} keys", self.entries.len());
            let rows =
                self.entries.iter().map(|entry| [entry.key.clone(), entry.kind.clone(), entry.shown(full)]);
            columns(&mut out, &rows.collect::<Vec<_>>(), &[false; 3]);
        }
        let _ = writeln!(out, "\nTensors: {} (shapes: {})", self.tensors.len(), self.shape_order);
        let several = self.files.len() > 1;
        let head = ["name", "type", "shape", "size", "at byte", "file"].map(str::to_owned);
        let rows = self.tensors.iter().map(|tensor| {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            let file = if several { tensor.file.clone() } else { String::new() };
            [
                tensor.name.clone(),
                tensor.kind.clone(),
                shape.join(" × "),
                human_bytes(tensor.bytes),
                tensor.offset.to_string(),
                file,
            ]
        });
        let head = if several {
            head
        } else {
            head.map(|title| if title == "file" { String::new() } else { title })
        };
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        columns(&mut out, &rows, &[false, false, true, true, true, false]);
        self.write_sums(&mut out);
        if let Some(machine) = &self.machine {
            machine.write(&mut out);
        }
        out
    }

    fn write_sums(&self, out: &mut String) {
        out.push_str("\nTypes\n");
        let row = |kind: &str, tensors: usize, elements: u64, bytes: u64| {
            let bits = bits_per_weight(bytes, elements);
            [
                kind.to_owned(),
                tensors.to_string(),
                human_count(elements),
                human_bytes(bytes),
                format!("{bits:.2}"),
            ]
        };
        let mut rows = vec![["type", "tensors", "parameters", "size", "bits per weight"].map(str::to_owned)];
        rows.extend(
            self.sums()
                .into_iter()
                .map(|(kind, tensors, elements, bytes)| row(kind, tensors, elements, bytes)),
        );
        if rows.len() != 2 {
            rows.push(row("all", self.tensors.len(), self.parameters(), self.tensor_bytes()));
        }
        columns(out, &rows, &[false, true, true, true, true]);
    }
}

impl Entry {
    /// The value for a line of the table.
    fn shown(&self, full: bool) -> String {
        let text = match &self.value {
            Json::String(text) => plain(text),
            Json::Array(items) if !full && items.len() > ARRAY_HEAD => {
                let head: Vec<String> = items.iter().take(ARRAY_HEAD).map(Json::to_string).collect();
                return shorten(
                    &format!("{} elements: {}", items.len(), plain(&head.join(", "))),
                    full,
                    ", …",
                );
            }
            Json::Array(items) => {
                let items: Vec<String> = items.iter().map(Json::to_string).collect();
                plain(&items.join(", "))
            }
            other => plain(&other.to_string()),
        };
        shorten(&text, full, "")
    }

    fn json(&self, full: bool) -> Json {
        match &self.value {
            Json::Array(items) if !full && items.len() > ARRAY_HEAD => {
                json!({ "type": self.kind, "length": items.len(), "first": items[..ARRAY_HEAD] })
            }
            value => json!({ "type": self.kind, "value": value }),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// config.json's fields, nested ones as "outer.inner".
fn flatten(prefix: &str, value: &Json, entries: &mut Vec<Entry>) {
    let Json::Object(object) = value else { return };
    for (key, value) in object {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Json::Object(_) => flatten(&key, value, entries),
            _ => entries.push(Entry { key, kind: json_kind(value).to_owned(), value: value.clone() }),
        }
    }
}

fn json_kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => f32_json(*v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(v) => array_json(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => f64_json(*v),
    }
}

fn array_json(array: &Array) -> Json {
    match array {
        Array::U8(v) => json!(v),
        Array::I8(v) => json!(v),
        Array::U16(v) => json!(v),
        Array::I16(v) => json!(v),
        Array::U32(v) => json!(v),
        Array::I32(v) => json!(v),
        Array::F32(v) => v.iter().map(|v| f32_json(*v)).collect(),
        Array::Bool(v) => json!(v),
        Array::String(v) => json!(v),
        Array::U64(v) => json!(v),
        Array::I64(v) => json!(v),
        Array::F64(v) => v.iter().map(|v| f64_json(*v)).collect(),
        Array::Array(v) => v.iter().map(array_json).collect(),
    }
}

/// The shortest number that is this float ("1e-5" and not "9.999999747378752e-6").
fn f32_json(number: f32) -> Json {
    number.to_string().parse().map_or(Json::Null, f64_json)
}

/// JSON has no NaN and no infinity: they become texts.
fn f64_json(number: f64) -> Json {
    serde_json::Number::from_f64(number).map_or_else(|| json!(number.to_string()), Json::Number)
}
