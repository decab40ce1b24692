//! What a quantization made of each tensor, as JSON or as a page with a chart by layer.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::{Plan, Planned, Summary};
use crate::fs::human_bytes;
use crate::quant::recipe::layer_of;

/// One tensor's line.
struct Line<'a> {
    tensor: &'a Planned,
    /// Root of the relative squared error; `None` where nothing changed or nothing was measured.
    error: Option<f64>,
    weighted: Option<f64>,
}

/// A finished job, ready to be shown.
pub struct Report<'a> {
    /// The source's and the recipe's names.
    title: String,
    lines: Vec<Line<'a>>,
    summary: &'a Summary,
}

impl<'a> Report<'a> {
    /// The report on what `summary` says of `plan`; `input` and `recipe` are names for its title.
    pub fn new(input: &str, recipe: &str, plan: &'a Plan, summary: &'a Summary) -> Self {
        let line = |(tensor, sums): (&'a Planned, &super::ErrorSums)| Line {
            tensor,
            error: sums.relative(),
            weighted: sums.relative_weighted(),
        };
        let lines = plan.tensors.iter().zip(&summary.errors).map(line).collect();
        Self { title: format!("{input} as {recipe}"), lines, summary }
    }

    /// The report as JSON: totals, and `tensors` in the order of the file. Errors are relative (0.01 is 1 %),
    /// null for tensors that are kept as they were.
    pub fn to_json(&self) -> String {
        let tensors: Vec<Json> = self
            .lines
            .iter()
            .map(|line| {
                let tensor = line.tensor;
                json!({
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "from": tensor.from.name(),
                    "type": tensor.kind.name(),
                    "bits": tensor.kind.bits_per_element(),
                    "bytes": tensor.bytes(),
                    "error": line.error,
                    "weighted_error": line.weighted,
                })
            })
            .collect();
        let report = json!({
            "title": self.title,
            "bytes_in": self.summary.bytes_in,
            "bytes_out": self.summary.bytes_out,
            "bits": self.summary.bits_per_element(),
            "seconds": self.summary.time.as_secs_f64(),
            "tensors": tensors,
        });
        format!("{report:#}\n")
    }

    /// The report as a page that needs nothing but itself.
    pub fn to_html(&self) -> String {
        let weighted = self.lines.iter().any(|line| line.weighted.is_some());
        let title = escape(&self.title);
        let mut rows = String::new();
        for line in &self.lines {
            let tensor = line.tensor;
            let shape: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
            let _ = write!(
                rows,
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.2}<td>{}<td>{}",
                escape(&tensor.name),
                shape.join(" × "),
                tensor.from,
                tensor.kind,
                tensor.kind.bits_per_element(),
                human_bytes(tensor.bytes()),
                percent(line.error),
            );
            if weighted {
                let _ = write!(rows, "<td>{}", percent(line.weighted));
            }
            rows.push('\n');
        }
        let heading = if weighted { "<th>error, weighted by importance" } else { "" };
        let measure = if weighted { "Relative error weighted by importance" } else { "Relative error" };
        let (from, to) = (human_bytes(self.summary.bytes_in), human_bytes(self.summary.bytes_out));
        let bits = self.summary.bits_per_element();
        let chart = self.chart();
        format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n\
             <h1>{title}</h1>\n<p>{from} → {to}, {bits:.2} bits an element.</p>\n\
             <h2>{measure} by layer</h2>\n{chart}\n\
             <table><thead><tr><th>tensor<th>shape<th>from<th>type<th>bits<th>size<th>error{heading}</thead>\n\
             <tbody>\n{rows}</tbody></table>\n\
             <p>The error is the root of the squared differences over the squared values; of large tensors it is \
             measured on a part of the rows.</p>\n</html>\n"
        )
    }

    /// The lines of the chart: a name and the errors by layer, for tensors of layers, in order of appearance.
    fn series(&self) -> Vec<(&str, Vec<(i64, f64)>)> {
        let mut series: Vec<(&str, Vec<(i64, f64)>)> = Vec::new();
        for line in &self.lines {
            let layer = layer_of(&line.tensor.name);
            let Some(error) = line.weighted.or(line.error).filter(|_| layer >= 0) else { continue };
            let part = line.tensor.name.splitn(3, '.').nth(2).unwrap_or_default();
            let part = part.trim_end_matches(".weight");
            match series.iter_mut().find(|(name, _)| *name == part) {
                Some((_, points)) => points.push((layer, error)),
                None => series.push((part, vec![(layer, error)])),
            }
        }
        series
    }

    fn chart(&self) -> String {
        const COLORS: [&str; 8] =
            ["#2563eb", "#dc2626", "#16a34a", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f"];
        let series = self.series();
        let points = || series.iter().flat_map(|(_, points)| points);
        let layers = points().map(|point| point.0).max().unwrap_or(0).max(1) as f64;
        let top = points().map(|point| point.1).fold(0.0, f64::max);
        if top <= 0.0 {
            return "<p>No tensor of a layer was changed.</p>".to_owned();
        }
        let (x, y) =
            (|layer: i64| 60.0 + 700.0 * layer as f64 / layers, |error: f64| 290.0 - 270.0 * error / top);
        let mut svg =
            String::from("<svg viewBox=\"0 0 960 330\" role=\"img\" aria-label=\"error by layer\">\n");
        for part in 0..=4 {
            let error = top * f64::from(part) / 4.0;
            let (at, text) = (y(error), percent(Some(error)));
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M60 {at:.1}H760\"/><text x=\"54\" y=\"{:.1}\" class=\"end\">{text}</text>",
                at + 4.0
            );
        }
        let step = (layers as i64 / 8).max(1);
        for layer in (0..=layers as i64).step_by(step as usize) {
            let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"310\" class=\"mid\">{layer}</text>", x(layer));
        }
        for (at, (name, points)) in series.iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let line: Vec<_> =
                points.iter().map(|&(layer, error)| format!("{:.1},{:.1}", x(layer), y(error))).collect();
            let _ = writeln!(svg, "<polyline stroke=\"{color}\" points=\"{}\"/>", line.join(" "));
            for &(layer, error) in points {
                let _ = writeln!(
                    svg,
                    "<circle fill=\"{color}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>blk.{layer}.{}: {}</title></circle>",
                    x(layer),
                    y(error),
                    escape(name),
                    percent(Some(error))
                );
            }
            let height = 24 + 20 * at;
            let _ = writeln!(svg, "<text x=\"776\" y=\"{height}\" fill=\"{color}\">{}</text>", escape(name));
        }
        svg + "</svg>"
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
svg{width:100%}svg text{font-size:12px}svg polyline{fill:none;stroke-width:2}svg .grid{stroke:#8884}\
svg .end{text-anchor:end;fill:currentColor}svg .mid{text-anchor:middle;fill:currentColor}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th{text-align:left}\
td,th{padding:.15rem .6rem;border-bottom:1px solid #8884}td:nth-child(n+5){text-align:right}\
:root{color-scheme:light dark}";

fn percent(error: Option<f64>) -> String {
    error.map_or_else(String::new, |error| format!("{:.2} %", error * 100.0))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
