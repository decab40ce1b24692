//! How the prompt is to be read: as it is, as a question, or as the start of a conversation.

use crate::{Error, Result};

/// What a run does with the terminal and the chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The prompt goes to the model as it is.
    Raw,
    /// One question, through the chat template, and one answer.
    Once,
    /// Question after question, from the terminal or the lines of stdin.
    Conversation,
}

/// What is known when the mode is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// `-cnv`
    pub conversation: bool,
    /// `-no-cnv`
    pub raw: bool,
    /// `-st`
    pub single_turn: bool,
    /// There is a prompt from the command line, a file or stdin.
    pub prompt: bool,
    /// The prompt holds control tokens of the model.
    pub controlled: bool,
    /// The model has a chat template.
    pub template: bool,
    /// A person can type: stdin is a terminal.
    pub terminal: bool,
}

impl Circumstances {
    /// The mode; fails where the flags cannot be followed.
    pub fn mode(self) -> Result<Mode> {
        let usage = |text: &str| Err(Error::Usage(text.into()));
        if (self.conversation || self.single_turn) && !self.template {
            return usage("the model has no chat template to hold a conversation with; use -no-cnv");
        }
        if self.prompt {
            return Ok(match self {
                Self { raw: true, .. } => Mode::Raw,
                Self { controlled: true, conversation: false, .. } => Mode::Raw,
                Self { template: false, .. } => Mode::Raw,
                Self { conversation: true, single_turn: false, .. } => Mode::Conversation,
                _ => Mode::Once,
            });
        }
        match self {
            Self { raw: true, .. } | Self { template: false, .. } => {
                usage("there is no prompt: give one with -p, -f or on standard input")
            }
            Self { terminal: true, single_turn: true, .. } => Ok(Mode::Once),
            Self { terminal: true, .. } | Self { conversation: true, .. } => Ok(Mode::Conversation),
            _ => usage("there is no prompt: give one with -p, -f or on standard input"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let given = Circumstances { prompt: true, template: true, terminal: true, ..Default::default() };
        assert_eq!(given.mode().unwrap(), Mode::Once);
        assert_eq!(Circumstances { controlled: true, ..given }.mode().unwrap(), Mode::Raw);
        assert_eq!(Circumstances { template: false, ..given }.mode().unwrap(), Mode::Raw);
        assert_eq!(Circumstances { raw: true, ..given }.mode().unwrap(), Mode::Raw);
        assert_eq!(Circumstances { conversation: true, ..given }.mode().unwrap(), Mode::Conversation);
        let once = Circumstances { conversation: true, single_turn: true, ..given };
        assert_eq!(once.mode().unwrap(), Mode::Once);
        assert!(Circumstances { conversation: true, template: false, ..given }.mode().is_err());

        let none = Circumstances { template: true, terminal: true, ..Default::default() };
        assert_eq!(none.mode().unwrap(), Mode::Conversation);
        assert_eq!(Circumstances { single_turn: true, ..none }.mode().unwrap(), Mode::Once);
        assert!(Circumstances { raw: true, ..none }.mode().is_err());
        assert!(Circumstances { template: false, ..none }.mode().is_err());

        let piped = Circumstances { terminal: false, ..none };
        assert!(piped.mode().is_err(), "nobody to ask");
        assert_eq!(Circumstances { conversation: true, ..piped }.mode().unwrap(), Mode::Conversation);
    }
}
