//! What is printed of a result, as text and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::engine::score::Likelihood;
use crate::perplexity::divergence::{Divergence, Estimate, Sorted};
use crate::perplexity::tasks::Score;

/// A result in both forms.
pub struct Report {
    pub text: String,
    pub json: Value,
}

/// The perplexity of a text.
pub fn perplexity(total: &Likelihood, chunks: usize, context: u32) -> Report {
    let error = total.perplexity_error();
    let text =
        format!("Final estimate: PPL = {:.4} +/- {:.5}\n", total.perplexity(), error.unwrap_or(f64::NAN));
    let json = json!({
        "perplexity": total.perplexity(),
        "perplexity_error": error,
        "mean_nll": total.mean(),
        "mean_nll_error": total.mean_error(),
        "tokens_scored": total.count,
        "chunks": chunks,
        "ctx_size": context,
    });
    Report { text, json }
}

/// Titles over [`divergence_line`]s.
pub const DIVERGENCE_HEAD: &str = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p";

/// The figures so far, after `chunk` chunks.
pub fn divergence_line(chunk: usize, so_far: &Divergence) -> String {
    let (ppl, ratio, kl) = (so_far.perplexity(), so_far.log_ratio(), so_far.divergence());
    let (rms, top) = (so_far.root_mean_square(), so_far.same_top());
    format!(
        "{chunk:4}    {:9.4} ± {:9.4}    {:10.5} ± {:10.5}    {:10.5} ± {:10.5}    {:6.3} ± {:6.3} %    {:6.3} ± {:6.3} %",
        ppl.value,
        ppl.error,
        ratio.value,
        ratio.error,
        kl.value,
        kl.error,
        100.0 * rms.value,
        100.0 * rms.error,
        100.0 * top.value,
        100.0 * top.error
    )
}

const DIVERGENCE_LEVELS: [f64; 11] = [1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0];
const CHANGE_LEVELS: [f64; 13] = [1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0];

/// "Maximum", " 5.0%  " and so on.
fn level_name(level: f64) -> String {
    match level {
        1.0 => "Maximum".into(),
        0.5 => "Median ".into(),
        0.0 => "Minimum".into(),
        level => format!("{:4.1}%  ", 100.0 * level),
    }
}

fn levels_json(sorted: &Sorted, levels: &[f64]) -> Value {
    let pairs = levels.iter().map(|&level| (format!("p{}", 100.0 * level), json!(sorted.at(level))));
    Value::Object(pairs.collect())
}

/// All figures of a comparison.
pub fn divergence(result: &Divergence, chunks: usize, context: usize) -> Report {
    let (divergences, changes) = (result.divergences(), result.probability_changes());
    let json = json!({
        "perplexity": result.perplexity(),
        "perplexity_base": result.base_perplexity(),
        "correlation": result.correlation(),
        "ln_perplexity_ratio": result.log_ratio(),
        "perplexity_ratio": result.ratio(),
        "perplexity_difference": result.difference(),
        "kl_divergence": result.divergence(),
        "kl_divergence_percentiles": levels_json(&divergences, &DIVERGENCE_LEVELS),
        "delta_p": result.probability_change(),
        "delta_p_percentiles": levels_json(&changes, &CHANGE_LEVELS),
        "delta_p_rms": result.root_mean_square(),
        "same_top_p": result.same_top(),
        "tokens_scored": result.count(),
        "chunks": chunks,
        "ctx_size": context,
    });
    Report { text: divergence_text(result, &divergences, &changes), json }
}

fn divergence_text(result: &Divergence, divergences: &Sorted, changes: &Sorted) -> String {
    let mut text = String::from("====== Perplexity statistics ======\n");
    let line = |text: &mut String, name: &str, of: Estimate| {
        let _ = writeln!(text, "{name:30}: {:10.6} ± {:10.6}", of.value, of.error);
    };
    line(&mut text, "Mean PPL(Q)", result.perplexity());
    line(&mut text, "Mean PPL(base)", result.base_perplexity());
    let _ = writeln!(text, "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * result.correlation());
    line(&mut text, "Mean ln(PPL(Q)/PPL(base))", result.log_ratio());
    line(&mut text, "Mean PPL(Q)/PPL(base)", result.ratio());
    line(&mut text, "Mean PPL(Q)-PPL(base)", result.difference());
    text += "\n====== KL divergence statistics ======\n";
    let mean = result.divergence();
    let _ = writeln!(text, "Mean    KLD: {:10.6} ± {:10.6}", mean.value, mean.error);
    for level in DIVERGENCE_LEVELS {
        let _ = writeln!(text, "{} KLD: {:10.6}", level_name(level), divergences.at(level));
    }
    text += "\n====== Token probability statistics ======\n";
    let percent = |of: Estimate| format!("{:6.3} ± {:5.3} %", 100.0 * of.value, 100.0 * of.error);
    let _ = writeln!(text, "Mean    Δp: {}", percent(result.probability_change()));
    for level in CHANGE_LEVELS {
        let _ = writeln!(text, "{} Δp: {:6.3}%", level_name(level), 100.0 * changes.at(level));
    }
    let _ = writeln!(text, "RMS Δp    : {}", percent(result.root_mean_square()));
    let _ = writeln!(text, "Same top p: {}", percent(result.same_top()));
    text
}

/// The score of the task file that `name` names.
pub fn tasks(name: &str, score: Score) -> Report {
    let (chance, chance_error) = score.chance();
    let interval = score.interval();
    let mut text = format!(
        "{name}, {} tasks: {:.4} +/- {:.4} % [95 %: {:.4} to {:.4} %]\n",
        score.tasks,
        100.0 * score.share(),
        100.0 * score.error(),
        100.0 * interval.start,
        100.0 * interval.end
    );
    let _ = writeln!(text, "Random chance: {:.4} +/- {:.4} %", 100.0 * chance, 100.0 * chance_error);
    let json = json!({
        "tasks": score.tasks,
        "right": score.right,
        "accuracy": score.share(),
        "accuracy_error": score.error(),
        "interval_95": [interval.start, interval.end],
        "chance": chance,
    });
    Report { text, json }
}
