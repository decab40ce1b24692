//! Results as a table, CSV, JSON, JSON lines or SQL. Fields that llama-bench has too are named as there.

use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::subject::Subject;
use crate::bench::{Limits, Measurement, Test};
use crate::cli::offload::GpuLayers;
use crate::engine::KvType;

/// How to print results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Md,
    Csv,
    Json,
    Jsonl,
    Sql,
}

/// How a test was set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub test: Test,
    pub batch: usize,
    pub ubatch: usize,
    pub threads: usize,
    /// As asked for.
    pub gpu_layers: Option<GpuLayers>,
    pub type_k: KvType,
    pub type_v: KvType,
}

/// One test and its result.
pub struct Row<'a> {
    pub subject: &'a Subject,
    pub setup: &'a Setup,
    pub measurement: &'a Measurement,
    pub limits: &'a Limits,
    /// Name of the processor.
    pub cpu: &'a str,
    /// Names of the GPUs that take part.
    pub gpu: String,
    /// Layers on them; the head counts as one.
    pub gpu_layers: usize,
    /// When it was measured, ISO 8601.
    pub time: String,
}

/// Writes rows in one format to one place.
pub struct Report<W> {
    out: W,
    format: Format,
    rows: usize,
}

impl<W: Write> Report<W> {
    pub fn new(out: W, format: Format) -> Self {
        Self { out, format, rows: 0 }
    }

    /// Appends a row, and what comes before the first.
    pub fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        let out = &mut self.out;
        match self.format {
            Format::Md => {
                if first {
                    write!(out, "{}", markdown_head())?;
                }
                writeln!(out, "{}", markdown(&row.cells()))?;
            }
            Format::Csv => {
                let fields = row.fields();
                if first {
                    writeln!(out, "{}", fields.keys().cloned().collect::<Vec<_>>().join(","))?;
                }
                writeln!(out, "{}", fields.values().map(csv).collect::<Vec<_>>().join(","))?;
            }
            Format::Json => {
                write!(out, "{}\n  {}", if first { "[" } else { "," }, Value::Object(row.with_samples()))?;
            }
            Format::Jsonl => writeln!(out, "{}", Value::Object(row.with_samples()))?,
            Format::Sql => {
                let fields = row.fields();
                if first {
                    writeln!(out, "{}", sql_table(&fields))?;
                }
                let names = fields.keys().cloned().collect::<Vec<_>>().join(", ");
                let values = fields.values().map(sql).collect::<Vec<_>>().join(", ");
                writeln!(out, "INSERT INTO test ({names}) VALUES ({values});")?;
            }
        }
        out.flush()
    }

    /// Completes the output.
    pub fn finish(mut self) -> io::Result<()> {
        match (self.format, self.rows) {
            (Format::Json, 0) => writeln!(self.out, "[]")?,
            (Format::Json, _) => writeln!(self.out, "\n]")?,
            _ => {}
        }
        self.out.flush()
    }
}

/// Mean and standard deviation (of a sample).
fn statistics(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

/// To three decimals: more would be noise.
fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

impl Row<'_> {
    fn seconds(&self) -> Vec<f64> {
        self.measurement.times.iter().map(Duration::as_secs_f64).collect()
    }

    fn speeds(&self) -> Vec<f64> {
        let tokens = self.setup.test.tokens() as f64;
        self.seconds().iter().map(|seconds| tokens / seconds).collect()
    }

    /// Achieved bytes and products a second, and the share of the time that the machine's limits explain.
    fn achieved(&self) -> (f64, f64, f64) {
        let (seconds, _) = statistics(&self.seconds());
        let cost = &self.measurement.cost;
        let share = self.measurement.least.as_secs_f64() / seconds;
        (cost.bytes as f64 / seconds, cost.products() as f64 / seconds, share)
    }

    /// All but the single repetitions.
    fn fields(&self) -> Map<String, Value> {
        let Setup { test, batch, ubatch, threads, type_k, type_v, .. } = self.setup;
        let nanoseconds: Vec<f64> = self.seconds().iter().map(|seconds| seconds * 1e9).collect();
        let ((ns, ns_deviation), (speed, deviation)) = (statistics(&nanoseconds), statistics(&self.speeds()));
        let (read, products, share) = self.achieved();
        let fields = json!({
            "build_version": env!("CARGO_PKG_VERSION"),
            "cpu_info": self.cpu,
            "gpu_info": self.gpu,
            "backends": if self.gpu_layers > 0 { "CPU,GPU" } else { "CPU" },
            "isa": crate::simd::Level::current().name(),
            "model_filename": self.subject.filename,
            "model_type": self.subject.description,
            "model_size": self.subject.bytes,
            "model_n_params": self.subject.parameters,
            "n_batch": batch,
            "n_ubatch": ubatch,
            "n_threads": threads,
            "type_k": name(*type_k),
            "type_v": name(*type_v),
            "n_gpu_layers": self.gpu_layers,
            "n_prompt": test.prompt,
            "n_gen": test.generate,
            "n_depth": test.depth,
            "n_parallel": test.parallel,
            "test_time": self.time,
            "avg_ns": ns.round() as u64,
            "stddev_ns": ns_deviation.round() as u64,
            "avg_ts": rounded(speed),
            "stddev_ts": rounded(deviation),
            "avg_gbs": rounded(read / 1e9),
            "avg_gmacs": rounded(products / 1e9),
            "limit_gbs": rounded(self.limits.read / 1e9),
            "limit_int8_gmacs": rounded(self.limits.integer / 1e9),
            "limit_f32_gmacs": rounded(self.limits.float / 1e9),
            "limit_share": rounded(share),
        });
        match fields {
            Value::Object(fields) => fields,
            _ => unreachable!("it was written as an object"),
        }
    }

    fn with_samples(&self) -> Map<String, Value> {
        let mut fields = self.fields();
        let nanoseconds: Vec<u64> =
            self.measurement.times.iter().map(|time| time.as_nanos() as u64).collect();
        let speeds: Vec<Value> = self.speeds().iter().map(|&speed| rounded(speed)).collect();
        fields.insert("samples_ns".into(), json!(nanoseconds));
        fields.insert("samples_ts".into(), json!(speeds));
        fields
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let (speed, deviation) = statistics(&self.speeds());
        let (read, products, share) = self.achieved();
        let setup = self.setup;
        let (k, v) = (name(setup.type_k), name(setup.type_v));
        let cache = if k == v { k } else { format!("{k}/{v}") };
        [
            self.subject.description.clone(),
            size(self.subject.bytes),
            count(self.subject.parameters),
            self.gpu_layers.to_string(),
            setup.threads.to_string(),
            setup.ubatch.min(setup.batch).to_string(),
            cache,
            test_name(&setup.test),
            format!("{speed:.2} ± {deviation:.2}"),
            format!("{:.1}", read / 1e9),
            format!("{:.1}", products / 1e9),
            // The limits are the CPU's.
            if self.gpu_layers > 0 { "-".to_owned() } else { format!("{:.0} %", 100.0 * share) },
        ]
    }
}

/// As llama.cpp spells cache types.
fn name(kind: KvType) -> String {
    kind.tensor_type().name().to_lowercase()
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn count(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.2} M") } else { format!("{:.2} B", millions / 1000.0) }
}

/// As llama-bench names tests, and ×N for N sequences at once: pp512, tg128 @ d4096, pp512+tg128 ×4.
pub fn test_name(test: &Test) -> String {
    let mut name = match (test.prompt, test.generate) {
        (prompt, 0) => format!("pp{prompt}"),
        (0, generate) => format!("tg{generate}"),
        (prompt, generate) => format!("pp{prompt}+tg{generate}"),
    };
    if test.depth > 0 {
        name.push_str(&format!(" @ d{}", test.depth));
    }
    if test.parallel > 1 {
        name.push_str(&format!(" ×{}", test.parallel));
    }
    name
}

/// Headings of the table, widths, and whether they are aligned to the right.
const COLUMNS: [(&str, usize, bool); 12] = [
    ("model", 30, false),
    ("size", 10, true),
    ("params", 8, true),
    ("ngl", 3, true),
    ("threads", 7, true),
    ("batch", 5, true),
    ("kv", 9, true),
    ("test", 15, true),
    ("t/s", 17, true),
    ("GB/s", 6, true),
    ("GMAC/s", 7, true),
    ("of limit", 8, true),
];

fn markdown(cells: &[String; COLUMNS.len()]) -> String {
    let mut line = String::from("|");
    for (cell, (_, width, right)) in cells.iter().zip(COLUMNS) {
        let cell = if right { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") };
        line.push_str(&cell);
    }
    line
}

fn markdown_head() -> String {
    let names = COLUMNS.map(|(name, ..)| name.to_owned());
    let rules = COLUMNS.map(|(_, width, right)| {
        let rule = "-".repeat(width - usize::from(right));
        if right { rule + ":" } else { rule }
    });
    format!("{}\n{}\n", markdown(&names), markdown(&rules))
}

fn csv(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn sql(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    }
}

fn sql_table(fields: &Map<String, Value>) -> String {
    let columns = fields.iter().map(|(name, value)| {
        let kind = match value {
            Value::String(_) => "TEXT",
            Value::Number(number) if number.is_f64() => "REAL",
            _ => "INTEGER",
        };
        format!("  {name} {kind}")
    });
    format!("CREATE TABLE IF NOT EXISTS test (\n{}\n);\n", columns.collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cost;

    fn reported(format: Format, rows: usize) -> String {
        let test = Test { prompt: 0, generate: 100, depth: 64, parallel: 2 };
        let row = Row {
            subject: &Subject {
                filename: "it's \"a\".gguf".into(),
                description: "phi3 3.8B Q4_K_M".into(),
                bytes: 1 << 30,
                parameters: 3_820_000_000,
            },
            setup: &Setup {
                test,
                batch: 2048,
                ubatch: 512,
                threads: 2,
                gpu_layers: None,
                type_k: KvType::F16,
                type_v: KvType::F16,
            },
            measurement: &Measurement {
                times: vec![Duration::from_secs(10), Duration::from_secs(5)],
                cost: Cost { bytes: 150_000_000_000, integer_products: 75_000_000_000, ..Cost::default() },
                least: Duration::from_secs(3),
            },
            limits: &Limits { read: 40e9, integer: 1e12, pairs: 5e11, float: 1e11 },
            cpu: "a processor",
            gpu: String::new(),
            gpu_layers: 0,
            time: "2026-01-01T00:00:00Z".into(),
        };
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, format);
        for _ in 0..rows {
            report.row(&row).unwrap();
        }
        report.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table() {
        let text = reported(Format::Md, 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let width = |line: &str| line.chars().count();
        assert!(lines.iter().all(|line| width(line) == width(lines[0])), "{text}");
        for cell in ["tg100 @ d64 ×2", "30.00 ± 14.14", "20.0", "10.0", "40 %", "1.00 GiB", "3.82 B"] {
            assert!(lines[2].contains(&format!(" {cell} |")), "{cell}: {text}");
        }
    }

    #[test]
    fn json_has_the_samples() {
        assert_eq!(reported(Format::Json, 0).trim(), "[]");
        let rows: Vec<Value> = serde_json::from_str(&reported(Format::Json, 2)).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["samples_ts"], json!([20.0, 40.0]));
        assert_eq!(rows[0]["avg_ns"], 7_500_000_000_u64);
        assert_eq!((&rows[0]["avg_gbs"], &rows[0]["limit_share"]), (&json!(20.0), &json!(0.4)));
        let lines = reported(Format::Jsonl, 2);
        assert_eq!(serde_json::from_str::<Value>(lines.lines().nth(1).unwrap()).unwrap(), rows[1]);
    }

    #[test]
    fn csv_and_sql_quote_what_needs_it() {
        let text = reported(Format::Csv, 2);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(r#","it's ""a"".gguf","#), "{text}");
        let text = reported(Format::Sql, 2);
        assert!(text.starts_with("CREATE TABLE IF NOT EXISTS test (\n  build_version TEXT,"), "{text}");
        assert!(text.contains("'it''s \"a\".gguf'") && text.contains("avg_ts REAL"), "{text}");
        assert_eq!(text.matches("INSERT INTO test").count(), 2);
    }

    #[test]
    fn names_of_tests() {
        let test = Test { prompt: 512, generate: 0, depth: 0, parallel: 1 };
        assert_eq!(test_name(&test), "pp512");
        assert_eq!(test_name(&Test { generate: 128, parallel: 4, ..test }), "pp512+tg128 ×4");
    }
}
