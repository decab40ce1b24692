//! Values of an option that make one test each: `1,2,4`, `128-512+128`, `1-8*2`.

use std::str::FromStr;

/// Numbers as one use of an option gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(Vec<usize>);

/// The longest range that is taken seriously.
const MOST: usize = 1000;

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for item in text.split(',') {
            all.extend(range(item)?);
        }
        Ok(Self(all))
    }
}

impl Numbers {
    /// The numbers of all uses of an option, or `default` if there was none.
    pub fn all(uses: &[Self], default: usize) -> Vec<usize> {
        let all: Vec<usize> = uses.iter().flat_map(|numbers| numbers.0.iter().copied()).collect();
        if all.is_empty() { vec![default] } else { all }
    }

    /// [`Self::all`] of an option that takes no 0.
    pub fn counts(uses: &[Self], default: usize, option: &str) -> crate::Result<Vec<usize>> {
        let all = Self::all(uses, default);
        if all.contains(&0) {
            return Err(crate::Error::Usage(format!("{option} is 0: expected numbers above 0")));
        }
        Ok(all)
    }
}

/// `7`, `first-last`, `first-last+step` or `first-last*factor`.
fn range(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{text:?} is no number, FIRST-LAST, FIRST-LAST+STEP or FIRST-LAST*FACTOR");
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let Some((first, rest)) = text.split_once('-') else { return Ok(vec![number(text)?]) };
    let (last, step, factor) = match (rest.split_once('+'), rest.split_once('*')) {
        (Some((last, step)), _) => (last, number(step)?, 1),
        (None, Some((last, factor))) => (last, 0, number(factor)?),
        (None, None) => (rest, 1, 1),
    };
    let (first, last) = (number(first)?, number(last)?);
    let mut all = Vec::new();
    let mut next = Some(first);
    while let Some(value) = next.filter(|&value| value <= last) {
        all.push(value);
        next = value.checked_mul(factor).and_then(|value| value.checked_add(step));
        if next == Some(value) || all.len() > MOST {
            return Err(format!("{text:?} has no end, or more than {MOST} numbers"));
        }
    }
    if all.is_empty() { Err(format!("{text:?} ends before it begins")) } else { Ok(all) }
}

/// A prompt and an answer: `512,128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub usize, pub usize);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(',').map(|(prompt, generate)| (prompt.parse(), generate.parse()));
        match numbers {
            Some((Ok(prompt), Ok(generate))) => Ok(Self(prompt, generate)),
            _ => Err("expected two numbers: prompt tokens,generated tokens".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let parsed = |text: &str| text.parse::<Numbers>().map(|numbers| numbers.0);
        assert_eq!(parsed("5").unwrap(), [5]);
        assert_eq!(parsed("1,2,0").unwrap(), [1, 2, 0]);
        assert_eq!(parsed("1-3,8").unwrap(), [1, 2, 3, 8]);
        assert_eq!(parsed("128-512+128").unwrap(), [128, 256, 384, 512]);
        assert_eq!(parsed("1-9*2").unwrap(), [1, 2, 4, 8]);
        for wrong in
            ["", "x", "1,", "3-1", "1-5*1", "0-5*2", "1-5+0", "1-18446744073709551615", "-1", "1-2-3"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        let end = "18446744073709551614-18446744073709551615";
        assert_eq!(parsed(end).unwrap().len(), 2, "the last number has no successor");
        assert_eq!(Numbers::all(&[Numbers(vec![1]), Numbers(vec![2, 3])], 9), [1, 2, 3]);
        assert_eq!(Numbers::all(&[], 9), [9]);
        assert!(Numbers::counts(&[Numbers(vec![0])], 9, "-t").is_err());
    }

    #[test]
    fn pairs() {
        assert_eq!("512,128".parse(), Ok(Pair(512, 128)));
        assert!("512".parse::<Pair>().is_err() && "1,2,3".parse::<Pair>().is_err());
    }
}
