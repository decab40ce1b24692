use super::*;
use crate::engine::{DraftRange, Drafter};

/// A model that says a script, whatever it is fed; token ids are indices into [`PIECES`].
struct Script {
    says: Vec<u32>,
    held: Vec<u32>,
    context: usize,
    prompt: usize,
    /// Lengths of the calls to `feed`.
    fed: Vec<usize>,
    /// Tokens that may be fed at once.
    stretch: usize,
    /// When it began: every pass takes equally long from there on.
    start: Instant,
}

impl Script {
    fn new(says: &[u32]) -> Self {
        Self {
            says: says.to_vec(),
            held: Vec::new(),
            context: 100,
            prompt: 0,
            fed: Vec::new(),
            stretch: 100,
            start: Instant::now(),
        }
    }
}

impl Decoder for Script {
    fn tokens(&self) -> &[u32] {
        &self.held
    }

    fn room(&self) -> usize {
        self.context - self.held.len()
    }

    fn truncate(&mut self, length: usize) {
        self.held.truncate(length);
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        _highest: Option<usize>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Logits> {
        assert!(tokens.len() <= self.room());
        self.fed.push(tokens.len());
        if tokens.len() > 1 || self.prompt == 0 {
            for (done, &token) in tokens.iter().enumerate() {
                self.held.push(token);
                if progress(done + 1).is_break() {
                    return Err(Error::Interrupted);
                }
            }
            self.prompt = self.held.len();
        } else {
            self.held.extend(tokens);
        }
        let mut logits = vec![0.0; PIECES.len()];
        logits[self.says[self.held.len() - self.prompt] as usize] = 1.0;
        Ok(Logits::All(logits))
    }

    fn bytes_per_token(&self) -> u64 {
        1000
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.fed.len() as u64)
    }

    fn feed_each(&mut self, tokens: &[u32], _highest: Option<usize>) -> Result<Vec<Logits>> {
        assert!(tokens.len() <= self.room());
        self.fed.push(tokens.len());
        let mut rows = Vec::new();
        for &token in tokens {
            self.held.push(token);
            let mut row = vec![0.0; PIECES.len()];
            // A wrong guess may lie beyond what the script says.
            let said = self.says.get(self.held.len() - self.prompt).copied().unwrap_or(END);
            row[said as usize] = 1.0;
            rows.push(Logits::All(row));
        }
        Ok(rows)
    }

    fn stretch(&self) -> usize {
        self.stretch
    }
}

/// Guesses that the script says this.
struct Prophet(Vec<u32>, usize);

impl Drafter for Prophet {
    fn begin(&mut self, text: &[u32]) -> Result<()> {
        self.1 = text.len();
        Ok(())
    }

    fn sort(&mut self, _text: &[u32]) -> Option<usize> {
        Some(0)
    }

    fn guess(&mut self, text: &[u32], most: usize, out: &mut Vec<u32>) -> Result<()> {
        let said = text.len() - self.1;
        out.extend(self.0.iter().skip(said).take(most));
        Ok(())
    }

    fn is_free(&self) -> bool {
        true
    }
}

/// Takes the highest logit and writes down what it accepts.
#[derive(Default)]
struct Greedy(Vec<u32>);

impl Chooser for Greedy {
    fn needs(&self) -> Option<usize> {
        None
    }

    fn choose(&mut self, logits: &mut Logits) -> Result<u32> {
        let Logits::All(logits) = logits else { panic!("the script gives all of them") };
        Ok((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32)
    }

    fn accept(&mut self, id: u32) {
        self.0.push(id);
    }
}

const END: u32 = 0;
const PIECES: &[&[u8]] =
    &[b"<|end|>", b"Hello", b" world", b"\nUs", b"er", b":", b"\xe2\x82", b"\xac", b"\nU", b"!", b"\xff"];

#[derive(Default)]
struct Pieces(Vec<u8>);

impl Speller for Pieces {
    fn is_end(&self, id: u32) -> bool {
        id == END
    }

    fn push(&mut self, id: u32) -> String {
        self.0.extend(PIECES[id as usize]);
        let whole = match std::str::from_utf8(&self.0) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = self.0.split_off(whole);
        String::from_utf8(std::mem::replace(&mut self.0, rest)).unwrap()
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

struct Run {
    answer: Answer,
    /// The pieces of text, in the order they came.
    texts: Vec<String>,
    accepted: Vec<u32>,
}

/// Answers `prompt`; the event handler breaks at the `interrupt`th event.
fn run(script: &mut Script, request: Request<'_>, interrupt: usize) -> Result<Run> {
    run_with(script, None, request, interrupt)
}

fn run_with(
    script: &mut Script,
    speculator: Option<&mut Speculator>,
    request: Request<'_>,
    interrupt: usize,
) -> Result<Run> {
    let mut texts = Vec::new();
    let mut chooser = Greedy::default();
    let mut events = 0;
    let mut pieces = Pieces::default();
    let answer = generate(script, &mut chooser, &mut pieces, speculator, &request, &mut |event| {
        if let Event::Text(text) = event {
            assert!(!text.is_empty());
            texts.push(text.to_owned());
        }
        events += 1;
        if events == interrupt { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    assert_eq!(texts.concat(), answer.text);
    Ok(Run { answer, texts, accepted: chooser.0 })
}

fn simple(says: &[u32], max_tokens: Option<usize>, stops: &[&str]) -> Run {
    let stops: Vec<_> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let request = Request { prompt: &[5, 5, 5], max_tokens, stops: &stops };
    run(&mut Script::new(says), request, 0).unwrap()
}

#[test]
fn a_recorded_answer_is_said_whatever_the_model_thinks_and_again_after_a_reset() {
    let mut replay = Replay::new(vec![1, 2], END);
    for _ in 0..2 {
        let (mut script, mut pieces) = (Script::new(&[2, 2, 2, 2]), Pieces::default());
        let request = Request { prompt: &[5], max_tokens: None, stops: &[] };
        let answer = generate(&mut script, &mut replay, &mut pieces, None, &request, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((answer.text.as_str(), answer.stop), ("Hello world", Stop::End(END)));
        replay.reset();
    }
}

#[test]
fn the_end_token_stops_and_is_not_printed() {
    let run = simple(&[1, 2, END, 1], None, &[]);
    assert_eq!(run.answer.text, "Hello world");
    assert_eq!(run.answer.stop, Stop::End(END));
    assert_eq!((run.answer.tokens, run.answer.steps, run.answer.bytes), (2, 2, 2000));
    assert_eq!(run.accepted, [5, 5, 5, 1, 2]);
}

#[test]
fn an_answer_may_be_empty() {
    let run = simple(&[END], None, &[]);
    assert_eq!((run.answer.text.as_str(), run.answer.tokens), ("", 0));
}

#[test]
fn max_tokens_counts_generated_tokens() {
    for (most, text) in [(0, ""), (1, "Hello"), (2, "Hello world")] {
        let run = simple(&[1, 2, 9, END], Some(most), &[]);
        assert_eq!((run.answer.text.as_str(), run.answer.stop), (text, Stop::Limit));
        assert_eq!(run.answer.steps, most.saturating_sub(1), "the last token need not be fed");
    }
}

#[test]
fn a_full_context_stops() {
    let mut script = Script::new(&[1, 2, 9, 9, 9]);
    script.context = 5;
    let request = Request { prompt: &[5, 5, 5], ..Request::default() };
    let run = run(&mut script, request, 0).unwrap();
    assert_eq!((run.answer.text.as_str(), run.answer.stop), ("Hello world!", Stop::ContextFull));
    assert_eq!(script.room(), 0);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let mut script = Script::new(&[1]);
    script.context = 2;
    let request = Request { prompt: &[5, 5, 5], ..Request::default() };
    let error = run(&mut script, request, 0).err().unwrap().to_string();
    assert!(error.contains("3 tokens") && error.contains("holds 2"), "{error}");
}

#[test]
fn an_empty_prompt_is_refused() {
    assert!(run(&mut Script::new(&[1]), Request::default(), 0).is_err());
}

#[test]
fn a_stop_string_is_found_across_tokens_and_held_back() {
    let run = simple(&[1, 3, 4, 5, 2, END], None, &["\nUser:"]);
    assert_eq!(run.texts, ["Hello"]);
    assert_eq!(run.answer.stop, Stop::String("\nUser:".into()));
}

#[test]
fn text_held_back_for_nothing_comes_out() {
    let run = simple(&[1, 3, 4, 2, END], None, &["\nUser:"]);
    assert_eq!(run.texts, ["Hello", "\nUser world"]);
    let run = simple(&[1, 8, END], None, &["\nUser:"]);
    assert_eq!(run.texts, ["Hello", "\nU"], "also when the answer ends there");
    let run = simple(&[1, 8, 3, 4, 5, END], None, &["\nUser:"]);
    assert_eq!(run.texts, ["Hello", "\nU"], "and when the stop string begins anew");
}

#[test]
fn the_stop_string_that_comes_first_wins() {
    let run = simple(&[1, 2, END], None, &["world", "lo", ""]);
    assert_eq!((run.answer.text.as_str(), run.answer.stop), ("Hel", Stop::String("lo".into())));
}

#[test]
fn characters_are_never_cut() {
    let run = simple(&[1, 6, 7, END], None, &[]);
    assert_eq!(run.texts, ["Hello", "€"]);
    let run = simple(&[1, 6, END], None, &[]);
    assert_eq!(run.answer.text, "Hello\u{fffd}", "half a character at the end becomes a replacement mark");
    let run = simple(&[6, 7, END], None, &["€"]);
    assert_eq!(run.answer.stop, Stop::String("€".into()));
}

#[test]
fn only_new_tokens_are_fed() {
    let mut script = Script::new(&[1, 2, END]);
    script.held = vec![5, 5, 4];
    let request = Request { prompt: &[5, 5, 3, 3], ..Request::default() };
    let first = run(&mut script, request, 0).unwrap();
    assert_eq!(first.answer.prompt_tokens, 2);
    assert_eq!(first.accepted, [3, 3, 1, 2]);
    assert_eq!(script.held, [5, 5, 3, 3, 1, 2]);

    script.fed.clear();
    script.prompt = 0;
    let request = Request { prompt: &[5, 5, 3], ..Request::default() };
    run(&mut script, request, 0).unwrap();
    assert_eq!(script.fed[0], 1, "the last token is fed again for its logits");
}

#[test]
fn the_handler_can_stop_the_prompt_and_the_answer() {
    let request = Request { prompt: &[5, 5, 5], ..Request::default() };
    let mut script = Script::new(&[1, 2, END]);
    let stopped = run(&mut script, request.clone(), 2).unwrap();
    assert_eq!((stopped.answer.stop, stopped.answer.prompt_tokens), (Stop::Interrupted, 2));
    assert_eq!(script.held.len(), 2);

    let mut script = Script::new(&[1, 2, END]);
    let stopped = run(&mut script, request, 5).unwrap();
    assert_eq!((stopped.answer.stop, stopped.answer.text.as_str()), (Stop::Interrupted, "Hello"));
}

/// All sorts of guesses at all sorts of answers: everything but the number of passes is as without.
#[test]
fn guesses_do_not_change_the_answer() {
    let long: Vec<u32> = (0..60).map(|i| 1 + (i * i + i / 7) % 9).chain([END]).collect();
    let user = ["\nUser:".to_owned()];
    /// What is said, the most tokens, stop strings, the context.
    type Case<'a> = (&'a [u32], Option<usize>, &'a [String], usize);
    let cases: [Case; 5] = [
        (&long, None, &[], 100),
        (&long, Some(33), &[], 100),
        (&long, None, &[], 40),
        (&[1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5, 2, 2, 2, END], None, &user, 100),
        (&[1, END, 5, 5, 5], None, &[], 100),
    ];
    let mut accepted = 0;
    for (says, max_tokens, stops, context) in cases {
        for every in [1, 2, 5, 1000] {
            for stretch in [1, 3, 100] {
                let request = || Request { prompt: &[5, 5, 5], max_tokens, stops };
                let mut plain = Script { context, ..Script::new(says) };
                let want = run(&mut plain, request(), 0).unwrap();
                // Wrong at every so manieth token.
                let guesses =
                    says.iter().enumerate().map(|(i, &id)| if i % every == every - 1 { 9 } else { id });
                let prophet = Box::new(Prophet(guesses.collect(), 0));
                let mut speculator = Speculator::new(prophet, DraftRange { least: 0, most: 7 });
                let mut script = Script { context, stretch, ..Script::new(says) };
                let got = run_with(&mut script, Some(&mut speculator), request(), 0).unwrap();
                let told = |run: &Run| (run.answer.text.clone(), run.answer.stop.clone(), run.answer.tokens);
                assert_eq!(told(&got), told(&want));
                assert_eq!((got.accepted, got.texts), (want.accepted, want.texts));
                assert_eq!(script.held, plain.held, "what the sequence holds");
                assert_eq!(got.answer.steps, want.answer.steps);
                assert!(script.fed.len() <= plain.fed.len());
                assert_eq!(got.answer.bytes, 1000 * (script.fed.len() as u64 - 1));
                assert!(script.fed[1..].iter().all(|&fed| fed <= stretch.min(8)));
                accepted += got.answer.accepted;
                assert!(got.answer.accepted <= got.answer.drafted);
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}
