//! Lines of mixed text, and the comparison with the `tokenizers` package, which defines what the tokens are.

#![allow(dead_code, reason = "each test file uses a part")]

use phi::text::{Special, Tokenizer};
use serde_json::Value as Json;

pub fn reference(json: &str) -> tokenizers::Tokenizer {
    json.parse().expect("a tokenizer.json")
}

/// A small generator: numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    pub fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const WORDS: &[&str] = &[
    "the",
    "Phi",
    "model",
    "quantization",
    ".NET",
    "don't",
    "it's",
    "café",
    "naïve",
    "Zürich",
    "İstanbul",
    "x=1;",
    "fn",
    "main()",
    "{",
    "}",
    "println!(\"hi\")",
    "//",
    "#!",
    "3.14159",
    "0x1F",
    "1,000,000",
    "https://example.org/a?b=c#d",
    "snake_case",
    "camelCaseHTMLPage",
    "DON'T",
    "we'LL",
    "'ſ'S",
    "٣٤٥٦٧",
    "a/b//c\n",
    "!!!\n\n",
    "½²Ⅻ",
    "Ǆungla",
    "日本語",
    "привет",
    "العربية",
    "हिन्दी",
    "한국어",
    "ไทย",
    "קוֹל",
    "ქართული",
    "ⵣ",
    "𝔘𝔫𝔦",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];
const CONTROL: &[&str] = &[
    "<|user|>",
    "<|end|>",
    "<|assistant|>",
    "<|system|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<|placeholder1|>",
    "<|user|",
    "|end|>",
    "<|",
    "<<|end|>",
    "<|end|><|end",
    "<0x0A>",
    "<0xE2>",
    "▁",
    "▁▁the",
    "[PAD31]",
    "<|USER|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|im_start|>user<|im_sep|>",
];
const SPACES: &[&str] = &[
    " ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "\t\t", "\u{a0}", "\u{2003}", "\u{3000}", "\u{200b}",
    " \n ", "\n  \n", "\t \t", "\u{feff}", "\u{b}", "\u{c}", "\u{1c}", "\u{85}", "\u{2028}", "\0", "\u{1f}",
    "\u{7f}",
];
const EMOJI: &[&str] = &[
    "🚀",
    "👩\u{200d}👩\u{200d}👧",
    "🏳\u{fe0f}\u{200d}🌈",
    "👍🏽",
    "🇩🇪",
    "❤\u{fe0f}",
    "e\u{301}",
    "\u{301}",
    "क्षि",
    "\u{e000}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{d7ff}",
    "\u{fffe}",
];
const SCRIPTS: &[(u32, u32)] = &[
    (0x20, 0x7e),
    (0xa0, 0x24f),
    (0x300, 0x36f),
    (0x370, 0x4ff),
    (0x590, 0x6ff),
    (0x900, 0x97f),
    (0xe00, 0xe7f),
    (0x1780, 0x17ff),
    (0x2000, 0x27bf),
    (0x3040, 0x30ff),
    (0x4e00, 0x9fff),
    (0xac00, 0xd7a3),
    (0xe000, 0xe0ff),
    (0x10000, 0x103ff),
    (0x1f300, 0x1faff),
];

pub fn line(random: &mut Random, vocabulary: &[&str]) -> String {
    let mut text = String::new();
    let glue = random.of(&["", "", " ", " ", "\n"]);
    for _ in 0..random.below(20) {
        match random.below(12) {
            0..=3 => text.push_str(random.of(WORDS)),
            4 | 5 => text.push_str(random.of(SPACES)),
            6 | 7 => text.push_str(random.of(CONTROL)),
            8 => text.push_str(random.of(EMOJI)),
            9 => text.push_str(random.of(vocabulary)),
            10 => {
                let (from, to) = SCRIPTS[random.below(SCRIPTS.len())];
                let count = 1 + random.below(10);
                text.extend(
                    (0..count)
                        .filter_map(|_| char::from_u32(from + random.below((to - from) as usize) as u32)),
                );
            }
            _ => {
                let word = random.of(&["ab", "the", "x", "=", "日", "1", "▁", "\n"]);
                text.push_str(&word.repeat(1 + random.below(120)));
            }
        }
        text.push_str(glue);
    }
    text
}

pub fn lines(json: &str, count: usize) -> Vec<String> {
    let file: Json = serde_json::from_str(json).unwrap();
    let vocabulary: Vec<&str> =
        file["model"]["vocab"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut random = Random(35);
    (0..count).map(|_| line(&mut random, &vocabulary)).collect()
}

/// Compares encoding and both kinds of decoding, whole and token by token.
pub fn compare(tokenizer: &Tokenizer, reference: &tokenizers::Tokenizer, lines: &[String]) {
    for text in lines {
        let expected = reference.encode_fast(text.as_str(), false).unwrap();
        let ids = tokenizer.encode(text, Special::Parse);
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        for show_special in [false, true] {
            let expected = reference.decode(&ids, !show_special).unwrap();
            assert_eq!(tokenizer.decode(&ids, show_special), expected, "{text:?}");
        }
    }
}
