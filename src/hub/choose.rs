//! Which of a repository's files are the model.

use super::Fault;
use crate::checkpoint::{self, is_text_file, is_weight_file};
use crate::gguf::{parse_part_name, part_name};

/// The files to download.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// A GGUF file, or all parts of a split one, the first part first.
    Gguf(Vec<String>),
    /// A checkpoint.
    Checkpoint(CheckpointFiles),
}

/// The files of a checkpoint, as conversion reads them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointFiles {
    /// Configuration, tokenizer, card, and the index of the weights.
    pub texts: Vec<String>,
    /// All that could be weights; the index, if there is one, says which are.
    pub weights: Vec<String>,
}

/// What is taken if no type is asked for, the first that there is (llama.cpp's order).
const PREFERRED: &[&str] = &["Q4_K_M", "Q8_0"];

/// Chooses among `files` for `phi run`: the GGUF file called `file`, or the one whose name carries `kind`, or the
/// checkpoint.
///
/// # Errors
/// [`Fault::NothingToRun`], which lists what there is.
pub fn model(files: &[String], kind: Option<&str>, file: Option<&str>) -> Result<Choice, Fault> {
    if let Some(name) = file {
        if !name.ends_with(".gguf") {
            return Err(Fault::NothingToRun(format!("{name:?} is no GGUF file, which --hf-file is for")));
        }
        return match files.iter().any(|known| known == name) {
            true => parts(files, name).map(Choice::Gguf),
            false => Err(no_gguf(files, &format!("no file {name:?}"))),
        };
    }
    let candidates: Vec<&String> = files.iter().filter(|name| is_model(name)).collect();
    let carrying = |kind: &str| candidates.iter().find(|name| carries(name, kind)).copied();
    let found = match kind {
        Some(kind) => carrying(kind),
        None => PREFERRED.iter().find_map(|kind| carrying(kind)).or(candidates.first().copied()),
    };
    match found {
        Some(name) => parts(files, name).map(Choice::Gguf),
        None => match (checkpoint(files), kind) {
            (Ok(found), _) => Ok(Choice::Checkpoint(found)),
            (Err(_), Some(kind)) if !candidates.is_empty() => {
                Err(no_gguf(files, &format!("no GGUF file of type {kind}")))
            }
            (Err(fault), _) => Err(fault),
        },
    }
}

/// Chooses the checkpoint among `files`, for `phi convert`.
pub fn checkpoint(files: &[String]) -> Result<CheckpointFiles, Fault> {
    let of = |is_meant: fn(&str) -> bool| files.iter().filter(|name| is_meant(name)).cloned().collect();
    let found = CheckpointFiles { texts: of(is_text_file), weights: of(is_weight_file) };
    if !found.weights.is_empty() && found.texts.iter().any(|name| name == "config.json") {
        return Ok(found);
    }
    let hint = match files.iter().any(|name| name.ends_with(".gguf")) {
        true => "no checkpoint, only GGUF files, which `phi run` and `phi quantize` take",
        false if files.iter().any(|name| name == checkpoint::PYTORCH) => {
            "only pytorch_model.bin weights, which are not supported; look for a safetensors version"
        }
        false => "neither GGUF files nor a checkpoint (config.json and .safetensors files)",
    };
    Err(Fault::NothingToRun(format!("it has {hint}")))
}

fn no_gguf(files: &[String], what: &str) -> Fault {
    const SHOWN: usize = 30;
    let mut names: Vec<&str> =
        files.iter().map(String::as_str).filter(|name| name.ends_with(".gguf")).collect();
    names.truncate(SHOWN);
    let there = if names.is_empty() { "no GGUF files at all".to_owned() } else { names.join(", ") };
    Fault::NothingToRun(format!("it has {what}; there are {there}"))
}

/// Whether a file is a model that can be run, its first part if it has several: not what goes with one.
fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let goes_with_a_model = ["mmproj", "imatrix", "mtp-", "eagle3-"].iter().any(|part| name.contains(part));
    name.ends_with(".gguf") && !goes_with_a_model && parse_part_name(name).is_none_or(|(_, no, _)| no == 1)
}

/// Whether a path names the type `kind`, as in "phi-Q4_K_M.gguf" or "Q4_K_M/phi-Q4_K_M-00001-of-00002.gguf".
fn carries(path: &str, kind: &str) -> bool {
    let (path, kind) = (path.to_ascii_lowercase(), kind.to_ascii_lowercase());
    path.match_indices(&kind).any(|(at, _)| {
        let before = path[..at].chars().next_back();
        // "BF16" is no "F16".
        before.is_none_or(|letter| !letter.is_alphanumeric())
            && path[at + kind.len()..].starts_with(['.', '-'])
    })
}

/// All parts of the model that `path` is, or is the first part of.
fn parts(files: &[String], path: &str) -> Result<Vec<String>, Fault> {
    let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    let Some((prefix, _, count)) = parse_part_name(name) else { return Ok(vec![path.to_owned()]) };
    let slash = if folder.is_empty() { "" } else { "/" };
    // The count is from the network: it ends at the first part that is not there.
    let names = (0..count).map(|no| format!("{folder}{slash}{}", part_name(prefix, no, count)));
    names
        .map(|name| match files.contains(&name) {
            true => Ok(name),
            false => Err(Fault::NothingToRun(format!("its split model lacks the part {name}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], kind: Option<&str>, file: Option<&str>) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|&name| name.to_owned()).collect();
        match model(&files, kind, file) {
            Ok(Choice::Gguf(names)) => Ok(names),
            Ok(Choice::Checkpoint(files)) => Ok([files.texts, files.weights].concat()),
            Err(fault) => Err(fault.to_string()),
        }
    }

    #[test]
    fn the_type_chooses_the_gguf_file() {
        let files =
            ["README.md", "a-BF16.gguf", "a-F16.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a.q8_0.gguf"];
        assert_eq!(chosen(&files, None, None).unwrap(), ["a-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, Some("q4_k_s"), None).unwrap(), ["a-Q4_K_S.gguf"]);
        assert_eq!(chosen(&files, Some("Q8_0"), None).unwrap(), ["a.q8_0.gguf"]);
        assert_eq!(chosen(&files, Some("F16"), None).unwrap(), ["a-F16.gguf"]);
        assert_eq!(chosen(&files, None, Some("a-BF16.gguf")).unwrap(), ["a-BF16.gguf"]);
        let error = chosen(&files, Some("Q2_K"), None).unwrap_err();
        assert!(error.contains("no GGUF file of type Q2_K; there are a-BF16.gguf, "), "{error}");
        assert!(chosen(&files, None, Some("b.gguf")).unwrap_err().contains("no file \"b.gguf\""));
        assert!(chosen(&files, None, Some("README.md")).unwrap_err().contains("no GGUF file"));
    }

    #[test]
    fn without_a_type_it_is_q8_0_or_the_first() {
        assert_eq!(chosen(&["m-F16.gguf", "m-Q8_0.gguf"], None, None).unwrap(), ["m-Q8_0.gguf"]);
        let files = ["mmproj-F16.gguf", "m-00002-of-00002.gguf", "m-fp16.gguf", "m-q4.gguf"];
        assert_eq!(chosen(&files, None, None).unwrap(), ["m-fp16.gguf"]);
    }

    #[test]
    fn a_split_model_is_all_of_its_parts() {
        let files = [
            "x/m-Q4_K_M-00001-of-00002.gguf",
            "x/m-Q4_K_M-00002-of-00002.gguf",
            "m-Q8_0-00001-of-09999.gguf",
        ];
        assert_eq!(chosen(&files, None, None).unwrap(), files[..2]);
        let error = chosen(&files, Some("Q8_0"), None).unwrap_err();
        assert!(error.contains("lacks the part m-Q8_0-00002-of-09999.gguf"), "{error}");
    }

    #[test]
    fn a_checkpoint_is_the_files_that_conversion_reads() {
        let files = [
            ".gitattributes",
            "README.md",
            "additional_chat_templates/tools.jinja",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00001.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "sample.py",
            "tokenizer.json",
        ];
        let expected = [
            "README.md",
            "additional_chat_templates/tools.jinja",
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00001.safetensors",
        ];
        assert_eq!(chosen(&files, Some("Q6_K"), None).unwrap(), expected);
        assert!(chosen(&["a.txt"], None, None).unwrap_err().contains("neither"));
        assert!(
            chosen(&["config.json", "pytorch_model.bin"], None, None)
                .unwrap_err()
                .contains("pytorch_model.bin")
        );
        let gguf = ["a.gguf".to_owned()];
        assert!(checkpoint(&gguf).unwrap_err().to_string().contains("only GGUF files"));
    }
}
