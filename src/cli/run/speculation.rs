//! Who guesses, by the flags.

use super::args::Args;
use crate::Result;
use crate::cli::hub::HubArgs;
use crate::cli::model::{self, ModelArgs};
use crate::engine::{DraftModel, DraftRange, Drafter, Engine, EngineOptions, Lookup, Speculator};
use crate::text::Tokenizer;

/// What guesses for `engine`, if guesses are wanted; a draft model gets the target's `options`.
pub fn speculator(
    args: &Args,
    tokenizer: &Tokenizer,
    engine: &Engine,
    context: usize,
    options: EngineOptions,
) -> Result<Option<Speculator>> {
    let wanted = &args.speculation;
    let drafter: Box<dyn Drafter> = if wanted.lookup {
        Box::new(Lookup::new(wanted.lookup_ngram_min, wanted.lookup_ngram_max)?)
    } else if let Some(path) = &wanted.model_draft {
        let model =
            ModelArgs { model: Some(path.clone()), quantize: args.model.quantize, hub: HubArgs::default() };
        let gguf = model::open(&model)?;
        DraftModel::check_vocabulary(tokenizer, &model::tokenizer(&gguf)?)?;
        let draft = Engine::new(gguf, options)?;
        Box::new(DraftModel::new(draft, engine.vocab_size(), context, wanted.draft_p_min)?)
    } else {
        return Ok(None);
    };
    Ok(Some(Speculator::new(drafter, DraftRange { least: wanted.draft_min, most: wanted.draft_max })))
}
