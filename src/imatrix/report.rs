//! Figures over an importance matrix: by tensor and by layer.

use std::collections::BTreeMap;
use std::fmt;

use super::{Entry, Statistics};

/// Means at or below this are columns that hardly see any input.
const INACTIVE: f64 = 1e-5;

/// Figures over the mean squared activations of one tensor's columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// "3" for `blk.3.…`, `None` outside the layers.
    pub layer: Option<u32>,
    /// The part of the name that is the same in all layers, such as "attn_qkv".
    pub part: String,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// Share of columns above 1e-5.
    pub active: f64,
    /// Columns, of all matrices that had input.
    pub columns: usize,
    /// Shannon entropy of the columns' shares, in bits.
    pub entropy: f64,
    /// Share of columns more than a standard deviation above the mean (Dumitru et al. 2024, arXiv 2406.17415).
    pub outliers: f64,
    /// Cosine similarity with the same tensor of the layer before; 0 if there is none.
    pub similarity: f64,
}

impl Figures {
    fn new(name: &str, entry: &Entry, before: Option<&Entry>) -> Option<Self> {
        let values: Vec<f64> = entry.seen_means().collect();
        let columns = values.len();
        if columns == 0 {
            return None;
        }
        let n = columns as f64;
        let sum: f64 = values.iter().sum();
        let mean = sum / n;
        let variance = values.iter().map(|value| value * value).sum::<f64>() / n - mean * mean;
        let deviation = variance.max(0.0).sqrt();
        let share = |wanted: &dyn Fn(f64) -> bool| values.iter().filter(|&&v| wanted(v)).count() as f64 / n;
        let shares = values.iter().map(|value| value / sum).filter(|&share| share > 0.0);
        let (layer, part) = split_name(name);
        Some(Self {
            layer,
            part,
            sum,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean,
            deviation,
            active: share(&|value| value > INACTIVE),
            columns,
            entropy: -shares.map(|share| share * share.log2()).sum::<f64>(),
            outliers: if deviation > 0.0 { share(&|value| value - mean > deviation) } else { 0.0 },
            similarity: before.map_or(0.0, |before| cosine(&entry.sums, &before.sums)),
        })
    }
}

/// All figures, in the order they are shown in.
pub struct Report {
    pub tensors: Vec<Figures>,
}

impl Report {
    /// The figures of `statistics`, by the tensors' kinds, the largest sums first.
    pub fn new(statistics: &Statistics) -> Self {
        let figures = statistics.entries.iter().filter_map(|(name, entry)| {
            Figures::new(name, entry, name_before(name).and_then(|name| statistics.entries.get(&name)))
        });
        let mut tensors: Vec<_> = figures.collect();
        tensors.sort_by(|a, b| a.part.cmp(&b.part).then(b.sum.total_cmp(&a.sum)));
        Self { tensors }
    }

    /// By layer: sum, outliers and similarity of its tensors, weighted by their columns.
    pub fn layers(&self) -> BTreeMap<u32, [f64; 3]> {
        let mut layers = BTreeMap::<u32, (f64, [f64; 3])>::new();
        for tensor in &self.tensors {
            let Some(layer) = tensor.layer else { continue };
            let (weight, sums) = layers.entry(layer).or_default();
            let columns = tensor.columns as f64;
            *weight += columns;
            for (sum, value) in sums.iter_mut().zip([tensor.sum, tensor.outliers, tensor.similarity]) {
                *sum += columns * value;
            }
        }
        layers.into_iter().map(|(layer, (weight, sums))| (layer, sums.map(|sum| sum / weight))).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>5} {:20} {:>12} {:>10} {:>12} {:>10} {:>10} {:>8} {:>7} {:>9} {:>8} {:>8} {:>8}",
            "Layer",
            "Tensor",
            "Σ(Act²)",
            "Min",
            "Max",
            "μ",
            "σ",
            "% Active",
            "N",
            "Entropy",
            "E (norm)",
            "ZD",
            "CosSim"
        )?;
        for t in &self.tensors {
            let layer = t.layer.map_or("-".to_owned(), |layer| layer.to_string());
            let most = (t.columns as f64).log2();
            writeln!(
                f,
                "{layer:>5} {:20} {:12.2} {:10.4} {:12.4} {:10.2} {:10.2} {:7.2}% {:7} {:9.4} {:7.2}% {:7.2}% {:8.4}",
                t.part,
                t.sum,
                t.min,
                t.max,
                t.mean,
                t.deviation,
                100.0 * t.active,
                t.columns,
                t.entropy,
                if most > 0.0 { 100.0 * t.entropy / most } else { 0.0 },
                100.0 * t.outliers,
                t.similarity
            )?;
        }
        writeln!(f, "\n{:>5} {:>14} {:>10} {:>8}", "Layer", "μΣ(Act²)", "μZD", "μCosSim")?;
        for (layer, [sum, outliers, similarity]) in self.layers() {
            writeln!(f, "{layer:5} {sum:14.2} {:9.4}% {similarity:8.4}", 100.0 * outliers)?;
        }
        Ok(())
    }
}

/// "blk.3.attn_qkv.weight" is (3, "attn_qkv").
fn split_name(name: &str) -> (Option<u32>, String) {
    let mut words = name.split('.');
    let layer = words.by_ref().find(|&word| word == "blk").and_then(|_| words.next()?.parse().ok());
    let words: Vec<&str> = name.split('.').collect();
    let before_weight = words.windows(2).find(|pair| pair[1] == "weight").map(|pair| pair[0]);
    (layer, before_weight.unwrap_or(name).to_owned())
}

/// The same tensor's name in the layer before.
fn name_before(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let before = layer.parse::<u32>().ok()?.checked_sub(1)?;
    Some(format!("blk.{before}.{rest}"))
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(split_name("blk.3.attn_qkv.weight"), (Some(3), "attn_qkv".into()));
        assert_eq!(split_name("output.weight"), (None, "output".into()));
        assert_eq!(split_name("odd"), (None, "odd".into()));
        assert_eq!(name_before("blk.3.a.weight").as_deref(), Some("blk.2.a.weight"));
        assert_eq!(name_before("blk.0.a.weight"), None);
    }

    #[test]
    fn figures_of_small_numbers() {
        let mut statistics = Statistics::default();
        statistics.add_rows("blk.0.a.weight", (1, 0), 4, &[1.0, 1.0, 1.0, 1.0]).unwrap();
        statistics.add_rows("blk.1.a.weight", (1, 0), 4, &[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]).unwrap();
        let report = Report::new(&statistics);
        let [even, single] = &report.tensors[..] else { panic!("two tensors") };
        assert_eq!((even.layer, even.sum, even.entropy, even.active), (Some(0), 4.0, 2.0, 1.0));
        assert_eq!((single.sum, single.max, single.entropy, single.active), (4.0, 4.0, 0.0, 0.25));
        assert_eq!((single.outliers, single.similarity), (0.25, 0.5));
        assert_eq!(report.layers()[&1], [4.0, 0.25, 0.5]);
        assert_eq!(report.to_string().lines().count(), 3 + 1 + 3);
    }
}
