//! A conversation: at the terminal with line editing and history, or a question a line from a pipe.

use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::session::Session;
use crate::engine::generate::Stop;
use crate::text::{ChatTemplate, Message};
use crate::{Error, Result};

const HELP: &str = "\
/clear   forget the conversation (also /reset)
/regen   answer the last question again
/undo    take the last question back
/help    this list
/exit    leave (also /quit, Ctrl-D, or Ctrl-C at the prompt)
A line that ends in \\ goes on in the next. Ctrl-C stops an answer.";

/// Questions and answers until the user leaves or stdin ends; `first` is the first question if given.
pub fn hold(
    session: &mut Session<'_>,
    template: &ChatTemplate,
    system: Option<String>,
    first: Option<String>,
    terminal: bool,
) -> anyhow::Result<()> {
    let mut chat = Chat { session, template, messages: Vec::new(), opening: 0, terminal };
    chat.messages.extend(system.map(|text| Message::new("system", text)));
    chat.opening = chat.messages.len();
    if terminal {
        at_terminal(&mut chat, first)?;
    } else if let Some(question) = first {
        // stdin is not read: nobody may ever write to it, or close it.
        chat.ask(question)?;
    } else {
        for line in io::stdin().lock().lines() {
            let line = line.map_err(|error| Error::io("read", "standard input", error))?;
            if !line.trim().is_empty() && chat.take(&line)? == Next::Leave {
                break;
            }
        }
    }
    Ok(chat.session.finish()?)
}

/// One question, typed at the terminal; `None` if the user leaves instead.
pub fn ask_once() -> anyhow::Result<Option<String>> {
    loop {
        match Lines::new(false)?.read()? {
            Some(line) if line.trim().is_empty() => {}
            line => return Ok(line),
        }
    }
}

fn at_terminal(chat: &mut Chat<'_, '_>, first: Option<String>) -> anyhow::Result<()> {
    let mut lines = Lines::new(chat.session.color())?;
    if let Some(question) = first {
        eprintln!("> {question}");
        chat.ask(question)?;
    } else {
        eprintln!("Ask away; /help lists what else can be typed.");
    }
    while let Some(line) = lines.read()? {
        if !line.trim().is_empty() && chat.take(&line)? == Next::Leave {
            break;
        }
    }
    lines.save();
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Leave,
}

/// What has been said so far.
struct Chat<'c, 's> {
    session: &'c mut Session<'s>,
    template: &'c ChatTemplate,
    messages: Vec<Message>,
    /// Messages that /clear leaves: the system prompt.
    opening: usize,
    /// A person is typing.
    terminal: bool,
}

impl Chat<'_, '_> {
    /// Follows a command or answers a question.
    fn take(&mut self, line: &str) -> anyhow::Result<Next> {
        match line.trim() {
            "/exit" | "/quit" => return Ok(Next::Leave),
            "/help" | "/?" => eprintln!("{HELP}"),
            "/clear" | "/reset" => {
                self.messages.truncate(self.opening);
                self.session.clear();
            }
            "/undo" => {
                if self.take_back().is_none() {
                    eprintln!("There is no question to take back.");
                }
            }
            "/regen" => match self.take_back() {
                Some(question) => self.ask(question)?,
                None => eprintln!("There is no question to answer again."),
            },
            word if is_unknown_command(word) => eprintln!("There is no {word}; /help lists what there is."),
            _ => self.ask(line.to_owned())?,
        }
        Ok(Next::Stay)
    }

    /// Answers `question` after all that was said before.
    fn ask(&mut self, question: String) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", question));
        match self.answer() {
            Ok(text) => self.messages.push(Message::new("assistant", text)),
            Err(error) => {
                self.messages.pop();
                // The conversation can go on where the question alone was too much.
                match error.downcast_ref() {
                    Some(Error::Usage(text)) => eprintln!("phi: {text}; /clear starts anew"),
                    _ => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        // Rendering everything anew keeps the template in charge; the KV cache still serves what has not changed.
        let ids = self.session.tokens(self.template, &self.messages)?;
        let answer = self.session.answer(&ids)?;
        if !answer.text.ends_with('\n') {
            println!();
        }
        if answer.stop == Stop::Interrupted {
            if !self.terminal {
                return Err(Error::Interrupted.into());
            }
            eprintln!("(stopped)");
        }
        Ok(answer.text)
    }

    /// Drops the last question and its answer; returns the question.
    fn take_back(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role == "user")?;
        self.messages.drain(at..).next().map(|message| message.content)
    }
}

/// A slash and one word that could only have been meant as a command.
fn is_unknown_command(line: &str) -> bool {
    line.strip_prefix('/').is_some_and(|word| {
        !word.is_empty() && word.len() <= 12 && word.chars().all(|letter| letter.is_ascii_lowercase())
    })
}

/// The line editor and its history file.
struct Lines {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    prompt: &'static str,
}

impl Lines {
    fn new(color: bool) -> Result<Self> {
        let mut editor = DefaultEditor::new().map_err(unusable)?;
        let history = history_file();
        if let Some(path) = &history {
            // No history yet is how everyone starts.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history, prompt: if color { "\x1b[1;32m>\x1b[0m " } else { "> " } })
    }

    /// The next question, a line that ends in a backslash joined with the next; `None` to leave.
    fn read(&mut self) -> Result<Option<String>> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { self.prompt } else { "… " };
            match self.editor.readline(prompt) {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(more) => {
                        text.push_str(more);
                        text.push('\n');
                    }
                    None => {
                        text.push_str(&line);
                        let _ = self.editor.add_history_entry(&text);
                        return Ok(Some(text));
                    }
                },
                Err(ReadlineError::Interrupted) if !text.is_empty() => text.clear(),
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => {
                    self.save();
                    return Ok(None);
                }
                Err(error) => return Err(unusable(error)),
            }
        }
    }

    /// Keeps the history for the next conversation. A folder that cannot be written to is no reason to fail.
    fn save(&mut self) {
        if let Some(path) = &self.history {
            if let Some(folder) = path.parent() {
                let _ = std::fs::create_dir_all(folder);
            }
            let _ = self.editor.save_history(path);
        }
    }
}

fn unusable(error: ReadlineError) -> Error {
    Error::io("read", "the terminal", io::Error::other(error))
}

/// Where the history is kept: the user's data folder.
fn history_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = if cfg!(windows) {
        variable("APPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")))
    };
    Some(folder?.join("phi").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_a_sentence_is_no_command() {
        assert!(is_unknown_command("/foo"));
        for question in ["/", "/usr/bin", "/etc is what?", "//", "hello /foo", "/Foo"] {
            assert!(!is_unknown_command(question), "{question}");
        }
    }
}
