//! Byte-pair encoding: a run of characters to token ids by ranked merges.
//!
//! The result is defined as: start from one symbol a character (or a byte, where the vocabulary lacks the character), then
//! merge the adjacent pair of lowest rank, leftmost first, until no pair can merge. Two facts make that fast without
//! changing it: where no merge's left part can end and right part begin, no merge ever crosses, so the text is cut there
//! and each short chunk is merged by itself; and a long chunk keeps its pairs by rank, so that nothing is quadratic.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::hash::{FastMap, process_key};

/// No token.
pub(crate) const NONE: u32 = u32::MAX;
/// The rank of a pair that is adjacent inside some token without being a merge itself.
const NEVER: u32 = u32::MAX;
/// Chunks up to this many symbols are merged by scanning, longer ones with a queue (64 measured best of 16..256).
const SCAN_LIMIT: usize = 64;

/// One merge: the tokens `left` and `right`, adjacent, become `product`. Its rank is its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub left: u32,
    pub right: u32,
    pub product: u32,
}

/// Everything that defines an encoding; two tokenizers with equal rules give equal tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rules {
    /// The tokens of single characters, ascending by character.
    pub chars: Vec<(char, u32)>,
    /// The tokens of single bytes, `NONE` where the vocabulary has none; empty when bytes are no fallback.
    pub bytes: Vec<u32>,
    /// The token for a character that has neither a token nor byte tokens.
    pub unknown: Option<u32>,
    /// Whether neighbouring unknown characters become one unknown token.
    pub fuse_unknown: bool,
    /// The merges, best first.
    pub merges: Vec<Merge>,
    /// Whether merges in a row that make the same token have one rank, so that the leftmost of them comes first.
    pub rank_by_product: bool,
}

/// The encoder made from [`Rules`].
pub(crate) struct Bpe {
    ascii: [u32; 128],
    chars: FastMap<char, u32>,
    bytes: Vec<u32>,
    all_bytes: bool,
    unknown: Option<u32>,
    fuse_unknown: bool,
    pairs: PairTable,
    /// Whether chunks may be cut where [`PairTable`] knows no pair.
    cuts: bool,
}

/// Working memory of an encoding, kept between chunks.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<u32>,
    pairs: Vec<Pair>,
    next: Vec<u32>,
    prev: Vec<u32>,
    queue: Queue,
}

/// Positions by the rank of the pair that starts there.
#[derive(Default)]
struct Queue {
    ranks: BinaryHeap<Reverse<u32>>,
    positions: FastMap<u32, Vec<u32>>,
    /// Emptied lists, for the next rank that needs one.
    spare: Vec<Vec<u32>>,
}

impl Queue {
    fn push(&mut self, rank: u32, at: usize) {
        let positions = self.positions.entry(rank).or_insert_with(|| {
            self.ranks.push(Reverse(rank));
            self.spare.pop().unwrap_or_default()
        });
        positions.push(at as u32);
    }

    /// The lowest rank and its positions, ascending.
    fn pop(&mut self) -> Option<(u32, Vec<u32>)> {
        let Reverse(rank) = self.ranks.pop()?;
        let mut positions = self.positions.remove(&rank)?;
        if !positions.is_sorted() {
            positions.sort_unstable();
        }
        Some((rank, positions))
    }

    /// Puts back what was not used of a rank that was popped.
    fn put_back(&mut self, rank: u32, positions: &[u32]) {
        positions.iter().for_each(|at| self.push(rank, *at as usize));
    }
}

impl Bpe {
    /// `text(id)` is a token's text. Merges whose ends are no single-character tokens can never apply and are kept harmlessly.
    pub fn new<'a>(rules: &Rules, text: impl Fn(u32) -> &'a str) -> Self {
        let chars: FastMap<char, u32> = rules.chars.iter().copied().collect();
        let mut ascii = [NONE; 128];
        for (c, id) in &rules.chars {
            if let Some(slot) = ascii.get_mut(*c as usize) {
                *slot = *id;
            }
        }
        let all_bytes = rules.bytes.len() == 256 && !rules.bytes.contains(&NONE);
        // A byte or unknown token inside a merge could touch any character: then nothing is cut.
        let mut is_raw =
            rules.bytes.iter().chain(&rules.unknown).copied().filter(|id| *id != NONE).collect::<Vec<_>>();
        is_raw.sort_unstable();
        let raw = |id: u32| is_raw.binary_search(&id).is_ok();
        let mut cuts = all_bytes;
        let mut pairs = PairTable::with_capacity(rules.merges.len() + rules.merges.len() / 4);
        let mut rank = 0;
        for (index, merge) in rules.merges.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| rules.merges[before].product);
            if !rules.rank_by_product || before != Some(merge.product) {
                rank = index;
            }
            cuts &= !(raw(merge.left) || raw(merge.right) || raw(merge.product));
            pairs.insert(merge.left, merge.right, Pair { rank: rank as u32, product: merge.product });
            let (left, right) = (text(merge.left).chars().next_back(), text(merge.right).chars().next());
            if let (Some(left), Some(right)) =
                (left.and_then(|c| chars.get(&c)), right.and_then(|c| chars.get(&c)))
            {
                pairs.insert_if_absent(*left, *right, Pair { rank: NEVER, product: NONE });
            }
        }
        Self {
            ascii,
            chars,
            bytes: rules.bytes.clone(),
            all_bytes,
            unknown: rules.unknown,
            fuse_unknown: rules.fuse_unknown,
            pairs,
            cuts,
        }
    }

    #[inline]
    fn char_token(&self, c: char) -> u32 {
        match self.ascii.get(c as usize) {
            Some(id) => *id,
            None => self.chars.get(&c).copied().unwrap_or(NONE),
        }
    }

    /// Appends the tokens of `text` (a piece between added tokens, normalised) to `out`.
    pub fn encode(&self, text: impl Iterator<Item = char>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if !self.all_bytes {
            return self.encode_with_unknown(text, scratch, out);
        }
        for c in text {
            let id = self.char_token(c);
            if id != NONE {
                self.add(id, scratch, out);
                continue;
            }
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                self.add(self.bytes[usize::from(byte)], scratch, out);
            }
        }
        self.flush(scratch, out);
    }

    /// Adds a symbol to the current chunk, or starts the next chunk with it.
    #[inline]
    fn add(&self, id: u32, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(last) = scratch.symbols.last() {
            match self.pairs.get(*last, id) {
                Some(pair) => scratch.pairs.push(pair),
                None if self.cuts => self.flush(scratch, out),
                None => scratch.pairs.push(Pair::NONE),
            }
        }
        scratch.symbols.push(id);
    }

    /// The slow path of vocabularies without a token for every byte.
    ///
    /// As in the `tokenizers` package, a pending unknown token is emitted when the next known character comes, after any
    /// byte tokens in between.
    fn encode_with_unknown(
        &self,
        text: impl Iterator<Item = char>,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut pending = None;
        for c in text {
            let id = self.char_token(c);
            if id != NONE {
                pending.take().into_iter().for_each(|unknown| self.add(unknown, scratch, out));
                self.add(id, scratch, out);
                continue;
            }
            let mut utf8 = [0; 4];
            let bytes = c.encode_utf8(&mut utf8).as_bytes();
            let token = |byte: &u8| self.bytes.get(usize::from(*byte)).copied().unwrap_or(NONE);
            if bytes.iter().all(|byte| token(byte) != NONE) {
                bytes.iter().for_each(|byte| self.add(token(byte), scratch, out));
                continue;
            }
            if let (Some(unknown), false) = (pending, self.fuse_unknown) {
                self.add(unknown, scratch, out);
            }
            pending = self.unknown;
        }
        pending.into_iter().for_each(|unknown| self.add(unknown, scratch, out));
        self.flush(scratch, out);
    }

    /// Merges the current chunk and appends its tokens.
    fn flush(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        match scratch.symbols.len() {
            0 | 1 => {}
            2..=SCAN_LIMIT => self.merge_scanning(scratch),
            _ => self.merge_by_rank(scratch),
        }
        out.extend_from_slice(&scratch.symbols);
        scratch.symbols.clear();
        scratch.pairs.clear();
    }

    /// The best pair by scanning, again and again; `pairs[i]` is that of `symbols[i]` and `symbols[i + 1]`.
    fn merge_scanning(&self, scratch: &mut Scratch) {
        let Scratch { symbols, pairs, .. } = scratch;
        loop {
            let (mut best, mut rank) = (0, NEVER);
            for (at, pair) in pairs.iter().enumerate() {
                if pair.rank < rank {
                    (best, rank) = (at, pair.rank);
                }
            }
            if rank == NEVER {
                return;
            }
            symbols[best] = pairs[best].product;
            symbols.remove(best + 1);
            pairs.remove(best);
            if best > 0 {
                pairs[best - 1] = self.pairs.get_or_none(symbols[best - 1], symbols[best]);
            }
            if let (Some(pair), Some(right)) = (pairs.get_mut(best), symbols.get(best + 1)) {
                *pair = self.pairs.get_or_none(symbols[best], *right);
            }
        }
    }

    /// The same rank by rank; a position is stale when its pair no longer has that rank.
    fn merge_by_rank(&self, scratch: &mut Scratch) {
        let Scratch { symbols, pairs, next, prev, queue } = scratch;
        let count = symbols.len();
        // Chunks longer than 2^32 symbols cannot be numbered; 4 GiB of one word is left unmerged beyond any use.
        if u32::try_from(count).is_err() {
            return;
        }
        pairs.push(Pair::NONE);
        next.clear();
        next.extend(1..=count as u32);
        prev.clear();
        prev.extend((0..count as u32).map(|at| at.wrapping_sub(1)));
        for (at, pair) in pairs.iter().enumerate().filter(|(_, pair)| pair.rank != NEVER) {
            queue.push(pair.rank, at);
        }
        while let Some((rank, mut positions)) = queue.pop() {
            for (index, at) in positions.iter().map(|at| *at as usize).enumerate() {
                if pairs[at].rank != rank {
                    continue;
                }
                let (right, before) = (next[at] as usize, prev[at] as usize);
                let after = next[right] as usize;
                symbols[at] = pairs[at].product;
                symbols[right] = NONE;
                pairs[right] = Pair::NONE;
                pairs[at] = Pair::NONE;
                next[at] = after as u32;
                let mut lowest = NEVER;
                if after < count {
                    prev[after] = at as u32;
                    pairs[at] = self.pairs.get_or_none(symbols[at], symbols[after]);
                    lowest = pairs[at].rank;
                }
                if before < count {
                    pairs[before] = self.pairs.get_or_none(symbols[before], symbols[at]);
                    lowest = lowest.min(pairs[before].rank);
                }
                for at in [before, at].into_iter().filter(|at| *at < count && pairs[*at].rank != NEVER) {
                    queue.push(pairs[at].rank, at);
                }
                if lowest < rank {
                    // Merges in an unusual order: what is better now comes first.
                    queue.put_back(rank, &positions[index + 1..]);
                    break;
                }
            }
            positions.clear();
            queue.spare.push(positions);
        }
        symbols.retain(|id| *id != NONE);
    }
}

/// What is known of two adjacent symbols.
#[derive(Clone, Copy, Debug)]
struct Pair {
    rank: u32,
    product: u32,
}

impl Pair {
    const NONE: Self = Self { rank: NEVER, product: NONE };
}

/// An open-addressing table from two token ids to [`Pair`]: one multiplication and mostly one cache line a look-up.
struct PairTable {
    slots: Vec<(u64, Pair)>,
    shift: u32,
    used: usize,
    key: u64,
}

/// The key of a free slot; no pair has it because no token has the id `NONE`.
const FREE: u64 = u64::MAX;

impl PairTable {
    fn with_capacity(pairs: usize) -> Self {
        let size = (pairs.max(8) * 4 / 3).next_power_of_two();
        Self {
            slots: vec![(FREE, Pair::NONE); size],
            shift: 64 - size.trailing_zeros(),
            used: 0,
            key: process_key(),
        }
    }

    /// The slot that holds the pair, or the free one where it belongs.
    #[inline]
    fn slot(&self, pair: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (pair.wrapping_mul(self.key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        loop {
            let found = self.slots[at & mask].0;
            if found == pair || found == FREE {
                return at & mask;
            }
            at += 1;
        }
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> Option<Pair> {
        let (key, pair) = self.slots[self.slot(pack(left, right))];
        (key != FREE).then_some(pair)
    }

    #[inline]
    fn get_or_none(&self, left: u32, right: u32) -> Pair {
        // A free slot holds `Pair::NONE`.
        self.slots[self.slot(pack(left, right))].1
    }

    fn insert(&mut self, left: u32, right: u32, pair: Pair) {
        let slot = self.slot(pack(left, right));
        let fresh = self.slots[slot].0 == FREE;
        self.slots[slot] = (pack(left, right), pair);
        if fresh {
            self.used += 1;
            self.grow_when_full();
        }
    }

    fn insert_if_absent(&mut self, left: u32, right: u32, pair: Pair) {
        if self.get(left, right).is_none() {
            self.insert(left, right, pair);
        }
    }

    /// Keeps a quarter of the slots free.
    fn grow_when_full(&mut self) {
        if self.used * 4 < self.slots.len() * 3 {
            return;
        }
        let mut larger = Self::with_capacity(self.slots.len());
        if larger.slots.len() == self.slots.len() {
            larger = Self::with_capacity(self.slots.len() * 2);
        }
        for (key, pair) in self.slots.iter().filter(|(key, _)| *key != FREE) {
            let slot = larger.slot(*key);
            larger.slots[slot] = (*key, *pair);
        }
        larger.used = self.used;
        *self = larger;
    }
}

#[inline]
fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
