//! Multiple choice: which continuation does the model think the most probable?
//!
//! The file formats and the way of scoring are llama-perplexity's: HellaSwag (six lines a task), Winogrande (CSV) and
//! its binary one for ARC, MMLU, TruthfulQA and the like.

use std::ops::{ControlFlow, Range};

use super::random::Twister;
use super::{Progress, Setup};
use crate::engine::evaluate::{Evaluator, Passage, caches};
use crate::engine::score::log_probability;
use crate::{Error, Result};

/// Tasks that are run side by side, at most: each has a KV cache.
const TOGETHER: usize = 8;
/// Answers of a task, at most.
const MOST_ANSWERS: u32 = 100;

/// What can be wrong with a file of tasks. Lines and tasks are counted from 1.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error("there are no tasks in it")]
    Empty,
    #[error(
        "it has {0} lines; HellaSwag files have six a task: context, number of the right ending, four endings"
    )]
    Lines(usize),
    #[error("line {line} is {found:?}; the number of the right ending, 0 to 3, was expected")]
    Ending { line: usize, found: String },
    #[error("line {line} is no Winogrande task: {what} (number,sentence with _,choice 1,choice 2,answer)")]
    Winogrande { line: usize, what: &'static str },
    #[error("it ends within {0}; tasks are expected in llama-perplexity's binary format")]
    Truncated(&'static str),
    #[error("task {task} has {what}")]
    Task { task: usize, what: &'static str },
    #[error("a text in it is not valid UTF-8")]
    Text,
}

/// A text that a task goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The whole text, context included.
    pub text: String,
    /// The beginning that is context, where that is told from the text; otherwise it is what all choices share.
    pub context: Option<String>,
    pub is_right: bool,
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub choices: Vec<Choice>,
}

/// The tasks of a HellaSwag file, at most `most`, in the order in which llama-perplexity takes them.
pub fn parse_hellaswag(text: &str, most: usize) -> Result<Vec<Task>, Fault> {
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return Err(Fault::Empty);
    }
    let (groups, []) = lines.as_chunks::<6>() else { return Err(Fault::Lines(lines.len())) };
    let mut left: Vec<usize> = (0..groups.len()).collect();
    let mut random = Twister::new(1);
    let count = if most == 0 { groups.len() } else { most.min(groups.len()) };
    let take = |_| {
        let number = left.remove(random.below(left.len() as u32));
        let [context, right, endings @ ..] = &groups[number];
        let fault = || Fault::Ending { line: 6 * number + 2, found: (*right).to_owned() };
        let right = right.trim().parse::<usize>().ok().filter(|right| *right < 4).ok_or_else(fault)?;
        let choice = |(ending, text): (usize, &&str)| Choice {
            text: format!("{context} {text}"),
            context: None,
            is_right: ending == right,
        };
        Ok(Task { choices: endings.iter().enumerate().map(choice).collect() })
    };
    (0..count).map(take).collect()
}

/// The tasks of a Winogrande file, `most` of them chosen at random (all, if 0).
pub fn parse_winogrande(text: &str, most: usize) -> Result<Vec<Task>, Fault> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let tasks = lines.map(|(number, line)| {
        winogrande_task(line).map_err(|what| Fault::Winogrande { line: number + 1, what })
    });
    let tasks = tasks.collect::<Result<Vec<Task>, Fault>>()?;
    if tasks.is_empty() {
        return Err(Fault::Empty);
    }
    Ok(choose(tasks, most))
}

fn winogrande_task(line: &str) -> Result<Task, &'static str> {
    let mut quoted = false;
    let commas: Vec<usize> = line
        .char_indices()
        .filter(|&(_, letter)| {
            quoted ^= letter == '"';
            letter == ',' && !quoted
        })
        .map(|(at, _)| at)
        .take(4)
        .collect();
    let [first, second, third, fourth] = commas[..] else { return Err("it has less than four commas") };
    let sentence = &line[first + 1..second];
    let sentence = sentence.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(sentence);
    let (before, after) = sentence.split_once('_').ok_or("the sentence has no _")?;
    let answer = line[fourth + 1..].trim().parse::<usize>().ok().filter(|answer| (1..=2).contains(answer));
    let answer = answer.ok_or("the answer is not 1 or 2")?;
    let choice = |(number, word): (usize, &str)| Choice {
        text: format!("{before}{word}{after}"),
        context: Some(format!("{before}{word}")),
        is_right: number + 1 == answer,
    };
    let words = [&line[second + 1..third], &line[third + 1..fourth]];
    Ok(Task { choices: words.into_iter().enumerate().map(choice).collect() })
}

/// The tasks of a binary multiple-choice file, `most` of them chosen at random (all, if 0).
///
/// Little-endian 32-bit numbers: the tasks' count and, for each, where it begins in the file. A task is its question and
/// twice a list of answers, of which the first counts: their number, their texts, a 1 for each right and a 0 for each wrong
/// one. A text is its length in bytes and the bytes.
pub fn parse_multiple_choice(bytes: &[u8], most: usize) -> Result<Vec<Task>, Fault> {
    let mut reader = Reader { bytes };
    let count = reader.number("the number of tasks")? as usize;
    if count == 0 {
        return Err(Fault::Empty);
    }
    let starts: &[[u8; 4]] = reader.take(count.saturating_mul(4), "the places of the tasks")?.as_chunks().0;
    let tasks = (0..count).collect();
    let chosen = choose(tasks, most);
    let read = |number: usize| {
        let start = starts.get(number).map_or(0, |start| u32::from_le_bytes(*start) as usize);
        let mut reader = Reader { bytes: bytes.get(start..).unwrap_or_default() };
        reader.task(number + 1)
    };
    chosen.into_iter().map(read).collect()
}

/// `most` of `all`, as llama-perplexity draws them; all if there are no more, or `most` is 0.
fn choose<T>(all: Vec<T>, most: usize) -> Vec<T> {
    if most == 0 || most >= all.len() {
        return all;
    }
    let mut random = Twister::new(1);
    let mut left: Vec<Option<T>> = all.into_iter().map(Some).collect();
    let draw = |_| {
        let at = random.scaled(left.len());
        left.swap_remove(at)
    };
    (0..most).filter_map(draw).collect()
}

/// What is left of a binary file.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Fault::Truncated(what))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self, what: &'static str) -> Result<u32, Fault> {
        let bytes = self.take(4, what)?;
        Ok(bytes.try_into().map_or(0, u32::from_le_bytes))
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, Fault> {
        let length = self.number(what)? as usize;
        std::str::from_utf8(self.take(length, what)?).map_err(|_| Fault::Text)
    }

    /// Task number `task`, for messages.
    fn task(&mut self, task: usize) -> Result<Task, Fault> {
        let fault = |what| Fault::Task { task, what };
        let question = self.text("a question")?;
        let count = self.number("the number of answers")?;
        if question.is_empty() || !(1..=MOST_ANSWERS).contains(&count) {
            return Err(fault("no question, or not 1 to 100 answers"));
        }
        let answers: Vec<&str> = (0..count).map(|_| self.text("an answer")).collect::<Result<_, _>>()?;
        if answers.contains(&"") {
            return Err(fault("an empty answer"));
        }
        let choice = |answer: &str, label: u32| Choice {
            text: format!("{question} {answer}"),
            context: None,
            is_right: label == 1,
        };
        let labels =
            (0..count).map(|_| self.number("the answers' labels")).collect::<Result<Vec<u32>, _>>()?;
        Ok(Task {
            choices: answers.into_iter().zip(labels).map(|(answer, label)| choice(answer, label)).collect(),
        })
    }
}

/// A task as tokens.
struct Tokenized {
    /// The tokens that all choices begin with; at least one, and each choice has more.
    shared: usize,
    choices: Vec<Vec<u32>>,
    /// The tokens of each choice that are scored.
    scored: Vec<Range<usize>>,
}

impl Tokenized {
    fn new(task: &Task, number: usize, tokenize: &dyn Fn(&str) -> Vec<u32>) -> Result<Self> {
        let choices: Vec<Vec<u32>> = task.choices.iter().map(|choice| tokenize(&choice.text)).collect();
        let shortest = choices.iter().map(Vec::len).min().unwrap_or(0);
        let same = |at: &usize| choices.iter().all(|ids| ids.get(*at) == choices[0].get(*at));
        // Of a choice that another one begins with, the last token still is to be scored.
        let shared = (0..shortest.saturating_sub(1)).take_while(same).count();
        if shared == 0 {
            return Err(Error::Usage(format!(
                "the choices of task {number} have not even their first token in common, so nothing can be predicted"
            )));
        }
        let contexts: Vec<Option<usize>> =
            task.choices.iter().map(|choice| Some(tokenize(choice.context.as_deref()?).len())).collect();
        let scored = scored_ranges(shared, &choices, &contexts);
        Ok(Self { shared, choices, scored })
    }

    fn longest(&self) -> usize {
        self.choices.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// What is scored: all that follows the shared tokens, or, where the contexts are known and enough follows them, what
/// follows those, in which the last token does not count.
fn scored_ranges(shared: usize, choices: &[Vec<u32>], contexts: &[Option<usize>]) -> Vec<Range<usize>> {
    const TRAILING: usize = 3;
    let skip_choice = choices.iter().all(|ids| ids.len() - shared > TRAILING);
    let range = |(ids, context): (&Vec<u32>, &Option<usize>)| match *context {
        None => shared..ids.len(),
        Some(context) => {
            let start = if skip_choice { context.clamp(shared, ids.len() - 1) } else { shared };
            let end = if ids.len() - start > 1 { ids.len() - 1 } else { ids.len() };
            start..end
        }
    };
    choices.iter().zip(contexts).map(range).collect()
}

/// How many tasks were answered rightly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub right: usize,
    pub tasks: usize,
    /// Choices of all tasks together.
    pub choices: usize,
}

impl Score {
    /// Share of right answers.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.tasks as f64
    }

    /// Its standard error.
    pub fn error(&self) -> f64 {
        standard_error(self.share(), self.tasks)
    }

    /// The share that guessing would give, and its standard error.
    pub fn chance(&self) -> (f64, f64) {
        let share = self.tasks as f64 / self.choices as f64;
        (share, standard_error(share, self.tasks))
    }

    /// The 95 % confidence interval of [`Self::share`] (Wilson 1927).
    pub fn interval(&self) -> Range<f64> {
        const Z: f64 = 1.959_963_984_54;
        let (n, share) = (self.tasks as f64, self.share());
        let z = Z * Z / n;
        let half = z * (n * (4.0 * share * (1.0 - share) + z)).sqrt() / (Z + Z);
        (share + z * 0.5 - half) / (1.0 + z)..(share + z * 0.5 + half) / (1.0 + z)
    }
}

fn standard_error(share: f64, count: usize) -> f64 {
    (share * (1.0 - share) / (count.max(2) - 1) as f64).sqrt()
}

/// Has the model choose in every task: the choice whose scored tokens have the highest mean log probability.
///
/// # Errors
/// A task whose choices share no beginning, or that is longer than `context`; too little memory;
/// [`Error::Interrupted`] if `progress` breaks.
pub fn run(
    setup: &Setup<'_>,
    tasks: &[Task],
    context: usize,
    tokenize: &dyn Fn(&str) -> Vec<u32>,
    progress: &mut dyn FnMut(Progress<Score>) -> ControlFlow<()>,
) -> Result<Score> {
    let numbered = tasks.iter().enumerate();
    let tokenized = numbered.map(|(number, task)| Tokenized::new(task, number + 1, tokenize));
    let tokenized = tokenized.collect::<Result<Vec<Tokenized>>>()?;
    tokenized.iter().try_for_each(|task| task.choices.iter().try_for_each(|ids| setup.check(ids)))?;
    let longest = tokenized.iter().map(Tokenized::longest).max().unwrap_or(0);
    if longest > context {
        return Err(Error::Usage(format!(
            "a task has {longest} tokens, more than the context of {context}; make it larger with --ctx-size"
        )));
    }
    let together = (setup.batch / longest.max(1)).clamp(1, TOGETHER).min(tasks.len().max(1));
    let caches = caches(setup.backend, setup.model, setup.cache_types, together, longest)?;
    let mut evaluator = Evaluator::new(setup.model, setup.backend, caches, setup.batch);
    let mut score = Score::default();
    for (tasks, tokenized) in tasks.chunks(together).zip(tokenized.chunks(together)) {
        let means = evaluate(&mut evaluator, tokenized)?;
        for (task, means) in tasks.iter().zip(means) {
            let best = (0..means.len()).rev().max_by(|a, b| means[*a].total_cmp(&means[*b])).unwrap_or(0);
            score.right += usize::from(task.choices[best].is_right);
            score.tasks += 1;
            score.choices += task.choices.len();
            if progress(Progress { done: score.tasks, so_far: score }).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(score)
}

/// The mean log probabilities of the scored tokens, by task and choice. What the choices share is computed once.
fn evaluate<B: crate::backend::Backend>(
    evaluator: &mut Evaluator<'_, B>,
    tasks: &[Tokenized],
) -> Result<Vec<Vec<f64>>> {
    let vocabulary = evaluator.model().vocabulary();
    let mut sums: Vec<Vec<f64>> = tasks.iter().map(|task| vec![0.0; task.choices.len()]).collect();
    let beginnings: Vec<Passage<'_>> = tasks
        .iter()
        .map(|task| Passage {
            ids: &task.choices[0][..task.shared],
            position: 0,
            length: task.longest(),
            outputs: task.shared - 1..task.shared,
        })
        .collect();
    evaluator.run(&beginnings, &mut |number, _, logits| {
        let task = &tasks[number];
        for (sum, (ids, scored)) in sums[number].iter_mut().zip(task.choices.iter().zip(&task.scored)) {
            if scored.contains(&task.shared) {
                *sum += log_probability(logits, ids[task.shared]);
            }
        }
        Ok(())
    })?;
    let most = tasks.iter().map(|task| task.choices.len()).max().unwrap_or(0);
    for choice in 0..most {
        // A task without so many choices, or none of whose tokens are left to predict, has an empty passage.
        let passage = |task| continuation(task, choice);
        let passages: Vec<Passage<'_>> = tasks.iter().map(passage).collect();
        evaluator.run(&passages, &mut |number, tokens, logits| {
            let task = &tasks[number];
            for (token, logits) in tokens.zip(logits.chunks_exact(vocabulary)) {
                let next = task.shared + token + 1;
                if task.scored[choice].contains(&next) {
                    sums[number][choice] += log_probability(logits, task.choices[choice][next]);
                }
            }
            Ok(())
        })?;
    }
    for (sums, task) in sums.iter_mut().zip(tasks) {
        sums.iter_mut().zip(&task.scored).for_each(|(sum, scored)| *sum /= scored.len() as f64);
    }
    Ok(sums)
}

/// The tokens of a choice after the shared ones, but the last, after which nothing comes.
fn continuation(task: &Tokenized, choice: usize) -> Passage<'_> {
    let ids = task.choices.get(choice).map(Vec::as_slice).unwrap_or_default();
    let ids = ids.get(task.shared..ids.len().saturating_sub(1)).unwrap_or_default();
    Passage { ids, position: task.shared, length: task.longest(), outputs: 0..ids.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_files() {
        let text = "c0\n1\na\nb\nc\nd\nc1\n0\ne\nf\ng\nh\n";
        let tasks = parse_hellaswag(text, 400).unwrap();
        assert_eq!(tasks.len(), 2);
        let first = tasks.iter().find(|task| task.choices[0].text == "c0 a").unwrap();
        let right: Vec<bool> = first.choices.iter().map(|choice| choice.is_right).collect();
        assert_eq!(right, [false, true, false, false]);
        assert_eq!(parse_hellaswag(text, 1).unwrap().len(), 1);
        assert_eq!(parse_hellaswag("", 1), Err(Fault::Empty));
        assert_eq!(parse_hellaswag("a\nb\n", 1), Err(Fault::Lines(2)));
        let fault = parse_hellaswag("c\n4\na\nb\nc\nd\n", 1).unwrap_err();
        assert_eq!(fault, Fault::Ending { line: 2, found: "4".into() });
    }

    #[test]
    fn winogrande_files() {
        let tasks =
            parse_winogrande("0,Ann asked Eve so _ was told.,Ann,Eve,1\n1,\"A, b _ c\",x,y,2", 0).unwrap();
        assert_eq!(tasks[0].choices[0].text, "Ann asked Eve so Ann was told.");
        assert_eq!(tasks[0].choices[1].context.as_deref(), Some("Ann asked Eve so Eve"));
        assert!(tasks[0].choices[0].is_right && tasks[1].choices[1].is_right);
        assert_eq!(tasks[1].choices[0].text, "A, b x c");
        for line in ["a,b_,c", "0,none,a,b,1", "0,_,a,b,3", "0,_,a,b,"] {
            assert!(matches!(parse_winogrande(line, 0), Err(Fault::Winogrande { line: 1, .. })), "{line}");
        }
        assert_eq!(parse_winogrande("\n", 0), Err(Fault::Empty));
    }

    /// A file of tasks: question, answers, number of the right one.
    fn binary(tasks: &[(&str, &[&str], usize)]) -> Vec<u8> {
        let number = |n: usize| (n as u32).to_le_bytes();
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend(number(text.len()));
            out.extend(text.as_bytes());
        };
        let (mut places, mut body) = (Vec::new(), Vec::new());
        for (question, answers, right) in tasks {
            places.extend(number(4 + 4 * tasks.len() + body.len()));
            text(&mut body, question);
            body.extend(number(answers.len()));
            answers.iter().for_each(|answer| text(&mut body, answer));
            (0..answers.len()).for_each(|n| body.extend(number(usize::from(n == *right))));
            body.extend(number(0));
        }
        [number(tasks.len()).to_vec(), places, body].concat()
    }

    #[test]
    fn binary_files() {
        let bytes = binary(&[("q", &["a", "b"], 1), ("r", &["c"], 0)]);
        let tasks = parse_multiple_choice(&bytes, 0).unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!(tasks[0].choices[1], Choice { text: "q b".into(), context: None, is_right: true });
        assert!(!tasks[0].choices[0].is_right);
        for end in 0..bytes.len() - 4 {
            assert!(parse_multiple_choice(&bytes[..end], 0).is_err(), "{end}");
        }
        assert_eq!(parse_multiple_choice(&[0; 4], 0), Err(Fault::Empty));
        assert!(matches!(parse_multiple_choice(&[255; 8], 0), Err(Fault::Truncated(_))));
        let empty = binary(&[("q", &[""], 0)]);
        assert!(matches!(parse_multiple_choice(&empty, 0), Err(Fault::Task { task: 1, .. })));
        let none = binary(&[("q", &[], 0)]);
        assert!(matches!(parse_multiple_choice(&none, 0), Err(Fault::Task { task: 1, .. })));
    }

    #[test]
    fn the_shared_beginning_leaves_every_choice_a_token() {
        let words = |text: &str| text.split(' ').map(|word| word.len() as u32).collect::<Vec<_>>();
        let choice = |text: &str| Choice { text: text.into(), context: None, is_right: false };
        let task = Task { choices: vec![choice("a bb ccc"), choice("a bb")] };
        let tokenized = Tokenized::new(&task, 1, &words).unwrap();
        assert_eq!((tokenized.shared, &tokenized.scored[..]), (1, &[1..3, 1..2][..]));
        let task = Task { choices: vec![choice("a b"), choice("bb b")] };
        assert!(Tokenized::new(&task, 1, &words).is_err());
    }

    #[test]
    fn after_a_known_context_only_what_follows_is_scored() {
        let ids = |n: usize| vec![0; n];
        let contexts = [Some(4), Some(5)];
        assert_eq!(scored_ranges(3, &[ids(9), ids(10)], &contexts), [4..8, 5..9]);
        assert_eq!(scored_ranges(3, &[ids(5), ids(10)], &contexts), [3..4, 3..9], "too little follows");
    }

    #[test]
    fn shares_and_their_errors() {
        let score = Score { right: 60, tasks: 100, choices: 400 };
        let interval = score.interval();
        assert!((interval.start - 0.5020).abs() < 1e-4 && (interval.end - 0.6906).abs() < 1e-4);
        assert!((score.error() - 0.0492).abs() < 1e-4);
        assert_eq!(score.chance().0, 0.25);
    }
}
