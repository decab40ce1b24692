//! `phi run`: answer a prompt, or hold a conversation.

use std::io::IsTerminal;
use std::time::Instant;

use crate::cli::{input, model, offload};
use crate::engine::EngineOptions;
use crate::engine::generate::Live;
use crate::text::{Message, Special, Tokenizer};

mod args;
mod conversation;
mod kept;
mod prompt;
mod session;
mod speculation;
mod timings;

pub use args::Args;
use prompt::{Circumstances, Mode};
use session::Session;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    if args.offload.listed() {
        return Ok(());
    }
    let texts = Texts::read(&args.prompt)?;
    let terminal = std::io::stdin().is_terminal();
    // Nothing in the model can change this verdict, so it need not be loaded first.
    texts.circumstances(&args.prompt, terminal, true, false).mode()?;

    let gguf = model::open(&args.model)?;
    let tokenizer = model::tokenizer(&gguf)?;
    let template = model::chat_template(&gguf)?;
    let plain = texts.prompt.as_deref().unwrap_or_default();
    let controlled = tokenizer.holds_control_tokens(plain);
    let mode = texts.circumstances(&args.prompt, terminal, template.is_some(), controlled).mode()?;

    let cache_types = (args.machine.cache_type_k.into(), args.machine.cache_type_v.into());
    let wanted = args.offload.plan(args.machine.ctx_size, cache_types)?;
    model::announce(args.machine.numa);
    let source = gguf.path().to_owned();
    let options = EngineOptions {
        threads: args.machine.threads(),
        threads_batch: args.machine.threads_batch(),
        numa: args.machine.numa.map(Into::into),
        cache_type_k: cache_types.0,
        cache_type_v: cache_types.1,
        batch: args.machine.batch(),
        offload: wanted.offload.clone(),
    };
    let engine = offload::engine(gguf, options.clone(), &wanted)?;
    let context = match args.machine.ctx_size {
        0 => engine.model_context(),
        asked => asked,
    };
    if args.machine.ctx_size > 0 {
        engine.check_context(context)?;
    }
    let sequence = engine.sequence(context)?;
    let speculator = speculation::speculator(&args, &tokenizer, &engine, context, options)?;
    let live = Live { engine: &engine, sequence };
    let mut session = Session::new(live, &tokenizer, source, &args, context, start.elapsed())?;
    if let Some(speculator) = speculator {
        session.speculate(speculator);
    }
    if let Some(path) = &args.speculation.replay {
        session.replay(&input::read_file(path)?)?;
    }
    if args.output.verbose {
        session.describe(mode);
    }

    let system = texts.system;
    match (mode, template) {
        (Mode::Raw, _) | (_, None) => {
            if system.is_some() {
                eprintln!("phi: the prompt runs as it is, so the system prompt is not used");
            }
            session.once(plain, &raw_tokens(plain, &tokenizer))
        }
        (Mode::Once, Some(template)) => {
            let question = match texts.prompt {
                Some(prompt) => prompt,
                None => match conversation::ask_once()? {
                    Some(line) => line,
                    None => return Ok(()),
                },
            };
            let messages = opening(system.as_deref(), &question);
            let ids = session.tokens(&template, &messages)?;
            session.once(&question, &ids)
        }
        (Mode::Conversation, Some(template)) => {
            conversation::hold(&mut session, &template, system, texts.prompt, terminal)
        }
    }
}

/// The texts that the command line, files and stdin give.
struct Texts {
    prompt: Option<String>,
    system: Option<String>,
}

impl Texts {
    fn read(args: &args::PromptArgs) -> anyhow::Result<Self> {
        let here = !args.no_escape;
        let prompt = match (&args.prompt, &args.file) {
            (Some(text), _) => Some(input::escaped(text, here)?.into_owned()),
            (None, Some(path)) => Some(input::escaped(&input::read_file(path)?, args.escape)?.into_owned()),
            // In a conversation the lines of stdin are the questions.
            (None, None) if args.conversation && !args.single_turn => None,
            (None, None) => match input::read_stdin()? {
                Some(text) => Some(input::escaped(&text, args.escape)?.into_owned()),
                None => None,
            },
        };
        let system = match (&args.system_prompt, &args.system_prompt_file) {
            (Some(text), _) => Some(input::escaped(text, here)?.into_owned()),
            (None, Some(path)) => Some(input::escaped(&input::read_file(path)?, args.escape)?.into_owned()),
            (None, None) => None,
        };
        Ok(Self { prompt: prompt.filter(|text| !text.is_empty()), system })
    }

    fn circumstances(
        &self,
        args: &args::PromptArgs,
        terminal: bool,
        template: bool,
        controlled: bool,
    ) -> Circumstances {
        Circumstances {
            conversation: args.conversation,
            raw: args.no_conversation,
            single_turn: args.single_turn,
            prompt: self.prompt.is_some(),
            controlled,
            template,
            terminal,
        }
    }
}

/// The messages that open a conversation.
fn opening(system: Option<&str>, question: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", question)]).collect()
}

/// The tokens of a prompt that is run as it is, after the beginning-of-sequence token where the model wants one.
fn raw_tokens(prompt: &str, tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = tokenizer.encode(prompt, Special::Parse);
    let bos = tokenizer.bos_to_add().filter(|bos| ids.first() != Some(bos));
    bos.into_iter().chain(ids).collect()
}
