//! `phi quantize`: the recipes against llama-quantize's choices, and the job from file to file.

use std::collections::BTreeMap;

use phi::gguf::{Metadata, TensorType, Value};
use phi::quant::recipe::{Architecture, FileType, Recipe, RecipeFault, Tensor, layer_of};
use serde_json::Value as Json;

/// The models and choices of tests/data/recipes.json, taken by scripts/recipe_goldens.py.
fn golden_models() -> Vec<Json> {
    let golden: Json = serde_json::from_str(include_str!("data/recipes.json")).unwrap();
    golden["models"].as_array().unwrap().clone()
}

fn metadata_of(model: &Json) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in model["metadata"].as_object().unwrap() {
        let value = match value {
            Json::String(text) => Value::String(text.clone()),
            Json::Number(number) if number.is_u64() => Value::U32(number.as_u64().unwrap() as u32),
            other => Value::F32(other.as_f64().unwrap() as f32),
        };
        metadata.set(key, value);
    }
    metadata
}

/// The model's tensors, "blk.N" once a layer, in the order llama-quantize puts them in.
fn tensors_of(model: &Json, layers: u32) -> Vec<(String, Vec<u64>)> {
    let mut tensors = Vec::new();
    for tensor in model["tensors"].as_array().unwrap() {
        let (name, shape) = (tensor[0].as_str().unwrap(), &tensor[1]);
        let shape: Vec<u64> = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let layers = if name.contains("blk.N") { layers } else { 1 };
        tensors.extend((0..layers).map(|n| (name.replace("blk.N", &format!("blk.{n}")), shape.clone())));
    }
    tensors.sort_by_key(|(name, _)| (layer_of(name), name.clone()));
    tensors
}

/// What a golden run says of each tensor: type by name. Tensors not in it stay F32.
fn expand(run: &Json) -> BTreeMap<String, TensorType> {
    let mut types = BTreeMap::new();
    for (name, kinds) in run.as_object().unwrap() {
        let mut layer = 0;
        for group in kinds.as_str().unwrap().split(' ') {
            let (kind, count) = group.split_once('*').unwrap_or((group, "1"));
            for _ in 0..count.parse().unwrap() {
                let name = name.replace("blk.N", &format!("blk.{layer}"));
                types.insert(name, TensorType::from_name(kind).unwrap());
                layer += 1;
            }
        }
    }
    types
}

#[test]
fn every_recipe_chooses_what_llama_quantize_chooses() {
    for model in golden_models() {
        let architecture = Architecture::from_metadata(&metadata_of(&model)).unwrap();
        let tensors = tensors_of(&model, architecture.layers);
        let subjects: Vec<Tensor> =
            tensors.iter().map(|(name, shape)| Tensor { name, shape, kind: TensorType::F32 }).collect();
        let runs = model["runs"].as_object().unwrap();
        for (run, golden) in runs {
            let (file_type, imatrix) = run.strip_suffix(".im").map_or((&**run, false), |name| (name, true));
            let file_type = FileType::from_name(file_type).unwrap();
            let recipe = Recipe { imatrix, ..Recipe::new(file_type) };
            let plan = recipe.plan(&architecture, &subjects);

            let golden = golden.as_str().map_or(golden, |same| &runs[same]);
            if golden.is_null() {
                assert!(matches!(plan, Err(RecipeFault::NoFallback { .. })), "{}: {run}", model["name"]);
                continue;
            }
            let golden = expand(golden);
            for (tensor, choice) in subjects.iter().zip(plan.unwrap()) {
                let expected = golden.get(tensor.name).copied().unwrap_or(TensorType::F32);
                assert_eq!(choice.kind, expected, "{}: {run}: {}", model["name"], tensor.name);
            }
        }
    }
}
